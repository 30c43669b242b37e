//! Which nodes a run is about: what `--only`, `--from`, `--force` and targets mean on a graph.

use flow_core::Diagnostic;

use crate::graph::{Graph, NodeId};

/// What a run is asked to do. Names are stages (`tokens`) or nodes (`tokens[2]`).
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Only these may run; what they need must be in the cache.
    pub only: Vec<String>,
    /// This and all that comes after it runs, also what is in the cache.
    pub from: Option<String>,
    /// These and what they need; empty means everything.
    pub targets: Vec<String>,
    /// These run also when they are in the cache, and may overwrite files of the user's where they export to.
    pub force: Vec<String>,
    /// A failure does not keep others from starting.
    pub keep_going: bool,
    /// Looks again at what the URLs of the asked-for nodes give, whatever `flow.lock` says.
    pub update_pins: bool,
    /// Only what has a URL to pin, and what that needs.
    pub pins_only: bool,
}

impl RunOptions {
    /// Everything is asked for, and nothing but what has to run.
    pub(crate) fn is_plain(&self) -> bool {
        let Self { only, from, targets, force, keep_going: _, update_pins, pins_only } = self;
        let named = !only.is_empty() || from.is_some() || !targets.is_empty() || !force.is_empty();
        !(named || *update_pins || *pins_only)
    }
}

/// [`RunOptions`] on a graph, by node.
#[derive(Debug)]
pub struct Selection {
    /// It is looked at.
    pub wanted: Vec<bool>,
    /// It may run; if not, its result must be in the cache.
    pub may_run: Vec<bool>,
    /// It runs also when its result is in the cache.
    pub forced: Vec<bool>,
    /// It was asked for by its name, and not only because something takes from it.
    pub named: Vec<bool>,
    /// It was named by `--force`.
    pub may_overwrite: Vec<bool>,
    /// What `flow.lock` says of it does not count.
    pub update_pins: Vec<bool>,
}

impl Selection {
    /// What `options` mean on `graph`.
    ///
    /// # Errors
    /// Every name that is not in the graph.
    pub fn new(graph: &Graph, options: &RunOptions) -> Result<Self, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let mut nodes = |names: &[String]| -> Vec<NodeId> {
            let mut nodes = Vec::new();
            for name in names {
                match graph.select(name) {
                    Ok(range) => nodes.extend(range),
                    Err(error) => errors.push(error),
                }
            }
            nodes
        };
        let targets = nodes(&options.targets);
        let only = nodes(&options.only);
        let force = nodes(&options.force);
        let from = nodes(options.from.as_slice());
        if !errors.is_empty() {
            return Err(errors);
        }

        apart(graph, options, &targets, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }

        let all = graph.nodes.len();
        let mask = |ids: &[NodeId]| {
            let mut mask = vec![false; all];
            ids.iter().for_each(|&id| mask[id] = true);
            mask
        };
        let named = mask(&[&targets[..], &only].concat());
        let mut asked = if targets.is_empty() { vec![true; all] } else { graph.closure(targets, true) };
        if !only.is_empty() {
            let only = mask(&only);
            asked.iter_mut().zip(only).for_each(|(asked, only)| *asked &= only);
        }
        if options.pins_only {
            asked.iter_mut().enumerate().for_each(|(id, asked)| *asked &= graph.nodes[id].action.pin().is_some());
        }
        let members = |mask: &[bool]| -> Vec<NodeId> { (0..all).filter(|&id| mask[id]).collect() };
        // What merely comes before what may run, and may not itself, is of no concern.
        let wanted =
            if only.is_empty() { graph.closure(members(&asked), true) } else { graph.taken_by(members(&asked)) };
        let may_run = if only.is_empty() { wanted.clone() } else { asked.clone() };
        let may_overwrite = mask(&force);
        let after = graph.closure(from, false);
        let forced = (0..all).map(|id| (may_overwrite[id] || after[id]) && may_run[id]).collect();
        let update_pins = (0..all).map(|id| options.update_pins && asked[id]).collect();
        Ok(Self { wanted, may_run, forced, named, may_overwrite, update_pins })
    }
}

/// Says which of `--only` the targets do not need: nothing of it would run, and a run of nothing looks like one that is done.
fn apart(graph: &Graph, options: &RunOptions, targets: &[NodeId], errors: &mut Vec<Diagnostic>) {
    if options.targets.is_empty() || options.only.is_empty() {
        return;
    }
    let asked = graph.closure(targets.to_vec(), true);
    let names: Vec<String> = options.targets.iter().map(|name| format!("`{name}`")).collect();
    let need = if names.len() == 1 { "needs" } else { "need" };
    for name in &options.only {
        let nodes = graph.select(name).unwrap_or_default();
        if !nodes.is_empty() && !nodes.iter().any(|&node| asked[node]) {
            let error = Diagnostic::new(format!("`{name}` is not among what {} {need}", names.join(" and ")));
            errors.push(error.hint(format!("`--only {name}` alone runs it")));
        }
    }
}
