//! [`Track`]: what is known of submitted tasks, and what follows for their nodes. Asks nobody and submits nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use flow_cache::{Cache, Outcome, Unusable};
use flow_core::{Cancelled, Event, How, Level};

use super::{
    adopt::Found,
    item::Item,
    scheduler::{Answer, End, Seen},
    spec::{Jobs, Maker},
    stream::{Ending, Line, Tail, Word},
};

/// Of more tasks than this it is not said what each waits for.
pub const FEW: usize = 50;
/// So many files are looked at a turn.
const FILES: usize = 256;
/// A job that its scheduler does not name so many times in a row is not known any more.
const ABSENT: u32 = 3;
/// So long what another machine wrote may be on its way here: on a disk of this machine, and on a network's.
const LAG: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(65)];
/// So many jobs of a node may vanish.
const UNKNOWN: u32 = 3;
/// So many last lines of what a job's shell printed are shown.
const LINES: usize = 12;

/// What becomes of a node.
pub enum Fate {
    /// Its result is there.
    Made(Outcome, How),
    /// It failed; with the id of a job that still waits for what will never be.
    Failed(anyhow::Error, Option<String>),
    /// It goes on in another job, and why.
    Again(String),
    /// The job that another run submitted for it is over: it has one submitted as if that had never been.
    Over,
}

/// Nodes of a task and who makes them.
type Nodes = Vec<(Arc<Item>, Maker)>;

struct Task {
    executor: String,
    id: String,
    tail: Tail,
    log: PathBuf,
    nodes: BTreeMap<String, (Arc<Item>, Maker)>,
    /// What it said of its nodes, and when that was heard.
    said: BTreeMap<String, (Ending, Instant)>,
    seen: Option<Seen>,
    absent: u32,
    ended: Option<(End, Instant)>,
    /// It has begun, at least once.
    began: bool,
    /// Another run submitted it: it is not this one's to end.
    foreign: bool,
    /// It is not known yet whether it lives.
    adopted: bool,
    /// The nodes of which it is known that they began.
    started: BTreeSet<String>,
    /// Where its batch is.
    dir: PathBuf,
}

/// How it is to ask a scheduler.
#[derive(Default)]
struct Asked {
    last: Option<Instant>,
    silent: Option<Instant>,
}

/// All tasks that are not settled.
#[derive(Default)]
pub struct Track {
    tasks: BTreeMap<(String, usize), Task>,
    asked: HashMap<String, Asked>,
    news: Vec<(String, String)>,
    /// Batches of this run: how many of their tasks are open, and whether all went well.
    own: HashMap<String, (usize, bool)>,
    over: Vec<String>,
    /// Where the last look at the files ended.
    at: Option<(String, usize)>,
    lag: Option<Duration>,
}

impl Track {
    /// Nothing is open.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// A node was submitted with a task.
    pub fn add(&mut self, item: Arc<Item>, maker: Maker, jobs: &Jobs, id: &str) {
        if !self.tasks.contains_key(&(maker.batch.clone(), maker.task)) {
            self.own.entry(maker.batch.clone()).or_insert((0, true)).0 += 1;
        }
        self.insert(item, maker, jobs, id, false);
    }

    /// A node that another run submitted.
    pub fn adopt(&mut self, item: Arc<Item>, jobs: &Jobs, found: Found) {
        self.insert(item, found.maker, jobs, &found.id, true);
    }

    fn insert(&mut self, item: Arc<Item>, maker: Maker, jobs: &Jobs, id: &str, adopted: bool) {
        let dir = jobs.batch(&maker.batch);
        self.lag.get_or_insert_with(|| lag(&dir));
        let task = self.tasks.entry((maker.batch.clone(), maker.task)).or_insert_with(|| Task {
            executor: item.shape.executor.clone(),
            id: id.to_owned(),
            tail: Tail::new(dir.join(format!("{}.jsonl", maker.task))),
            log: dir.join(format!("{}.log", maker.task)),
            nodes: BTreeMap::new(),
            said: BTreeMap::new(),
            seen: None,
            absent: 0,
            ended: None,
            began: false,
            foreign: adopted,
            adopted,
            started: BTreeSet::new(),
            dir,
        });
        task.nodes.insert(item.node.clone(), (item, maker));
    }

    /// What is to be asked of each executor.
    pub fn to_ask(&self) -> Vec<(String, Vec<String>)> {
        let mut ids: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for task in self.tasks.values() {
            ids.entry(&task.executor).or_default().push(task.id.clone());
        }
        ids.into_iter().map(|(executor, ids)| (executor.to_owned(), ids)).collect()
    }

    /// Whether an executor may be asked again, which it is then.
    pub fn is_time(&mut self, executor: &str, poll: Duration) -> bool {
        let asked = self.asked.entry(executor.to_owned()).or_default();
        let due = asked.last.is_none_or(|last| last.elapsed() >= poll);
        if due {
            asked.last = Some(Instant::now());
        }
        due
    }

    /// Takes note of an answer; what is to be said of the scheduler itself.
    pub fn answered(&mut self, executor: &str, name: &str, answer: Result<Answer>) -> Option<(Level, String)> {
        let asked = self.asked.entry(executor.to_owned()).or_default();
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.is::<Cancelled>() => return None,
            Err(error) if asked.silent.is_none() => {
                asked.silent = Some(Instant::now());
                let text = format!("{name} does not answer; its jobs may go on, and it is asked again: {error:#}");
                return Some((Level::Warning, text));
            }
            Err(_) => return None,
        };
        let silent = asked.silent.take();
        let few = self.tasks.len() <= FEW;
        for task in self.tasks.values_mut().filter(|task| task.executor == executor) {
            match answer.seen.remove(&task.id) {
                Some(Seen::Ended(end)) => drop(task.ended.get_or_insert((end, Instant::now()))),
                Some(seen) => {
                    (task.absent, task.ended, task.adopted) = (0, None, false);
                    if task.seen.as_ref() != Some(&seen) {
                        if let Seen::Pending(reason) = &seen
                            && reason != "None"
                            && few
                        {
                            let text = format!("job {} of {name} waits ({reason})", task.id);
                            self.news.extend(task.nodes.keys().map(|node| (node.clone(), text.clone())));
                        }
                        task.seen = Some(seen);
                    }
                }
                None if !answer.complete => {}
                None => {
                    task.absent += 1;
                    if task.absent >= ABSENT {
                        let end = End::Unknown(format!("{name} does not know the job any more"));
                        task.ended.get_or_insert((end, Instant::now()));
                    }
                }
            }
        }
        let silent = silent?.elapsed().as_secs();
        Some((Level::Info, format!("{name} answers again, after {silent} s")))
    }

    /// What nodes wait for, where that is new.
    pub fn take_news(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.news)
    }

    /// What jobs said since the last time; of many jobs it is some after the other.
    pub fn read(&mut self) -> Vec<(Arc<Item>, Event)> {
        let from = self.at.take().unwrap_or_default();
        let (behind, before) = (self.tasks.range(from.clone()..), self.tasks.range(..from));
        let order: Vec<(String, usize)> = behind.chain(before).map(|(key, _)| key).take(FILES + 1).cloned().collect();
        self.at = order.get(FILES).cloned();
        let mut events = Vec::new();
        for key in order.into_iter().take(FILES) {
            let Some(task) = self.tasks.get_mut(&key) else { continue };
            loop {
                let (lines, more) = task.tail.read();
                for line in lines {
                    task.hear(line, &mut events);
                }
                if !more {
                    break;
                }
            }
        }
        events
    }

    /// What became of nodes by now.
    pub fn settle(&mut self, cache: &Cache) -> Vec<(Arc<Item>, Maker, Fate)> {
        let lag = self.lag.unwrap_or(LAG[0]);
        let mut settled = Vec::new();
        let mut empty = Vec::new();
        for (key, task) in &mut self.tasks {
            let nodes: Vec<String> = match task.ended {
                Some((_, at)) if at.elapsed() >= lag => task.nodes.keys().cloned().collect(),
                _ if task.is_stuck() => task.nodes.keys().cloned().collect(),
                _ => task.said.keys().filter(|node| task.nodes.contains_key(*node)).cloned().collect(),
            };
            for node in nodes {
                let item = Arc::clone(&task.nodes[&node].0);
                let Some(fate) = task.fate(&item, cache, lag) else { continue };
                if let Some((_, good)) = self.own.get_mut(&key.0) {
                    *good &= matches!(fate, Fate::Made(..));
                }
                if let Some((item, maker)) = task.nodes.remove(&node) {
                    settled.push((item, maker, fate));
                }
            }
            if task.nodes.is_empty() {
                empty.push(key.clone());
            }
        }
        empty.into_iter().for_each(|key| self.drop_task(&key));
        settled
    }

    fn drop_task(&mut self, key: &(String, usize)) {
        self.tasks.remove(key);
        if let Some((open, good)) = self.own.get_mut(&key.0) {
            *open -= 1;
            if *open == 0 && *good {
                self.over.push(key.0.clone());
            }
        }
    }

    /// Batches of this run that are nobody's any more.
    pub fn take_over(&mut self) -> Vec<String> {
        std::mem::take(&mut self.over)
    }

    /// Takes out the tasks of this run that have not begun: by executor, with their ids.
    pub fn take_pending(&mut self) -> Vec<(String, Vec<String>, Nodes)> {
        let waits = |task: &Task| !task.began && !matches!(task.seen, Some(Seen::Running(_))) && task.ended.is_none();
        self.take_those(|task| !task.foreign && waits(task))
    }

    /// Takes out all tasks; the ids are those that this run submitted.
    pub fn take_all(&mut self) -> Vec<(String, Vec<String>, Nodes)> {
        self.take_those(|_| true)
    }

    fn take_those(&mut self, wanted: impl Fn(&Task) -> bool) -> Vec<(String, Vec<String>, Nodes)> {
        let keys: BTreeSet<_> =
            self.tasks.iter().filter(|(_, task)| wanted(task)).map(|(key, _)| key.clone()).collect();
        let mut taken: BTreeMap<String, (Vec<String>, Nodes)> = BTreeMap::new();
        for key in keys {
            let Some(task) = self.tasks.remove(&key) else { continue };
            self.own.remove(&key.0);
            let (ids, nodes) = taken.entry(task.executor).or_default();
            ids.extend((!task.foreign).then_some(task.id));
            nodes.extend(task.nodes.into_values());
        }
        taken.into_iter().map(|(executor, (ids, nodes))| (executor, ids, nodes)).collect()
    }
}

impl Task {
    fn hear(&mut self, line: Line, events: &mut Vec<(Arc<Item>, Event)>) {
        match line {
            Line::Word(Word::Began { .. }) => {
                self.began = true;
                // It was started again: what stopped it before is over.
                self.said.retain(|_, (end, _)| !matches!(end, Ending::Stopped | Ending::Untouched));
            }
            Line::Word(Word::Ended { node, end }) => drop(self.said.insert(node, (end, Instant::now()))),
            Line::Event(record) => {
                if let Event::Started { node, .. } = &record.event {
                    self.started.insert(node.clone());
                }
                let item = record.event.node().and_then(|node| self.nodes.get(node));
                events.extend(item.map(|(item, _)| (Arc::clone(item), record.event.clone())));
            }
        }
    }

    fn is_stuck(&self) -> bool {
        matches!(self.seen, Some(Seen::Stuck(_)))
    }

    /// What becomes of a node, if that is known.
    fn fate(&self, item: &Item, cache: &Cache, lag: Duration) -> Option<Fate> {
        let id = &self.id;
        let is_cancelled = || cancelled(&self.dir, &self.nodes[&item.node].1);
        let again = |why: String| match item.resumable || !self.started.contains(&item.node) {
            _ if is_cancelled() => Fate::Failed(anyhow!("job {id} was cancelled"), None),
            true => Fate::Again(why),
            false => Fate::Failed(
                anyhow!("{why}; a stage of this kind begins from nothing each time: give it more (`resources.time`)"),
                None,
            ),
        };
        let found = || match cache.lookup(&item.job.work.run_parts().key()) {
            Ok(outcome) => outcome.map(Ok),
            Err(error) => Some(Err(error)),
        };
        match self.said.get(&item.node) {
            Some((Ending::Made(how), heard)) => match found() {
                Some(Ok(outcome)) => return Some(Fate::Made(outcome, *how)),
                Some(Err(error)) => return Some(Fate::Failed(error, None)),
                // The record may be on its way.
                None if heard.elapsed() < lag.max(Duration::from_secs(30)) => return None,
                None => {
                    let error =
                        anyhow!("job {id} has made it, and it is not in the cache: do both see the same directory?");
                    return Some(Fate::Failed(error, None));
                }
            },
            Some((Ending::Failed { causes, unusable }, _)) => {
                return Some(Fate::Failed(told(causes, *unusable, id), None));
            }
            Some((Ending::Limit, _)) => return Some(again(format!("job {id} reached its time limit"))),
            // Its job had others before it. If it was cancelled the scheduler says so.
            Some((Ending::Untouched, _)) if self.ended.is_none() => return None,
            Some((Ending::Untouched, _)) if !matches!(self.ended, Some((End::Cancelled, _))) => {
                return Some(again(format!("job {id} had to end before its turn")));
            }
            // Who stopped it the scheduler says.
            Some((Ending::Stopped | Ending::Untouched, _)) | None => {}
        }
        if let Some(Seen::Stuck(reason)) = &self.seen {
            return Some(Fate::Failed(anyhow!("job {id} can never start: {reason}"), Some(id.clone())));
        }
        let (end, _) = self.ended.as_ref().filter(|(_, at)| at.elapsed() >= lag)?;
        if !item.is_forced()
            && let Some(Ok(outcome)) = found()
        {
            return Some(Fate::Made(outcome, How::Ran));
        }
        let stopped = self.said.contains_key(&item.node);
        Some(match end {
            _ if is_cancelled() => Fate::Failed(anyhow!("job {id} was cancelled"), None),
            // Another run that waited for it may have taken all there was to know of it.
            _ if self.adopted || (self.foreign && !self.dir.exists()) => Fate::Over,
            End::Limit => again(format!("job {id} reached its time limit")),
            End::Lost(why) => Fate::Again(format!("job {id} is lost: {why}")),
            // It may have been its machine, or the program: that is tried a few times only.
            End::Unknown(why) if self.began && self.nodes[&item.node].1.part < UNKNOWN => {
                again(format!("job {id} is gone: {why}"))
            }
            End::Memory => {
                Fate::Failed(anyhow!("job {id} was ended for want of memory: give it more (`resources.memory`)"), None)
            }
            End::Cancelled => Fate::Failed(anyhow!("job {id} was cancelled"), None),
            End::Itself(_) if stopped => again(format!("job {id} was told to stop")),
            End::Itself(how) | End::Unknown(how) => {
                let last = last_lines(&self.log);
                let error = if last.is_empty() { anyhow!("its log is empty") } else { anyhow!("its log ends:{last}") };
                Fate::Failed(error.context(format!("job {id} ended without a word of its node ({how})")), None)
            }
        })
    }
}

/// Somebody has ended a job on purpose: the mark of `flow cancel`.
pub fn cancelled(dir: &Path, maker: &Maker) -> bool {
    mark(dir, maker).exists()
}

/// Where that stands.
pub fn mark(dir: &Path, maker: &Maker) -> PathBuf {
    dir.join(format!("{}.cancelled", maker.task))
}

/// What a job said of a failure.
fn told(causes: &[String], unusable: bool, id: &str) -> anyhow::Error {
    let mut inwards = causes.iter().rev().cloned();
    let innermost = inwards.next().unwrap_or_else(|| format!("job {id} failed"));
    let error = inwards.fold(anyhow!(innermost), anyhow::Error::context);
    if unusable { error.context(Unusable::new(format!("in job {id}"))) } else { error }
}

fn last_lines(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| format!("\n  {line}")).collect()
}

/// How late what others write may be seen in a directory: NFS, Lustre, GPFS and BeeGFS keep what they know for a while.
pub fn lag(dir: &Path) -> Duration {
    const SHARED: [i64; 4] = [0x6969, 0x0bd0_0bd0, 0x4750_4653, 0x1983_0326];
    let shared = rustix::fs::statfs(dir).is_ok_and(|fs| SHARED.contains(&{ fs.f_type }));
    LAG[usize::from(shared)]
}
