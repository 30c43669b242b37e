//! Sending: results go up in the background, objects first and the record last.
//!
//! What is to be sent is noted as a file `push/<key>` in the remote's state directory before anything else, and
//! the note goes when it is there; so what a killed or interrupted flow did not send, the next one does.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, anyhow};
use flow_core::{Cancel, Cancelled, Digest, Entry, Key};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    Remote, STALL, TeamResult, asked_to_stop, collect, object_names, record_name,
    sign::Signer,
    store::{Failure, Kind, Upload},
    within,
};
use crate::{
    files::{Explain as _, list},
    lock::{KeyLock, host},
    record::{Origin, ResultRecord, marked},
    trust::Object,
};

/// What stands in the note of a result of which only the record is to be sent.
const BARE: &str = "record";
/// Smaller ones are sent as they are.
const SMALL: u64 = 4 << 10;
/// How much of a big object is tried: from its beginning, middle and end.
const SAMPLE: u64 = 256 << 10;
/// Compressed if at most so much of it is left.
const PAYS: f64 = 0.9;
const LEVEL: i32 = 3;

/// What became of a result that was to be pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It went up: so many bytes.
    New(u64),
    /// The team has it.
    Known,
    /// It is bigger than the limit.
    TooBig,
    /// It is no longer in the cache.
    Gone,
}

/// What of a result is sent, and what is looked at for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Care {
    /// The word of what it is, without its objects.
    Bare,
    /// All of it, unless the team has a good record of it.
    Usual,
    /// All of it, unless the team has that and every object that it names.
    Thorough,
}

/// How far the uploads are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uploads {
    /// Results on their way.
    pub left: usize,
    /// Results that went up.
    pub sent: usize,
    /// Bytes that went up.
    pub bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Sending {
    left: AtomicUsize,
    sent: AtomicUsize,
    bytes: AtomicU64,
    /// It was said that the key to sign with cannot be used.
    unsigned: AtomicBool,
}

impl Remote {
    /// Sends a result, in the background: see [`Remote::uploads`]. `bare`: only the word of what it is, without its
    /// objects.
    pub fn push(&self, key: Key, bare: bool) {
        let note = self.note(&key);
        let text = if bare { BARE } else { "" };
        let noted = note.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&note, text));
        if let Err(error) = noted {
            self.cache.warn(format!("cannot note that {} is to be pushed: {error}", key.short()));
        }
        self.start(key, bare);
    }

    /// Whether an earlier flow could not send all.
    #[must_use]
    pub fn has_notes(&self) -> bool {
        fs::read_dir(self.inner.dir.join("push")).is_ok_and(|mut notes| notes.next().is_some())
    }

    /// Sends what an earlier flow could not.
    pub fn push_noted(&self) {
        // An unreadable directory only means that nothing is sent.
        for note in list(&self.inner.dir.join("push")).unwrap_or_default() {
            if let Some(key) = note.file_name().and_then(|name| name.to_str()?.parse().ok()) {
                self.start(key, fs::read(&note).is_ok_and(|text| text == BARE.as_bytes()));
            }
        }
        let remote = self.clone();
        let Some(runtime) = self.runtime() else { return };
        runtime.spawn(async move { remote.abandon_uploads().await });
    }

    /// Takes back what was begun long ago and nobody went on with.
    async fn abandon_uploads(&self) {
        for note in list(&self.inner.dir.join("uploads")).unwrap_or_default() {
            let age = note.metadata().and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
            if age.is_some_and(|age| age > LEFT)
                && self.may_write()
                && let Ok(store) = self.store()
            {
                store.abandon(&note).await;
            }
        }
    }

    /// Who signs what goes out, if somebody does.
    pub(super) fn signer(&self) -> Result<Option<&Signer>, Failure> {
        let read = || {
            let file = self.inner.config.trust.sign_key.as_deref();
            file.map(Signer::read).transpose().map_err(|error| format!("{error:#}"))
        };
        let signer = self.inner.signer.get_or_init(read).as_ref();
        signer.map(Option::as_ref).map_err(|error| Failure::local(anyhow!("{error}")))
    }

    /// How far they are.
    #[must_use]
    pub fn uploads(&self) -> Uploads {
        let Sending { left, sent, bytes, .. } = &self.inner.sending;
        Uploads {
            left: left.load(Ordering::Acquire),
            sent: sent.load(Ordering::Relaxed),
            bytes: bytes.load(Ordering::Relaxed),
        }
    }

    /// Waits until everything is up, it cannot be, or `cancel` is set. `say` is called often.
    pub fn finish(&self, cancel: &Cancel, mut say: impl FnMut(Uploads)) {
        while self.uploads().left > 0 && !cancel.is_set() {
            say(self.uploads());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends results and waits for them; `told` hears what became of each.
    ///
    /// # Errors
    /// The remote cannot be reached or refuses; objects cannot be read; `cancel` is set.
    pub fn push_now(&self, keys: &[Key], cancel: &Cancel, mut told: impl FnMut(Pushed)) -> Result<()> {
        let runtime = self.runtime().context("no threads can be started")?;
        let sent = stream::iter(keys)
            .map(|key| async move { self.send(key, Care::Thorough, cancel).await.map(|pushed| (key, pushed)) })
            .buffer_unordered(PUSHES)
            .try_for_each(|(key, pushed)| {
                let _ = fs::remove_file(self.note(key));
                told(pushed);
                std::future::ready(Ok(()))
            });
        runtime.block_on(async {
            tokio::select! {
                sent = sent => sent.map_err(|failure| failure.error),
                () = asked_to_stop(cancel) => Err(Cancelled.into()),
            }
        })
    }

    fn note(&self, key: &Key) -> PathBuf {
        self.inner.dir.join("push").join(key.to_string())
    }

    fn start(&self, key: Key, bare: bool) {
        let Some(runtime) = self.runtime() else { return };
        self.inner.sending.left.fetch_add(1, Ordering::AcqRel);
        let remote = self.clone();
        runtime.spawn(async move {
            remote.send_quietly(&key, bare).await;
            remote.inner.sending.left.fetch_sub(1, Ordering::AcqRel);
        });
    }

    async fn send_quietly(&self, key: &Key, bare: bool) {
        let Ok(_permit) = self.inner.sends.acquire().await else { return };
        if !self.may_write() {
            return;
        }
        let later = "what is left is pushed by the next run";
        if let Err(failure) = self.signer() {
            if !self.inner.sending.unsigned.swap(true, Ordering::Relaxed) {
                self.cache.warn(format!("nothing is pushed to the team's cache, {later}: {:#}", failure.error));
            }
            return;
        }
        let care = if bare { Care::Bare } else { Care::Usual };
        let Err(failure) = self.send(key, care, &Cancel::default()).await else {
            self.inner.sending.sent.fetch_add(1, Ordering::Relaxed);
            let _ = fs::remove_file(self.note(key));
            return;
        };
        match failure.kind {
            Kind::Remote => {
                if self.inner.writes.trip(&format!("{:#}", failure.error)) {
                    let location = self.location();
                    self.cache
                        .warn(format!("cannot push to the team's cache {location}, {later}: {:#}", failure.error));
                }
            }
            Kind::Cancelled => {}
            Kind::Local | Kind::Wrong => {
                self.cache.warn(format!("the result {} is not pushed, {later}: {:#}", key.short(), failure.error));
            }
        }
    }

    async fn send(&self, key: &Key, care: Care, cancel: &Cancel) -> Result<Pushed, Failure> {
        let store = self.store()?;
        let path = self.cache.record_path(key);
        let Ok(bytes) = fs::read(&path) else { return Ok(Pushed::Gone) };
        let record =
            ResultRecord::parse(&bytes, key).map_err(|bad| Failure::wrong(format!("{}: {bad}", path.display())))?;
        let known = care == Care::Bare || record.freed;
        let too_big = !known && self.inner.config.push_limit.is_some_and(|limit| record.tree.size() > limit);
        let bare = known || too_big;
        // Before the long work: it may not be there.
        let signer = self.signer()?;
        let replaces = self.wrong().contains(key);
        if !replaces && self.has_good_record(key, bare, care).await? {
            return Ok(if too_big { Pushed::TooBig } else { Pushed::Known });
        }
        let went = AtomicU64::new(0);
        // Of what is only known the record goes alone: keys are made of it.
        let mut entries = if bare { Vec::new() } else { record.tree.entries().to_vec() };
        entries.sort_unstable_by_key(|entry| entry.digest);
        entries.dedup_by_key(|entry| entry.digest);
        let record = ResultRecord { freed: bare, ..record };
        let origin = record.shared.as_ref();
        let compressed: Vec<Option<(Digest, u64)>> = stream::iter(entries.into_iter().map(|entry| {
            // A record that others signed says in which form its objects lie there.
            let form = origin.map(|origin| origin.compressed.contains_key(&entry.digest));
            self.send_object(entry, form, replaces, &went, cancel)
        }))
        .buffer_unordered(SENDS_A_RESULT)
        .try_collect()
        .await?;
        if cancel.is_set() {
            return Err(Failure::cancelled());
        }
        let bytes = match origin {
            // It is somebody's word, and stays his.
            Some(_) => marked(&bytes, bare).map_err(Failure::local)?,
            None => {
                let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
                let compressed = compressed.into_iter().flatten().collect();
                let key = signer.map(Signer::public);
                let origin = Origin { by: who(), time, compressed, key, signature: None };
                signed(record, origin, signer).map_err(Failure::local)?
            }
        };
        store.put(&record_name(key), bytes.into()).await?;
        self.wrong().remove(key);
        Ok(if too_big { Pushed::TooBig } else { Pushed::New(went.into_inner()) })
    }

    /// Whether the team has a record that would be believed here, and objects to it unless `bare`: half of a record or a
    /// forged one is replaced, and one alone by the whole result.
    async fn has_good_record(&self, key: &Key, bare: bool, care: Care) -> Result<bool, Failure> {
        let Some(body) = within(STALL, self.store()?.get(&record_name(key), 0)).await? else { return Ok(false) };
        match self.accept(key, collect(body).await?) {
            Ok(theirs) if !bare && care == Care::Thorough => Ok(theirs.has_objects() && self.is_whole(&theirs).await?),
            theirs => Ok(theirs.is_ok_and(|theirs| bare || theirs.has_objects())),
        }
    }

    /// Whether all objects that a record of the team names lie there, as long as they should be.
    async fn is_whole(&self, theirs: &TeamResult) -> Result<bool, Failure> {
        let store = self.store()?;
        let compressed = |entry: &Entry| theirs.record.shared.as_ref()?.compressed.get(&entry.digest).copied();
        let named = theirs.record.tree.entries().iter().map(|entry| {
            let [plain, packed] = object_names(&entry.digest);
            compressed(entry).map_or((plain, entry.size), |size| (packed, size))
        });
        let named: Vec<(String, u64)> = named.collect();
        let lengths = stream::iter(named)
            .map(|(name, size)| async move { store.size(&name).await.map(|found| found == Some(size)) });
        let whole = lengths.buffer_unordered(SENDS_A_RESULT);
        whole.try_fold(true, |all, one| std::future::ready(Ok(all && one))).await
    }

    /// Returns its compressed size, if it lies there compressed.
    async fn send_object(
        &self,
        entry: Entry,
        packed: Option<bool>,
        replaces: bool,
        went: &AtomicU64,
        cancel: &Cancel,
    ) -> Result<Option<(Digest, u64)>, Failure> {
        let _permit = self.inner.moves.acquire().await.map_err(Failure::remote)?;
        if cancel.is_set() {
            return Err(Failure::cancelled());
        }
        let store = self.store()?;
        let object = self.cache.entry_path(&entry);
        let failed = || format!("read the object {}", object.display());
        let pays = || tokio::task::block_in_place(|| pays(&object, entry.size)).explain(self.cache.root(), failed);
        let packed = packed.map_or_else(pays, Ok).map_err(Failure::local)?;
        let [plain, compressed] = object_names(&entry.digest);
        // Two results may have the same object: the second one finds it there.
        let lock = self.cache.lock_path(&Key(entry.digest.0));
        let _lock = loop {
            let lock = KeyLock::try_take(&lock).explain(self.cache.root(), || format!("lock {}", lock.display()));
            match lock.map_err(Failure::local)? {
                Some(lock) => break lock,
                None if cancel.is_set() => return Err(Failure::cancelled()),
                None => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        let there = store.size(if packed { &compressed } else { &plain }).await?.filter(|_| !replaces);
        // A plain object of another length is not whole. Of a compressed one the length is not known yet.
        let whole = |size: &u64| if packed { !store.leaves_halves() } else { *size == entry.size };
        let note = self.inner.dir.join("uploads").join(entry.digest.to_string());
        if let Some(size) = there.filter(whole) {
            // Somebody else was faster.
            store.abandon(&note).await;
            return Ok(packed.then_some((entry.digest, size)));
        }
        let parts = self.cache.tmp().join("team");
        fs::create_dir_all(&parts).explain(self.cache.root(), || "make a directory").map_err(Failure::local)?;
        let progress = |bytes| {
            went.fetch_add(bytes, Ordering::Relaxed);
            self.inner.sending.bytes.fetch_add(bytes, Ordering::Relaxed);
        };
        if !matches!(tokio::task::block_in_place(|| self.cache.check_object(&entry)), Ok(Object::Good)) {
            return Err(Failure::wrong(format!("{} is damaged: run `flow cache verify`", object.display())));
        }
        if !packed {
            let upload = Upload { file: &object, size: entry.size, note: &note, progress: &progress };
            store.put_file(&plain, &upload).await?;
            return Ok(None);
        }
        let file = parts.join(format!("{}.up", entry.digest));
        let size = tokio::task::block_in_place(|| compress(&object, &file))
            .explain(self.cache.root(), || format!("compress {}", object.display()))
            .map_err(Failure::local);
        let sent = match size {
            Ok(size) if there == Some(size) => Ok(Some((entry.digest, size))),
            Ok(size) => {
                let upload = Upload { file: &file, size, note: &note, progress: &progress };
                store.put_file(&compressed, &upload).await.map(|()| Some((entry.digest, size)))
            }
            Err(failure) => Err(failure),
        };
        let _ = fs::remove_file(&file);
        sent
    }
}

/// Objects of one result on their way at the same time.
const SENDS_A_RESULT: usize = 8;
/// Results on their way at the same time when somebody waits for them.
const PUSHES: usize = 32;
/// An upload that nobody went on with for so long is taken back.
const LEFT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The record with its origin, signed.
pub(crate) fn signed(record: ResultRecord, origin: Origin, signer: Option<&Signer>) -> Result<Vec<u8>> {
    let record = ResultRecord { shared: Some(origin), ..record };
    let mut json = serde_json::to_value(&record)?;
    if let Some(signer) = signer {
        json["shared"]["signature"] = signer.sign(&json).into();
    }
    Ok(serde_json::to_vec(&json)?)
}

/// `user@host`.
pub(crate) fn who() -> String {
    let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()));
    let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    format!("{user}@{}", host())
}

/// Whether compressing makes an object much smaller, as far as a sample says.
fn pays(object: &Path, size: u64) -> io::Result<bool> {
    if size < SMALL {
        return Ok(false);
    }
    let mut file = File::open(object)?;
    let mut sample = Vec::new();
    for start in [0, size / 2, size.saturating_sub(SAMPLE)] {
        if start > 0 && size <= SAMPLE {
            break;
        }
        file.seek(io::SeekFrom::Start(start))?;
        (&mut file).take(SAMPLE).read_to_end(&mut sample)?;
    }
    let packed = zstd::bulk::compress(&sample, LEVEL)?;
    Ok(packed.len() as f64 <= sample.len() as f64 * PAYS)
}

/// Returns the compressed size.
fn compress(from: &Path, to: &Path) -> io::Result<u64> {
    let (source, target) = (File::open(from)?, File::create(to)?);
    let done = zstd::stream::copy_encode(source, &target, LEVEL).and_then(|()| Ok(target.metadata()?.len()));
    if done.is_err() {
        let _ = fs::remove_file(to);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressing_is_decided_by_a_sample() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("object");
        let mut noise = vec![0; 1 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        fs::write(&path, &noise).unwrap();
        assert!(!pays(&path, noise.len() as u64).unwrap());
        fs::write(&path, vec![7; 100_000]).unwrap();
        assert!(pays(&path, 100_000).unwrap() && !pays(&path, 100).unwrap());
        let packed = dir.path().join("packed");
        assert!(compress(&path, &packed).unwrap() < 1000);
        assert_eq!(zstd::decode_all(File::open(&packed).unwrap()).unwrap(), vec![7; 100_000]);
        assert!(compress(&dir.path().join("nothing"), &packed).is_err());
    }
}
