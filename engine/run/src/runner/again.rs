//! A node whose files were not here was made again, and gave other bytes than those that keys were made of: what was
//! decided by the old ones is decided again, so that all of a run is made of one version of everything.

use flow_core::Key;

use super::{Runner, Todo};
use crate::{graph::NodeId, sched::State};

impl Runner<'_> {
    /// Of a node that was done, and whose result is another one now.
    pub(super) fn decide_again(&mut self, id: NodeId) {
        let mut again = self.sched.untell(id);
        // Its record is the record of all that have its key.
        let now = self.decider.result(id).map(|(key, _, digest)| (*key, *digest));
        let stale = |other: &NodeId| {
            let known = self.decider.result(*other).map(|(key, _, digest)| (*key, *digest));
            let same = known.zip(now).is_some_and(|(known, now)| known.0 == now.0 && known.1 != now.1);
            same && self.sched.state(*other) == State::Done
        };
        let stale: Vec<NodeId> = (0..self.selection.wanted.len()).filter(stale).collect();
        for other in stale {
            again.extend(self.sched.untell(other));
            // One that another of them led to waits already.
            if self.sched.state(other) == State::Done {
                self.sched.reopen(other);
            }
            again.push(other);
        }
        if again.is_empty() {
            return;
        }
        let node = self.node(id);
        self.warn(format!("`{node}` gave other bytes than it had: what was made of those is decided again"));
        for id in again {
            self.reconsider(id);
        }
    }

    fn reconsider(&mut self, id: NodeId) {
        self.undo_absent(id);
        self.outdated.insert(id);
        self.asked.remove(&id);
        self.tries.remove(&id);
        // What runs ends as it began.
        if !matches!(self.sched.state(id), State::Running | State::Resting) {
            self.drop_work(id);
        }
    }

    /// What is not done in the end counts as nothing that was done, whatever it did with what it took before. What it has
    /// put outside of the cache then is there, and is said.
    pub(super) fn tell_outdated(&mut self) {
        for id in std::mem::take(&mut self.outdated) {
            let was_done = self.sched.state(id) != State::Done && self.ends.contains_key(&id);
            let graph = self.env.project.graph();
            let outs = graph.nodes[id].action.outs().iter().filter(|_| self.selection.may_run[id]);
            let export = graph.common(id).export_to().into_iter().filter(|_| self.selection.may_run[id]);
            let places: Vec<String> = outs.chain(export).map(|place| format!("`{place}`")).collect();
            if was_done && !places.is_empty() {
                let (node, places) = (self.node(id), places.join(", "));
                self.warn(format!("what is in {places} was made by `{node}` of what its inputs were before"));
            }
        }
        self.ends.retain(|id, _| self.sched.state(*id) == State::Done);
    }

    /// What is decided anew has no work of before: that was made of other keys.
    pub(super) fn drop_work(&mut self, id: NodeId) {
        self.waits.forget(id);
        if let Some(Todo::Execute(work)) = self.works.remove(&id) {
            let key: Key = work.run_parts().key();
            if self.makers.get(&key) == Some(&id) {
                self.makers.remove(&key);
            }
        }
    }
}
