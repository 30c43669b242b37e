//! `flow plan`: what a run would do, decided by the same code, with nothing run.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use flow_cache::{Cache, Outcome, TeamResult};
use flow_core::{Cancel, Diagnostic, Key};
use rayon::prelude::*;

use crate::{
    decide::{Decider, Decision, Work},
    graph::{Graph, NodeId},
    need::{is_wanted, may_not_run},
    place::Placer,
    project::{Project, memo_name},
    select::{RunOptions, Selection},
    summary::RunError,
    verdict::{Download, Left, Need, Plan, Planned, Verdict},
    why::Explainer,
};

/// So many nodes are looked at by one thread.
const TOGETHER: usize = 64;

/// What a run with these options would do.
///
/// # Errors
/// A name is not in the graph, an input or the cache cannot be read.
pub fn plan(project: &Project, cache: &Cache, options: &RunOptions) -> Result<Plan, RunError> {
    let selection = Selection::new(project.graph(), options).map_err(RunError::Pipeline)?;
    let explainer = Explainer::new(project, cache, &selection.wanted);
    let (plan, _) = plan_with(project, cache, &selection, &explainer, true)?;
    Ok(plan)
}

/// As [`plan`], with the decider that knows all results that are there. The team is asked if `ask`.
pub(crate) fn plan_with<'a>(
    project: &'a Project,
    cache: &'a Cache,
    selection: &'a Selection,
    explainer: &Explainer<'_>,
    ask: bool,
) -> Result<(Plan, Decider<'a>), RunError> {
    cache.load_memo(&memo_name(&project.absolute_file(), project.profile()));
    let graph = project.graph();
    let decider = Decider::new(project, cache, selection).map_err(RunError::Pipeline)?;
    let mut planner = Planner {
        project,
        cache,
        selection,
        explainer,
        placer: Placer::new(project, cache, &|_| ()),
        decider,
        ask,
        verdicts: vec![None; graph.nodes.len()],
        absent: BTreeMap::new(),
    };
    planner.decide().map_err(RunError::Cache)?;
    planner.settle().map_err(RunError::Cache)?;
    let Planner { verdicts, decider, .. } = planner;
    let verdict =
        |(node, verdict): (NodeId, Option<Verdict>)| Planned { node, verdict: verdict.unwrap_or(Verdict::Unselected) };
    let nodes: Vec<Planned> = verdicts.into_iter().enumerate().map(verdict).collect();
    // A memo that cannot be written only makes the next look slower.
    cache.save_memo().ok();
    let runs = |planned: &&Planned| matches!(planned.verdict, Verdict::Run { .. });
    let refused = nodes.iter().filter(runs).filter(|planned| !selection.may_run[planned.node]);
    let refused: Vec<_> = refused.map(|planned| may_not_run(&graph.nodes[planned.node].name)).collect();
    if refused.is_empty() { Ok((Plan { nodes }, decider)) } else { Err(RunError::Pipeline(refused)) }
}

/// What a look at a node gave.
enum Looked {
    /// What it takes is not known yet.
    Later,
    /// The team may have it.
    Ask(Key),
    /// What is to be done about it.
    Known(Verdict),
    /// It must run, and why is to be said.
    Run(Box<Work>),
    /// Its result; with the work that it is to have it here, if it is not.
    Result(Outcome, Option<Box<Work>>),
}

/// A plan that is being made.
struct Planner<'a, 'b> {
    project: &'a Project,
    cache: &'a Cache,
    selection: &'a Selection,
    explainer: &'b Explainer<'b>,
    placer: Placer<'a>,
    decider: Decider<'a>,
    ask: bool,
    verdicts: Vec<Option<Verdict>>,
    /// Nodes whose results are known and not here: what they are, and what it takes to have them.
    absent: BTreeMap<NodeId, (Outcome, Box<Work>)>,
}

impl Planner<'_, '_> {
    /// Decides about all nodes about which can be decided. What is not here the team is asked for, all that is known of
    /// at the same time; its answers let more be decided.
    fn decide(&mut self) -> anyhow::Result<()> {
        let mut open: Vec<NodeId> = (0..self.verdicts.len()).filter(|&id| self.selection.wanted[id]).collect();
        loop {
            let (mut later, mut ask) = (Vec::new(), Vec::new());
            for group in self.project.graph().groups(&mut open) {
                for (&id, looked) in group.iter().zip(self.look(group)) {
                    self.verdicts[id] = match looked? {
                        Looked::Later => {
                            later.push(id);
                            None
                        }
                        Looked::Ask(key) => {
                            ask.push(key);
                            later.push(id);
                            None
                        }
                        Looked::Known(verdict) => Some(verdict),
                        Looked::Run(work) => Some(self.run(id, &work)),
                        Looked::Result(outcome, None) => Some(self.here(id, outcome)),
                        Looked::Result(outcome, Some(work)) => Some(self.absent(id, outcome, work)),
                    };
                }
            }
            if ask.is_empty() {
                for id in later {
                    let common = self.project.graph().common(id);
                    let runs = self.selection.forced[id] || (!common.cache && self.selection.may_run[id]);
                    self.verdicts[id] = Some(Verdict::After { upstream: self.unknown(id), runs });
                }
                return Ok(());
            }
            self.ask(&ask);
            open = later;
        }
    }

    /// Decides about those of these nodes about which can be decided.
    fn look(&self, group: &[NodeId]) -> Vec<anyhow::Result<Looked>> {
        let look = |&id: &NodeId| {
            if !self.decider.is_decidable(id) {
                return Ok(Looked::Later);
            }
            Ok(match self.decider.decide(id)? {
                Decision::Off => Looked::Known(Verdict::Off),
                Decision::Hit(outcome, _) => Looked::Result(outcome, None),
                Decision::Absent(outcome, work) => Looked::Result(outcome, Some(work)),
                Decision::Run(work) if self.ask && self.decider.to_ask(&work).is_some() => Looked::Ask(work.key),
                Decision::Run(work) => Looked::Run(work),
            })
        };
        let looked: Vec<anyhow::Result<Looked>> = group.par_iter().with_min_len(TOGETHER).map(look).collect();
        if !looked.iter().any(|looked| matches!(looked, Ok(Looked::Run(_)))) {
            return looked;
        }
        self.explainer.look_back();
        let explain = |(looked, &id)| match looked {
            Ok(Looked::Run(work)) => Ok(Looked::Known(self.run(id, &work))),
            other => other,
        };
        looked.into_par_iter().zip(group).with_min_len(TOGETHER).map(explain).collect()
    }

    /// Notes a result that is here.
    fn here(&mut self, id: NodeId, outcome: Outcome) -> Verdict {
        let (key, bytes, cost) = (outcome.key, outcome.tree.size(), outcome.cost);
        self.decider.set(id, key, outcome.tree);
        Verdict::Cached { key, bytes, cost, here: true }
    }

    /// Notes a result of which it is known what it is.
    fn absent(&mut self, id: NodeId, outcome: Outcome, work: Box<Work>) -> Verdict {
        let (key, cost) = (outcome.key, outcome.cost);
        self.decider.set(id, key, Arc::clone(&outcome.tree));
        self.absent.insert(id, (outcome, work));
        Verdict::Cached { key, bytes: 0, cost, here: false }
    }

    fn ask(&mut self, keys: &[Key]) {
        let Some(remote) = self.cache.remote() else { return };
        let answers = remote.ask_all(keys);
        keys.iter().zip(answers).for_each(|(key, answer)| self.decider.told(*key, answer));
    }

    /// What becomes of results that are not here: what takes from one comes after it, so from the last to the first it is
    /// known whether that runs.
    fn settle(&mut self) -> anyhow::Result<()> {
        let mut wanted = BTreeMap::new();
        for (&id, (outcome, _)) in &self.absent {
            let graph = self.project.graph();
            wanted.insert(id, is_wanted(graph, self.selection, &self.placer, id, &outcome.tree)?);
        }
        if self.ask {
            // What is needed if nothing can be had is all that could be.
            let needs = self.needs(&wanted, &|_| false);
            let needed = needs.iter().filter(|(_, need)| **need != Need::No).map(|(id, _)| &self.absent[id].1);
            let asked: Vec<Key> =
                needed.filter(|work| self.decider.to_ask(work).is_some()).map(|work| work.key).collect();
            if !asked.is_empty() {
                self.ask(&asked);
            }
        }
        let needs = self.needs(&wanted, &|id| self.source(id).is_some());
        let fetches = self.fetches(&needs);
        for (id, (outcome, work)) in std::mem::take(&mut self.absent) {
            let need = needs[&id];
            let verdict = match (self.decider.source(&work), need) {
                (Some(team), _) => Verdict::Team {
                    key: outcome.key,
                    bytes: outcome.tree.size(),
                    cost: outcome.cost,
                    by: team.by.clone(),
                    time: team.time,
                    fetch: fetches[&id],
                    need,
                },
                (None, Need::No) => continue,
                (None, Need::Perhaps) => Verdict::After { upstream: self.waits_for(id), runs: false },
                (None, Need::Yes) => {
                    self.decider.forget(id);
                    self.run(id, &work)
                }
            };
            self.verdicts[id] = Some(verdict);
        }
        Ok(())
    }

    fn source(&self, id: NodeId) -> Option<&Arc<TeamResult>> {
        self.decider.source(&self.absent.get(&id)?.1)
    }

    /// How many bytes come for each result that the team has, those first that are needed for sure; what nobody needs
    /// counts for itself.
    fn fetches(&self, needs: &BTreeMap<NodeId, Need>) -> BTreeMap<NodeId, u64> {
        let (mut fetches, mut coming) = (BTreeMap::new(), HashSet::new());
        for turn in [Need::Yes, Need::Perhaps, Need::No] {
            for &id in needs.iter().filter(|(_, need)| **need == turn).map(|(id, _)| id) {
                let Some(team) = self.source(id) else { continue };
                let fetch = match turn {
                    Need::No => team.to_fetch(self.cache),
                    _ => team.to_fetch_beyond(self.cache, &mut coming),
                };
                fetches.insert(id, fetch);
            }
        }
        fetches
    }

    /// Which of the results that are not here have to be, if those of which `has` is true can be fetched.
    fn needs(&self, wanted: &BTreeMap<NodeId, bool>, has: &dyn Fn(NodeId) -> bool) -> BTreeMap<NodeId, Need> {
        let mut needs: BTreeMap<NodeId, Need> = BTreeMap::new();
        for (&id, wanted) in wanted.iter().rev() {
            let runs = |taker: NodeId| match (needs.get(&taker), &self.verdicts[taker]) {
                (Some(need), _) => {
                    if has(taker) {
                        Need::No
                    } else {
                        *need
                    }
                }
                (None, Some(Verdict::Run { .. })) => Need::Yes,
                (None, Some(Verdict::After { .. })) => Need::Perhaps,
                _ => Need::No,
            };
            let need = self.project.graph().takers(id).map(runs).max().unwrap_or(Need::No);
            needs.insert(id, if *wanted { Need::Yes } else { need });
        }
        needs
    }

    /// What a node takes from and what has no result yet.
    fn unknown(&self, id: NodeId) -> Vec<NodeId> {
        let graph = self.project.graph();
        let open = |from: NodeId| self.selection.wanted[from] && graph.stage_of(from).off.is_none();
        let unknown = |&from: &NodeId| self.decider.result(from).is_none() && open(from);
        graph.nodes[id].dependencies.iter().copied().filter(unknown).collect()
    }

    /// What must run before it is known whether the files of a node are needed.
    fn waits_for(&self, id: NodeId) -> Vec<NodeId> {
        let takers = self.project.graph().takers(id);
        let mut upstream: Vec<NodeId> = takers.flat_map(|taker| self.unknown(taker)).collect();
        upstream.sort_unstable();
        upstream.dedup();
        upstream
    }

    fn run(&self, id: NodeId, work: &Work) -> Verdict {
        let graph = self.project.graph();
        let name = &graph.nodes[id].name;
        let resumable = graph.stage_of(id).kind.resumable;
        Verdict::Run {
            key: work.key,
            why: self.explainer.explain(name, work),
            left: resumable.then(|| left(graph, id, self.cache, work)).flatten(),
            expected: self.explainer.expected(name),
            download: work.pin_url.as_ref().map(|_| Download { bytes: work.pinned.as_ref().map(|pinned| pinned.size) }),
        }
    }
}

/// What an interrupted run of the node left to go on from.
fn left(graph: &Graph, id: NodeId, cache: &Cache, work: &Work) -> Option<Left> {
    let key = work.run_parts().key();
    if !cache.has_scratch(&key) {
        return None;
    }
    let scratch = cache.root().join("scratch").join(key.to_string());
    Some(Left { bytes: size(&scratch), note: graph.nodes[id].action.left(&scratch) })
}

/// The size of everything in a directory. What cannot be read has none.
fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// What of a pipeline is here, and what is not.
#[derive(Debug, Default)]
pub struct Holdings {
    /// The keys of results that are here, or of which the record is.
    pub here: Vec<Key>,
    /// The keys of those whose files are not here, and of results that are not known.
    pub missing: Vec<Key>,
    /// How many keys are not known: they depend on results that are missing.
    pub unknown: usize,
}

/// What there is of these stages and what they need; of all, if none is named. The team is asked if `ask`.
///
/// # Errors
/// A name is not in the graph, an input or the cache cannot be read.
pub fn holdings(project: &Project, cache: &Cache, stages: &[String], ask: bool) -> Result<Holdings, RunError> {
    let options = RunOptions { targets: stages.to_vec(), ..RunOptions::default() };
    let selection = Selection::new(project.graph(), &options).map_err(RunError::Pipeline)?;
    let explainer = Explainer::new(project, cache, &selection.wanted);
    let (plan, decider) = plan_with(project, cache, &selection, &explainer, ask)?;
    let mut holdings = Holdings::default();
    for planned in &plan.nodes {
        match &planned.verdict {
            Verdict::Cached { key, here, .. } => {
                // What has a pin is known by its key without it, too.
                let mut keys = decider.keys(planned.node);
                keys.sort_unstable();
                keys.dedup();
                for key in keys {
                    if cache.record(&key).map_err(RunError::Cache)?.is_some() {
                        holdings.here.push(key);
                    }
                }
                if !here {
                    holdings.missing.push(*key);
                }
            }
            Verdict::Run { key, .. } | Verdict::Team { key, .. } => holdings.missing.push(*key),
            Verdict::After { .. } => holdings.unknown += 1,
            Verdict::Off | Verdict::Unselected => {}
        }
    }
    Ok(holdings)
}

/// The directories of the results that `name` (a stage or node) means: node → directory. What only the team has is
/// fetched; `fetching` hears of which node, and how many bytes.
///
/// # Errors
/// There is no such stage; a result is not in the cache.
pub fn outputs(
    project: &Project,
    cache: &Cache,
    name: &str,
    fetching: &dyn Fn(&str, u64),
    cancel: &Cancel,
) -> Result<Vec<(String, PathBuf)>, RunError> {
    let graph = project.graph();
    let options = RunOptions { targets: vec![name.to_owned()], ..RunOptions::default() };
    let selection = Selection::new(graph, &options).map_err(RunError::Pipeline)?;
    let explainer = Explainer::new(project, cache, &selection.wanted);
    let (plan, decider) = plan_with(project, cache, &selection, &explainer, true)?;
    let mut outputs = Vec::new();
    for id in graph.select(name).map_err(|error| RunError::Pipeline(vec![error]))? {
        let node = &graph.nodes[id].name;
        if let Some(why) = &graph.stage_of(id).off {
            let off = Diagnostic::new(format!("`{node}` is off: it has no result")).cause(why.clone());
            return Err(RunError::Pipeline(vec![off.hint("its `when` says in which runs it has one")]));
        }
        let Some((_, tree, _)) = decider.result(id) else {
            return Err(not_here(cache, node, &plan.nodes[id].verdict));
        };
        let mut tree = Arc::clone(tree);
        if let (Verdict::Team { key, fetch, .. }, Some(remote)) = (&plan.nodes[id].verdict, cache.remote()) {
            fetching(node, *fetch);
            if let Some(result) = decider.word(key) {
                tree = remote.pull_now(result, &|_| (), cancel).map_err(RunError::Cache)?.tree;
            }
        }
        outputs.push((node.clone(), cache.view(&tree).map_err(RunError::Cache)?));
    }
    Ok(outputs)
}

/// Why the files of a result cannot be had. What would help is the caller's to say, who knows how the run is named.
fn not_here(cache: &Cache, node: &str, verdict: &Verdict) -> RunError {
    let known = match verdict {
        Verdict::Run { key, .. } => cache.record(key).ok().flatten().is_some(),
        _ => false,
    };
    match cache.remote().filter(|remote| known && remote.has_failed()) {
        Some(remote) => RunError::Cache(anyhow::anyhow!(
            "the files of `{node}` are not here, and the team's cache {} cannot be reached",
            remote.location()
        )),
        None if known => RunError::Pipeline(vec![Diagnostic::new(format!("the files of `{node}` are not here"))]),
        None => RunError::Pipeline(vec![Diagnostic::new(format!("`{node}` has no result"))]),
    }
}
