//! What can be said of a run before it begins, besides what the stages say: what the machine lacks, and what of the user's
//! is in the way. A run refuses with it; a plan and a check say the same.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use flow_cache::Cache;
use flow_core::{Diagnostic, Event};
use rayon::prelude::*;
use rustix::fs::Access;

use crate::{
    above::Above,
    cluster::{self, Executor},
    decide::{cannot_read, paths_of, unreadable},
    graph::{Graph, NodeId, Source},
    lacks::lacking_programs,
    lockfile::LockFile,
    place::Placer,
    plan::plan,
    project::{Checked, Project},
    select::{RunOptions, Selection},
    settings::Settings,
    summary::RunError,
    taken::{Taken, taken},
    verdict::{Plan, Verdict},
};

/// What stands in the way of a run, and what it finds in its places.
#[derive(Debug, Default)]
pub struct Obstacles {
    /// A run refuses with these.
    pub errors: Vec<Diagnostic>,
    /// These may surprise; what the machine lacks is among them, because the run may be on another.
    pub warnings: Vec<Diagnostic>,
    /// Nodes whose results are in the cache, of which something is missing outside of it: it is put there.
    pub put_back: HashSet<NodeId>,
}

/// What stands in the way of a run that does what the plan says. `checked`: what the stages said.
///
/// # Errors
/// A name is not in the graph; something cannot be read.
pub fn obstacles(
    project: &Project,
    cache: &Cache,
    settings: &Settings,
    options: &RunOptions,
    plan: &Plan,
    checked: &Checked,
) -> Result<Obstacles, RunError> {
    let graph = project.graph();
    let selection = Selection::new(graph, options).map_err(RunError::Pipeline)?;
    let nobody = |_: Event| {};
    let placer = Placer::new(project, cache, &nobody);
    let mut found = Obstacles::default();
    let (mut runs, mut open) = (Vec::new(), Vec::new());
    for planned in plan.nodes.iter().filter(|planned| selection.may_run[planned.node]) {
        let id = planned.node;
        match &planned.verdict {
            Verdict::Off | Verdict::Unselected => {}
            Verdict::Run { .. } | Verdict::After { .. } => {
                runs.push(id);
                open.push(id);
                for (from, file) in taken(graph, id).filter(|(from, _)| !selection.may_run[*from]) {
                    let (Verdict::Cached { key, .. } | Verdict::Team { key, .. }) = &plan.nodes[from].verdict else {
                        continue;
                    };
                    let Some(record) = cache.record(key).map_err(RunError::Cache)? else { continue };
                    let taken = Taken { from, file: file.to_owned(), tree: Arc::new(record.tree) };
                    found.errors.extend(placer.refuses_taken(&taken, id).map_err(RunError::Cache)?);
                }
            }
            Verdict::Team { .. } => open.push(id),
            Verdict::Cached { key, here: true, .. } if placer.has_places(id) => {
                let Some(record) = cache.record(key).map_err(RunError::Cache)? else { continue };
                let refused = placer.lacks(id, &record.tree).and_then(|lack| {
                    found.put_back.extend(lack.is_missing().then_some(id));
                    if selection.may_overwrite[id] { Ok(Vec::new()) } else { placer.would_refuse_these(&lack) }
                });
                match refused {
                    Ok(refused) => found.errors.extend(placer.refusals(id, refused)),
                    Err(error) => {
                        found.errors.push(Diagnostic::new(format!("{error:#}")).at(place(graph, id, "export")));
                    }
                }
            }
            Verdict::Cached { .. } => {}
        }
    }
    if !runs.is_empty() {
        found.errors.extend(settings.remote.as_ref().and_then(|remote| remote.can_sign().err()));
    }
    found.warnings.extend(lacking(graph, settings, runs.iter().copied()));
    let lacking = lacking_programs(graph, settings, runs.into_iter());
    found.warnings.extend(lacking.errors.into_iter().chain(lacking.warnings));
    let before = InTheWay::of(&placer, &selection, open.into_iter(), checked, false)?;
    found.errors.extend(before.errors);
    found.warnings.extend(before.warnings);
    found.errors.dedup();
    Ok(found)
}

/// What stands in the way of a run of everything: also inputs and a lock file that it could not read. Only where something
/// is in the place of a result that flow did not put there, it is looked at what would run. `checked`: what the stages said.
///
/// # Errors
/// Something cannot be read.
pub fn obstacles_of_all(
    project: &Project,
    settings: &Settings,
    checked: &Checked,
    cache: impl FnOnce() -> anyhow::Result<Cache>,
) -> Result<Obstacles, RunError> {
    let graph = project.graph();
    let on = || (0..graph.nodes.len()).filter(|&id| graph.stage_of(id).off.is_none());
    let mut found = Obstacles { warnings: lacking(graph, settings, on()), ..Obstacles::default() };
    let unlocked = LockFile::read(project.dir()).map_err(|errors| found.errors.extend(errors)).is_ok();
    let (unreadable, wrong): (HashSet<&Source>, Vec<Diagnostic>) = unreadable_inputs(project).into_iter().unzip();
    found.errors.extend(wrong);
    found.errors.extend(settings.remote.as_ref().and_then(|remote| remote.can_sign().err()));
    found.errors.extend(on().filter_map(|id| no_place(project, id)));
    let lacking = lacking_programs(graph, settings, on());
    found.errors.extend(lacking.errors);
    found.warnings.extend(lacking.warnings);
    // Of what cannot be decided it cannot be said what it would do.
    let mut undecided = vec![!unlocked; graph.nodes.len()];
    for (id, node) in graph.nodes.iter().enumerate() {
        let mut sources = node.inputs.iter().flat_map(|port| &port.sources);
        let known = !sources.any(|source| unreadable.contains(source));
        undecided[id] |= !known || node.dependencies.iter().any(|&from| undecided[from]);
    }
    let taken: Vec<NodeId> = on().filter(|&id| !undecided[id] && is_taken(project, id)).collect();
    if taken.is_empty() {
        return Ok(found);
    }
    let cache = cache().map_err(RunError::Cache)?;
    let nobody = |_: Event| {};
    let placer = Placer::new(project, &cache, &nobody);
    let (mut suspects, mut above) = (Vec::new(), Above::default());
    for id in taken {
        if placer.strangers(id) > 0 || !placer.would_refuse(id, false, &mut above).map_err(RunError::Cache)?.is_empty()
        {
            suspects.push(graph.nodes[id].name.clone());
        }
    }
    if suspects.is_empty() {
        return Ok(found);
    }
    let options = RunOptions { targets: suspects, ..RunOptions::default() };
    let plan = plan(project, &cache, &options)?;
    let more = obstacles(project, &cache, settings, &options, &plan, checked)?;
    let new = |said: &[Diagnostic], more: Vec<Diagnostic>| -> Vec<Diagnostic> {
        more.into_iter().filter(|one| !said.contains(one)).collect()
    };
    found.errors.extend(new(&found.errors, more.errors));
    found.warnings.extend(new(&found.warnings, more.warnings));
    Ok(found)
}

/// Whether something is in a place of the node's result.
fn is_taken(project: &Project, id: NodeId) -> bool {
    let graph = project.graph();
    let places = graph.nodes[id].action.outs().iter().chain(graph.common(id).export_to());
    places.map(|place| project.dir().join(place)).any(|path| {
        // Also where something is that keeps the folder from being made.
        path.symlink_metadata().is_ok() || path.ancestors().find(|above| above.exists()).is_some_and(|it| !it.is_dir())
    })
}

/// Inputs that cannot be read, as far as can be seen without reading them.
fn unreadable_inputs(project: &Project) -> Vec<(&Source, Diagnostic)> {
    let graph = project.graph();
    let mut seen = HashSet::new();
    let mut sources: Vec<(&Source, NodeId, &str)> = Vec::new();
    for (id, node) in graph.nodes.iter().enumerate().filter(|&(id, _)| graph.stage_of(id).off.is_none()) {
        for port in &node.inputs {
            let new = port.sources.iter().filter(|source| source.node().is_none() && seen.insert(*source));
            sources.extend(new.map(|source| (source, id, port.name.as_str())));
        }
    }
    let look = |(source, id, port)| {
        let look = |path: &PathBuf| Cache::look_at(path).with_context(|| cannot_read(path));
        let wrong = paths_of(project, source).iter().try_for_each(look).err()?;
        Some((source, unreadable(graph, id, port, &wrong)))
    };
    sources.into_par_iter().with_min_len(256).filter_map(look).collect()
}

/// Says that the export of a node has no place, because this user may not make it there.
fn no_place(project: &Project, id: NodeId) -> Option<Diagnostic> {
    let graph = project.graph();
    let export = graph.common(id).export_to()?;
    let path = project.dir().join(export);
    let above = path.ancestors().find(|above| above.is_dir())?;
    let why = cannot_write(above)?;
    let error = Diagnostic::new(format!("`{export}` cannot be exported to")).cause(why);
    Some(error.at(place(graph, id, "export")).hint("name a directory that you may write to"))
}

/// Why nothing can be made in a directory.
fn cannot_write(directory: &Path) -> Option<String> {
    // Of `/proc` and `/sys`.
    const MADE_BY_THE_KERNEL: [u32; 2] = [0x9fa0, 0x6265_6572];
    let shown = directory.display();
    if rustix::fs::statfs(directory).is_ok_and(|found| MADE_BY_THE_KERNEL.contains(&(found.f_type as u32))) {
        return Some(format!("{shown} is the kernel's and holds no files of others"));
    }
    let error = rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK).err()?;
    Some(format!("{shown} cannot be written: {}", std::io::Error::from(error)))
}

/// Where a field of a node's stage stands.
fn place(graph: &Graph, id: NodeId, field: &str) -> Option<flow_core::Span> {
    graph.variant(id).place(field).or_else(|| graph.stage_of(id).span.clone())
}

/// What nodes take that the machine does not have.
pub(crate) fn lacking(graph: &Graph, settings: &Settings, nodes: impl Iterator<Item = NodeId>) -> Vec<Diagnostic> {
    let mut errors = Vec::new();
    let mut asked = None;
    for id in nodes {
        let (node, stage) = (&graph.nodes[id], graph.stage_of(id));
        // Shards take the same.
        if stage.off.is_some() || asked.replace((node.stage, node.variant)) == Some((node.stage, node.variant)) {
            continue;
        }
        errors.extend(no_executor(graph, settings, id));
        errors.extend(nodes_lacking(graph, id, settings));
        let wants = &graph.common(id).resources;
        if cluster::executor(graph, settings, id).is_some() || !wants.hosts.is_empty() {
            continue;
        }
        let mut lacks = |field: &str, what: &str, wanted: u64, there_is: u64, variables: &str| {
            if wanted > there_is {
                let message = format!("stage `{}` takes {wanted} {what}, and there are {there_is}", stage.name);
                let error = Diagnostic::new(message).at(place(graph, id, &format!("resources.{field}")));
                let error = error.hint(format!("change its `resources`, or set {variables} if there are more"));
                if !errors.contains(&error) {
                    errors.push(error);
                }
            }
        };
        let cpus = wants.cpus.unwrap_or(1);
        lacks("cpus", "cores", u64::from(cpus), u64::from(settings.cpus), "FLOW_CPUS");
        let gpus = "FLOW_GPUS (and CUDA_VISIBLE_DEVICES, if it is set)";
        lacks("gpus", "GPUs", u64::from(wants.gpus), u64::from(settings.gpus), gpus);
        lacks("memory", "bytes of memory", wants.memory, settings.memory, "FLOW_MEMORY");
    }
    errors
}

/// What keeps the executor of a node from taking its jobs.
fn no_executor(graph: &Graph, settings: &Settings, id: NodeId) -> Option<Diagnostic> {
    let name = cluster::executor(graph, settings, id)?;
    let at = |error: Diagnostic| error.at(place(graph, id, "executor"));
    match Executor::named(name, &settings.executors) {
        Err(error) => Some(at(error)),
        Ok(executor) if !on_path(executor.program()) => {
            let stage = &graph.stage_of(id).name;
            let program = executor.program();
            let error = at(Diagnostic::new(format!(
                "stage `{stage}` runs with executor `{name}`, and there is no `{program}` here"
            )));
            Some(error.hint(
                "run flow where jobs are submitted from (a login node); or `executor = \"local\"`, FLOW_EXECUTOR=local",
            ))
        }
        Ok(_) => None,
    }
}

/// Whether a program can be started by this name.
fn on_path(program: &str) -> bool {
    let is_program = |path: &Path| rustix::fs::access(path, Access::EXEC_OK).is_ok() && path.is_file();
    if program.contains('/') {
        return is_program(Path::new(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| is_program(&dir.join(program)))
}

/// What is wrong with the machines that a node takes, wherever it runs.
pub(crate) fn wrong_machines(graph: &Graph, id: NodeId) -> Option<Diagnostic> {
    let (stage, wants) = (graph.stage_of(id), &graph.common(id).resources);
    let (name, kind, nodes) = (&stage.name, stage.kind, wants.nodes.unwrap_or(1));
    let by_name = !wants.hosts.is_empty();
    let field = if by_name { "hosts" } else { "nodes" };
    let error = if (wants.machines() > 1 || by_name) && !kind.many_nodes {
        Diagnostic::new(format!("stage `{name}` is a `{}`, which runs on one machine", kind.name))
            .hint(format!("remove `{field}` from its `resources`"))
    } else if by_name && nodes > 1 && nodes as usize != wants.hosts.len() {
        Diagnostic::new(format!("stage `{name}` takes {nodes} nodes and names {} hosts", wants.hosts.len()))
            .hint("leave `nodes` out: `hosts` says how many there are")
    } else {
        return None;
    };
    Some(error.at(place(graph, id, &format!("resources.{field}"))))
}

/// What machines a node takes that flow does not have.
fn nodes_lacking(graph: &Graph, id: NodeId, settings: &Settings) -> Option<Diagnostic> {
    let (name, wants) = (&graph.stage_of(id).name, &graph.common(id).resources);
    let (by_name, nodes) = (!wants.hosts.is_empty(), wants.nodes.unwrap_or(1));
    let executor = cluster::executor(graph, settings, id);
    let (field, error) = if by_name && let Some(executor) = executor {
        let error = Diagnostic::new(format!("stage `{name}` names hosts, and runs with executor `{executor}`"));
        ("hosts", error.hint("the executor chooses machines: nodes = N; or executor = \"local\""))
    } else if !by_name && executor.is_none() && nodes > settings.nodes {
        let there_is = match settings.nodes {
            1 => "flow has one machine".to_owned(),
            has => format!("flow has {has}"),
        };
        let error = Diagnostic::new(format!("stage `{name}` takes {nodes} nodes, and {there_is}"));
        ("nodes", error.hint("executor = \"slurm\"; or name them: resources = { hosts = [\"a\", \"b\"] }"))
    } else {
        return None;
    };
    Some(error.at(place(graph, id, &format!("resources.{field}"))))
}

/// The places of so many nodes are looked at by one thread.
const TOGETHER: usize = 256;

/// What is where results of nodes that are going to run will be.
#[derive(Default)]
pub(crate) struct InTheWay {
    /// A run would overwrite these, or the cache.
    pub errors: Vec<Diagnostic>,
    /// An export goes to where other files are, and what it brings is not known yet.
    pub warnings: Vec<Diagnostic>,
}

impl InTheWay {
    /// Of these nodes. `checked`: what the stages said. `repair`: what a run that was killed left is put right.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn of(
        placer: &Placer<'_>,
        selection: &Selection,
        nodes: impl Iterator<Item = NodeId>,
        checked: &Checked,
        repair: bool,
    ) -> Result<Self, RunError> {
        let nodes: Vec<NodeId> = nodes.filter(|&id| placer.has_places(id)).collect();
        let look = |nodes: &[NodeId]| {
            let (mut found, mut above) = (Self::default(), Above::default());
            for &id in nodes {
                let files = checked.files.get(id).map_or(&[][..], Vec::as_slice);
                found.look(placer, selection, id, files, repair, &mut above)?;
            }
            Ok(found)
        };
        let parts: Vec<Result<Self, RunError>> = nodes.par_chunks(TOGETHER).map(look).collect();
        let mut all = Self::default();
        for part in parts {
            let Self { errors, warnings } = part?;
            all.errors.extend(errors);
            all.warnings.extend(warnings);
        }
        all.warnings.dedup();
        Ok(all)
    }

    fn look(
        &mut self,
        placer: &Placer<'_>,
        selection: &Selection,
        id: NodeId,
        files: &[String],
        repair: bool,
        above: &mut Above,
    ) -> Result<(), RunError> {
        let graph = placer.project.graph();
        if let Some(path) = placer.touches_cache(id, above) {
            let error = Diagnostic::new(format!("{} would cover the cache", path.display()));
            self.errors.push(error.at(place(graph, id, "export")));
        } else if let Some(error) = no_place(placer.project, id) {
            self.errors.push(error);
        } else if !selection.may_overwrite[id] {
            let mut refused = placer.would_refuse(id, repair, above).map_err(RunError::Cache)?;
            refused.extend(placer.would_refuse_files(id, files).map_err(RunError::Cache)?);
            refused.sort();
            refused.dedup();
            if refused.is_empty() {
                self.warnings.extend(said_of_strangers(placer, graph, id));
            }
            self.errors.extend(placer.refusals(id, refused));
        }
        Ok(())
    }
}

/// Files in the place of an export whose names a result may have: which it has is known when it is there.
fn said_of_strangers(placer: &Placer<'_>, graph: &Graph, id: NodeId) -> Option<Diagnostic> {
    let strangers = placer.strangers(id);
    let export = graph.common(id).export_to().filter(|_| strangers > 0)?;
    let (files, not) = if strangers == 1 { ("a file", "it is") } else { ("files", "they are") };
    let many = if strangers > 1 { format!("{strangers} ") } else { String::new() };
    let text = format!(
        "`{}` exports to `{export}`, which holds {many}{files} that flow did not put there",
        graph.stage_of(id).name
    );
    let warning = Diagnostic::new(text).at(place(graph, id, "export"));
    Some(
        warning.hint(format!(
            "{not} never overwritten: a result with a file of the same name is refused after it is made"
        )),
    )
}
