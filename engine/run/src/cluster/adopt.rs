//! Jobs that another run submitted, and that make what this one wants.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::Duration,
};

use flow_core::Key;

use super::{
    item::Item,
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

/// What is known of who makes a node.
pub enum Known {
    /// A job does.
    Job(Found),
    /// Somebody is about to submit one: to be looked at again.
    Soon,
    /// Nobody.
    Nobody,
}

/// So long somebody may need to submit what they have said they would.
const SOON: Duration = Duration::from_secs(180);

/// What is known of batches of other runs.
#[derive(Default)]
pub struct Others(HashMap<String, Submitted>);

impl Others {
    /// Who makes a node, as far as files say: whether a job lives its scheduler knows. What is over is forgotten.
    pub fn find(&mut self, item: &Item, jobs: &Jobs, scheduler: &dyn Scheduler) -> Known {
        // Who wants it made anew has no use for what was begun before.
        let key = item.job.work.run_parts().key();
        let Some(maker) = jobs.maker(&key).filter(|_| !item.is_forced()) else { return Known::Nobody };
        let known = self.look(item, &key, &maker, jobs, scheduler);
        if matches!(known, Known::Nobody) {
            jobs.forget(&key, &maker);
        }
        known
    }

    fn look(&mut self, item: &Item, key: &Key, maker: &Maker, jobs: &Jobs, scheduler: &dyn Scheduler) -> Known {
        let submitted = match self.0.entry(maker.batch.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => match jobs.submitted(&maker.batch) {
                Some(submitted) => unknown.insert(submitted),
                None => match not_submitted(key, maker, jobs, scheduler) {
                    Ok(submitted) => unknown.insert(submitted),
                    Err(known) => return known,
                },
            },
        };
        let Submitted { executor, user, ids } = &*submitted;
        let id = ids.get(maker.task).filter(|_| *executor == item.shape.executor);
        let Some(id) = id.filter(|_| !has_ended(item, maker, jobs)) else { return Known::Nobody };
        Known::Job(Found { maker: maker.clone(), id: id.clone(), who: format!("submitted by {user}") })
    }
}

/// A batch of which it is not known that it was submitted: it is about to be, or its head died between two lines.
fn not_submitted(key: &Key, maker: &Maker, jobs: &Jobs, scheduler: &dyn Scheduler) -> Result<Submitted, Known> {
    // What others submit is not ours to read.
    if let Ok(spec) = jobs.spec(&maker.batch) {
        match scheduler.find(&maker.batch, spec.tasks.len()) {
            Err(_) => return Err(Known::Soon),
            Ok(Some(ids)) => {
                let submitted = Submitted { executor: spec.executor, user: spec.user, ids };
                jobs.set_submitted(&maker.batch, &submitted).ok();
                return Ok(submitted);
            }
            Ok(None) => {}
        }
    }
    Err(if jobs.claimed_for(key).is_some_and(|age| age < SOON) { Known::Soon } else { Known::Nobody })
}

/// Whether a job has done with a node, of which there is no result. One that was only told to stop may begin again.
fn has_ended(item: &Item, maker: &Maker, jobs: &Jobs) -> bool {
    let mut tail = Tail::new(jobs.batch(&maker.batch).join(format!("{}.jsonl", maker.task)));
    let ended = |line: &Line| match line {
        Line::Word(Word::Ended { node, end }) => {
            *node == item.node && !matches!(end, Ending::Stopped | Ending::Untouched)
        }
        _ => false,
    };
    loop {
        let (lines, more) = tail.read();
        if lines.iter().any(ended) {
            return true;
        }
        if !more {
            return false;
        }
    }
}
