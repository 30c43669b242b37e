//! `flow run`

use std::io::IsTerminal as _;

use flow_core::{is_secret_name, masked};
use flow_engine::{Asked, RunOptions, Settings, project_dir};

use super::{Done, load, open};
use crate::{
    args::{self, OnInterrupt},
    failure::Failure,
    interrupt,
    ui::{self, Rerun, shell_word},
};

/// Runs a pipeline.
pub fn run(args: &args::Run) -> Done {
    let options = RunOptions { keep_going: args.keep_going, ..args.selection.options() };
    run_with(&args.pipeline, &options, &How { jobs: args.jobs, json: args.json, on_interrupt: args.on_interrupt })
}

/// What is asked of a run besides what it is about.
pub struct How {
    /// Nodes at a time.
    pub jobs: Option<u32>,
    /// Events as lines of JSON.
    pub json: bool,
    /// What becomes of jobs in a cluster.
    pub on_interrupt: OnInterrupt,
}

/// Runs a pipeline with `options`.
pub fn run_with(pipeline: &args::Pipeline, options: &RunOptions, how: &How) -> Done {
    let (mut settings, cache) = open(&project_dir(&pipeline.file))?;
    let load_options = pipeline.load_options();
    let shown = |variable: &String| match variable.split_once('=') {
        Some((name, value)) if !is_secret_name(name) => format!("{name}={} ", shell_word(&masked(value))),
        _ => String::new(),
    };
    let variables: Vec<String> = load_options.variables().iter().map(shown).collect();
    let rerun = Rerun::new(variables.concat(), typed(), pipeline.words(), cache.runs_dir());
    let view = ui::view(how.json, &rerun);
    let asked =
        Asked { file: &pipeline.file, kinds: flow_data::KINDS, load: &load_options, run: options, settings: &settings };
    if flow_engine::unchanged(&asked, &cache, &*view).is_some() {
        drop(view);
        return rerun.into_unwritten().map_or(Ok(()), |error| Err(error.into()));
    }
    let project = load(pipeline)?;
    if let Some(jobs) = how.jobs {
        settings.jobs = jobs as usize;
    }
    let cancel = interrupt::watch().map_err(|error| Failure::Cache(error.into()))?;
    let summary = flow_engine::run(&project, &cache, &settings, options, &*view, &cancel);
    drop(view);
    let summary = summary?;
    if !summary.left.is_empty() {
        left(&summary.left, &settings, how.on_interrupt);
    }
    match (summary.interrupted, summary.ok) {
        (true, _) => Err(Failure::Interrupted),
        (false, true) => rerun.into_unwritten().map_or(Ok(()), |error| Err(error.into())),
        // What failed was said when it failed.
        (false, false) if summary.unusable => Err(Failure::Unusable),
        (false, false) => Err(Failure::Stage(Vec::new())),
    }
}

/// Jobs go on although the run was interrupted: they are left, or cancelled.
fn left(jobs: &[(String, String)], settings: &Settings, on_interrupt: OnInterrupt) {
    let (many, go, them) = match jobs.len() {
        1 => ("1 job".to_owned(), "goes", "it"),
        number => (format!("{number} jobs"), "go", "them"),
    };
    let cancels = match on_interrupt {
        OnInterrupt::Leave => false,
        OnInterrupt::Cancel => true,
        OnInterrupt::Ask => {
            std::io::stdin().is_terminal() && std::io::stderr().is_terminal() && {
                // Another Ctrl-C ends this at once, and they go on.
                eprint!("{many} {go} on in the cluster. Cancel {them}? [y/N] ");
                let mut answer = String::new();
                std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
            }
        }
    };
    match cancels.then(|| flow_engine::end_jobs(&settings.executors, jobs)) {
        None => eprintln!("{many} left in the cluster: the next run takes {them} up; `flow cancel` ends {them}"),
        Some(Ok(())) => eprintln!("{many} cancelled"),
        Some(Err(error)) => eprintln!("cannot cancel {many}: {error:#}"),
    }
}

/// The command as it was typed, quoted for a shell.
fn typed() -> String {
    std::env::args_os().skip(1).fold("flow".to_owned(), |text, word| text + " " + &shell_word(&word.to_string_lossy()))
}
