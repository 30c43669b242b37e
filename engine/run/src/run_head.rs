//! [`RunHead`]: what a run is, in its `run.json`.

use std::{collections::HashMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::graph::{Graph, Node, StageId, bracket};

/// `run.json`: what a run is, and how it ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunHead {
    /// The run's id: its time and a few digits that tell it from others.
    pub id: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline file, absolute.
    pub file: PathBuf,
    /// The profile that was chosen.
    pub profile: Option<String>,
    /// What was set on the command line, and by variables: `FLOW_PARAM_…=…`.
    pub set: Vec<String>,
    /// When it began, in seconds since 1970.
    pub started: f64,
    /// When it ended; nothing while it goes on, or if it was killed.
    pub finished: Option<f64>,
    /// flow's version.
    pub version: String,
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// How many nodes were asked for.
    pub nodes: usize,
    /// Whether everything that was asked for is there.
    pub ok: Option<bool>,
    /// It was interrupted.
    pub interrupted: bool,
    /// Nodes that ran.
    pub ran: usize,
    /// Nodes whose result was there.
    pub skipped: usize,
    /// Nodes that failed.
    pub failed: usize,
    /// What the cache saved, in seconds.
    pub saved: f64,
    /// Every node had the key that it had in this run, and nothing ran.
    pub same_nodes_as: Option<String>,
    /// The stages that were asked for, in the order of running; not where [`RunHead::same_nodes_as`] has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageHead>,
    /// What the machine has: cores, GPUs, bytes of memory.
    #[serde(default)]
    pub machine: (u32, u32, u64),
}

/// A stage of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageHead {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// The kind's version.
    pub version: u32,
    /// How many nodes of it were asked for.
    pub nodes: usize,
    /// What tells the nodes of a matrix apart, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The stages of the run that it takes from, or waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub takes: Vec<String>,
}

/// The stages of the nodes that are asked for, in the order of running.
pub fn stage_heads(graph: &Graph, wanted: &[bool]) -> Vec<StageHead> {
    let asked = |stage: StageId| wanted[graph.stages[stage].nodes.clone()].iter().filter(|wanted| **wanted).count();
    let mut takes: HashMap<StageId, Vec<String>> = HashMap::new();
    for (from, to) in graph.stage_edges().into_iter().filter(|(from, _)| asked(*from) > 0) {
        takes.entry(to).or_default().push(graph.stages[from].name.clone());
    }
    let mut stages: Vec<StageId> = (0..graph.stages.len()).collect();
    stages.sort_by_key(|stage| graph.stages[*stage].nodes.start);
    let heads = stages.into_iter().map(|id| {
        let stage = &graph.stages[id];
        StageHead {
            name: stage.name.clone(),
            kind: stage.kind.name.to_owned(),
            version: stage.kind.version,
            nodes: asked(id),
            labels: graph.nodes[stage.nodes.clone()].iter().filter_map(label).collect(),
            takes: takes.remove(&id).unwrap_or_default(),
        }
    });
    heads.filter(|stage| stage.nodes > 0).collect()
}

/// `lr=0.001` of `train[lr=0.001]`.
fn label(node: &Node) -> Option<String> {
    let (_, inside) = bracket(&node.name).filter(|(_, inside)| inside.contains('='))?;
    Some(inside.to_owned())
}
