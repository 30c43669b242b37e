//! What stages take of the machine that is no number: what runs their containers.

use std::collections::HashSet;

use flow_core::{Diagnostic, Machine};

use crate::{
    cluster,
    graph::{Graph, NodeId},
    settings::Settings,
};

/// What some nodes would not find.
#[derive(Debug, Default)]
pub(crate) struct Lacking {
    /// Those that run here.
    pub errors: Vec<Diagnostic>,
    /// Those that run as jobs, on machines that may have it though this one has not.
    pub warnings: Vec<Diagnostic>,
}

/// What these nodes would not find here. Shards take the same, and are asked once.
pub(crate) fn lacking_programs(graph: &Graph, settings: &Settings, nodes: impl Iterator<Item = NodeId>) -> Lacking {
    let machine = Machine { container_engine: settings.container_engine.as_deref() };
    let mut asked = HashSet::new();
    let mut found = Lacking::default();
    for id in nodes {
        let (node, stage) = (&graph.nodes[id], graph.stage_of(id));
        if stage.off.is_some() || !asked.insert((node.stage, node.variant)) {
            continue;
        }
        let Some(error) = node.action.lacks(&machine) else { continue };
        let span = error.field.as_deref().and_then(|field| graph.variant(id).place(field));
        let error = error.at(span).at(stage.span.clone());
        let (to, error) = match cluster::executor(graph, settings, id) {
            Some(name) => {
                let hint =
                    format!("`{}` runs with executor `{name}`: it must be there on the machines of that", stage.name);
                (&mut found.warnings, error.hint(hint))
            }
            None => (&mut found.errors, error),
        };
        if !to.contains(&error) {
            to.push(error);
        }
    }
    found
}
