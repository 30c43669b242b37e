//! What was made is given to the team. What the team has is another matter: `runner::team`.

use std::time::{Duration, Instant};

use flow_cache::{Cache, Outcome, Uploads};
use flow_core::{Cancel, Event, Level, Sink};

use globset::GlobSet;

use crate::{
    decide::Work,
    exec::{Env, Job},
    graph::{Graph, NodeId},
};

/// How often it is said how far something is.
const SAY: Duration = Duration::from_secs(2);

/// What of a node's result the team is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    /// Nothing.
    Nothing,
    /// Its record: keys of what is pushed are made of it.
    Record,
    /// All of it.
    Whole,
}

/// What of each node's result the team is given, if it is given the results of stages with these names.
pub fn pushes(graph: &Graph, names: &GlobSet) -> Vec<Push> {
    let whole = |id: &NodeId| names.is_match(&graph.stage_of(*id).name);
    let needed = graph.closure((0..graph.nodes.len()).filter(whole), true);
    let push = |(id, needed)| match needed {
        false => Push::Nothing,
        // What is not worth its room here is not worth it there: who needs it has what it is made of.
        true if graph.common(id).temp || !whole(&id) => Push::Record,
        true => Push::Whole,
    };
    needed.into_iter().enumerate().map(push).collect()
}

impl Env<'_> {
    /// Gives the team what was made here, if it is asked for that; in the background.
    pub(crate) fn share(&self, job: &Job, outcome: &Outcome, work: &Work) {
        let push = self.pushes.as_ref().map_or(Push::Nothing, |pushes| pushes[job.id]);
        let wanted = push != Push::Nothing && work.reason.may_be_shared();
        let Some(remote) = self.cache.remote().filter(|_| wanted) else { return };
        let bare = push == Push::Record;
        remote.push(outcome.key, bare);
        let run_key = work.run_parts().key();
        if run_key != outcome.key {
            remote.push(run_key, bare);
        }
    }
}

/// Waits for what is on its way to the team. An interrupt leaves that to the next run.
pub(crate) fn finish_uploads(cache: &Cache, sink: &dyn Sink, cancel: &Cancel) {
    let Some(remote) = cache.remote().filter(|remote| remote.uploads().left > 0) else { return };
    let say = |text: String| sink.emit(Event::log("", Level::Info, text));
    let mut said: Option<Instant> = None;
    remote.finish(cancel, |Uploads { left, bytes, .. }| {
        if said.is_none_or(|said| said.elapsed() >= SAY) {
            said = Some(Instant::now());
            let mib = bytes as f64 / f64::from(1 << 20);
            say(format!("results on their way to the team's cache {}: {left}, {mib:.1} MiB went", remote.location()));
        }
    });
    if let left @ 1.. = remote.uploads().left {
        let results = if left == 1 { "1 result is" } else { &format!("{left} results are") };
        say(format!("{results} not in the team's cache {} yet: the next run goes on with it", remote.location()));
    }
}
