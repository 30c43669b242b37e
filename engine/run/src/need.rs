//! Whose files have to be here: keys are made of what results are, so most of them are not needed for that.

use anyhow::Result;
use flow_core::{Diagnostic, Tree};

use crate::{
    graph::{Graph, NodeId},
    place::Placer,
    select::Selection,
};

/// Whether the files of a node's result are wanted for themselves and not only by what takes from it: nothing does, it
/// was named, or they belong into places where they are not.
///
/// # Errors
/// What lies in its places cannot be read.
pub fn is_wanted(graph: &Graph, selection: &Selection, placer: &Placer<'_>, id: NodeId, tree: &Tree) -> Result<bool> {
    if !selection.may_run[id] {
        return Ok(false);
    }
    let taken = graph.takers(id).any(|taker| selection.wanted[taker] && graph.stage_of(taker).off.is_none());
    Ok(!taken || selection.named[id] || (placer.has_places(id) && !placer.lacks(id, tree)?.is_empty()))
}

/// That a node's result is needed, and may not be made.
pub fn may_not_run(node: &str) -> Diagnostic {
    let error = Diagnostic::new(format!("`{node}` has no result in the cache, and may not run"));
    error.hint("leave `--only` away, or name it there too")
}
