//! What the tests share.

use std::{collections::BTreeMap, env, fs, path::Path, process::Command, time::Duration};

use flow_cache::{Busy, Cache, Claim, ClaimOptions, Outcome, Slot};
use flow_core::{Digest, KEY_FORMAT, KeyParts};
use serde_json::json;
use tempfile::TempDir;

/// Runs the test `name` again in a process of its own; true there. For what counts what a whole process does: the
/// other tests are threads of this one.
pub fn alone(name: &str) -> bool {
    const SIGN: &str = "FLOW_CACHE_TEST_ALONE";
    if env::var_os(SIGN).is_some() {
        return true;
    }
    let output = Command::new(env::current_exe().unwrap()).args([name, "--exact"]).env(SIGN, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

pub fn options(resumable: bool) -> ClaimOptions<'static> {
    ClaimOptions { resumable, ..ClaimOptions::default() }
}

/// Claims until nobody else has it; whether there was a wait.
pub fn patiently(cache: &Cache, parts: &KeyParts, options: &ClaimOptions<'_>) -> (Claim, bool) {
    let mut after: Option<Busy> = None;
    loop {
        match cache.claim(&parts.key(), &ClaimOptions { after: after.as_ref(), ..*options }).unwrap() {
            Claim::Busy(busy) => {
                after = Some(busy);
                std::thread::sleep(Duration::from_millis(2));
            }
            claim => return (claim, after.is_some()),
        }
    }
}

pub fn parts(n: u64) -> KeyParts {
    let inputs = BTreeMap::from([("input".to_owned(), vec![Digest::of(b"input")])]);
    KeyParts { format: KEY_FORMAT, kind: "test".into(), version: 1, params: json!({"n": n}), inputs }
}

pub fn cache() -> (TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join("cache")).unwrap();
    (dir, cache)
}

/// Another process's view of the same cache: nothing remembered.
pub fn again(cache: &Cache) -> Cache {
    Cache::open(cache.root()).unwrap()
}

pub fn miss(cache: &Cache, parts: &KeyParts, options: &ClaimOptions<'_>) -> Slot {
    match cache.claim(&parts.key(), options).unwrap() {
        Claim::Miss(slot) => slot,
        other => panic!("unexpected: {other:?}"),
    }
}

/// Makes a result with these files.
pub fn make(cache: &Cache, parts: &KeyParts, files: &[(&str, &[u8])]) -> Outcome {
    let slot = miss(cache, parts, &options(false));
    fill(slot.out(), files);
    slot.commit(parts, 0.01).unwrap()
}

pub fn fill(dir: &Path, files: &[(&str, &[u8])]) {
    for (name, content) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// All files under a directory of the cache, links not followed.
pub fn files_in(cache: &Cache, dir: &str) -> Vec<String> {
    fn walk(dir: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), found);
            } else {
                found.push(entry.file_name().into_string().unwrap());
            }
        }
    }
    let mut found = Vec::new();
    walk(&cache.root().join(dir), &mut found);
    found.sort();
    found
}

/// Nothing but results, objects and memos is there.
pub fn assert_tidy(cache: &Cache) {
    // What a living process, or a killed one, has to spare is in nobody's way.
    let spare = |name: &str| name.starts_with(".flow-");
    for dir in ["scratch", "tmp", "quarantine"] {
        let there = fs::read_dir(cache.root().join(dir)).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = there.filter(|name| dir != "scratch" || !spare(&name.to_string_lossy())).collect();
        assert!(left.is_empty(), "{dir} is not empty: {left:?}");
    }
    let locks = files_in(cache, "locks");
    assert!(locks.iter().all(|name| name == "gate" || name.ends_with(".list") || spare(name)), "{locks:?}");
}
