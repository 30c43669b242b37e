//! Placing results where people want them.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};
use flow_core::Entry;
use rustix::fs::{Timespec, Timestamps, futimens};

use crate::{
    cache::Cache,
    commit::object_mode,
    fault::fault,
    files::{copy_new, fresh},
    proof::{Id, Meta, Proof, Stat, now, wait_a_tick},
};

/// How a file may be placed when blocks cannot be shared (reflink).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A copy, which may be written to.
    Copy,
    /// The cache's own file under a second name if the file system allows it, read-only; else a copy.
    Hardlink,
}

impl Cache {
    /// Puts an entry's bytes at `dest`, whole or not at all, in place of what is there. Missing directories are made.
    ///
    /// # Errors
    /// The object is not in the cache, `dest` is a directory, or cannot be written.
    pub fn restore(&self, entry: &Entry, dest: &Path, how: Place) -> Result<()> {
        let dest = &std::path::absolute(dest).with_context(|| format!("`{}` is no path", dest.display()))?;
        let object = self.entry_path(entry);
        let size = Meta::of(&object, false)
            .with_context(|| format!("`{}` is not in the cache: run it again", entry.name))?
            .stat
            .size;
        anyhow::ensure!(
            size == entry.size,
            "{} is damaged, it has {size} bytes and should have {}: run it again",
            object.display(),
            entry.size
        );
        self.put(entry, &object, dest, how).with_context(|| format!("cannot write {}", dest.display()))
    }

    fn put(&self, entry: &Entry, object: &Path, dest: &Path, how: Place) -> io::Result<()> {
        let dir = dest.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir)?;
        let before = Meta::of(object, false)?.stat;
        let (temp, linked) = fresh(dir, |temp| {
            if how == Place::Hardlink && mend_mode(entry, object).is_ok() && fs::hard_link(object, temp).is_ok() {
                return Ok(true);
            }
            let copy = copy_new(object, temp, if entry.executable { 0o755 } else { 0o644 })?;
            keep_time(object, &copy);
            Ok(false)
        })?;
        let placed = fault("restore:written").and_then(|()| fs::rename(&temp, dest));
        if linked || placed.is_err() {
            // Renaming one name of a file onto another of the same file does nothing.
            let _ = fs::remove_file(&temp);
        }
        placed?;
        // What was just written is known; a stat that is as fresh as this is believed only after a tick, and only of
        // big files (see `proof`): small ones are read when they are asked for.
        let stat = Meta::of(dest, true)?.stat;
        wait_a_tick(&stat);
        if stat.size == entry.size && Meta::of(dest, true)?.stat == stat {
            let proof = Proof::new(stat, entry.digest, now(), false);
            self.remember(Id::path(dest), dest, proof);
            // A second name leaves its mark in a file's times; nothing else happened to it, so it is not read again.
            let same = Stat { ctime: before.ctime, ..stat } == before;
            if linked && same && self.known(Id::object(entry), &before) == Some(entry.digest) {
                self.remember(Id::object(entry), object, proof);
            }
        }
        Ok(())
    }

    /// Whether `dest` is exactly this entry already: a regular file with its bytes and mode, by remembered stat or by
    /// reading it, and where it is to be a copy, not the cache's own file.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn is_placed(&self, entry: &Entry, dest: &Path, how: Place) -> Result<bool> {
        let dest = &std::path::absolute(dest).with_context(|| format!("`{}` is no path", dest.display()))?;
        let failed = || format!("cannot read {}", dest.display());
        let Some(meta) = Meta::find(dest, false).with_context(failed)? else { return Ok(false) };
        if !meta.is_file() || meta.stat.size != entry.size || meta.executable() != entry.executable {
            return Ok(false);
        }
        if how == Place::Copy && meta.links > 1 {
            let object = Meta::find(&self.entry_path(entry), false).with_context(failed)?;
            if object.is_some_and(|object| (object.dev, object.stat.ino) == (meta.dev, meta.stat.ino)) {
                return Ok(false);
            }
        }
        let (digest, _) = self.digest_of(Id::path(dest), dest, &meta, false).with_context(failed)?;
        Ok(digest == entry.digest)
    }
}

/// Who changes the mode of a file that is the cache's own changes it there, too.
fn mend_mode(entry: &Entry, object: &Path) -> io::Result<()> {
    if Meta::of(object, false)?.executable() == entry.executable {
        return Ok(());
    }
    fs::set_permissions(object, fs::Permissions::from_mode(object_mode(entry.executable)))
}

/// A copy is as old as what it is a copy of. Good manners only.
fn keep_time(from: &Path, to: &File) {
    if let Ok(meta) = Meta::of(from, false) {
        let ns = 1_000_000_000;
        let time = Timespec { tv_sec: meta.stat.mtime.div_euclid(ns), tv_nsec: meta.stat.mtime.rem_euclid(ns) };
        let _ = futimens(to, &Timestamps { last_access: time, last_modification: time });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::create_new;
    use std::io::Write as _;

    #[test]
    fn damage_of_a_placed_file_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        let source = dir.path().join("source");
        create_new(&source, 0o644).unwrap().write_all(b"hello").unwrap();
        let entry = cache.digest_path(&source).unwrap().entries()[0].clone();
        assert!(cache.is_placed(&entry, &source, Place::Copy).unwrap());
        fs::write(&source, "hellO").unwrap();
        assert!(!cache.is_placed(&entry, &source, Place::Copy).unwrap());
        fs::write(&source, "hello").unwrap();
        assert!(cache.is_placed(&entry, &source, Place::Copy).unwrap());
        fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(!cache.is_placed(&entry, &source, Place::Copy).unwrap());
        assert!(!cache.is_placed(&entry, dir.path(), Place::Copy).unwrap());
        assert!(!cache.is_placed(&entry, &dir.path().join("nothing"), Place::Copy).unwrap());
    }

    #[test]
    fn a_mode_that_is_changed_through_a_hard_link_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        let dest = dir.path().join("dest");
        for executable in [false, true] {
            let digest = flow_core::Digest::of(&[executable.into()]);
            let entry = Entry { name: "f".into(), digest, size: 1, executable };
            let object = cache.entry_path(&entry);
            fs::create_dir_all(object.parent().unwrap()).unwrap();
            create_new(&object, object_mode(executable)).unwrap().write_all(&[executable.into()]).unwrap();
            cache.restore(&entry, &dest, Place::Hardlink).unwrap();
            assert!(cache.is_placed(&entry, &dest, Place::Hardlink).unwrap());
            fs::set_permissions(&dest, fs::Permissions::from_mode(object_mode(!executable))).unwrap();
            assert!(!cache.is_placed(&entry, &dest, Place::Hardlink).unwrap());
            cache.restore(&entry, &dest, Place::Hardlink).unwrap();
            assert!(cache.is_placed(&entry, &dest, Place::Hardlink).unwrap());
            let (object, dest) = (Meta::of(&object, false).unwrap(), Meta::of(&dest, false).unwrap());
            assert_eq!((object.executable(), object.stat.ino), (executable, dest.stat.ino));
        }
    }
}
