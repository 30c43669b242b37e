//! What a report says, as data: the runs, their stages and nodes. `flow report --json` prints it, the page shows it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use flow_core::{Digest, Key, masked, masked_json};
use flow_engine::{History, RunInfo, StageHead};
use serde::Serialize;
use serde_json::Value as Json;

use super::{
    corpus::{self, Corpus},
    curve::Curve,
    evaluation::Evaluation,
    library::Library,
    samples::Sample,
    tale::{State, Tale, Told},
};
use crate::commands::{runs, status::natural};

/// Of a stage so many nodes are told one by one.
pub const NODES: usize = 400;
/// Of what failed so many lines of its log are told.
const LINES: usize = 60;

/// A report.
#[derive(Debug, Serialize)]
pub struct Report {
    /// flow's version, which wrote it.
    pub flow: &'static str,
    /// When, in seconds since 1970.
    pub made: f64,
    pub runs: Vec<Run>,
    /// What is not the same in all runs.
    pub differences: Vec<Difference>,
}

/// A row of what differs: a side a run.
#[derive(Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The stage; empty for the run itself.
    pub stage: String,
    pub what: String,
    pub sides: Vec<Option<String>>,
}

/// A run.
#[derive(Debug, Serialize)]
pub struct Run {
    pub id: String,
    pub pipeline: String,
    pub file: String,
    pub profile: Option<String>,
    pub set: Vec<String>,
    pub state: &'static str,
    pub alive: bool,
    pub started: f64,
    pub finished: Option<f64>,
    pub seconds: Option<f64>,
    pub saved: f64,
    pub version: String,
    pub host: String,
    pub cpus: u32,
    pub gpus: u32,
    pub memory: u64,
    pub pid: u32,
    /// How many nodes were asked for.
    pub nodes: usize,
    pub stages: Vec<Stage>,
}

/// A stage of a run.
#[derive(Debug, Serialize)]
pub struct Stage {
    pub name: String,
    pub kind: String,
    pub version: u32,
    /// The stages that it takes from.
    pub takes: Vec<String>,
    /// How many nodes of it were asked for.
    pub asked: usize,
    /// State → how many nodes, the gravest last; those that were not come to are among them.
    pub states: BTreeMap<State, usize>,
    /// What it was told, of its first node. Secrets are not shown.
    pub params: Json,
    pub nodes: Vec<Node>,
    pub corpus: Option<Corpus>,
}

/// A node of a run.
#[derive(Debug, Serialize)]
pub struct Node {
    pub name: String,
    /// What the events tell of it. Secrets are not shown.
    #[serde(flatten)]
    pub told: Told,
    /// Where the log is, if there is one.
    pub log_path: Option<String>,
    /// Port → what entered.
    pub inputs: BTreeMap<String, Vec<String>>,
    pub made: Option<Made>,
    pub curves: BTreeMap<String, Curve>,
    pub evaluation: Option<Evaluation>,
    pub samples: Vec<Sample>,
}

/// A result: who made it, and its files.
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    pub created: f64,
    pub host: String,
    pub version: String,
    /// The first of them.
    pub files: Vec<MadeFile>,
    pub count: usize,
    /// Its files are not here.
    pub freed: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct MadeFile {
    pub name: String,
    pub size: u64,
    pub digest: String,
}

impl Report {
    /// Of these runs, read whole.
    pub fn of(library: &Library<'_>, runs: &[RunInfo]) -> Result<Self> {
        let run = |info: &RunInfo| {
            let tale = tale_of(library.history(), info)?;
            Run::of(library, info, &tale)
        };
        Ok(Self::from(runs.iter().map(run).collect::<Result<Vec<Run>>>()?))
    }
}

impl From<Vec<Run>> for Report {
    fn from(runs: Vec<Run>) -> Self {
        let differences = if runs.len() > 1 { differences(&runs) } else { Vec::new() };
        Self { flow: env!("CARGO_PKG_VERSION"), made: now(), runs, differences }
    }
}

fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// What a run's events tell, or those of the run that it found again.
pub fn tale_of(history: &History, info: &RunInfo) -> Result<Tale> {
    let mut tale = Tale::default();
    match &info.head.same_nodes_as {
        Some(other) => {
            // That it is gone leaves nothing to tell of the nodes.
            if let Ok(other) = history.find(other) {
                tale.read(&other.events_path())?;
            }
            tale.found_again(info.head.started);
        }
        None => drop(tale.read(&info.events_path())?),
    }
    Ok(tale)
}

impl Run {
    /// What there is to say of a run of which the events tell this.
    pub fn of(library: &Library<'_>, info: &RunInfo, tale: &Tale) -> Result<Self> {
        let head = &info.head;
        let mut tale = tale.clone();
        tale.settle(info.alive, head.interrupted, head.finished);
        let mut nodes: BTreeMap<String, Vec<(String, Told)>> = BTreeMap::new();
        for (name, told) in tale.nodes {
            let stage = name.split_once('[').map_or(name.as_str(), |(stage, _)| stage).to_owned();
            nodes.entry(stage).or_default().push((name, told));
        }
        let curves = library.curves(info, &nodes, tale.curves)?;
        let mut stages = Vec::new();
        for stage in info.stages() {
            let of = nodes.remove(&stage.name).unwrap_or_default();
            stages.push(Stage::of(library, info, stage, of, &curves)?);
        }
        let (cpus, gpus, memory) = head.machine;
        Ok(Self {
            id: info.id.clone(),
            pipeline: head.pipeline.clone(),
            file: head.file.display().to_string(),
            profile: head.profile.clone(),
            set: head.set.iter().map(|set| masked(set)).collect(),
            state: runs::state(info),
            alive: info.alive,
            started: head.started,
            finished: head.finished,
            seconds: head.finished.or_else(|| tale.newest.filter(|_| !info.alive)).map(|end| end - head.started),
            saved: if head.finished.is_some() {
                head.saved
            } else {
                let nodes = stages.iter().flat_map(|stage: &Stage| &stage.nodes);
                nodes.filter(|node| node.told.state.is_hit()).map(|node| node.told.cost).sum()
            },
            version: head.version.clone(),
            host: head.host.clone(),
            cpus,
            gpus,
            memory,
            pid: head.pid,
            nodes: head.nodes,
            stages,
        })
    }

    /// How many nodes stand how.
    pub fn states(&self) -> BTreeMap<State, usize> {
        let mut states = BTreeMap::new();
        for (state, count) in self.stages.iter().flat_map(|stage| &stage.states) {
            *states.entry(*state).or_default() += count;
        }
        states
    }

    /// When what is known of it ends.
    pub fn end(&self) -> f64 {
        let spans = self.stages.iter().flat_map(|stage| &stage.nodes).flat_map(|node| &node.told.spans);
        let last = spans.map(|span| span.to.unwrap_or(span.from)).fold(self.started, f64::max);
        if self.alive { now().floor().max(last) } else { self.finished.unwrap_or(last) }
    }
}

impl Stage {
    fn of(
        library: &Library<'_>,
        info: &RunInfo,
        head: StageHead,
        mut told: Vec<(String, Told)>,
        curves: &BTreeMap<String, BTreeMap<String, Curve>>,
    ) -> Result<Self> {
        told.sort_by_cached_key(|(node, _)| natural(node));
        let mut states: BTreeMap<State, usize> = BTreeMap::new();
        for (_, told) in &told {
            *states.entry(told.state).or_default() += 1;
        }
        let rest = head.nodes.saturating_sub(told.len());
        if rest > 0 {
            let state = if info.alive { State::Ahead } else { State::NotRun };
            *states.entry(state).or_default() += rest;
        }
        let keys: Vec<Key> = told.iter().filter(|(_, told)| told.digest.is_some()).filter_map(|(_, t)| t.key).collect();
        let corpus = corpus::of(library, &keys)?;
        let first = told.first().and_then(|(node, told)| Some((node, told.key?)));
        let parts = first.map(|(node, key)| library.parts(&info.id, node, &key)).transpose()?.flatten();
        let params = parts.map(|parts| masked_json(&parts.params)).unwrap_or_default();
        let nodes = told
            .into_iter()
            .take(NODES)
            .map(|(name, told)| Node::of(library, info, name, told, curves))
            .collect::<Result<_>>()?;
        let StageHead { name, kind, version, nodes: asked, takes, .. } = head;
        Ok(Self { name, kind, version, takes, asked, states, params, nodes, corpus })
    }

    /// The state that says most of it.
    pub fn state(&self) -> State {
        self.states.last_key_value().map_or(State::Ahead, |(state, _)| *state)
    }

    /// What its nodes took together, and how large their results are.
    pub fn sums(&self) -> (f64, u64) {
        let seconds = self.nodes.iter().filter_map(|node| node.told.seconds).sum();
        (seconds, self.nodes.iter().filter_map(|node| node.told.bytes).sum())
    }
}

impl Node {
    fn of(
        library: &Library<'_>,
        info: &RunInfo,
        name: String,
        told: Told,
        curves: &BTreeMap<String, BTreeMap<String, Curve>>,
    ) -> Result<Self> {
        let parts = told.key.map(|key| library.parts(&info.id, &name, &key)).transpose()?.flatten();
        let inputs = parts.iter().flat_map(|parts| &parts.inputs);
        let inputs = inputs.map(|(port, digests)| (port.clone(), digests.iter().map(Digest::short).collect()));
        let known = match told.key.filter(|_| told.digest.is_some()) {
            Some(key) => library.result(&key)?,
            None => None,
        };
        let log = info.log_path(&name);
        let quiet = |lines: Vec<String>| -> Vec<String> { lines.iter().map(|line| masked(line)).collect() };
        // What its causes quote is not told again.
        let quoted = told.log.last().is_some_and(|last| told.causes.iter().any(|cause| cause.ends_with(last.as_str())));
        let lines = if quoted { told.log.len() } else { told.log.len().saturating_sub(LINES) };
        Ok(Self {
            curves: curves.get(&name).cloned().unwrap_or_default(),
            evaluation: known.as_ref().and_then(|known| known.evaluation.clone()),
            samples: known.as_ref().map(|known| known.samples.clone()).unwrap_or_default(),
            made: known.map(|known| known.made.clone()),
            inputs: inputs.collect(),
            log_path: log.is_file().then(|| log.display().to_string()),
            told: Told {
                why: masked(&told.why),
                causes: quiet(told.causes),
                log: quiet(told.log.into_iter().skip(lines).collect()),
                warnings: quiet(told.warnings),
                ..told
            },
            name,
        })
    }
}

/// What is not the same in all runs: of the runs themselves, and the parameters of their stages.
fn differences(runs: &[Run]) -> Vec<Difference> {
    let mut rows: Vec<Difference> = Vec::new();
    let mut add = |stage: &str, what: &str, sides: Vec<Option<String>>| {
        if sides.windows(2).any(|pair| pair[0] != pair[1]) {
            rows.push(Difference { stage: stage.to_owned(), what: what.to_owned(), sides });
        }
    };
    let of = |text: fn(&Run) -> Option<String>| runs.iter().map(text).collect::<Vec<_>>();
    add("", "pipeline", of(|run| Some(run.file.clone())));
    add("", "profile", of(|run| run.profile.clone()));
    let of_all = |set: &String| runs.iter().all(|run| run.set.contains(set));
    let own = |run: &Run| run.set.iter().filter(|set| !of_all(set)).cloned().collect::<Vec<_>>().join(" ");
    add("", "set", runs.iter().map(own).map(|set| (!set.is_empty()).then_some(set)).collect());
    add("", "flow", of(|run| Some(run.version.clone())));
    add("", "machine", of(|run| Some(run.host.clone())));
    let mut names: Vec<&String> = Vec::new();
    for stage in runs.iter().flat_map(|run| &run.stages) {
        if !names.contains(&&stage.name) {
            names.push(&stage.name);
        }
    }
    for name in names {
        let stages: Vec<Option<&Stage>> =
            runs.iter().map(|run| run.stages.iter().find(|stage| stage.name == *name)).collect();
        let side = |text: &dyn Fn(&Stage) -> String| stages.iter().map(|stage| stage.map(text)).collect::<Vec<_>>();
        add(name, "kind", side(&|stage| format!("{} {}", stage.kind, stage.version)));
        add(name, "nodes", side(&|stage| stage.asked.to_string()));
        let params: Vec<BTreeMap<String, String>> = stages
            .iter()
            .map(|stage| {
                let mut flat = BTreeMap::new();
                stage.iter().for_each(|stage| flatten("", &stage.params, &mut flat));
                flat
            })
            .collect();
        let all: BTreeSet<&String> = params.iter().flat_map(BTreeMap::keys).collect();
        for param in all {
            add(name, param, params.iter().map(|of| of.get(param).cloned()).collect());
        }
    }
    rows
}

/// A table of tables as `optim.lr` → its value.
pub fn flatten(name: &str, value: &Json, into: &mut BTreeMap<String, String>) {
    match value {
        Json::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                flatten(&name, value, into);
            }
        }
        Json::Null => {}
        Json::Object(_) if name.is_empty() => {}
        Json::String(text) => drop(into.insert(name.to_owned(), text.clone())),
        other => drop(into.insert(name.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_become_dotted_names() {
        let mut flat = BTreeMap::new();
        flatten("", &serde_json::json!({ "optim": { "lr": 1e-3, "betas": [0.9, 0.95] }, "x": null }), &mut flat);
        let expected = [("optim.betas", "[0.9,0.95]"), ("optim.lr", "0.001")];
        assert_eq!(flat, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }
}
