//! `flow path`

use std::path::PathBuf;

use flow_core::Diagnostic;
use flow_engine::RunError;

use super::{Done, draw_warnings, load_and_open};
use crate::{
    args::{self, Pipeline},
    failure::Failure,
    interrupt, out,
    ui::{format::bytes, shell_word},
};

/// Prints the directories of a stage's output, one line a node.
pub fn path(args: &args::Path) -> Done {
    let lines: String =
        of_stage(&args.pipeline, &args.stage)?.iter().map(|(_, path)| format!("{}\n", path.display())).collect();
    Ok(out::write(&lines)?)
}

/// The nodes of a stage and the directories of their output. What only the team has is fetched.
pub fn of_stage(pipeline: &Pipeline, stage: &str) -> Result<Vec<(String, PathBuf)>, Failure> {
    let (project, _, cache) = load_and_open(pipeline)?;
    project.graph().select(stage)?;
    let cancel = interrupt::watch().map_err(|error| Failure::Cache(error.into()))?;
    let fetching = |node: &str, size| eprintln!("{node}: {} come from the team's cache", bytes(size));
    let outputs = flow_engine::outputs(&project, &cache, stage, &fetching, &cancel);
    if cancel.is_set() {
        return Err(Failure::Interrupted);
    }
    draw_warnings(&cache);
    match outputs {
        Ok(outputs) => Ok(outputs),
        Err(RunError::Cache(error)) => Err(Failure::Cache(error)),
        // The stage exists, so what is missing is its result: a matter of running it, not of the file.
        Err(RunError::Pipeline(mut errors)) => {
            let hint = format!("flow run {} {}", pipeline.words(), shell_word(stage));
            match errors.last_mut() {
                Some(last) if last.hints.is_empty() => *last = last.clone().hint(hint),
                Some(_) => {}
                None => errors.push(Diagnostic::new(format!("`{stage}` has no result yet")).hint(hint)),
            }
            Err(Failure::Stage(errors))
        }
    }
}
