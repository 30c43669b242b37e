//! Results outside of the cache: `outs` in the project's folder, and `export`s to a place of the user's.
//!
//! A file is flow's if it has the content that the [`Ledger`] says flow put there, or, where flow has put something
//! before, content that the cache has anyway: then nothing is lost with it. Whatever else is in the way is the user's,
//! and is never overwritten, moved or removed unless the user says so.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock},
};

use anyhow::{Context, Result, bail};
use flow_cache::{Cache, Place};
use flow_core::{Diagnostic, Digest, Entry, Event, Level, Sink, Tree};

use crate::{
    above::{self, Above},
    aside,
    exports::{self, Before},
    graph::NodeId,
    ledger::{Ledger, Note, Page},
    project::Project,
};

/// Puts results in their places.
pub struct Placer<'a> {
    pub(crate) cache: &'a Cache,
    pub(crate) project: &'a Project,
    sink: &'a dyn Sink,
    pub(crate) ledger: Ledger,
    /// Where the cache really is.
    real_cache: OnceLock<Option<PathBuf>>,
    /// What nodes of one stage exported to one directory in this run.
    pub(crate) exported: Mutex<HashMap<PathBuf, (NodeId, Digest)>>,
    /// What flow put where before, by the place.
    before: OnceLock<HashMap<PathBuf, Before>>,
}

/// A place, and what has to be there.
pub struct Spot {
    /// The file, or the directory that the files are below.
    pub root: PathBuf,
    /// The place, as the pipeline names it.
    pub place: PathBuf,
    /// Its page in the ledger.
    pub page: String,
    /// Whose export it is; nothing if it is an out, which is one node's alone.
    pub stage: Option<String>,
    /// How files get there.
    pub link: Place,
    /// Name below the root (nothing: the root itself) and content.
    pub entries: Vec<(String, Entry)>,
}

/// A spot where something has to be done.
struct Lacking {
    spot: Spot,
    /// The entries that are not in their place.
    missing: Vec<usize>,
}

/// What of a node's result is not as it should be.
#[derive(Default)]
pub struct Lack(Vec<Lacking>);

/// What became of placing something.
#[derive(Debug, PartialEq)]
pub enum Put {
    /// It is in its place.
    Done,
    /// Another flow has this place; nothing was touched.
    Held(PathBuf),
    /// These files are the user's; nothing was touched.
    Refused(Vec<PathBuf>),
}

impl Spot {
    /// Where an entry lies.
    pub fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.root.clone() } else { self.root.join(name) }
    }

    /// What the ledger says once everything is in its place.
    pub fn note(&self) -> Note {
        let files = self.entries.iter().map(|(name, entry)| (name.clone(), entry.digest)).collect();
        Note { place: self.place.clone(), stage: self.stage.clone(), files, aside: None, known: true }
    }

    /// A note, also an empty one, as one of this place.
    pub fn at(&self, note: &Note) -> Note {
        Note { place: self.place.clone(), ..note.clone() }
    }

    fn wants(&self, name: &str) -> bool {
        self.entries.binary_search_by(|(wanted, _)| wanted.as_str().cmp(name)).is_ok()
    }
}

impl Lack {
    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An entry is not in its place.
    pub fn is_missing(&self) -> bool {
        self.0.iter().any(|one| !one.missing.is_empty())
    }

    /// The bytes that are missing.
    pub fn bytes(&self) -> u64 {
        let missing = self.0.iter().flat_map(|one| one.missing.iter().map(|&at| &one.spot.entries[at].1));
        missing.map(|entry| entry.size).sum()
    }
}

impl<'a> Placer<'a> {
    /// For the results of a project; `sink` hears what a person should know.
    pub fn new(project: &'a Project, cache: &'a Cache, sink: &'a dyn Sink) -> Self {
        let ledger = Ledger::new(project.dir());
        Self {
            cache,
            project,
            sink,
            ledger,
            real_cache: OnceLock::new(),
            exported: Mutex::default(),
            before: OnceLock::new(),
        }
    }

    /// Whether a node puts anything anywhere.
    pub fn has_places(&self, id: NodeId) -> bool {
        let graph = self.project.graph();
        !graph.nodes[id].action.outs().is_empty() || graph.common(id).export.is_some()
    }

    pub(crate) fn warn(&self, text: String) {
        self.sink.emit(Event::log("", Level::Warning, text));
    }

    /// The place of an out, which is in the project's folder.
    pub(crate) fn out_spot(&self, out: &str, entries: Vec<(String, Entry)>) -> Spot {
        let place = PathBuf::from(out);
        let (root, page) = (self.project.dir().join(out), Ledger::page(&place, 0));
        Spot { root, page, place, stage: None, link: Place::Copy, entries }
    }

    /// What flow put in a place before, whichever node it was.
    pub(crate) fn before(&self, place: &Path) -> Option<&Before> {
        self.before.get_or_init(|| exports::before(&self.ledger)).get(place)
    }

    /// The outs of a result: each is one of its files, or a directory of them.
    ///
    /// # Errors
    /// The result does not have it.
    pub(crate) fn out_spots(&self, id: NodeId, tree: &Tree) -> Result<Vec<Spot>> {
        let outs = self.project.graph().nodes[id].action.outs().iter();
        let spot = |out: &String| {
            let entries: Vec<_> = match tree.get(out) {
                Some(entry) => vec![(String::new(), entry.clone())],
                None => below(tree, out).map(|(name, entry)| (name.to_owned(), entry.clone())).collect(),
            };
            if entries.is_empty() {
                bail!("the stage did not make `{out}`, which it lists in `outs`");
            }
            Ok(self.out_spot(out, entries))
        };
        outs.map(spot).collect()
    }

    /// What of a node's result is not in its place, or not known to be flow's there.
    ///
    /// # Errors
    /// A file that the stage should have made is not in its result; something cannot be read.
    pub fn lacks(&self, id: NodeId, tree: &Tree) -> Result<Lack> {
        let all = tree.entries().iter().map(|entry| (entry.name.clone(), entry.clone())).collect();
        let export = self.export_spot(id, all);
        if let Some(spot) = &export {
            self.claim_exports(id, spot)?;
        }
        self.lack_of(self.out_spots(id, tree)?.into_iter().chain(export))
    }

    /// What of these is not in its place, or not known to be flow's there.
    pub(crate) fn lack_of(&self, spots: impl IntoIterator<Item = Spot>) -> Result<Lack> {
        let mut lack = Lack::default();
        for spot in spots {
            let mut missing = Vec::new();
            for (at, (name, entry)) in spot.entries.iter().enumerate() {
                if !self.cache.is_placed(entry, &spot.path(name), spot.link)? {
                    missing.push(at);
                }
            }
            // A file leaves nothing behind when it changes; of a directory, files of another result may be left.
            let is_file = matches!(&spot.entries[..], [(name, _)] if name.is_empty());
            let is_noted = || {
                let files = self.ledger.peek(&spot.page).files;
                match spot.stage {
                    // What others of the stage may make now is looked at when all of them are done.
                    Some(_) => spot.entries.iter().all(|(name, entry)| files.get(name) == Some(&entry.digest)),
                    None => is_file || files.keys().all(|name| spot.wants(name)),
                }
            };
            if !missing.is_empty() || !self.ledger.knows(&spot.page) || !is_noted() {
                lack.0.push(Lacking { spot, missing });
            }
        }
        // In one order everywhere, so that two flows that wait for each other's places do not do so for ever.
        lack.0.sort_by(|a, b| a.spot.page.cmp(&b.spot.page));
        Ok(lack)
    }

    /// Puts a result in its places. `overwrite`: also over files of the user's.
    ///
    /// # Errors
    /// Something cannot be read or written.
    pub fn put(&self, lack: &Lack, overwrite: bool) -> Result<Put> {
        let mut pages = Vec::with_capacity(lack.0.len());
        for Lacking { spot, missing } in &lack.0 {
            match self.ledger.try_hold(&spot.page) {
                Ok(Some(mut page)) => {
                    aside::recover(self, &mut page, &spot.root)?;
                    pages.push(page);
                }
                Ok(None) => return Ok(Put::Held(spot.root.clone())),
                // It is where it should be, and that cannot be noted: so be it.
                Err(_) if missing.is_empty() => return Ok(Put::Done),
                Err(error) => return Err(error),
            }
        }
        // All is looked at before anything is written, so that a refusal leaves everything as it is.
        if !overwrite {
            let mut refused = Vec::new();
            for (Lacking { spot, missing }, page) in lack.0.iter().zip(&pages) {
                let note = spot.at(&page.note);
                for &at in missing {
                    self.in_the_way(spot, &spot.entries[at].0, &note, &mut refused)?;
                }
            }
            if !refused.is_empty() {
                refused.sort();
                refused.dedup();
                return Ok(Put::Refused(refused));
            }
        }
        for (Lacking { spot, missing }, mut page) in lack.0.iter().zip(pages) {
            // Killed from here on, it is known that flow was here.
            if !page.note.known {
                page.write(Note { files: page.note.files.clone(), ..spot.note() })?;
            }
            for &at in missing {
                let (name, entry) = &spot.entries[at];
                self.write(spot, name, entry)?;
            }
            let mut note = spot.note();
            for (name, digest) in page.note.files.iter().filter(|(name, _)| !spot.wants(name)) {
                if spot.stage.is_some() {
                    note.files.insert(name.clone(), *digest);
                } else {
                    self.remove_ours(&spot.root, name, digest)?;
                }
            }
            page.write(note)?;
        }
        Ok(Put::Done)
    }

    /// Writes an entry in place of what is there.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, spot: &Spot, name: &str, entry: &Entry) -> Result<()> {
        let path = spot.path(name);
        if let Some(ancestor) = blocking(&path) {
            fs::remove_file(&ancestor).with_context(|| format!("cannot remove {}", ancestor.display()))?;
        } else if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        self.cache.restore(entry, &path, spot.link)
    }

    /// Removes a file below a place, if it has the content that flow put there, and the folders that are empty then.
    ///
    /// # Errors
    /// It cannot be read or removed.
    pub(crate) fn remove_ours(&self, root: &Path, name: &str, digest: &Digest) -> Result<()> {
        let path = if name.is_empty() { root.to_owned() } else { root.join(name) };
        if self.content(&path)?.is_some_and(|entry| entry.digest == *digest) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            let above = path.ancestors().skip(1).take_while(|above| *above != root);
            // Until one is not empty.
            let _ = above.take(name.matches('/').count()).try_for_each(fs::remove_dir);
        }
        Ok(())
    }

    /// The content of a regular file; nothing if it is not there, something else, or of a name that no result can have.
    fn content(&self, path: &Path) -> Result<Option<Entry>> {
        let has_text_name = path.file_name().is_some_and(|name| name.to_str().is_some());
        if !has_text_name || !path.symlink_metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Ok(None);
        }
        Ok(self.cache.digest_path(path)?.entries().first().cloned())
    }

    /// Whether a regular file is what flow put there, or nothing that would be lost.
    fn is_ours(&self, note: &Note, name: &str, path: &Path) -> Result<bool> {
        let Some(entry) = self.content(path)? else { return Ok(false) };
        let plain = Entry { executable: false, ..entry.clone() };
        let cached = || self.cache.has(&plain) || self.cache.has(&Entry { executable: true, ..entry.clone() });
        let noted = note.files.get(name) == Some(&entry.digest);
        let before = || self.before(&note.place).is_some_and(|before| before.has(name, &entry.digest));
        let known = || note.known || self.before(&note.place).is_some_and(Before::is_any);
        Ok(noted || before() || (known() && cached()))
    }

    /// Collects what of the user's is where an entry has to be.
    fn in_the_way(&self, spot: &Spot, name: &str, note: &Note, refused: &mut Vec<PathBuf>) -> Result<()> {
        let path = spot.path(name);
        match blocking(&path) {
            Some(ancestor) => {
                let below = ancestor.strip_prefix(&spot.root).ok().and_then(Path::to_str).unwrap_or("\0");
                if !self.is_ours(note, below, &ancestor)? {
                    refused.push(ancestor);
                }
                Ok(())
            }
            None => self.not_ours(note, name, &path, refused),
        }
    }

    /// Collects what is not flow's at a path and below it.
    pub(crate) fn not_ours(&self, note: &Note, name: &str, path: &Path, refused: &mut Vec<PathBuf>) -> Result<()> {
        let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
        if !metadata.is_dir() {
            if !self.is_ours(note, name, path)? {
                refused.push(path.to_owned());
            }
            return Ok(());
        }
        let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", path.display()))?;
            // A name that is not UTF-8 is not flow's.
            let file = entry.file_name().into_string().unwrap_or_else(|_| "\0".into());
            let name = if name.is_empty() { file } else { format!("{name}/{file}") };
            self.not_ours(note, &name, &entry.path(), refused)?;
        }
        Ok(())
    }

    /// What of the user's a node that is going to run would overwrite, as far as that can be said before its result is
    /// known: everything that is where its outs will be, and files that it exported before and that were changed.
    ///
    /// `repair`: what a flow that was killed had moved aside is put back first; else its place is left for the run to say.
    /// `above`: what was seen of the directories that places are in.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn would_refuse(&self, id: NodeId, repair: bool, above: &mut Above) -> Result<Vec<PathBuf>> {
        let mut refused = Vec::new();
        for out in self.project.graph().nodes[id].action.outs() {
            let spot = self.out_spot(out, Vec::new());
            if let Some(ancestor) = above.blocking(&spot.root) {
                refused.push(ancestor.to_owned());
            } else if !repair && (above.is_absent(&spot.root) || spot.root.symlink_metadata().is_err()) {
                // What is not there is in nobody's way.
            } else if !self.ledger.has(&spot.page) {
                self.not_ours(&Note::default(), "", &spot.root, &mut refused)?;
            } else if !repair {
                let note = self.ledger.peek(&spot.page);
                if note.aside.is_none() {
                    self.not_ours(&note, "", &spot.root, &mut refused)?;
                }
            } else if let Some(mut page) = self.ledger.try_hold(&spot.page)? {
                aside::recover(self, &mut page, &spot.root)?;
                self.not_ours(&page.note, "", &spot.root, &mut refused)?;
            }
        }
        if let Some(spot) = self.export_spot(id, Vec::new()) {
            let note = self.exported_before(id, &spot);
            for name in note.files.keys() {
                let path = spot.path(name);
                if path.symlink_metadata().is_ok_and(|metadata| !metadata.is_dir())
                    && !self.is_ours(&note, name, &path)?
                {
                    refused.push(path);
                }
            }
        }
        Ok(refused)
    }

    /// What of the user's is where a node would export files of these names to. Nothing is touched.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn would_refuse_files(&self, id: NodeId, names: &[String]) -> Result<Vec<PathBuf>> {
        let mut refused = Vec::new();
        let Some(spot) = self.export_spot(id, Vec::new()).filter(|_| !names.is_empty()) else { return Ok(refused) };
        let note = self.exported_before(id, &spot);
        names.iter().try_for_each(|name| self.in_the_way(&spot, name, &note, &mut refused))?;
        Ok(refused)
    }

    /// What of the user's is in the way of what a result lacks. Nothing is touched.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn would_refuse_these(&self, lack: &Lack) -> Result<Vec<PathBuf>> {
        let mut refused = Vec::new();
        for Lacking { spot, missing } in &lack.0 {
            let note = spot.at(&self.ledger.peek(&spot.page));
            for &at in missing.iter().filter(|_| note.aside.is_none()) {
                self.in_the_way(spot, &spot.entries[at].0, &note, &mut refused)?;
            }
        }
        refused.sort();
        refused.dedup();
        Ok(refused)
    }

    /// A place of a node that is, holds, or lies in the cache.
    pub fn touches_cache(&self, id: NodeId, above: &mut Above) -> Option<PathBuf> {
        let graph = self.project.graph();
        let mut places = graph.nodes[id].action.outs().iter().chain(graph.common(id).export_to());
        let cache = self.real_cache.get_or_init(|| self.cache.root().canonicalize().ok()).as_ref()?;
        let touches = |root: &PathBuf| cache.starts_with(root) || root.starts_with(cache);
        places.find_map(|place| Some(above.real(&self.project.dir().join(place))).filter(touches))
    }

    /// Says that files are the user's, each with its place in the pipeline.
    pub fn refusals(&self, id: NodeId, refused: Vec<PathBuf>) -> impl Iterator<Item = Diagnostic> + use<'a> {
        let graph = self.project.graph();
        let (stage, node, project) = (graph.stage_of(id), &graph.nodes[id].name, self.project.dir());
        refused.into_iter().map(move |path| {
            let below = |out: &&String| project.join(out).starts_with(&path) && project.join(out) != path;
            let error = Diagnostic::new(match graph.nodes[id].action.outs().iter().find(below) {
                // Also with --force.
                Some(out) => {
                    let file = path.strip_prefix(project).unwrap_or(&path).display();
                    format!("`{file}` is a file, and `{out}` needs a directory there: move it away")
                }
                None => refusal(&path, node),
            });
            let is_in =
                |place: &String| path.starts_with(project.join(place)) || project.join(place).starts_with(&path);
            let field = match graph.nodes[id].action.outs().iter().position(is_in) {
                Some(nth) => format!("outs.{nth}"),
                None => "export".to_owned(),
            };
            error.at(graph.variant(id).place(&field)).at(stage.span.clone())
        })
    }
}

/// Why a file stays as it is, and what to do.
pub fn refusal(path: &Path, node: &str) -> String {
    let path = path.display();
    format!("{path} is not as flow put it there and would be overwritten: move it away, or use --force {node}")
}

/// What keeps the directory that a path is in from being there or being made.
fn blocking(path: &Path) -> Option<PathBuf> {
    above::blocking(path.parent()?)
}

/// The files of a tree below a directory, named relative to it.
pub fn below<'t>(tree: &'t Tree, directory: &str) -> impl Iterator<Item = (&'t str, &'t Entry)> {
    let prefix = format!("{directory}/");
    tree.entries().iter().filter_map(move |entry| Some((entry.name.strip_prefix(&prefix)?, entry)))
}

impl Page {
    /// Whether the place was left by a flow that was killed while a command made it anew.
    pub fn is_unfinished(&self) -> bool {
        self.note.aside.is_some()
    }
}
