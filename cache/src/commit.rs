//! Committing: what a stage left in `out/` becomes a result.
//!
//! Order is everything. Objects are renamed into place first and the record, which alone makes a result, last; so a
//! process that is killed anywhere in between leaves at worst objects that no record names, which gc removes.
//!
//! A power loss is another matter: the kernel writes back in an order of its own. Results that took a while to make
//! or are big are synced step by step (file, its directory, record, its directory). Small quick ones (a pipeline may
//! have ten thousand) are not synced at all, as four syncs would cost many times what making them again does. That
//! loses nothing but them: a record may then come back naming objects that are missing, short or empty, and each of
//! these is found: sizes are compared at every look-up, and no file that flow did not sync is trusted by its stat
//! beyond the boot it was written in (see `proof`), so it is hashed again. An object that proves wrong is a miss.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, bail, ensure};
use flow_core::{Entry, KeyParts, Tree};
use rayon::prelude::*;
use rustix::fs::FileType;

use crate::{
    cache::Cache,
    claim::Slot,
    fault::fault,
    files::{Explain as _, copy_new, fresh, rename_making_parent, sync_parent, write_atomic},
    lock::host,
    lookup::Outcome,
    memo::Known,
    proof::{Id, Meta, Proof, now},
    record::{FORMAT, ResultRecord},
    trust::{MANY, Object, ReadFile, read_file},
    walk::{Found, walk},
};

/// A result that took longer, in seconds, is worth syncing …
const DEAR: f64 = 0.1;
/// … and one that has more bytes.
const HEAVY: u64 = 1 << 20;

/// A file of `out/` that was read, and is this result's own.
struct Made {
    entry: Entry,
    path: PathBuf,
    read: ReadFile,
}

/// How an object may be used: by whoever may read the cache, and to be changed by nobody.
pub(crate) fn object_mode(executable: bool) -> u32 {
    if executable { 0o555 } else { 0o444 }
}

impl Slot {
    /// Makes what is in [`Slot::out`] the result of `parts`, which took `cost` seconds to make. An equal object that
    /// is in the cache already wins.
    ///
    /// # Errors
    /// `parts` are not the claimed key's; something in `out` is no file; the cache cannot be written. Then nothing is
    /// committed, and a resumable kind's scratch is kept.
    pub fn commit(mut self, parts: &KeyParts, cost: f64) -> Result<Outcome> {
        ensure!(parts.key() == self.key, "a result can only be committed under the key that was claimed");
        let cache = self.cache.clone();
        // Through a link in its place, files of others would be moved into the cache.
        let real = Meta::find(self.out(), false)?.is_some_and(|meta| meta.kind == FileType::Directory);
        ensure!(real, "the stage removed its output directory {}", self.out().display());
        let found = walk(self.out(), &mut |_, _| ()).context("what the stage left cannot be committed")?;
        let made = if found.len() < MANY {
            found.into_iter().map(|file| self.take(file)).collect::<Result<Vec<_>>>()
        } else {
            found.into_par_iter().map(|file| self.take(file)).collect()
        }?;
        let tree = Tree::new(made.iter().map(|made| made.entry.clone()).collect()).map_err(anyhow::Error::msg)?;
        fault("commit:hashed")?;

        let inside = cache.0.holds.enter()?;
        inside.hold(self.key.0).explain(cache.root(), || "note what this flow uses")?;
        let durable = cost >= DEAR || tree.size() >= HEAVY;
        let placed = if made.len() < MANY {
            made.iter().map(|made| cache.place(made, durable)).collect::<Result<Vec<_>>>()
        } else {
            made.par_iter().map(|made| cache.place(made, durable)).collect()
        }?;
        if durable {
            for dir in placed.iter().filter_map(|path| path.parent()).collect::<BTreeSet<_>>() {
                File::open(dir)
                    .and_then(|dir| dir.sync_all())
                    .explain(cache.root(), || format!("write {}", dir.display()))?;
            }
        }
        fault("commit:objects").explain(cache.root(), || "write objects")?;
        let outcome = cache.write_record(parts, Arc::new(tree), cost, durable, false)?;
        fault("commit:recorded")?;
        self.finish();
        Ok(outcome)
    }

    /// Reads a file that will be in [`Slot::out`] at the commit and does not change until then: it is not read again there. One
    /// that cannot be read, or is too fresh to be believed, is read then.
    pub fn read_ahead(&self, path: &Path) {
        if let Ok(read) = read_file(path, false)
            && read.proof.is_some()
        {
            self.ahead().insert(read.stat.ino, read);
        }
    }

    /// What was read ahead of this file, if it is unchanged. It was moved, which changes its ctime alone.
    fn was_read(&self, path: &Path) -> Option<ReadFile> {
        let stat = Meta::of(path, false).ok()?.stat;
        let read = self.ahead().remove(&stat.ino)?;
        (read.stat.size == stat.size && read.stat.mtime == stat.mtime).then_some(read)
    }

    fn ahead(&self) -> MutexGuard<'_, HashMap<u64, ReadFile>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a file the result's own and reads it. One that others may still write to, through a hard link or because
    /// a symbolic link led to it, is copied first.
    fn take(&self, found: Found) -> Result<Made> {
        let Found { name, mut path, meta, linked } = found;
        if linked || meta.links > 1 {
            let mode = object_mode(meta.executable());
            let (copy, _) = fresh(self.out(), |to| copy_new(&path, to, mode))
                .explain(self.cache.root(), || format!("copy {} into the cache", path.display()))?;
            path = copy;
        }
        let read = match self.was_read(&path) {
            Some(read) => read,
            None => read_file(&path, false).with_context(|| format!("cannot read {}", path.display()))?,
        };
        let entry = Entry { name, digest: read.digest, size: read.stat.size, executable: meta.executable() };
        Ok(Made { entry, path, read })
    }
}

impl Cache {
    /// Writes a further record that names the objects of a result that is here, or known: the same bytes under another
    /// key.
    ///
    /// # Errors
    /// One of the objects of a result that should be here is not; the cache cannot be written.
    pub fn alias(&self, parts: &KeyParts, outcome: &Outcome) -> Result<Outcome> {
        let key = parts.key();
        let inside = self.0.holds.enter()?;
        inside.hold(key.0).explain(self.root(), || "note what this flow uses")?;
        let mut lacks = None;
        for entry in outcome.tree.entries() {
            if !matches!(self.check_object(entry)?, Object::Good) {
                lacks = Some(entry);
            }
        }
        if let Some(entry) = lacks
            && !self.record(&outcome.key)?.is_some_and(|record| record.freed)
        {
            bail!("`{}` of the result {} is no longer in the cache", entry.name, outcome.key.short());
        }
        let durable = outcome.cost >= DEAR || outcome.tree.size() >= HEAVY;
        self.write_record(parts, Arc::clone(&outcome.tree), outcome.cost, durable, lacks.is_some())
    }

    fn write_record(
        &self,
        parts: &KeyParts,
        tree: Arc<Tree>,
        cost: f64,
        durable: bool,
        freed: bool,
    ) -> Result<Outcome> {
        let key = parts.key();
        let record = ResultRecord {
            format: FORMAT,
            key,
            parts: parts.clone(),
            tree: Tree::clone(&tree),
            cost,
            created: now() as f64 / 1e9,
            host: host().to_owned(),
            version: env!("CARGO_PKG_VERSION").into(),
            freed,
            shared: None,
        };
        let path = self.record_path(&key);
        let bytes =
            serde_json::to_vec(&record).with_context(|| format!("the record of {} cannot be written", key.short()))?;
        write_atomic(&self.tmp(), &path, &bytes, durable, "commit:record")
            .explain(self.root(), || format!("write {}", path.display()))?;
        if !freed && let Ok(meta) = Meta::of(&path, false) {
            self.memo().put_result(key, Known { record: meta.stat, tree: Arc::clone(&tree), cost });
        }
        Ok(Outcome { key, tree, cost })
    }

    /// Puts a file among the objects. Returns where it is.
    fn place(&self, made: &Made, durable: bool) -> Result<PathBuf> {
        let Made { entry, path, read } = made;
        let target = self.entry_path(entry);
        match self.check_object(entry)? {
            // Ours goes with the scratch directory.
            Object::Good => return Ok(target),
            Object::Missing => {}
            Object::Damaged(why) => {
                if let Some(went) = self.quarantine(&target) {
                    self.warn(format!("{} was damaged ({why}), {went}: it is replaced", target.display()));
                }
            }
        }
        let failed = || format!("write the object {}", target.display());
        let mode = object_mode(entry.executable);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).explain(self.root(), failed)?;
        if durable {
            File::open(path).and_then(|file| file.sync_data()).explain(self.root(), failed)?;
        }
        fault("commit:object").explain(self.root(), failed)?;
        self.rename_or_copy(path, &target, mode, durable).explain(self.root(), failed)?;
        fault("commit:placed").explain(self.root(), failed)?;
        let meta = Meta::of(&target, false).explain(self.root(), failed)?;
        let unchanged = meta.stat.size == read.stat.size && meta.stat.mtime == read.stat.mtime;
        if meta.stat.ino == read.stat.ino && !unchanged {
            let went = self.quarantine(&target).unwrap_or_default();
            bail!(
                "`{}` was written to while it was committed: a process that the stage started still runs ({} {went})",
                entry.name,
                target.display()
            );
        }
        // Renaming and chmod changed the ctime, and only that: the proof moves along. Of a copy it says nothing.
        let proof = read.proof.filter(|_| unchanged && meta.stat.ino == read.stat.ino);
        let boot = |proof: Proof| if durable { 0 } else { proof.boot };
        let proof = proof.map(|proof| Proof { stat: meta.stat, boot: boot(proof), ..proof });
        self.remember(Id::object(entry), &target, proof);
        Ok(target)
    }

    fn rename_or_copy(&self, from: &Path, to: &Path, mode: u32, durable: bool) -> std::io::Result<()> {
        match rename_making_parent(from, to) {
            // A part of the cache is on another file system, or the stage mounted one.
            Err(e) if e.kind() == ErrorKind::CrossesDevices => {
                let dir = to.parent().unwrap_or(to);
                let (temp, copy) = fresh(dir, |temp| copy_new(from, temp, mode))?;
                if durable {
                    copy.sync_data()?;
                }
                fs::rename(&temp, to)?;
                if durable { sync_parent(to) } else { Ok(()) }
            }
            done => done,
        }
    }
}
