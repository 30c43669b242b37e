//! [`Graph`]: stages, and the nodes that they stand for. Static: nothing is found out while a run goes on.
//!
//! Nodes stand in an order in which everything comes after what it needs, and that keeps the file's order otherwise.

use std::{collections::HashMap, fmt, ops::Range, path::PathBuf, sync::Arc};

use flow_core::{Diagnostic, DynStage, Kind, Span, Value, did_you_mean};

use crate::common::Common;

/// The index of a node in [`Graph::nodes`].
pub type NodeId = usize;
/// The index of a stage in [`Graph::stages`].
pub type StageId = usize;

/// Stages and their nodes.
#[derive(Debug, Default)]
pub struct Graph {
    /// The stages, in the order of the file.
    pub stages: Vec<StageInfo>,
    /// The nodes, each after everything that it needs. The nodes of a stage stand together.
    pub nodes: Vec<Node>,
    /// Stage by name.
    pub(crate) by_name: HashMap<String, StageId>,
}

/// A stage of the file.
#[derive(Debug)]
pub struct StageInfo {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: &'static Kind,
    /// The keys that every stage has.
    pub common: Common,
    /// Its nodes.
    pub nodes: Range<NodeId>,
    /// Why it is not part of this run, if it is not.
    pub off: Option<String>,
    /// The kind's own parameters, as the file gives them.
    pub value: Value,
    /// Where its name stands.
    pub span: Option<Span>,
}

/// One execution: a stage, or one shard of it.
#[derive(Debug)]
pub struct Node {
    /// `tokens[2]`, or `train` when the stage has one node.
    pub name: String,
    /// Its stage.
    pub stage: StageId,
    /// What runs.
    pub action: Arc<dyn DynStage>,
    /// What enters, by port.
    pub inputs: Vec<PortInputs>,
    /// Nodes that must be done before, for data or for order; sorted, each once.
    pub dependencies: Vec<NodeId>,
    /// Nodes that have this one among their dependencies; sorted.
    pub dependents: Vec<NodeId>,
}

/// What enters at one port.
#[derive(Clone, Debug)]
pub struct PortInputs {
    /// The port's name.
    pub name: String,
    /// What enters, in order.
    pub sources: Vec<Source>,
    /// [`flow_core::Port::only`]
    pub only: &'static [&'static str],
}

/// One thing that enters a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// All that a node produces.
    Node(NodeId),
    /// A file or directory that a node puts into the project's folder.
    Out {
        /// The node.
        node: NodeId,
        /// Its name in the node's tree: the path in the project's folder.
        file: String,
    },
    /// A file or directory, relative to the project's folder.
    Path(PathBuf),
    /// Several files whose names begin alike, relative to the project's folder.
    Prefix {
        /// What their names begin with.
        prefix: PathBuf,
        /// What they end with.
        endings: &'static [&'static str],
    },
}

impl Source {
    /// The node that this comes from.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Self::Node(node) | Self::Out { node, .. } => Some(*node),
            Self::Path(_) | Self::Prefix { .. } => None,
        }
    }
}

impl Graph {
    /// The stage of this name.
    #[must_use]
    pub fn stage(&self, name: &str) -> Option<StageId> {
        self.by_name.get(name).copied()
    }

    /// The nodes that take files of a node's result.
    pub fn takers(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        let takes = move |taker: &NodeId| {
            let mut sources = self.nodes[*taker].inputs.iter().flat_map(|port| &port.sources);
            sources.any(|source| source.node() == Some(id))
        };
        self.nodes[id].dependents.iter().copied().filter(takes)
    }

    /// The stage that a node belongs to.
    #[must_use]
    pub fn stage_of(&self, node: NodeId) -> &StageInfo {
        &self.stages[self.nodes[node].stage]
    }

    /// `tokens`: the stage's nodes; `tokens[2]`: that one.
    ///
    /// # Errors
    /// There is none of this name; the hint says what was probably meant.
    pub fn select(&self, name: &str) -> Result<Range<NodeId>, Diagnostic> {
        if let Some(stage) = self.stage(name) {
            return Ok(self.stages[stage].nodes.clone());
        }
        if let Some((stage, index)) = split_index(name)
            && let Some(stage) = self.stage(stage)
        {
            let nodes = &self.stages[stage].nodes;
            if index < nodes.len() {
                return Ok(nodes.start + index..nodes.start + index + 1);
            }
            let error = Diagnostic::new(format!("there is no `{name}`"));
            return Err(error.hint(format!("stage `{}` has {} nodes", self.stages[stage].name, nodes.len())));
        }
        let error = Diagnostic::new(format!("there is no stage `{name}`"));
        Err(match did_you_mean(name, self.stages.iter().map(|stage| stage.name.as_str())) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        })
    }

    /// Which stages lead to which: (from, to), each once, sorted.
    #[must_use]
    pub fn stage_edges(&self) -> Vec<(StageId, StageId)> {
        let mut edges: Vec<_> = self
            .nodes
            .iter()
            .flat_map(|node| node.dependencies.iter().map(|&from| (self.nodes[from].stage, node.stage)))
            .collect();
        edges.sort_unstable();
        edges.dedup();
        edges
    }

    /// These nodes and all that they need (`up`), or all that needs them.
    #[must_use]
    pub fn closure(&self, of: impl IntoIterator<Item = NodeId>, up: bool) -> Vec<bool> {
        let mut in_it = vec![false; self.nodes.len()];
        let mut stack: Vec<NodeId> = of.into_iter().collect();
        while let Some(node) = stack.pop() {
            if !std::mem::replace(&mut in_it[node], true) {
                let node = &self.nodes[node];
                stack.extend(if up { &node.dependencies } else { &node.dependents });
            }
        }
        in_it
    }
}

/// `tokens[2]` → `tokens`, 2.
pub(crate) fn split_index(name: &str) -> Option<(&str, usize)> {
    let (stage, index) = name.strip_suffix(']')?.rsplit_once('[')?;
    Some((stage, index.parse().ok()?))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "#{node}"),
            Self::Out { file, .. } => f.write_str(file),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Prefix { prefix, .. } => write!(f, "{}", prefix.display()),
        }
    }
}
