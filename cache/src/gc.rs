//! What the cache holds, and giving space back.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    io::ErrorKind,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use flow_core::{Digest, Key};
use rayon::prelude::*;

use crate::{
    cache::Cache,
    fault::fault,
    files::{Explain as _, Numbered, is_temp, list, par_numbered, par_shards, remove_all, shards, usage, write_atomic},
    holds::Closed,
    lock::{KeyLock, try_exclusive},
    paths::{parse_object, parse_scratch},
    proof::{Meta, Stat, now},
    record::{Bad, ResultRecord, marked},
};

/// How long gc waits for flows that are just looking results up.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many files are taken away at a time: what takes long is not the work, but waiting for the disk.
const REMOVERS: usize = 8;

/// What may go.
pub struct GcPolicy<'a> {
    /// Results, scratch and quarantine that were not used for so long.
    pub max_age: Option<Duration>,
    /// The least recently used results, until the objects of the others have at most so many bytes.
    pub max_size: Option<u64>,
    /// Only say what would go.
    pub dry_run: bool,
    /// Results that stay whatever happens.
    pub keep: &'a (dyn Fn(&Key) -> bool + Sync),
}

/// Something that went, or would go.
#[derive(Clone, Debug, PartialEq)]
pub struct GcItem {
    /// The result, if it is one, or its scratch.
    pub key: Option<Key>,
    /// Of a result: the stage kind. Else what it is: `scratch`, `object`, `view`, `quarantine`, `temporary`.
    pub kind: String,
    /// Where it is.
    pub path: PathBuf,
    /// Why it goes.
    pub why: String,
    /// What its removal gives back, in bytes; of a result: of its record, as objects are items of their own.
    pub bytes: u64,
}

/// What gc did, or would do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GcReport {
    /// What went.
    pub items: Vec<GcItem>,
    /// What that gave back, in bytes.
    pub freed: u64,
    /// Results that stay.
    pub kept: usize,
    /// How many of them stay because a running flow uses them.
    pub in_use: usize,
    /// How many of them stay because they are pinned.
    pub pinned: usize,
    /// How many of them stay because [`GcPolicy::keep`] says so.
    pub wanted: usize,
    /// Bytes of objects that stay.
    pub size: u64,
}

/// What the cache holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Results.
    pub results: usize,
    /// Objects: files by content.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Keys with unfinished work.
    pub scratch: usize,
    /// Its bytes.
    pub scratch_bytes: u64,
    /// Things in quarantine.
    pub quarantined: usize,
    /// By stage kind.
    pub kinds: BTreeMap<String, KindStats>,
}

/// The results of a stage kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KindStats {
    /// How many.
    pub results: usize,
    /// Their bytes; what they share is counted for each.
    pub bytes: u64,
    /// How long they took to make, in seconds.
    pub cost: f64,
}

/// A result as gc sees it.
struct Candidate {
    key: Key,
    path: PathBuf,
    inode: u64,
    kind: String,
    used: i64,
    bytes: u64,
    view: Digest,
    objects: Vec<(Digest, bool, u64)>,
    /// Its objects need not be here.
    freed: bool,
    /// Somebody uses it or wants it.
    fixed: bool,
    /// Somebody wants its record.
    known: bool,
}

impl Cache {
    /// Counts what the cache holds.
    ///
    /// # Errors
    /// It cannot be listed.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        let told = |_, _, record: Result<ResultRecord, Bad>| {
            let size = |record: &ResultRecord| if record.freed { 0 } else { record.tree.size() };
            Ok(Some(record.ok().map(|record| (size(&record), record.cost, record.parts.kind))))
        };
        for record in self.each_record(told)? {
            stats.results += 1;
            if let Some((size, cost, kind)) = record {
                let kind = stats.kinds.entry(kind).or_default();
                kind.results += 1;
                kind.bytes += size;
                kind.cost += cost;
            }
        }
        let sizes = par_shards(&self.root().join("objects"))?.map(|shard| -> Result<(usize, u64)> {
            let sizes = shard?.into_iter().filter_map(|path| Some(Meta::of(&path, false).ok()?.stat.size));
            Ok(sizes.fold((0, 0), |(count, sum), size| (count + 1, sum + size)))
        });
        (stats.objects, stats.bytes) = sizes.try_reduce(|| (0, 0), |a, b| Ok((a.0 + b.0, a.1 + b.1)))?;
        let mut unfinished = HashSet::new();
        for path in list(&self.root().join("scratch"))? {
            unfinished.extend(parse_scratch(&path).map(|(key, _)| key));
            stats.scratch_bytes += usage(&path).0;
        }
        stats.scratch = unfinished.len();
        stats.quarantined = list(&self.root().join("quarantine"))?.len();
        Ok(stats)
    }

    /// Gives space back. What a running flow uses stays: it is told by the locks that flows hold. Records go before
    /// the objects they name, so that gc may be killed, too. When a result was last used is known to within a day.
    ///
    /// # Errors
    /// Flows look results up all the time; something cannot be removed.
    pub fn gc(&self, policy: &GcPolicy<'_>) -> Result<GcReport> {
        // What this process itself found before must not keep the gate from it.
        self.0.holds.let_go().explain(self.root(), || "note what this flow uses")?;
        let closed = Closed::new(&self.root().join("locks"), PATIENCE, !policy.dry_run, None)
            .explain(self.root(), || "collect what running flows use")?;
        let Some(closed) = closed else {
            bail!("flows are looking results up in {}: try again when they have started to run", self.root().display());
        };
        let mut gc = Gc { cache: self, policy, now: now(), report: GcReport::default() };
        let candidates = gc.candidates(&closed)?;
        let kept = gc.results(candidates)?;
        gc.objects(&kept)?;
        gc.views(&kept, &closed)?;
        gc.scratch()?;
        gc.rest()?;
        Ok(gc.report)
    }
}

struct Gc<'a> {
    cache: &'a Cache,
    policy: &'a GcPolicy<'a>,
    now: i64,
    report: GcReport,
}

impl Gc<'_> {
    fn candidates(&mut self, closed: &Closed) -> Result<Vec<Candidate>> {
        let pins = self.cache.pins()?;
        let of =
            |whole: bool| -> HashSet<Key> { pins.iter().filter(|pin| pin.whole == whole).map(|pin| pin.key).collect() };
        let (pins, known) = (of(true), of(false));
        let mut candidates = self.cache.each_record(candidate)?;
        for candidate in &mut candidates {
            let in_use = closed.held.contains(&candidate.key.0) || closed.held.contains(&candidate.view.0);
            let pinned = pins.contains(&candidate.key);
            let wanted = (self.policy.keep)(&candidate.key);
            self.report.in_use += usize::from(in_use);
            self.report.pinned += usize::from(pinned);
            self.report.wanted += usize::from(wanted);
            candidate.fixed = in_use || pinned || wanted;
            candidate.known = known.contains(&candidate.key);
            // Others may have brought them back for who uses it now.
            if candidate.freed && !in_use {
                candidate.objects.clear();
            }
        }
        Ok(candidates)
    }

    /// Removes what is too old or too much. Returns what stays.
    fn results(&mut self, mut candidates: Vec<Candidate>) -> Result<Vec<Candidate>> {
        // What must stay first, then from the youngest to the oldest: what does not fit goes.
        candidates.sort_unstable_by(|a, b| (b.fixed, b.used, a.key).cmp(&(a.fixed, a.used, b.key)));
        let (mut kept, mut going, mut seen, mut size, mut full) = (Vec::new(), Vec::new(), HashSet::new(), 0, false);
        for candidate in candidates {
            let objects = || candidate.objects.iter().map(|(digest, executable, size)| ((*digest, *executable), *size));
            let more = |seen: &HashSet<(Digest, bool)>| -> u64 {
                let new: BTreeMap<_, u64> = objects().filter(|(object, _)| !seen.contains(object)).collect();
                new.values().sum()
            };
            let why = if candidate.fixed {
                None
            } else if let Some(age) = self.too_old(candidate.used) {
                Some(age)
            } else {
                // Least recently used means that an older one does not slip through because it is small.
                full = full || self.policy.max_size.is_some_and(|max| size + more(&seen) > max);
                full.then(|| "the cache is larger than it may be, and others were used later".to_owned())
            };
            if let Some(why) = why.as_ref().filter(|_| candidate.known) {
                kept.push(self.forget_objects(candidate, why)?);
            } else if let Some(why) = why {
                let Candidate { key, kind, path, inode, bytes, .. } = candidate;
                going.push((inode, GcItem { key: Some(key), kind, path, why, bytes }));
            } else {
                size += objects().filter(|(object, _)| seen.insert(*object)).map(|(_, size)| size).sum::<u64>();
                kept.push(candidate);
            }
        }
        self.remove_many(going, "gc:record", |item| item)?;
        self.report.kept = kept.len();
        Ok(kept)
    }

    /// What a pinned result was made of goes but for its record.
    fn forget_objects(&mut self, candidate: Candidate, why: &str) -> Result<Candidate> {
        let Candidate { key, path, kind, freed, .. } = &candidate;
        if !freed {
            if !self.policy.dry_run {
                let bytes = fs::read(path).with_context(|| format!("cannot read the record {}", path.display()))?;
                write_atomic(&self.cache.tmp(), path, &marked(&bytes, true)?, false, "gc:marked")
                    .explain(self.cache.root(), || format!("write {}", path.display()))?;
                self.cache.memo().forget_result(key);
            }
            let why = format!("{why}; its record stays, as a pinned result is made of it");
            self.report.items.push(GcItem { key: Some(*key), kind: kind.clone(), path: path.clone(), why, bytes: 0 });
        }
        Ok(Candidate { objects: Vec::new(), ..candidate })
    }

    /// Objects that no record names any more: of what just went, and of commits that were killed.
    fn objects(&mut self, kept: &[Candidate]) -> Result<()> {
        let objects = kept.iter().flat_map(|candidate| &candidate.objects);
        let named: HashMap<_, u64> =
            objects.map(|(digest, executable, size)| ((*digest, *executable), *size)).collect();
        let look = |shard: Result<Vec<Numbered>>| -> Result<(u64, Vec<Numbered>)> {
            let (mut size, mut going) = (0, Vec::new());
            for (inode, path) in shard? {
                match parse_object(&path).and_then(|object| named.get(&object)) {
                    Some(bytes) => size += bytes,
                    None => going.push((inode, path)),
                }
            }
            Ok((size, going))
        };
        let shards = par_numbered(&self.cache.root().join("objects"))?;
        let mut going = Vec::new();
        for (size, some) in shards.map(look).collect::<Result<Vec<_>>>()? {
            self.report.size += size;
            going.extend(some);
        }
        self.remove_many(going, "gc:object", |path| {
            let bytes = Meta::of(&path, false).map_or(0, |meta| meta.stat.size);
            item("object", path, "no result has it", bytes)
        })
    }

    fn views(&mut self, kept: &[Candidate], closed: &Closed) -> Result<()> {
        let named: HashSet<_> = kept.iter().map(|candidate| candidate.view).collect();
        for shard in shards(&self.cache.root().join("trees"))? {
            for path in shard? {
                let digest = path.file_name().and_then(|name| name.to_str()?.parse::<Digest>().ok());
                if digest.is_none_or(|digest| !named.contains(&digest) && !closed.held.contains(&digest.0)) {
                    let gone = self.remove(item("view", path, "no result has it", 0))?;
                    self.gone(gone);
                }
            }
        }
        Ok(())
    }

    fn scratch(&mut self) -> Result<()> {
        for path in list(&self.cache.root().join("scratch"))? {
            let Some((key, resumable)) = parse_scratch(&path) else {
                // One that waits to be used again. Who finds it gone makes another; one that is used is not empty any
                // more, or has another name.
                if is_temp(&path) && !self.policy.dry_run {
                    let _ = fs::remove_dir(&path);
                }
                continue;
            };
            let (bytes, used) = usage(&path);
            let why = if !resumable {
                "a run that was killed left it, and none can go on from it".to_owned()
            } else if (self.policy.keep)(&key) {
                continue;
            } else if let Some(age) = self.too_old(used) {
                age
            } else {
                continue;
            };
            // Whose lock is held is being made right now.
            let lock = self.cache.lock_path(&key);
            let Some(_lock) = KeyLock::try_take(&lock)? else { continue };
            let gone = self.remove(GcItem { key: Some(key), kind: "scratch".into(), path, why, bytes })?;
            self.gone(gone);
        }
        Ok(())
    }

    fn rest(&mut self) -> Result<()> {
        for (place, kind) in [("quarantine", "quarantine"), ("scratch/images", "image")] {
            for path in list(&self.cache.root().join(place))? {
                let (bytes, used) = usage(&path);
                if let Some(why) = self.too_old(used) {
                    let gone = self.remove(item(kind, path, &why, bytes))?;
                    self.gone(gone);
                }
            }
        }
        for path in list(&self.cache.root().join("tmp"))? {
            let (bytes, used) = usage(&path);
            // Memos and alike are written without passing the gate, within an instant.
            if self.now - used > 3600 * 1_000_000_000 {
                let gone = self.remove(item("temporary", path, "a killed process left it", bytes))?;
                self.gone(gone);
            }
        }
        // Locks of killed processes; taking one and dropping it removes it.
        if !self.policy.dry_run {
            for path in list(&self.cache.root().join("locks"))? {
                if is_temp(&path) {
                    // A living process's is locked. One that is made just now its maker does without.
                    if fs::File::open(&path).is_ok_and(|file| try_exclusive(&file).unwrap_or(false)) {
                        let _ = fs::remove_file(&path);
                    }
                } else if path.file_name().is_some_and(|name| name.to_string_lossy().parse::<Key>().is_ok()) {
                    drop(KeyLock::try_take(&path)?);
                }
            }
        }
        Ok(())
    }

    /// Why something last used then is too old, if it is.
    fn too_old(&self, used: i64) -> Option<String> {
        let age = Duration::from_nanos(self.now.saturating_sub(used).max(0) as u64);
        self.policy.max_age.filter(|max| age > *max)?;
        Some(format!("not used for {}", rough(age)))
    }

    /// Removes something, unless it is only to be said. Nothing if it was not there.
    fn remove(&self, item: GcItem) -> Result<Option<GcItem>> {
        if !self.policy.dry_run {
            match fs::remove_file(&item.path) {
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
                // A directory, or what cannot be removed at once.
                Err(_) => {
                    remove_all(&item.path).explain(self.cache.root(), || format!("remove {}", item.path.display()))?;
                }
                Ok(()) => {}
            }
        }
        Ok(Some(item))
    }

    /// Removes files, each given with its inode's number: in the order of these. So what the file system keeps of files that
    /// lie side by side is written once, and not once for each of them.
    fn remove_many<T: Send>(
        &mut self,
        mut going: Vec<(u64, T)>,
        point: &str,
        item: impl Fn(T) -> GcItem + Sync,
    ) -> Result<()> {
        going.sort_unstable_by_key(|(inode, _)| *inode);
        let remove = |(_, one)| {
            let removed = self.remove(item(one))?;
            fault(point)?;
            Ok(removed)
        };
        let removers = rayon::ThreadPoolBuilder::new().num_threads(REMOVERS).build()?;
        let gone: Vec<_> = removers.install(|| going.into_par_iter().map(remove).collect::<Result<_>>())?;
        let mut gone: Vec<GcItem> = gone.into_iter().flatten().collect();
        gone.par_sort_unstable_by(|a, b| a.path.as_os_str().cmp(b.path.as_os_str()));
        self.gone(gone);
        Ok(())
    }

    fn gone(&mut self, items: impl IntoIterator<Item = GcItem>) {
        for item in items {
            self.report.freed += item.bytes;
            self.report.items.push(item);
        }
    }
}

/// A record as gc sees it; `None`: look-ups put it in quarantine.
fn candidate(key: Key, path: PathBuf, record: Result<ResultRecord, Bad>) -> Result<Option<Candidate>> {
    let record = match record {
        Ok(record) => record,
        // Another flow's format may name any object: nothing can be said, so nothing goes.
        Err(Bad::Format(format)) => {
            bail!("{} has format {format}: collect with the newer flow that wrote it", path.display())
        }
        // What it names must not go only because it could not be read just now.
        Err(Bad::Unreadable(error)) => {
            return Err(error).with_context(|| format!("cannot read the record {}", path.display()));
        }
        Err(Bad::Wrong(_)) => return Ok(None),
    };
    let Ok(meta) = Meta::of(&path, false) else { return Ok(None) };
    let entries = record.tree.entries().iter();
    let objects = entries.map(|entry| (entry.digest, entry.executable, entry.size));
    let objects = objects.collect();
    let Stat { mtime: used, size: bytes, ino: inode, .. } = meta.stat;
    let (view, kind, freed) = (record.tree.digest(), record.parts.kind, record.freed);
    Ok(Some(Candidate { key, path, inode, kind, used, bytes, view, objects, freed, fixed: false, known: false }))
}

/// A time for people: `3 minutes`, `40 days`.
fn rough(age: Duration) -> String {
    let seconds = age.as_secs();
    let (number, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7200 => (seconds / 60, "minute"),
        7200..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

fn item(kind: &str, path: PathBuf, why: &str, bytes: u64) -> GcItem {
    GcItem { key: None, kind: kind.into(), path, why: why.into(), bytes }
}
