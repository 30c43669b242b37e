//! flow-engine: a pipeline file becomes a graph, the graph is walked, what is not in the cache is run.
//!
//! [`Project`] (the file: [`load`], [`params`], [`common`], [`link`], [`graph`]) is what a question is asked of:
//! [`run`], [`plan()`], [`why()`], [`outputs`]. All of them decide about a node with the same [`decide`] code, so that they agree. 
//! No stage kind is named here: the registry is handed in.

mod common;
mod graph;
mod link;
mod load;
mod lockfile;
mod order;
mod params;
mod project;
mod sched;
mod syntax;

pub use common::{Common, Resources};
pub use graph::{Graph, Node, NodeId, PortInputs, Source, StageId, StageInfo};
pub use load::{LoadOptions, Outline, outline};
pub use lockfile::{LOCK_FILE, LockFile, Pinned};
pub use project::{Checked, Project, project_dir};
