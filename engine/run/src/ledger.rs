//! [`Ledger`]: what flow has put outside of the cache, and which of it a command is making anew.
//!
//! It lies in `.flow/` beside the pipeline and not in the cache: what is flow's is a fact about the project's folder,
//! which stays true when the folder is moved, the cache is emptied, or another cache is used. One small file a place,
//! written where it stands, because its lock is on the file itself. One that is lost or torn only means that flow knows
//! of nothing there, and asks.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context, Result};
use flow_core::Digest;
use serde::{Deserialize, Serialize};

use crate::looks;

/// flow's folder in a project.
pub const FLOW_DIR: &str = ".flow";

/// What flow knows of a place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// The place, for people who look.
    pub place: PathBuf,
    /// The stage whose export it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// What flow put there: name below the place (nothing, if the place is a file) → content.
    pub files: BTreeMap<String, Digest>,
    /// A command is making it anew: whether there was something that was moved aside for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aside: Option<bool>,
    /// Flow was here before, whatever can still be read of what it did.
    #[serde(skip)]
    pub known: bool,
}

/// The notes of a project.
#[derive(Debug)]
pub struct Ledger {
    project: PathBuf,
    known: OnceLock<HashSet<String>>,
}

/// A place that is this flow's alone as long as this lives.
#[derive(Debug)]
pub struct Page {
    file: File,
    path: PathBuf,
    /// What is known of the place.
    pub note: Note,
}

impl Ledger {
    /// Of the project in this folder.
    pub fn new(project: &Path) -> Self {
        Self { project: project.to_owned(), known: OnceLock::new() }
    }

    fn dir(&self) -> PathBuf {
        self.project.join(FLOW_DIR).join("places")
    }

    /// The name of a place's page.
    pub fn page(place: &Path, shard: usize) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(place.as_os_str().as_encoded_bytes()).update(&(shard as u64).to_le_bytes());
        hasher.finalize().to_hex()[..32].to_owned()
    }

    /// The name of an export's page: shards of a stage have a page each, and so has a stage of another pipeline.
    pub fn export_page(place: &Path, stage: &str, shard: usize) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("flow export 1");
        hasher.update(place.as_os_str().as_encoded_bytes()).update(b"\0").update(stage.as_bytes()).update(b"\0");
        hasher.update(&(shard as u64).to_le_bytes()).finalize().to_hex()[..32].to_owned()
    }

    /// All pages by name, whoever holds them.
    pub fn all(&self) -> Vec<(String, Note)> {
        let entries = fs::read_dir(self.dir()).into_iter().flatten().flatten();
        let page = |entry: fs::DirEntry| {
            let note = parse(&fs::read(entry.path()).ok()?);
            Some((entry.file_name().into_string().ok()?, note))
        };
        entries.filter_map(page).collect()
    }

    /// Whether there was a page of this name when it was first asked for one.
    pub fn knows(&self, page: &str) -> bool {
        let list = || {
            let entries = fs::read_dir(self.dir()).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
        };
        let known = self.known.get_or_init(list).contains(page);
        looks::found(&self.dir().join(page), known.then_some(false));
        known
    }

    /// Whether there is a page of this name.
    pub fn has(&self, page: &str) -> bool {
        self.dir().join(page).exists()
    }

    /// What a page says, whoever holds it.
    pub fn peek(&self, page: &str) -> Note {
        let path = self.dir().join(page);
        let Ok(bytes) = fs::read(&path) else {
            looks::found(&path, None);
            return Note::default();
        };
        looks::read(&path, &bytes);
        parse(&bytes)
    }

    /// Takes a page, unless another flow holds it.
    ///
    /// # Errors
    /// It cannot be made or read.
    pub fn try_hold(&self, page: &str) -> Result<Option<Page>> {
        let path = self.dir().join(page);
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = open().or_else(|_| self.make().and_then(|()| open()));
        let mut file = file.with_context(|| format!("cannot note what flow puts where in {}", path.display()))?;
        // Where the file system has no locks, two flows at once are the user's to avoid.
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(Page { file, path, note: parse(&bytes) }))
    }

    fn make(&self) -> std::io::Result<()> {
        fs::create_dir_all(self.dir())?;
        let ignore = self.project.join(FLOW_DIR).join(".gitignore");
        if ignore.exists() { Ok(()) } else { fs::write(ignore, "# What flow has put where on this machine.\n*\n") }
    }
}

/// The first note in `bytes`: behind it may be the rest of a longer one, if a process was killed while it wrote.
fn parse(bytes: &[u8]) -> Note {
    let note = serde_json::Deserializer::from_slice(bytes).into_iter().next().and_then(Result::ok);
    Note { known: !bytes.is_empty(), ..note.unwrap_or_default() }
}

impl Page {
    /// Writes what is known now.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&mut self, note: Note) -> Result<()> {
        let note = Note { known: true, ..note };
        if note == self.note {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&note)?;
        let mut write = || {
            self.file.rewind()?;
            self.file.write_all(&bytes)?;
            self.file.set_len(bytes.len() as u64)
        };
        write().with_context(|| format!("cannot write {}", self.path.display()))?;
        self.note = note;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_held_by_one_and_survives_what_is_torn() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(dir.path());
        let name = Ledger::page(Path::new("a/b"), 0);
        assert!(!ledger.knows(&name) && name != Ledger::page(Path::new("a/b"), 1));
        let mut page = ledger.try_hold(&name).unwrap().unwrap();
        assert!(ledger.try_hold(&name).unwrap().is_none());
        let long = Note {
            place: "a/b".into(),
            stage: None,
            files: [(String::new(), Digest::of(b"x"))].into(),
            aside: Some(true),
            known: true,
        };
        page.write(long.clone()).unwrap();
        page.write(Note { aside: None, ..long.clone() }).unwrap();
        drop(page);
        let path = ledger.dir().join(&name);
        let mut torn = fs::read(&path).unwrap();
        torn.extend(b"true}");
        fs::write(&path, &torn).unwrap();
        assert_eq!(ledger.peek(&name), Note { aside: None, ..long });
        fs::write(&path, b"{\"place\":").unwrap();
        assert_eq!(ledger.try_hold(&name).unwrap().unwrap().note, Note { known: true, ..Note::default() });
        assert!(Ledger::new(dir.path()).knows(&name));
        assert!(fs::read_to_string(dir.path().join(".flow/.gitignore")).unwrap().ends_with("*\n"));
    }
}
