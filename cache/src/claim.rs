//! Claiming a key: either its result is there, or it is yours to make.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use flow_core::{Cancel, Cancelled, Key};

use crate::{
    cache::Cache,
    fault::fault,
    files::{Explain as _, remove_all, remove_slot},
    lock::KeyLock,
    lookup::Outcome,
    proof::Meta,
};

/// How to claim.
#[derive(Clone, Copy)]
pub struct ClaimOptions<'a> {
    /// What is in the scratch directory survives a failure, for the next claim of the key to go on from.
    pub resumable: bool,
    /// Ends the wait for another process.
    pub cancel: &'a Cancel,
    /// Called once, with the reason, if another process or thread holds the key.
    pub waiting: &'a (dyn Fn(&str) + Sync),
    /// A result that is there already does not count; one that somebody makes while this claim waits does.
    pub ignore_hit: bool,
}

/// What a claim gives.
#[derive(Debug)]
pub enum Claim {
    /// The result is there.
    Hit(Outcome),
    /// It is not: make it, and [`Slot::commit`] it.
    Miss(Slot),
}

/// The right to make a result, and the place to do it. Dropped, it releases the key and removes what was made, but
/// for a resumable kind's scratch.
#[derive(Debug)]
pub struct Slot {
    pub(crate) cache: Cache,
    pub(crate) key: Key,
    pub(crate) dir: PathBuf,
    out: PathBuf,
    scratch: PathBuf,
    resumable: bool,
    resumed: bool,
    /// Released last.
    lock: Option<KeyLock>,
}

pub(crate) const OUT: &str = "out";
pub(crate) const WORK: &str = "work";
/// How long to sleep between looks at a lock that another has; a lock has no queue that could be waited in and left.
const PATIENCE: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(200)];

impl Cache {
    /// Claims a key. While another process or thread makes the same result, waits, and takes it when it is there.
    ///
    /// # Errors
    /// [`Cancelled`] when asked to stop while waiting; the cache cannot be read or written.
    pub fn claim(&self, key: &Key, options: &ClaimOptions<'_>) -> Result<Claim> {
        let record = self.record_path(key);
        let before = Meta::find(&record, false)?.map(|meta| meta.stat);
        if !options.ignore_hit
            && let Some(outcome) = self.lookup(key)?
        {
            return Ok(Claim::Hit(outcome));
        }
        // From here on it may take days.
        self.0.holds.publish().explain(self.root(), || "note what this flow uses")?;
        let (lock, waited) = self.lock(key, options)?;
        // Another one may have made it since the look-up above, or while this one waited.
        let now = Meta::find(&record, false)?.map(|meta| meta.stat);
        if now.is_some()
            && now != before
            && let Some(outcome) = self.lookup(key)?
        {
            return Ok(Claim::Hit(Outcome { waited, ..outcome }));
        }
        lock.sign();
        fault("claim:locked")?;
        Slot::new(self, key, options.resumable, lock).map(Claim::Miss)
    }

    fn lock(&self, key: &Key, options: &ClaimOptions<'_>) -> Result<(KeyLock, bool)> {
        let path = self.lock_path(key);
        let [mut pause, longest] = PATIENCE;
        let mut waited = false;
        loop {
            if let Some(lock) = KeyLock::try_take(&path).explain(self.root(), || format!("lock {}", path.display()))? {
                return Ok((lock, waited));
            }
            if options.cancel.is_set() {
                return Err(Cancelled.into());
            }
            if !std::mem::replace(&mut waited, true) {
                let holder = KeyLock::holder(&path).unwrap_or_else(|| "another flow".into());
                (options.waiting)(&format!("{holder} is making the same result"));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(longest);
        }
    }
}

impl Slot {
    fn new(cache: &Cache, key: &Key, resumable: bool, lock: KeyLock) -> Result<Self> {
        let dir = cache.scratch_path(key, resumable);
        let (out, scratch) = (dir.join(OUT), dir.join(WORK));
        let make = |path: &Path| match fs::create_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            made => made.map(|()| true),
        };
        let resumed = (|| {
            if make(&dir)? {
                fs::create_dir(&out)?;
                fs::create_dir(&scratch)?;
                return Ok(false);
            }
            // What a killed run left.
            remove_all(&out)?;
            if !resumable {
                remove_all(&scratch)?;
            }
            fs::create_dir(&out)?;
            Ok(!make(&scratch)? && fs::read_dir(&scratch)?.next().is_some())
        })()
        .explain(cache.root(), || format!("make {}", dir.display()))?;
        fault("claim:scratch")?;
        Ok(Self { cache: cache.clone(), key: *key, dir, out, scratch, resumable, resumed, lock: Some(lock) })
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

    /// A directory beside it, for work in progress.
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
        if self.resumable {
            let _ = remove_all(&self.out);
            if fs::remove_dir(&self.scratch).is_ok() {
                let _ = fs::remove_dir(&self.dir);
            }
        } else {
            let _ = remove_slot(&self.dir, [OUT, WORK]);
        }
        drop(self.lock.take());
    }
}
