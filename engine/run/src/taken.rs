//! What a command in the project's folder takes of what other stages put there: its key says what that is, by the record
//! of who made it, and the command reads what lies there. So that has to be the same, from before it begins until it is
//! done.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Result, bail};
use flow_core::{Diagnostic, Tree};

use crate::{
    graph::{Graph, NodeId, Source},
    place::{Lack, Placer, Put},
};

/// An out of another node that a node takes from its place.
#[derive(Debug)]
pub struct Taken {
    /// Who makes it.
    pub from: NodeId,
    /// Its name, or of something below it.
    pub file: String,
    /// All that its maker made.
    pub tree: Arc<Tree>,
}

/// The outs that a node takes from their places, by who makes them. Who has no outs does not work in the project's folder.
pub fn taken(graph: &Graph, id: NodeId) -> impl Iterator<Item = (NodeId, &str)> {
    let node = &graph.nodes[id];
    let ports = node.inputs.iter().filter(|_| !node.action.outs().is_empty());
    ports.flat_map(|port| &port.sources).filter_map(|source| match source {
        Source::Out { node, file } => Some((*node, file.as_str())),
        _ => None,
    })
}

impl Placer<'_> {
    fn lacks_taken(&self, taken: &Taken) -> Result<Lack> {
        let mut spots = self.out_spots(taken.from, &taken.tree)?;
        spots.retain(|spot| Path::new(&taken.file).starts_with(&spot.place));
        self.lack_of(spots)
    }

    /// Puts what a node takes in its place, and never over a file of the user's. The place that another flow has, if it does.
    ///
    /// # Errors
    /// It would have to be; something cannot be read or written.
    pub fn put_taken(&self, taken: &Taken, id: NodeId) -> Result<Option<PathBuf>> {
        match self.put(&self.lacks_taken(taken)?, false)? {
            Put::Refused(_) => bail!(self.not_taken(taken, id)),
            Put::Held(place) => Ok(Some(place)),
            Put::Done => Ok(None),
        }
    }

    /// What a node takes and cannot have, as a file of the user's is there.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn refuses_taken(&self, taken: &Taken, id: NodeId) -> Result<Option<Diagnostic>> {
        if self.would_refuse_these(&self.lacks_taken(taken)?)?.is_empty() {
            return Ok(None);
        }
        let graph = self.project.graph();
        Ok(Some(Diagnostic::new(self.not_taken(taken, id)).at(graph.stage_of(id).span.clone())))
    }

    /// Whether what a node took is as it was.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_as_taken(&self, taken: &Taken) -> Result<bool> {
        Ok(!self.lacks_taken(taken)?.is_missing())
    }

    fn not_taken(&self, Taken { from, file, .. }: &Taken, id: NodeId) -> String {
        let nodes = &self.project.graph().nodes;
        let (maker, node) = (&nodes[*from].name, &nodes[id].name);
        format!(
            "`{file}` is not what `{maker}` made, and `{node}` takes that from there: move it away, and flow puts it there"
        )
    }
}
