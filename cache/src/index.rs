//! [`Index`]: the memo of big files' digests that all pipelines of a cache share, in sled; and beside it what else is read
//! faster there than from many files ([`Cache::indexed`]).
//!
//! Only a memo: everything in it can be found again. So whatever is wrong with it (another process has it
//! open, which sled does not allow, or it is damaged) costs time and nothing else. It is opened when first needed and
//! closed when not needed for a while, so that a flow that trains for days does not keep it from the others.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use flow_core::Digest;

use crate::{
    cache::Cache,
    files::fresh,
    lock::try_exclusive,
    proof::{Id, Proof, Stat},
};

/// Smaller files are hashed faster than they are looked up here; per-pipeline memos know them too.
pub(crate) const WORTH: u64 = 64 << 10;
/// How long it stays open unused.
const IDLE: Duration = Duration::from_secs(2);
/// How long to wait for another process to close it.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long not to try again after that.
const PAUSE: Duration = Duration::from_secs(2);
/// What sled may keep in memory, in bytes.
const CACHE: u64 = 8 << 20;

/// A map from [`Id`] to [`Proof`] on disk.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    dir: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    open: Option<Open>,
    /// Not to be tried before.
    paused: Option<Instant>,
    /// What was already told.
    told: bool,
}

#[derive(Debug)]
struct Open {
    db: sled::Db,
    /// Held longer than sled's own lock, so that nobody sees a half-closed or half-moved database.
    _lock: File,
    used: Instant,
}

impl Index {
    /// Kept in the directory `dir`, with a lock file beside it.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, state: Arc::default() }
    }

    /// What is known of a file. `warn` is told once if the index cannot be used.
    pub fn get(&self, id: Id, warn: &dyn Fn(String)) -> Option<Proof> {
        self.with(Some(warn), |db| db.get(id.0))?.and_then(|bytes| decode(&bytes))
    }

    /// Remembers a file.
    pub fn put(&self, id: Id, proof: &Proof, warn: &dyn Fn(String)) {
        self.with(Some(warn), |db| db.insert(id.0, encode(proof).as_slice()));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who has no `warn` does as well without: nothing is said then, and nobody waited for.
    fn with<T>(&self, warn: Option<&dyn Fn(String)>, act: impl Fn(&sled::Db) -> sled::Result<T>) -> Option<T> {
        let mut state = self.state();
        if state.open.is_none() {
            if state.paused.is_some_and(|until| Instant::now() < until) {
                return None;
            }
            match self.open(warn.map_or(Duration::ZERO, |_| PATIENCE)) {
                Ok(Some((open, damage))) => {
                    if let (Some(damage), Some(warn)) = (damage, warn)
                        && !std::mem::replace(&mut state.told, true)
                    {
                        warn(format!("the index {} is damaged ({damage}): it is made anew", self.dir.display()));
                    }
                    state.open = Some(open);
                    state.paused = None;
                    self.close_when_idle();
                }
                refused => {
                    let warn = warn?;
                    state.paused = Some(Instant::now() + PAUSE);
                    if !std::mem::replace(&mut state.told, true) {
                        let why = match refused {
                            Err(e) => format!("cannot be opened ({e})"),
                            Ok(_) => "is in use by another flow".into(),
                        };
                        warn(format!("the index {} {why}: files are hashed again where needed", self.dir.display()));
                    }
                    return None;
                }
            }
        }
        let open = state.open.as_mut()?;
        open.used = Instant::now();
        // sled panics on some kinds of damage where it could return an error.
        match catch_unwind(AssertUnwindSafe(|| act(&open.db))) {
            Ok(Ok(value)) => Some(value),
            Ok(Err(sled::Error::Corruption { .. })) | Err(_) => {
                let lock = state.open.take().map(|open| open._lock);
                self.move_away(warn.unwrap_or(&drop), &mut state, "is damaged");
                drop(lock);
                None
            }
            Ok(Err(_)) => {
                state.open = None;
                state.paused = Some(Instant::now() + PAUSE);
                None
            }
        }
    }

    /// `None` when another process has it, and keeps it for longer than `patience`. With why it could not be kept as it was, if so.
    fn open(&self, patience: Duration) -> io::Result<Option<(Open, Option<io::Error>)>> {
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.dir.with_extension("lock"))?;
        let began = Instant::now();
        while !try_exclusive(&lock)? {
            if began.elapsed() >= patience {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let config = sled::Config::new().path(&self.dir).cache_capacity(CACHE).mode(sled::Mode::LowSpace);
        let open = || match catch_unwind(AssertUnwindSafe(|| config.open())) {
            Ok(Ok(db)) => Ok(db),
            // Kept by no flow, as the lock is ours: damage, or a disk that does not let us write.
            Ok(Err(sled::Error::Io(e))) => Err(e),
            Ok(Err(e)) => Err(io::Error::new(io::ErrorKind::InvalidData, e.to_string())),
            Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged")),
        };
        let (db, damage) = match open() {
            Err(e) if !matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::PermissionDenied) => {
                self.discard()?;
                (open()?, Some(e))
            }
            opened => (opened?, None),
        };
        Ok(Some((Open { db, _lock: lock, used: Instant::now() }, damage)))
    }

    fn move_away(&self, warn: &dyn Fn(String), state: &mut State, what: &str) {
        let done = self.discard();
        if !std::mem::replace(&mut state.told, true) {
            warn(match done {
                Ok(()) => format!("the index {} {what}: it is made anew", self.dir.display()),
                Err(e) => format!("the index {} {what} and cannot be removed: {e}", self.dir.display()),
            });
        }
        state.paused = Some(Instant::now() + PAUSE);
    }

    /// Renames first: who comes later finds nothing, and not half of it.
    fn discard(&self) -> io::Result<()> {
        let parent = self.dir.parent().unwrap_or(Path::new("."));
        let (away, ()) = fresh(parent, |path| fs::create_dir(path))?;
        let moved = fs::rename(&self.dir, away.join("index"));
        fs::remove_dir_all(&away)?;
        moved
    }

    fn close_when_idle(&self) {
        let state = Arc::downgrade(&self.state);
        // Without the thread it just stays open.
        let _ = std::thread::Builder::new().name("flow-index".into()).stack_size(256 << 10).spawn(move || {
            loop {
                std::thread::sleep(IDLE / 4);
                let Some(state) = state.upgrade() else { return };
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                if state.open.as_ref().is_none_or(|open| open.used.elapsed() >= IDLE) {
                    state.open = None;
                    return;
                }
            }
        });
    }
}

impl Cache {
    /// What is kept in the index under `of`: name → content. It may be gone at any time, so only what is in files as well
    /// belongs here. Nothing if the index cannot be had, as another flow has it.
    #[must_use]
    pub fn indexed(&self, of: &str) -> Option<HashMap<String, Vec<u8>>> {
        self.0.index.with(None, |db| {
            let entries = db.open_tree(of)?.iter().map(|entry| entry.map(|(name, content)| (name, content.to_vec())));
            let named = entries.filter_map(|entry| match entry {
                Ok((name, content)) => Some(Ok((str::from_utf8(&name).ok()?.to_owned(), content))),
                Err(error) => Some(Err(error)),
            });
            named.collect()
        })
    }

    /// Adds to what is kept in the index under `of`, and takes from it, if it can be had.
    pub fn index(&self, of: &str, add: &[(String, Vec<u8>)], remove: &[String]) {
        self.0.index.with(None, |db| {
            let mut batch = sled::Batch::default();
            remove.iter().for_each(|name| batch.remove(name.as_bytes()));
            add.iter().for_each(|(name, content)| batch.insert(name.as_bytes(), content.as_slice()));
            db.open_tree(of)?.apply_batch(batch)
        });
    }
}

const ENCODED: usize = 32 + 4 * 8 + 4;

/// Digest, size, mtime, ctime, inode, boot; little-endian.
pub(crate) fn encode(proof: &Proof) -> [u8; ENCODED] {
    let mut bytes = [0; ENCODED];
    bytes[..32].copy_from_slice(&proof.digest.0);
    let stat = &proof.stat;
    for (i, word) in [stat.size, stat.mtime as u64, stat.ctime as u64, stat.ino].into_iter().enumerate() {
        bytes[32 + 8 * i..40 + 8 * i].copy_from_slice(&word.to_le_bytes());
    }
    bytes[64..].copy_from_slice(&proof.boot.to_le_bytes());
    bytes
}

/// The inverse of [`encode`].
pub(crate) fn decode(bytes: &[u8]) -> Option<Proof> {
    let bytes: &[u8; ENCODED] = bytes.try_into().ok()?;
    let word = |i: usize| u64::from_le_bytes(bytes[32 + 8 * i..40 + 8 * i].try_into().unwrap_or_default());
    Some(Proof {
        digest: Digest(bytes[..32].try_into().ok()?),
        stat: Stat { size: word(0), mtime: word(1) as i64, ctime: word(2) as i64, ino: word(3) },
        boot: u32::from_le_bytes(bytes[64..].try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof(n: u64) -> Proof {
        let stat = Stat { size: n, mtime: -5, ctime: i64::MAX, ino: u64::MAX };
        Proof { stat, digest: Digest::of(&n.to_le_bytes()), boot: 7 }
    }

    fn id(n: u64) -> Id {
        Id::path(Path::new(&format!("/{n}")))
    }

    #[allow(clippy::needless_pass_by_value)]
    fn quiet(text: String) {
        panic!("no warning was due: {text}");
    }

    #[test]
    fn remembers_beyond_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let index = Index::new(path.clone());
        assert_eq!(index.get(id(1), &quiet), None);
        index.put(id(1), &proof(1), &quiet);
        assert_eq!(index.get(id(1), &quiet), Some(proof(1)));
        drop(index);
        assert_eq!(Index::new(path).get(id(1), &quiet), Some(proof(1)));
    }

    #[test]
    fn a_second_one_goes_on_without_and_says_so_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let first = Index::new(path.clone());
        first.put(id(1), &proof(1), &quiet);
        let second = Index::new(path);
        let told = Mutex::new(Vec::new());
        let warn = |text: String| told.lock().unwrap().push(text);
        assert_eq!(second.get(id(1), &warn), None);
        second.put(id(2), &proof(2), &warn);
        second.state().paused = None;
        assert_eq!(second.get(id(1), &warn), None);
        assert_eq!(told.lock().unwrap().len(), 1, "{told:?}");
        assert!(told.lock().unwrap()[0].contains("in use by another flow"), "{told:?}");
        // The first one closes it after a while, and the second one gets it.
        std::thread::sleep(IDLE + IDLE / 2);
        second.state().paused = None;
        assert_eq!(second.get(id(1), &warn), Some(proof(1)));
    }

    #[test]
    fn damage_of_any_kind_is_survived() {
        for kind in 0..6u64 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("index");
            let index = Index::new(path.clone());
            for n in 0..2000 {
                index.put(id(n), &proof(n), &quiet);
            }
            drop(index);
            let db = path.join("db");
            let mut bytes = fs::read(&db).unwrap();
            match kind {
                0 => bytes.truncate(bytes.len() / 2),
                1 => bytes.fill(0xff),
                2 => bytes.iter_mut().step_by(97).for_each(|byte| *byte ^= 0x55),
                3 => bytes.clear(),
                4 => fs::write(path.join("conf"), "nonsense").unwrap(),
                _ => {
                    fs::remove_dir_all(&path).unwrap();
                    fs::write(&path, "not a directory").unwrap();
                }
            }
            if kind < 4 {
                fs::write(&db, bytes).unwrap();
            }
            let told = Mutex::new(Vec::new());
            let warn = |text: String| told.lock().unwrap().push(text);
            let index = Index::new(path.clone());
            // Whatever is still found must be right.
            for n in 0..2000 {
                assert!(index.get(id(n), &warn).is_none_or(|found| found == proof(n)), "kind {kind}");
            }
            // Of other kinds sled itself takes what is whole, or begins anew.
            if kind > 4 {
                let told = told.lock().unwrap();
                assert!(told.len() == 1 && told[0].contains("is damaged"), "kind {kind}: {told:?}");
            }
            index.state().paused = None;
            index.put(id(9), &proof(9), &warn);
            assert_eq!(index.get(id(9), &warn), Some(proof(9)), "kind {kind}");
        }
    }
}
