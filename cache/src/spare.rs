//! [`Spares`]: a key's lock and its scratch directory are not made anew for every key.
//!
//! Whoever makes a file on ext4 passes over all that were deleted in the last minutes. A run that made and deleted a few of
//! them for each of its ten thousand stages would be busier with that than with all else. So a process has files of its
//! own, which it has locked for as long as it lives, and a lock is a link to one of them (see [`crate::lock`]); and an
//! empty directory waits under another name for the next key. What a killed process leaves is removed by gc.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::fs::FileType;

use crate::{
    files::fresh,
    lock::{signature, try_exclusive},
    proof::Meta,
};

/// More than run at a time are not kept.
const MOST: usize = 256;

/// What this process may use again.
#[derive(Debug)]
pub(crate) struct Spares {
    root: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    locks: Vec<SpareLock>,
    dirs: Vec<PathBuf>,
}

/// A file that is locked by this process, and signed.
#[derive(Debug)]
pub(crate) struct SpareLock {
    path: PathBuf,
    /// Holds the lock.
    _file: File,
}

impl SpareLock {
    /// Gives it another name. Whether nothing was there, and it could.
    ///
    /// # Errors
    /// It is of no use: it was removed, or the file system has no links.
    pub fn link(&self, path: &Path) -> io::Result<bool> {
        match fs::hard_link(&self.path, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            linked => linked.map(|()| true),
        }
    }

    /// Removes it.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Spares {
    /// Of the cache in this directory.
    pub fn new(root: PathBuf) -> Self {
        Self { root, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A list is whole whoever panicked while he had it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A locked file, for [`SpareLock::link`].
    pub fn lock(&self) -> io::Result<SpareLock> {
        if let Some(spare) = self.state().locks.pop() {
            return Ok(spare);
        }
        let create = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
        let (path, mut file) = fresh(&self.root.join("locks"), create)?;
        if !try_exclusive(&file)? {
            // Only gc looks for such, and takes it for a dead process's.
            return Err(io::ErrorKind::WouldBlock.into());
        }
        file.write_all(signature().as_bytes())?;
        Ok(SpareLock { path, _file: file })
    }

    /// Takes a lock back. It has no other name any more.
    pub fn keep_lock(&self, spare: SpareLock) {
        let mut state = self.state();
        if state.locks.len() < MOST {
            state.locks.push(spare);
        } else {
            spare.remove();
        }
    }

    /// Puts an empty directory at a path where nothing is. Whether there was one to spare, and it is there.
    pub fn place_dir(&self, path: &Path) -> bool {
        let Some(spare) = self.state().dirs.pop() else { return false };
        fs::rename(&spare, path).is_ok() || {
            let _ = fs::remove_dir(&spare);
            false
        }
    }

    /// Takes a directory, if it is empty and as it was made. Whether it did.
    pub fn keep_dir(&self, path: &Path) -> bool {
        let usable =
            Meta::of(path, false).is_ok_and(|meta| meta.kind == FileType::Directory && meta.mode & 0o700 == 0o700);
        if !usable || self.state().dirs.len() >= MOST || !fs::read_dir(path).is_ok_and(|mut dir| dir.next().is_none()) {
            return false;
        }
        let kept = fresh(&self.root.join("scratch"), |spare| {
            // Renaming would replace another's.
            if spare.symlink_metadata().is_ok() {
                Err(io::ErrorKind::AlreadyExists.into())
            } else {
                fs::rename(path, spare)
            }
        });
        kept.map(|(spare, ())| self.state().dirs.push(spare)).is_ok()
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        let state = std::mem::take(&mut *self.state());
        state.locks.into_iter().for_each(SpareLock::remove);
        state.dirs.iter().for_each(|spare| drop(fs::remove_dir(spare)));
    }
}
