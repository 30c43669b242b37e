//! `flow plan`: what a run would do, decided by the same code, with nothing run.

use std::path::{Path, PathBuf};

use flow_cache::Cache;
use flow_core::{Diagnostic, Key};

use crate::{
    decide::{Decider, Decision, Work},
    graph::{Graph, NodeId},
    project::Project,
    runner::memo_name,
    select::{RunOptions, Selection},
    summary::RunError,
    why::Explainer,
};

/// What a run would do.
#[derive(Debug)]
pub struct Plan {
    /// By node.
    pub nodes: Vec<Planned>,
}

/// What a run would do about a node.
#[derive(Debug)]
pub struct Planned {
    /// The node.
    pub node: NodeId,
    /// What.
    pub verdict: Verdict,
}

/// What is to be done about a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Its stage is off.
    Off,
    /// Nobody asked for it.
    Unselected,
    /// Its result is there.
    Cached {
        /// Its key.
        key: Key,
        /// The size of its result.
        bytes: u64,
        /// How long it took when it ran, in seconds.
        cost: f64,
    },
    /// It must run.
    Run {
        /// Its key.
        key: Key,
        /// Why.
        why: String,
        /// What an interrupted run left, from which it goes on.
        left: Option<Left>,
        /// How long it will take, by those that were.
        expected: Option<Expected>,
        /// What it takes from outside, if it does.
        download: Option<Download>,
    },
    /// Its key depends on what these give, which must run before.
    After {
        /// The nodes that it takes from and whose results are not known.
        upstream: Vec<NodeId>,
    },
}

/// What an interrupted run left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its size.
    pub bytes: u64,
    /// What the stage says of it: `from its checkpoint of step 50`.
    pub note: Option<String>,
}

/// How long a node will take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// The mean.
    pub seconds: f64,
    /// Of so many.
    pub runs: usize,
}

/// What a node takes from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Download {
    /// Its size, if `flow.lock` says it.
    pub bytes: Option<u64>,
}

/// What a run with these options would do.
///
/// # Errors
/// A name is not in the graph, an input or the cache cannot be read.
pub fn plan(project: &Project, cache: &Cache, options: &RunOptions) -> Result<Plan, RunError> {
    let selection = Selection::new(project.graph(), options).map_err(RunError::Pipeline)?;
    let (plan, _) = plan_with(project, cache, &selection, &Explainer::new(project, cache))?;
    Ok(plan)
}

/// As [`plan`], with the decider that knows all results that are there.
pub(crate) fn plan_with<'a>(
    project: &'a Project,
    cache: &'a Cache,
    selection: &'a Selection,
    explainer: &Explainer<'_>,
) -> Result<(Plan, Decider<'a>), RunError> {
    cache.load_memo(&memo_name(&project.absolute_file(), project.profile()));
    let mut decider = Decider::new(project, cache, selection).map_err(RunError::Pipeline)?;
    let graph = project.graph();
    let mut nodes: Vec<Planned> = Vec::with_capacity(graph.nodes.len());
    let run = |id: NodeId, work: &Work| Verdict::Run {
        key: work.key,
        why: explainer.explain(&graph.nodes[id].name, work),
        left: graph.stage_of(id).kind.resumable.then(|| left(graph, id, cache, work)).flatten(),
        expected: explainer.expected(&graph.nodes[id].name),
        download: work.pin_url.as_ref().map(|_| Download { bytes: work.pinned.as_ref().map(|pinned| pinned.size) }),
    };
    let mut freed = Vec::new();
    for (id, node) in graph.nodes.iter().enumerate() {
        let verdict = if !selection.wanted[id] {
            Verdict::Unselected
        } else if !decider.is_decidable(id) {
            let unknown = |&from: &NodeId| decider.result(from).is_none() && graph.stage_of(from).off.is_none();
            Verdict::After { upstream: node.dependencies.iter().copied().filter(unknown).collect() }
        } else {
            match decider.decide(id).map_err(RunError::Cache)? {
                Decision::Off => Verdict::Off,
                Decision::Hit(outcome, _) => {
                    let (key, bytes, cost) = (outcome.key, outcome.tree.size(), outcome.cost);
                    decider.set(id, key, outcome.tree);
                    Verdict::Cached { key, bytes, cost }
                }
                Decision::Freed(outcome, work) => {
                    freed.push((id, work));
                    let (key, cost) = (outcome.key, outcome.cost);
                    decider.set(id, key, outcome.tree);
                    Verdict::Cached { key, bytes: 0, cost }
                }
                Decision::Run(work) => run(id, &work),
            }
        };
        nodes.push(Planned { node: id, verdict });
    }
    // What takes from an intermediate comes after it, so from the last to the first it is known whether that runs.
    for (id, work) in freed.into_iter().rev() {
        let mut takers = graph.takers(id).filter(|&taker| selection.wanted[taker]).peekable();
        let runs = |taker: NodeId| matches!(nodes[taker].verdict, Verdict::Run { .. } | Verdict::After { .. });
        if takers.peek().is_none() || takers.any(runs) {
            nodes[id].verdict = run(id, &work);
            decider.forget(id);
        }
    }
    // A memo that cannot be written only makes the next look slower.
    cache.save_memo().ok();
    Ok((Plan { nodes }, decider))
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
    /// The keys of results that are here.
    pub here: Vec<Key>,
    /// The keys of results that are not, as far as they are known.
    pub missing: Vec<Key>,
    /// How many keys are not known: they depend on results that are missing.
    pub unknown: usize,
}

/// What there is of these stages and what they need; of all, if none is named.
///
/// # Errors
/// A name is not in the graph, an input or the cache cannot be read.
pub fn holdings(project: &Project, cache: &Cache, stages: &[String]) -> Result<Holdings, RunError> {
    let options = RunOptions { targets: stages.to_vec(), ..RunOptions::default() };
    let plan = plan(project, cache, &options)?;
    let mut holdings = Holdings::default();
    for planned in &plan.nodes {
        match &planned.verdict {
            Verdict::Cached { key, .. } => holdings.here.push(*key),
            Verdict::Run { key, .. } => holdings.missing.push(*key),
            Verdict::After { .. } => holdings.unknown += 1,
            Verdict::Off | Verdict::Unselected => {}
        }
    }
    Ok(holdings)
}

/// The directories of the results that `name` (a stage or node) means: node → directory.
///
/// # Errors
/// There is no such stage; a result is not in the cache.
pub fn outputs(project: &Project, cache: &Cache, name: &str) -> Result<Vec<(String, PathBuf)>, RunError> {
    let options = RunOptions { targets: vec![name.to_owned()], ..RunOptions::default() };
    let selection = Selection::new(project.graph(), &options).map_err(RunError::Pipeline)?;
    let (_, decider) = plan_with(project, cache, &selection, &Explainer::new(project, cache))?;
    let mut outputs = Vec::new();
    for id in project.graph().select(name).map_err(|error| RunError::Pipeline(vec![error]))? {
        let node = &project.graph().nodes[id].name;
        let Some((_, tree, _)) = decider.result(id) else {
            let error = Diagnostic::new(format!("`{node}` has no result"));
            let file = project.file().display();
            return Err(RunError::Pipeline(vec![error.hint(format!("run it first: flow run {file}"))]));
        };
        outputs.push((node.clone(), cache.view(tree).map_err(RunError::Cache)?));
    }
    Ok(outputs)
}
