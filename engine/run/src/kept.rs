//! What the keys of a run's nodes were made of, kept with the run: the cache has a record of what has a result, and of
//! a directory that enters only the digest.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use flow_cache::Cache;
use flow_core::{Digest, Key, KeyParts, Tree};
use serde::{Deserialize, Serialize};

use crate::{
    decide::{Leaf, Work},
    history::History,
};

/// A line a node that began, and one a directory that entered.
const FILE: &str = "parts.jsonl";
/// Of a directory with more files than this it is not kept which they are.
const MOST: usize = 5000;
/// So many runs are looked through for the one in which a node ran under a key.
const LOOK_BACK: usize = 20;

/// What the key of a node was made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    node: String,
    key: Key,
    parts: KeyParts,
}

/// The files of a directory: name → digest in short.
type Files = BTreeMap<String, String>;

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Began(Kept),
    /// By its digest in short.
    Directory {
        directory: String,
        files: Files,
    },
}

/// What a run's file says.
#[derive(Debug, Default)]
struct Said {
    began: HashMap<String, Kept>,
    directories: HashMap<String, Files>,
}

/// Notes in the run's directory what a node's key is made of, and of directories that are not among those `listed` which
/// files they hold. That it cannot be only leaves less to tell later.
pub(crate) fn keep(run: &Path, node: &str, work: &Work, leaves: &[Leaf], listed: &Mutex<HashSet<Digest>>) {
    let is_new = |leaf: &&Leaf| listed.lock().unwrap_or_else(PoisonError::into_inner).insert(*leaf.digest());
    let directories = leaves
        .iter()
        .filter(is_new)
        .filter_map(|leaf| Some(Line::Directory { directory: leaf.digest().short(), files: files_of(leaf.tree())? }));
    let began = Line::Began(Kept { node: node.to_owned(), key: work.key, parts: work.parts.clone() });
    let mut lines = Vec::new();
    for line in directories.chain([began]) {
        if serde_json::to_writer(&mut lines, &line).is_ok() {
            lines.push(b'\n');
        }
    }
    let file = OpenOptions::new().create(true).append(true).open(run.join(FILE));
    file.and_then(|mut file| file.write_all(&lines)).ok();
}

fn files_of(tree: &Tree) -> Option<Files> {
    let entries = tree.entries();
    let told = (2..=MOST).contains(&entries.len());
    told.then(|| entries.iter().map(|entry| (entry.name.clone(), entry.digest.short())).collect())
}

/// Which files of a directory are others than they were, for people; nothing if that is not known.
pub(crate) fn changed_files(before: &Files, now: &Tree) -> Option<String> {
    const SHOWN: usize = 3;
    let now = files_of(now)?;
    let mut said = Vec::new();
    for (name, digest) in &now {
        match before.get(name) {
            None => said.push(format!("`{name}` is new")),
            Some(other) if other != digest => said.push(format!("`{name}` is another")),
            Some(_) => {}
        }
    }
    said.extend(before.keys().filter(|name| !now.contains_key(*name)).map(|name| format!("`{name}` is gone")));
    let more = said.len().saturating_sub(SHOWN);
    said.truncate(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!said.is_empty()).then(|| said.join(", ") + &more)
}

/// Reads what is kept; each run once.
#[derive(Debug)]
pub struct Past {
    history: History,
    runs: Mutex<HashMap<String, Arc<Said>>>,
}

impl Past {
    /// Of the runs of a cache.
    #[must_use]
    pub fn new(cache: &Cache) -> Self {
        Self { history: History::open(cache), runs: Mutex::default() }
    }

    /// What a key was made of that a node had in a run: as the cache or else the run says, or one before.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn parts(&self, cache: &Cache, run: &str, node: &str, key: &Key) -> Result<Option<KeyParts>> {
        match cache.record(key)? {
            Some(record) => Ok(Some(record.parts)),
            None => Ok(self.find(run, node, key, |_, kept| Some(kept.parts.clone()))),
        }
    }

    /// The files that a directory of this digest had when a node with this key began.
    pub(crate) fn files(&self, run: &str, node: &str, key: &Key, digest: &Digest) -> Option<Files> {
        self.find(run, node, key, |said, _| said.directories.get(&digest.short()).cloned())
    }

    fn find<T>(&self, run: &str, node: &str, key: &Key, what: impl Fn(&Said, &Kept) -> Option<T>) -> Option<T> {
        let of = |run: &str| {
            let said = self.read(run);
            said.began.get(node).filter(|kept| kept.key == *key).and_then(|kept| what(&said, kept))
        };
        of(run).or_else(|| {
            let ids = self.history.ids().unwrap_or_default().into_iter();
            ids.filter(|id| id.as_str() < run).take(LOOK_BACK).find_map(|id| of(&id))
        })
    }

    fn read(&self, run: &str) -> Arc<Said> {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = runs.get(run) {
            return Arc::clone(known);
        }
        let text = fs::read(self.history.dir(run).join(FILE)).unwrap_or_default();
        let mut said = Said::default();
        for line in text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()) {
            match line {
                Line::Began(kept) => drop(said.began.insert(kept.node.clone(), kept)),
                Line::Directory { directory, files } => drop(said.directories.insert(directory, files)),
            }
        }
        let read = Arc::new(said);
        runs.insert(run.to_owned(), Arc::clone(&read));
        read
    }
}
