//! Claiming a key: either its result is there, or it is yours to make.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Mutex,
};

use anyhow::{Context as _, Result};
use flow_core::Key;

use crate::{
    cache::Cache,
    fault::fault,
    files::{Explain as _, remove_all},
    lock::KeyLock,
    lookup::Outcome,
    proof::{Meta, Stat},
    trust::ReadFile,
};

/// How to claim.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClaimOptions<'a> {
    /// What is in the scratch directory survives a failure, for the next claim of the key to go on from.
    pub resumable: bool,
    /// A result that is there already does not count; one that somebody has made since the first claim was refused does.
    pub ignore_hit: bool,
    /// What the claim before this one was refused with.
    pub after: Option<&'a Busy>,
}

/// What a claim gives.
#[derive(Debug)]
pub enum Claim {
    /// The result is there.
    Hit(Outcome),
    /// It is not: make it, and [`Slot::commit`] it.
    Miss(Slot),
    /// Another process or thread is making it: claim again later. A lock has no queue that could be waited in and left, and
    /// who waits should not keep what others could use meanwhile.
    Busy(Busy),
}

/// Who is making a result, and since when this is waited for.
#[derive(Clone, Debug)]
pub struct Busy {
    /// The other, for people.
    pub holder: String,
    before: Option<Stat>,
}

/// The right to make a result, and the place to do it. Dropped, it releases the key and removes what was made, but
/// for a resumable kind's scratch.
#[derive(Debug)]
pub struct Slot {
    pub(crate) cache: Cache,
    pub(crate) key: Key,
    out: PathBuf,
    scratch: PathBuf,
    resumable: bool,
    resumed: bool,
    /// What was read before the commit, by inode.
    pub(crate) ahead: Mutex<HashMap<u64, ReadFile>>,
    /// Released last.
    lock: Option<KeyLock>,
}

impl Cache {
    /// Claims a key: takes its result if it is there, or the right to make it.
    ///
    /// # Errors
    /// The cache cannot be read or written.
    pub fn claim(&self, key: &Key, options: &ClaimOptions<'_>) -> Result<Claim> {
        let record = self.record_path(key);
        let stat = || -> Result<Option<Stat>> {
            let meta = Meta::find(&record, false).with_context(|| format!("cannot read {}", record.display()))?;
            Ok(meta.map(|meta| meta.stat))
        };
        let found = stat()?;
        let before = options.after.map_or(found, |busy| busy.before);
        let counts = found.is_some() && (!options.ignore_hit || found != before);
        if counts && let Some(outcome) = self.lookup(key)? {
            return Ok(Claim::Hit(outcome));
        }
        // From here on it may take days.
        self.0.holds.publish().explain(self.root(), || "note what this flow uses")?;
        let path = self.lock_path(key);
        let taken = KeyLock::try_take_with(&self.0.spares, &path);
        let Some(lock) = taken.explain(self.root(), || format!("lock {}", path.display()))? else {
            let holder = KeyLock::holder(&path).unwrap_or_else(|| "another flow".into());
            return Ok(Claim::Busy(Busy { holder, before }));
        };
        // Another one may have made it since the look-up above.
        let now = stat()?;
        if now.is_some()
            && now != found
            && let Some(outcome) = self.lookup(key)?
        {
            return Ok(Claim::Hit(outcome));
        }
        lock.sign();
        fault("claim:locked")?;
        Slot::new(self, key, options.resumable, lock).map(Claim::Miss)
    }

    /// Whether a run that was interrupted left something to go on from under this key.
    #[must_use]
    pub fn has_scratch(&self, key: &Key) -> bool {
        let [_, scratch] = self.scratch_paths(key, true);
        fs::read_dir(scratch).is_ok_and(|mut entries| entries.next().is_some())
    }
}

impl Slot {
    fn new(cache: &Cache, key: &Key, resumable: bool, lock: KeyLock) -> Result<Self> {
        // Two directories and no third around them: on ext4 making and removing one costs more than all else a small
        // commit does.
        let [out, scratch] = cache.scratch_paths(key, resumable);
        let resumed = (|| {
            if !make(&out)? {
                // What a killed run left.
                remove_all(&out)?;
                fs::create_dir(&out)?;
            }
            if cache.0.spares.place_dir(&scratch) || make(&scratch)? {
                return Ok(false);
            }
            if !resumable {
                remove_all(&scratch)?;
                fs::create_dir(&scratch)?;
            }
            Ok(fs::read_dir(&scratch)?.next().is_some())
        })()
        .explain(cache.root(), || format!("make {}", out.display()))?;
        fault("claim:scratch")?;
        Ok(Self {
            cache: cache.clone(),
            key: *key,
            out,
            scratch,
            resumable,
            resumed,
            ahead: Mutex::default(),
            lock: Some(lock),
        })
    }

    /// The key that is claimed.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }

    /// An empty directory to fill: what is in it at the commit is the result. Files are moved from it into the cache,
    /// so nothing else should link to them.
    #[must_use]
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// A directory on the same file system, for work in progress.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Whether an earlier run left something in the scratch directory.
    #[must_use]
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// After a commit nothing is left to go on from.
    pub(crate) fn finish(&mut self) {
        self.resumable = false;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next claim or by gc.
        for (dir, keep) in [(&self.out, false), (&self.scratch, self.resumable)] {
            // What was the place of a result, and may still be somebody's, is no place for another.
            let spared = dir == &self.scratch && self.cache.0.spares.keep_dir(dir);
            if !spared && fs::remove_dir(dir).is_err() && !keep {
                let _ = remove_all(dir);
            }
        }
        drop(self.lock.take());
    }
}

/// Makes a directory. Whether it was not there before.
fn make(path: &Path) -> io::Result<bool> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        made => made.map(|()| true),
    }
}
