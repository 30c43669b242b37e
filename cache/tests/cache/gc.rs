//! gc takes what it may and nothing that is held.

use std::{
    fs,
    os::unix::fs::symlink,
    time::{Duration, SystemTime},
};

use flow_cache::{Cache, Claim, GcPolicy, GcReport};
use flow_core::{Digest, Key};

use crate::kit::{again, assert_tidy, cache, files_in, fill, make, miss, options, parts};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn record(cache: &Cache, key: &Key) -> std::path::PathBuf {
    let hex = key.to_string();
    cache.root().join(format!("results/{}/{hex}.json", &hex[..2]))
}

fn used(cache: &Cache, n: u64, days: u32) {
    let file = fs::File::options().write(true).open(record(cache, &parts(n).key())).unwrap();
    file.set_modified(SystemTime::now() - DAY * days).unwrap();
}

fn gc(cache: &Cache, max_age: Option<Duration>, max_size: Option<u64>, dry_run: bool) -> GcReport {
    cache.gc(&GcPolicy { max_age, max_size, dry_run, keep: &|_| false }).unwrap()
}

/// Four results of 10 bytes each and one shared by all of 5, last used 0, 10, 20, 30 days ago, by nobody now.
fn aged() -> (tempfile::TempDir, Cache) {
    let (dir, first) = cache();
    for n in 0..4u64 {
        let own = format!("result {n:03}");
        make(&first, &parts(n), &[("own", own.as_bytes()), ("shared", b"share")]);
        used(&first, n, n as u32 * 10);
    }
    let cache = again(&first);
    (dir, cache)
}

fn there(cache: &Cache) -> Vec<u64> {
    (0..4).filter(|n| record(cache, &parts(*n).key()).exists()).collect()
}

#[test]
fn by_age() {
    let (_dir, cache) = aged();
    cache.view(&again(&cache).record(&parts(3).key()).unwrap().unwrap().tree).unwrap();
    let other = again(&cache);
    drop(cache);
    let before = files_in(&other, ".");
    let dry = gc(&other, Some(DAY * 15), None, true);
    assert_eq!(files_in(&other, "."), [before, vec![]].concat(), "a dry run removes nothing");
    let report = gc(&other, Some(DAY * 15), None, false);
    assert_eq!(report, dry);
    assert_eq!(there(&other), [0, 1]);
    assert_eq!((report.kept, report.in_use, report.size), (2, 0, 25));
    let of = |kind: &str| report.items.iter().filter(|item| item.kind == kind).collect::<Vec<_>>();
    assert_eq!(of("test").len(), 2);
    assert!(of("test").iter().all(|item| item.key.is_some() && item.why.starts_with("not used for ")));
    assert_eq!(of("object").len(), 2);
    assert_eq!(of("view").len(), 1);
    assert!(report.freed >= 20);
    assert!(other.verify(&|_, _| ()).unwrap().is_good());
    assert_tidy(&other);
}

#[test]
fn by_size_the_least_recently_used_goes_first() {
    let (_dir, cache) = aged();
    let report = gc(&cache, None, Some(25), false);
    assert_eq!(there(&cache), [0, 1]);
    assert_eq!(report.size, 25);
    assert_eq!(gc(&cache, None, Some(25), false).items, []);
    gc(&cache, None, Some(0), false);
    assert_eq!(there(&cache), [] as [u64; 0]);
    assert_eq!(files_in(&cache, "objects"), [] as [&str; 0]);
}

#[test]
fn what_is_used_stays_young() {
    let (_dir, cache) = aged();
    assert!(again(&cache).lookup(&parts(3).key()).unwrap().is_some());
    gc(&cache, Some(DAY * 5), None, false);
    assert_eq!(there(&cache), [0, 3]);
}

#[test]
fn what_is_wanted_stays() {
    let (_dir, cache) = aged();
    let wanted = parts(2).key();
    let policy = GcPolicy { max_age: None, max_size: Some(0), dry_run: false, keep: &|key| *key == wanted };
    assert_eq!(cache.gc(&policy).unwrap().kept, 1);
    assert_eq!(there(&cache), [2]);
    assert!(again(&cache).lookup(&wanted).unwrap().is_some());
}

#[test]
fn what_is_pinned_stays_until_it_is_let_go() {
    let (_dir, cache) = aged();
    let pinned = parts(3).key();
    let note = "for the paper".to_owned();
    let pin = flow_cache::Pin { key: pinned, note, whole: true, needs: Vec::new() };
    cache.pin(&pin).unwrap();
    assert_eq!(again(&cache).pins().unwrap(), [pin]);
    let report = gc(&cache, Some(DAY), Some(0), false);
    assert_eq!((report.kept, report.pinned, report.in_use), (1, 1, 0));
    assert_eq!(there(&cache), [3]);
    assert!(cache.unpin(&pinned).unwrap() && !cache.unpin(&pinned).unwrap());
    gc(&again(&cache), None, Some(0), false);
    assert!(there(&cache).is_empty());
    // A pin that cannot be read may be one of anything.
    fs::create_dir(cache.root().join("pins").join(pinned.to_string())).unwrap();
    assert!(cache.gc(&GcPolicy { max_age: None, max_size: None, dry_run: true, keep: &|_| false }).is_err());
}

#[test]
fn what_a_running_flow_uses_stays() {
    let (_dir, cache) = aged();
    let running = again(&cache);
    assert!(running.lookup(&parts(3).key()).unwrap().is_some());
    let slot = miss(&running, &parts(9), &options(false));
    // Found while it runs, and shown in a view.
    used(&cache, 2, 40);
    let tree = running.lookup(&parts(2).key()).unwrap().unwrap().tree;
    let view = running.view(&tree).unwrap();
    for n in 0..4 {
        used(&cache, n, 40);
    }
    fill(slot.out(), &[("half", b"x")]);
    let report = gc(&cache, Some(DAY), Some(0), false);
    assert_eq!(there(&cache), [2, 3]);
    assert_eq!(report.in_use, 2);
    assert_eq!(fs::read(view.join("shared")).unwrap(), b"share");
    slot.commit(&parts(9), 0.0).unwrap();
    used(&cache, 2, 40);
    drop(running);
    gc(&cache, Some(DAY), None, false);
    assert!(there(&cache).is_empty(), "{:?}", there(&cache));
    assert!(again(&cache).lookup(&parts(9).key()).unwrap().is_some());
}

#[test]
fn its_own_finds_do_not_keep_gc_out_and_another_flows_do() {
    let (_dir, cache) = aged();
    assert!(cache.lookup(&parts(0).key()).unwrap().is_some());
    gc(&cache, None, Some(0), false);
    assert_eq!(there(&cache), [0], "what it found itself stays");
}

#[test]
fn leftovers_go_and_work_in_progress_stays() {
    let (_dir, cache) = cache();
    make(&cache, &parts(1), &[("a", b"x")]);
    let scratch = |name: String| cache.root().join("scratch").join(name);
    let (dead, paused) = (scratch(format!("{}.tmp", Key([1; 32]))), scratch(Key([2; 32]).to_string()));
    fill(&dead, &[("a", b"1234")]);
    fill(&paused, &[("d/checkpoint", b"12345")]);
    let running = miss(&cache, &parts(2), &options(false));
    fill(running.out(), &[("a", b"1")]);
    fs::write(cache.root().join("locks").join(Key([3; 32]).to_string()), "dead").unwrap();
    let spare = [cache.root().join("locks/.flow-1-1"), scratch(".flow-1-2".into())];
    fs::write(&spare[0], "dead").unwrap();
    fs::create_dir(&spare[1]).unwrap();
    fs::create_dir_all(cache.root().join("objects/00")).unwrap();
    fs::write(cache.root().join("objects/00").join(Digest([0; 32]).to_string()), "unnamed").unwrap();
    let report = gc(&again(&cache), None, None, false);
    let kinds: Vec<_> = report.items.iter().map(|item| item.kind.as_str()).collect();
    assert_eq!(kinds, ["object", "scratch"]);
    assert!(!dead.exists() && paused.exists() && running.out().join("a").exists());
    assert_eq!(files_in(&cache, "locks").iter().filter(|name| name.len() == 64).count(), 1, "the running one's");
    assert!(spare.iter().all(|path| !path.exists()));
    assert!(files_in(&cache, "locks").iter().any(|name| name.starts_with(".flow-")), "a living process keeps its own");
    running.commit(&parts(2), 0.0).unwrap();
    let old = SystemTime::now() - DAY * 9;
    for path in [paused.join("d/checkpoint"), paused.join("d"), paused.clone()] {
        fs::File::open(path).unwrap().set_modified(old).unwrap();
    }
    let report = gc(&again(&cache), Some(DAY), None, false);
    assert_eq!(report.items.iter().map(|item| (item.key, item.bytes)).collect::<Vec<_>>(), [(Some(Key([2; 32])), 5)]);
    assert!(!paused.exists());
    assert_tidy(&cache);
}

#[test]
fn gc_does_not_follow_links_out_of_the_cache() {
    let (dir, cache) = cache();
    let precious = dir.path().join("precious");
    fill(&precious, &[("a", b"x")]);
    let dead = cache.root().join("scratch").join(format!("{}.tmp", Key([1; 32])));
    fs::create_dir_all(dead.join("out")).unwrap();
    symlink(&precious, dead.join("out/link")).unwrap();
    fs::create_dir_all(cache.root().join("trees/00")).unwrap();
    symlink(&precious, cache.root().join("trees/00/stray")).unwrap();
    gc(&cache, Some(Duration::ZERO), Some(0), false);
    assert!(!dead.exists() && !cache.root().join("trees/00/stray").exists());
    assert_eq!(fs::read(precious.join("a")).unwrap(), b"x");
}

#[test]
fn what_a_record_names_stays_while_the_record_cannot_be_read() {
    let (_dir, cache) = aged();
    let path = record(&cache, &parts(0).key());
    let bytes = fs::read(&path).unwrap();
    // A directory is what root, too, cannot read as a file.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let policy = GcPolicy { max_age: None, max_size: None, dry_run: false, keep: &|_| false };
    let error = format!("{:#}", cache.gc(&policy).unwrap_err());
    assert!(error.contains("cannot read the record"), "{error}");
    fs::remove_dir(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    assert!(again(&cache).lookup(&parts(0).key()).unwrap().is_some());
}

#[test]
fn stats_count() {
    let (_dir, cache) = aged();
    let slot = miss(&cache, &parts(9), &options(true));
    fill(slot.scratch(), &[("w", b"123")]);
    let stats = cache.stats().unwrap();
    assert_eq!((stats.results, stats.objects, stats.bytes), (4, 5, 45));
    assert_eq!((stats.scratch, stats.scratch_bytes, stats.quarantined), (1, 3, 0));
    let kind = &stats.kinds["test"];
    assert_eq!((kind.results, kind.bytes), (4, 60));
    assert!((kind.cost - 0.04).abs() < 1e-9);
    assert!(matches!(cache.claim(&parts(0).key(), &options(false)).unwrap(), Claim::Hit(_)));
}
