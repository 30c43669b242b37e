//! Nodes of one stage that would put files of one name into one directory: what of that can be known before they run.

use std::collections::HashMap;

use flow_core::Diagnostic;

use crate::{
    find::normal,
    graph::{Graph, NodeId, Source},
};

/// Exports that would cover each other, one error a stage. `files`: the names that the result of each node has for sure.
/// Only of nodes that are `wanted`, or of one that is and another.
pub(crate) fn clashes(graph: &Graph, files: &[Vec<String>], wanted: &dyn Fn(NodeId) -> bool) -> Vec<Diagnostic> {
    let of_stage = |stage: &crate::graph::StageInfo| {
        let exports = |id: &NodeId| graph.common(*id).export.is_some();
        if stage.off.is_some() || stage.nodes.len() < 2 || !stage.nodes.clone().any(|id| exports(&id)) {
            return None;
        }
        let mut first: HashMap<(String, &str), NodeId> = HashMap::new();
        for id in stage.nodes.clone().filter(exports) {
            let export = graph.common(id).export_to().map_or("", String::as_str);
            for name in &files[id] {
                let other = *first.entry((normal(export), name.as_str())).or_insert(id);
                if other != id && (wanted(id) || wanted(other)) {
                    return Some(clash(graph, [other, id], name, export));
                }
            }
        }
        None
    };
    graph.stages.iter().filter_map(of_stage).collect()
}

fn clash(graph: &Graph, nodes: [NodeId; 2], name: &str, export: &str) -> Diagnostic {
    let [one, other] = nodes.map(|id| &graph.nodes[id].name);
    let text = format!("`{one}` and `{other}` would both export `{name}` to `{export}`");
    let error = Diagnostic::new(text).at(graph.variant(nodes[1]).place("export"));
    let error = nodes.iter().fold(error, |error, id| match origin(graph, *id) {
        Some(from) => error.cause(format!("`{}` makes it of {from}", graph.nodes[*id].name)),
        None => error,
    });
    error.hint("make stages of them that export to directories of their own, or export only what takes all of them")
}

/// What a node is made of, for people.
fn origin(graph: &Graph, id: NodeId) -> Option<String> {
    let node = &graph.nodes[id];
    if let Some(pin) = node.action.pin() {
        return Some(pin.url);
    }
    node.inputs.first()?.sources.first().map(|source| match source {
        Source::Node(from) => format!("the result of `{}`", graph.nodes[*from].name),
        path => format!("`{path}`"),
    })
}
