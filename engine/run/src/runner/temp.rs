//! Intermediates whose files are not here. A stage with `temp = true` has them freed as soon as all that takes them is
//! done; what the team has comes only when it is needed.
//!
//! The record is here, so that the keys of what was made from it can be made. The node is *absent*: as good as done
//! while everything that takes from it is in the cache, and fetched or made again as soon as something is not.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use flow_cache::Outcome;
use flow_core::{How, Key, Remarks};

use super::Runner;
use crate::{decide::Work, exec::Env, graph::NodeId, need::is_wanted, sched::State};

/// Looking for what may be freed reads every record, so it may take this part of the time.
const SHARE: u32 = 20;

/// What is known of intermediates in a run.
#[derive(Debug, Default)]
pub(super) struct Temps {
    /// What absent nodes gave, until they are made again.
    absent: BTreeMap<NodeId, Outcome>,
    /// Absent nodes that something needs after all.
    needed: HashSet<NodeId>,
    /// Nodes whose files went in this run: nothing needed them any more, or they were damaged.
    freed: BTreeSet<NodeId>,
    /// Something is decided again, and may need what seemed to be done with: nothing goes before the end, so that
    /// nothing is made for ever.
    keeps: bool,
    /// Nodes whose files can go.
    done_with: BTreeSet<NodeId>,
    /// When to look again.
    next: Option<Instant>,
}

impl Runner<'_> {
    /// What of this run takes the files of a node.
    fn takers(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        self.env.project.graph().takers(id).filter(|&taker| self.selection.wanted[taker])
    }

    /// Takes note of an open node whose files are not here; whether it can do without them for now.
    pub(super) fn can_be_absent(&mut self, id: NodeId, outcome: &Outcome, work: &Work) -> Result<bool> {
        let Env { project, placer, .. } = self.env;
        if self.temps.needed.contains(&id) || is_wanted(project.graph(), self.selection, placer, id, &outcome.tree)? {
            return Ok(false);
        }
        let outcome = match work.is_unpinned() {
            true => self.env.pin(work, outcome.clone(), Remarks::default())?,
            false => outcome.clone(),
        };
        self.decider.set(id, outcome.key, Arc::clone(&outcome.tree));
        self.temps.absent.insert(id, outcome);
        Ok(true)
    }

    /// The absent nodes that an open node takes from.
    pub(super) fn absent_inputs(&self, id: NodeId) -> Vec<NodeId> {
        let graph = self.env.project.graph();
        graph.nodes[id].dependencies.iter().copied().filter(|from| self.takes_absent(id, *from)).collect()
    }

    fn takes_absent(&self, id: NodeId, from: NodeId) -> bool {
        let absent = self.temps.absent.contains_key(&from) || self.temps.freed.contains(&from);
        absent && self.env.project.graph().takers(from).any(|taker| taker == id)
    }

    /// Has absent nodes fetched or made again; the open node that needs them waits until they are.
    pub(super) fn make_again(&mut self, id: NodeId, absent: &[NodeId]) -> Result<()> {
        for &from in absent {
            if matches!(self.sched.state(from), State::Failed | State::Blocked) {
                return Err(anyhow!("`{}` could not be made again", self.node(from)));
            }
            self.temps.needed.insert(from);
            // Else it is on its way already.
            if self.sched.state(from) == State::Done {
                self.sched.reopen(from);
            }
        }
        self.sched.follow(id, absent);
        Ok(())
    }

    /// Looks at what a node took that failed: whether some of it is not here any more, as it was damaged.
    pub(super) fn miss_inputs(&mut self, id: NodeId) -> bool {
        let Env { project, cache, .. } = self.env;
        let graph = project.graph();
        let takes = |from: &NodeId| graph.takers(*from).any(|taker| taker == id);
        let is_gone = |from: &NodeId| {
            let key = self.decider.result(*from).map(|(key, ..)| key);
            key.is_some_and(|key| matches!(cache.lookup(key), Ok(None)))
        };
        let dependencies = graph.nodes[id].dependencies.iter().copied();
        let gone: Vec<NodeId> = dependencies.filter(takes).filter(is_gone).collect();
        self.pass_on_warnings();
        let missed = !gone.is_empty();
        self.temps.freed.extend(gone);
        missed
    }

    /// A node's result is there, with its files.
    pub(super) fn is_present(&mut self, id: NodeId) {
        self.temps.absent.remove(&id);
        self.temps.freed.remove(&id);
    }

    /// A node is decided again.
    pub(super) fn undo_absent(&mut self, id: NodeId) {
        self.temps.absent.remove(&id);
        self.temps.keeps = true;
    }

    /// A node is done: what it alone still needed can go.
    pub(super) fn let_go(&mut self, id: NodeId) {
        let graph = self.env.project.graph();
        for &from in &graph.nodes[id].dependencies {
            if self.is_done_with(from) {
                self.temps.done_with.insert(from);
            }
        }
    }

    /// All that takes from a temp node is done, and also from nodes with the same result.
    fn is_done_with(&self, id: NodeId) -> bool {
        let graph = self.env.project.graph();
        let done = |id: NodeId| self.sched.state(id) == State::Done;
        let spent = |id: NodeId| {
            let mut takers = self.takers(id).peekable();
            graph.common(id).temp && !self.selection.named[id] && takers.peek().is_some() && takers.all(done)
        };
        if !done(id) || self.temps.absent.contains_key(&id) || !spent(id) {
            return false;
        }
        let Some(key) = self.decider.result(id).map(|(key, ..)| *key) else { return false };
        let mut same = (0..graph.nodes.len()).filter(|&id| self.decider.result(id).is_some_and(|(k, ..)| *k == key));
        same.all(spent)
    }

    /// Frees what can go. `now`: even if it was just done.
    pub(super) fn free(&mut self, now: bool) {
        let began = Instant::now();
        let rests = self.temps.keeps || self.temps.next.is_some_and(|next| began < next);
        if self.temps.done_with.is_empty() || (!now && rests) {
            return;
        }
        let keys = |id: &NodeId| self.decider.keys(*id);
        let keys: HashSet<Key> = self.temps.done_with.iter().flat_map(keys).collect();
        match self.env.cache.free(&keys) {
            Ok(Some(_)) => self.temps.freed.append(&mut self.temps.done_with),
            // Other flows are busy; what cannot be freed now is freed by the next run.
            Ok(None) => {}
            Err(error) => {
                self.temps.done_with.clear();
                self.warn(format!("{:#}", error.context("intermediates cannot be freed")));
            }
        }
        self.temps.next = Some(Instant::now() + began.elapsed().max(Duration::from_millis(1)) * SHARE);
    }

    /// Tells of the nodes that stayed absent.
    pub(super) fn tell_absent(&mut self) {
        for (id, outcome) in std::mem::take(&mut self.temps.absent) {
            if self.sched.state(id) == State::Done {
                self.have(id, &outcome, How::Cached, 0.0);
            }
        }
    }
}
