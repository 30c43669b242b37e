//! Why a node runs, or does not: the difference of what its key is made of now and what it was made of before.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::OnceLock,
};

use flow_cache::Cache;
use flow_core::{Diagnostic, Digest, How, Key, KeyParts, is_secret_name, masked};
use serde_json::Value as Json;

use crate::{
    apart::apart,
    cause::{Cause, Tracer, known_parts},
    decide::{Reason, Work},
    graph::Node,
    history::{History, NodeRecord},
    kept::Past,
    plan::{plan as plan_of, plan_with},
    project::Project,
    select::{RunOptions, Selection},
    summary::RunError,
    verdict::{Expected, Plan, Verdict},
};

/// One part of a key that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which: `params.seed`, `input tokenizer`, `version`, `kind`.
    pub what: String,
    /// What it was, if it was there.
    pub from: Option<String>,
    /// What it is, if it is there.
    pub to: Option<String>,
    /// The port and the number in it, if it is an input.
    pub input: Option<(String, usize)>,
    /// Where that comes from, if it is an input and somebody asked.
    pub cause: Option<Cause>,
}

impl Change {
    /// `params.lr: 1 → 2`, each side cut to at most `room` characters around what differs.
    #[must_use]
    pub fn line(&self, room: usize) -> String {
        let of = |side: &Option<String>| side.clone().unwrap_or_else(|| "nothing".into());
        let [from, to] = apart(&of(&self.from), &of(&self.to), room);
        format!("{}: {from} → {to}", self.what)
    }
}

/// What differs between two keys' parts, in a fixed order. Secrets are not told.
#[must_use]
pub fn changes(from: &KeyParts, to: &KeyParts) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut differ = |what: String, from: Option<String>, to: Option<String>| {
        if from != to {
            let [from, to] = shown(&what, [&from, &to]);
            changes.push(Change { what, from, to, input: None, cause: None });
        }
    };
    differ("kind".into(), Some(from.kind.clone()), Some(to.kind.clone()));
    differ("version".into(), Some(from.version.to_string()), Some(to.version.to_string()));
    differ("key format".into(), Some(from.format.to_string()), Some(to.format.to_string()));
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    flatten("params", &from.params, &mut before);
    flatten("params", &to.params, &mut after);
    let names: BTreeSet<_> = before.keys().chain(after.keys()).cloned().collect();
    for name in names {
        let (from, to) = (before.remove(&name), after.remove(&name));
        differ(name, from, to);
    }
    inputs(from, to, &mut changes);
    changes
}

/// The two sides of a change without the secrets in them.
fn shown(what: &str, sides: [&Option<String>; 2]) -> [Option<String>; 2] {
    let side = |text: &String| if is_secret_name(what) { "***".into() } else { masked(text) };
    let [before, mut after] = sides.map(|text| text.as_ref().map(side));
    if before == after {
        after = after.map(|text| text + " (another secret)");
    }
    [before, after]
}

fn flatten(path: &str, value: &Json, into: &mut BTreeMap<String, String>) {
    match value {
        Json::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(key, value)| flatten(&format!("{path}.{key}"), value, into));
        }
        _ => drop(into.insert(path.to_owned(), flow_core::canonical_json(value))),
    }
}

fn inputs(from: &KeyParts, to: &KeyParts, changes: &mut Vec<Change>) {
    let ports: BTreeSet<&String> = from.inputs.keys().chain(to.inputs.keys()).collect();
    for port in ports {
        let of = |parts: &KeyParts| parts.inputs.get(port).cloned().unwrap_or_default();
        let (before, after) = (of(from), of(to));
        let count = before.len().max(after.len());
        for i in (0..count).filter(|&i| before.get(i) != after.get(i)) {
            let what = if count == 1 { format!("input {port}") } else { format!("input {port}[{i}]") };
            let short = |digests: &[Digest]| digests.get(i).map(Digest::short);
            let (from, to) = (short(&before), short(&after));
            changes.push(Change { what, from, to, input: Some((port.clone(), i)), cause: None });
        }
    }
}

/// The run that a node is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Previous {
    /// The run's id.
    pub run: String,
    /// The key that the node had there.
    pub key: Key,
}

/// Why a node would run, or would not.
#[derive(Debug)]
pub struct Why {
    /// The node.
    pub node: String,
    /// Its key, if all that it takes is known.
    pub key: Option<Key>,
    /// What the key is made of.
    pub parts: Option<KeyParts>,
    /// What would be done about it.
    pub verdict: Verdict,
    /// What it is compared with.
    pub previous: Option<Previous>,
    /// What differs. Empty if nothing does, or if it is not known what the other key was made of.
    pub changes: Vec<Change>,
    /// What the other key was made of is known.
    pub comparable: bool,
    /// What must run before its key is known, and why that runs.
    pub waits_for: Vec<Cause>,
}

/// Explains the nodes that `name` (a stage or node) means, against the run `against` or the last that had them.
///
/// # Errors
/// There is no such stage or run; an input cannot be read.
pub fn why(project: &Project, cache: &Cache, name: &str, against: Option<&str>) -> Result<Vec<Why>, RunError> {
    let graph = project.graph();
    let nodes = graph.select(name).map_err(|error| RunError::Pipeline(vec![error]))?;
    let options = RunOptions { targets: vec![name.to_owned()], ..RunOptions::default() };
    let selection = Selection::new(graph, &options).map_err(RunError::Pipeline)?;
    let explainer = Explainer::new(project, cache, &selection.wanted);
    let (plan, decider) = plan_with(project, cache, &selection, &explainer, true)?;
    let history = History::open(cache);
    let against = match against {
        Some(id) => {
            let run = history.find(id).map_err(|error| match error.downcast::<Diagnostic>() {
                Ok(unknown) => RunError::Pipeline(vec![unknown]),
                Err(error) => RunError::Cache(error),
            })?;
            let nodes = run.nodes().map_err(RunError::Cache)?;
            Some((run.id, nodes))
        }
        None => None,
    };
    let previous = |node: &str| match &against {
        Some((run, nodes)) => nodes.get(node).map(|record| Previous { run: run.clone(), key: record.key }),
        None => explainer.previous(node).map(|(run, record)| Previous { run: run.clone(), key: record.key }),
    };
    let past = &explainer.past;
    let mut whole: Option<Plan> = None;
    let mut answers = Vec::new();
    for id in nodes {
        let mut tracer = Tracer::new(graph, cache, &decider, &previous, past);
        let node = graph.nodes[id].name.clone();
        let previous = previous(&node);
        let decidable = decider.is_decidable(id);
        let parts = if decidable { known_parts(&decider, cache, id).map_err(RunError::Cache)? } else { None };
        let before = match &previous {
            Some(Previous { run, key }) => past.parts(cache, run, &node, key).map_err(RunError::Cache)?,
            None => None,
        };
        let comparable = before.is_some() && parts.is_some();
        let mut changes = before.zip(parts.as_ref()).map_or_else(Vec::new, |(before, now)| changes(&before, now));
        tracer.trace(id, &mut changes).map_err(RunError::Cache)?;
        let mut verdict = plan.nodes[id].verdict.clone();
        // Who asks about it does not need its files: that is for those to say that take from it.
        if let Verdict::Run { key, .. } = &verdict
            && cache.absent(key).map_err(RunError::Cache)?.is_some()
        {
            let whole = match &mut whole {
                Some(whole) => whole,
                None => whole.insert(plan_of(project, cache, &RunOptions::default())?),
            };
            verdict = whole.nodes[id].verdict.clone();
        }
        let waits = matches!(verdict, Verdict::After { .. });
        let waits_for = if waits { tracer.waits_for(id, &plan).map_err(RunError::Cache)? } else { Vec::new() };
        let key = parts.as_ref().map(KeyParts::key);
        answers.push(Why { node, key, parts, verdict, previous, changes, comparable, waits_for });
    }
    Ok(answers)
}

/// Says in a line why nodes run. Looks into past runs when it is asked first, and not before.
pub struct Explainer<'a> {
    project: &'a Project,
    cache: &'a Cache,
    /// Who may be asked about, by node.
    wanted: &'a [bool],
    last: OnceLock<BTreeMap<String, (String, NodeRecord)>>,
    times: OnceLock<BTreeMap<String, Vec<f64>>>,
    past: Past,
}

/// In a line that says why a node runs, each side of a change has so many characters.
const SIDE: usize = 36;
/// How many past runs are looked through for the last one that had a node.
const LOOK_BACK: usize = 20;

impl<'a> Explainer<'a> {
    /// For those of the nodes that are `wanted`.
    pub fn new(project: &'a Project, cache: &'a Cache, wanted: &'a [bool]) -> Self {
        Self { project, cache, wanted, last: OnceLock::new(), times: OnceLock::new(), past: Past::new(cache) }
    }

    fn nodes(&self) -> impl Iterator<Item = &'a Node> {
        let nodes = self.project.graph().nodes.iter().zip(self.wanted);
        nodes.filter(|(_, wanted)| **wanted).map(|(node, _)| node)
    }

    /// The names of their stages.
    fn stages(&self) -> HashSet<&'a str> {
        self.nodes().map(|node| stage_of(&node.name)).collect()
    }

    /// The last run that had the node, and what became of it there.
    pub fn previous(&self, node: &str) -> Option<&(String, NodeRecord)> {
        self.last.get_or_init(|| self.look_at_last()).get(node)
    }

    /// Looks into past runs, where it was not done: before many threads ask at once. Who reads them is helped by others, which must
    /// not wait for the same.
    pub fn look_back(&self) {
        self.last.get_or_init(|| self.look_at_last());
        self.times.get_or_init(|| self.look_at_times());
    }

    fn look_at_last(&self) -> BTreeMap<String, (String, NodeRecord)> {
        let mut last = BTreeMap::new();
        // What cannot be read explains nothing, and hinders nothing.
        let (history, file) = (History::open(self.cache), self.project.absolute_file());
        let Ok(runs) = history.of(&file) else { return last };
        let (mut seen, stages) = (HashSet::new(), self.stages());
        for run in runs.take(LOOK_BACK) {
            // Runs that found all as another had left it have the same to say, over and over.
            if !seen.insert(run.head.same_nodes_as.clone().unwrap_or_else(|| run.id.clone())) {
                continue;
            }
            let nodes = run.nodes_of(&|node| stages.contains(stage_of(node))).unwrap_or_default();
            // Where its stage was off, it had no key.
            for (node, record) in nodes.into_iter().filter(|(_, record)| record.how != Some(How::Off)) {
                last.entry(node).or_insert_with(|| (run.id.clone(), record));
            }
            if self.nodes().all(|node| last.contains_key(&node.name)) {
                break;
            }
        }
        last
    }

    /// Why a node runs.
    pub fn explain(&self, node: &str, work: &Work) -> String {
        match work.reason {
            Reason::Forced => return "forced".into(),
            Reason::NotCached => return "cache = false".into(),
            Reason::Absent => return "its files are not here, and are needed".into(),
            Reason::NoResult => {}
        }
        let Some((run, before)) = self.previous(node) else { return "never ran before".into() };
        if before.key == work.key {
            let said = match before.how {
                None if before.failed => "failed last time",
                None => "did not finish last time",
                Some(_) => "its result is no longer in the cache",
            };
            return said.into();
        }
        let Ok(Some(parts)) = self.past.parts(self.cache, run, node, &before.key) else {
            return "changed since the last run".into();
        };
        let changes = changes(&parts, &work.parts);
        let mut text: Vec<String> = changes.iter().take(3).map(|change| change.line(SIDE)).collect();
        if changes.len() > 3 {
            text.push(format!("and {} more", changes.len() - 3));
        }
        text.join(", ")
    }

    /// How long the node will take, by the runs of it that were; by those of its stage if it is new there.
    pub fn expected(&self, node: &str) -> Option<Expected> {
        let times = self.times.get_or_init(|| self.look_at_times());
        let mean = |times: Vec<f64>| {
            let runs = times.len();
            (runs > 0).then(|| Expected { seconds: times.iter().sum::<f64>() / runs as f64, runs })
        };
        if let Some(own) = times.get(node) {
            return mean(own.clone());
        }
        let alike = times.iter().filter(|(other, _)| stage_of(other) == stage_of(node));
        mean(alike.flat_map(|(_, times)| times.clone()).collect()).or_else(|| {
            let (_, before) = self.previous(node)?;
            let record = self.cache.record(&before.key).ok()??;
            Some(Expected { seconds: record.cost, runs: 1 })
        })
    }

    /// Node → the seconds of each time that it ran to its end.
    fn look_at_times(&self) -> BTreeMap<String, Vec<f64>> {
        let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let (history, file) = (History::open(self.cache), self.project.absolute_file());
        let Ok(runs) = history.of(&file) else { return times };
        let stages = self.stages();
        for run in runs.filter(|run| run.head.same_nodes_as.is_none()).take(LOOK_BACK) {
            for (node, record) in run.nodes_of(&|node| stages.contains(stage_of(node))).unwrap_or_default() {
                if record.how == Some(How::Ran) {
                    times.entry(node).or_default().push(record.seconds);
                }
            }
        }
        times
    }
}

/// `tokens[2]` → `tokens`
fn stage_of(node: &str) -> &str {
    node.split_once('[').map_or(node, |(stage, _)| stage)
}

/// The digest of nothing: stands where a node that is off has no key.
pub(crate) const NO_DIGEST: Digest = Digest([0; 32]);
