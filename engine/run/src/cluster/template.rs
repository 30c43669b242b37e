//! [`Template`]: a scheduler of a site's own, by command lines and regular expressions in its settings. A job a task.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use flow_core::{Cancel, Cancelled, Diagnostic};
use regex::Regex;

use super::{
    ask::{ask, complaint},
    scheduler::{Answer, Batch, End, Refused, Scheduler, Seen},
    settings::ExecutorFile,
    shape::Shape,
    spec,
};

/// The environment of a batch's jobs.
const ENV: &str = "env.sh";
const POLL: Duration = Duration::from_secs(10);
/// Each task is a call of the submitting command.
const MOST: usize = 200;

/// What submitting commands say when their scheduler does not answer just now: of Grid Engine, then of PBS.
const LATER: [&str; 9] = [
    "commlib error",
    "unable to send message to qmaster",
    "unable to contact qmaster",
    "Unable to open a connection to the qmaster",
    "cannot connect to server",
    "Connection refused",
    "Connection timed out",
    "Communication failure",
    "did not answer within",
];

/// A user has too many jobs just now.
const ROOM: [&str; 4] =
    ["jobs are allowed per user", "jobs are allowed per cluster", "would exceed", "Maximum number of jobs"];

/// What is said of several jobs when one of them ended meanwhile, which is an error to some: the others are ended.
const ENDED: [&str; 6] = [
    "has registered the job",
    "has deleted job",
    "is already in deletion",
    "does not exist",
    "Unknown Job Id",
    "Job has finished",
];

/// What a shell has for itself. Most of it it does not let be set: bash ends a script that tries.
const SHELL: [&str; 7] = ["PWD", "UID", "EUID", "PPID", "SHELLOPTS", "BASHOPTS", "BASH_VERSINFO"];
/// What a scheduler says of a job, besides what begins with `SGE_` and `PBS_`: of one that flow was started from it is none of
/// the new one's.
const JOB: [&str; 8] = ["HOSTNAME", "JOB_ID", "JOB_NAME", "JOB_SCRIPT", "NHOSTS", "NQUEUES", "NSLOTS", "PE_HOSTFILE"];
/// What a scheduler may give to a job, and who submits may have, too: the job's own holds.
const GIVEN: [&str; 5] = ["TMPDIR", "TMP", "CUDA_VISIBLE_DEVICES", "NCPUS", "QUEUE"];

/// A scheduler that is spoken to as its site says.
#[derive(Clone, Debug)]
pub struct Template {
    name: String,
    submit: String,
    id: Regex,
    header: Vec<String>,
    status: String,
    line: Regex,
    states: BTreeMap<String, String>,
    cancel: String,
    poll: Duration,
    /// What stops questions, and the submitting of more.
    pub(super) stop: Cancel,
}

/// The templates that flow brings along, as tables of settings.
pub fn preset(name: &str) -> Option<&'static str> {
    match name {
        "age" => Some(include_str!("age.toml")),
        "pbs" => Some(include_str!("pbs.toml")),
        _ => None,
    }
}

impl Template {
    /// As a table of the settings describes it.
    ///
    /// # Errors
    /// The table says too little, or a template does not exist.
    pub fn new(name: &str, table: &ExecutorFile) -> Result<Self, Diagnostic> {
        let mut whole = match table.preset.as_deref().map(preset) {
            Some(Some(text)) => toml::from_str(text).expect("a shipped template is whole: a test reads each"),
            Some(None) => return Err(Diagnostic::new(format!("executor `{name}` is of a template that is not there"))),
            None => ExecutorFile::default(),
        };
        whole.lay_over(table.clone());
        let lacks = |field: &str| {
            let error = Diagnostic::new(format!("`[executors.{name}]` does not say `{field}`"));
            error.hint("`preset = \"age\"` or `\"pbs\"` says all of it; or submit, id, status, line, states, cancel")
        };
        let regex = |field: &str, text: Option<String>| {
            let text = text.ok_or_else(|| lacks(field))?;
            Regex::new(&text).map_err(|error| Diagnostic::new(format!("`{field}` of executor `{name}`: {error}")))
        };
        let template = Self {
            name: name.to_owned(),
            submit: whole.submit.ok_or_else(|| lacks("submit"))?,
            id: regex("id", whole.id)?,
            header: whole.header.unwrap_or_default(),
            status: whole.status.ok_or_else(|| lacks("status"))?,
            line: regex("line", whole.line)?,
            states: whole.states.ok_or_else(|| lacks("states"))?,
            cancel: whole.cancel.ok_or_else(|| lacks("cancel"))?,
            poll: whole.poll.unwrap_or(POLL),
            stop: Cancel::default(),
        };
        let groups: Vec<_> = template.line.capture_names().flatten().collect();
        if !(groups.contains(&"id") && groups.contains(&"state")) {
            let error = Diagnostic::new(format!("`line` of executor `{name}` has no groups named `id` and `state`"));
            return Err(error.hint(r"such as '^(?P<id>\d+)\s+\S+\s+(?P<state>\w+)'"));
        }
        if template.id.captures_len() < 2 {
            return Err(Diagnostic::new(format!("`id` of executor `{name}` has no group: which part is the id?")));
        }
        Ok(template)
    }

    /// The program that submits.
    pub fn program(&self) -> &str {
        self.submit.split_whitespace().next().unwrap_or_default()
    }

    fn shell(text: &str, stop: Option<&Cancel>) -> Result<String> {
        let output = ask(Command::new("sh").args(["-c", text]), stop)?;
        if !output.status.success() {
            bail!("`{text}`: {}", complaint(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn submit_one(&self, batch: &Batch<'_>, task: usize, shell: &str, body: &str) -> Result<String, Refused> {
        let value = |name: &str| value(batch, task, name);
        // What is said of its stage alone holds for a header, too.
        let header = batch.shape.options.header.as_ref().unwrap_or(&self.header);
        let header: String = header.iter().filter_map(|line| fill(line, &value)).map(|line| line + "\n").collect();
        let env = quoted(&batch.dir.join(ENV).display().to_string());
        let text = format!("{shell}\n{header}. {env}\n{}={task}\n{body}", spec::TASK);
        let written = fs::write(script(batch, task), text).context("cannot write a job's script");
        written.map_err(Refused::Never)?;
        let command = fill(&self.submit, &value).ok_or_else(|| {
            Refused::Never(anyhow!("`{}` has a placeholder without a value: say it in the settings", self.submit))
        })?;
        let said = Self::shell(&command, None).map_err(refused)?;
        let id = self.id.captures(&said).and_then(|found| found.get(1));
        let id = id.ok_or_else(|| Refused::Never(anyhow!("`{command}` printed no id of a job: {}", said.trim())))?;
        Ok(id.as_str().to_owned())
    }

    fn seen(&self, word: &str) -> Seen {
        let end = || Seen::Ended(End::Itself(word.to_owned()));
        match self.states.get(word).map(String::as_str) {
            Some("running") => Seen::Running(String::new()),
            Some("done") => end(),
            Some("failed") => Seen::Stuck(format!("its state is {word}")),
            Some("lost") => Seen::Ended(End::Lost(format!("its state is {word}"))),
            _ => Seen::Pending(word.to_owned()),
        }
    }
}

/// What follows from what the submitting command said.
fn refused(error: anyhow::Error) -> Refused {
    let said = format!("{error:#}");
    let has = |words: &[&str]| words.iter().any(|words| said.contains(words));
    match has(&LATER) {
        _ if has(&ROOM) => Refused::Room(error),
        true => Refused::Later(error),
        false => Refused::Never(error),
    }
}

/// Fills `{name}`s in; nothing if one of them has no value. A part in brackets, `[:ngpus={gpus}]`, is left out then, and
/// the rest stays.
fn fill(text: &str, value: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let (mut filled, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(['{', '[']) {
        filled += &rest[..at];
        let (is_part, inside) = (rest.as_bytes()[at] == b'[', &rest[at + 1..]);
        let end = inside.find(if is_part { ']' } else { '}' });
        rest = match end.map(|end| (&inside[..end], &inside[end + 1..])) {
            Some((part, behind)) if is_part && part.contains('{') => {
                filled += &fill(part, value).unwrap_or_default();
                behind
            }
            Some((name, behind)) if !is_part && is_name(name) => {
                filled += &value(name)?;
                behind
            }
            _ => {
                filled += &rest[at..=at];
                inside
            }
        };
    }
    Some(filled + rest)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// What a placeholder stands for.
fn value(batch: &Batch<'_>, task: usize, name: &str) -> Option<String> {
    let Shape { stage, nodes, cpus, gpus, memory, time, options, .. } = batch.shape;
    let time = |part: fn(u64) -> String| time.map(|time| part(time.as_secs()));
    match name {
        "script" => Some(quoted(&script(batch, task))),
        "log" => Some(batch.dir.join(format!("{task}.log")).display().to_string()),
        "name" => Some(format!("{stage}-{task}")),
        "project" => Some(batch.project.display().to_string()),
        "nodes" => Some(nodes.to_string()),
        "cpus" => Some(cpus.to_string()),
        "gpus" => (*gpus > 0).then(|| gpus.to_string()),
        "memory_mib" => (*memory > 0).then(|| memory.div_ceil(1 << 20).to_string()),
        "memory_gib" => (*memory > 0).then(|| memory.div_ceil(1 << 30).to_string()),
        "time" => time(|s| format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)),
        "seconds" => time(|s| s.to_string()),
        "partition" => options.partition.clone(),
        "account" => options.account.clone(),
        "qos" => options.qos.clone(),
        "args" => Some(options.args.iter().flatten().map(|arg| quoted(arg)).collect::<Vec<_>>().join(" ")),
        _ => None,
    }
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Where a task's script is. Its name is the job's: schedulers refuse those that begin with a digit, or have a dot.
fn script(batch: &Batch<'_>, task: usize) -> String {
    batch.dir.join(format!("flow-{task}")).display().to_string()
}

/// The environment of who submits, for the jobs to take: what goes along by `-V` the scheduler shows to everyone.
fn write_env(dir: &Path) -> Result<()> {
    let is_name =
        |name: &str| !name.is_empty() && name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
    let of_job = |name: &str| JOB.contains(&name) || ["SGE_", "PBS_"].iter().any(|start| name.starts_with(start));
    let of_flow = |name: &str| flow_core::SECRETS.contains(&name) || name == spec::TASK;
    let own = |name: &str| of_flow(name) || of_job(name) || SHELL.contains(&name);
    let texts = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let vars = std::env::vars_os().filter_map(texts).filter(|(name, _)| is_name(name) && !own(name));
    let line = |(name, value): (String, String)| {
        let unless = if GIVEN.contains(&&*name) { format!("[ \"${{{name}+x}}\" ] || ") } else { String::new() };
        format!("{unless}export {name}={}\n", quoted(&value))
    };
    let text: String = vars.map(line).collect();
    let path = dir.join(ENV);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("cannot write {}", path.display()))
}

impl Scheduler for Template {
    fn name(&self) -> &str {
        &self.name
    }

    fn poll(&self) -> Duration {
        self.poll
    }

    fn most_tasks(&self) -> usize {
        MOST
    }

    fn submit(&self, batch: &Batch<'_>) -> Result<Vec<String>, Refused> {
        let common = fs::read_to_string(batch.dir.join(spec::SCRIPT)).context("cannot read the job's script");
        let common = common.map_err(Refused::Never)?;
        write_env(batch.dir).map_err(Refused::Never)?;
        let (shell, body) = common.split_once('\n').unwrap_or(("#!/bin/sh", &common));
        let mut ids: Vec<String> = Vec::with_capacity(batch.tasks);
        for task in 0..batch.tasks {
            let stopped = || Refused::Later(Cancelled.into());
            let submitted = match self.stop.is_set() {
                true => Err(stopped()),
                false => self.submit_one(batch, task, shell, body),
            };
            match submitted {
                Ok(id) => ids.push(id),
                // Those that were taken may run already.
                Err(Refused::Room(_) | Refused::Later(_)) if !ids.is_empty() => return Ok(ids),
                Err(refused) => {
                    // What was submitted of it would run for nothing.
                    self.cancel(&ids.iter().map(String::as_str).collect::<Vec<_>>()).ok();
                    return Err(refused);
                }
            }
        }
        Ok(ids)
    }

    fn find(&self, _: &str, _: usize) -> Result<Option<Vec<String>>> {
        // Names are cut by such schedulers; a job that was forgotten finds its work done, or does it.
        Ok(None)
    }

    fn look(&self, _: &[&str]) -> Result<Answer> {
        let said = Self::shell(&self.status, Some(&self.stop))?;
        let found = said.lines().filter_map(|line| self.line.captures(line));
        let seen = found.map(|found| (found["id"].to_owned(), self.seen(&found["state"]))).collect();
        Ok(Answer { seen, complete: true })
    }

    fn cancel(&self, ids: &[&str]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let ids = ids.join(" ");
        let command = fill(&self.cancel, &|name| (name == "ids").then(|| ids.clone()));
        let command = command.context("`cancel` has a placeholder that is not `{ids}`")?;
        let output = ask(Command::new("sh").args(["-c", &command]), None)?;
        let said = complaint(&output);
        let is_fine = |part: &str| ENDED.iter().any(|words| part.contains(words));
        if !output.status.success() && !said.split("; ").all(is_fine) {
            bail!("`{command}`: {said}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_a_placeholder_without_a_value_is_left_out() {
        let value = |name: &str| (name == "time").then(|| "1:00:00".to_owned());
        assert_eq!(fill("#$ -l h_rt={time}", &value).as_deref(), Some("#$ -l h_rt=1:00:00"));
        assert_eq!(fill("#$ -l gpu={gpus}", &value), None);
        assert_eq!(fill("select=1[:ngpus={gpus}][:t={time}] [x]", &value).as_deref(), Some("select=1:t=1:00:00 [x]"));
        assert_eq!(fill("awk '{print $1}' {time}", &value).as_deref(), Some("awk '{print $1}' 1:00:00"));
    }

    #[test]
    fn a_scheduler_that_is_away_or_full_refuses_nothing_for_good() {
        let said = |text: &str| refused(anyhow!("`qsub x`: {text}"));
        let away = "error: commlib error: got select error (Connection refused); Unable to run job: unable to send message \
                    to qmaster using port 6444 on host \"m\": got send error; Exiting.";
        assert!(matches!(said(away), Refused::Later(_)));
        let full = "Unable to run job: job rejected: only 6 jobs are allowed per user (current job count: 6); Exiting.";
        assert!(matches!(said(full), Refused::Room(_)));
        assert!(matches!(said("Unable to run job: unknown resource \"x\"; Exiting."), Refused::Never(_)));
    }

    #[test]
    fn shipped_templates_are_whole() {
        for name in ["age", "pbs"] {
            let table = ExecutorFile { preset: Some(name.into()), ..ExecutorFile::default() };
            Template::new(name, &table).unwrap();
        }
        assert!(Template::new("own", &ExecutorFile::default()).is_err());
    }
}
