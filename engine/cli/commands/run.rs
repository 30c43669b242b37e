//! `flow run`

use flow_engine::RunOptions;

use super::{Done, load_and_open};
use crate::{
    args,
    failure::Failure,
    interrupt,
    ui::{self, Rerun, shell_word},
};

/// Runs a pipeline.
pub fn run(args: &args::Run) -> Done {
    let options = RunOptions { keep_going: args.keep_going, ..args.selection.options() };
    run_with(&args.pipeline, &options, args.jobs, args.json)
}

/// Runs a pipeline with `options`.
pub fn run_with(pipeline: &args::Pipeline, options: &RunOptions, jobs: Option<u32>, json: bool) -> Done {
    let (project, mut settings, cache) = load_and_open(pipeline)?;
    if let Some(jobs) = jobs {
        settings.jobs = jobs as usize;
    }
    let cancel = interrupt::watch().map_err(|error| Failure::Cache(error.into()))?;
    let rerun = Rerun::new(typed(), pipeline.words(), cache.runs_dir());
    let view = ui::view(json, &rerun);
    let summary = flow_engine::run(&project, &cache, &settings, options, &*view, &cancel);
    drop(view);
    let summary = summary?;
    match (summary.interrupted, summary.ok) {
        (true, _) => Err(Failure::Interrupted),
        (false, true) => Ok(()),
        // What failed was said when it failed.
        (false, false) => Err(Failure::Stage(Vec::new())),
    }
}

/// The command as it was typed, quoted for a shell.
fn typed() -> String {
    std::env::args_os().skip(1).fold("flow".to_owned(), |text, word| text + " " + &shell_word(&word.to_string_lossy()))
}
