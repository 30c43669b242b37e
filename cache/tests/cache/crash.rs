//! Processes that are killed, full disks, and caches that may only be read. The test binary runs itself as helper.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use flow_cache::{Cache, Claim};
use flow_core::Digest;

use crate::kit::{again, assert_tidy, cache, fill, make, options, parts, patiently};

const RESULTS: u64 = 6;

/// The files of result `n`: small, shared, and a big one, which makes the result one that is synced.
fn files(n: u64) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = (0..4).map(|i| (format!("d/{i}"), format!("{n} {i}").into_bytes())).collect();
    files.push(("shared".into(), b"the same in all".to_vec()));
    files.push(("big".into(), vec![n as u8; if n % 3 == 1 { 2 << 20 } else { 200 << 10 }]));
    files
}

/// Makes all results, as a flow would. Appends a line to `log` for each one that it really makes.
fn work(cache: &Cache, log: &Path) {
    cache.load_memo("crash");
    for n in 0..RESULTS {
        match patiently(cache, &parts(n), &options(false)).0 {
            Claim::Busy(_) => unreachable!("that was waited for"),
            Claim::Hit(outcome) => assert_eq!(outcome.tree.entries().len(), 6),
            Claim::Miss(slot) => {
                let files = files(n);
                fill(slot.out(), &files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect::<Vec<_>>());
                let outcome = slot.commit(&parts(n), 0.01).unwrap();
                cache.view(&outcome.tree).unwrap();
                use std::io::Write as _;
                let mut log = fs::File::options().append(true).create(true).open(log).unwrap();
                writeln!(log, "{n}").unwrap();
            }
        }
    }
    cache.save_memo().unwrap();
}

/// Not a test: what the helper process does. Without its variable it does nothing.
#[test]
fn helper() {
    let Ok(job) = std::env::var("FLOW_CACHE_TEST_HELPER") else { return };
    let (what, root) = job.split_once(' ').unwrap();
    let root = Path::new(root);
    match what {
        "work" => work(&Cache::open(root).unwrap(), &root.with_extension("log")),
        "gc" => {
            let cache = Cache::open(root).unwrap();
            let keep = |_: &_| false;
            let policy = flow_cache::GcPolicy { max_age: None, max_size: Some(0), dry_run: false, keep: &keep };
            cache.gc(&policy).unwrap();
        }
        "read-only" => read_only(root),
        "of-another" => of_another(root),
        "hold" => {
            let Claim::Miss(slot) = Cache::open(root).unwrap().claim(&parts(0).key(), &options(true)).unwrap() else {
                panic!("a hit");
            };
            fs::write(slot.scratch().join("checkpoint"), "7").unwrap();
            fs::write(root.with_extension("ready"), "").unwrap();
            std::thread::sleep(Duration::from_secs(600));
        }
        _ => panic!("{what}"),
    }
}

fn start(job: &str, root: &Path, fault: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["crash::helper", "--exact", "--nocapture", "--test-threads=1"])
        .env("FLOW_CACHE_TEST_HELPER", format!("{job} {}", root.display()))
        .env("FLOW_FAULT", fault)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// All that was promised, whatever happened before: nothing is half there, and the next run ends right.
fn assert_recovers(cache: &Cache) {
    let report = cache.verify(&|_, _| ()).unwrap();
    assert!(report.is_good(), "{report:?}");
    let next = again(cache);
    work(&next, &cache.root().with_extension("log2"));
    assert_eq!(next.take_warnings(), Vec::<String>::new());
    assert_eq!(again(cache).take_warnings(), Vec::<String>::new());
    for n in 0..RESULTS {
        let tree = again(cache).lookup(&parts(n).key()).unwrap().unwrap().tree;
        let view = cache.view(&tree).unwrap();
        for (name, bytes) in files(n) {
            assert_eq!(tree.get(&name).unwrap().digest, Digest::of(&bytes));
            assert!(fs::read(view.join(&name)).unwrap() == bytes, "{name}");
        }
    }
}

#[test]
fn killed_at_every_point_nothing_is_half_written() {
    let points = [
        "claim:locked",
        "claim:scratch",
        "commit:hashed",
        "commit:object",
        "commit:object@4",
        "commit:placed",
        "commit:placed@6",
        "commit:objects",
        "commit:record",
        "commit:recorded",
        "commit:recorded@6",
        "view:built",
        "memo:written",
        "commit:object@17",
        "commit:record@3",
    ];
    for point in points {
        let (_dir, cache) = cache();
        let output = start("work", cache.root(), point).wait_with_output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGKILL), "{point}: {output:?}");
        assert_recovers(&cache);
        // What it left, gc finds.
        let policy = flow_cache::GcPolicy { max_age: None, max_size: None, dry_run: false, keep: &|_| true };
        cache.gc(&policy).unwrap();
        assert_eq!(fs::read_dir(cache.root().join("scratch")).unwrap().count(), 0, "{point}");
        assert!(cache.verify(&|_, _| ()).unwrap().is_good());
    }
}

#[test]
fn killed_at_random_moments_nothing_is_half_written() {
    let (_dir, cache) = cache();
    let mut killed = 0;
    for round in 0..24u64 {
        let root = cache.root().with_extension(round.to_string());
        let cache = Cache::open(&root).unwrap();
        let mut child = start("work", &root, "");
        // Spread over start, work and end, without a generator of chance.
        std::thread::sleep(Duration::from_micros(2000 + round * 7919 % 40_000));
        child.kill().unwrap();
        killed += usize::from(child.wait().unwrap().signal() == Some(libc::SIGKILL));
        if round % 2 == 0 {
            let mut child = start("work", &root, "");
            std::thread::sleep(Duration::from_micros(2000 + round * 104_729 % 30_000));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_recovers(&cache);
    }
    assert!(killed > 8, "only {killed} were killed in time: the test tests nothing");
}

#[test]
fn a_killed_gc_leaves_no_record_without_objects() {
    for point in ["gc:record", "gc:record@3", "gc:object", "gc:object@3"] {
        let (_dir, cache) = cache();
        work(&cache, &cache.root().with_extension("log"));
        let root = cache.root().to_owned();
        drop(cache);
        let output = start("gc", &root, point).wait_with_output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGKILL), "{output:?}");
        assert_recovers(&Cache::open(&root).unwrap());
    }
}

#[test]
fn a_killed_holder_releases_and_its_checkpoint_is_found() {
    let (_dir, cache) = cache();
    let mut child = start("hold", cache.root(), "");
    while !cache.root().with_extension("ready").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the helper ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let Claim::Miss(slot) = cache.claim(&parts(0).key(), &options(true)).unwrap() else { panic!("a hit") };
    assert!(slot.resumed());
    assert_eq!(fs::read(slot.scratch().join("checkpoint")).unwrap(), b"7");
    slot.commit(&parts(0), 0.0).unwrap();
    assert_tidy(&cache);
}

#[test]
fn two_processes_make_each_result_once() {
    let (_dir, cache) = cache();
    let children: Vec<_> = (0..3).map(|_| start("work", cache.root(), "")).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let mut made: Vec<String> =
        fs::read_to_string(cache.root().with_extension("log")).unwrap().lines().map(str::to_owned).collect();
    made.sort();
    assert_eq!(made, (0..RESULTS).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_recovers(&cache);
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    for point in ["commit:object=enospc", "commit:placed@3=enospc", "commit:record=enospc", "view:built=enospc"] {
        let (_dir, cache) = cache();
        let output = start("work", cache.root(), point).wait_with_output().unwrap();
        assert!(!output.status.success() && output.status.code().is_some());
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("no space is left for the cache"), "{point}: {said}");
        assert!(said.contains("flow cache gc"), "{said}");
        assert_tidy(&cache);
        assert_recovers(&cache);
    }
}

/// What a user can do with a cache that he may not write to: everything but write.
fn read_only(root: &Path) {
    if rustix_is_root() {
        drop_root();
    }
    let cache = Cache::open(root).unwrap();
    cache.load_memo("reader");
    let outcome = cache.lookup(&parts(1).key()).unwrap().unwrap();
    assert!(matches!(cache.claim(&parts(1).key(), &options(false)).unwrap(), Claim::Hit(_)));
    let hex = outcome.tree.digest().to_string();
    assert!(cache.view(&outcome.tree).unwrap().ends_with(hex));
    assert!(cache.record(&parts(1).key()).unwrap().is_some());
    assert_eq!(cache.stats().unwrap().results, 1);
    let error = format!("{:#}", cache.claim(&parts(2).key(), &options(false)).unwrap_err());
    assert!(error.contains("may not be written by this user") && error.contains("FLOW_CACHE_DIR"), "{error}");
    assert!(format!("{:#}", cache.save_memo().unwrap_err()).contains("may not be written"));
    let error = format!("{:#}", Cache::open(&root.join("objects/new")).unwrap_err());
    assert!(error.contains("may not be written"), "{error}");
    fs::write(Path::new(&std::env::var("FLOW_CACHE_TEST_SIGN").unwrap()), "done").unwrap();
}

fn rustix_is_root() -> bool {
    // SAFETY: no arguments, no memory, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn drop_root() {
    const NOBODY: u32 = 65534;
    // SAFETY: plain system calls on numbers; this process is a helper that only reads from here on.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setgid(NOBODY), 0);
        assert_eq!(libc::setuid(NOBODY), 0);
    }
}

#[test]
fn a_cache_that_may_only_be_read_serves() {
    let (dir, cache) = cache();
    let outcome = make(&cache, &parts(1), &[("a", b"hello")]);
    cache.view(&outcome.tree).unwrap();
    let root = cache.root().to_owned();
    drop(cache);
    let sign = tempfile::NamedTempFile::new().unwrap();
    fs::set_permissions(sign.path(), fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chmod_dirs(&root, 0o555);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["crash::helper", "--exact", "--nocapture", "--test-threads=1"])
        .env("FLOW_CACHE_TEST_HELPER", format!("read-only {}", root.display()))
        .env("FLOW_CACHE_TEST_SIGN", sign.path())
        .output()
        .unwrap();
    chmod_dirs(&root, 0o755);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_to_string(sign.path()).unwrap(), "done");
}

/// That a result is used cannot be noted by who may not touch its record, and need not be.
fn of_another(root: &Path) {
    drop_root();
    let (cache, guard) = (Cache::open(root).unwrap(), Digest::of(b""));
    cache.take_witness();
    cache.lookup(&parts(1).key()).unwrap().unwrap();
    cache.keep_witness("w", &guard, b"").unwrap();
    assert!(again(&cache).ask_witness("w", &guard).is_some());
    fs::write(Path::new(&std::env::var("FLOW_CACHE_TEST_SIGN").unwrap()), "done").unwrap();
}

#[test]
fn a_witness_holds_over_old_records_of_another_user() {
    if !rustix_is_root() {
        return;
    }
    let (dir, cache) = cache();
    make(&cache, &parts(1), &[("a", b"hello")]);
    let key = parts(1).key().to_string();
    let record = fs::File::options().write(true).open(cache.root().join(format!("results/{}/{key}.json", &key[..2])));
    record.unwrap().set_modified(SystemTime::now() - Duration::from_secs(25 * 3600)).unwrap();
    let root = cache.root().to_owned();
    drop(cache);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chmod_dirs(&root, 0o777);
    let sign = tempfile::NamedTempFile::new().unwrap();
    fs::set_permissions(sign.path(), fs::Permissions::from_mode(0o666)).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["crash::helper", "--exact", "--nocapture", "--test-threads=1"])
        .env("FLOW_CACHE_TEST_HELPER", format!("of-another {}", root.display()))
        .env("FLOW_CACHE_TEST_SIGN", sign.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_to_string(sign.path()).unwrap(), "done");
}

fn chmod_dirs(dir: &Path, mode: u32) {
    if mode & 0o200 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
    }
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            chmod_dirs(&entry.path(), mode);
        }
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
}
