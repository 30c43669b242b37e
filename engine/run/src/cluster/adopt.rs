//! Jobs that another run submitted, and that make what this one wants.

use std::collections::HashMap;

use super::{
    dispatch::Item,
    scheduler::Scheduler,
    spec::{Jobs, Maker, Submitted},
    stream::{Ending, Line, Tail, Word},
};

/// A job that makes a node.
pub struct Found {
    /// By its files.
    pub maker: Maker,
    /// By its scheduler.
    pub id: String,
    /// Who submitted it.
    pub who: String,
}

/// What is known of batches of other runs.
#[derive(Default)]
pub struct Others(HashMap<String, Option<Submitted>>);

impl Others {
    /// The job that makes a node, as far as its files say: whether it lives the scheduler knows.
    pub fn find(&mut self, item: &Item, jobs: &Jobs, scheduler: &dyn Scheduler) -> Option<Found> {
        // Who wants it made anew has no use for what was begun before.
        if item.is_forced() {
            return None;
        }
        let maker = jobs.maker(&item.job.work.run_parts().key())?;
        let known = self.0.entry(maker.batch.clone()).or_insert_with(|| {
            jobs.submitted(&maker.batch).or_else(|| {
                // Its head died between two lines: it was submitted, or it was not.
                let spec = jobs.spec(&maker.batch).ok()?;
                let ids = scheduler.find(&maker.batch, spec.tasks.len()).ok().flatten()?;
                let submitted = Submitted { executor: spec.executor, user: spec.user, ids };
                jobs.set_submitted(&maker.batch, &submitted).ok();
                Some(submitted)
            })
        });
        let Submitted { executor, user, ids } = known.as_ref()?;
        if *executor != item.shape.executor {
            return None;
        }
        let mut tail = Tail::new(jobs.batch(&maker.batch).join(format!("{}.jsonl", maker.task)));
        loop {
            let (lines, more) = tail.read();
            // It has done with the node, and there is no result. One that was only told to stop may begin again.
            let ended = |line: &Line| match line {
                Line::Word(Word::Ended { node, end }) => *node == item.node && *end != Ending::Stopped,
                _ => false,
            };
            if lines.iter().any(ended) {
                return None;
            }
            if !more {
                break;
            }
        }
        let id = ids.get(maker.task)?.clone();
        Some(Found { maker, id, who: format!("submitted by {user}") })
    }
}
