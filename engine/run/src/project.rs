//! [`Project`]: a pipeline that was loaded and linked, and what its stages say of it before a run.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use flow_core::{Cancel, Check, Diagnostic, Facts, Kind, Known};
use rayon::prelude::*;

use crate::{
    clash::clashes,
    cluster::executor,
    graph::{Graph, Source},
    link::{Ground, Linked, link, place, sort_and_dedup},
    load::{self, LoadOptions, StageTable},
    looks::{self, Look},
    matrix,
    obstacles::wrong_machines,
    settings::Settings,
};

/// So many nodes are asked by one thread.
const TOGETHER: usize = 128;

/// A pipeline with its graph. Nothing in it changes; a run, a plan, a question are asked of it.
#[derive(Debug)]
pub struct Project {
    name: String,
    file: PathBuf,
    dir: PathBuf,
    options: LoadOptions,
    profiles: Vec<String>,
    kinds: &'static [Kind],
    graph: Graph,
    looks: Vec<Look>,
    /// What may surprise of the file itself.
    warnings: Vec<Diagnostic>,
}

/// What the stages know before a run.
#[derive(Debug, Default)]
pub struct Checked {
    /// What may surprise.
    pub warnings: Vec<Diagnostic>,
    /// By node: what is known of its result.
    pub facts: Vec<Facts>,
    /// By node: names of files that its result has for sure.
    pub files: Vec<Vec<String>>,
    /// By node: where its result lies now, if it does.
    paths: Vec<Option<PathBuf>>,
}

/// What a node says before a run.
#[derive(Default)]
struct Said {
    facts: Facts,
    files: Vec<String>,
    path: Option<PathBuf>,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

impl Checked {
    /// Notes what others may ask of a node.
    fn note(&mut self, id: usize, said: &mut Said) {
        self.facts[id] = std::mem::take(&mut said.facts);
        self.files[id] = std::mem::take(&mut said.files);
        self.paths[id] = said.path.take();
    }
}

/// How stages are asked.
#[derive(Clone, Copy, Default)]
pub(crate) struct Asking<'a> {
    /// Where they say which run elsewhere.
    pub settings: Option<&'a Settings>,
    /// Those that may complain run when none of them does.
    pub about_to_run: Option<&'a Cancel>,
}

/// The project's folder: the one that the pipeline file lies in. Relative paths are relative to it.
#[must_use]
pub fn project_dir(pipeline: &Path) -> PathBuf {
    let parent = pipeline.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    parent.canonicalize().unwrap_or_else(|_| parent.to_owned())
}

/// The files that the stages stand in, with links followed.
fn sources(pipeline: &Path, stages: &[StageTable]) -> Vec<PathBuf> {
    let mut sources: Vec<&Path> = vec![pipeline];
    let mut last = std::ptr::null();
    let spans = stages
        .iter()
        .flat_map(|stage| stage.span.iter().chain(stage.variants.iter().filter_map(|one| one.value.span.as_ref())));
    for span in spans {
        // Mostly it is the same as before, and paths are slow to compare.
        if std::mem::replace(&mut last, Arc::as_ptr(&span.source)) == Arc::as_ptr(&span.source) {
            continue;
        }
        let path = span.source.path.as_path();
        if !sources.contains(&path) {
            sources.push(path);
        }
    }
    sources.into_iter().filter_map(|path| path.canonicalize().ok()).collect()
}

/// The pipeline file in its project's folder.
pub(crate) fn absolute_file(dir: &Path, file: &Path) -> PathBuf {
    file.file_name().map_or_else(|| dir.to_owned(), |name| dir.join(name))
}

/// By what name the cache knows the memo of a pipeline.
pub(crate) fn memo_name(file: &Path, profile: Option<&str>) -> String {
    format!("{}\n{}", file.display(), profile.unwrap_or_default())
}

impl Project {
    /// Reads a pipeline file, lays profile, environment and `--set` over it, and makes its graph.
    ///
    /// # Errors
    /// Every error of the file at once, in the order of the file.
    pub fn load(pipeline: &Path, kinds: &'static [Kind], options: &LoadOptions) -> Result<Self, Vec<Diagnostic>> {
        let dir = project_dir(pipeline);
        let (loaded, looks) = looks::collect(|| {
            let mut merged = load::load(pipeline, options)?;
            let sources = sources(pipeline, &merged.stages);
            let home = options.env.iter().find(|(name, home)| name == "HOME" && !home.is_empty());
            let home = home.map(|(_, home)| Path::new(home));
            let ground = Ground { project: &dir, sources: &sources, home };
            let linked = link(std::mem::take(&mut merged.stages), kinds, &ground);
            Ok::<_, Vec<Diagnostic>>((merged, linked))
        });
        let (merged, Linked { graph, errors: wrong, sound }) = loaded.map_err(|mut errors| {
            sort_and_dedup(&mut errors, pipeline);
            errors
        })?;
        let project = Self {
            name: merged.name,
            file: pipeline.to_owned(),
            dir,
            options: options.clone(),
            profiles: merged.profiles,
            kinds,
            graph,
            looks,
            warnings: merged.warnings,
        };
        let mut errors = merged.errors;
        errors.extend(wrong);
        if errors.is_empty() {
            return Ok(project);
        }
        if !merged.complete {
            errors.retain(|error| !error.absent);
        }
        // Sound stages say what cannot work with what is known of the others, so that all is said at once.
        let is_sound = |node: usize| sound[project.graph.nodes[node].stage];
        errors.extend(project.ask(&is_sound, &is_sound, &Asking::default()).1);
        sort_and_dedup(&mut errors, pipeline);
        Err(errors)
    }

    /// The pipeline's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pipeline file, as it was named.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The project's folder, absolute.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The pipeline file, absolute: what its runs are known by.
    #[must_use]
    pub fn absolute_file(&self) -> PathBuf {
        absolute_file(&self.dir, &self.file)
    }

    /// The kinds of stages that it was read with.
    pub(crate) fn kinds(&self) -> &'static [Kind] {
        self.kinds
    }

    /// What was laid over it.
    pub(crate) fn options(&self) -> &LoadOptions {
        &self.options
    }

    /// The paths that were looked at while it was loaded.
    pub(crate) fn looks(&self) -> &[Look] {
        &self.looks
    }

    /// The profile that was chosen.
    #[must_use]
    pub fn profile(&self) -> Option<&str> {
        self.options.profile.as_deref()
    }

    /// What was set on the command line.
    #[must_use]
    pub fn set(&self) -> &[String] {
        &self.options.set
    }

    /// The profiles that the file has.
    #[must_use]
    pub fn profiles(&self) -> &[String] {
        &self.profiles
    }

    /// The graph.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Asks every stage what cannot work, with what is known of its inputs.
    ///
    /// # Errors
    /// All that cannot work, in the order of the file.
    pub fn check(&self) -> Result<Checked, Vec<Diagnostic>> {
        let (checked, errors) = self.look(None);
        if errors.is_empty() { Ok(checked) } else { Err(errors) }
    }

    /// As [`Project::check`], with what is known also where something cannot work. The settings say what runs elsewhere.
    #[must_use]
    pub fn look(&self, settings: Option<&Settings>) -> (Checked, Vec<Diagnostic>) {
        self.look_only(&|_| true, &Asking { settings, about_to_run: None })
    }

    /// As [`Project::look`], but only these nodes may complain; facts flow through all.
    pub(crate) fn look_only(&self, wanted: &dyn Fn(usize) -> bool, asking: &Asking<'_>) -> (Checked, Vec<Diagnostic>) {
        let (mut done, mut errors) = self.ask(&|_| true, wanted, asking);
        sort_and_dedup(&mut errors, &self.file);
        done.warnings.extend_from_slice(&self.warnings);
        sort_and_dedup(&mut done.warnings, &self.file);
        (done, errors)
    }

    /// Asks the nodes that may be `asked`; those that are `wanted` may complain.
    fn ask(
        &self,
        asked: &dyn Fn(usize) -> bool,
        wanted: &dyn Fn(usize) -> bool,
        asking: &Asking<'_>,
    ) -> (Checked, Vec<Diagnostic>) {
        let count = self.graph.nodes.len();
        let mut done = Checked {
            warnings: Vec::new(),
            facts: vec![Facts::new(); count],
            files: vec![Vec::new(); count],
            paths: vec![None; count],
        };
        let is_on = |id: &usize| self.graph.stage_of(*id).off.is_none() && asked(*id);
        let mut on: Vec<usize> = (0..count).filter(is_on).collect();
        let mut wants = vec![false; count];
        on.iter().for_each(|&id| wants[id] = wanted(id));
        let mut said: Vec<(usize, Said)> = Vec::with_capacity(count);
        for group in self.graph.groups(&mut on) {
            let ask = |&id: &usize| (id, self.hear(id, &done, wants[id], asking));
            let begin = said.len();
            // What stages look at is small and mostly a stat or two; they may not wait for each other.
            said.par_extend(group.par_iter().with_min_len(TOGETHER).map(ask));
            said[begin..].iter_mut().for_each(|(id, said)| done.note(*id, said));
        }
        said.sort_unstable_by_key(|(id, _)| *id);
        let mut errors = Vec::new();
        // What nodes of a stage with a matrix say is gathered by stage: (stage, node, error).
        let mut of_matrix: Vec<(usize, usize, Diagnostic)> = Vec::new();
        for (id, said) in said {
            done.warnings.extend(said.warnings);
            let stage = self.graph.nodes[id].stage;
            if self.graph.stages[stage].variants.len() > 1 {
                of_matrix.extend(said.errors.into_iter().map(|error| (stage, id, error)));
            } else {
                errors.extend(said.errors);
            }
        }
        for said in of_matrix.chunk_by(|one, other| one.0 == other.0) {
            let total = self.graph.stages[said[0].0].nodes.len();
            let named =
                |(_, node, error): &(usize, usize, Diagnostic)| (self.graph.nodes[*node].name.as_str(), error.clone());
            errors.extend(matrix::gather(said.iter().map(named).collect(), total));
        }
        errors.extend(clashes(&self.graph, &done.files, wanted));
        (done, errors)
    }

    /// Asks one node, with what is known of those before it. `wanted`: it may complain; what cannot work is returned.
    pub(crate) fn ask_one(&self, id: usize, done: &mut Checked, wanted: bool, asking: &Asking<'_>) -> Vec<Diagnostic> {
        let mut said = self.hear(id, done, wanted, asking);
        done.note(id, &mut said);
        done.warnings.extend(said.warnings);
        said.errors
    }

    /// What a node says, with what is known of those before it.
    fn hear(&self, id: usize, done: &Checked, wanted: bool, asking: &Asking<'_>) -> Said {
        let (node, stage) = (&self.graph.nodes[id], self.graph.stage_of(id));
        let known = |source: &Source| self.known(source, done);
        let inputs: BTreeMap<String, Vec<Known>> =
            node.inputs.iter().map(|port| (port.name.clone(), port.sources.iter().map(known).collect())).collect();
        let resources = &self.graph.common(id).resources;
        let elsewhere = asking.settings.is_some_and(|settings| executor(&self.graph, settings, id).is_some());
        let mut check = Check {
            nodes: resources.machines(),
            gpus: resources.gpus as usize,
            hosts: &resources.hosts,
            elsewhere,
            about_to_run: asking.about_to_run.filter(|_| wanted),
            ..Check::new(&self.dir, &inputs)
        };
        node.action.check(&mut check);
        let Check { facts, files, result_path: path, errors, warnings, .. } = check;
        if !wanted {
            return Said { facts, files, path, ..Said::default() };
        }
        let placed = |error: Diagnostic| place(error, &self.graph.variant(id).value, stage.span.as_ref());
        // Shards take the same machines.
        let machines = (stage.nodes.start == id).then(|| wrong_machines(&self.graph, id)).flatten();
        let errors = errors.into_iter().map(placed).chain(machines).collect();
        Said { facts, files, path, errors, warnings: warnings.into_iter().map(placed).collect() }
    }

    fn known(&self, source: &Source, done: &Checked) -> Known {
        let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        match source {
            Source::Node(node) => Known {
                name: self.graph.nodes[*node].name.clone(),
                path: done.paths[*node].clone(),
                facts: done.facts[*node].clone(),
                files: done.files[*node].clone(),
            },
            Source::Part { node, part } => {
                Known { name: format!("{}:{part}", self.graph.nodes[*node].name), ..Known::default() }
            }
            Source::Out { file, .. } => Known { name: file.clone(), ..Known::default() },
            Source::Path(path) => {
                let full = self.dir.join(path);
                let files = last(path).filter(|_| full.is_file()).into_iter().collect();
                Known { name: path.display().to_string(), path: Some(full), facts: Facts::new(), files }
            }
            Source::Prefix { prefix, .. } => Known { name: prefix.display().to_string(), ..Known::default() },
        }
    }
}
