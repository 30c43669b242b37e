//! `flow check`

use super::{Done, load};
use crate::{
    args,
    failure::draw_all,
    ui::{diagnostic::Severity, format::plural},
};

/// Reports every error of a pipeline.
pub fn check(args: &args::Check) -> Done {
    let project = load(&args.pipeline)?;
    let checked = project.check()?;
    draw_all(&checked.warnings, Severity::Warning);
    let graph = project.graph();
    eprintln!(
        "{}: {} in {}, nothing wrong",
        args.pipeline.file.display(),
        plural(graph.stages.len(), "stage"),
        plural(graph.nodes.len(), "node")
    );
    Ok(())
}
