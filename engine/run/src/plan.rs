//! `flow plan`: what a run would do, decided by the same code, with nothing run.

use std::path::PathBuf;

use flow_cache::Cache;
use flow_core::{Diagnostic, Key};

use crate::{
    decide::{Decider, Decision, Work},
    graph::NodeId,
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
        /// It goes on from what an interrupted run left.
        resumes: bool,
        /// How long it took last time, in seconds.
        expected: Option<f64>,
    },
    /// Its key depends on what these give, which must run before.
    After {
        /// The nodes that it takes from and whose results are not known.
        upstream: Vec<NodeId>,
    },
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
        resumes: graph.stage_of(id).kind.resumable && has_scratch(cache, &work.run_parts().key()),
        expected: explainer.expected(&graph.nodes[id].name),
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

/// Whether an interrupted run of the key left something to go on from.
fn has_scratch(cache: &Cache, key: &Key) -> bool {
    let work = cache.root().join("scratch").join(key.to_string());
    std::fs::read_dir(work).is_ok_and(|mut entries| entries.next().is_some())
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
