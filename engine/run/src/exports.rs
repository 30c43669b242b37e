//! Exports: directories that the nodes of a stage share, though each puts its files there when it is done.
//!
//! Each node has a page of its own in the ledger, so that they do not wait for each other. But which node a file comes
//! from may change (a range is shifted, URLs are swapped), so a file is flow's if any page of the place says so, and what
//! a node does not make any more is removed only when all nodes of the stage are in their place and none of them makes
//! it: until then, the node's page goes on to say that flow put it there.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use anyhow::{Result, bail};
use flow_cache::Place;
use flow_core::{Digest, Entry, Tree};

use crate::{
    common::{Export, Link},
    find::normal,
    graph::{NodeId, StageInfo},
    ledger::{Ledger, Note},
    place::{Placer, Spot},
};

/// What all pages of a place say that flow put there.
#[derive(Debug, Default)]
pub struct Before {
    files: HashMap<String, Vec<Digest>>,
}

impl Before {
    /// Flow put something there.
    pub fn is_any(&self) -> bool {
        !self.files.is_empty()
    }

    /// Flow put a file there.
    pub fn has_file(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Flow put a file of this content there.
    pub fn has(&self, name: &str, digest: &Digest) -> bool {
        self.files.get(name).is_some_and(|digests| digests.contains(digest))
    }
}

/// Of all places, as they were noted when this was first asked for.
pub fn before(ledger: &Ledger) -> HashMap<PathBuf, Before> {
    let mut all: HashMap<PathBuf, Before> = HashMap::new();
    for (_, note) in ledger.all() {
        let before = all.entry(note.place).or_default();
        for (name, digest) in note.files {
            before.files.entry(name).or_default().push(digest);
        }
    }
    all
}

impl Placer<'_> {
    /// The place of a node's export.
    pub(crate) fn export_spot(&self, id: NodeId, entries: Vec<(String, Entry)>) -> Option<Spot> {
        let stage = self.project.graph().stage_of(id);
        let Export { to, link } = self.project.graph().common(id).export.as_ref()?;
        let place = PathBuf::from(normal(to));
        let page = Ledger::export_page(&place, &stage.name, id - stage.nodes.start);
        let stage = Some(stage.name.clone());
        let link = match link {
            Link::Copy => Place::Copy,
            Link::Hardlink => Place::Hardlink,
        };
        Some(Spot { root: self.project.dir().join(to), place, page, stage, link, entries })
    }

    /// What the page of a node's export says. Flow once named the pages of exports by place and shard alone.
    pub(crate) fn exported_before(&self, id: NodeId, spot: &Spot) -> Note {
        let note = self.ledger.peek(&spot.page);
        let shard = id - self.project.graph().stage_of(id).nodes.start;
        let note = if note.known { note } else { self.ledger.peek(&Ledger::page(&spot.place, shard)) };
        spot.at(&note)
    }

    /// Shards that export to one directory must not export different files of the same name.
    pub(crate) fn claim_exports(&self, id: NodeId, spot: &Spot) -> Result<()> {
        if self.project.graph().stage_of(id).nodes.len() == 1 {
            return Ok(());
        }
        let mut exported = self.exported.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, entry) in &spot.entries {
            let path = spot.path(name);
            if let Some((other, digest)) = exported.get(&path)
                && *other != id
                && *digest != entry.digest
            {
                let other = &self.project.graph().nodes[*other].name;
                bail!("{} is also exported by `{other}`: give each its own name", path.display());
            }
            exported.insert(path, (id, entry.digest));
        }
        Ok(())
    }

    /// How many files are in the place of a node's export that flow did not put there, as far as one counts.
    pub fn strangers(&self, id: NodeId) -> usize {
        const ENOUGH: usize = 1000;
        let Some(spot) = self.export_spot(id, Vec::new()) else { return 0 };
        let before = self.before(&spot.place);
        let mut strangers = 0;
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop().filter(|_| strangers < ENOUGH) {
            for entry in fs::read_dir(spot.path(&folder)).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let name = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(name);
                } else if !before.is_some_and(|before| before.has_file(&name)) {
                    strangers += 1;
                }
            }
        }
        strangers
    }

    /// Removes what flow exported before and no node makes any more, of stages whose nodes are all in their places:
    /// `placed` tells what each of them made. Tells whether nothing of that is left.
    pub fn sweep(&self, placed: &dyn Fn(NodeId) -> Option<Arc<Tree>>) -> bool {
        let graph = self.project.graph();
        let exports = |id: NodeId| graph.common(id).export.is_some();
        let stages = graph.stages.iter().filter(|stage| stage.off.is_none() && stage.nodes.clone().any(exports));
        let stages: Vec<&StageInfo> = stages.collect();
        if stages.is_empty() {
            return true;
        }
        let mut pages: HashMap<PathBuf, Vec<(String, Note)>> = HashMap::new();
        for (page, note) in self.ledger.all() {
            pages.entry(note.place.clone()).or_default().push((page, note));
        }
        let mut clean = true;
        for stage in stages {
            let trees: Option<Vec<Arc<Tree>>> = stage.nodes.clone().map(placed).collect();
            let Some(trees) = trees else {
                clean = false;
                continue;
            };
            let mut places: HashMap<PathBuf, (PathBuf, HashMap<String, &Tree>)> = HashMap::new();
            for (id, tree) in stage.nodes.clone().zip(&trees) {
                let Some(spot) = self.export_spot(id, Vec::new()) else { continue };
                places.entry(spot.place).or_insert_with(|| (spot.root, HashMap::new())).1.insert(spot.page, &**tree);
            }
            for (place, (root, nodes)) in places {
                let is_its = |note: &Note| note.stage.as_ref().is_none_or(|owner| *owner == stage.name);
                let pages = pages.get(&place).into_iter().flatten().filter(|(_, note)| is_its(note));
                clean &= self.sweep_place(&root, &nodes, pages).unwrap_or_else(|error| {
                    self.warn(format!("{error:#}"));
                    false
                });
            }
        }
        clean
    }

    /// `nodes`: what the nodes put there, by their pages.
    fn sweep_place<'p>(
        &self,
        root: &Path,
        nodes: &HashMap<String, &Tree>,
        pages: impl Iterator<Item = &'p (String, Note)>,
    ) -> Result<bool> {
        let made = |page: &str, name: &str| nodes.get(page).is_some_and(|tree| tree.get(name).is_some());
        let mut wanted: Option<HashSet<&str>> = None;
        let mut clean = true;
        for (name, note) in pages {
            if note.files.keys().all(|file| made(name, file)) {
                continue;
            }
            // Where nothing can be noted, nothing is removed.
            let Ok(Some(mut page)) = self.ledger.try_hold(name) else {
                clean = false;
                continue;
            };
            let wanted = wanted.get_or_insert_with(|| {
                nodes.values().flat_map(|tree| tree.entries()).map(|entry| entry.name.as_str()).collect()
            });
            let mut note = page.note.clone();
            for (file, digest) in note.files.iter().filter(|(file, _)| !wanted.contains(file.as_str())) {
                self.remove_ours(root, file, digest)?;
            }
            // What another node puts there now is on the page of that node.
            note.files.retain(|file, _| made(name, file));
            page.write(note)?;
        }
        Ok(clean)
    }

    /// Notes for who collects looks that no run with more nodes has put anything to where the nodes of this one do.
    pub fn look_for_more(&self) {
        let graph = self.project.graph();
        for stage in graph.stages.iter().filter(|stage| stage.off.is_none()) {
            let places: HashSet<String> =
                stage.nodes.clone().filter_map(|id| graph.common(id).export_to()).map(|to| normal(to)).collect();
            for place in places {
                let page = |shard| Ledger::export_page(Path::new(&place), &stage.name, shard);
                // The last one looked at is not there.
                (stage.nodes.len()..).any(|shard| !self.ledger.peek(&page(shard)).known);
            }
        }
    }
}
