//! Stages of a file → [`Graph`]: reads every stage with its kind, finds what each reference means, expands shards.

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use flow_core::{Diagnostic, DynStage, Kind, Mode, Port, Span, Value, did_you_mean, expand_braces};

use crate::{
    common::{self, Common},
    graph::{Graph, Node, NodeId, PortInputs, Source, StageId, StageInfo, split_index},
    looks,
    order::{Edges, order},
    outside::{self, Named},
};

/// After so many errors nobody reads suggestions, and comparing names is the slow part.
const SUGGEST_UP_TO: usize = 50;

/// A stage that was read, before it has nodes.
struct Draft {
    name: String,
    span: Option<Span>,
    kind: &'static Kind,
    common: Common,
    value: Value,
    /// What [`flow_core::Stage::expand`] made of it, and what each of them takes.
    actions: Vec<(Arc<dyn DynStage>, Vec<Taken>)>,
    needs: Vec<StageId>,
}

/// A port whose references are understood.
struct Taken {
    port: Port,
    targets: Vec<Target>,
}

/// What a reference means.
enum Target {
    Stage(StageId),
    /// One node of a stage.
    Nth(StageId, usize),
    /// What a stage puts into the project's folder, by the stage and the number of the action.
    Out(StageId, usize, String),
    Path(PathBuf),
    Prefix(PathBuf, &'static [&'static str]),
}

impl Target {
    fn stage(&self) -> Option<StageId> {
        match self {
            Self::Stage(stage) | Self::Nth(stage, _) | Self::Out(stage, ..) => Some(*stage),
            Self::Path(_) | Self::Prefix(..) => None,
        }
    }
}

/// Makes the graph of the stages of a file in `project`, which was read from `sources`.
///
/// # Errors
/// Every stage that cannot be read, every reference to nothing, every circle.
pub fn link(
    stages: Vec<(String, Option<Span>, Value)>,
    kinds: &'static [Kind],
    project: &Path,
    sources: &[PathBuf],
) -> Result<Graph, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    // Of all stages, also those that cannot be read: naming one of them is not a second error.
    let names: Vec<String> = stages.iter().map(|stage| stage.0.clone()).collect();
    let by_name: HashMap<String, StageId> = names.iter().enumerate().map(|(i, name)| (name.clone(), i)).collect();
    let mut drafts: Vec<Option<Draft>> =
        stages.into_iter().map(|(name, span, value)| read_stage(name, span, value, kinds, &mut errors)).collect();
    let outs = collect_outs(&drafts, project, sources, &mut errors);

    let finder = Finder { by_name: &by_name, names: &names, outs: &outs, project };
    let mut edges = Edges::new();
    for (to, draft) in drafts.iter_mut().enumerate() {
        let Some(draft) = draft else { continue };
        for taken in draft.actions.iter_mut().flat_map(|(_, ports)| ports) {
            for (nth, reference) in taken.port.refs.iter().enumerate() {
                // A kind that reads its references in its own way may have lost the place.
                let nearest = || draft.value.nearest(&format!("{}.{nth}", taken.port.name)).span.clone();
                let place = reference.span().cloned().or_else(nearest);
                let before = taken.targets.len();
                match finder.find(reference.text(), taken.port.endings, errors.len() < SUGGEST_UP_TO) {
                    Ok(targets) => taken.targets.extend(targets),
                    Err(wrong) => errors.extend(wrong.into_iter().map(|error| error.at(place.clone()))),
                }
                for from in taken.targets[before..].iter().filter_map(Target::stage) {
                    edges.entry((from, to)).or_insert_with(|| place.clone());
                }
            }
        }
        for need in &draft.common.needs {
            match by_name.get(need.text()) {
                Some(&from) => {
                    draft.needs.push(from);
                    edges.entry((from, to)).or_insert_with(|| need.span().cloned());
                }
                None => {
                    let error = Diagnostic::new(format!("there is no stage `{}`", need.text()));
                    let error = error.at(need.span().cloned());
                    errors.push(match did_you_mean(need.text(), names.iter().map(String::as_str)) {
                        Some(near) => error.hint(format!("did you mean `{near}`?")),
                        None => error,
                    });
                }
            }
        }
    }
    let order = order(&names, &edges, &mut errors);
    if !errors.is_empty() {
        sort_and_dedup(&mut errors);
        return Err(errors);
    }
    let drafts: Vec<Draft> = drafts.into_iter().flatten().collect();
    expand(drafts, &order, by_name)
}

/// By place, each said once: shards of a stage complain alike.
pub(crate) fn sort_and_dedup(errors: &mut Vec<Diagnostic>) {
    let place = |error: &Diagnostic| error.span.as_ref().map(|span| (span.source.path.clone(), span.start));
    errors.sort_by_cached_key(place);
    errors.dedup();
}

/// Gives an error about a stage the place of the field that it names, or else of the stage.
pub(crate) fn place(mut error: Diagnostic, value: &Value, span: Option<&Span>) -> Diagnostic {
    if error.span.is_none()
        && let Some(field) = &error.field
    {
        error.span.clone_from(&value.nearest(field).span);
    }
    error.at(value.span.clone()).at(span.cloned())
}

fn read_stage(
    name: String,
    span: Option<Span>,
    value: Value,
    kinds: &'static [Kind],
    errors: &mut Vec<Diagnostic>,
) -> Option<Draft> {
    let parts = match common::split(&name, value) {
        Ok(parts) => parts,
        Err(wrong) => {
            errors.extend(wrong);
            return None;
        }
    };
    let (kind_name, kind_span) = parts.kind;
    let Some(kind) = kinds.iter().find(|kind| kind.name == kind_name) else {
        let error = Diagnostic::new(format!("there is no stage kind `{kind_name}`")).at(kind_span);
        errors.push(match did_you_mean(&kind_name, kinds.iter().map(|kind| kind.name)) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint(format!("kinds: {}", kinds.iter().map(|k| k.name).collect::<Vec<_>>().join(", "))),
        });
        return None;
    };
    let actions = match (kind.parse)(&parts.own) {
        Ok(actions) => actions,
        Err(error) => {
            errors.push(place(error, &parts.own, span.as_ref()));
            return None;
        }
    };
    let with_ports = |action: Arc<dyn DynStage>| {
        let ports = action.ports().into_iter().map(|port| Taken { port, targets: Vec::new() }).collect();
        (action, ports)
    };
    let actions = actions.into_iter().map(with_ports).collect();
    Some(Draft { name, span, kind, common: parts.common, value: parts.own, actions, needs: Vec::new() })
}

/// Path in the project's folder → the stage and action that puts a file or directory there.
type Outs = HashMap<String, (StageId, usize, String)>;

fn collect_outs(drafts: &[Option<Draft>], project: &Path, sources: &[PathBuf], errors: &mut Vec<Diagnostic>) -> Outs {
    let mut outs = Outs::new();
    let mut named = Vec::new();
    for (stage, draft) in drafts.iter().enumerate() {
        let Some(draft) = draft.as_ref().filter(|draft| draft.common.when) else { continue };
        for (nth, (action, _)) in draft.actions.iter().enumerate() {
            for (at, out) in action.outs().iter().enumerate() {
                let span = draft.value.nearest(&format!("outs.{at}")).span.clone();
                named.push(Named { stage: &draft.name, text: out, span, export: false });
                outs.insert(normal(out), (stage, nth, out.clone()));
            }
        }
        let outs = draft.actions.iter().any(|(action, _)| !action.outs().is_empty());
        if draft.common.temp && (outs || draft.common.export.is_some()) {
            let what = if outs { "outs" } else { "export" };
            let error = Diagnostic::new(format!("`{}` is `temp` and has `{what}`: its files go", draft.name));
            errors.push(error.at(draft.span.clone()).hint(format!("leave one of `temp` and `{what}` away")));
        }
        if let Some(export) = &draft.common.export {
            named.push(Named { stage: &draft.name, text: export, span: draft.span.clone(), export: true });
        }
    }
    outside::check(&named, project, sources, errors);
    outs
}

/// `./a//b/../c` → `a/c`.
pub(crate) fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let mut root = "";
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            Component::ParentDir => parts.push(".."),
            Component::Normal(name) => parts.extend(name.to_str()),
            Component::RootDir => root = "/",
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    format!("{root}{}", parts.join("/"))
}

/// Finds what references mean.
struct Finder<'a> {
    by_name: &'a HashMap<String, StageId>,
    names: &'a [String],
    outs: &'a Outs,
    project: &'a Path,
}

impl Finder<'_> {
    /// What `text` means: each of the texts that its braces stand for.
    fn find(
        &self,
        text: &str,
        endings: &'static [&'static str],
        suggest: bool,
    ) -> Result<Vec<Target>, Vec<Diagnostic>> {
        let texts = expand_braces(text).map_err(|message| vec![Diagnostic::new(message)])?;
        let (mut targets, mut errors) = (Vec::with_capacity(texts.len()), Vec::new());
        for text in texts {
            match self.find_one(&text, endings, suggest) {
                Ok(target) => targets.push(target),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(targets) } else { Err(errors) }
    }

    /// An out, or something inside of one that is a directory.
    fn find_out(&self, name: &str) -> Option<Target> {
        Path::new(name).ancestors().find_map(|above| {
            let above = above.to_str()?;
            let (stage, nth, out) = self.outs.get(above)?;
            Some(Target::Out(*stage, *nth, format!("{out}{}", &name[above.len()..])))
        })
    }

    fn find_one(&self, text: &str, endings: &'static [&'static str], suggest: bool) -> Result<Target, Diagnostic> {
        if let Some(&stage) = self.by_name.get(text) {
            return Ok(Target::Stage(stage));
        }
        if let Some((stage, nth)) = split_index(text)
            && let Some(&stage) = self.by_name.get(stage)
        {
            return Ok(Target::Nth(stage, nth));
        }
        if text.is_empty() {
            return Err(Diagnostic::new("a reference is empty").hint("name a stage, or a path"));
        }
        let name = normal(text);
        if let Some(target) = self.find_out(&name) {
            return Ok(target);
        }
        let path = self.project.join(text);
        let metadata = path.metadata();
        looks::found(&path, metadata.as_ref().ok().map(std::fs::Metadata::is_dir));
        if let Ok(metadata) = metadata {
            // Only a directory can hold outputs; looking for them is for the few that are.
            if metadata.is_dir()
                && let Some((out, (stage, ..))) = self.outs.iter().find(|(out, _)| Path::new(out).starts_with(&name))
            {
                let stage = &self.names[*stage];
                return Err(Diagnostic::new(format!("`{text}` holds `{out}`, which stage `{stage}` makes"))
                    .hint(format!("name the stage `{stage}`, or the files, so that the order is clear")));
            }
            return Ok(Target::Path(PathBuf::from(text)));
        }
        let with = |ending: &&str| self.project.join(format!("{text}{ending}"));
        if !endings.is_empty() {
            let missing = |ending: &&&str| {
                let is_dir = with(ending).metadata().ok().map(|metadata| metadata.is_dir());
                looks::found(&with(ending), is_dir);
                is_dir.is_none()
            };
            let missing: Vec<_> = endings.iter().filter(missing).collect();
            if missing.is_empty() {
                return Ok(Target::Prefix(PathBuf::from(text), endings));
            }
            if missing.len() < endings.len() {
                return Err(Diagnostic::new(format!("`{text}{}` is missing", missing[0]))
                    .cause(format!("`{text}` is the prefix of files that end in {}", endings.join(", "))));
            }
        }
        let error = Diagnostic::new(format!("`{text}` is neither a stage nor a file or directory"));
        let near = suggest.then(|| did_you_mean(text, self.names.iter().map(String::as_str))).flatten();
        Err(match near {
            Some(near) => error.hint(format!("did you mean the stage `{near}`?")),
            None => error.hint(format!("paths are relative to {}", self.project.display())),
        })
    }
}

/// Makes the nodes, stage by stage.
fn expand(drafts: Vec<Draft>, order: &[StageId], by_name: HashMap<String, StageId>) -> Result<Graph, Vec<Diagnostic>> {
    let mut expander = Expander {
        drafts: &drafts,
        nodes: Vec::with_capacity(drafts.len()),
        ranges: vec![0..0; drafts.len()],
        starts: vec![Vec::new(); drafts.len()],
        off: vec![None; drafts.len()],
        errors: Vec::new(),
    };
    for &stage in order {
        expander.stage(stage);
    }
    let Expander { mut nodes, ranges, off, mut errors, .. } = expander;
    if !errors.is_empty() {
        sort_and_dedup(&mut errors);
        return Err(errors);
    }
    for id in 0..nodes.len() {
        for at in 0..nodes[id].dependencies.len() {
            let from = nodes[id].dependencies[at];
            nodes[from].dependents.push(id);
        }
    }
    let stages = drafts
        .into_iter()
        .zip(ranges.into_iter().zip(off))
        .map(|(draft, (nodes, off))| StageInfo {
            name: draft.name,
            kind: draft.kind,
            common: draft.common,
            nodes,
            off,
            value: draft.value,
            span: draft.span,
        })
        .collect();
    Ok(Graph { stages, nodes, by_name })
}

struct Expander<'a> {
    drafts: &'a [Draft],
    nodes: Vec<Node>,
    ranges: Vec<std::ops::Range<NodeId>>,
    /// The first node of each action of each stage.
    starts: Vec<Vec<NodeId>>,
    off: Vec<Option<String>>,
    errors: Vec<Diagnostic>,
}

impl Expander<'_> {
    fn stage(&mut self, stage: StageId) {
        let draft = &self.drafts[stage];
        let first = self.nodes.len();
        self.off[stage] = self.why_off(draft);
        let needs: Vec<NodeId> = draft.needs.iter().flat_map(|&need| self.ranges[need].clone()).collect();
        for (nth, (action, ports)) in draft.actions.iter().enumerate() {
            let start = self.nodes.len();
            self.starts[stage].push(start);
            if self.off[stage].is_some() {
                // One node, so that the stage is seen; it takes nothing and does nothing.
                if nth == 0 {
                    self.push(stage, action, Vec::new(), Vec::new());
                }
                continue;
            }
            let ports: Vec<(&Taken, Vec<Source>)> =
                ports.iter().map(|taken| (taken, self.sources(taken, stage))).collect();
            let Some(count) = self.count(draft, &ports) else { continue };
            if count > 1 && !action.outs().is_empty() {
                let error = Diagnostic::new(format!("`{}` has `outs` and would run {count} times", draft.name));
                let error = error.at(draft.value.nearest("outs").span.clone());
                self.errors.push(error.hint("every run would write the same files: leave `outs` away and use `{out}`"));
                continue;
            }
            for shard in 0..count {
                let inputs = ports.iter().map(|(taken, sources)| PortInputs {
                    name: taken.port.name.clone(),
                    sources: match taken.port.mode {
                        Mode::Each if sources.len() > 1 => vec![sources[shard].clone()],
                        _ => sources.clone(),
                    },
                    only: taken.port.only,
                });
                self.push(stage, action, inputs.collect(), needs.clone());
            }
        }
        self.ranges[stage] = first..self.nodes.len();
        if self.nodes.len() - first > 1 {
            for (index, node) in self.nodes[first..].iter_mut().enumerate() {
                node.name = format!("{}[{index}]", draft.name);
            }
        }
    }

    fn push(&mut self, stage: StageId, action: &Arc<dyn DynStage>, inputs: Vec<PortInputs>, needs: Vec<NodeId>) {
        let mut dependencies = needs;
        dependencies.extend(inputs.iter().flat_map(|port| port.sources.iter().filter_map(Source::node)));
        dependencies.sort_unstable();
        dependencies.dedup();
        let (name, action) = (self.drafts[stage].name.clone(), Arc::clone(action));
        self.nodes.push(Node { name, stage, action, inputs, dependencies, dependents: Vec::new() });
    }

    /// `when = false`, or a port all of whose stages are off.
    fn why_off(&self, draft: &Draft) -> Option<String> {
        if !draft.common.when {
            return Some("when = false".into());
        }
        draft.actions.iter().flat_map(|(_, ports)| ports).find_map(|taken| {
            let off = |target: &Target| target.stage().filter(|&stage| self.off[stage].is_some());
            let all_off = !taken.targets.is_empty() && taken.targets.iter().all(|target| off(target).is_some());
            let first = taken.targets.first().and_then(off).filter(|_| all_off)?;
            Some(format!("`{}` is off", self.drafts[first].name))
        })
    }

    /// What enters at a port, flat.
    fn sources(&mut self, taken: &Taken, of: StageId) -> Vec<Source> {
        let mut sources = Vec::new();
        for target in &taken.targets {
            if target.stage().is_some_and(|stage| self.off[stage].is_some()) {
                continue;
            }
            match target {
                Target::Stage(stage) => sources.extend(self.ranges[*stage].clone().map(Source::Node)),
                Target::Nth(stage, nth) if *nth < self.ranges[*stage].len() => {
                    sources.push(Source::Node(self.ranges[*stage].start + nth));
                }
                Target::Nth(stage, nth) => {
                    let (name, have) = (&self.drafts[*stage].name, self.ranges[*stage].len());
                    let error = Diagnostic::new(format!("there is no `{name}[{nth}]`: `{name}` has {have} nodes"));
                    let span = self.drafts[of].value.nearest(&taken.port.name).span.clone();
                    self.errors.push(error.at(span));
                }
                Target::Out(stage, nth, file) => {
                    sources.push(Source::Out { node: self.starts[*stage][*nth], file: file.clone() });
                }
                Target::Path(path) => sources.push(Source::Path(path.clone())),
                Target::Prefix(prefix, endings) => {
                    sources.push(Source::Prefix { prefix: prefix.clone(), endings });
                }
            }
        }
        sources
    }

    /// How many nodes an action makes; nothing if its ports do not agree, which is said.
    fn count(&mut self, draft: &Draft, ports: &[(&Taken, Vec<Source>)]) -> Option<usize> {
        let mut count: Option<(usize, &str)> = None;
        for (taken, sources) in ports.iter().filter(|(taken, sources)| {
            // A single input goes with every shard of another port.
            taken.port.mode == Mode::Each && sources.len() > 1
        }) {
            match count {
                Some((have, other)) if have != sources.len() => {
                    let name = &taken.port.name;
                    let message = format!("`{other}` has {have} inputs and `{name}` has {}", sources.len());
                    let error = Diagnostic::new(message).at(draft.value.nearest(name).span.clone());
                    self.errors
                        .push(error.hint("one node is made of each, in step: give both the same number, or one"));
                    return None;
                }
                _ => count = Some((sources.len(), &taken.port.name)),
            }
        }
        Some(count.map_or(1, |(count, _)| count))
    }
}
