//! `flow path`

use flow_core::Diagnostic;
use flow_engine::RunError;

use super::{Done, draw_warnings, load_and_open};
use crate::{
    args,
    failure::Failure,
    interrupt, out,
    ui::{format::bytes, shell_word},
};

/// Prints the directories of a stage's output, one line a node. What only the team has is fetched.
pub fn path(args: &args::Path) -> Done {
    let (project, _, cache) = load_and_open(&args.pipeline)?;
    project.graph().select(&args.stage)?;
    let cancel = interrupt::watch().map_err(|error| Failure::Cache(error.into()))?;
    let fetching = |node: &str, size| eprintln!("{node}: {} come from the team's cache", bytes(size));
    let outputs = flow_engine::outputs(&project, &cache, &args.stage, &fetching, &cancel);
    if cancel.is_set() {
        return Err(Failure::Interrupted);
    }
    draw_warnings(&cache);
    let outputs = match outputs {
        Ok(outputs) => outputs,
        Err(RunError::Cache(error)) => return Err(Failure::Cache(error)),
        // The stage exists, so what is missing is its result: a matter of running it, not of the file.
        Err(RunError::Pipeline(mut errors)) => {
            let hint = format!("flow run {} {}", args.pipeline.words(), shell_word(&args.stage));
            match errors.last_mut() {
                Some(last) if last.hints.is_empty() => *last = last.clone().hint(hint),
                Some(_) => {}
                None => errors.push(Diagnostic::new(format!("`{}` has no result yet", args.stage)).hint(hint)),
            }
            return Err(Failure::Stage(errors));
        }
    };
    let lines: String = outputs.iter().map(|(_, path)| format!("{}\n", path.display())).collect();
    Ok(out::write(&lines)?)
}
