//! What was made is given to the team. What the team has is another matter: `runner::team`.

use std::time::{Duration, Instant};

use flow_cache::{Cache, Outcome, Uploads};
use flow_core::{Cancel, Event, Level, Sink};

use crate::{
    decide::Work,
    exec::{Env, Job},
};

/// How often it is said how far something is.
const SAY: Duration = Duration::from_secs(2);

impl Env<'_> {
    /// Gives the team what was made here, if it is asked for that; in the background.
    pub(crate) fn share(&self, job: &Job, outcome: &Outcome, work: &Work) {
        let graph = self.project.graph();
        let wanted = self.pushes.as_ref().is_some_and(|pushes| pushes.is_match(&graph.stage_of(job.id).name));
        let Some(remote) = self.cache.remote().filter(|_| wanted && work.reason.may_be_shared()) else { return };
        // What is not worth its room here is not worth it there: who needs it has what it is made of.
        let bare = graph.common(job.id).temp;
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
    let say = |text: String| sink.emit(Event::Log { node: String::new(), level: Level::Info, text });
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
