//! Small things done to files: atomic writes, copies, removal, and errors that say what to do.

use std::{
    fmt::Display,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{DirEntryExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Error, Result};
use rayon::prelude::*;

use crate::fault::fault;

/// The cache cannot be read or written: found in an error with `downcast_ref`.
#[derive(Debug)]
pub struct Unusable(String);

impl Unusable {
    /// As another process found it, in its words.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }
}

impl Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Turns an I/O error of the cache into one that says what to do.
pub(crate) trait Explain<T> {
    /// `what` completes "cannot …"; `root` is the cache's directory.
    fn explain<D: Display>(self, root: &Path, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T> Explain<T> for io::Result<T> {
    fn explain<D: Display>(self, root: &Path, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| {
            let root = root.display();
            let hint = match error.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(format!(
                    "no space is left for the cache {root}: free some with `flow cache gc`, or set FLOW_CACHE_DIR to a \
                     directory on a larger disk"
                )),
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Some(format!(
                    "the cache {root} may not be written by this user: ask its owner for write permission, or set \
                     FLOW_CACHE_DIR to a directory of your own"
                )),
                _ => None,
            };
            let error = Error::new(error);
            match hint {
                Some(hint) => error.context(hint),
                None => error,
            }
            .context(Unusable(format!("cannot {}", what())))
        })
    }
}

/// How names of files begin that are on their way.
pub(crate) const TEMP: &str = ".flow-";

/// Whether a file's name begins so.
pub(crate) fn is_temp(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(TEMP.as_bytes()))
}

/// A path in `dir` that no other process, thread or earlier crash uses; made by `create`, which must refuse what exists.
pub(crate) fn fresh<T>(dir: &Path, create: impl Fn(&Path) -> io::Result<T>) -> io::Result<(PathBuf, T)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("{TEMP}{}-{n}", std::process::id()));
        match create(&path) {
            Ok(made) => return Ok((path, made)),
            // Left by a killed process of the same number, or another host's.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}

/// Creates a file that must not exist yet.
pub(crate) fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

/// Makes `path` hold `bytes`, whole or not at all. `tmp` is a directory on the same file system. With `durable` also
/// after a power loss.
pub(crate) fn write_atomic(tmp: &Path, path: &Path, bytes: &[u8], durable: bool, point: &str) -> io::Result<()> {
    // Whom the umask lets in may note that it was used.
    let (temp, mut file) = fresh(tmp, |path| create_new(path, 0o666))?;
    let written = (|| {
        file.write_all(bytes)?;
        if durable {
            file.sync_data()?;
        }
        fault(point)?;
        rename_making_parent(&temp, path)?;
        if durable {
            sync_parent(path)?;
        }
        Ok(())
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temp);
    }
    written
}

/// Renames; the target's directory is made when it is missing.
pub(crate) fn rename_making_parent(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::rename(from, to)
        }
        done => done,
    }
}

/// Makes the names in a path's directory durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Copies a file's bytes to `to`, which must not exist: shares its blocks where the file system can (reflink), else
/// copies inside the kernel. Removed again on failure.
pub(crate) fn copy_new(from: &Path, to: &Path, mode: u32) -> io::Result<File> {
    let mut source = File::open(from)?;
    let mut target = create_new(to, 0o600)?;
    let copied = (|| {
        if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
            io::copy(&mut source, &mut target)?;
        }
        // Not at creation: there the umask would take bits away.
        target.set_permissions(fs::Permissions::from_mode(mode))
    })();
    if let Err(e) = copied {
        let _ = fs::remove_file(to);
        return Err(e);
    }
    Ok(target)
}

/// Removes whatever is at `path`, also directories that a stage made unwritable; nothing there is fine.
pub(crate) fn remove_all(path: &Path) -> io::Result<()> {
    let attempt = || match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::IsADirectory => fs::remove_dir_all(path),
        // What some file systems say of a directory.
        Err(e) if e.kind() == ErrorKind::PermissionDenied && path.is_dir() => fs::remove_dir_all(path),
        done => done,
    };
    let done = match attempt() {
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            make_writable(path);
            attempt()
        }
        done => done,
    };
    match done {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn make_writable(path: &Path) {
    if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            make_writable(&entry.path());
        }
    }
}

/// Names of a directory's entries, sorted; none when it is missing.
pub(crate) fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("cannot list {}", dir.display())),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.with_context(|| format!("cannot list {}", dir.display()))?.path());
    }
    // As bytes: paths are compared part by part, and all of them have the same directory.
    paths.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    Ok(paths)
}

/// The files of the two-level directories `objects/` and `results/`, in order of name.
pub(crate) fn shards(dir: &Path) -> Result<impl Iterator<Item = Result<Vec<PathBuf>>> + use<>> {
    Ok(list(dir)?.into_iter().filter(|path| path.is_dir()).map(|shard| list(&shard)))
}

/// As [`shards`], listed on all cores.
pub(crate) fn par_shards(dir: &Path) -> Result<impl IndexedParallelIterator<Item = Result<Vec<PathBuf>>> + use<>> {
    let shards: Vec<_> = list(dir)?.into_iter().filter(|path| path.is_dir()).collect();
    // One after the other, as each may be long.
    Ok(shards.into_par_iter().with_max_len(1).map(|shard| list(&shard)))
}

/// A file, and its inode's number.
pub(crate) type Numbered = (u64, PathBuf);

/// As [`par_shards`], with the number of each file's inode, and in no order.
pub(crate) fn par_numbered(dir: &Path) -> Result<impl IndexedParallelIterator<Item = Result<Vec<Numbered>>> + use<>> {
    let shards: Vec<_> = list(dir)?.into_iter().filter(|path| path.is_dir()).collect();
    Ok(shards.into_par_iter().with_max_len(1).map(|shard| {
        let failed = || format!("cannot list {}", shard.display());
        let entries = fs::read_dir(&shard).with_context(failed)?;
        entries.map(|entry| entry.map(|entry| (entry.ino(), entry.path())).with_context(failed)).collect()
    }))
}

/// Length in bytes of all files under a directory, and the youngest modification in ns since 1970.
pub(crate) fn usage(dir: &Path) -> (u64, i64) {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(meta) = dir.symlink_metadata() else { return (0, 0) };
    let own = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
    if !meta.is_dir() {
        return (meta.len(), own);
    }
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| usage(&entry.path()))
        .fold((0, own), |(bytes, youngest), (more, time)| (bytes + more, youngest.max(time)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomic_writes_replace_and_leave_no_temp() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        for bytes in [b"one".as_slice(), b"two"] {
            write_atomic(dir.path(), &path, bytes, true, "none").unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        assert_eq!(list(dir.path()).unwrap(), [dir.path().join("a")]);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        write_atomic(dir.path(), &path, b"x", false, "none").unwrap_err();
        assert_eq!(list(dir.path()).unwrap(), [dir.path().join("a")], "the temp of a failed write is removed");
    }

    #[test]
    fn unwritable_directories_are_removed_too() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("f"), "x").unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o500)).unwrap();
        remove_all(&dir.path().join("a")).unwrap();
        remove_all(&dir.path().join("a")).unwrap();
        assert_eq!(list(dir.path()).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn errors_say_what_to_do() {
        let full: io::Result<()> = Err(ErrorKind::StorageFull.into());
        let text = format!("{:#}", full.explain(Path::new("/c"), || "write /c/x").unwrap_err());
        assert!(text.starts_with("cannot write /c/x: no space is left for the cache /c: free some with"), "{text}");
        let denied: io::Result<()> = Err(ErrorKind::PermissionDenied.into());
        assert!(format!("{:#}", denied.explain(Path::new("/c"), || "write").unwrap_err()).contains("FLOW_CACHE_DIR"));
    }
}
