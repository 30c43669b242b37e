//! Stages that run elsewhere: as jobs of a cluster's scheduler.
//!
//! A job is this same program on another machine that sees the same cache: [`run_job`] makes one node, or a few, as a run
//! here would, and commits them. So what comes back is the cache's own record, and a job that was started twice, or whose
//! head (the `flow run` that asked for it) died, is nothing that needs care: the second finds the result, or waits.
//!
//! The head's side is one thread, `dispatch`: it gathers nodes into batches (`spec`: what a job is told, in
//! `jobs/<batch>/` of the cache), submits them (`scheduler`: [`slurm`](mod@slurm) or a `template`), asks now and then how
//! they are, and reads what they say of themselves (`stream`). Which job makes a key is noted under `jobs/keys/`: who
//! comes later, from this login node or another, takes it up.

mod adopt;
mod ask;
mod dispatch;
mod item;
mod job;
mod jobs;
mod scheduler;
mod settings;
mod shape;
mod slurm;
mod spec;
mod stream;
mod template;
mod track;

pub use job::{Stop, run_job};
pub use jobs::{Job as ClusterJob, Told, cancel as cancel_jobs, end as end_jobs, jobs};
pub use settings::{Executor, ExecutorFile, Executors};

pub(crate) use dispatch::{Cluster, Heard};
pub(crate) use item::Item;
pub(crate) use scheduler::scheduler;
pub(crate) use settings::{LOCAL, SLURM, check};
pub(crate) use shape::Shape;
pub(crate) use spec::sources;

use crate::{
    graph::{Graph, NodeId},
    settings::Settings,
};

/// The executor of a node that does not run here.
pub(crate) fn executor<'a>(graph: &'a Graph, settings: &'a Settings, id: NodeId) -> Option<&'a str> {
    let named = graph.common(id).executor.as_deref();
    let usual = || if graph.stage_of(id).kind.local { LOCAL } else { &settings.executor };
    Some(named.unwrap_or_else(usual)).filter(|name| *name != LOCAL)
}
