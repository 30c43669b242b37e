//! `flow run`

use flow_engine::{Asked, RunOptions, project_dir};

use super::{Done, load, open};
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
    let (mut settings, cache) = open(&project_dir(&pipeline.file))?;
    let rerun = Rerun::new(typed(), pipeline.words(), cache.runs_dir());
    let load_options = pipeline.load_options();
    let view = ui::view(json, &rerun);
    let asked =
        Asked { file: &pipeline.file, kinds: flow_data::KINDS, load: &load_options, run: options, settings: &settings };
    if flow_engine::unchanged(&asked, &cache, &*view).is_some() {
        drop(view);
        return rerun.into_unwritten().map_or(Ok(()), |error| Err(error.into()));
    }
    let project = load(pipeline)?;
    if let Some(jobs) = jobs {
        settings.jobs = jobs as usize;
    }
    let cancel = interrupt::watch().map_err(|error| Failure::Cache(error.into()))?;
    let summary = flow_engine::run(&project, &cache, &settings, options, &*view, &cancel);
    drop(view);
    let summary = summary?;
    match (summary.interrupted, summary.ok) {
        (true, _) => Err(Failure::Interrupted),
        (false, true) => rerun.into_unwritten().map_or(Ok(()), |error| Err(error.into())),
        // What failed was said when it failed.
        (false, false) if summary.unusable => Err(Failure::Unusable),
        (false, false) => Err(Failure::Stage(Vec::new())),
    }
}

/// The command as it was typed, quoted for a shell.
fn typed() -> String {
    std::env::args_os().skip(1).fold("flow".to_owned(), |text, word| text + " " + &shell_word(&word.to_string_lossy()))
}
