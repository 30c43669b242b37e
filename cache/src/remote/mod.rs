//! The team's cache: results that others made, behind one small trait over object stores ([`store::Store`]).
//!
//! It looks like the local one: `objects/ab/<digest>` (or `.zst`, where that pays), `results/ab/<key>.json`. Objects go
//! up first and the record last, as in a commit. Nothing there is believed: a record must be that of its key (and be
//! signed, if keys are trusted), an object must have its digest before it gets its name in the local cache.
//!
//! A record alone is a result ([`TeamResult`]): keys of what comes next are made of it, and its bytes are fetched when
//! somebody needs them. Records whose bytes were not fetched are kept in `state/team/`, so that the next run knows
//! them without the network.
//!
//! No failure here stops a run. The remote is left alone for a while after one ([`breaker`]), and what could not be
//! pushed is noted in `state/team/` for the next run.

mod archive;
mod breaker;
mod bucket;
mod dir;
mod fetch;
mod location;
mod pace;
mod provider;
mod send;
mod sign;
mod store;
mod team_result;
mod web;

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use flow_core::{Cancel, Cancelled, Key};
use futures_util::future::join_all;
use tokio::{runtime::Runtime, sync::Semaphore};

use self::{
    breaker::Breaker,
    pace::Pace,
    send::Sending,
    sign::Signer,
    store::{Body, Failure, Kind, Store},
};
use crate::{cache::Cache, lookup::Outcome, record::ResultRecord};
pub use archive::{ARCHIVE, Archived};
pub use location::Location;
pub use send::{Pushed, Uploads};
pub use sign::{PublicKey, TrustedKey, generate_key};
pub use team_result::TeamResult;
pub(crate) use team_result::accept;

/// How a team's cache is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteConfig {
    /// Where it is.
    pub location: Location,
    /// Results may be pushed.
    pub write: bool,
    /// Results with more bytes are not pushed.
    pub push_limit: Option<u64>,
    /// The server, where it is not the provider's own.
    pub endpoint: Option<String>,
    /// The provider's region.
    pub region: Option<String>,
    /// Who is believed.
    pub trust: Trust,
}

/// Whose records are believed, and how one's own are signed: in a remote and in archives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// If there are any: only records that one of them signed are believed.
    pub trusted_keys: Vec<TrustedKey>,
    /// The file of the key that records are signed with when they go out.
    pub sign_key: Option<PathBuf>,
}

impl Trust {
    /// The key that what goes out is signed with, if one is named.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn signs_as(&self) -> Result<Option<PublicKey>> {
        Ok(self.sign_key.as_deref().map(sign::Signer::read).transpose()?.map(|signer| signer.public()))
    }
}

/// The team's cache, as one local cache uses it. Cheap to clone.
#[derive(Clone)]
pub struct Remote {
    cache: Cache,
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    config: RemoteConfig,
    /// What this cache remembers of the remote.
    dir: PathBuf,
    reads: Breaker,
    writes: Breaker,
    /// Failures are errors, and what failed a moment ago is tried again: the remote is what was asked for.
    strict: AtomicBool,
    store: OnceLock<Result<Arc<dyn Store>, String>>,
    runtime: OnceLock<Runtime>,
    asks: Semaphore,
    moves: Semaphore,
    sends: Semaphore,
    sending: Sending,
    signer: OnceLock<Result<Option<Signer>, String>>,
    /// What is wrong there: a push replaces it.
    wrong: Mutex<HashSet<Key>>,
}

/// Look-ups, objects and results on their way at the same time.
const ASKS: usize = 64;
const MOVES: usize = 12;
const SENDS: usize = 8;
/// A look-up waits so long for the first byte …
const ANSWER: Duration = Duration::from_secs(5);
/// … and everything so long for the next one.
const STALL: Duration = Duration::from_secs(30);
/// … and as long for so many bytes, if there are more.
const LEAST: u64 = 64 << 10;
/// No record is longer.
const LONGEST_RECORD: usize = 256 << 20;

impl Cache {
    /// Says what team's cache is behind this one; later calls change nothing. Nothing is asked of it yet.
    pub fn connect(&self, config: RemoteConfig) {
        let name = blake3::hash(config.location.to_string().as_bytes()).to_hex();
        let dir = self.root().join("state/team").join(&name[..16]);
        self.0.remote.get_or_init(|| {
            Arc::new(Inner {
                reads: Breaker::new(dir.join("down")),
                writes: Breaker::new(dir.join("down-for-writing")),
                strict: AtomicBool::new(false),
                store: OnceLock::new(),
                runtime: OnceLock::new(),
                asks: Semaphore::new(ASKS),
                moves: Semaphore::new(MOVES),
                sends: Semaphore::new(SENDS),
                sending: Sending::default(),
                signer: OnceLock::new(),
                wrong: Mutex::default(),
                config,
                dir,
            })
        });
    }

    /// The team's cache behind this one.
    #[must_use]
    pub fn remote(&self) -> Option<Remote> {
        self.0.remote.get().map(|inner| Remote { cache: self.clone(), inner: Arc::clone(inner) })
    }
}

impl Remote {
    /// Where it is, for people.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.inner.config.location
    }

    /// Whether results may be pushed.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.inner.config.write
    }

    /// From now on failures are errors, and what failed a moment ago is tried again.
    pub fn insist(&self) {
        self.inner.strict.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Looks whether the team has the result of a key, in the background; `then` hears it. `None` also when that
    /// cannot be told, which is a warning. What it has is known here from then on: [`Cache::absent`].
    pub fn ask(&self, key: Key, then: impl FnOnce(Option<Arc<TeamResult>>) + Send + 'static) {
        let Some(runtime) = self.runtime() else { return then(None) };
        let remote = self.clone();
        runtime.spawn(async move { then(remote.look_up(key).await) });
    }

    /// As [`Remote::ask`], for many keys, all at the same time; waits for the answers.
    #[must_use]
    pub fn ask_all(&self, keys: &[Key]) -> Vec<Option<Arc<TeamResult>>> {
        let Some(runtime) = self.runtime() else { return keys.iter().map(|_| None).collect() };
        runtime.block_on(join_all(keys.iter().map(|key| self.look_up(*key))))
    }

    /// Fetches the objects of a result that are not here, in the background, and makes it one of this cache; `then`
    /// hears it. `progress` is told how many bytes came since it was told the last time.
    ///
    /// The error that `then` gets was not told as a warning yet.
    pub fn pull(
        &self,
        result: Arc<TeamResult>,
        progress: impl Fn(u64) + Send + Sync + 'static,
        cancel: &Cancel,
        then: impl FnOnce(Result<Outcome>) + Send + 'static,
    ) {
        let Some(runtime) = self.runtime() else { return then(Err(anyhow::anyhow!("no threads can be started"))) };
        let (remote, cancel) = (self.clone(), cancel.clone());
        runtime.spawn(async move { then(remote.fetch(&result, &progress, &cancel).await) });
    }

    /// As [`Remote::pull`]; waits for it.
    ///
    /// # Errors
    /// An object is not there, or is not what it must be; the remote cannot be reached; the cache cannot be written.
    pub fn pull_now(&self, result: &TeamResult, progress: &(dyn Fn(u64) + Sync), cancel: &Cancel) -> Result<Outcome> {
        let runtime = self.runtime().context("no threads can be started")?;
        runtime.block_on(async {
            tokio::select! {
                outcome = self.fetch(result, progress, cancel) => outcome,
                // A remote that says nothing must not hold back who wants to stop.
                () = asked_to_stop(cancel) => Err(Cancelled.into()),
            }
        })
    }

    /// Brings back the objects of a result of this cache, whose record lies in `path`; whoever has them may give them.
    /// Whether all are here again.
    pub(crate) fn restore(&self, record: ResultRecord, path: &Path) -> bool {
        let Ok(bytes) = fs::read(path) else { return false };
        let result = TeamResult { by: record.host.clone(), time: record.created, record, bytes: bytes.into() };
        self.may_read() && !self.has_failed() && self.pull_now(&result, &|_| (), &Cancel::default()).is_ok()
    }

    /// How long it takes to answer.
    ///
    /// # Errors
    /// It does not, or it refuses.
    pub fn probe(&self) -> Result<Duration> {
        let runtime = self.runtime().context("no threads can be started")?;
        let store = self.store().map_err(|failure| failure.error)?;
        let began = Instant::now();
        let asked = async { within(ANSWER, store.get(&record_name(&Key([0; 32])), 0)).await };
        runtime.block_on(asked).map_err(|failure| failure.error)?;
        Ok(began.elapsed())
    }

    /// Every key that the team has a result of.
    ///
    /// # Errors
    /// The remote cannot be reached, or cannot list.
    pub fn keys(&self) -> Result<Vec<Key>> {
        let runtime = self.runtime().context("no threads can be started")?;
        let store = self.store().map_err(|failure| failure.error)?;
        let names = runtime.block_on(store.list("results/")).map_err(|failure| failure.error)?;
        Ok(names.iter().filter_map(|name| crate::paths::parse_record(name.as_ref())).collect())
    }

    async fn look_up(&self, key: Key) -> Option<Arc<TeamResult>> {
        let _permit = self.inner.asks.acquire().await.ok()?;
        if !self.may_read() {
            return None;
        }
        match self.find(&key).await {
            Ok(found) => found.map(|result| {
                // Where it cannot be kept, the next run asks again.
                self.cache.keep_absent(&result).ok();
                Arc::new(result)
            }),
            Err(failure) => {
                self.complain(&failure);
                None
            }
        }
    }

    async fn find(&self, key: &Key) -> Result<Option<TeamResult>, Failure> {
        let store = self.store()?;
        let name = record_name(key);
        let Some(body) = within(ANSWER, store.get(&name, 0)).await? else { return Ok(None) };
        let bytes = collect(body).await?;
        let result = self.accept(key, bytes).map_err(|error| {
            self.wrong().insert(*key);
            Failure::wrong(format!("the record {name} of the team's cache {} is not used: {error:#}", self.location()))
        })?;
        Ok(Some(result))
    }

    /// Believes a record of others, or says why not.
    pub(crate) fn accept(&self, key: &Key, bytes: Bytes) -> Result<TeamResult> {
        accept(key, bytes, &self.inner.config.trust.trusted_keys)
    }

    fn wrong(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.inner.wrong.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of these the remote has, and are not believed.
    #[must_use]
    pub fn refused(&self, keys: &[Key]) -> usize {
        let wrong = self.wrong();
        keys.iter().filter(|key| wrong.contains(key)).count()
    }

    fn is_strict(&self) -> bool {
        self.inner.strict.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether this process found that it cannot be used.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.inner.reads.has_tripped()
    }

    fn may_read(&self) -> bool {
        let reads = &self.inner.reads;
        if self.is_strict() { !reads.has_tripped() } else { reads.closed(|said| self.rests(said)) }
    }

    fn may_write(&self) -> bool {
        self.may_read() && self.inner.writes.closed(|said| self.rests(said))
    }

    /// Notes that what a person asked for was answered, whatever an earlier flow found.
    pub fn has_answered(&self) {
        self.inner.reads.mend();
        self.inner.writes.mend();
    }

    fn rests(&self, said: &str) {
        let patience = breaker::REST.as_secs();
        self.cache
            .warn(format!("the team's cache {} is not asked: {said}, less than {patience} s ago", self.location()));
    }

    /// A failure of a look-up or a download: said once.
    fn complain(&self, failure: &Failure) {
        match failure.kind {
            Kind::Cancelled => {}
            Kind::Wrong | Kind::Local => self.cache.warn(format!("{:#}", failure.error)),
            Kind::Remote => {
                if self.inner.reads.trip(&format!("{:#}", failure.error)) {
                    self.cache.warn(format!(
                        "the team's cache {} cannot be used, and the work goes on without it: {:#}",
                        self.location(),
                        failure.error
                    ));
                }
            }
        }
    }

    fn store(&self) -> Result<&Arc<dyn Store>, Failure> {
        let config = &self.inner.config;
        let store = self.inner.store.get_or_init(|| {
            // An error means that there is a provider already, which serves as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let made: Result<Arc<dyn Store>> = match &config.location {
                Location::Dir(dir) => Ok(Arc::new(dir::Dir::new(dir.clone()))),
                Location::Web(url) => web::Web::new(url).map(|web| Arc::new(web) as _),
                Location::Bucket { scheme, bucket, prefix } => {
                    bucket::Bucket::new(scheme, bucket, prefix, config).map(|bucket| Arc::new(bucket) as _)
                }
            };
            made.map_err(|error| format!("{error:#}"))
        });
        store.as_ref().map_err(Failure::remote)
    }

    fn runtime(&self) -> Option<&Runtime> {
        if let Some(runtime) = self.inner.runtime.get() {
            return Some(runtime);
        }
        let made =
            tokio::runtime::Builder::new_multi_thread().worker_threads(4).thread_name("team").enable_all().build();
        match made {
            Ok(runtime) => Some(self.inner.runtime.get_or_init(|| runtime)),
            Err(error) => {
                self.cache.warn(format!("the team's cache is not used, as no threads can be started: {error}"));
                None
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // What still runs is nobody's any more; and a thread of its own may be the last to let go.
            runtime.shutdown_background();
        }
    }
}

fn record_name(key: &Key) -> String {
    let hex = key.to_string();
    format!("results/{}/{hex}.json", &hex[..2])
}

/// The name of an object, and of its compressed form.
fn object_names(digest: &flow_core::Digest) -> [String; 2] {
    let hex = digest.to_string();
    let plain = format!("objects/{}/{hex}", &hex[..2]);
    let compressed = format!("{plain}.zst");
    [plain, compressed]
}

async fn asked_to_stop(cancel: &Cancel) {
    while !cancel.is_set() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What takes longer is a failure of the remote.
async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(Failure::remote(format!("no answer within {} s", limit.as_secs()))))
}

async fn collect(mut body: Body) -> Result<Bytes, Failure> {
    let mut all = Vec::new();
    let mut pace = Pace::new(STALL, LEAST);
    while let Some(chunk) = pace.next(&mut body).await? {
        if all.len() + chunk.len() > LONGEST_RECORD {
            return Err(Failure::wrong("a record of the team's cache is longer than any can be"));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.into())
}
