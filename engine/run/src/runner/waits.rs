//! Nodes whose result another flow is making, or which need what it has: they are looked at again and again, and have
//! nothing meanwhile that others could use.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use flow_cache::Busy;
use flow_core::{Event, Sink as _};

use super::{LOOK, Runner};
use crate::{exec::Wait, graph::NodeId};

/// The first pause between two looks, which doubles up to the second.
const PAUSES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(200)];

/// What is waited for.
#[derive(Default)]
pub(super) struct Waits(HashMap<NodeId, Waiting>);

struct Waiting {
    since: Instant,
    pause: Duration,
    after: Option<Busy>,
}

impl Waits {
    /// Whether a node waits.
    pub(super) fn has(&self, id: NodeId) -> bool {
        self.0.contains_key(&id)
    }

    /// What a node was refused with.
    pub(super) fn after(&self, id: NodeId) -> Option<Busy> {
        self.0.get(&id)?.after.clone()
    }

    /// A node waits no longer.
    pub(super) fn forget(&mut self, id: NodeId) {
        self.0.remove(&id);
    }
}

impl Runner<'_> {
    /// Lets a node rest that was refused, and says so the first time. Why it has failed, if that was long enough.
    pub(super) fn wait_for(&mut self, id: NodeId, Wait { reason, after }: Wait) -> Option<anyhow::Error> {
        let now = Instant::now();
        if !self.waits.has(id) {
            self.recorder.emit(Event::Waiting { node: self.node(id).to_owned(), reason: reason.clone() });
        }
        let [first, longest] = PAUSES;
        let waiting = self.waits.0.entry(id).or_insert(Waiting { since: now, pause: first, after: None });
        if let Some(limit) = self.settings.wait.filter(|limit| now.duration_since(waiting.since) >= *limit) {
            self.waits.forget(id);
            let so_long = match limit {
                Duration::ZERO => "it is not to wait (`wait = 0`)".to_owned(),
                _ => format!("it waited for {limit:?}, which is the longest (`wait`)"),
            };
            return Some(anyhow!("{reason}").context(so_long));
        }
        self.resting.push((now + waiting.pause, id));
        waiting.pause = (waiting.pause * 2).min(longest);
        waiting.after = after;
        self.sched.wait(id);
        None
    }

    /// How long nothing happens for sure, unless somebody says so.
    pub(super) fn until_the_next_look(&self) -> Duration {
        let now = Instant::now();
        let next = self.resting.iter().map(|(until, _)| until.saturating_duration_since(now)).min();
        next.map_or(LOOK, |next| next.clamp(PAUSES[0], LOOK))
    }
}
