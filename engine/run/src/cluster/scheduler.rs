//! What flow wants of a cluster's scheduler, whichever it is.

use std::{collections::HashMap, path::Path, time::Duration};

use anyhow::Result;
use flow_core::Cancel;

use super::{settings::Executor, shape::Shape, slurm::Slurm};

/// A batch of tasks to submit. All of them want the same of the cluster.
pub struct Batch<'a> {
    /// Its id: a name that no other batch has.
    pub id: &'a str,
    /// Where its files are.
    pub dir: &'a Path,
    /// The working directory of its jobs: the project's folder.
    pub project: &'a Path,
    /// How many tasks it has: a job each.
    pub tasks: usize,
    /// What each of them wants.
    pub shape: &'a Shape,
}

/// Why something was not submitted.
#[derive(Debug)]
pub enum Refused {
    /// It can never be: the same again gives the same.
    Never(anyhow::Error),
    /// The scheduler does not answer: to be tried again.
    Later(anyhow::Error),
    /// It has no room for so many jobs now: to be tried with fewer, and later.
    Room(anyhow::Error),
}

/// How a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It waits, for this reason.
    Pending(String),
    /// It waits for what will never be, for this reason.
    Stuck(String),
    /// It runs on this machine, or begins or ends to.
    Running(String),
    /// It has ended.
    Ended(End),
}

/// What a scheduler says of the tasks that it was asked for.
#[derive(Debug, Default)]
pub struct Answer {
    /// By id.
    pub seen: HashMap<String, Seen>,
    /// What is not in it is not known any more. If not, it is just not known.
    pub complete: bool,
}

/// How a job ended, as the scheduler has it. What became of its nodes the job itself says, if it could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, well or not.
    Itself(String),
    /// At its time limit.
    Limit,
    /// With its machine, or for a job of more weight.
    Lost(String),
    /// The scheduler has forgotten it.
    Unknown(String),
    /// For want of memory.
    Memory,
    /// Because somebody cancelled it.
    Cancelled,
}

/// A cluster's scheduler.
pub trait Scheduler: Send + Sync {
    /// What it is called.
    fn name(&self) -> &str;

    /// At most so many tasks are in a batch.
    fn most_tasks(&self) -> usize;

    /// Submits a batch; the ids of its tasks, in order: of the first ones alone, if there was no room for all.
    ///
    /// # Errors
    /// See [`Refused`]. A batch that may have been submitted all the same is found by [`Scheduler::find`].
    fn submit(&self, batch: &Batch<'_>) -> Result<Vec<String>, Refused>;

    /// The ids of the tasks of a batch of which it is not known whether it was submitted; nothing if it was not.
    ///
    /// # Errors
    /// The scheduler does not answer.
    fn find(&self, batch: &str, tasks: usize) -> Result<Option<Vec<String>>>;

    /// How these tasks are, with one question for all of them.
    ///
    /// # Errors
    /// The scheduler does not answer: nothing is known then.
    fn look(&self, ids: &[&str]) -> Result<Answer>;

    /// Ends tasks.
    ///
    /// # Errors
    /// The scheduler does not answer.
    fn cancel(&self, ids: &[&str]) -> Result<()>;

    /// How often it may be asked.
    fn poll(&self) -> Duration;
}

/// The scheduler of an executor. What it is asked, and what it need not be told to the end, `stop` stops.
pub fn scheduler(executor: Executor, stop: &Cancel) -> Box<dyn Scheduler> {
    match executor {
        Executor::Slurm(options) => Box::new(Slurm::new(&options, stop.clone())),
        Executor::Template(mut template, _) => {
            template.stop = stop.clone();
            template
        }
    }
}
