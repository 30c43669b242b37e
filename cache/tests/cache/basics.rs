//! Claim, commit, look up.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
};

use flow_cache::{Claim, ClaimOptions};
use flow_core::{Digest, Tree};

use crate::kit::{again, assert_tidy, cache, files_in, fill, make, miss, options, parts};

#[test]
fn a_commit_is_a_hit_from_then_on() {
    let (_dir, cache) = cache();
    let parts = parts(1);
    assert!(cache.lookup(&parts.key()).unwrap().is_none());
    let slot = miss(&cache, &parts, &options(false));
    assert_eq!(slot.key(), parts.key());
    assert!(!slot.resumed() && slot.scratch().is_dir());
    assert_eq!(fs::read_dir(slot.out()).unwrap().count(), 0);
    fill(slot.out(), &[("a.txt", b"hello"), ("deep/er/b", b"")]);
    fs::write(slot.scratch().join("work"), "left over").unwrap();
    let made = slot.commit(&parts, 12.5).unwrap();
    assert_eq!(made.tree.entries().iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["a.txt", "deep/er/b"]);
    assert_eq!(made.tree.get("a.txt").unwrap().digest, Digest::of(b"hello"));
    for cache in [cache.clone(), again(&cache)] {
        let Claim::Hit(hit) = cache.claim(&parts.key(), &options(false)).unwrap() else { panic!("a miss") };
        assert_eq!((hit.tree, hit.cost, hit.key), (made.tree.clone(), 12.5, parts.key()));
        let object = cache.object_path(&Digest::of(b"hello"));
        assert_eq!(fs::read(&object).unwrap(), b"hello");
        assert_eq!(fs::metadata(&object).unwrap().permissions().mode() & 0o777, 0o444);
        let record = cache.record(&parts.key()).unwrap().unwrap();
        assert_eq!((record.parts, record.cost, &record.tree), (parts.clone(), 12.5, &*made.tree));
        assert_eq!(cache.take_warnings(), Vec::<String>::new());
    }
    assert_tidy(&cache);
}

#[test]
fn an_empty_result_is_a_result() {
    let (_dir, cache) = cache();
    make(&cache, &parts(1), &[]);
    assert_eq!(*again(&cache).lookup(&parts(1).key()).unwrap().unwrap().tree, Tree::default());
    assert_eq!(fs::read_dir(cache.view(&Tree::default()).unwrap()).unwrap().count(), 0);
}

#[test]
fn a_dropped_slot_leaves_nothing() {
    let (_dir, cache) = cache();
    let slot = miss(&cache, &parts(1), &options(false));
    fill(slot.out(), &[("a", b"x")]);
    fill(slot.scratch(), &[("b/c", b"x")]);
    drop(slot);
    assert_tidy(&cache);
    assert!(cache.lookup(&parts(1).key()).unwrap().is_none());
    assert!(!miss(&cache, &parts(1), &options(false)).resumed());
}

#[test]
fn resumable_scratch_survives_and_out_does_not() {
    let (_dir, cache) = cache();
    let slot = miss(&cache, &parts(1), &options(true));
    assert!(!slot.resumed() && !cache.has_scratch(&slot.key()));
    fill(slot.out(), &[("half", b"x")]);
    fill(slot.scratch(), &[("checkpoint", b"step 5")]);
    drop(slot);
    assert!(cache.has_scratch(&parts(1).key()) && !cache.has_scratch(&parts(2).key()));
    let slot = miss(&again(&cache), &parts(1), &options(true));
    assert!(slot.resumed());
    assert_eq!(fs::read(slot.scratch().join("checkpoint")).unwrap(), b"step 5");
    assert_eq!(fs::read_dir(slot.out()).unwrap().count(), 0);
    slot.commit(&parts(1), 1.0).unwrap();
    assert_tidy(&cache);
}

#[test]
fn nothing_is_left_of_a_resumable_slot_that_did_nothing() {
    let (_dir, cache) = cache();
    drop(miss(&cache, &parts(1), &options(true)));
    assert_tidy(&cache);
}

#[test]
fn forced_work_replaces_the_result() {
    let (_dir, cache) = cache();
    make(&cache, &parts(1), &[("a", b"old")]);
    let force = ClaimOptions { ignore_hit: true, ..options(false) };
    let slot = miss(&cache, &parts(1), &force);
    assert!(cache.lookup(&parts(1).key()).unwrap().is_some(), "the old one serves until then");
    fill(slot.out(), &[("a", b"new")]);
    slot.commit(&parts(1), 0.0).unwrap();
    for cache in [cache.clone(), again(&cache)] {
        let tree = cache.lookup(&parts(1).key()).unwrap().unwrap().tree;
        assert_eq!(tree.get("a").unwrap().digest, Digest::of(b"new"));
    }
}

#[test]
fn equal_content_is_kept_once_and_modes_are_apart() {
    let (_dir, cache) = cache();
    make(&cache, &parts(1), &[("a", b"same"), ("b", b"same")]);
    make(&cache, &parts(2), &[("c", b"same")]);
    assert_eq!(files_in(&cache, "objects").len(), 1);
    let slot = miss(&cache, &parts(3), &options(false));
    fill(slot.out(), &[("run.sh", b"same")]);
    fs::set_permissions(slot.out().join("run.sh"), fs::Permissions::from_mode(0o750)).unwrap();
    let tree = slot.commit(&parts(3), 0.0).unwrap().tree;
    assert!(tree.entries()[0].executable);
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(cache.entry_path(&tree.entries()[0])), 0o555);
    assert_eq!(mode(cache.object_path(&Digest::of(b"same"))), 0o444);
    assert_eq!(mode(cache.view(&tree).unwrap().join("run.sh")), 0o555);
    let again = again(&cache);
    for n in 1..=3 {
        assert!(again.lookup(&parts(n).key()).unwrap().is_some());
    }
}

#[test]
fn an_object_that_is_only_executable_is_found_by_its_digest() {
    let (_dir, cache) = cache();
    let slot = miss(&cache, &parts(1), &options(false));
    fill(slot.out(), &[("run.sh", b"#!")]);
    fs::set_permissions(slot.out().join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    slot.commit(&parts(1), 0.0).unwrap();
    assert_eq!(fs::read(cache.object_path(&Digest::of(b"#!"))).unwrap(), b"#!");
}

#[test]
fn what_others_may_write_to_is_copied() {
    let (dir, cache) = cache();
    let (theirs, linked) = (dir.path().join("theirs"), dir.path().join("linked"));
    fs::write(&theirs, "theirs").unwrap();
    fs::write(&linked, "linked").unwrap();
    let slot = miss(&cache, &parts(1), &options(false));
    symlink(&theirs, slot.out().join("sym")).unwrap();
    fs::hard_link(&linked, slot.out().join("hard")).unwrap();
    let tree = slot.commit(&parts(1), 0.0).unwrap().tree;
    fs::write(&theirs, "changed").unwrap();
    fs::write(&linked, "changed").unwrap();
    assert_eq!(fs::read(cache.object_path(&tree.get("sym").unwrap().digest)).unwrap(), b"theirs");
    assert_eq!(fs::read(cache.object_path(&tree.get("hard").unwrap().digest)).unwrap(), b"linked");
    assert_eq!(fs::metadata(&linked).unwrap().permissions().mode() & 0o200, 0o200, "their file is as it was");
    assert!(cache.lookup(&parts(1).key()).unwrap().is_some());
    assert_tidy(&cache);
}

#[test]
fn what_cannot_be_committed_is_said_and_nothing_is_left() {
    let (_dir, cache) = cache();
    let refused = |fill: &dyn Fn(&std::path::Path)| {
        let slot = miss(&cache, &parts(1), &options(false));
        fill(slot.out());
        let error = format!("{:#}", slot.commit(&parts(1), 0.0).unwrap_err());
        assert_tidy(&cache);
        assert!(cache.lookup(&parts(1).key()).unwrap().is_none());
        error
    };
    let error = refused(&|out| drop(std::os::unix::net::UnixListener::bind(out.join("s")).unwrap()));
    assert!(error.contains("is a socket"), "{error}");
    let error = refused(&|out| symlink("nowhere", out.join("dangling")).unwrap());
    assert!(error.contains("cannot follow the link") && error.contains("dangling"), "{error}");
    let error = refused(&|out| symlink(".", out.join("circle")).unwrap());
    assert!(error.contains("leads to a directory that it is in"), "{error}");
    let error = refused(&|out| {
        use std::os::unix::ffi::OsStrExt as _;
        fs::write(out.join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
    });
    assert!(error.contains("not UTF-8"), "{error}");
    let precious = cache.root().with_extension("precious");
    fill(&precious, &[("a", b"x")]);
    let error = refused(&|out| {
        fs::remove_dir(out).unwrap();
        symlink(&precious, out).unwrap();
    });
    assert!(error.contains("removed its output directory") && precious.join("a").exists(), "{error}");
    let slot = miss(&cache, &parts(1), &options(false));
    assert!(slot.commit(&parts(2), 0.0).unwrap_err().to_string().contains("under the key"));
}

#[test]
fn an_alias_is_a_second_name() {
    let (_dir, cache) = cache();
    let made = make(&cache, &parts(1), &[("a", b"x")]);
    let alias = cache.alias(&parts(2), &made).unwrap();
    assert_eq!((alias.key, &alias.tree, alias.cost), (parts(2).key(), &made.tree, made.cost));
    let again = again(&cache);
    assert_eq!(again.lookup(&parts(2).key()).unwrap().unwrap().tree, made.tree);
    assert_eq!(again.results().count(), 2);
    fs::remove_file(cache.object_path(&Digest::of(b"x"))).unwrap();
    assert!(cache.alias(&parts(3), &made).unwrap_err().to_string().contains("no longer in the cache"));
}

#[test]
fn big_and_many_files_go_the_same_way() {
    let (_dir, cache) = cache();
    let big: Vec<u8> = (0..9_000_000u32).map(|i| (i >> 7) as u8).collect();
    let names: Vec<String> = (0..100).map(|n| format!("{}/{n}", n % 7)).collect();
    let mut files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
    files.push(("big", &big));
    let tree = make(&cache, &parts(1), &files).tree;
    assert_eq!(tree.entries().len(), 101);
    assert_eq!(tree.get("big").unwrap().digest, Digest::of(&big));
    let other = again(&cache);
    assert_eq!(other.lookup(&parts(1).key()).unwrap().unwrap().tree, tree);
    assert_eq!(other.digest_path(&other.view(&tree).unwrap()).unwrap(), *tree);
    assert!(other.verify(&|_, _| ()).unwrap().is_good());
}
