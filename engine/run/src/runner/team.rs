//! A run and the team's cache: what the team knows is asked for while it is decided, many nodes at once, and is enough
//! for keys. Files come only for who needs them. None of it takes anything of the pools, or keeps the loop.
//!
//! A node that is asked for is *away*. The answer goes to the decider, and the node is decided again: by its record it
//! is absent then as a freed intermediate is (see `temp`), and once its files came it is a hit. What cannot be had is
//! made here.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use flow_cache::{Outcome, TeamResult};
use flow_core::{Cancel, Event, How, Key, Sink as _, Unit};

use super::{Done, Runner};
use crate::{decide::Work, graph::NodeId, team::Push};

/// How often it is said how far a download is.
const SAY: Duration = Duration::from_secs(1);
/// A download tells of so many bytes at least.
const STEP: u64 = 256 << 10;

/// What the loop hears.
pub(super) enum Word {
    /// A thread is done with its node.
    Done(Done),
    /// A node that runs elsewhere has begun.
    Began(NodeId),
    /// The run was interrupted, and these jobs go on: executor and id.
    Left(Vec<(String, String)>),
    /// What the team knows of the result of a node.
    Told(NodeId, Key, Option<Arc<TeamResult>>),
    /// So many more bytes of a node came.
    Came(NodeId, u64),
    /// All of them, or why not.
    Fetched(NodeId, Key, Result<Outcome>),
}

/// What a run has to do with the team's cache.
#[derive(Default)]
pub(super) struct Team {
    /// Nodes that are asked for.
    asking: usize,
    /// Nodes whose files are to be fetched.
    queue: Vec<(NodeId, Key, Arc<TeamResult>)>,
    fetching: HashMap<NodeId, Fetch>,
    /// Nodes whose files came.
    came: HashSet<NodeId>,
    cancel: Cancel,
}

/// A node whose files are on their way.
struct Fetch {
    came: u64,
    total: u64,
    said: Instant,
}

impl Team {
    /// It is not known yet what there is.
    pub fn is_asking(&self) -> bool {
        self.asking > 0
    }

    /// Files are to be fetched.
    pub fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    /// A node waits for its files, which it needs to do nothing else.
    pub fn fetches(&self, id: NodeId) -> bool {
        self.fetching.contains_key(&id) || self.queue.iter().any(|(queued, ..)| *queued == id)
    }

    /// How the result of a node came that is here.
    pub fn how(&self, id: NodeId) -> How {
        if self.came.contains(&id) { How::Remote } else { How::Cached }
    }

    /// What is on its way is nobody's any more.
    pub fn leave(&self) {
        self.cancel.set();
    }
}

impl Runner<'_> {
    /// Of what was given in this run the team also gets the records of all that it is made of, as far as that was there
    /// before: else nobody could make its key. What the team has is not given again.
    pub(super) fn share_what_it_is_made_of(&self) {
        let (Some(pushes), Some(remote)) = (&self.env.pushes, self.env.cache.remote()) else { return };
        let graph = self.env.project.graph();
        let how = |id: NodeId| self.ends.get(&id).map(|(how, _)| *how);
        let ran = |id: NodeId| matches!(how(id), Some(How::Ran | How::Resumed)) && graph.common(id).cache;
        let given = (0..pushes.len()).filter(|&id| pushes[id] == Push::Whole && ran(id));
        let needed = graph.closure(given, true);
        let was_there = |id: &NodeId| needed[*id] && matches!(how(*id), Some(How::Cached | How::Shared));
        let keys = (0..pushes.len()).filter(was_there).flat_map(|id| self.decider.keys(id));
        keys.for_each(|key| remote.push(key, true));
    }

    pub(super) fn hear(&mut self, word: Word) {
        match word {
            Word::Done(done) => self.done(done),
            Word::Began(id) => self.began(id),
            Word::Left(jobs) => self.summary.left.extend(jobs),
            Word::Told(id, key, answer) => {
                self.team.asking -= 1;
                self.decider.told(key, answer);
                self.sched.come_back(id);
            }
            Word::Came(id, bytes) => self.say_came(id, bytes),
            Word::Fetched(id, key, outcome) => {
                self.team.fetching.remove(&id);
                // Either way there is nothing more to be had.
                self.decider.told(key, None);
                match outcome {
                    Ok(_) => drop(self.team.came.insert(id)),
                    Err(_) if self.cancel.is_set() => {}
                    Err(error) if self.selection.may_run[id] => {
                        self.warn(format!("{error:#}: `{}` is made here", self.node(id)));
                    }
                    Err(error) => self.warn(format!("{error:#}")),
                }
                self.sched.come_back(id);
            }
        }
    }

    /// Asks the team for an open node that is not here, or for its files. Whether there is something to wait for.
    pub(super) fn ask_team(&mut self, id: NodeId, work: &Work) -> bool {
        if self.cancel.is_set() {
            return false;
        }
        if let Some(remote) = self.decider.to_ask(work) {
            let (key, sender) = (work.key, self.sender.clone());
            self.team.asking += 1;
            self.sched.send_away(id);
            remote.ask(key, move |answer| {
                // A run that was interrupted hears no more.
                sender.send(Word::Told(id, key, answer)).ok();
            });
            return true;
        }
        let Some(result) = self.decider.source(work) else { return false };
        self.team.queue.push((id, work.key, Arc::clone(result)));
        self.sched.send_away(id);
        true
    }

    /// Starts to fetch what is to be fetched.
    pub(super) fn fetch(&mut self) {
        for (id, key, result) in std::mem::take(&mut self.team.queue) {
            // It was asked.
            let Some(remote) = self.env.cache.remote() else { continue };
            let total = result.to_fetch(self.env.cache);
            self.team.fetching.insert(id, Fetch { came: 0, total, said: Instant::now() });
            let reason = "it comes from the team's cache".to_owned();
            self.recorder.emit(Event::Waiting { node: self.node(id).to_owned(), reason });
            let (came, fetched) = (self.sender.clone(), self.sender.clone());
            let untold = AtomicU64::new(0);
            let progress = move |bytes| {
                if untold.fetch_add(bytes, Ordering::Relaxed) + bytes >= STEP {
                    came.send(Word::Came(id, untold.swap(0, Ordering::Relaxed))).ok();
                }
            };
            remote.pull(result, progress, &self.team.cancel, move |outcome| {
                fetched.send(Word::Fetched(id, key, outcome)).ok();
            });
        }
    }

    fn say_came(&mut self, id: NodeId, bytes: u64) {
        let node = self.node(id).to_owned();
        let Some(fetch) = self.team.fetching.get_mut(&id) else { return };
        fetch.came += bytes;
        if fetch.said.elapsed() >= SAY {
            fetch.said = Instant::now();
            let (done, total) = (fetch.came, Some(fetch.total.max(fetch.came)));
            let note = Some("from the team's cache".to_owned());
            self.recorder.emit(Event::Progress { node, done, total, unit: Unit::Bytes, note });
        }
    }
}
