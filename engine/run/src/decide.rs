//! What is to be done about a node: the one place that says "it is there" or "it must run, under this key".
//!
//! A run, a plan and a question why all come here, so that they cannot disagree.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow};
use flow_cache::{Cache, Found, Outcome, Remote, TeamResult};
use flow_core::{Diagnostic, Digest, Entry, Input, KEY_FORMAT, Key, KeyParts, Pinned, Tree};
use rayon::prelude::*;

use crate::{
    graph::{Graph, NodeId, PortInputs, Source},
    lockfile::LockFile,
    place::below,
    project::Project,
    select::Selection,
    taken::{Taken, taken},
};

/// The input under which a pin enters a key.
pub const PIN: &str = "pin";

/// What is to be done about a node.
#[derive(Debug)]
pub enum Decision {
    /// Nothing: its stage is off.
    Off,
    /// Its result is there; with the work that finds out its pin, if it has a URL that is not pinned yet.
    Hit(Outcome, Option<Box<Work>>),
    /// What its result is is known, and its files are not here: they were freed, or only the team has them. With the work
    /// that makes it again.
    Absent(Outcome, Box<Work>),
    /// It must run.
    Run(Box<Work>),
}

/// A node that must run.
#[derive(Debug)]
pub struct Work {
    /// The key that its result is asked for with.
    pub key: Key,
    /// What the key is made of.
    pub parts: KeyParts,
    /// What its result must be, if `flow.lock` says so.
    pub pinned: Option<Pinned>,
    /// What `flow.lock` says and is to be looked at again, if its result is there.
    pub before: Option<(Pinned, Outcome)>,
    /// The URL that its result is to be pinned under, whether it is yet or not.
    pub pin_url: Option<String>,
    /// What it is known to give, if its files are not here.
    pub known: Option<Digest>,
    /// Why, if not just because there is no result.
    pub reason: Reason,
}

impl Work {
    /// Whether its URL is still to be pinned.
    pub fn is_unpinned(&self) -> bool {
        self.pin_url.is_some() && self.pinned.is_none()
    }

    /// What it runs under: a node with a pin runs under a key without it, and its result is known by both.
    pub fn run_parts(&self) -> KeyParts {
        let mut parts = self.parts.clone();
        if self.pin_url.is_some() {
            parts.inputs.remove(PIN);
        }
        parts
    }
}

/// A path among the inputs of a node.
#[derive(Debug)]
pub struct Leaf {
    /// The path.
    pub source: Source,
    /// [`flow_core::Port::only`]
    only: &'static [&'static str],
    /// The content that the node's key was made of.
    tree: Arc<Tree>,
    digest: Digest,
}

impl Leaf {
    /// The content that the node's key was made of.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// All that lies there.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Whether the path still has that content.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_same(&self, project: &Project, cache: &Cache) -> Result<bool> {
        Ok(digest_source(project, cache, &self.source)?.only(self.only).digest() == self.digest)
    }
}

/// Why a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no result.
    NoResult,
    /// Somebody wants it to.
    Forced,
    /// `cache = false`
    NotCached,
    /// What it is is known, its files are not here, and something needs them.
    Absent,
}

impl Reason {
    /// It runs although its result may be there.
    pub fn ignores_hits(self) -> bool {
        matches!(self, Self::Forced | Self::NotCached)
    }

    /// Its result is of use to others.
    pub fn may_be_shared(self) -> bool {
        self != Self::NotCached
    }
}

/// Decides about one node after the other, each after what it needs.
pub struct Decider<'a> {
    project: &'a Project,
    cache: &'a Cache,
    selection: &'a Selection,
    /// What `flow.lock` says.
    pub lock: LockFile,
    /// Content of the paths that enter, as it was when the run began.
    paths: HashMap<&'a Source, (Arc<Tree>, Digest)>,
    /// What the team said when it was asked.
    team: HashMap<Key, Option<Arc<TeamResult>>>,
    /// The results that are there, by node.
    results: Vec<Option<Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    key: Key,
    tree: Arc<Tree>,
    digest: Digest,
}

impl<'a> Decider<'a> {
    /// Reads `flow.lock`, and the content of every path that enters a wanted node.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn new(project: &'a Project, cache: &'a Cache, selection: &'a Selection) -> Result<Self, Vec<Diagnostic>> {
        let graph = project.graph();
        let lock = LockFile::read(project.dir())?;
        let mut seen = HashSet::new();
        let mut sources: Vec<(&Source, NodeId, &str)> = Vec::new();
        for (id, node) in graph.nodes.iter().enumerate().filter(|(id, _)| selection.wanted[*id]) {
            for port in &node.inputs {
                for source in &port.sources {
                    if source.node().is_none() && seen.insert(source) {
                        sources.push((source, id, &port.name));
                    }
                }
            }
        }
        // Mostly a stat a file; reading is spread over the cores by the cache itself, big file by big file.
        let trees: Vec<Result<Tree>> =
            sources.par_iter().with_min_len(256).map(|(source, ..)| digest_source(project, cache, source)).collect();
        let mut paths = HashMap::with_capacity(sources.len());
        let mut errors = Vec::new();
        for ((source, id, port), tree) in sources.into_iter().zip(trees) {
            match tree {
                Ok(tree) => {
                    let digest = tree.digest();
                    paths.insert(source, (Arc::new(tree), digest));
                }
                Err(error) => errors.push(unreadable(graph, id, port, &error)),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            project,
            cache,
            selection,
            lock,
            paths,
            team: HashMap::new(),
            results: vec![None; graph.nodes.len()],
        })
    }

    /// What is to be done about a node, all of whose dependencies have results ([`Decider::set`]) or are off.
    ///
    /// # Errors
    /// The cache cannot be read; a file that a stage should have made is not among its results.
    pub fn decide(&self, id: NodeId) -> Result<Decision> {
        let stage = self.project.graph().stage_of(id);
        if stage.off.is_some() {
            return Ok(Decision::Off);
        }
        let mut parts = self.parts(id)?;
        let pin_url = self.project.graph().nodes[id].action.pin().map(|pin| pin.url);
        let known = pin_url.as_ref().and_then(|url| self.lock.pins.get(url));
        let pinned = known.filter(|_| !self.selection.update_pins[id]);
        if let Some(pinned) = pinned {
            parts.inputs.insert(PIN.into(), vec![pinned.digest]);
        }
        let key = parts.key();
        let unpinned = pin_url.is_some() && pinned.is_none();
        let reason = match (
            self.selection.forced[id] || (unpinned && self.selection.update_pins[id]),
            self.project.graph().common(id).cache,
        ) {
            (true, _) => Reason::Forced,
            (_, false) => Reason::NotCached,
            _ => Reason::NoResult,
        };
        let found = if reason == Reason::NoResult { self.cache.find_result(&key)? } else { Found::Nothing };
        let before = match known.filter(|_| pinned.is_none() && !self.selection.forced[id]) {
            Some(known) => {
                let mut parts = parts.clone();
                parts.inputs.insert(PIN.into(), vec![known.digest]);
                self.cache.lookup(&parts.key())?.map(|outcome| (known.clone(), outcome))
            }
            None => None,
        };
        let work = || Box::new(Work { key, parts, pinned: pinned.cloned(), before, pin_url, known: None, reason });
        let absent = match found {
            Found::Here(outcome) => return Ok(Decision::Hit(outcome, unpinned.then(work))),
            Found::Absent(outcome) => Some(outcome),
            Found::Nothing if reason == Reason::NoResult => self.told_of(&key),
            Found::Nothing => None,
        };
        Ok(match absent.filter(|outcome| pinned.is_none_or(|pinned| pinned.digest == outcome.tree.digest())) {
            Some(outcome) => {
                let known = Some(outcome.tree.digest());
                Decision::Absent(outcome, Box::new(Work { known, reason: Reason::Absent, ..*work() }))
            }
            None => Decision::Run(work()),
        })
    }

    /// What the team said of a result.
    fn told_of(&self, key: &Key) -> Option<Outcome> {
        let record = &self.team.get(key)?.as_ref()?.record;
        Some(Outcome { key: *key, tree: Arc::new(record.tree.clone()), cost: record.cost })
    }

    /// The team's cache, if it is to be asked for the result of a node: not twice, and not for what runs anyway.
    pub fn to_ask(&self, work: &Work) -> Option<Remote> {
        self.cache.remote().filter(|_| !work.reason.ignores_hits() && !self.team.contains_key(&work.key))
    }

    /// What the team said.
    pub fn told(&mut self, key: Key, answer: Option<Arc<TeamResult>>) {
        self.team.insert(key, answer);
    }

    /// What the team knows of a result.
    pub fn word(&self, key: &Key) -> Option<&Arc<TeamResult>> {
        self.team.get(key)?.as_ref()
    }

    /// Where the files of a node's result can be had, as far as the team said.
    pub fn source(&self, work: &Work) -> Option<&Arc<TeamResult>> {
        let result = self.team.get(&work.key)?.as_ref().filter(|result| result.has_objects())?;
        // Other bytes than those that keys were made of here are of no use, as if they were not there.
        let digest = result.record.tree.digest();
        let fits = work.pinned.as_ref().is_none_or(|pinned| pinned.digest == digest);
        (fits && work.known.is_none_or(|known| known == digest)).then_some(result)
    }

    /// Says what the result of a node is.
    pub fn set(&mut self, id: NodeId, key: Key, tree: Arc<Tree>) {
        let digest = tree.digest();
        self.results[id] = Some(Known { key, tree, digest });
    }

    /// Whether all that a node takes is known.
    pub fn is_decidable(&self, id: NodeId) -> bool {
        let graph = self.project.graph();
        let known =
            |&id: &NodeId| self.results[id].is_some() || graph.stage_of(id).off.is_some() || !self.selection.wanted[id];
        graph.nodes[id].dependencies.iter().all(known)
    }

    /// The key and result of a node, if it is there.
    pub fn result(&self, id: NodeId) -> Option<(&Key, &Arc<Tree>, &Digest)> {
        self.results[id].as_ref().map(|result| (&result.key, &result.tree, &result.digest))
    }

    /// All keys that a node's result is known by: with a pin and without.
    pub fn keys(&self, id: NodeId) -> Vec<Key> {
        let result = self.result(id).map(|(key, ..)| *key);
        result.into_iter().chain(self.parts(id).ok().map(|parts| parts.key())).collect()
    }

    /// Forgets the result of a node: it has to be made.
    pub fn forget(&mut self, id: NodeId) {
        self.results[id] = None;
    }

    /// What the node's key is made of, before a pin.
    fn parts(&self, id: NodeId) -> Result<KeyParts> {
        let node = &self.project.graph().nodes[id];
        let kind = self.project.graph().stage_of(id).kind;
        let mut inputs: BTreeMap<String, Vec<Digest>> = BTreeMap::new();
        for port in &node.inputs {
            let digests = inputs.entry(port.name.clone()).or_default();
            for source in &port.sources {
                let (tree, digest) = match source {
                    Source::Node(from) => self.of(*from).map(|known| (&known.tree, known.digest))?,
                    Source::Path(_) | Source::Prefix { .. } => self.path(source).map(|path| (&path.0, path.1))?,
                    Source::Out { node, file } | Source::Part { node, part: file } => {
                        digests.push(self.out(*node, file)?.only(port.only).digest());
                        continue;
                    }
                };
                digests.push(if port.only.is_empty() { digest } else { tree.only(port.only).digest() });
            }
        }
        let params = node.action.params();
        Ok(KeyParts { format: KEY_FORMAT, kind: kind.name.into(), version: kind.version, params, inputs })
    }

    fn of(&self, id: NodeId) -> Result<&Known> {
        self.results[id].as_ref().ok_or_else(|| anyhow!("`{}` has no result yet", self.project.graph().nodes[id].name))
    }

    fn path(&self, source: &Source) -> Result<&(Arc<Tree>, Digest)> {
        self.paths.get(source).ok_or_else(|| anyhow!("`{source}` was not read"))
    }

    /// What a node's result has under this path, as if it were named by its path: of a file a tree of one entry with the
    /// file's own name, of a directory its files.
    fn out(&self, id: NodeId, path: &str) -> Result<Tree> {
        let tree = &self.of(id)?.tree;
        let entries: Vec<Entry> = match tree.get(path) {
            Some(entry) => {
                let name = path.rsplit('/').next().unwrap_or(path).to_owned();
                vec![Entry { name, ..entry.clone() }]
            }
            None => below(tree, path).map(|(name, entry)| Entry { name: name.into(), ..entry.clone() }).collect(),
        };
        if entries.is_empty() {
            return Err(anyhow!("`{}` did not make `{path}`", self.project.graph().nodes[id].name));
        }
        Tree::new(entries).map_err(|error| anyhow!(error))
    }

    /// What a node takes, where it lies.
    ///
    /// # Errors
    /// The cache cannot be read or written.
    pub fn inputs(&self, id: NodeId) -> Result<BTreeMap<String, Vec<Input>>> {
        let graph = self.project.graph();
        let mut inputs: BTreeMap<String, Vec<Input>> = BTreeMap::new();
        for PortInputs { name, sources, .. } in &graph.nodes[id].inputs {
            let port = inputs.entry(name.clone()).or_default();
            for source in sources {
                port.push(match source {
                    Source::Node(from) => {
                        let tree = Arc::clone(&self.of(*from)?.tree);
                        Input { name: graph.nodes[*from].name.clone(), path: self.cache.view(&tree)?, tree }
                    }
                    Source::Part { node, part } => {
                        let tree = Arc::new(self.out(*node, part)?);
                        let name = format!("{}:{part}", graph.nodes[*node].name);
                        Input { name, path: self.cache.view(&tree)?, tree }
                    }
                    Source::Out { node, file } => {
                        let tree = Arc::new(self.out(*node, file)?);
                        let view = self.cache.view(&tree)?;
                        // As a path: a file is that file, whether it was there before its stage made it or not.
                        let is_file = self.of(*node)?.tree.get(file).is_some();
                        let path = if is_file { view.join(&tree.entries()[0].name) } else { view };
                        Input { name: file.clone(), path, tree }
                    }
                    Source::Path(path) => Input {
                        name: path.display().to_string(),
                        path: self.project.dir().join(path),
                        tree: Arc::clone(&self.path(source)?.0),
                    },
                    Source::Prefix { prefix, .. } => Input {
                        name: prefix.display().to_string(),
                        path: self.project.dir().join(prefix).parent().map_or_else(PathBuf::new, PathBuf::from),
                        tree: Arc::clone(&self.path(source)?.0),
                    },
                });
            }
        }
        Ok(inputs)
    }

    /// The content of a path that enters.
    pub fn content(&self, source: &Source) -> Option<&Tree> {
        self.paths.get(source).map(|(tree, _)| &**tree)
    }

    /// What a node takes from where others put it.
    ///
    /// # Errors
    /// It is not known what they made.
    pub fn taken(&self, id: NodeId) -> Result<Vec<Taken>> {
        let known = |(from, file): (NodeId, &str)| {
            Ok(Taken { from, file: file.to_owned(), tree: Arc::clone(&self.of(from)?.tree) })
        };
        taken(self.project.graph(), id).map(known).collect()
    }

    /// The paths that a node takes, with the content that its key was made of.
    pub fn leaves(&self, id: NodeId) -> Vec<Leaf> {
        let inputs = self.project.graph().nodes[id].inputs.iter();
        let sources = inputs.flat_map(|port| port.sources.iter().map(|source| (source, port.only)));
        let leaf = |(source, only): (&Source, _)| {
            let tree = Arc::clone(&self.paths.get(source)?.0);
            let digest = tree.only(only).digest();
            Some(Leaf { source: source.clone(), only, tree, digest })
        };
        sources.filter_map(leaf).collect()
    }
}

/// Says that an input of a node cannot be read.
pub(crate) fn unreadable(graph: &Graph, id: NodeId, port: &str, error: &anyhow::Error) -> Diagnostic {
    let said = Diagnostic::new(error.to_string());
    let said = error.chain().skip(1).fold(said, |said, cause| said.cause(cause.to_string()));
    said.at(graph.variant(id).value.nearest(port).span.clone())
}

/// Says of what.
pub(crate) fn cannot_read(path: &Path) -> String {
    format!("cannot read the input {}", path.display())
}

/// Where a path that enters lies, or each file of a prefix.
pub(crate) fn paths_of(project: &Project, source: &Source) -> Vec<PathBuf> {
    match source {
        Source::Path(path) => vec![project.dir().join(path)],
        Source::Prefix { prefix, endings } => {
            let ended = |ending: &&str| {
                let mut path = project.dir().join(prefix).into_os_string();
                path.push(ending);
                path.into()
            };
            endings.iter().map(ended).collect()
        }
        Source::Node(_) | Source::Part { .. } | Source::Out { .. } => Vec::new(),
    }
}

/// The content of a path that enters: a file is a tree of one entry with its own name, as is each file of a prefix.
///
/// # Errors
/// It cannot be read.
fn digest_source(project: &Project, cache: &Cache, source: &Source) -> Result<Tree> {
    let read = |path: &PathBuf| cache.digest_path(path).with_context(|| cannot_read(path));
    match &paths_of(project, source)[..] {
        [] => Err(anyhow!("`{source}` is not a path")),
        [path] => read(path),
        paths => {
            let trees: Vec<Tree> = paths.iter().map(read).collect::<Result<_>>()?;
            let entries = trees.iter().flat_map(|tree| tree.entries().iter().cloned()).collect();
            Tree::new(entries).map_err(|error| anyhow!(error))
        }
    }
}
