//! [`Shape`]: what a job wants of the cluster.

use std::time::Duration;

use crate::{common::Resources, settings::Settings};

use super::settings::ExecutorFile;

/// So long before its limit a job is told to stop, if nobody says.
const SIGNAL: Duration = Duration::from_secs(120);
/// How often a stage goes on in another job, if nobody says.
const REQUEUE: u32 = 100;

/// What a job wants of the cluster: cores, GPUs and memory of each of its machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The executor.
    pub executor: String,
    /// The stage.
    pub stage: String,
    /// Machines.
    pub nodes: u32,
    /// Cores.
    pub cpus: u32,
    /// GPUs.
    pub gpus: u32,
    /// Bytes; 0: whatever is usual.
    pub memory: u64,
    /// The time limit; nothing: whatever is usual.
    pub time: Option<Duration>,
    /// What the settings say besides.
    pub options: ExecutorFile,
}

impl Shape {
    /// What a node of a stage wants.
    pub fn new(settings: &Settings, executor: &str, stage: &str, resources: &Resources) -> Self {
        let options =
            settings.executors.get(executor).map_or_else(ExecutorFile::default, |table| table.of_stage(stage));
        Self {
            executor: executor.to_owned(),
            stage: stage.to_owned(),
            nodes: resources.nodes.unwrap_or(1),
            cpus: resources.cpus.unwrap_or(1).max(1),
            gpus: resources.gpus,
            memory: resources.memory,
            time: resources.time.or(options.time),
            options,
        }
    }

    /// So many nodes run in a job, one after the other.
    pub fn together(&self) -> usize {
        self.options.together.unwrap_or(1).max(1)
    }

    /// How often what was stopped from outside goes on in another job.
    pub fn requeue(&self) -> u32 {
        self.options.requeue.unwrap_or(REQUEUE)
    }

    /// So long before its limit a job stops by itself. Of a short job that is a small part.
    pub fn margin(&self) -> Duration {
        let margin = self.options.signal.unwrap_or(SIGNAL);
        self.time.map_or(margin, |time| margin.min(time / 4))
    }
}
