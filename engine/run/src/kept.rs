//! What the keys of a run's nodes were made of, kept with the run: the cache has a record of what has a result, and of
//! a directory that enters only the digest.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
    rc::Rc,
};

use anyhow::Result;
use flow_cache::Cache;
use flow_core::{Digest, Key, KeyParts, Tree};
use serde::{Deserialize, Serialize};

use crate::{
    decide::{Leaf, Work},
    history::History,
};

/// A line a node that began.
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
    /// Of directories that entered, by their digests in short: file → its digest in short.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    files: BTreeMap<String, BTreeMap<String, String>>,
}

/// Notes in the run's directory what a node's key is made of. That it cannot be only leaves less to tell later.
pub(crate) fn keep(run: &Path, node: &str, work: &Work, leaves: &[Leaf]) {
    let files = leaves.iter().filter_map(|leaf| Some((leaf.digest().short(), files_of(leaf.tree())?))).collect();
    let kept = Kept { node: node.to_owned(), key: work.key, parts: work.parts.clone(), files };
    let Ok(mut line) = serde_json::to_vec(&kept) else { return };
    line.push(b'\n');
    let file = OpenOptions::new().create(true).append(true).open(run.join(FILE));
    file.and_then(|mut file| file.write_all(&line)).ok();
}

fn files_of(tree: &Tree) -> Option<BTreeMap<String, String>> {
    let entries = tree.entries();
    let told = (2..=MOST).contains(&entries.len());
    told.then(|| entries.iter().map(|entry| (entry.name.clone(), entry.digest.short())).collect())
}

/// Which files of a directory are others than they were, for people; nothing if that is not known.
pub(crate) fn changed_files(before: &BTreeMap<String, String>, now: &Tree) -> Option<String> {
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
    runs: RefCell<HashMap<String, Rc<HashMap<String, Kept>>>>,
}

impl Past {
    /// Of the runs of a cache.
    #[must_use]
    pub fn new(cache: &Cache) -> Self {
        Self { history: History::open(cache), runs: RefCell::default() }
    }

    /// What a key was made of that a node had in a run: as the cache or else the run says, or one before.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn parts(&self, cache: &Cache, run: &str, node: &str, key: &Key) -> Result<Option<KeyParts>> {
        match cache.record(key)? {
            Some(record) => Ok(Some(record.parts)),
            None => Ok(self.find(run, node, key, |kept| Some(kept.parts.clone()))),
        }
    }

    /// The files that a directory of this digest had when a node with this key began.
    pub(crate) fn files(&self, run: &str, node: &str, key: &Key, digest: &Digest) -> Option<BTreeMap<String, String>> {
        self.find(run, node, key, |kept| kept.files.get(&digest.short()).cloned())
    }

    fn find<T>(&self, run: &str, node: &str, key: &Key, what: impl Fn(&Kept) -> Option<T>) -> Option<T> {
        let of = |run: &str| self.read(run).get(node).filter(|kept| kept.key == *key).and_then(&what);
        of(run).or_else(|| {
            let ids = self.history.ids().unwrap_or_default().into_iter();
            ids.filter(|id| id.as_str() < run).take(LOOK_BACK).find_map(|id| of(&id))
        })
    }

    fn read(&self, run: &str) -> Rc<HashMap<String, Kept>> {
        if let Some(known) = self.runs.borrow().get(run) {
            return Rc::clone(known);
        }
        let text = fs::read(self.history.dir(run).join(FILE)).unwrap_or_default();
        let lines = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Kept>(line).ok());
        let read = Rc::new(lines.map(|kept| (kept.node.clone(), kept)).collect());
        self.runs.borrow_mut().insert(run.to_owned(), Rc::clone(&read));
        read
    }
}
