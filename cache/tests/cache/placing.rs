//! Views and restored files.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
};

use flow_cache::Place;
use flow_core::{Digest, Entry, Tree};

use crate::kit::{again, assert_tidy, cache, fill, make, miss, options, parts};

#[test]
fn a_view_shows_the_tree_and_heals() {
    let (dir, cache) = cache();
    let tree = make(&cache, &parts(1), &[("a", b"1"), ("d/e/f", b"2")]).tree;
    let view = cache.view(&tree).unwrap();
    assert_eq!(cache.digest_path(&view).unwrap(), *tree);
    let inode = fs::metadata(&view).unwrap().ino();
    assert_eq!(cache.view(&tree).unwrap(), view);
    assert_eq!(fs::metadata(&view).unwrap().ino(), inode, "made once");
    fs::write(view.join("d/stray"), "x").unwrap();
    assert_eq!(cache.digest_path(&cache.view(&tree).unwrap()).unwrap(), *tree);
    fs::remove_file(view.join("a")).unwrap();
    assert_eq!(cache.digest_path(&cache.view(&tree).unwrap()).unwrap(), *tree);
    fs::remove_file(view.join("a")).unwrap();
    fs::write(view.join("a"), "forged").unwrap();
    assert_eq!(fs::read(cache.view(&tree).unwrap().join("a")).unwrap(), b"1");
    fs::remove_dir_all(&view).unwrap();
    fs::write(&view, "in the way").unwrap();
    assert_eq!(fs::read(cache.view(&tree).unwrap().join("a")).unwrap(), b"1");
    assert_tidy(&cache);
    let moved = dir.path().join("moved");
    fs::rename(cache.root(), &moved).unwrap();
    let hex = tree.digest().to_string();
    assert_eq!(fs::read(moved.join(format!("trees/{}/{hex}/d/e/f", &hex[..2]))).unwrap(), b"2", "links are relative");
}

#[test]
fn no_view_without_its_objects() {
    let (_dir, cache) = cache();
    let entry = Entry { name: "a".into(), digest: Digest::of(b"nowhere"), size: 7, executable: false };
    let error = cache.view(&Tree::new(vec![entry]).unwrap()).unwrap_err().to_string();
    assert!(error.contains("`a` of the tree") && error.contains("not in the cache"), "{error}");
    assert_tidy(&cache);
}

#[test]
fn restored_files_are_copies_or_links() {
    let (dir, cache) = cache();
    let slot = miss(&cache, &parts(1), &options(false));
    fill(slot.out(), &[("a", b"hello"), ("x", b"run")]);
    fs::set_permissions(slot.out().join("x"), fs::Permissions::from_mode(0o700)).unwrap();
    let tree = slot.commit(&parts(1), 0.0).unwrap().tree;
    let (a, x) = (tree.get("a").unwrap(), tree.get("x").unwrap());
    let dest = dir.path().join("deep/dest");
    let object = fs::metadata(cache.entry_path(a)).unwrap();

    assert!(!cache.is_placed(a, &dest, Place::Copy).unwrap());
    cache.restore(a, &dest, Place::Copy).unwrap();
    assert!(cache.is_placed(a, &dest, Place::Copy).unwrap());
    let meta = fs::metadata(&dest).unwrap();
    assert_ne!(meta.ino(), object.ino());
    assert_eq!(meta.mode() & 0o777, 0o644);
    fs::write(&dest, "my own").unwrap();
    assert!(!cache.is_placed(a, &dest, Place::Copy).unwrap());

    for _ in 0..2 {
        cache.restore(a, &dest, Place::Hardlink).unwrap();
        assert!(cache.is_placed(a, &dest, Place::Hardlink).unwrap());
        assert!(!cache.is_placed(a, &dest, Place::Copy).unwrap(), "it is the cache's own");
        assert_eq!(fs::read(&dest).unwrap(), b"hello");
    }
    cache.restore(x, &dest, Place::Copy).unwrap();
    assert!(cache.is_placed(x, &dest, Place::Copy).unwrap() && !cache.is_placed(a, &dest, Place::Copy).unwrap());
    assert_eq!(fs::metadata(&dest).unwrap().mode() & 0o777, 0o755);
    assert_eq!(fs::read_dir(dest.parent().unwrap()).unwrap().count(), 1, "no temporary is left");
    // An object with a second name is as good as before.
    assert!(again(&cache).lookup(&parts(1).key()).unwrap().is_some());

    let absent = Entry { digest: Digest::of(b"absent"), ..a.clone() };
    let error = format!("{:#}", cache.restore(&absent, &dest, Place::Copy).unwrap_err());
    assert!(error.contains("`a` is not in the cache"), "{error}");
    assert!(cache.restore(a, dir.path(), Place::Copy).is_err());
}
