//! A run and the team's cache: what the team has is fetched and not made, what was made is given to it.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use flow_cache::{Cache, Outcome, Uploads};
use flow_core::{Cancel, Cancelled, Event, How, Level, Remarks, Sink, Unit};

use crate::{
    decide::Work,
    exec::{Env, Job, Made},
};

/// How often it is said how far something is.
const SAY: Duration = Duration::from_secs(2);

impl Env<'_> {
    /// The result of a node from the team, if it has it. What is wrong there is a warning, and the node runs.
    pub(crate) fn take_from_team(&self, job: &Job) -> Result<Option<Made>> {
        let Some(remote) = self.cache.remote().filter(|_| !job.work.reason.ignores_hits()) else { return Ok(None) };
        let Some(result) = remote.ask_all(&[job.work.key]).pop().flatten() else { return Ok(None) };
        let tree = &result.record.tree;
        if job.work.pinned.as_ref().is_some_and(|pinned| pinned.digest != tree.digest()) {
            return Ok(None);
        }
        let node = &self.project.graph().nodes[job.id].name;
        let (total, came) = (result.to_fetch(self.cache), AtomicU64::new(0));
        let reason = "it comes from the team's cache".to_owned();
        self.sink.emit(Event::Waiting { node: node.clone(), reason });
        let said = Mutex::new(Instant::now());
        let progress = |bytes| {
            let done = came.fetch_add(bytes, Ordering::Relaxed) + bytes;
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            if said.elapsed() >= SAY {
                *said = Instant::now();
                let (total, note) = (Some(total.max(done)), Some("from the team's cache".to_owned()));
                self.sink.emit(Event::Progress { node: node.clone(), done, total, unit: Unit::Bytes, note });
            }
        };
        let outcome = match remote.pull_now(&result, &progress, &job.cancel) {
            Ok(outcome) => outcome,
            Err(_) if job.cancel.is_set() => return Err(Cancelled.into()),
            Err(error) if error.chain().any(<dyn std::error::Error>::is::<Cancelled>) => return Err(error),
            Err(error) => {
                let (node, text) = (String::new(), format!("{error:#}: it is made here"));
                self.sink.emit(Event::Log { node, level: Level::Warning, text });
                return Ok(None);
            }
        };
        let outcome = self.pin(&job.work, outcome, Remarks::default())?;
        self.place(job.id, &outcome, job.overwrite, &job.cancel)?;
        Ok(Some(Made { outcome, how: How::Remote }))
    }

    /// Gives the team what was made here, if it is asked for that; in the background.
    pub(crate) fn share(&self, job: &Job, outcome: &Outcome, work: &Work) {
        let graph = self.project.graph();
        let wanted = self.pushes.as_ref().is_some_and(|pushes| pushes.is_match(&graph.stage_of(job.id).name));
        let Some(remote) = self.cache.remote().filter(|_| wanted && work.reason.may_be_shared()) else { return };
        remote.push(outcome.key);
        let run_key = work.run_parts().key();
        if run_key != outcome.key {
            remote.push(run_key);
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
