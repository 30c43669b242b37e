//! Unchanged files are not read again, and changed ones always are.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    time::{Duration, SystemTime},
};

use flow_core::Digest;

use crate::kit::{again, alone, cache, fill, make, parts};
use flow_cache::{Cache, Place};

fn age(path: &Path, seconds: u64) {
    let time = SystemTime::now() - Duration::from_secs(seconds);
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_file_and_a_directory_are_trees() {
    let (dir, cache) = cache();
    let data = dir.path().join("data");
    fill(&data, &[("b", b"2"), ("a/c", b"1")]);
    fs::create_dir(data.join("empty")).unwrap();
    symlink("b", data.join("link")).unwrap();
    symlink("a", data.join("z")).unwrap();
    fs::set_permissions(data.join("b"), fs::Permissions::from_mode(0o700)).unwrap();
    let tree = cache.digest_path(&data).unwrap();
    let names: Vec<_> = tree.entries().iter().map(|e| (e.name.as_str(), e.size, e.executable)).collect();
    assert_eq!(names, [("a/c", 1, false), ("b", 1, true), ("link", 1, true), ("z/c", 1, false)]);
    let file = cache.digest_path(&data.join("b")).unwrap();
    assert_eq!((file.entries().len(), file.entries()[0].name.as_str()), (1, "b"));
    assert_eq!(file.entries()[0].digest, Digest::of(b"2"));
    let error = format!("{:#}", cache.digest_path(&data.join("nothing")).unwrap_err());
    assert!(error.contains("nothing") && error.contains("No such file"), "{error}");
    let error = format!("{:#}", cache.digest_path(Path::new("/dev/null")).unwrap_err());
    assert!(error.contains("is a device"), "{error}");
    symlink(".", data.join("circle")).unwrap();
    assert!(cache.digest_path(&data).unwrap_err().to_string().contains("that it is in"));
}

/// Edits that leave size and modification time as they were, right after hashing: the worst a person or a program
/// does by accident.
#[test]
fn racy_edits_are_seen() {
    let (dir, cache) = cache();
    cache.load_memo("p");
    let path = dir.path().join("f");
    for size in [10usize, 100_000, 9 << 20] {
        let mut content = vec![b'a'; size];
        fs::write(&path, &content).unwrap();
        for round in 0..5u8 {
            let before = fs::metadata(&path).unwrap();
            assert_eq!(cache.digest_path(&path).unwrap().entries()[0].digest, Digest::of(&content));
            content[size / 2] = round;
            let mut file = fs::File::options().write(true).open(&path).unwrap();
            file.write_all(&content).unwrap();
            if round % 2 == 0 {
                file.set_modified(before.modified().unwrap()).unwrap();
            }
            drop(file);
            let after = fs::metadata(&path).unwrap();
            assert_eq!((before.ino(), before.len()), (after.ino(), after.len()));
            assert_eq!(cache.digest_path(&path).unwrap().entries()[0].digest, Digest::of(&content), "{size} {round}");
            cache.save_memo().unwrap();
            let other = again(&cache);
            other.load_memo("p");
            assert_eq!(other.digest_path(&path).unwrap().entries()[0].digest, Digest::of(&content));
        }
    }
}

/// Bytes that this process has read so far, by the kernel's count. For a test that is [`alone`].
fn bytes_read() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn unchanged_files_are_not_read_again() {
    if !alone("memos::unchanged_files_are_not_read_again") {
        return;
    }
    let (dir, cache) = cache();
    let path = dir.path().join("big");
    let content = vec![3u8; 64 << 20];
    fs::write(&path, &content).unwrap();
    age(&path, 60);
    let tree = cache.digest_path(&path).unwrap();
    let before = bytes_read();
    for _ in 0..5 {
        assert_eq!(cache.digest_path(&path).unwrap(), tree);
    }
    drop(cache.clone());
    assert!(bytes_read() - before < 32 << 20, "read {} bytes", bytes_read() - before);
    let root = cache.root().to_owned();
    drop(cache);
    let before = bytes_read();
    let later = flow_cache::Cache::open(&root).unwrap();
    assert_eq!(later.digest_path(&path).unwrap(), tree, "known from the index");
    assert!(bytes_read() - before < 32 << 20, "read {} bytes", bytes_read() - before);
    assert_eq!(later.take_warnings(), Vec::<String>::new());
}

#[test]
fn a_memo_brings_a_no_op_without_reading_and_a_damaged_one_is_ignored() {
    if !alone("memos::a_memo_brings_a_no_op_without_reading_and_a_damaged_one_is_ignored") {
        return;
    }
    let (dir, cache) = cache();
    cache.load_memo("pipeline");
    let input = dir.path().join("in");
    fs::write(&input, "in").unwrap();
    for n in 0..20 {
        make(&cache, &parts(n), &[("out", &n.to_le_bytes())]);
    }
    // Old enough to be believed.
    std::thread::sleep(Duration::from_millis(2300));
    cache.digest_path(&input).unwrap();
    cache.save_memo().unwrap();
    let memos: Vec<_> = fs::read_dir(cache.root().join("state/memo")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(memos.len(), 1);
    let written = fs::metadata(&memos[0]).unwrap().ino();

    let later = again(&cache);
    later.load_memo("pipeline");
    // Unreadable content: whoever answers now did not read it. (Root may read anything, so the content is swapped
    // for a directory entry that only stat can pass: a rename keeps the stat and frees the name.)
    let before = bytes_read();
    for n in 0..20 {
        assert!(later.lookup(&parts(n).key()).unwrap().is_some());
    }
    later.digest_path(&input).unwrap();
    let read = bytes_read() - before;
    assert!(read < 20 * 200, "{read} bytes were read: records are longer than that");
    later.save_memo().unwrap();
    assert_eq!(fs::metadata(&memos[0]).unwrap().ino(), written, "nothing new, nothing written");

    let mut bytes = fs::read(&memos[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&memos[0], &bytes).unwrap();
    let later = again(&cache);
    later.load_memo("pipeline");
    for n in 0..20 {
        assert!(later.lookup(&parts(n).key()).unwrap().is_some());
    }
    later.save_memo().unwrap();
    assert_ne!(fs::read(&memos[0]).unwrap(), bytes);
}

#[test]
fn a_memo_does_not_outlive_what_it_knows() {
    let (_dir, cache) = cache();
    cache.load_memo("p");
    for n in 0..3 {
        make(&cache, &parts(n), &[("out", &n.to_le_bytes())]);
    }
    std::thread::sleep(Duration::from_millis(2300));
    cache.save_memo().unwrap();
    let record = |n: u64| {
        let hex = parts(n).key().to_string();
        cache.root().join(format!("results/{}/{hex}.json", &hex[..2]))
    };
    fs::remove_file(record(0)).unwrap();
    let object = cache.object_path(&Digest::of(&1u64.to_le_bytes()));
    fs::set_permissions(&object, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&object, 7u64.to_le_bytes()).unwrap();
    fs::write(record(2), "{}").unwrap();
    let later = again(&cache);
    later.load_memo("p");
    for n in 0..3 {
        assert!(later.lookup(&parts(n).key()).unwrap().is_none(), "{n}");
    }
}

#[test]
fn a_second_flow_works_while_the_first_has_the_index() {
    let (dir, first) = cache();
    let path = dir.path().join("f");
    fs::write(&path, vec![1u8; 1 << 20]).unwrap();
    age(&path, 60);
    std::thread::sleep(Duration::from_millis(2100));
    let tree = first.digest_path(&path).unwrap();
    let second = again(&first);
    assert_eq!(second.digest_path(&path).unwrap(), tree);
    let warnings = second.take_warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("in use by another flow"));
    assert_eq!(second.digest_path(&path).unwrap(), tree);
    assert_eq!(second.take_warnings(), Vec::<String>::new());
}

/// What was kept holds exactly as long as what was looked at stays as it was.
#[test]
fn a_witness_holds_while_all_is_as_it_was() {
    let (dir, cache) = cache();
    let data = dir.path().join("data");
    fill(&data, &[("a", b"1"), ("sub/b", b"2")]);
    fill(dir.path(), &[("one", b"one"), ("other", b"one")]);
    symlink("one", dir.path().join("link")).unwrap();
    let outcomes = [make(&cache, &parts(1), &[("x", b"x")]), make(&cache, &parts(2), &[("x", b"y")])];
    let [placed, missing] = ["placed", "missing"].map(|name| dir.path().join(name));
    cache.restore(&outcomes[0].tree.entries()[0], &placed, Place::Copy).unwrap();
    // A directory says nothing until its times are old.
    std::thread::sleep(Duration::from_millis(2100));

    let file = dir.path().join("one");
    let digest = |path: &Path, cache: &Cache| drop(cache.digest_path(path).unwrap());
    let is = |n: u64, cache: &Cache| assert!(cache.lookup(&parts(n).key()).unwrap().is_some());
    type Step<'a> = (&'a str, Box<dyn Fn(&Cache) + 'a>, Box<dyn Fn() + 'a>);
    let steps: [Step<'_>; 9] = [
        ("file", Box::new(|cache| digest(&file, cache)), Box::new(|| fs::write(&file, "ONE").unwrap())),
        ("new", Box::new(|cache| digest(&data, cache)), Box::new(|| fs::write(data.join("sub/c"), "").unwrap())),
        ("inner", Box::new(|cache| digest(&data, cache)), Box::new(|| fs::write(data.join("a"), "3").unwrap())),
        (
            "link",
            Box::new(|cache| digest(&dir.path().join("link"), cache)),
            Box::new(|| {
                fs::remove_file(dir.path().join("link")).unwrap();
                symlink("other", dir.path().join("link")).unwrap();
            }),
        ),
        ("record", Box::new(|cache| is(1, cache)), Box::new(|| age(&cache.root().join(record(1)), 60))),
        (
            "object",
            Box::new(|cache| is(2, cache)),
            Box::new(|| fs::remove_file(cache.object_path(&outcomes[1].tree.entries()[0].digest)).unwrap()),
        ),
        (
            "placed",
            Box::new(|cache| assert!(cache.is_placed(&outcomes[0].tree.entries()[0], &placed, Place::Copy).unwrap())),
            Box::new(|| fs::set_permissions(&placed, fs::Permissions::from_mode(0o600)).unwrap()),
        ),
        ("absent", Box::new(|cache| cache.saw(&missing, None)), Box::new(|| fs::write(&missing, "").unwrap())),
        ("read", Box::new(|cache| cache.saw_file(&placed, &Digest::of(b"x"))), Box::new(|| age(&placed, 9))),
    ];
    let guard = Digest::of(b"guard");
    let kept = |name: &str| again(&cache).ask_witness(name, &guard).is_some();
    // Each by what it looks at alone.
    for (name, look, _) in &steps {
        cache.take_witness();
        look(&cache);
        cache.keep_witness(name, &guard, name.as_bytes()).unwrap();
        assert_eq!(again(&cache).ask_witness(name, &guard).as_deref(), Some(name.as_bytes()));
        assert!(again(&cache).ask_witness(name, &Digest::of(b"other")).is_none());
    }
    let mut undone: Vec<&str> = steps.iter().map(|step| step.0).collect();
    // The link leads to the file that is written first.
    undone.retain(|name| !["file", "link", "new", "inner", "placed", "read"].contains(name));
    for (name, _, change) in &steps {
        change();
        undone.retain(|other| other != name);
        assert!(!kept(name), "{name}");
        assert!(undone.iter().all(|other| kept(other)), "{name} spoils another");
    }
    assert!(!kept("none"));
}

fn record(n: u64) -> String {
    let key = parts(n).key().to_string();
    format!("results/{}/{key}.json", &key[..2])
}

#[test]
fn a_witness_reads_what_is_too_fresh_to_be_believed() {
    let (dir, cache) = cache();
    let (path, guard) = (dir.path().join("f"), Digest::of(b""));
    for round in 0..20u8 {
        fs::write(&path, [round; 5]).unwrap();
        cache.take_witness();
        cache.digest_path(&path).unwrap();
        cache.keep_witness("w", &guard, b"").unwrap();
        assert!(again(&cache).ask_witness("w", &guard).is_some());
        // The same size, within the same tick of the clock more often than not.
        fs::write(&path, [round + 1; 5]).unwrap();
        assert!(again(&cache).ask_witness("w", &guard).is_none());
    }
    // What was read by somebody else and has another content by now proves nothing.
    cache.take_witness();
    cache.saw_file(&path, &Digest::of(b"what it was"));
    cache.keep_witness("v", &guard, b"").unwrap();
    assert!(again(&cache).ask_witness("v", &guard).is_none());
    // Nor does a damaged note.
    cache.take_witness();
    cache.digest_path(&path).unwrap();
    cache.keep_witness("d", &guard, b"conclusion").unwrap();
    let kept: Vec<_> = fs::read_dir(cache.root().join("state/memo")).unwrap().map(|e| e.unwrap().path()).collect();
    for path in kept {
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(&path, damaged).unwrap();
            assert!(again(&cache).ask_witness("d", &guard).is_none_or(|said| said == b"conclusion"));
        }
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    }
    assert!(again(&cache).ask_witness("d", &guard).is_none());
}

/// A use is noted once a day, by looking everything up; then the witness holds for a day, whatever the ages of records.
#[test]
fn a_witness_that_is_a_day_old_is_made_anew_once() {
    let (_dir, cache) = cache();
    let guard = Digest::of(b"");
    let (hour, ages) = (3600, [25, 23, 13, 11]);
    for (n, hours) in (0..).zip(ages) {
        make(&cache, &parts(n), &[("x", &[n as u8])]);
        age(&cache.root().join(record(n)), hours * hour);
    }
    let cache = again(&cache);
    let look = || {
        cache.take_witness();
        (0..4).for_each(|n| assert!(cache.lookup(&parts(n).key()).unwrap().is_some()));
        cache.keep_witness("w", &guard, b"").unwrap();
    };
    look();
    assert!(again(&cache).ask_witness("w", &guard).is_some());
    let hours = |n: u64| {
        let modified = fs::metadata(cache.root().join(record(n))).unwrap().modified().unwrap();
        modified.elapsed().unwrap().as_secs() / hour
    };
    assert_eq!([0, 1, 2, 3].map(hours), [0, 0, 0, 11], "none of them ends the witness within half a day");
    // A record that was used longer ago than that is looked up again.
    age(&cache.root().join(record(3)), 25 * hour);
    assert!(again(&cache).ask_witness("w", &guard).is_none());
    look();
    assert!(again(&cache).ask_witness("w", &guard).is_some());
}
