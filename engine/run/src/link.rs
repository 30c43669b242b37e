//! Stages of a file → [`Graph`]: reads every stage with its kind, and finds what each reference means. The nodes are
//! made in [`crate::expand`].

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use flow_core::{
    Check, Ctx, Diagnostic, DynStage, Files, Implied, Kind, Machine, Parsed, Pin, Port, Span, Value, did_you_mean,
};
use rayon::prelude::*;

use crate::{
    common,
    expand::expand,
    find::{Finder, Target, at_home, collect_places, goes_back},
    graph::{Graph, StageId, Variant},
    load::{self, StageTable},
    looks, matrix,
    order::{Edges, order},
    syntax,
};

/// After so many errors nobody reads suggestions, and comparing names is the slow part.
const SUGGEST_UP_TO: usize = 50;
/// The references of so many stages are looked up by one thread.
const TOGETHER: usize = 256;

/// A stage that was read, before it has nodes.
#[derive(Debug)]
pub struct Draft {
    pub name: String,
    pub span: Option<Span>,
    pub kind: &'static Kind,
    pub variants: Vec<Variant>,
    pub actions: Vec<Action>,
    /// By variant.
    pub needs: Vec<Vec<Target>>,
    /// It stands in no file: others imply it.
    pub implied: bool,
}

/// One of the nodes that [`flow_core::Stage::expand`] made, before its inputs make several of it.
#[derive(Debug)]
pub struct Action {
    pub variant: usize,
    pub stage: Arc<dyn DynStage>,
    pub ports: Vec<Taken>,
    /// It is what the user wrote: none of it is made up.
    pub sound: bool,
}

/// A port whose references are understood.
#[derive(Debug)]
pub struct Taken {
    pub port: Port,
    pub targets: Vec<Target>,
}

impl Draft {
    /// `train`, or `train[lr=0.001]` for a combination of its matrix.
    pub fn name_of(&self, variant: usize) -> String {
        match self.variants[variant].label.as_str() {
            "" => self.name.clone(),
            label => format!("{}[{label}]", self.name),
        }
    }
}

/// What became of the stages of a file.
pub struct Linked {
    /// The graph; if there are errors, it only serves to find more.
    pub graph: Graph,
    /// Every stage that cannot be read, every reference to nothing, every circle.
    pub errors: Vec<Diagnostic>,
    /// By stage: whether it is what the user wrote.
    pub sound: Vec<bool>,
}

/// Where a pipeline is.
pub struct Ground<'a> {
    /// The project's folder.
    pub project: &'a Path,
    /// The files that the pipeline was read from, with links followed.
    pub sources: &'a [PathBuf],
    /// What `~` is.
    pub home: Option<&'a Path>,
}

impl Files for Ground<'_> {
    fn toml(&self, path: &str) -> Option<Result<Value, Vec<Diagnostic>>> {
        let place = self.project.join(&*at_home(path, self.home).ok()?);
        place.is_file().then(|| syntax::read(&place))
    }
}

/// Makes the graph of the stages of a file.
pub fn link(stages: Vec<StageTable>, kinds: &'static [Kind], ground: &Ground<'_>) -> Linked {
    let mut errors = Vec::new();
    let mut names: Vec<String> = stages.iter().map(|stage| stage.name.clone()).collect();
    let mut by_name: HashMap<String, StageId> = names.iter().enumerate().map(|(i, name)| (name.clone(), i)).collect();
    let read = |stage| {
        let mut wrong = Vec::new();
        (read_stage(stage, kinds, ground, &mut wrong), wrong)
    };
    let read: Vec<(Draft, Vec<Diagnostic>)> = stages.into_par_iter().with_min_len(256).map(read).collect();
    let mut drafts = Vec::with_capacity(read.len());
    // Only for what is wrong: names of many stages are not copied for nothing.
    let with_kind = |(draft, _): &(Draft, Vec<Diagnostic>)| (draft.kind.name != UNREAD).then(|| draft.name.clone());
    let is_right = read.iter().all(|(_, wrong)| wrong.is_empty());
    let known: Vec<String> = if is_right { Vec::new() } else { read.iter().filter_map(with_kind).collect() };
    for (draft, mut wrong) in read {
        if errors.len() < SUGGEST_UP_TO {
            common::name_near_stage(&mut wrong, &draft.name, &known);
        }
        drafts.push(draft);
        errors.extend(wrong);
    }
    let (also, implied) = implied(&drafts, &mut by_name);
    for stage in also {
        names.push(stage.name.clone());
        drafts.push(Draft { implied: true, ..read_stage(stage, kinds, ground, &mut errors) });
    }
    let places = collect_places(&drafts, ground, &mut errors);

    let finder = Finder { by_name: &by_name, names: &names, implied: &implied, places: &places, ground };
    let mut edges = Edges::new();
    let find = |(nth, drafts): (usize, &mut [Draft])| {
        looks::collect(|| {
            let (mut edges, mut wrong) = (Vec::new(), Vec::new());
            for (to, draft) in (nth * TOGETHER..).zip(drafts) {
                if !find_refs(&finder, to, draft, &|_| false, &mut edges).is_empty() {
                    wrong.push(to);
                }
            }
            (edges, wrong)
        })
    };
    let found: Vec<_> = drafts.par_chunks_mut(TOGETHER).enumerate().map(find).collect();
    for ((found, wrong), looks) in found {
        looks::add(looks);
        for (from, to, place) in found {
            edges.entry((from, to)).or_insert(place);
        }
        // Once more, with suggestions to the first of all.
        for to in wrong {
            let suggest = |said: usize| errors.len() + said < SUGGEST_UP_TO;
            let said = find_refs(&finder, to, &mut drafts[to], &suggest, &mut Vec::new());
            errors.extend(of_variants(&drafts[to], said));
        }
    }
    let mut sound: Vec<bool> = drafts
        .iter()
        .map(|draft| draft.actions.iter().all(|action| action.sound) && draft.kind.name != UNREAD)
        .collect();
    let order = order(&names, &mut edges, &mut errors, &mut sound);
    let graph = expand(drafts, &order, by_name, &sound, &mut errors);
    Linked { graph, errors, sound }
}

/// The stages that others imply, each once, and what references say that mean them.
fn implied(drafts: &[Draft], by_name: &mut HashMap<String, StageId>) -> (Vec<StageTable>, HashMap<String, StageId>) {
    let (mut stages, mut implied) = (Vec::new(), HashMap::new());
    for one in drafts.iter().flat_map(|draft| &draft.actions).flat_map(|action| action.stage.implied()) {
        if implied.contains_key(one.reference.text()) {
            continue;
        }
        let with = |nth: usize| if nth == 1 { one.name.clone() } else { format!("{}-{nth}", one.name) };
        let name = (1..).map(with).find(|name| !by_name.contains_key(name)).expect("there is always one more number");
        let id = drafts.len() + stages.len();
        by_name.insert(name.clone(), id);
        implied.insert(one.reference.text().to_owned(), id);
        let variants = vec![load::Variant { label: String::new(), value: one.table }];
        stages.push(StageTable { name, span: one.reference.span().cloned(), variants });
    }
    (stages, implied)
}

/// Finds what a stage refers to. `suggest`: whether to look for what was meant, after so many errors. Tells what is wrong,
/// by variant; `edges`: from whom it takes, and where that stands.
fn find_refs(
    finder: &Finder<'_>,
    to: StageId,
    draft: &mut Draft,
    suggest: &dyn Fn(usize) -> bool,
    edges: &mut Vec<(StageId, StageId, Option<Span>)>,
) -> Vec<(usize, Diagnostic)> {
    let mut said = Vec::new();
    for (at, action) in draft.actions.iter_mut().enumerate() {
        let variant = &draft.variants[action.variant];
        for taken in &mut action.ports {
            taken.targets = Vec::with_capacity(taken.port.refs.len());
            for (nth, reference) in taken.port.refs.iter().enumerate() {
                if reference.text().is_empty() && reference.span().is_none() && !action.sound {
                    continue; // It is made up.
                }
                // A kind that reads its references in its own way may have lost the place.
                let nearest = || variant.value.nearest(&format!("{}.{nth}", taken.port.name)).span.clone();
                let place = || reference.span().cloned().or_else(nearest);
                let mut wrong = Vec::new();
                let suggest = suggest(said.len());
                let mut targets = finder.find(reference.text(), taken.port.endings, suggest, &mut wrong);
                targets.retain(|target| {
                    let own = matches!(target, Target::Out(stage, nth, _) if (*stage, *nth) == (to, at));
                    if own {
                        let text = format!("`{}` is both a file that it reads and an output", reference.text());
                        wrong.push(Diagnostic::new(text).hint("read one file and make another"));
                    }
                    !own
                });
                said.extend(wrong.into_iter().map(|error| (action.variant, error.at(place()))));
                edges.extend(targets.iter().filter_map(Target::stage).map(|from| (from, to, place())));
                taken.targets.extend(targets);
            }
        }
    }
    draft.needs = Vec::with_capacity(draft.variants.len());
    for (nth, variant) in draft.variants.iter().enumerate() {
        let mut needs = Vec::with_capacity(variant.common.needs.len());
        for need in &variant.common.needs {
            let place = || need.span().cloned();
            match finder.need(need.text()) {
                Ok(target) => {
                    let from = target.stage().expect("what is needed is a stage");
                    edges.push((from, to, place()));
                    needs.push(target);
                }
                Err(error) => said.push((nth, error.at(place()))),
            }
        }
        draft.needs.push(needs);
    }
    said
}

/// What was said of the combinations of a stage, each once.
fn of_variants(draft: &Draft, said: Vec<(usize, Diagnostic)>) -> Vec<Diagnostic> {
    if draft.variants.len() == 1 {
        return said.into_iter().map(|(_, error)| error).collect();
    }
    let names: Vec<String> = (0..draft.variants.len()).map(|nth| draft.name_of(nth)).collect();
    matrix::gather(said.into_iter().map(|(nth, error)| (names[nth].as_str(), error)).collect(), names.len())
}

/// In the order of the file, what has no place and what is of the command line last; each said once: shards of a stage
/// complain alike.
pub(crate) fn sort_and_dedup(errors: &mut Vec<Diagnostic>, main: &Path) {
    errors.sort_by_cached_key(|error| {
        error.span.as_ref().map_or((3, None, 0), |span| {
            let path = &span.source.path;
            let rank = match path.to_str() {
                _ if path == main => 0,
                Some("--set" | "environment") => 2,
                _ => 1,
            };
            (rank, Some(path.clone()), span.start)
        })
    });
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

/// Reads a stage, once for each combination of its matrix.
fn read_stage(stage: StageTable, kinds: &'static [Kind], ground: &Ground<'_>, errors: &mut Vec<Diagnostic>) -> Draft {
    let StageTable { name, span, variants } = stage;
    let (all, actions, needs) = (Vec::with_capacity(variants.len()), Vec::with_capacity(1), Vec::new());
    let mut draft = Draft { name, span, kind: &NO_KIND, variants: all, actions, needs, implied: false };
    let mut said = Vec::new();
    for (nth, variant) in variants.into_iter().enumerate() {
        let mut wrong = Vec::new();
        let parts = common::split(&draft.name, variant.value, &mut wrong);
        let Some(mut parts) = parts else {
            draft.variants.push(Variant { label: variant.label, ..Variant::default() });
            said.extend(wrong.into_iter().map(|error| (nth, error)));
            continue;
        };
        if let Some(export) = parts.common.export.as_mut().map(|export| &mut export.to) {
            match at_home(export, ground.home) {
                Ok(path) => *export = path.into_owned(),
                Err(error) => wrong.push(error.at(parts.said.nearest("export").span.clone())),
            }
            if goes_back(export) {
                let error = Diagnostic::new(format!("`{export}` goes into a directory and out of it again"));
                let error =
                    error.hint("where that leads is known only when the directory is there: write the path without it");
                wrong.push(error.at(parts.said.nearest("export").span.clone()));
                parts.common.export = None;
            }
        }
        let kind = parts.kind.and_then(|(name, span)| find_kind(&name, span, kinds, &mut wrong));
        if let Some(kind) = kind {
            if nth > 0 && kind.name != draft.kind.name && draft.kind.name != UNREAD {
                let error = Diagnostic::new("a stage is of one kind in all combinations of its matrix");
                wrong.push(error.at(parts.own.span.clone()).hint("make two stages of it"));
            }
            draft.kind = kind;
            let Parsed { nodes, mut errors, sound } = (kind.parse)(&parts.own, ground);
            common::name_all_keys(&mut errors, &parts.own, kind);
            wrong.extend(errors.into_iter().map(|error| place(error, &parts.own, draft.span.as_ref())));
            draft.actions.extend(nodes.into_iter().map(|stage| {
                let ports = stage.ports().into_iter().map(|port| Taken { port, targets: Vec::new() }).collect();
                Action { variant: nth, stage, ports, sound }
            }));
        }
        said.extend(wrong.into_iter().map(|error| (nth, error)));
        draft.variants.push(Variant { label: variant.label, common: parts.common, said: parts.said, value: parts.own });
    }
    if draft.actions.is_empty() {
        draft.actions.push(Action { variant: 0, stage: Arc::new(Unread), ports: Vec::new(), sound: false });
    }
    errors.extend(of_variants(&draft, said));
    draft
}

fn find_kind(
    name: &str,
    span: Option<Span>,
    kinds: &'static [Kind],
    errors: &mut Vec<Diagnostic>,
) -> Option<&'static Kind> {
    let kind = kinds.iter().find(|kind| kind.name == name);
    if kind.is_none() {
        let error = Diagnostic::new(format!("there is no stage kind `{name}`")).at(span);
        errors.push(match did_you_mean(name, kinds.iter().map(|kind| kind.name)) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint(format!("kinds: {}", kinds.iter().map(|k| k.name).collect::<Vec<_>>().join(", "))),
        });
    }
    kind
}

const UNREAD: &str = "";

/// The kind of a stage whose kind is not known.
static NO_KIND: Kind = Kind {
    name: UNREAD,
    version: 0,
    about: "",
    resumable: false,
    local: true,
    many_nodes: true,
    parse: |_, _| Parsed::default(),
    schema: || serde_json::Value::Bool(true),
};

/// Stands for a stage that could not be read: nothing is known of it, so that nobody complains of its result.
#[derive(Debug)]
struct Unread;

impl DynStage for Unread {
    fn ports(&self) -> Vec<Port> {
        Vec::new()
    }
    fn lacks(&self, _: &Machine<'_>) -> Option<Diagnostic> {
        None
    }
    fn implied(&self) -> Vec<Implied> {
        Vec::new()
    }
    fn outs(&self) -> &[String] {
        &[]
    }
    fn parts(&self) -> &[String] {
        &[]
    }
    fn pin(&self) -> Option<Pin> {
        None
    }
    fn check(&self, _check: &mut Check<'_>) {}
    fn left(&self, _: &Path) -> Option<String> {
        None
    }
    fn run(&self, _ctx: &Ctx<'_>) -> anyhow::Result<()> {
        anyhow::bail!("the stage could not be read")
    }
    fn params(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}
