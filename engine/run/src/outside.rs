//! What a pipeline may not say of places outside of the cache: `outs` and `export`s that would cover each other, the
//! pipeline itself, or what is not the project's. Said before anything runs, not after hours of work.

use std::{
    collections::HashMap,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use flow_core::{Diagnostic, Span, is_safe_name};
use rayon::prelude::*;

use crate::{graph::bracket, ledger::FLOW_DIR, link::Ground, lockfile::LOCK_FILE, settings::SETTINGS_FILE};

/// The places of so many are looked at by one thread.
const TOGETHER: usize = 256;

/// What a stage names as a place of its result.
pub struct Named<'a> {
    /// The stage.
    pub stage: String,
    /// What it wrote.
    pub text: &'a str,
    /// Where.
    pub span: Option<Span>,
    /// An `export`, and not one of `outs`.
    pub export: bool,
}

/// Checks the places of all stages, in the order of the file; those that can be used, with links followed.
pub fn check<'n>(
    named: &'n [Named<'n>],
    ground: &Ground<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Vec<(PathBuf, &'n Named<'n>)> {
    let project = ground.project;
    let mut reserved = ground.sources.to_vec();
    reserved.push(project.join(LOCK_FILE));
    reserved.extend(project.ancestors().map(|dir| dir.join(SETTINGS_FILE)));
    let mut places: HashMap<PathBuf, &Named<'_>> = HashMap::with_capacity(named.len());
    let mut checked = Vec::with_capacity(named.len());
    let found = named.par_chunks(TOGETHER).flat_map_iter(|named| {
        let (reserved, mut parent) = (&reserved, Parent::default());
        named.iter().map(move |one| place(one, project, reserved, &mut parent))
    });
    let found: Vec<Result<PathBuf, Diagnostic>> = found.collect();
    for (one, found) in named.iter().zip(found) {
        match found {
            Ok(place) => {
                if let Some(other) = places.insert(place.clone(), one) {
                    errors.push(both(one, other, "is"));
                } else {
                    checked.push((place, one));
                }
            }
            Err(error) => errors.push(error.at(one.span.clone())),
        }
    }
    // Mostly the places of one directory follow each other.
    let mut last: Option<(&Path, Option<&Named<'_>>)> = None;
    for (place, one) in &checked {
        let Some(parent) = place.parent() else { continue };
        let above = match last.filter(|(last, _)| last.as_os_str() == parent.as_os_str()) {
            Some((_, above)) => above,
            None => parent.ancestors().find_map(|above| places.get(above).copied()),
        };
        last = Some((parent, above));
        if let Some(other) = above {
            errors.push(both(one, other, "is inside of"));
        }
    }
    checked
}

/// Two stages, or one twice, put results where they cover each other.
fn both(one: &Named<'_>, other: &Named<'_>, is: &str) -> Diagnostic {
    let what = |named: &Named<'_>| if named.export { "the export" } else { "an output" };
    let message = if is == "is" && !one.export && !other.export {
        format!("`{}` is an output of `{}` and of `{}`", one.text, other.stage, one.stage)
    } else if is == "is" {
        format!("`{}` is {} of `{}` and {} of `{}`", one.text, what(other), other.stage, what(one), one.stage)
    } else {
        format!("`{}` of `{}` {is} `{}`, {} of `{}`", one.text, one.stage, other.text, what(other), other.stage)
    };
    let of = |named: &Named<'_>| bracket(&named.stage).map(|(stage, _)| stage.to_owned());
    let hint = if one.stage == other.stage {
        "name each place once"
    } else if of(one).is_some() && of(one) == of(other) {
        "put the combination into the name: `${matrix}`"
    } else {
        "give each stage its own files"
    };
    Diagnostic::new(message).at(one.span.clone()).hint(hint)
}

/// A directory that outs are in. Mostly those of one directory follow each other, and what is so of one is of all.
#[derive(Default)]
struct Parent {
    /// As it is named, and where it is.
    named: PathBuf,
    real: PathBuf,
    /// Nothing in it can be what [`own`] refuses.
    free: bool,
}

impl Parent {
    fn of(named: &Path, project: &Path, reserved: &[PathBuf]) -> Self {
        let real = real(named);
        let inside = real.starts_with(project) && real != project && !real.starts_with(project.join(FLOW_DIR));
        let free = inside && !reserved.iter().any(|file| file.starts_with(&real) || real.starts_with(file));
        Self { named: named.to_owned(), real, free }
    }
}

/// Where it is, with links followed. `parent`: the directory that was looked at last.
fn place(one: &Named<'_>, project: &Path, reserved: &[PathBuf], parent: &mut Parent) -> Result<PathBuf, Diagnostic> {
    let text = one.text;
    let cannot = |why: String| {
        Diagnostic::new(format!("`{text}` cannot be {}", if one.export { "exported to" } else { "an output" }))
            .cause(why)
    };
    if !one.export {
        let hint = "outputs are files and directories inside the project's folder, named relative to it";
        if !is_safe_name(text) || text.starts_with("~/") {
            return Err(Diagnostic::new(format!("`{text}` cannot be an output")).hint(hint));
        }
        let path = project.join(text);
        let above = path.parent().unwrap_or(Path::new(""));
        if parent.named.as_os_str() != above.as_os_str() {
            if let Some(why) = leads_nowhere(above) {
                return Err(cannot(why));
            }
            *parent = Parent::of(above, project, reserved);
        }
        let place = parent.real.join(path.file_name().unwrap_or_default());
        if parent.free {
            return Ok(place);
        }
        if !place.starts_with(project) {
            return Err(cannot(format!("a link leads out of the project's folder, to {}", place.display())).hint(hint));
        }
        return own(place, project, reserved, &cannot);
    }
    if text.trim().is_empty() {
        return Err(Diagnostic::new("`export` is empty").hint("name a directory, or leave it away"));
    }
    if let Some(why) = leads_nowhere(&project.join(text)) {
        return Err(cannot(why).hint("make what it leads to, or remove it, or name another place"));
    }
    let place = real(&project.join(text));
    if text.starts_with('~') && !project.join(text).exists() {
        return Err(cannot("nobody's home is known but the user's own, `~/`".into()).hint("write the path in full"));
    }
    let hint = "name a directory of its own, such as \"results/NAME\"";
    if project.starts_with(&place) {
        let what = if place == project { "it is the project's folder" } else { "the project's folder is inside of it" };
        return Err(cannot(what.into()).hint(hint));
    }
    if let Some(file) = place.ancestors().find(|above| above.exists()).filter(|above| !above.is_dir()) {
        let why = format!("{} is a file", file.display());
        return Err(cannot(why).hint("an export is a directory that holds the result's files"));
    }
    own(place, project, reserved, &cannot)
}

/// What keeps a directory from being there or being made: a link to nothing or in a circle, something that may not be
/// looked at.
fn leads_nowhere(path: &Path) -> Option<String> {
    let mut why = None;
    for above in path.ancestors() {
        match above.metadata() {
            Ok(_) => break,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                if let Ok(target) = above.read_link() {
                    why = Some(format!("{} is a link to {}, which is not there", above.display(), target.display()));
                }
            }
            Err(error) => why = Some(format!("{}: {error}", above.display())),
        }
    }
    why
}

/// A place that is not flow's or the pipeline's own.
fn own(
    place: PathBuf,
    project: &Path,
    reserved: &[PathBuf],
    cannot: &dyn Fn(String) -> Diagnostic,
) -> Result<PathBuf, Diagnostic> {
    if place.starts_with(project.join(FLOW_DIR)) {
        return Err(cannot(format!("{FLOW_DIR} is flow's own")));
    }
    match reserved.iter().find(|file| file.starts_with(&place) || (place.starts_with(file) && file.is_file())) {
        Some(file) => Err(cannot(format!("{} is what the pipeline is read from", file.display()))),
        None => Ok(place),
    }
}

/// An absolute path with all links followed as far as it is there, and `..` of the rest taken away.
pub fn real(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let Ok(found) = above.canonicalize() {
            let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
            let mut place = found;
            for part in rest.components() {
                match part {
                    std::path::Component::ParentDir => drop(place.pop()),
                    std::path::Component::CurDir => {}
                    part => place.push(part),
                }
            }
            return place;
        }
    }
    path.to_owned()
}
