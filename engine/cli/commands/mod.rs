//! One file a command. Here: how a pipeline, its settings and the cache are opened.

pub mod cache;
pub mod cancel;
pub mod check;
pub mod completions;
pub mod diff;
pub mod diff_weights;
pub mod doctor;
pub mod generate;
pub mod graph;
pub mod init;
pub mod inspect;
pub mod job;
pub mod lock;
pub mod log;
pub mod nodes;
pub mod path;
mod pin;
pub mod plan;
pub mod report;
pub mod run;
pub mod runs;
pub mod schema;
pub mod show;
pub mod status;
pub mod svg;
mod team;
pub mod ui;
pub mod why;

use std::{
    mem::ManuallyDrop,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use flow_cache::Cache;
use flow_core::{Cancelled, Diagnostic, masked};
use flow_engine::{LoadOptions, Project, RunOptions, Settings, project_dir};

use crate::{
    args::{Pipeline, Selection},
    failure::{Failure, draw_all},
    interrupt,
    ui::{diagnostic::Severity, shell_word},
};

/// A command's end.
pub type Done = Result<(), Failure>;

/// Loads a pipeline; its errors are all of them. The process ends when it is done with it: to take it apart takes time.
fn load(args: &Pipeline) -> Result<ManuallyDrop<Project>, Failure> {
    let project = Project::load(&args.file, flow_data::KINDS, &args.load_options())?;
    if project.graph().stages.is_empty() {
        let warning = Diagnostic::new(format!("{} has no stages: there is nothing to do", args.file.display()));
        draw_all(
            &[warning.hint("a stage is a table `[stage.NAME]`; `flow init` writes a pipeline to begin with")],
            Severity::Warning,
        );
    }
    Ok(ManuallyDrop::new(project))
}

/// An environment variable that is text; others are no parameters.
fn text((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}

/// The settings that hold in the directory of a pipeline, and the cache that they name.
fn open(project: &Path) -> Result<(Settings, Cache), Failure> {
    let settings = Settings::load(project, &|name| std::env::var(name).ok())?;
    let cache = Cache::open(&settings.cache_dir)?;
    let wait = settings.wait;
    cache.while_waiting(move |since| wait_for_gc(since, wait));
    if let Some(remote) = &settings.remote {
        cache.connect(remote.config.clone());
    }
    Ok((settings, cache))
}

/// Says that a gc is waited for, and for how long at most.
fn wait_for_gc(since: Duration, longest: Option<Duration>) -> anyhow::Result<()> {
    static SAID: AtomicBool = AtomicBool::new(false);
    if since >= WORTH_SAYING && !SAID.swap(true, Ordering::Relaxed) {
        eprintln!("waiting  another flow removes what nobody needs from the cache (`flow cache gc`)");
    }
    // Whoever waits is asked to stop in order, also where nothing else would be.
    if interrupt::watch()?.is_set() {
        return Err(Cancelled.into());
    }
    if let Some(longest) = longest.filter(|longest| since >= *longest) {
        if longest.is_zero() {
            anyhow::bail!("`flow cache gc` keeps the cache closed, and nothing is to wait (`wait = 0`)");
        }
        anyhow::bail!("`flow cache gc` keeps the cache closed for longer than {longest:?} (`wait`)");
    }
    Ok(())
}

/// Shorter waits are nobody's concern.
const WORTH_SAYING: Duration = Duration::from_millis(500);

/// What went wrong in the cache and was survived, where no run tells it.
fn draw_warnings(cache: &Cache) {
    let warnings: Vec<Diagnostic> = cache.take_warnings().into_iter().map(Diagnostic::new).collect();
    draw_all(&warnings, Severity::Warning);
}

/// A pipeline with its settings and cache.
fn load_and_open(args: &Pipeline) -> Result<(ManuallyDrop<Project>, Settings, Cache), Failure> {
    let (settings, cache) = open(&project_dir(&args.file))?;
    Ok((load(args)?, settings, cache))
}

/// The settings and the cache where no pipeline is named: those of the current directory.
pub fn open_here() -> Result<(Settings, Cache), Failure> {
    open(Path::new("."))
}

impl Selection {
    /// As the engine takes it.
    fn options(&self) -> RunOptions {
        RunOptions {
            only: self.only.clone(),
            from: self.from.clone(),
            targets: self.stages.clone(),
            force: self.force.clone(),
            ..RunOptions::default()
        }
    }
}

impl Pipeline {
    /// What is laid over the file.
    fn load_options(&self) -> LoadOptions {
        LoadOptions {
            profile: self.profile.clone(),
            set: self.set.clone(),
            env: std::env::vars_os().filter_map(text).collect(),
        }
    }

    /// The words that name it again in a shell: `p.toml --profile mini --set a=1`.
    fn words(&self) -> String {
        let mut words = shell_word(&self.file.to_string_lossy());
        for (flag, value) in
            self.profile.iter().map(|profile| ("--profile", profile)).chain(self.set.iter().map(|set| ("--set", set)))
        {
            words += &format!(" {flag} {}", shell_word(&masked(value)));
        }
        words
    }
}
