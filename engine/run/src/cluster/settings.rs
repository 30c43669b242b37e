//! What the settings say of machines that are not this one: `executor`, `[slurm]`, `[executors.NAME]`.

use std::{collections::BTreeMap, time::Duration};

use flow_core::{Diagnostic, Value, did_you_mean};
use globset::Glob;
use serde::Deserialize;

use super::template::{self, Template};
use crate::common;

/// The executor that is this machine.
pub const LOCAL: &str = "local";
/// The one that is built in.
pub const SLURM: &str = "slurm";

/// One table: `[slurm]`, `[executors.NAME]`, or in it `[….stage.PATTERN]`, which says it of some stages alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutorFile {
    /// `--partition`; a queue.
    #[serde(default)]
    pub partition: Option<String>,
    /// `--account`; a group.
    #[serde(default)]
    pub account: Option<String>,
    /// `--qos`
    #[serde(default)]
    pub qos: Option<String>,
    /// The time limit of a job whose stage says none in its `resources`.
    #[serde(default, deserialize_with = "common::duration")]
    pub time: Option<Duration>,
    /// What else `sbatch` (or the submitting command) is given.
    #[serde(default)]
    pub args: Option<Vec<String>>,
    /// Lines of shell before flow starts in a job: `module load …`.
    #[serde(default)]
    pub setup: Option<String>,
    /// So many nodes of a stage run in one job, one after the other.
    #[serde(default)]
    pub together: Option<usize>,
    /// So long before its time limit a job is told to stop, and writes a checkpoint.
    #[serde(default, deserialize_with = "common::duration")]
    pub signal: Option<Duration>,
    /// How often a stage that stopped at its time limit, or lost its machine, is submitted again.
    #[serde(default)]
    pub requeue: Option<u32>,
    /// The scheduler is asked no more often than this.
    #[serde(default, deserialize_with = "common::duration")]
    pub poll: Option<Duration>,
    /// A template that flow brings along: `age`, `pbs`.
    #[serde(default)]
    pub preset: Option<String>,
    /// The command that submits `{script}`, and prints the job's id.
    #[serde(default)]
    pub submit: Option<String>,
    /// A regular expression that finds the id in what `submit` prints, as its first group.
    #[serde(default)]
    pub id: Option<String>,
    /// The first lines of a job's script. A line with a placeholder that has no value is left out.
    #[serde(default)]
    pub header: Option<Vec<String>>,
    /// The command that prints a line a job.
    #[serde(default)]
    pub status: Option<String>,
    /// A regular expression for such a line, with groups named `id` and `state`.
    #[serde(default)]
    pub line: Option<String>,
    /// What the scheduler's words for states mean: `pending`, `running`, `done`, `failed`, `lost`. A job that `status` does
    /// not print has ended.
    #[serde(default)]
    pub states: Option<BTreeMap<String, String>>,
    /// The command that ends the jobs `{ids}`.
    #[serde(default)]
    pub cancel: Option<String>,
    /// What is said of the stages with these names alone, as patterns.
    #[serde(default)]
    pub stage: BTreeMap<String, ExecutorFile>,
}

impl ExecutorFile {
    /// Takes what `over` says.
    pub(crate) fn lay_over(&mut self, over: Self) {
        macro_rules! take {
            ($($field:ident),*) => { $( if over.$field.is_some() { self.$field = over.$field; } )* };
        }
        take!(partition, account, qos, time, args, setup, together, signal, requeue, poll);
        take!(preset, submit, id, header, status, line, states, cancel);
        for (pattern, table) in over.stage {
            self.stage.entry(pattern).or_default().lay_over(table);
        }
    }

    /// What holds for a stage: the tables whose patterns fit its name are laid over the rest, in their order.
    pub(crate) fn of_stage(&self, stage: &str) -> Self {
        let mut options = Self { stage: BTreeMap::new(), ..self.clone() };
        let fits = |pattern: &str| Glob::new(pattern).is_ok_and(|glob| glob.compile_matcher().is_match(stage));
        for (_, table) in self.stage.iter().filter(|(pattern, _)| fits(pattern)) {
            options.lay_over(table.clone());
        }
        options
    }
}

/// All that the settings say of executors.
pub type Executors = BTreeMap<String, ExecutorFile>;

/// An executor, by what starts its jobs.
#[derive(Clone, Debug)]
pub enum Executor {
    /// Slurm's `sbatch`, `squeue`, `scancel`.
    Slurm(ExecutorFile),
    /// Commands that the settings name.
    Template(Box<Template>, ExecutorFile),
}

impl Executor {
    /// The executor of this name.
    ///
    /// # Errors
    /// There is none; or what is said of it is not enough.
    pub(crate) fn named(name: &str, executors: &Executors) -> Result<Self, Diagnostic> {
        let table = executors.get(name);
        if name == SLURM {
            return Ok(Self::Slurm(table.cloned().unwrap_or_default()));
        }
        let Some(table) = table else {
            let known = || [LOCAL, SLURM].into_iter().chain(executors.keys().map(String::as_str));
            let error = Diagnostic::new(format!("there is no executor `{name}`"));
            return Err(error.hint(match did_you_mean(name, known()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are `{LOCAL}`, `{SLURM}`, and what `[executors.NAME]` in flow.toml describes"),
            }));
        };
        Template::new(name, table).map(|template| Self::Template(Box::new(template), table.clone()))
    }

    /// What its table says.
    #[must_use]
    pub fn options(&self) -> &ExecutorFile {
        match self {
            Self::Slurm(options) | Self::Template(_, options) => options,
        }
    }

    /// The program that submits jobs.
    pub(crate) fn program(&self) -> &str {
        match self {
            Self::Slurm(_) => "sbatch",
            Self::Template(template, _) => template.program(),
        }
    }
}

/// What is wrong with the tables of a settings file.
pub(crate) fn check(executors: &Executors, slurm: &ExecutorFile, value: &Value) -> Vec<Diagnostic> {
    let mut errors = Vec::new();
    let tables = executors.iter().map(|(name, table)| (format!("executors.{name}"), table));
    for (at, table) in tables.chain([(SLURM.to_owned(), slurm)]) {
        let mut say = |field: &str, message: String, hint: &str| {
            let error = Diagnostic::new(message).at(value.nearest(&format!("{at}.{field}")).span.clone());
            errors.push(error.hint(hint));
        };
        if at == SLURM && (table.preset.is_some() || table.submit.is_some() || table.status.is_some()) {
            say(
                "",
                "flow knows Slurm's own commands".into(),
                "`submit`, `status` and `preset` are of `[executors.NAME]`",
            );
        }
        if matches!(at.strip_prefix("executors."), Some(LOCAL | SLURM)) {
            say("", format!("`{at}` is no name for an executor of your own"), "Slurm's table is `[slurm]`");
        }
        if let Some(preset) = table.preset.as_deref().filter(|preset| template::preset(preset).is_none()) {
            say("preset", format!("there is no template `{preset}`"), "there are `age` and `pbs`");
        }
        if table.together == Some(0) {
            say("together", "a job runs at least one node".into(), "`together = 8`: eight of a stage in one job");
        }
        for (field, pattern) in [("id", &table.id), ("line", &table.line)] {
            if let Some(Err(error)) = pattern.as_deref().map(regex::Regex::new) {
                say(field, format!("this is no regular expression: {error}"), "its syntax is that of Rust's `regex`");
            }
        }
        for (pattern, of_stage) in &table.stage {
            if let Err(error) = Glob::new(pattern) {
                say("stage", format!("`{pattern}` is no pattern: {}", error.kind()), "such as `train*`");
            }
            let whole = [
                of_stage.preset.is_some(),
                of_stage.submit.is_some(),
                of_stage.id.is_some(),
                of_stage.status.is_some(),
                of_stage.line.is_some(),
                of_stage.states.is_some(),
                of_stage.cancel.is_some(),
            ];
            if whole.contains(&true) || of_stage.poll.is_some() || !of_stage.stage.is_empty() {
                let message = format!("`{at}.stage.{pattern}` says how the scheduler is spoken to");
                say("stage", message, "that is the same for all stages: it belongs to the executor's own table");
            }
        }
    }
    errors
}
