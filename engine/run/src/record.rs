//! What a run leaves behind while it goes on: `runs/<id>/run.json`, `events.jsonl`, `logs/<node>.log`, and
//! of a node with several ranks one each, `logs/<node>.rank<rank>.log`.
//!
//! A run that finds everything in the cache, as the last one left it, leaves only a small `run.json` that names that
//! last one: nothing is written a node.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use flow_cache::Cache;
use flow_core::{Digest, Event, How, Level, Record, Sink};
use serde::{Deserialize, Serialize};

use crate::{
    run_head::{RunHead, StageHead},
    run_id::new_id,
    summary::Summary,
};

/// How many of the last lines of a node's log a failure shows.
const TAIL: usize = 20;
/// How often a run shows those who cannot see its lock that it lives.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(10);
/// Progress of a node goes to disk at most so often, in seconds.
const PROGRESS_EVERY: f64 = 1.0;

/// What a run is, when it begins.
pub struct Head<'a> {
    /// The pipeline's name.
    pub pipeline: &'a str,
    /// The pipeline file, absolute.
    pub file: PathBuf,
    /// The profile that was chosen.
    pub profile: Option<&'a str>,
    /// What was set on the command line, and by variables.
    pub set: Vec<String>,
    /// How many nodes are asked for.
    pub nodes: usize,
    /// The stages that they are of.
    pub stages: Vec<StageHead>,
    /// Cores, GPUs, bytes of memory.
    pub machine: (u32, u32, u64),
}

/// What is known of all nodes when a run ends.
pub enum Ended {
    /// Some have no result.
    Partly,
    /// All have results; this is the fingerprint of their keys.
    Whole(Digest),
    /// All have the results that they had in this run.
    Same(String),
}

/// The last complete run of a pipeline: where its next no-op run points to.
#[derive(Serialize, Deserialize)]
struct Last {
    run: String,
    fingerprint: Digest,
}

/// Takes a run's events: to the screen, to `events.jsonl`, to the logs.
pub struct Recorder<'a> {
    ui: &'a dyn Sink,
    runs: PathBuf,
    /// Where [`Last`] of this pipeline is kept.
    last: PathBuf,
    state: Mutex<State>,
}

struct State {
    head: RunHead,
    /// Events that are not on disk yet: nothing is written before something happens.
    waiting: Vec<Record>,
    disk: Option<Disk>,
    /// The first thing that could not be written.
    trouble: Option<String>,
}

struct Disk {
    dir: PathBuf,
    events: File,
    /// Locked as long as the run goes on, and touched every [`HEARTBEAT`]: this is how others know that it does.
    alive: File,
    beat: Instant,
    /// By node, and in it by rank: that of all, and one each.
    logs: HashMap<String, BTreeMap<Option<usize>, Log>>,
    progress: HashMap<String, f64>,
}

#[derive(Default)]
struct Log {
    file: Option<File>,
    tail: VecDeque<String>,
}

/// This machine's name.
pub(crate) fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

impl<'a> Recorder<'a> {
    /// Of a run that begins now.
    pub fn new(head: Head<'_>, cache: &Cache, ui: &'a dyn Sink) -> Self {
        let started = now();
        let head = RunHead {
            id: new_id(started),
            pipeline: head.pipeline.to_owned(),
            file: head.file,
            profile: head.profile.map(str::to_owned),
            // Others read it.
            set: head.set.iter().map(|set| flow_core::masked(set)).collect(),
            started,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: host(),
            pid: std::process::id(),
            nodes: head.nodes,
            stages: head.stages,
            machine: head.machine,
            ..RunHead::default()
        };
        let last = last_file(cache, &head.file);
        let state = State { head, waiting: Vec::new(), disk: None, trouble: None };
        Self { ui, runs: cache.runs_dir(), last, state: Mutex::new(state) }
    }

    /// The run's id.
    pub fn id(&self) -> String {
        self.lock().head.id.clone()
    }

    /// Notes that the run was asked to stop: it may be ended before it has.
    pub fn asked_to_stop(&self) {
        let mut state = self.lock();
        state.head.interrupted = true;
        if let (Some(disk), Ok(head)) = (&state.disk, serde_json::to_vec_pretty(&state.head)) {
            write_atomic(&disk.dir.join(RUN), &head).ok();
        }
    }

    /// Where the run is kept, from now on if it was not.
    pub fn dir(&self) -> Option<PathBuf> {
        let mut state = self.lock();
        self.to_disk(&mut state);
        state.disk.as_ref().map(|disk| disk.dir.clone())
    }

    /// Begins to write to disk, also before something happens.
    pub fn begin(&self) {
        self.to_disk(&mut self.lock());
    }

    /// Shows that the run lives, if it is time to.
    pub fn beat(&self) {
        let mut state = self.lock();
        let Some(disk) = state.disk.as_mut().filter(|disk| disk.beat.elapsed() >= HEARTBEAT) else { return };
        disk.beat = Instant::now();
        // Only who cannot see the lock misses it.
        disk.alive.set_modified(SystemTime::now()).ok();
    }

    /// The last lines of a node's log.
    pub fn tail(&self, node: &str) -> Vec<String> {
        let state = self.lock();
        let log = state.disk.as_ref().and_then(|disk| disk.logs.get(node)?.get(&None));
        log.map_or_else(Vec::new, |log| log.tail.iter().cloned().collect())
    }

    /// The last complete run of the pipeline, if all nodes had this fingerprint in it and it is still known.
    pub fn last(&self, fingerprint: &Digest) -> Option<String> {
        let last: Last = serde_json::from_slice(&fs::read(&self.last).ok()?).ok()?;
        (last.fingerprint == *fingerprint && self.runs.join(&last.run).is_dir()).then_some(last.run)
    }

    /// Tells how the run ended, and ends the record.
    pub fn end(&self, summary: &Summary, ended: Ended) {
        self.emit(Event::RunFinished {
            ok: summary.ok,
            interrupted: summary.interrupted,
            ran: summary.ran,
            skipped: summary.skipped,
            failed: summary.failed,
            seconds: summary.seconds,
            saved: summary.saved,
        });
        // The run itself is none the worse for it.
        if let Err(error) = self.finish(summary, ended) {
            let text = format!("{error:#}");
            self.emit(Event::log("", Level::Warning, text));
        }
    }

    fn finish(&self, summary: &Summary, ended: Ended) -> Result<()> {
        let mut state = self.lock();
        let head = &mut state.head;
        head.ok = Some(summary.ok);
        head.interrupted = summary.interrupted;
        (head.ran, head.skipped, head.failed) = (summary.ran, summary.skipped, summary.failed);
        head.saved = summary.saved;
        head.finished = Some(now());
        let (same, fingerprint) = match ended {
            Ended::Partly => (None, None),
            Ended::Whole(fingerprint) => (self.last(&fingerprint), Some(fingerprint)),
            Ended::Same(run) => (Some(run), None),
        };
        match same {
            Some(run) if state.disk.is_none() => {
                state.head.same_nodes_as = Some(run);
                state.head.stages.clear();
                let dir = self.make_dir(&mut state.head)?;
                write_atomic(&dir.join(RUN), &serde_json::to_vec_pretty(&state.head)?)?;
            }
            _ => {
                self.to_disk(&mut state);
                if let Some(disk) = &state.disk {
                    write_atomic(&disk.dir.join(RUN), &serde_json::to_vec_pretty(&state.head)?)?;
                }
                if let Some(fingerprint) = fingerprint {
                    let last = Last { run: state.head.id.clone(), fingerprint };
                    write_atomic(&self.last, &serde_json::to_vec(&last)?)?;
                }
            }
        }
        match state.trouble.take() {
            Some(trouble) => Err(anyhow::anyhow!(trouble)),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the run's directory. Another run that began in the same instant has another id.
    fn make_dir(&self, head: &mut RunHead) -> Result<PathBuf> {
        loop {
            let dir = self.runs.join(&head.id);
            match fs::create_dir(&dir) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => head.id.push('x'),
                made => return made.map(|()| dir).with_context(|| "cannot make a directory for the run".to_owned()),
            }
        }
    }

    /// Begins to write to disk, with all that happened so far.
    fn to_disk(&self, state: &mut State) {
        if state.disk.is_some() || state.trouble.is_some() {
            return;
        }
        let opened = (|| {
            let dir = self.make_dir(&mut state.head)?;
            fs::create_dir(dir.join(LOGS))?;
            let alive = File::create(dir.join(ALIVE))?;
            // A file system without locks only means that others cannot tell whether the run goes on.
            alive.try_lock().ok();
            write_atomic(&dir.join(RUN), &serde_json::to_vec_pretty(&state.head)?)?;
            let events = OpenOptions::new().create(true).append(true).open(dir.join(EVENTS))?;
            Ok(Disk { dir, events, alive, beat: Instant::now(), logs: HashMap::new(), progress: HashMap::new() })
        })();
        match opened {
            Ok(disk) => state.disk = Some(disk),
            Err(error) => return state.note(&error),
        }
        let mut text = Vec::new();
        for record in std::mem::take(&mut state.waiting) {
            state.keep(&record, &mut text);
        }
        state.write(&text);
    }
}

impl State {
    fn note(&mut self, error: &anyhow::Error) {
        self.trouble.get_or_insert_with(|| format!("the run's record is incomplete: {error:#}"));
    }

    fn write(&mut self, text: &[u8]) {
        // One write a record, to a file that is only appended to: a reader sees whole lines, but for a torn last one.
        if let Some(disk) = &mut self.disk
            && let Err(error) = disk.events.write_all(text)
        {
            self.note(&error.into());
        }
    }

    /// Adds a line to the log of a node, or of one rank of it.
    fn log(&mut self, node: &str, rank: Option<usize>, text: &str) {
        let Some(disk) = &mut self.disk else { return };
        let log = disk.logs.entry(node.to_owned()).or_default().entry(rank).or_default();
        if log.tail.len() == TAIL {
            log.tail.pop_front();
        }
        log.tail.push_back(text.to_owned());
        if log.file.is_none() {
            match OpenOptions::new().create(true).append(true).open(log_path(&disk.dir, node, rank)) {
                Ok(file) => log.file = Some(file),
                Err(error) => return self.note(&error.into()),
            }
        }
        if let Some(file) = &mut log.file
            && let Err(error) = file.write_all(format!("{text}\n").as_bytes())
        {
            self.note(&error.into());
        }
    }
}

impl Sink for Recorder<'_> {
    fn emit(&self, event: Event) {
        let event = event.hidden();
        let mut state = self.lock();
        let quiet = matches!(
            &event,
            Event::RunStarted { .. }
                | Event::RunFinished { .. }
                | Event::Finished { how: How::Cached | How::Off, .. }
                | Event::Log { .. }
        );
        let record = Record { time: now(), event };
        if quiet && state.disk.is_none() {
            state.waiting.push(record.clone());
        } else {
            self.to_disk(&mut state);
            let mut text = Vec::new();
            state.keep(&record, &mut text);
            state.write(&text);
        }
        // Under the lock, so that the screen sees events in the order of the file.
        self.ui.emit(record.event);
    }
}

impl State {
    /// Notes an event; what of it belongs into `events.jsonl` is added to `text`.
    fn keep(&mut self, record: &Record, text: &mut Vec<u8>) {
        match &record.event {
            Event::Log { node, level, text, rank } => {
                self.log(node, None, text);
                if rank.is_some() {
                    self.log(node, *rank, text);
                }
                if *level < Level::Warning {
                    return;
                }
            }
            Event::Progress { node, .. } => {
                let Some(disk) = &mut self.disk else { return };
                let last = disk.progress.entry(node.clone()).or_insert(0.0);
                if record.time - *last < PROGRESS_EVERY {
                    return;
                }
                *last = record.time;
            }
            Event::Finished { node, .. } | Event::Failed { node, .. } => {
                if let Some(disk) = &mut self.disk {
                    disk.logs.remove(node);
                    disk.progress.remove(node);
                }
            }
            _ => {}
        }
        append(text, record);
    }
}

/// The names of the files of a run.
pub(crate) const RUN: &str = "run.json";
pub(crate) const EVENTS: &str = "events.jsonl";
const LOGS: &str = "logs";
pub(crate) const ALIVE: &str = "alive.lock";

/// Where a node's log is, or that of one rank of it: `train.log`, `train.rank3.log`. A node's name is fit to be a file's, and
/// ends with no such word: a dot stands in none but between brackets.
pub(crate) fn log_path(run: &Path, node: &str, rank: Option<usize>) -> PathBuf {
    let rank = rank.map(|rank| format!(".rank{rank}")).unwrap_or_default();
    run.join(LOGS).join(format!("{}{rank}.log", if node.is_empty() { "flow" } else { node }))
}

fn append(text: &mut Vec<u8>, record: &Record) {
    // A number that is no number (a loss that is NaN) is written as null; nothing else in an event can fail.
    if serde_json::to_writer(&mut *text, record).is_ok() {
        text.push(b'\n');
    }
}

/// Where the last complete run of a pipeline file is noted.
fn last_file(cache: &Cache, pipeline: &Path) -> PathBuf {
    let name = blake3::hash(pipeline.as_os_str().as_encoded_bytes()).to_hex();
    cache.root().join("state").join(format!("last-{}.json", &name[..32]))
}

/// Writes a file whole or not at all. Not synced: what is lost with the power is only told, never relied on.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let write = || fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    write().with_context(|| format!("cannot write {}", path.display()))
}
