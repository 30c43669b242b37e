//! What is damaged or forged is reported and never served.

use std::{
    fs,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::Path,
};

use flow_cache::{Cache, Claim};
use flow_core::{Digest, Key};
use serde_json::{Value, json};

use crate::kit::{again, cache, files_in, make, options, parts};

fn overwrite(path: &Path, content: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, content).unwrap();
}

fn assert_miss(cache: &Cache, key: &Key, warning: &str) {
    assert!(cache.lookup(key).unwrap().is_none());
    let warnings = cache.take_warnings();
    assert!(warnings.iter().any(|text| text.contains(warning)), "{warnings:?} lacks `{warning}`");
    assert!(matches!(cache.claim(key, &options(false)).unwrap(), Claim::Miss(_)));
}

/// What a stage said is whole is not read again, wherever it moved since; one that it wrote to nevertheless is.
#[test]
fn a_file_that_is_read_ahead_is_read_once() {
    let (_dir, cache) = cache();
    let content = vec![7; 9 << 20];
    let commit = |n: u64, change: &dyn Fn(&fs::File)| {
        let Claim::Miss(slot) = cache.claim(&parts(n).key(), &options(false)).unwrap() else { panic!("a hit") };
        let begun = slot.scratch().join("begun");
        fs::write(&begun, &content).unwrap();
        slot.read_ahead(&begun);
        slot.read_ahead(&slot.scratch().join("no such file"));
        let file = fs::File::options().write(true).open(&begun).unwrap();
        change(&file);
        fs::rename(&begun, slot.out().join("whole")).unwrap();
        slot.commit(&parts(n), 1.0).unwrap().tree.entries()[0].digest
    };
    let mut changed = content.clone();
    changed[3] = 8;
    let write = |file: &fs::File| file.write_all_at(&[8], 3).unwrap();
    assert_eq!(commit(1, &write), Digest::of(&changed));
    assert_eq!(commit(2, &|file| file.set_len(5).unwrap()), Digest::of(&content[..5]));
    // Who hides what he does shows that nobody read it again, and is found out by those who do.
    let hidden = commit(3, &|file| {
        let time = file.metadata().unwrap().modified().unwrap();
        write(file);
        file.set_modified(time).unwrap();
    });
    assert_eq!(hidden, Digest::of(&content));
    assert_eq!(cache.verify(&|_, _| ()).unwrap().damaged.len(), 1);
}

#[test]
fn a_damaged_object_is_a_miss_and_goes_into_quarantine() {
    type Damage = fn(&Path);
    let kinds: [(Damage, &str); 4] = [
        (|path| overwrite(path, b"hellO"), "is damaged (its content is"),
        (|path| overwrite(path, b"hell"), "it has 4 bytes and should have 5"),
        (|path| overwrite(path, b""), "it has 0 bytes"),
        (
            |path| {
                fs::remove_file(path).unwrap();
                fs::create_dir(path).unwrap();
            },
            "it is a directory",
        ),
    ];
    for (damage, warning) in kinds {
        for remembered in [true, false] {
            let (_dir, cache) = cache();
            make(&cache, &parts(1), &[("a", b"hello")]);
            let cache = if remembered { cache } else { again(&cache) };
            damage(&cache.object_path(&Digest::of(b"hello")));
            assert_miss(&cache, &parts(1).key(), warning);
            assert_eq!(fs::read_dir(cache.root().join("quarantine")).unwrap().count(), 1);
            make(&cache, &parts(1), &[("a", b"hello")]);
            assert!(again(&cache).lookup(&parts(1).key()).unwrap().is_some());
            assert!(cache.verify(&|_, _| ()).unwrap().is_good());
        }
    }
}

#[test]
fn a_change_behind_restored_times_is_seen() {
    let (_dir, cache) = cache();
    let big: Vec<u8> = vec![7; 9 << 20];
    make(&cache, &parts(1), &[("a", &big)]);
    assert!(cache.lookup(&parts(1).key()).unwrap().is_some());
    let path = cache.object_path(&Digest::of(&big));
    let mtime = fs::metadata(&path).unwrap().modified().unwrap();
    let mut other = big.clone();
    other[5 << 20] ^= 1;
    overwrite(&path, &other);
    fs::File::options().write(true).open(&path).unwrap().set_modified(mtime).unwrap();
    assert_miss(&cache, &parts(1).key(), "is damaged");
}

#[test]
fn a_lost_object_is_a_miss() {
    let (_dir, cache) = cache();
    make(&cache, &parts(1), &[("a", b"hello"), ("b", b"other")]);
    fs::remove_file(cache.object_path(&Digest::of(b"hello"))).unwrap();
    assert_miss(&cache, &parts(1).key(), "is gone");
    assert_miss(&again(&cache), &parts(1).key(), "is gone");
}

#[test]
fn a_damaged_object_does_not_win_over_a_good_one() {
    let (_dir, cache) = cache();
    make(&cache, &parts(1), &[("a", b"hello")]);
    overwrite(&cache.object_path(&Digest::of(b"hello")), b"hellO");
    make(&cache, &parts(2), &[("a", b"hello")]);
    assert!(cache.take_warnings()[0].contains("it is replaced"));
    assert_eq!(fs::read(cache.object_path(&Digest::of(b"hello"))).unwrap(), b"hello");
    assert!(again(&cache).lookup(&parts(1).key()).unwrap().is_some(), "which heals the other one, too");
}

#[test]
fn a_forged_record_is_a_miss_and_goes_into_quarantine() {
    type Forge = fn(&mut Value);
    let forgeries: [(Forge, &str); 5] = [
        (|record| record["tree"]["entries"][0]["name"] = json!("../../../../etc/cron.d/x"), "not a name"),
        (|record| record["tree"]["entries"][0]["name"] = json!("/etc/passwd"), "not a name"),
        (|record| record["key"] = json!(parts(2).key()), "not that of its parts"),
        (|record| record["parts"]["params"]["n"] = json!(5), "not that of its parts"),
        (|record| *record = json!([1, 2]), "does not parse"),
    ];
    for (forge, warning) in forgeries {
        let (_dir, cache) = cache();
        make(&cache, &parts(1), &[("a", b"hello")]);
        let hex = parts(1).key().to_string();
        let path = cache.root().join(format!("results/{}/{hex}.json", &hex[..2]));
        let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        forge(&mut record);
        fs::write(&path, record.to_string()).unwrap();
        assert_miss(&cache, &parts(1).key(), warning);
        assert_eq!(files_in(&cache, "quarantine"), [format!("{hex}.json")]);
        assert_eq!(cache.results().count(), 0);
    }
}

#[test]
fn a_record_under_another_key_is_not_that_keys() {
    let (_dir, cache) = cache();
    make(&cache, &parts(1), &[("a", b"hello")]);
    let path = |key: &str| cache.root().join(format!("results/{}/{key}.json", &key[..2]));
    let (from, to) = (path(&parts(1).key().to_string()), path(&parts(2).key().to_string()));
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, to).unwrap();
    assert_miss(&cache, &parts(2).key(), "not that of its parts");
    assert!(cache.lookup(&parts(1).key()).unwrap().is_some());
}

#[test]
fn a_record_of_a_later_format_is_left_alone() {
    let (_dir, cache) = cache();
    let hex = parts(1).key().to_string();
    let path = cache.root().join(format!("results/{}/{hex}.json", &hex[..2]));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, r#"{"format":2,"all":"new"}"#).unwrap();
    assert_miss(&cache, &parts(1).key(), "its format is 2");
    assert!(path.exists());
}

#[test]
fn verify_finds_all_of_it_and_says_what_is_spoiled() {
    let (_dir, cache) = cache();
    make(&cache, &parts(1), &[("a", b"one"), ("shared", b"shared")]);
    make(&cache, &parts(2), &[("a", b"two"), ("shared", b"shared")]);
    make(&cache, &parts(3), &[("a", b"three")]);
    let seen = std::sync::Mutex::new((0, 0));
    let report = cache.verify(&|done, total| *seen.lock().unwrap() = (done, total)).unwrap();
    assert!(report.is_good());
    assert_eq!((report.objects, report.bytes, report.results), (4, 17, 3));
    assert_eq!(*seen.lock().unwrap(), (17, 17));

    overwrite(&cache.object_path(&Digest::of(b"shared")), b"shareD");
    fs::remove_file(cache.object_path(&Digest::of(b"three"))).unwrap();
    fs::write(cache.root().join("objects").join(&Digest::of(b"one").to_string()[..2]).join("stray"), "x").unwrap();
    let hex = Key([0xab; 32]).to_string();
    fs::create_dir_all(cache.root().join("results/ab")).unwrap();
    fs::write(cache.root().join(format!("results/ab/{hex}.json")), "{").unwrap();
    let report = again(&cache).verify(&|_, _| ()).unwrap();
    assert!(!report.is_good());
    assert_eq!(report.damaged.len(), 2);
    let shared = report.damaged.iter().find(|damaged| !damaged.path.ends_with("stray")).unwrap();
    let mut spoiled = shared.results.clone();
    spoiled.sort();
    let mut both = vec![parts(1).key(), parts(2).key()];
    both.sort();
    assert_eq!(spoiled, both);
    assert!(shared.why.contains("moved to"), "{}", shared.why);
    assert_eq!(report.missing.len(), 1);
    assert_eq!(report.missing[0].results, [parts(3).key()]);
    assert_eq!(report.bad_records.len(), 1);
    // Records that name what is not there are put aside with it: no result, and no news the next time.
    assert_eq!(files_in(&cache, "quarantine").len(), 6);
    assert!(again(&cache).verify(&|_, _| ()).unwrap().is_good());
    for n in 1..=3 {
        assert!(cache.lookup(&parts(n).key()).unwrap().is_none());
    }
}
