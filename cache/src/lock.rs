//! [`KeyLock`]: one process, one thread, makes one result at a time.
//!
//! A `flock` on a file of its own: the kernel releases it when the holder dies, however it dies. The file's name is
//! removed on release, so that locks do not pile up; who opened it just before sees that his is no longer the one in the
//! directory, and opens again. The file itself is used for the next key ([`Spares`]), still locked: who has it open from
//! before cannot lock it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{
    proof::Meta,
    spare::{SpareLock, Spares},
};

/// Held while it lives.
#[derive(Debug)]
pub(crate) struct KeyLock {
    path: PathBuf,
    held: Held,
}

/// What the lock is on.
#[derive(Debug)]
enum Held {
    /// The file itself.
    Own(File),
    /// A file of this process's, which has this name, too, and goes back there.
    Spare(Option<SpareLock>, Arc<Spares>),
}

impl KeyLock {
    /// Takes the lock if nobody holds it.
    pub fn try_take(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
            let file = match file {
                // Left by a killed process of another user, who shares the cache. To lock it, reading is enough.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => File::open(path).map_err(|_| e)?,
                file => file?,
            };
            if !try_exclusive(&file)? {
                return Ok(None);
            }
            let (ours, there) = (Meta::of_file(&file)?, Meta::find(path, false)?);
            if there.is_some_and(|there| there.stat.ino == ours.stat.ino && there.dev == ours.dev) {
                if ours.stat.size > 0 {
                    // Only what it says to people is at stake.
                    let _ = file.set_len(0);
                }
                return Ok(Some(Self { path: path.to_owned(), held: Held::Own(file) }));
            }
        }
    }

    /// As [`KeyLock::try_take`], with a file to spare if that can be: to link it there is to hold it there.
    pub fn try_take_with(spares: &Arc<Spares>, path: &Path) -> io::Result<Option<Self>> {
        let Ok(spare) = spares.lock() else { return Self::try_take(path) };
        match spare.link(path) {
            Ok(true) => {
                return Ok(Some(Self { path: path.to_owned(), held: Held::Spare(Some(spare), Arc::clone(spares)) }));
            }
            // Somebody holds it, or left it.
            Ok(false) => spares.keep_lock(spare),
            Err(_) => spare.remove(),
        }
        Self::try_take(path)
    }

    /// Tells who waits who holds it. For people only: a failure does not matter.
    pub fn sign(&self) {
        if let Held::Own(file) = &self.held {
            let _ = file.write_all_at(signature().as_bytes(), 0);
        }
    }

    /// Who holds the lock at `path`, as he signed.
    pub fn holder(path: &Path) -> Option<String> {
        fs::read_to_string(path).ok().filter(|text| !text.is_empty())
    }
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        // While it is held: nobody else can have taken this file.
        let removed = fs::remove_file(&self.path);
        if let Held::Spare(spare, spares) = &mut self.held
            && let (Some(spare), true) = (spare.take(), removed.is_ok())
        {
            spares.keep_lock(spare);
        }
    }
}

/// Takes an exclusive `flock` if nobody holds another.
pub(crate) fn try_exclusive(file: &File) -> io::Result<bool> {
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// What who holds a lock writes into it.
pub(crate) fn signature() -> String {
    format!("process {} on {}", std::process::id(), host())
}

/// The machine's name.
pub(crate) fn host() -> &'static str {
    static HOST: OnceLock<String> = OnceLock::new();
    HOST.get_or_init(|| {
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        if name.trim().is_empty() { "unknown".into() } else { name.trim().into() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn one_holder_at_a_time_although_the_file_comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("locks")).unwrap();
        let path = dir.path().join("locks/k");
        // Two processes with files to spare, and those that have none.
        let spares = [Arc::new(Spares::new(dir.path().to_owned())), Arc::new(Spares::new(dir.path().to_owned()))];
        let (inside, total) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            let (spares, path, inside, total) = (&spares, &path, &inside, &total);
            for n in 0..8 {
                scope.spawn(move || {
                    let take = || match spares.get(n % 3) {
                        Some(spares) => KeyLock::try_take_with(spares, path),
                        None => KeyLock::try_take(path),
                    };
                    for _ in 0..200 {
                        let lock = loop {
                            if let Some(lock) = take().unwrap() {
                                break lock;
                            }
                            std::thread::yield_now();
                        };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        total.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 1600);
        assert!(!path.exists());
        drop(spares);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn the_holder_signs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        fs::write(&path, "a long line that a killed process left behind, longer than ours will ever be ............")
            .unwrap();
        let lock = KeyLock::try_take(&path).unwrap().unwrap();
        lock.sign();
        assert_eq!(KeyLock::holder(&path).unwrap(), format!("process {} on {}", std::process::id(), host()));
        assert!(KeyLock::try_take(&path).unwrap().is_none());
        drop(lock);
        assert_eq!(KeyLock::holder(&path), None);
    }
}
