//! Fetching: bytes come as they lie there into a part, which a later run goes on from; they are unpacked and hashed
//! while they come. Only what has the right digest gets a name among the objects, and only when all objects of a
//! result are there are they moved, inside of the gate that keeps gc out, and the record after them.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read as _, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use flow_core::{Cancel, Cancelled, Digest, Entry};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    LEAST, Remote, STALL, TeamResult, asked_to_stop, object_names,
    pace::Pace,
    store::{Failure, Kind},
    within,
};
use crate::{
    cache::Cache,
    files::{Explain as _, copy_new, fresh, rename_making_parent, sync_parent, write_atomic},
    lock::KeyLock,
    lookup::Outcome,
    memo::Known,
    proof::{Id, Meta, Proof, now, wait_a_tick},
    record::{ResultRecord, marked},
    trust::Object,
};

/// So many attempts in a row that bring nothing are the end.
const ATTEMPTS: u32 = 4;
/// Results on their way at the same time when somebody waits for them.
const PULLS: usize = 32;
/// From so many bytes on a result is synced: fetching it again costs more.
const HEAVY: u64 = 1 << 20;

/// An object that came whole, and the lock that keeps other flows from it until it has its name.
type Fetched = (Digest, PathBuf, KeyLock);

impl Remote {
    /// Fetches results and waits for them; `told` hears how many bytes each took.
    ///
    /// # Errors
    /// As [`Remote::pull_now`], of the first one.
    pub fn pull_all(&self, results: &[Arc<TeamResult>], cancel: &Cancel, mut told: impl FnMut(u64)) -> Result<()> {
        let runtime = self.runtime().context("no threads can be started")?;
        let pulled = stream::iter(results)
            .map(|result| async move {
                let size = result.to_fetch(&self.cache);
                self.fetch(result, &|_| (), cancel).await.map(|_| size)
            })
            .buffer_unordered(PULLS)
            .try_for_each(|size| {
                told(size);
                std::future::ready(Ok(()))
            });
        runtime.block_on(async {
            tokio::select! {
                pulled = pulled => pulled,
                () = asked_to_stop(cancel) => Err(Cancelled.into()),
            }
        })
    }

    pub(super) async fn fetch(
        &self,
        result: &TeamResult,
        progress: &(dyn Fn(u64) + Sync),
        cancel: &Cancel,
    ) -> Result<Outcome> {
        let fetched = self.fetch_objects(result, progress, cancel).await;
        let adopted = fetched.and_then(|fetched| {
            let (files, _locks): (Vec<_>, Vec<_>) =
                fetched.into_iter().map(|(digest, path, lock)| ((digest, path), lock)).unzip();
            tokio::task::block_in_place(|| self.cache.adopt(result, &files)).map_err(Failure::local)
        });
        adopted.map_err(|failure| {
            let key = &result.record.key;
            match failure.kind {
                Kind::Wrong => {
                    self.wrong().insert(*key);
                }
                Kind::Remote => {
                    self.inner.reads.trip(&format!("{:#}", failure.error));
                }
                Kind::Local | Kind::Cancelled => return failure.error,
            }
            failure.error.context(format!(
                "the result {} cannot be had from the team's cache {}",
                key.short(),
                self.location()
            ))
        })
    }

    async fn fetch_objects(
        &self,
        result: &TeamResult,
        progress: &(dyn Fn(u64) + Sync),
        cancel: &Cancel,
    ) -> Result<Vec<Fetched>, Failure> {
        let cache = &self.cache;
        // It may take days: gc must not wait for it, and must not take what is used.
        cache.0.holds.publish().map_err(Failure::local)?;
        let missing = tokio::task::block_in_place(|| cache.missing(result)).map_err(Failure::local)?;
        let parts = cache.tmp().join("team");
        if !missing.is_empty() {
            fs::create_dir_all(&parts).explain(cache.root(), || "make a directory").map_err(Failure::local)?;
        }
        let compressed = |digest: &Digest| result.record.shared.as_ref()?.compressed.get(digest).copied();
        stream::iter(missing.into_iter().map(|(digest, size)| {
            let job = Job { remote: self, digest, size, wire: compressed(&digest), parts: &parts, progress, cancel };
            async move { job.run().await }
        }))
        .buffer_unordered(super::MOVES)
        .try_filter_map(|fetched| async { Ok(fetched) })
        .try_collect()
        .await
    }
}

/// One object.
struct Job<'a> {
    remote: &'a Remote,
    digest: Digest,
    size: u64,
    /// How many bytes its compressed form has, if that is what is there.
    wire: Option<u64>,
    parts: &'a Path,
    progress: &'a (dyn Fn(u64) + Sync),
    cancel: &'a Cancel,
}

impl Job<'_> {
    /// `None`: another flow was faster.
    async fn run(&self) -> Result<Option<Fetched>, Failure> {
        let _permit = self.remote.inner.moves.acquire().await.map_err(Failure::remote)?;
        let Some(lock) = self.lock().await? else { return Ok(None) };
        let [plain, packed] = object_names(&self.digest);
        let mut forms = [(plain, false), (packed, true)];
        if self.wire.is_some() {
            forms.reverse();
        }
        for (name, packed) in &forms {
            let kept = self.part(*packed).metadata().is_ok_and(|meta| meta.len() > 0);
            let first = self.download(name, *packed).await;
            let done = match first {
                // What an earlier run left may be of something else.
                Err(Failure { kind: Kind::Wrong, .. }) if kept => self.download(name, *packed).await,
                first => first,
            };
            if let Some(path) = done? {
                return Ok(Some((self.digest, path, lock)));
            }
        }
        Err(Failure::wrong(format!("its object {} is not there", forms[0].0)))
    }

    fn part(&self, packed: bool) -> PathBuf {
        self.parts.join(format!("{}{}.part", self.digest, if packed { ".zst" } else { "" }))
    }

    async fn lock(&self) -> Result<Option<KeyLock>, Failure> {
        let cache = &self.remote.cache;
        // The name of a digest is one of a key, and gc knows these.
        let path = cache.lock_path(&flow_core::Key(self.digest.0));
        loop {
            if cache.object_path(&self.digest).exists() {
                return Ok(None);
            }
            let lock = KeyLock::try_take(&path).explain(cache.root(), || format!("lock {}", path.display()));
            if let Some(lock) = lock.map_err(Failure::local)? {
                return Ok(Some(lock));
            }
            if self.cancel.is_set() {
                return Err(Failure::cancelled());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Where the whole object lies; `None` when there is none of this name.
    async fn download(&self, name: &str, packed: bool) -> Result<Option<PathBuf>, Failure> {
        let store = self.remote.store()?;
        let part = self.part(packed);
        let total = if packed { self.wire } else { Some(self.size) };
        let disk = |error: io::Error| -> Failure {
            let cache = &self.remote.cache;
            let told: Result<()> = Err(error).explain(cache.root(), || format!("write {}", part.display()));
            Failure::local(told.expect_err("it is one"))
        };
        let open = |fresh: bool| OpenOptions::new().create(true).append(!fresh).write(true).truncate(fresh).open(&part);
        let mut file = open(false).map_err(disk)?;
        let mut unpack = Unpack::new(self, packed).map_err(disk)?;
        let mut have = unpack.feed_file(&part)?;
        let mut idle = 0;
        while total.is_none_or(|total| have < total) {
            let before = have;
            let received = self.receive(&**store, name, &mut have, &mut file, &mut unpack, &open, packed).await;
            match received {
                // A file that is short is short: only a connection brings the rest the next time.
                Ok(Came::All) if total.is_none_or(|total| have >= total) || self.remote.location().is_dir() => break,
                Ok(Came::All) => {}
                Ok(Came::Nothing) => {
                    let _ = fs::remove_file(&part);
                    return Ok(None);
                }
                Err(failure) if failure.kind == Kind::Remote => {
                    if have == before && idle + 1 >= ATTEMPTS {
                        return Err(failure);
                    }
                }
                Err(failure) => {
                    if failure.kind == Kind::Wrong {
                        self.discard(packed);
                    }
                    return Err(failure);
                }
            }
            idle = if have > before { 0 } else { idle + 1 };
            if idle >= ATTEMPTS {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200) * idle).await;
        }
        let found = unpack.finish().map_err(disk)?;
        if found != Some(self.digest) {
            self.discard(packed);
            return Err(Failure::wrong(match total {
                Some(total) if have < total => {
                    format!("its object {name} has {have} bytes there, and should have {total}")
                }
                _ => format!("its object {name} is not what its name says"),
            }));
        }
        Ok(Some(if packed { self.unpacked() } else { part }))
    }

    fn unpacked(&self) -> PathBuf {
        self.parts.join(format!("{}.out", self.digest))
    }

    fn discard(&self, packed: bool) {
        let _ = fs::remove_file(self.part(packed));
        let _ = fs::remove_file(self.unpacked());
    }

    #[allow(clippy::too_many_arguments)] // one download's state, which ends with it
    async fn receive(
        &self,
        store: &dyn super::Store,
        name: &str,
        have: &mut u64,
        file: &mut File,
        unpack: &mut Unpack,
        open: &(dyn Fn(bool) -> io::Result<File> + Sync),
        packed: bool,
    ) -> Result<Came, Failure> {
        let Some(mut body) = within(STALL, store.get(name, *have)).await? else { return Ok(Came::Nothing) };
        if body.from != *have {
            *file = open(true).map_err(Failure::local)?;
            *unpack = Unpack::new(self, packed).map_err(Failure::local)?;
            *have = 0;
        }
        let mut pace = Pace::new(STALL, LEAST);
        while let Some(bytes) = pace.next(&mut body).await? {
            if self.cancel.is_set() {
                return Err(Failure::cancelled());
            }
            // What comes behind the end is no part of it.
            unpack.feed(&bytes)?;
            file.write_all(&bytes)
                .explain(self.remote.cache.root(), || {
                    format!("write an object of the team's cache {}", self.remote.location())
                })
                .map_err(Failure::local)?;
            *have += bytes.len() as u64;
            (self.progress)(bytes.len() as u64);
        }
        Ok(Came::All)
    }
}

/// What an answer brought.
enum Came {
    Nothing,
    All,
}

/// Sees the bytes as they come, and knows in the end what they are.
enum Unpack {
    Plain(Box<Hashed<io::Sink>>),
    Packed(Box<zstd::stream::write::Decoder<'static, Hashed<BufWriter<File>>>>),
}

impl Unpack {
    fn new(job: &Job<'_>, packed: bool) -> io::Result<Self> {
        if !packed {
            let hasher = blake3::Hasher::new();
            return Ok(Self::Plain(Box::new(Hashed { out: io::sink(), hasher, left: job.size })));
        }
        let out = BufWriter::with_capacity(1 << 20, File::create(job.unpacked())?);
        let out = Hashed { out, hasher: blake3::Hasher::new(), left: job.size };
        Ok(Self::Packed(Box::new(zstd::stream::write::Decoder::new(out)?)))
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let fed = match self {
            Self::Plain(out) => out.write_all(bytes),
            Self::Packed(decoder) => decoder.write_all(bytes),
        };
        fed.map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Failure::local(error)
            }
            _ => Failure::wrong(format!("an object of it is not what it should be: {error}")),
        })
    }

    /// What an earlier run left, if it can be part of it. Returns how much that is.
    fn feed_file(&mut self, part: &Path) -> Result<u64, Failure> {
        let mut file = File::open(part).map_err(Failure::local)?;
        let (mut buffer, mut have) = (vec![0; 1 << 20], 0);
        loop {
            match file.read(&mut buffer).map_err(Failure::local)? {
                0 => return Ok(have),
                n => {
                    if let Err(failure) = self.feed(&buffer[..n]) {
                        let _ = fs::remove_file(part);
                        return Err(failure);
                    }
                    have += n as u64;
                }
            }
        }
    }

    /// The digest of all that it saw; `None` if that is shorter than it must be.
    fn finish(self) -> io::Result<Option<Digest>> {
        let (hasher, left) = match self {
            Self::Plain(out) => (out.hasher, out.left),
            Self::Packed(mut decoder) => {
                decoder.flush()?;
                let out = decoder.into_inner();
                (out.hasher, out.left)
            }
        };
        Ok((left == 0).then(|| Digest(*hasher.finalize().as_bytes())))
    }
}

/// Hashes what it passes on, and passes on no more than there may be.
struct Hashed<W> {
    out: W,
    hasher: blake3::Hasher,
    left: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other("it has more bytes than it should have"));
        }
        let n = self.out.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.left -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Cache {
    /// The digests and sizes of objects that a result needs and this cache does not have as they should be.
    fn missing(&self, result: &TeamResult) -> Result<Vec<(Digest, u64)>> {
        let (mut missing, mut seen) = (Vec::new(), HashSet::new());
        for entry in result.record.tree.entries() {
            // The other variant serves as well: it is copied.
            let other = Entry { executable: !entry.executable, ..entry.clone() };
            if seen.insert((entry.digest, entry.executable)) && !self.is_good(entry)? && !self.is_good(&other)? {
                missing.push((entry.digest, entry.size));
            }
        }
        missing.sort_unstable();
        missing.dedup();
        Ok(missing)
    }

    fn is_good(&self, entry: &Entry) -> Result<bool> {
        let object = self.check_object(entry)?;
        if let Object::Damaged(why) = &object {
            let path = self.entry_path(entry);
            if let Some(went) = self.quarantine(&path) {
                self.warn(format!("{} was damaged ({why}), {went}: it is replaced", path.display()));
            }
        }
        Ok(matches!(object, Object::Good))
    }

    /// Keeps what a result of others is, without its objects; unless more is known of it here.
    pub(super) fn keep_absent(&self, result: &TeamResult) -> Result<()> {
        let key = &result.record.key;
        let inside = self.0.holds.enter()?;
        let path = self.record_path(key);
        match fs::read(&path).map(|bytes| ResultRecord::parse(&bytes, key)) {
            Ok(Ok(ours)) if !ours.freed => return Ok(()),
            Ok(Ok(ours)) if ours.shared.is_none() && result.record.shared.is_some() => return Ok(()),
            // What was made from it here would not be what it says any more.
            Ok(Ok(ours)) if ours.tree != result.record.tree && self.is_believed(&ours, &path) => return Ok(()),
            _ => inside.hold(key.0).explain(self.root(), || "note what this flow uses")?,
        }
        write_atomic(&self.tmp(), &path, &marked(&result.bytes, true)?, false, "team:known")
            .explain(self.root(), || format!("write {}", path.display()))
    }

    /// Makes a result of others one of this cache. Its objects are here, or lie as files in `fetched`, verified.
    pub(super) fn adopt(&self, result: &TeamResult, fetched: &[(Digest, PathBuf)]) -> Result<Outcome> {
        let record = &result.record;
        let inside = self.0.holds.enter()?;
        inside.hold(record.key.0).explain(self.root(), || "note what this flow uses")?;
        let durable = record.tree.size() >= HEAVY;
        let fetched: HashMap<Digest, &Path> = fetched.iter().map(|(digest, path)| (*digest, path.as_path())).collect();
        for entry in record.tree.entries() {
            if !self.is_good(entry)? {
                self.place_verified(entry, fetched.get(&entry.digest).copied(), durable)?;
            }
        }
        for path in fetched.values() {
            // What was packed.
            let _ = fs::remove_file(path.with_extension("zst.part"));
        }
        let path = self.record_path(&record.key);
        write_atomic(&self.tmp(), &path, &result.bytes, durable, "team:record")
            .explain(self.root(), || format!("write {}", path.display()))?;
        let tree = Arc::new(record.tree.clone());
        if let Ok(meta) = Meta::of(&path, false) {
            let known = Known { record: meta.stat, tree: Arc::clone(&tree), cost: record.cost };
            self.memo().put_result(record.key, known);
        }
        Ok(Outcome { key: record.key, tree, cost: record.cost })
    }

    /// Moves a verified file among the objects; without one, or when an entry before took it, copies the object's other
    /// variant.
    fn place_verified(&self, entry: &Entry, fetched: Option<&Path>, durable: bool) -> Result<()> {
        let target = self.entry_path(entry);
        let mode = if entry.executable { 0o555 } else { 0o444 };
        let placed = (|| {
            let dir = target.parent().unwrap_or(self.root());
            fs::create_dir_all(dir)?;
            let (temp, file) = match fetched.map(|path| (path, File::open(path))) {
                Some((path, Ok(file))) => (path.to_owned(), file),
                _ => fresh(dir, |to| copy_new(&self.object_path(&entry.digest), to, mode))?,
            };
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            if durable {
                file.sync_data()?;
            }
            rename_making_parent(&temp, &target)?;
            if durable {
                sync_parent(&target)?;
            }
            let stat = Meta::of(&target, false)?.stat;
            wait_a_tick(&stat);
            let unchanged = stat.size == entry.size && Meta::of(&target, false)?.stat == stat;
            let proof = Proof::new(stat, entry.digest, now(), durable).filter(|_| unchanged);
            self.remember(Id::object(entry), &target, proof);
            io::Result::Ok(())
        })();
        placed.explain(self.root(), || format!("write the object {}", target.display()))
    }
}
