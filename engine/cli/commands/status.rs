//! `flow status`: how the nodes of a run stand. From the run's files alone, so it works from another terminal while the
//! run goes on.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use flow_cache::Cache;
use flow_core::{Diagnostic, Event, How, did_you_mean};
use flow_engine::{ClusterJob, Executors, History, RunInfo, SETTINGS_FILE, jobs, project_dir};
use serde_json::json;

use super::{
    Done,
    nodes::{Row, tally},
    open, open_here, runs,
};
use crate::{
    args,
    failure::{Failure, unknown},
    out,
    ui::{
        format::{amount, clock, plural, value},
        shell_word,
    },
};

/// Shows the last run.
pub fn status(args: &args::Status) -> Done {
    let (settings, cache) = match &args.file {
        Some(file) => open(&project_dir(file))?,
        None => open_here()?,
    };
    let run = match &args.file {
        Some(file) => {
            let dir = project_dir(file);
            let absolute = file.file_name().map_or_else(|| dir.clone(), |name| dir.join(name));
            History::open(&cache).last(&absolute)?.ok_or_else(|| {
                if !file.exists() {
                    return no_file(file);
                }
                let hint = format!("flow run {}", shell_word(&file.to_string_lossy()));
                Failure::absent(Diagnostic::new(format!("`{}` has not run yet", file.display())).hint(hint))
            })?
        }
        None => History::open(&cache).find("last").map_err(unknown)?,
    };
    if args.json {
        return Ok(out::write(&json(&run, &|_| true)?)?);
    }
    let (table, to_go) = table(&run)?;
    out::write(&table)?;
    tell_jobs(&cache, &settings.executors, &run);
    let head = &run.head;
    let counted = tally(&[(head.ran, "ran"), (head.skipped, "skipped"), (head.failed, "failed")]);
    let counted = if head.finished.is_some() { format!(": {counted}") } else { String::new() };
    let nodes = plural(head.nodes, "node");
    eprintln!(
        "{} · run {} of {} · {nodes} · {}{counted}{}{to_go}",
        head.pipeline,
        run.id,
        clock(head.started),
        runs::state(&run),
        if to_go.is_empty() { "" } else { " · " }
    );
    Ok(())
}

/// Jobs in a cluster that make nodes of a run, whoever submitted them.
fn tell_jobs(cache: &Cache, executors: &Executors, run: &RunInfo) {
    for job in jobs(cache, executors, true).iter().filter(|job| job.pipeline == run.head.file) {
        let (ClusterJob { executor, id, user, nodes, submitted, .. }, state) = (job, job.state.as_deref());
        let nodes = match nodes.as_slice() {
            [node] => node.clone(),
            [first, .., last] => format!("{first} to {last}"),
            [] => continue,
        };
        let state = state.unwrap_or("is not known to be over");
        eprintln!("job {id} of {executor} {state}: {nodes} · submitted {} by {user}", clock(*submitted));
    }
}

/// There is no such pipeline, and it never ran.
fn no_file(file: &Path) -> Failure {
    let wrong = Diagnostic::new(format!("there is no file `{}`", file.display()));
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut pipelines: Vec<String> = names.filter(|name| name.ends_with(".toml") && name != SETTINGS_FILE).collect();
    pipelines.sort_unstable();
    let asked = file.file_name().unwrap_or_default().to_string_lossy();
    let hint = match did_you_mean(&asked, pipelines.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None if pipelines.is_empty() => "`flow runs` lists what ran".to_owned(),
        None => format!("there are: {}", pipelines.join(", ")),
    };
    wrong.hint(hint).into()
}

/// A table of the nodes of a run to which it came, and how many there are besides: empty if there are none.
pub fn table(run: &RunInfo) -> Result<(String, String)> {
    let rows = nodes(run)?;
    let to_go = match run.head.nodes.saturating_sub(rows.len()) {
        0 => String::new(),
        number if run.alive => format!("{} to go", plural(number, "node")),
        number => format!("{} not begun", plural(number, "node")),
    };
    let table = super::nodes::table(
        rows.into_iter()
            .map(|(node, state)| Row {
                state: state.word.to_owned(),
                node,
                seconds: state.seconds,
                bytes: state.bytes,
                note: state.note,
                fetch: None,
                below: Vec::new(),
            })
            .collect(),
    );
    Ok((table, to_go))
}

/// The nodes of a run that are `wanted`, one JSON object a line.
pub fn json(run: &RunInfo, wanted: &dyn Fn(&str) -> bool) -> Result<String> {
    let mut text = String::new();
    let metrics = run.metrics()?;
    for (node, state) in nodes(run)?.into_iter().filter(|(node, _)| wanted(node)) {
        let measured = metrics.get(&node).map(|measured| json!({ "step": measured.step, "values": measured.values }));
        let line = json!({
            "node": node, "state": state.word, "seconds": state.seconds, "bytes": state.bytes, "note": state.note,
            "key": state.key, "digest": state.digest, "metrics": measured,
        });
        text += &format!("{line}\n");
    }
    Ok(text)
}

/// How a node stands.
#[derive(Default)]
struct State {
    word: &'static str,
    seconds: Option<f64>,
    bytes: Option<u64>,
    note: String,
    key: Option<String>,
    digest: Option<String>,
}

/// What the run recorded at its end, and over it what its events say so far; sorted, `tokens[2]` before `tokens[10]`.
fn nodes(run: &RunInfo) -> Result<Vec<(String, State)>> {
    let mut states: BTreeMap<String, State> = BTreeMap::new();
    for (node, record) in run.nodes()? {
        let state = State {
            // Without an end it runs, until the events say otherwise.
            word: record.how.map_or("running", word),
            seconds: Some(record.seconds),
            bytes: record.how.is_some().then_some(record.bytes),
            key: Some(record.key.to_string()),
            digest: record.digest.map(|digest| digest.to_string()),
            ..State::default()
        };
        states.insert(node, state);
    }
    for record in run.events()? {
        // A line of a log is about no node's state, or about no node at all.
        if let (Some(node), false) = (record.event.node(), matches!(record.event, Event::Log { .. })) {
            states.entry(node.to_owned()).or_default().apply(&record.event, record.time);
        }
    }
    for state in states.values_mut() {
        if ["running", "waiting", "retry"].contains(&state.word) {
            if run.alive && state.word != "retry" {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                state.seconds = state.seconds.map(|since| (now.as_secs_f64() - since).max(0.0));
            } else if !run.alive {
                let word = match run.head.finished {
                    _ if run.head.interrupted => "interrupted",
                    // It was to be looked at again, and the run ended before.
                    Some(_) => "not run",
                    None => "killed",
                };
                (state.word, state.seconds) = (word, None);
            }
        }
    }
    let mut states: Vec<_> = states.into_iter().collect();
    states.sort_by_cached_key(|(node, _)| natural(node));
    Ok(states)
}

impl State {
    /// While a node runs, `seconds` is when it began.
    fn apply(&mut self, event: &Event, time: f64) {
        match event {
            Event::Waiting { reason, .. } => {
                (self.word, self.seconds, self.note) = ("waiting", Some(time), reason.clone());
            }
            Event::Started { why, key, .. } => {
                (self.word, self.seconds, self.note) = ("running", Some(time), why.clone());
                self.key = Some(key.to_string());
            }
            Event::Progress { done, total, unit, .. } => self.note = amount(*done, *total, *unit),
            Event::Metrics { step, values, .. } => {
                let loss = values.get("loss").map_or_else(String::new, |loss| format!(", loss {}", value(*loss)));
                self.note = format!("step {step}{loss}");
            }
            Event::Finished { how, key, digest, seconds, bytes, .. } => {
                *self = Self {
                    word: word(*how),
                    seconds: Some(*seconds),
                    bytes: Some(*bytes),
                    note: String::new(),
                    key: Some(key.to_string()),
                    digest: Some(digest.to_string()),
                };
            }
            Event::Failed { causes, seconds, retry_after, .. } => {
                self.word = if retry_after.is_some() { "retry" } else { "failed" };
                self.seconds = Some(*seconds);
                self.note = causes.first().and_then(|cause| cause.lines().next()).unwrap_or_default().to_owned();
            }
            Event::Blocked { by, .. } => (self.word, self.note) = ("not run", format!("{by} failed")),
            Event::RunStarted { .. } | Event::RunFinished { .. } | Event::Log { .. } => {}
        }
    }
}

/// How a result came, in a word.
pub fn word(how: How) -> &'static str {
    match how {
        How::Ran => "ran",
        How::Resumed => "resumed",
        How::Cached => "cached",
        How::Shared => "shared",
        How::Remote => "remote",
        How::Off => "off",
    }
}

/// `tokens[10]` → `tokens`, 10.
pub fn natural(node: &str) -> (String, u64) {
    let shard = node.strip_suffix(']').and_then(|node| node.rsplit_once('['));
    match shard.and_then(|(stage, index)| Some((stage, index.parse().ok()?))) {
        Some((stage, index)) => (stage.to_owned(), index),
        None => (node.to_owned(), 0),
    }
}
