//! Runs that were, and runs that go on: reads what [`crate::record`] writes, also from another process.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File, TryLockError},
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use flow_cache::Cache;
use flow_core::{Diagnostic, Digest, Event, How, Key, Record, did_you_mean};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    graph::{bracket, chooses},
    heads::Heads,
    record::{ALIVE, EVENTS, HEARTBEAT, RUN, host, log_path, now},
    run_head::{RunHead, StageHead},
};

/// A run on another machine that did not show itself for so long is dead.
const HEART_STOPS: Duration = HEARTBEAT.saturating_mul(6);
/// So many runs, the newest, are read from their files.
const FEW: usize = 64;

/// The runs of a cache.
#[derive(Clone, Debug)]
pub struct History {
    runs: PathBuf,
    heads: Arc<Heads>,
}

/// A run.
#[derive(Clone, Debug)]
pub struct RunInfo {
    /// Its id.
    pub id: String,
    /// Where its files are.
    pub dir: PathBuf,
    /// What it is, and how it ended.
    pub head: RunHead,
    /// It goes on: its process holds a lock.
    pub alive: bool,
}

/// What became of a node in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its key.
    pub key: Key,
    /// How its result came; nothing if it failed or did not finish.
    pub how: Option<How>,
    /// The digest of its result.
    pub digest: Option<Digest>,
    /// How long it took in that run, in seconds.
    pub seconds: f64,
    /// The size of its result.
    pub bytes: u64,
    /// It failed, and was not just interrupted.
    #[serde(default)]
    pub failed: bool,
}

/// Of a [`Record`] what says what became of a node. It is read from many lines where somebody waits, and an [`Event`] of all
/// kinds takes its time.
#[derive(Deserialize)]
struct Told {
    event: String,
    node: Option<String>,
    key: Option<Key>,
    how: Option<How>,
    digest: Option<Digest>,
    seconds: Option<f64>,
    bytes: Option<u64>,
}

/// What a node measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// The last step.
    pub step: u64,
    /// Name → newest value.
    pub values: BTreeMap<String, f64>,
}

impl History {
    /// Of a cache.
    #[must_use]
    pub fn open(cache: &Cache) -> Self {
        Self { runs: cache.runs_dir(), heads: Arc::new(Heads::of(cache)) }
    }

    /// Every run, the newest first, read as they are asked for. What is not a run's directory is passed over.
    ///
    /// # Errors
    /// The directory of runs cannot be read.
    pub fn list(&self) -> Result<impl Iterator<Item = RunInfo>> {
        let ids = self.ids()?;
        Ok((0..ids.len()).filter_map(move |nth| self.nth(&ids, nth).ok()))
    }

    /// Every run, the newest first, read on all cores.
    ///
    /// # Errors
    /// The directory of runs cannot be read.
    pub fn all(&self) -> Result<Vec<RunInfo>> {
        let ids = self.ids()?;
        Ok((0..ids.len()).into_par_iter().with_min_len(64).filter_map(|nth| self.nth(&ids, nth).ok()).collect())
    }

    /// The runs in which anything happened, the newest first, read as they are asked for: not those that only found all as
    /// another had left it.
    ///
    /// # Errors
    /// The directory of runs cannot be read.
    pub fn busy(&self) -> Result<impl Iterator<Item = RunInfo>> {
        Ok(self.list()?.filter(|run| run.head.same_nodes_as.is_none()))
    }

    /// The run with this id, or with the only id that begins so; `last` is the newest, `last-1` the one before it.
    ///
    /// # Errors
    /// There is none, or there are several; a [`Diagnostic`].
    pub fn find(&self, id: &str) -> Result<RunInfo> {
        if let Some(back) = steps_back(id) {
            return self.list()?.nth(back).ok_or_else(|| {
                let wrong = match back {
                    0 => Diagnostic::new("there are no runs yet"),
                    _ => Diagnostic::new(format!("there are not so many runs that `{id}` is one")),
                };
                wrong.hint("`flow runs` lists them").into()
            });
        }
        let ids = self.ids()?;
        if ids.iter().any(|other| other == id) {
            return self.read(id);
        }
        let matching: Vec<&String> = ids.iter().filter(|other| !id.is_empty() && other.starts_with(id)).collect();
        match matching[..] {
            [one] => self.read(one),
            [] => {
                let wrong = Diagnostic::new(format!("there is no run `{id}`"));
                Err(match did_you_mean(id, ids.iter().map(String::as_str)) {
                    Some(near) => wrong.hint(format!("did you mean `{near}`?")),
                    None => wrong.hint("`flow runs` lists them; `last` is the newest, `last-1` the one before it"),
                }
                .into())
            }
            [first, second, ..] => {
                let wrong = Diagnostic::new(format!("{} runs begin with `{id}`", matching.len()));
                Err(wrong.hint(format!("write more of the id: {first}, {second}, …")).into())
            }
        }
    }

    /// What the nodes with these keys measured in the newest run up to `run` that made their results.
    ///
    /// # Errors
    /// The directory of runs cannot be read.
    pub fn measured(&self, run: &RunInfo, mut keys: BTreeMap<String, Key>) -> Result<BTreeMap<String, Measured>> {
        let mut all = BTreeMap::new();
        for run in self.list()?.filter(|other| other.id <= run.id && other.head.same_nodes_as.is_none()) {
            if keys.is_empty() {
                break;
            }
            let mut metrics = None;
            for (node, record) in run.nodes().unwrap_or_default() {
                let ran = matches!(record.how, None | Some(How::Ran | How::Resumed));
                if ran && keys.get(&node) == Some(&record.key) {
                    keys.remove(&node);
                    let metrics = metrics.get_or_insert_with(|| run.metrics().unwrap_or_default());
                    all.extend(metrics.remove(&node).map(|measured| (node, measured)));
                }
            }
        }
        Ok(all)
    }

    /// The newest run of a pipeline file (absolute).
    ///
    /// # Errors
    /// The directory of runs cannot be read.
    pub fn last(&self, pipeline: &Path) -> Result<Option<RunInfo>> {
        Ok(self.of(pipeline)?.next())
    }

    /// The runs of a pipeline file (absolute), the newest first, read as they are asked for.
    pub(crate) fn of(&self, pipeline: &Path) -> Result<impl Iterator<Item = RunInfo>> {
        Ok(self.list()?.filter(move |run| run.head.file == pipeline))
    }

    /// The keys of the results that the last runs used: of each pipeline with its profile and what was set, the newest
    /// run and the newest that was whole, if they began within `age`.
    ///
    /// # Errors
    /// The directory of runs cannot be read.
    pub fn used_within(&self, age: Duration) -> Result<HashSet<Key>> {
        let since = now() - age.as_secs_f64();
        let (mut seen, mut keys) = (HashSet::new(), HashSet::new());
        for run in self.all()? {
            if run.head.started < since {
                continue;
            }
            let RunHead { file, profile, set, ok, .. } = &run.head;
            let newest = seen.insert((file.clone(), profile.clone(), set.clone(), false));
            let newest_whole = *ok == Some(true) && seen.insert((file.clone(), profile.clone(), set.clone(), true));
            if newest || newest_whole {
                // What cannot be read any more keeps nothing.
                keys.extend(run.nodes().unwrap_or_default().into_values().map(|node| node.key));
            }
        }
        Ok(keys)
    }

    /// Where the files of a run are.
    pub(crate) fn dir(&self, id: &str) -> PathBuf {
        self.runs.join(id)
    }

    /// For what is on its way.
    pub(crate) fn tmp(&self) -> PathBuf {
        self.runs.with_file_name("tmp")
    }

    /// The newest first.
    pub(crate) fn ids(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.runs).with_context(|| format!("cannot read {}", self.runs.display()))?;
        let mut ids: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        Ok(ids)
    }

    /// One of `ids`, which are all. A few of them are not worth opening the index for.
    fn nth(&self, ids: &[String], nth: usize) -> Result<RunInfo> {
        let id = &ids[nth];
        if nth < FEW {
            return self.read(id);
        }
        if let Some(head) = self.heads.get(ids, id) {
            return Ok(RunInfo { id: id.clone(), dir: self.dir(id), head, alive: false });
        }
        let run = self.read(id)?;
        self.heads.learn(&run.head);
        Ok(run)
    }

    fn read(&self, id: &str) -> Result<RunInfo> {
        let dir = self.dir(id);
        let bytes = fs::read(dir.join(RUN)).with_context(|| format!("there is no run `{id}`"))?;
        let head: RunHead = serde_json::from_slice(&bytes).with_context(|| format!("the record of run `{id}`"))?;
        let alive = head.finished.is_none() && is_alive(&dir.join(ALIVE), &head);
        Ok(RunInfo { id: id.to_owned(), dir, head, alive })
    }
}

/// The node that a line of events is about, if it is plain to see there.
fn plain_node(line: &[u8]) -> Option<&str> {
    const NODE: &[u8] = b"\"node\":\"";
    let begin = line.windows(NODE.len()).position(|part| part == NODE)? + NODE.len();
    let end = begin + line[begin..].iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    if line[end] == b'"' { str::from_utf8(&line[begin..end]).ok() } else { None }
}

/// `last` → 0, `last-2` → 2.
fn steps_back(id: &str) -> Option<usize> {
    let rest = id.strip_prefix("last")?;
    if rest.is_empty() { Some(0) } else { rest.strip_prefix('-')?.parse().ok() }
}

/// Whether the process of a run lives. On its own machine its lock says so. Elsewhere, or where the file system has no
/// locks, not to see a lock says nothing: then the time of the file does, which the process renews.
fn is_alive(lock: &Path, head: &RunHead) -> bool {
    let Ok(file) = File::open(lock) else { return false };
    // Shared, so that two who look do not take each other for the run.
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => true,
        Ok(()) if head.host == host() => false,
        Ok(()) | Err(TryLockError::Error(_)) => {
            let modified = file.metadata().and_then(|file| file.modified());
            // A clock that is behind that of the file's server makes it the future.
            modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < HEART_STOPS) || at.elapsed().is_err())
        }
    }
}

impl RunInfo {
    /// What happened, in order. A line that is not whole (the run goes on, or was killed) ends it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn events(&self) -> Result<Vec<Record>> {
        let text = self.read_events()?;
        let lines = text.split(|&byte| byte == b'\n');
        Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }

    /// Nothing if nothing happened.
    fn read_events(&self) -> Result<Vec<u8>> {
        let path = self.events_path();
        match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            read => read.with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// What became of each node, also of a run that found all as another had left it.
    ///
    /// # Errors
    /// The record cannot be read.
    pub fn nodes(&self) -> Result<BTreeMap<String, NodeRecord>> {
        self.nodes_of(&|_| true)
    }

    /// As [`RunInfo::nodes`], of nodes that are asked for; a few of many are found sooner than all.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn nodes_of(&self, is_asked: &(dyn Fn(&str) -> bool + Sync)) -> Result<BTreeMap<String, NodeRecord>> {
        if let Some(other) = &self.head.same_nodes_as {
            let dir = self.dir.with_file_name(other);
            let same = Self { id: other.clone(), dir, head: RunHead::default(), alive: false };
            let mut nodes = same.nodes_of(is_asked)?;
            for node in nodes.values_mut() {
                node.how = node.how.map(|how| if how == How::Off { how } else { How::Cached });
                node.seconds = 0.0;
            }
            return Ok(nodes);
        }
        let mut nodes = BTreeMap::new();
        let text = self.read_events()?;
        let lines: Vec<&[u8]> = text.split(|&byte| byte == b'\n').collect();
        let told = |line| {
            let told = || serde_json::from_slice::<Told>(line).ok();
            if plain_node(line).is_none_or(is_asked) { told() } else { None }
        };
        let told: Vec<Told> = lines.into_par_iter().with_min_len(512).filter_map(told).collect();
        for told in told {
            let Some(node) = told.node.filter(|node| is_asked(node)) else { continue };
            let seconds = told.seconds.unwrap_or_default();
            match (&*told.event, told.key, told.how, told.digest) {
                ("started", Some(key), ..) => {
                    nodes.insert(
                        node,
                        NodeRecord { key, how: None, digest: None, seconds: 0.0, bytes: 0, failed: false },
                    );
                }
                ("finished", Some(key), Some(how), Some(digest)) => {
                    let bytes = told.bytes.unwrap_or_default();
                    nodes.insert(
                        node,
                        NodeRecord { key, how: Some(how), digest: Some(digest), seconds, bytes, failed: false },
                    );
                }
                ("failed", ..) => {
                    if let Some(node) = nodes.get_mut(&node) {
                        (node.seconds, node.failed) = (seconds, true);
                    }
                }
                _ => {}
            }
        }
        Ok(nodes)
    }

    /// What each node measured: of everything the newest, with the last step.
    ///
    /// # Errors
    /// The record cannot be read.
    pub fn metrics(&self) -> Result<BTreeMap<String, Measured>> {
        let mut metrics: BTreeMap<String, Measured> = BTreeMap::new();
        for record in self.events()? {
            if let Event::Metrics { node, step, values } = record.event {
                let measured = metrics.entry(node).or_default();
                measured.step = step;
                measured.values.extend(values);
            }
        }
        Ok(metrics)
    }

    /// The stages of the run.
    #[must_use]
    pub fn stages(&self) -> Vec<StageHead> {
        let Some(other) = &self.head.same_nodes_as else { return self.head.stages.clone() };
        let bytes = fs::read(self.dir.with_file_name(other).join(RUN)).unwrap_or_default();
        serde_json::from_slice(&bytes).map_or_else(|_| Vec::new(), |head: RunHead| head.stages)
    }

    /// Which of the run's nodes a name means: a stage, `tokens[2]` by its number, `train[lr=1e-3]` by words of its name.
    pub fn chooser(&self, name: &str) -> impl Fn(&str) -> bool + use<> {
        let asked = bracket(name).map(|(stage, inside)| (stage.to_owned(), inside.trim().to_owned()));
        // In a matrix a number is a place among all of its combinations.
        let nth = asked.as_ref().and_then(|(stage, inside)| {
            let nth: usize = inside.parse().ok()?;
            self.stages().into_iter().find(|known| known.name == *stage)?.labels.into_iter().nth(nth)
        });
        let name = name.to_owned();
        move |node| match (bracket(node), &asked) {
            _ if node == name => true,
            (Some((stage, _)), None) => stage == name,
            (Some((stage, have)), Some((of, inside))) if stage == of => match &nth {
                Some(label) => label == have,
                None => chooses(inside, have),
            },
            _ => false,
        }
    }

    /// Whether the stage of a name is part of the run.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let stage = bracket(name).map_or(name, |(stage, _)| stage);
        self.stages().iter().any(|known| known.name == stage)
    }

    /// How many nodes of the run a name means.
    #[must_use]
    pub fn count(&self, name: &str) -> usize {
        let stages = self.stages();
        let (stage, is_all) = bracket(name).map_or((name, true), |(stage, _)| (stage, false));
        let Some(stage) = stages.iter().find(|known| known.name == stage) else { return 1 };
        let is_it = self.chooser(name);
        let chosen = stage.labels.iter().filter(|label| is_it(&format!("{}[{label}]", stage.name))).count();
        if is_all { stage.nodes } else { chosen.max(1) }
    }

    /// Where its events are: a [`Record`] a line, the last of which may be on its way. Not there before something happens.
    #[must_use]
    pub fn events_path(&self) -> PathBuf {
        self.dir.join(EVENTS)
    }

    /// Where the log of a node is, if it wrote one: plain lines.
    #[must_use]
    pub fn log_path(&self, node: &str) -> PathBuf {
        log_path(&self.dir, node, None)
    }

    /// Where the log of one of its ranks is, if it has several and this one wrote something.
    #[must_use]
    pub fn rank_log_path(&self, node: &str, rank: usize) -> PathBuf {
        log_path(&self.dir, node, Some(rank))
    }
}
