//! Unchanged files are not read again, and changed ones always are.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    time::{Duration, SystemTime},
};

use flow_core::Digest;

use crate::kit::{again, cache, fill, make, parts};

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

/// Bytes that this thread's process has read so far, by the kernel's count.
fn bytes_read() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn unchanged_files_are_not_read_again() {
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
