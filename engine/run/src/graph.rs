//! [`Graph`]: stages, and the nodes that they stand for. Static: nothing is found out while a run goes on.
//!
//! Nodes stand in an order in which everything comes after what it needs, and that keeps the file's order otherwise.

use std::{collections::HashMap, fmt, ops::Range, path::PathBuf, sync::Arc};

use flow_core::{Diagnostic, DynStage, Kind, Span, Value, did_you_mean};

use crate::{
    common::{COMMON_KEYS, Common},
    matrix,
};

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
    /// What its table says: for each combination of its matrix, or once.
    pub variants: Vec<Variant>,
    /// Its nodes.
    pub nodes: Range<NodeId>,
    /// Why it is not part of this run, if it is not.
    pub off: Option<String>,
    /// The combinations of its matrix that are not where others are, by the names that their nodes would have, and why.
    pub off_some: Vec<(String, String)>,
    /// Where its name stands.
    pub span: Option<Span>,
}

/// What the table of a stage says, for one combination of its matrix.
#[derive(Debug, Default)]
pub struct Variant {
    /// `lr=0.001,seed=1`; empty if the stage has no matrix.
    pub label: String,
    /// The keys that every stage has.
    pub common: Common,
    /// They, as the file gives them.
    pub said: Value,
    /// The kind's own parameters, as the file gives them.
    pub value: Value,
}

impl Variant {
    /// Where a field of the stage stands, or what is nearest to it.
    #[must_use]
    pub fn place(&self, field: &str) -> Option<Span> {
        let is_common = COMMON_KEYS.contains(&field.split('.').next().unwrap_or(field));
        let table = if is_common { &self.said } else { &self.value };
        table.nearest(field).span.clone().or_else(|| self.value.span.clone())
    }
}

/// One execution: a stage, or one shard of it.
#[derive(Debug)]
pub struct Node {
    /// `tokens[2]`, `train[lr=0.001]` in a matrix, or `train` when the stage has one node.
    pub name: String,
    /// Its stage.
    pub stage: StageId,
    /// Which of the stage's variants it is of.
    pub variant: usize,
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
    /// A directory of what a node produces.
    Part {
        /// The node.
        node: NodeId,
        /// Its name in the node's tree.
        part: String,
    },
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
            Self::Node(node) | Self::Part { node, .. } | Self::Out { node, .. } => Some(*node),
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

    /// The keys that every stage has, as they are for a node.
    #[must_use]
    pub fn common(&self, node: NodeId) -> &Common {
        &self.variant(node).common
    }

    /// The table of a node's stage, as it is for the node.
    #[must_use]
    pub fn variant(&self, node: NodeId) -> &Variant {
        let node = &self.nodes[node];
        &self.stages[node.stage].variants[node.variant]
    }

    /// `tokens`: the stage's nodes; `tokens[2]`: that one; `train[lr=1e-3]`: all that have this in their names.
    ///
    /// # Errors
    /// There is none of this name; the hint says what was probably meant.
    pub fn select(&self, name: &str) -> Result<Vec<NodeId>, Diagnostic> {
        if let Some(stage) = self.stage(name) {
            return Ok(self.stages[stage].nodes.clone().collect());
        }
        if let Some((stage, inside)) = bracket(name)
            && let Some(stage) = self.stage(stage)
        {
            let stage = &self.stages[stage];
            let nodes = among(&self.nodes, stage.nodes.clone(), inside);
            if !nodes.is_empty() {
                return Ok(nodes);
            }
            let is_it = |off: &str| off == name || bracket(off).is_some_and(|(_, have)| chooses(inside, have));
            if let Some((off, why)) = stage.off_some.iter().find(|(off, _)| is_it(off)) {
                return Err(Diagnostic::new(format!("`{off}` is off")).cause(why.clone()));
            }
            let error = Diagnostic::new(format!("there is no `{name}`"));
            return Err(error.hint(listed(&stage.name, &self.nodes[stage.nodes.clone()])));
        }
        let stage = bracket(name).map_or(name, |(stage, _)| stage);
        let error = Diagnostic::new(format!("there is no stage `{stage}`"));
        let names = || self.stages.iter().map(|stage| stage.name.as_str());
        Err(match did_you_mean(stage, names()) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None if self.stages.is_empty() => error.hint("the pipeline has no stages"),
            None => {
                let shown: Vec<&str> = names().take(MOST_LISTED).collect();
                let more = if shown.len() < self.stages.len() { ", …" } else { "" };
                error.hint(format!("the stages: {}{more}", shown.join(", ")))
            }
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

    /// Sorts nodes into groups that come one after the other: none depends on another of its group or of a later one.
    /// The groups are not large, so that what is found of one can be held.
    pub(crate) fn groups<'n>(&self, nodes: &'n mut [NodeId]) -> impl Iterator<Item = &'n [NodeId]> {
        const LARGE: usize = 4096;
        // How many come one after the other before a node.
        let mut depths: Vec<u32> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            depths.push(node.dependencies.iter().map(|&from| depths[from] + 1).max().unwrap_or(0));
        }
        nodes.sort_by_key(|&id| depths[id]);
        let alike = move |one: &NodeId, other: &NodeId| depths[*one] == depths[*other];
        nodes.chunk_by(alike).flat_map(|group| group.chunks(LARGE))
    }

    /// These nodes and all that they take from: without what only comes before them.
    #[must_use]
    pub fn taken_by(&self, nodes: Vec<NodeId>) -> Vec<bool> {
        let (mut in_it, mut stack) = (vec![false; self.nodes.len()], nodes);
        while let Some(node) = stack.pop() {
            if !std::mem::replace(&mut in_it[node], true) {
                let sources = self.nodes[node].inputs.iter().flat_map(|port| &port.sources);
                stack.extend(sources.filter_map(Source::node));
            }
        }
        in_it
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

/// `tokens[2]` → `tokens`, `2`.
pub(crate) fn bracket(name: &str) -> Option<(&str, &str)> {
    name.strip_suffix(']')?.split_once('[')
}

/// The nodes of a stage that the text in brackets means: a number is one of them by its place, `lr=1e-3,seed=2` are those
/// that have all of this in their names.
pub(crate) fn among(nodes: &[Node], range: Range<NodeId>, inside: &str) -> Vec<NodeId> {
    if let Ok(index) = inside.trim().parse::<usize>() {
        return range.clone().nth(index).into_iter().collect();
    }
    let named = |&id: &NodeId| bracket(&nodes[id].name).is_some_and(|(_, have)| chooses(inside, have));
    range.filter(named).collect()
}

/// Whether all words of a selection are among those of a name.
pub(crate) fn chooses(inside: &str, have: &str) -> bool {
    inside.split(',').all(|asked| have.split(',').any(|have| matrix::means(asked, have)))
}

/// More names are not listed.
const MOST_LISTED: usize = 20;

/// What nodes a stage has, for a person who named another.
pub(crate) fn listed(stage: &str, nodes: &[Node]) -> String {
    match nodes {
        [] | [_] => format!("stage `{stage}` has one node: name it `{stage}`"),
        [first, .., last] if bracket(&first.name).is_some_and(|(_, inside)| inside.parse::<usize>().is_ok()) => {
            format!("stage `{stage}` has {} nodes: `{}` to `{}`", nodes.len(), first.name, last.name)
        }
        _ => {
            let shown: Vec<String> = nodes.iter().take(MOST_LISTED).map(|node| format!("`{}`", node.name)).collect();
            let more = if shown.len() < nodes.len() { ", …" } else { "" };
            format!("stage `{stage}` has: {}{more}", shown.join(", "))
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "#{node}"),
            Self::Part { node, part } => write!(f, "#{node}:{part}"),
            Self::Out { file, .. } => f.write_str(file),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Prefix { prefix, .. } => write!(f, "{}", prefix.display()),
        }
    }
}
