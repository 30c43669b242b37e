//! Finding a result, and believing it only after a look.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use flow_core::{Key, Tree};
use rayon::prelude::*;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

use crate::{
    cache::Cache,
    files::{Explain as _, par_shards, shards, write_atomic},
    holds::Inside,
    memo::Known,
    paths::parse_record,
    proof::{Meta, Stat, now},
    record::{Bad, ResultRecord, marked},
};

/// A record's modification time says when it was last used, to within this: gc lives on it, and it may not cost a
/// write at every use.
pub(crate) const USED_WITHIN: i64 = 24 * 3600 * 1_000_000_000;

/// A result that is there.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its name.
    pub key: Key,
    /// Its files.
    pub tree: Arc<Tree>,
    /// How long it took to make, in seconds.
    pub cost: f64,
}

/// What is known of a key.
#[derive(Debug)]
pub enum Found {
    /// Its result is here.
    Here(Outcome),
    /// What its result is; its objects are not here.
    Absent(Outcome),
    /// Nothing.
    Nothing,
}

/// A record in a list: of which key, in which file, and what it says.
pub(crate) type Listed = (Key, PathBuf, Result<ResultRecord, Bad>);

impl Cache {
    /// The result of a key, if it is there and all its objects are good: trusted by size, times and inode, or hashed
    /// again. A damaged object or a wrong record is put in quarantine, told in [`Cache::take_warnings`], and a miss.
    ///
    /// # Errors
    /// It cannot be told.
    pub fn lookup(&self, key: &Key) -> Result<Option<Outcome>> {
        Ok(match self.find(key, false)? {
            Found::Here(outcome) => Some(outcome),
            Found::Absent(_) | Found::Nothing => None,
        })
    }

    /// As [`Cache::lookup`] and then [`Cache::absent`], with one look where there is nothing.
    ///
    /// # Errors
    /// As there.
    pub fn find_result(&self, key: &Key) -> Result<Found> {
        self.find(key, true)
    }

    fn find(&self, key: &Key, also_absent: bool) -> Result<Found> {
        let inside = self.0.holds.enter()?;
        let path = self.record_path(key);
        let Some(meta) = record_meta(&path)? else { return Ok(Found::Nothing) };
        if let Some(outcome) = self.whole(key, &path, &meta, &inside)? {
            inside.hold(key.0).explain(self.root(), || "note what this flow uses")?;
            return Ok(Found::Here(outcome));
        }
        drop(inside);
        let absent = if also_absent { self.absent(key)? } else { None };
        Ok(absent.map_or(Found::Nothing, Found::Absent))
    }

    /// What the result of a key is, if that is known and its objects are not here: they were freed, or are the team's. The
    /// word of others counts only as long as they are trusted.
    ///
    /// # Errors
    /// Its record cannot be read.
    pub fn absent(&self, key: &Key) -> Result<Option<Outcome>> {
        let inside = self.0.holds.enter()?;
        let path = self.record_path(key);
        let Some(meta) = record_meta(&path)? else { return Ok(None) };
        let record = self.read_record(key)?.filter(|record| record.freed);
        let Some(record) = record.filter(|record| self.is_believed(record, &path)) else { return Ok(None) };
        inside.hold(key.0).explain(self.root(), || "note what this flow uses")?;
        let (stat, ages) = touch(&path, &meta.stat);
        self.note_record(&path, &stat, ages);
        Ok(Some(Outcome { key: *key, tree: Arc::new(record.tree), cost: record.cost }))
    }

    /// Whether who gave a record is trusted still.
    pub(crate) fn is_believed(&self, record: &ResultRecord, path: &Path) -> bool {
        let remote = self.remote().filter(|_| record.shared.is_some());
        remote.is_none_or(|remote| fs::read(path).is_ok_and(|bytes| remote.accept(&record.key, bytes.into()).is_ok()))
    }

    /// The result whose record is at `path`, if all of it is here.
    fn whole(&self, key: &Key, path: &Path, meta: &Meta, inside: &Inside<'_>) -> Result<Option<Outcome>> {
        let known = self.memo().result(key).filter(|known| known.record == meta.stat);
        let fresh = known.is_none();
        let mut freed = false;
        let mut known = match known {
            Some(known) => known,
            None => {
                let Some(record) = self.read_record(key)? else { return Ok(None) };
                // That they are gone is no damage.
                let gone = || record.tree.entries().iter().any(|entry| !self.entry_path(entry).exists());
                if record.freed && (gone() || !self.is_believed(&record, path)) {
                    return Ok(None);
                }
                freed = record.freed;
                Known { record: meta.stat, tree: Arc::new(record.tree), cost: record.cost }
            }
        };
        if !self.objects_good(&known.tree, &|| format!("the result {}", key.short()))? {
            self.memo().forget_result(key);
            return Ok(None);
        }
        let outcome = Outcome { key: *key, tree: Arc::clone(&known.tree), cost: known.cost };
        if freed {
            inside.hold(key.0).explain(self.root(), || "note what this flow uses")?;
            match self.keep_files(path) {
                Ok(stat) => known.record = stat,
                // In a cache that this user may only read, nothing is freed by this user; else the next who finds it tries.
                Err(_) => return Ok(Some(outcome)),
            }
        }
        let (record, may_age) = touch(path, &known.record);
        self.note_record(path, &record, may_age);
        if fresh || record != known.record {
            self.memo().put_result(*key, Known { record, ..known });
        }
        Ok(Some(outcome))
    }

    /// Notes in a record that its objects are here: what is freed or sent goes by that.
    fn keep_files(&self, path: &Path) -> Result<Stat> {
        write_atomic(&self.tmp(), path, &marked(&fs::read(path)?, false)?, false, "find:kept")?;
        Ok(Meta::of(path, false)?.stat)
    }

    /// A key's record, if there is one that can be read; a wrong one is put in quarantine.
    fn read_record(&self, key: &Key) -> Result<Option<ResultRecord>> {
        let path = self.record_path(key);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        match ResultRecord::parse(&bytes, key) {
            Ok(record) => Ok(Some(record)),
            Err(bad @ Bad::Format(_)) => {
                self.warn(format!("the record {} is not used: {bad}", path.display()));
                Ok(None)
            }
            Err(Bad::Unreadable(error)) => Err(error).with_context(|| format!("cannot read {}", path.display())),
            Err(Bad::Wrong(why)) => {
                if let Some(went) = self.quarantine(&path) {
                    let path = path.display();
                    self.warn(format!("the record {path} is wrong ({why}), {went}: it has to be made again"));
                }
                Ok(None)
            }
        }
    }

    /// A key's record as it stands, its objects unseen. `None` also when it cannot be used.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn record(&self, key: &Key) -> Result<Option<ResultRecord>> {
        self.read_record(key)
    }

    /// Every record that can be read, in order of key; objects unseen.
    pub fn results(&self) -> impl Iterator<Item = ResultRecord> + use<> {
        self.records().into_iter().flatten().filter_map(|found| found.ok()?.2.ok())
    }

    /// Asks for each record's key, file, and what it says, on all cores; in order of key.
    pub(crate) fn each_record<T: Send>(
        &self,
        ask: impl Fn(Key, PathBuf, Result<ResultRecord, Bad>) -> Result<Option<T>> + Sync,
    ) -> Result<Vec<T>> {
        let read = |path: PathBuf| {
            let (key, path, record) = listed(path)?;
            ask(key, path, record).transpose()
        };
        let shards = par_shards(&self.0.root.join("results"))?;
        let found = shards.map(|shard| shard?.into_iter().filter_map(read).collect::<Result<Vec<T>>>());
        Ok(found.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Every record's key and file, and what it says or why it says nothing. `Err` when there may be others.
    pub(crate) fn records(&self) -> Result<impl Iterator<Item = Result<Listed>> + use<>> {
        let files = shards(&self.0.root.join("results"))?.flat_map(|shard| match shard {
            Ok(files) => files.into_iter().map(Ok).collect(),
            Err(e) => vec![Err(e)],
        });
        Ok(files.filter_map(|path| path.map(listed).transpose()))
    }
}

/// What is known of a record's file without reading it; nothing if it is not there.
fn record_meta(path: &Path) -> Result<Option<Meta>> {
    Meta::find(path, false).with_context(|| format!("cannot read {}", path.display()))
}

/// Reads the record in a file of `results/`, if it is one and still there.
fn listed(path: PathBuf) -> Option<Listed> {
    let key = parse_record(&path)?;
    let record = match fs::read(&path) {
        Ok(bytes) => ResultRecord::parse(&bytes, &key),
        // Removed since it was listed.
        Err(e) if e.kind() == ErrorKind::NotFound => return None,
        Err(e) => Err(Bad::Unreadable(e)),
    };
    Some((key, path, record))
}

/// Notes that a record was used today, if that was not noted lately. Returns its stat as it is now, and whether it has to
/// be noted again some day: in a cache that this user may only read, gc is its owner's.
fn touch(path: &Path, stat: &Stat) -> (Stat, bool) {
    // Not just when it has to be: records that were made one after the other would have to be touched so as well, and each
    // of these times ends a witness.
    if now() - stat.mtime < USED_WITHIN / 2 {
        return (*stat, true);
    }
    // Both times: for one of them alone it would have to be one's own file.
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    let touched = utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(std::io::Error::from);
    match touched.and_then(|()| Meta::of(path, false)) {
        Ok(meta) => (meta.stat, true),
        Err(_) => (*stat, false),
    }
}
