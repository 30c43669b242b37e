//! What many runs say together: who used a result last, and which runs nobody needs any more.

use std::{
    collections::{HashMap, HashSet},
    fs,
    time::Duration,
};

use anyhow::{Context as _, Result};
use flow_core::{How, Key};
use rayon::prelude::*;

use crate::{
    history::{History, RunInfo},
    record::now,
};

/// Who used a result last.
#[derive(Clone, Debug)]
pub struct Use {
    /// The pipeline's name.
    pub pipeline: String,
    /// The node.
    pub node: String,
    /// When that run began, in seconds since 1970.
    pub when: f64,
}

impl History {
    /// By key: the last of the runs that are kept in which it was made or taken.
    ///
    /// # Errors
    /// The directory of runs cannot be read.
    pub fn uses(&self) -> Result<HashMap<Key, Use>> {
        // Runs that found all as another had left it have no more to say than the newest of them.
        let mut seen = HashSet::new();
        let mut runs = self.all()?;
        runs.retain(|run| seen.insert(run.head.same_nodes_as.clone().unwrap_or_else(|| run.id.clone())));
        let nodes: Vec<_> = runs.par_iter().map(|run| run.nodes().unwrap_or_default()).collect();
        let mut uses = HashMap::new();
        for (run, nodes) in runs.into_iter().zip(nodes) {
            for (node, record) in nodes {
                let pipeline = run.head.pipeline.clone();
                uses.entry(record.key).or_insert(Use { pipeline, node, when: run.head.started });
            }
        }
        Ok(uses)
    }

    /// The runs that began longer ago than `age`, and that nobody needs: not one that goes on, the last of its pipeline
    /// with its profile, one in which a result was made that `stays`, or one that another that is kept refers to.
    ///
    /// # Errors
    /// The directory of runs cannot be read.
    pub fn old(&self, age: Duration, stays: &(dyn Fn(&Key) -> bool + Sync)) -> Result<Vec<RunInfo>> {
        let since = now() - age.as_secs_f64();
        let mut pipelines = HashSet::new();
        let (old, kept): (Vec<RunInfo>, Vec<RunInfo>) = self.all()?.into_iter().partition(|run| {
            let is_last = pipelines.insert((run.head.file.clone(), run.head.profile.clone()));
            !is_last && !run.alive && run.head.started < since
        });
        let made = |run: &RunInfo| {
            let ran = |how| matches!(how, Some(How::Ran | How::Resumed));
            let nodes = run.head.same_nodes_as.is_none().then(|| run.nodes().unwrap_or_default());
            nodes.into_iter().flatten().any(|(_, record)| ran(record.how) && stays(&record.key))
        };
        let needed: HashSet<String> = kept.into_iter().filter_map(|run| run.head.same_nodes_as).collect();
        Ok(old.into_par_iter().filter(|run| !needed.contains(&run.id) && !made(run)).collect())
    }

    /// Removes a run that is over: all of it at once for who looks.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, run: &RunInfo) -> Result<()> {
        // Where gc finds it if this is killed.
        let gone = self.tmp().join(format!(".flow-{}-{}", std::process::id(), run.id));
        let remove = || fs::rename(&run.dir, &gone).and_then(|()| fs::remove_dir_all(&gone));
        remove().with_context(|| format!("cannot remove the run {}", run.dir.display()))
    }
}
