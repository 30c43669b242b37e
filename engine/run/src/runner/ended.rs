//! What became of a node, and of the run.

use std::{
    io::{self, ErrorKind},
    sync::Arc,
    time::{Duration, Instant},
};

use flow_cache::Unusable;
use flow_core::{Cancelled, Event, How, Sink as _};

use super::{Done, Fingerprint, Runner, Todo};
use crate::{
    exec::{Made, Tried},
    graph::NodeId,
    record::Ended,
    sched::State,
    summary::Summary,
};

/// The wait before the second try; it doubles with every further one, up to [`LONGEST_REST`].
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// The cache failed, or its disk is full, and not the stage: nothing else would fare better.
fn is_unusable(error: &anyhow::Error) -> bool {
    let is_full = |kind| matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    error.downcast_ref::<Unusable>().is_some()
        || error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|it| is_full(it.kind())))
}

impl Runner<'_> {
    pub(super) fn done(&mut self, done: Done) {
        let Done { id, made } = done;
        let Some(active) = self.active.remove(&id) else { return };
        self.errors.remove(&id);
        let before = match self.works.get(&id) {
            Some(Todo::Place(_, before)) => *before,
            _ => 0.0,
        };
        let seconds = before + active.began.elapsed().as_secs_f64();
        self.pass_on_warnings();
        if !matches!(made, Ok(Tried::Busy(_) | Tried::Unplaced(..))) {
            self.waits.forget(id);
        }
        let error = match made {
            Ok(Tried::Busy(wait)) => match self.wait_for(id, wait) {
                None => return,
                Some(error) => error,
            },
            Ok(Tried::Unplaced(made, wait)) => {
                self.is_made(id, &made);
                self.works.insert(id, Todo::Place(made, seconds));
                match self.wait_for(id, wait) {
                    None => return self.sched.lighten(id),
                    Some(error) => error.context("the result is in the cache, but cannot be put in its place"),
                }
            }
            Ok(Tried::Made(made)) => {
                self.is_made(id, &made);
                self.have(id, &made.outcome, made.how, seconds);
                self.sched.finished(id);
                self.let_go(id);
                return;
            }
            Err(error) => error,
        };
        let stopped = error.chain().any(<dyn std::error::Error>::is::<Cancelled>);
        if stopped && !active.timed_out {
            // Interrupted: what was done is kept for the next run, and nothing is to be said. Who waits for jobs elsewhere
            // may have seen it first.
            self.hear_interrupt();
            self.sched.failed(id);
            self.sched.take_blocked();
            return;
        }
        if self.sched.is_outdated(id) {
            // It failed with what is not its input any more.
            self.drop_work(id);
            self.say_failed(id, &error, seconds, Some(0.0));
            self.sched.finished(id);
            return;
        }
        let error = match self.env.project.graph().common(id).timeout {
            Some(timeout) if active.timed_out => error.context(format!("it took longer than {timeout:?}")),
            _ => error,
        };
        let retries = self.env.project.graph().common(id).retries;
        // Whoever takes what this one has damaged, be it the next try of this one, needs it made again.
        let damaged = matches!(self.works.get(&id), Some(Todo::Execute(_))) && self.miss_inputs(id);
        let tries = self.tries.entry(id).or_default();
        if *tries >= retries || !self.works.contains_key(&id) || self.sched.is_stopped() || is_unusable(&error) {
            return self.failed(id, &error, seconds);
        }
        let rest = FIRST_REST.saturating_mul(1 << (*tries).min(16)).min(LONGEST_REST);
        *tries += 1;
        self.resting.push((Instant::now() + rest, id));
        self.sched.rest(id);
        if damaged {
            self.sched.outdate(id);
        }
        self.say_failed(id, &error, seconds, Some(rest.as_secs_f64()));
        self.errors.insert(id, (error, seconds));
    }

    /// A node's work is done, if it had any.
    fn is_made(&mut self, id: NodeId, made: &Made) {
        if let Some(Todo::Execute(work)) = self.works.remove(&id) {
            self.made.insert(work.run_parts().key(), made.outcome.clone());
        }
    }

    /// A node failed for good.
    pub(super) fn failed(&mut self, id: NodeId, error: &anyhow::Error, seconds: f64) {
        self.summary.failed += 1;
        self.say_failed(id, error, seconds, None);
        self.sched.failed(id);
        self.tell_blocked();
        self.summary.unusable |= is_unusable(error);
        if !self.options.keep_going || self.summary.unusable {
            self.sched.stop();
            self.cluster.stop();
            self.give_up();
        }
    }

    /// What was to be tried again is not any more.
    fn give_up(&mut self) {
        for (id, (error, seconds)) in std::mem::take(&mut self.errors) {
            if self.sched.state(id) == State::Resting {
                self.resting.retain(|(_, resting)| *resting != id);
                self.drop_work(id);
                self.failed(id, &error, seconds);
            }
        }
    }

    /// Tells what cannot run because something failed.
    pub(super) fn tell_blocked(&mut self) {
        for (blocked, by) in self.sched.take_blocked() {
            self.summary.blocked += 1;
            let (node, by) = (self.node(blocked).to_owned(), self.node(by).to_owned());
            self.recorder.emit(Event::Blocked { node, by });
        }
    }

    fn say_failed(&self, id: NodeId, error: &anyhow::Error, seconds: f64, retry_after: Option<f64>) {
        let node = self.node(id).to_owned();
        let log = self.recorder.tail(&node);
        // Of a time that is over it was told; how the stage was stopped then says nothing.
        let causes = error.chain().filter(|cause| !cause.is::<Cancelled>()).map(ToString::to_string).collect();
        self.recorder.emit(Event::Failed { node, causes, seconds, log, retry_after });
    }

    /// Removes what was exported before and is not made any more.
    pub(super) fn sweep(&mut self) {
        let is_placed = |id: NodeId| self.selection.may_run[id] && self.sched.state(id) == State::Done;
        let tree = |id: NodeId| self.decider.result(id).map(|(_, tree, _)| Arc::clone(tree));
        self.swept = self.env.placer.sweep(&|id| tree(id).filter(|_| is_placed(id)));
    }

    pub(super) fn end(&mut self) -> Summary {
        let wanted = || (0..self.selection.wanted.len()).filter(|&id| self.selection.wanted[id]);
        let complete = wanted().all(|id| self.sched.state(id) == State::Done);
        let mut summary = std::mem::take(&mut self.summary);
        for (how, cost) in self.ends.values() {
            match how {
                How::Ran | How::Resumed => summary.ran += 1,
                How::Cached | How::Shared | How::Remote => {
                    summary.skipped += 1;
                    summary.saved += cost;
                }
                How::Off => {}
            }
        }
        summary.ok = complete;
        summary.seconds = self.began.elapsed().as_secs_f64();
        let ended = if complete {
            let mut fingerprint = Fingerprint::default();
            wanted().for_each(|id| fingerprint.add(self.node(id), self.decider.result(id).map(|(key, ..)| key)));
            Ended::Whole(fingerprint.finish())
        } else {
            Ended::Partly
        };
        self.recorder.end(&summary, ended);
        summary.run = self.recorder.id();
        summary
    }
}
