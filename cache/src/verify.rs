//! Reading everything again.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use flow_core::{Digest, Entry, Key};
use rayon::prelude::*;

use crate::{
    cache::Cache,
    files::{Explain as _, is_temp, par_shards},
    lock::KeyLock,
    paths::parse_object,
    proof::{Id, Meta},
    record::Bad,
    trust::{ReadFile, read_file},
};

/// Where something is that another flow was faster to put into quarantine.
const GONE: &str = "another flow has moved it away";

/// What [`Cache::verify`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VerifyReport {
    /// Objects that were read.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Results whose record was read.
    pub results: usize,
    /// Objects that are not what their name says. They are in quarantine now.
    pub damaged: Vec<Damaged>,
    /// Objects that records name and that are not there.
    pub missing: Vec<Damaged>,
    /// Records that cannot be used. Those that are wrong are in quarantine now.
    pub bad_records: Vec<BadRecord>,
}

impl VerifyReport {
    /// Nothing is wrong any more.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.damaged.iter().chain(&self.missing).all(|object| object.restored) && self.bad_records.is_empty()
    }
}

/// An object that is damaged or missing.
#[derive(Clone, Debug, PartialEq)]
pub struct Damaged {
    /// Where it was, or should be.
    pub path: PathBuf,
    /// What is wrong, and what was done.
    pub why: String,
    /// The results that it spoils; they are made again when they are needed.
    pub results: Vec<Key>,
    /// The team had it, and it is good again.
    pub restored: bool,
}

/// A record that cannot be used.
#[derive(Clone, Debug, PartialEq)]
pub struct BadRecord {
    /// Where it is or was.
    pub path: PathBuf,
    /// Why, and what was done.
    pub why: String,
}

impl Cache {
    /// Hashes all objects and reads all records. What is damaged or missing the team is asked for, if there is one: an
    /// object is what its name says, whoever gives it. `progress` is told the bytes read and their total, from many threads.
    /// Flows may run meanwhile.
    ///
    /// # Errors
    /// The cache cannot be listed.
    pub fn verify(&self, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let stat = |shard: Result<Vec<PathBuf>>| -> Result<Vec<(PathBuf, Meta)>> {
            // A copy on its way is no object.
            let paths = shard?.into_iter().filter(|path| !is_temp(path));
            let stat = |path: PathBuf| Ok(Meta::find(&path, false)?.map(|meta| (path, meta)));
            paths.filter_map(|path| stat(path).transpose()).collect()
        };
        let files: Vec<Vec<_>> = par_shards(&self.root().join("objects"))?.map(stat).collect::<Result<_>>()?;
        let files: Vec<_> = files.into_iter().flatten().collect();
        report.bytes = files.iter().map(|(_, meta)| meta.stat.size).sum();
        report.objects = files.len();
        let (done, total) = (AtomicU64::new(0), report.bytes);
        let bad = Mutex::new(BTreeMap::new());
        files.par_iter().try_for_each(|(path, meta)| -> Result<()> {
            if let Some(why) = self.verify_object(path, meta)? {
                let went = self.quarantine(path).unwrap_or_else(|| GONE.into());
                let why = format!("{why}, {went}");
                bad.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone(), why);
            }
            progress(done.fetch_add(meta.stat.size, Ordering::Relaxed) + meta.stat.size, total);
            Ok(())
        })?;
        let bad = bad.into_inner().unwrap_or_else(PoisonError::into_inner);

        // What gc takes meanwhile would look as if it were missing.
        let inside = self.0.holds.enter()?;
        let mut spoiled: HashMap<PathBuf, Vec<Key>> = HashMap::new();
        let mut missing: BTreeMap<PathBuf, Vec<Key>> = BTreeMap::new();
        let checked = self.each_record(|key, path, record| {
            let lacks = record.map(|record| -> Result<_> {
                let mut lacks = Vec::new();
                // What is only known need not be here.
                for entry in record.tree.entries().iter().filter(|_| !record.freed) {
                    let object = self.entry_path(entry);
                    if bad.contains_key(&object) || Meta::find(&object, false)?.is_none() {
                        lacks.push(object);
                    }
                }
                let record = (!lacks.is_empty()).then_some(record);
                Ok((lacks, record))
            });
            Ok(Some((key, path, lacks)))
        })?;
        let mut restored: HashSet<PathBuf> = HashSet::new();
        for (key, path, lacks) in checked {
            match lacks {
                Ok(lacks) => {
                    report.results += 1;
                    let (lacks, record) = lacks?;
                    if let Some(record) = record {
                        if self.remote().is_some_and(|remote| remote.restore(record, &path)) {
                            restored.extend(lacks.iter().cloned());
                        } else {
                            self.put_aside(&key, &path)?;
                        }
                    }
                    for object in lacks {
                        if bad.contains_key(&object) {
                            spoiled.entry(object).or_default().push(key);
                        } else {
                            missing.entry(object).or_default().push(key);
                        }
                    }
                }
                Err(bad) => {
                    let went = match bad {
                        Bad::Format(_) | Bad::Unreadable(_) => "it stays".to_owned(),
                        Bad::Wrong(_) => self.quarantine(&path).unwrap_or_else(|| GONE.into()),
                    };
                    report.bad_records.push(BadRecord { path, why: format!("{bad}, {went}") });
                }
            }
        }
        drop(inside);
        let told = |path: PathBuf, why: String, results: Vec<Key>| {
            let restored = restored.contains(&path);
            let then = match (restored, results.is_empty()) {
                (true, _) => "; the team had it, and it is good again",
                (false, true) => "",
                (false, false) => ": what has it is made again",
            };
            Damaged { path, why: why + then, results, restored }
        };
        report.damaged = bad
            .into_iter()
            .map(|(path, why)| {
                let results = spoiled.remove(&path).unwrap_or_default();
                told(path, why, results)
            })
            .collect();
        report.missing =
            missing.into_iter().map(|(path, results)| told(path, "it is not there".into(), results)).collect();
        Ok(report)
    }

    /// Puts a record aside that names what is not there: it is no result any more, and need not be said again. Not while
    /// somebody makes it anew.
    fn put_aside(&self, key: &Key, path: &std::path::Path) -> Result<()> {
        let lock = self.lock_path(key);
        if let Some(_lock) = KeyLock::try_take(&lock).explain(self.root(), || format!("lock {}", lock.display()))? {
            self.quarantine(path);
            self.memo().forget_result(key);
        }
        Ok(())
    }

    /// What is wrong with an object, if anything is.
    fn verify_object(&self, path: &std::path::Path, meta: &Meta) -> Result<Option<String>> {
        let Some((digest, executable)) = parse_object(path) else {
            return Ok(Some("its name is no digest".into()));
        };
        if !meta.is_file() {
            return Ok(Some("it is no file".into()));
        }
        match read_file(path, false) {
            Ok(ReadFile { digest: found, stat, proof }) if found == digest => {
                let entry = Entry { name: String::new(), digest, size: stat.size, executable };
                self.remember(Id::object(&entry), path, proof);
                Ok(None)
            }
            Ok(ReadFile { digest: found, .. }) => Ok(Some(describe(&found))),
            // gc took it.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) if rustix::io::Errno::from_io_error(&e) == Some(rustix::io::Errno::IO) => {
                Ok(Some(format!("reading it fails: {e}")))
            }
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

fn describe(found: &Digest) -> String {
    format!("its content is {}", found.short())
}
