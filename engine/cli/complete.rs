//! What a shell completes beyond the names of commands and flags: the stages and profiles of the pipeline that stands
//! on the line, and runs.
//!
//! The shell asks `flow` itself at every tab, so this reads the outline of one file, or the names of some directories,
//! and nothing else.

use std::{path::PathBuf, sync::Arc};

use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use flow_engine::{History, Outline, outline};

use crate::commands::open_here;

/// So many runs are offered.
const RUNS: usize = 50;

/// The stages of the pipeline on the line; without one, those of the last run.
pub fn stages() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let names = match on_the_line() {
            Some(outline) => outline.stages,
            None => stages_of_last_run(),
        };
        candidates(names)
    })
}

/// The profiles of the pipeline on the line.
pub fn profiles() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(on_the_line().map_or_else(Vec::new, |outline| outline.profiles)))
}

/// The newest runs.
pub fn runs() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let ids = open_here().ok().and_then(|(_, cache)| {
            let history = History::open(&cache);
            let runs = history.list().ok()?.take(RUNS);
            Some(runs.map(|run| (run.id, run.head.pipeline)).collect::<Vec<_>>())
        });
        let ids = ids.unwrap_or_default().into_iter();
        let ids = ids.map(|(id, pipeline)| CompletionCandidate::new(id).help(Some(pipeline.into())));
        ["last", "last-1"].map(CompletionCandidate::new).into_iter().chain(ids).collect()
    })
}

fn candidates(names: Vec<String>) -> Vec<CompletionCandidate> {
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// The outline of the first pipeline file among the words that were typed.
fn on_the_line() -> Option<Outline> {
    let words = std::env::args_os().skip_while(|word| word != "--").skip(2).map(PathBuf::from);
    let mut files = words.filter(|word| word.extension().is_some_and(|ending| ending == "toml") && word.is_file());
    Some(outline(&files.next()?))
}

fn stages_of_last_run() -> Vec<String> {
    let run = open_here().ok().and_then(|(_, cache)| History::open(&cache).find("last").ok());
    run.map_or_else(Vec::new, |run| run.stages().into_iter().map(|stage| stage.name).collect())
}

/// The script that makes a shell ask `flow`.
pub fn script(shell: clap_complete::Shell) -> std::io::Result<Vec<u8>> {
    use clap_complete::env::{Bash, Elvish, EnvCompleter, Fish, Powershell, Zsh};
    let shell: Arc<dyn EnvCompleter> = match shell {
        clap_complete::Shell::Bash => Arc::new(Bash),
        clap_complete::Shell::Zsh => Arc::new(Zsh),
        clap_complete::Shell::Fish => Arc::new(Fish),
        clap_complete::Shell::Elvish => Arc::new(Elvish),
        clap_complete::Shell::PowerShell => Arc::new(Powershell),
        other => return Err(std::io::Error::other(format!("there is no completion for {other}"))),
    };
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "flow", "flow", "flow", &mut script)?;
    Ok(script)
}

/// Set by the script when it asks.
pub const VARIABLE: &str = "FLOW_COMPLETE";
