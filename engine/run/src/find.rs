//! What references mean: a stage, some of its nodes, a file that a stage makes, a path.

use std::{
    borrow::Cow,
    collections::HashMap,
    path::{Component, Path, PathBuf},
};

use flow_core::{Diagnostic, did_you_mean, expand_braces};
use rayon::prelude::*;

use crate::{
    graph::{StageId, bracket},
    link::{Draft, Ground},
    looks,
    outside::{self, Named},
};

/// The places of so many stages are gathered by one thread.
const TOGETHER: usize = 256;

/// What a reference means.
#[derive(Debug)]
pub enum Target {
    /// All of a stage.
    Stage(StageId),
    /// Some nodes of a stage: what stands in the brackets.
    Some(StageId, String),
    /// Of each node of that, the part of this name: [`flow_core::Stage::parts`].
    Part(Box<Target>, String),
    /// What a stage puts into the project's folder, by the stage and the number of the action.
    Out(StageId, usize, String),
    /// A file or directory, relative to the project's folder.
    Path(PathBuf),
    /// Files with these endings.
    Prefix(PathBuf, &'static [&'static str]),
}

impl Target {
    /// The stage that it is of.
    pub fn stage(&self) -> Option<StageId> {
        match self {
            Self::Stage(stage) | Self::Some(stage, _) | Self::Out(stage, ..) => Some(*stage),
            Self::Part(of, _) => of.stage(),
            Self::Path(_) | Self::Prefix(..) => None,
        }
    }
}

/// Path in the project's folder → the stage and action that puts a file or directory there.
type Outs = HashMap<String, (StageId, usize, String)>;

/// Where results go besides the cache.
#[derive(Debug, Default)]
pub struct Places {
    outs: Outs,
    /// The parts of stages that have some; nothing known of one that could not be read.
    parts: HashMap<StageId, Option<Vec<String>>>,
    /// The directory of an export with links followed, what the pipeline calls it, and whose it is.
    exports: Vec<(PathBuf, String, String)>,
}

/// `~/x` in the home of the user, as a shell reads it.
///
/// # Errors
/// It is not known where that is.
pub fn at_home<'a>(text: &'a str, home: Option<&Path>) -> Result<Cow<'a, str>, Diagnostic> {
    let rest = match text.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest,
        _ => return Ok(Cow::Borrowed(text)),
    };
    let Some(home) = home else {
        return Err(Diagnostic::new(format!("`{text}`: nobody says what `~` is")).hint("set HOME, or write the path"));
    };
    Ok(Cow::Owned(format!("{}{rest}", home.display())))
}

/// Whether a path goes up again from where it went down.
pub fn goes_back(path: &str) -> bool {
    let up = |part: &Component<'_>| *part == Component::ParentDir;
    Path::new(path).components().filter(|part| *part != Component::CurDir).skip_while(up).any(|part| up(&part))
}

/// Where stages put what they make, besides the cache.
pub fn collect_places<'d>(drafts: &'d [Draft], ground: &Ground<'_>, errors: &mut Vec<Diagnostic>) -> Places {
    let gather = |(nth, drafts): (usize, &'d [Draft])| {
        let mut gathered = Gathered::default();
        (nth * TOGETHER..).zip(drafts).for_each(|(stage, draft)| gathered.add(stage, draft));
        gathered
    };
    let gathered: Vec<Gathered<'_>> = drafts.par_chunks(TOGETHER).enumerate().map(gather).collect();
    let (mut outs, mut parts, mut named) = (Outs::with_capacity(drafts.len()), HashMap::new(), Vec::new());
    for of_some in gathered {
        outs.extend(of_some.outs);
        parts.extend(of_some.parts);
        named.extend(of_some.named);
        errors.extend(of_some.errors);
    }
    let checked = outside::check(&named, ground, errors);
    let exports = checked.into_iter().filter(|(_, one)| one.export);
    let exports = exports.map(|(place, one)| (place, one.text.to_owned(), one.stage.clone())).collect();
    Places { outs, parts, exports }
}

/// The places of some stages.
#[derive(Default)]
struct Gathered<'d> {
    outs: Vec<(String, (StageId, usize, String))>,
    parts: Vec<(StageId, Option<Vec<String>>)>,
    named: Vec<Named<'d>>,
    errors: Vec<Diagnostic>,
}

impl<'d> Gathered<'d> {
    fn add(&mut self, stage: StageId, draft: &'d Draft) {
        if draft.actions.iter().any(|action| !action.sound) {
            self.parts.push((stage, None));
        } else if let Some(action) = draft.actions.iter().find(|action| !action.stage.parts().is_empty()) {
            self.parts.push((stage, Some(action.stage.parts().to_vec())));
        }
        for (nth, action) in draft.actions.iter().enumerate() {
            let variant = &draft.variants[action.variant];
            if !variant.common.when {
                continue;
            }
            for (at, out) in action.stage.outs().iter().enumerate() {
                if out.is_empty() && !action.sound {
                    continue; // It is made up.
                }
                let span = variant.value.nearest(&format!("outs.{at}")).span.clone();
                self.named.push(Named { stage: draft.name_of(action.variant), text: out, span, export: false });
                self.outs.push((normal(out), (stage, nth, out.clone())));
            }
        }
        for (nth, variant) in draft.variants.iter().enumerate().filter(|(_, variant)| variant.common.when) {
            let outs = draft.actions.iter().any(|action| action.variant == nth && !action.stage.outs().is_empty());
            if variant.common.temp && (outs || variant.common.export.is_some()) {
                let what = if outs { "outs" } else { "export" };
                let error = Diagnostic::new(format!("`{}` is `temp` and has `{what}`: its files go", draft.name));
                let error = error.at(variant.place("temp"));
                self.errors.push(error.hint(format!("leave one of `temp` and `{what}` away")));
            }
            if let Some(export) = variant.common.export_to() {
                let span = variant.place("export");
                self.named.push(Named { stage: draft.name_of(nth), text: export, span, export: true });
            }
        }
    }
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

/// So much is shown of what braces stand for and is nowhere.
const SHOWN: usize = 3;

/// What is wrong with the texts that one reference stands for: a thousand shards that are not there are one error.
fn together(wrong: Vec<(String, Diagnostic)>) -> Vec<Diagnostic> {
    let (absent, mut others): (Vec<_>, Vec<_>) = wrong.into_iter().partition(|(_, error)| error.absent);
    let mut all = Vec::new();
    if absent.len() > 1 {
        let names: Vec<String> = absent.iter().take(SHOWN).map(|(text, _)| format!("`{text}`")).collect();
        let names = match (absent.len() - names.len(), names.split_last()) {
            (0, Some((last, first))) => format!("{} and {last}", first.join(", ")),
            (more, _) => format!("{} and {more} more", names.join(", ")),
        };
        let mut error = Diagnostic::new(format!("{names} are neither stages nor files or directories")).absent();
        for hint in absent.into_iter().take(SHOWN).flat_map(|(_, error)| error.hints) {
            if !error.hints.contains(&hint) {
                error.hints.push(hint);
            }
        }
        all.push(error);
    } else {
        all.extend(absent.into_iter().map(|(_, error)| error));
    }
    let more = others.len().saturating_sub(SHOWN);
    others.truncate(SHOWN);
    if let Some((_, last)) = others.last_mut().filter(|_| more > 0) {
        last.causes.push(format!("and so on: of what the braces stand for, {more} more are wrong"));
    }
    all.extend(others.into_iter().map(|(_, error)| error));
    all
}

/// More names of a directory are not compared.
const COMPARED: usize = 10_000;

/// What lies beside the path and was probably meant, as it would be written in the place of `text`.
fn near_file(text: &str, path: &Path, endings: &[&str]) -> Option<String> {
    let wanted = path.file_name()?.to_str()?;
    let entries = path.parent()?.read_dir().ok()?.flatten().take(COMPARED);
    let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let prefixes = endings.iter().flat_map(|ending| names.iter().filter_map(|name| name.strip_suffix(*ending)));
    // Another number is another shard, and no slip.
    let letters = |name: &str| name.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    let is_other = |name: &&str| letters(name) != letters(wanted);
    let near = did_you_mean(wanted, prefixes.chain(names.iter().map(String::as_str)).filter(is_other))?;
    Some(format!("{}{near}", text.trim_end_matches('/').strip_suffix(wanted)?))
}

/// Finds what references mean.
pub struct Finder<'a> {
    pub by_name: &'a HashMap<String, StageId>,
    pub names: &'a [String],
    /// What means a stage that stands in no file.
    pub implied: &'a HashMap<String, StageId>,
    pub places: &'a Places,
    pub ground: &'a Ground<'a>,
}

impl Finder<'_> {
    /// What `text` means: each of the texts that its braces stand for. What is wrong goes to `errors`.
    pub fn find(
        &self,
        text: &str,
        endings: &'static [&'static str],
        suggest: bool,
        errors: &mut Vec<Diagnostic>,
    ) -> Vec<Target> {
        if let Some(&stage) = self.implied.get(text) {
            return vec![Target::Stage(stage)];
        }
        let texts = match expand_braces(text) {
            Ok(texts) => texts,
            Err(message) => {
                errors.push(Diagnostic::new(message));
                return Vec::new();
            }
        };
        let (mut targets, mut wrong) = (Vec::with_capacity(texts.len()), Vec::new());
        for text in texts {
            match self.find_one(&text, endings, suggest && wrong.len() < SHOWN) {
                Ok(target) => targets.push(target),
                Err(error) => wrong.push((text, error)),
            }
        }
        errors.extend(together(wrong));
        targets
    }

    /// What `text` means in `needs`: a stage, or some of its nodes.
    ///
    /// # Errors
    /// There is no such stage.
    pub fn need(&self, text: &str) -> Result<Target, Diagnostic> {
        let (stage, inside) = bracket(text).map_or((text, None), |(stage, inside)| (stage, Some(inside)));
        if let Some(&stage) = self.by_name.get(stage) {
            return Ok(inside.map_or(Target::Stage(stage), |inside| Target::Some(stage, inside.to_owned())));
        }
        let error = Diagnostic::new(format!("there is no stage `{stage}`")).absent();
        Err(match did_you_mean(stage, self.names.iter().map(String::as_str)) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint(self.stages()),
        })
    }

    /// The names of the stages, for a person.
    fn stages(&self) -> String {
        let more = if self.names.len() > 30 { ", …" } else { "" };
        format!("the stages: {}{more}", self.names[..self.names.len().min(30)].join(", "))
    }

    /// An out, or something inside of one that is a directory.
    fn find_out(&self, name: &str) -> Option<Target> {
        Path::new(name).ancestors().find_map(|above| {
            let above = above.to_str()?;
            let (stage, nth, out) = self.places.outs.get(above)?;
            Some(Target::Out(*stage, *nth, format!("{out}{}", &name[above.len()..])))
        })
    }

    /// A part of a stage, or of some of its nodes: `split:train`, `split[0]:train`. Nothing if it is no such name.
    fn find_part(&self, text: &str) -> Option<Result<Target, Diagnostic>> {
        let (of, part) = text.rsplit_once(':')?;
        let target = match (self.by_name.get(of), bracket(of)) {
            (Some(&stage), _) => Target::Stage(stage),
            (None, Some((stage, inside))) => Target::Some(*self.by_name.get(stage)?, inside.to_owned()),
            (None, None) => return None,
        };
        let parts = match self.places.parts.get(&target.stage()?) {
            Some(None) => return Some(Ok(target)),
            Some(Some(parts)) => parts.as_slice(),
            None => &[],
        };
        if parts.iter().any(|known| known == part) {
            return Some(Ok(Target::Part(Box::new(target), part.to_owned())));
        }
        let error = Diagnostic::new(format!("`{of}` has no part `{part}`"));
        Some(Err(match did_you_mean(part, parts.iter().map(String::as_str)) {
            Some(near) => error.hint(format!("did you mean `{of}:{near}`?")),
            None if parts.is_empty() => error.hint(format!("its result is taken whole: \"{of}\"")),
            None => error.hint(format!("its parts: {}", parts.join(", "))),
        }))
    }

    fn find_one(&self, text: &str, endings: &'static [&'static str], suggest: bool) -> Result<Target, Diagnostic> {
        if let Some(&stage) = self.by_name.get(text) {
            return Ok(Target::Stage(stage));
        }
        if let Some((stage, some)) = bracket(text)
            && let Some(&stage) = self.by_name.get(stage)
        {
            return Ok(Target::Some(stage, some.to_owned()));
        }
        if let Some(found) = self.find_part(text) {
            return found;
        }
        if text.is_empty() {
            return Err(Diagnostic::new("a reference is empty").hint("name a stage, or a path"));
        }
        let name = normal(text);
        if let Some(target) = self.find_out(&name) {
            return Ok(target);
        }
        let text = &*at_home(text, self.ground.home)?;
        let path = self.ground.project.join(text);
        self.is_no_export(text, &path)?;
        let metadata = path.metadata();
        looks::found(&path, metadata.as_ref().ok().map(std::fs::Metadata::is_dir));
        if let Ok(metadata) = metadata {
            // Only a directory can hold outputs; looking for them is for the few that are.
            if metadata.is_dir()
                && let Some((out, (stage, ..))) =
                    self.places.outs.iter().find(|(out, _)| Path::new(out).starts_with(&name))
            {
                let stage = &self.names[*stage];
                return Err(Diagnostic::new(format!("`{text}` holds `{out}`, which stage `{stage}` makes"))
                    .hint(format!("name the stage `{stage}`, or the files, so that the order is clear")));
            }
            return Ok(Target::Path(PathBuf::from(text)));
        }
        let with = |ending: &&str| self.ground.project.join(format!("{text}{ending}"));
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
        let error = Diagnostic::new(format!("`{text}` is neither a stage nor a file or directory")).absent();
        let stage = bracket(text).map_or(text, |(stage, _)| stage);
        let near = suggest.then(|| did_you_mean(stage, self.names.iter().map(String::as_str))).flatten();
        let beside = || near_file(text, &path, endings).filter(|_| suggest);
        Err(match near {
            Some(near) => error.hint(format!("did you mean the stage `{near}`?")),
            None if let Some(near) = beside() => error.hint(format!("did you mean `{near}`?")),
            None if suggest && !text.contains(['/', '.']) => {
                error.hint(self.stages()).hint(format!("paths are relative to {}", self.ground.project.display()))
            }
            None => error.hint(format!("paths are relative to {}", self.ground.project.display())),
        })
    }

    /// What a run itself puts somewhere is no input from there: it would be another at the next run.
    fn is_no_export(&self, text: &str, path: &Path) -> Result<(), Diagnostic> {
        if self.places.exports.is_empty() {
            return Ok(());
        }
        let path = outside::real(path);
        let meet = |place: &Path| place.starts_with(&path) || path.starts_with(place);
        let Some((place, export, stage)) = self.places.exports.iter().find(|(place, ..)| meet(place)) else {
            return Ok(());
        };
        let message = if *place == path {
            format!("`{text}` is the export of stage `{stage}`")
        } else if path.starts_with(place) {
            format!("`{text}` is in `{export}`, the export of stage `{stage}`")
        } else {
            format!("`{text}` holds `{export}`, the export of stage `{stage}`")
        };
        Err(Diagnostic::new(message).hint(format!("name the stage `{stage}` as the input, or export to another place")))
    }
}
