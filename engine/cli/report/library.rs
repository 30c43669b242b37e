//! [`Library`]: what results say of themselves. A result never changes, so each is read once, however often a page that
//! follows a run asks.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fs::File,
    io::BufReader,
    path::PathBuf,
    rc::Rc,
};

use anyhow::Result;
use flow_cache::{Cache, ResultRecord};
use flow_core::{How, Key, KeyParts};
use flow_engine::{History, Past, RunInfo};
use serde_json::Value as Json;

use super::{
    corpus,
    curve::Curve,
    data::{Made, MadeFile},
    evaluation::{self, Evaluation},
    samples::{self, Sample},
    tale::{State, Tale, Told},
};
use crate::metrics;

/// So many files of a result are named.
const FILES: usize = 12;
/// So many runs are looked through for those that worked at a result before.
const LOOK_BACK: usize = 200;

type Curves = BTreeMap<String, Curve>;

/// What is known of a result.
#[derive(Debug)]
pub struct Known {
    pub made: Made,
    pub evaluation: Option<Evaluation>,
    pub samples: Vec<Sample>,
    /// Its `….stats.json`, summed up.
    pub stats: Option<Json>,
    /// How many documents have up to so many tokens.
    pub lengths: BTreeMap<u64, u64>,
    /// What it says of its steps.
    curves: Curves,
}

/// Reads results, each once.
pub struct Library<'a> {
    cache: &'a Cache,
    history: History,
    /// It reads what a run keeps once; a run that goes on keeps more later.
    past: RefCell<Past>,
    results: RefCell<HashMap<Key, Rc<Known>>>,
    parts: RefCell<HashMap<Key, Rc<KeyParts>>>,
    before: RefCell<HashMap<(String, Key), Rc<Curves>>>,
}

impl<'a> Library<'a> {
    /// Of a cache.
    pub fn new(cache: &'a Cache) -> Self {
        Self {
            cache,
            history: History::open(cache),
            past: RefCell::new(Past::new(cache)),
            results: RefCell::default(),
            parts: RefCell::default(),
            before: RefCell::default(),
        }
    }

    /// The runs.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Looks at what runs keep anew.
    pub fn refresh(&self) {
        self.past.replace(Past::new(self.cache));
    }

    /// What a key was made of.
    pub fn parts(&self, run: &str, node: &str, key: &Key) -> Result<Option<Rc<KeyParts>>> {
        if let Some(known) = self.parts.borrow().get(key) {
            return Ok(Some(Rc::clone(known)));
        }
        let parts = self.past.borrow().parts(self.cache, run, node, key)?.map(Rc::new);
        self.parts.borrow_mut().extend(parts.iter().map(|parts| (*key, Rc::clone(parts))));
        Ok(parts)
    }

    /// What is known of a result; nothing if gc took it.
    pub fn result(&self, key: &Key) -> Result<Option<Rc<Known>>> {
        if let Some(known) = self.results.borrow().get(key) {
            return Ok(Some(Rc::clone(known)));
        }
        let known = self.cache.record(key)?.map(|record| Rc::new(self.read(&record)));
        self.results.borrow_mut().extend(known.iter().map(|known| (*key, Rc::clone(known))));
        Ok(known)
    }

    fn read(&self, record: &ResultRecord) -> Known {
        let entries = record.tree.entries();
        let files = entries.iter().take(FILES).map(|entry| MadeFile {
            name: entry.name.clone(),
            size: entry.size,
            digest: entry.digest.short(),
        });
        let open = |name: &str| self.open(record, name);
        Known {
            made: Made {
                created: record.created,
                host: record.host.clone(),
                version: record.version.clone(),
                files: files.collect(),
                count: entries.len(),
                freed: record.freed,
            },
            evaluation: evaluation::read(&open),
            samples: samples::read(&record.tree, &open),
            stats: corpus::read(&record.tree, &open),
            lengths: self.lengths(record),
            curves: open(metrics::FILE).map(steps).unwrap_or_default(),
        }
    }

    /// A file of a result, if it is here.
    fn open(&self, record: &ResultRecord, name: &str) -> Option<BufReader<File>> {
        let entry = record.tree.get(name)?;
        File::open(self.cache.entry_path(entry)).ok().map(BufReader::new)
    }

    /// The lengths of documents in a `.bin/.idx`, by powers of two.
    fn lengths(&self, record: &ResultRecord) -> BTreeMap<u64, u64> {
        let is_one = record.tree.entries().iter().any(|entry| entry.name.ends_with(".idx"));
        if record.freed || !is_one {
            return BTreeMap::new();
        }
        let look = |dir: PathBuf| flow_data::weights::inspect(&dir, None);
        let Ok(found) = self.cache.view(&record.tree).and_then(look) else { return BTreeMap::new() };
        let lengths = found.json["lengths"].as_object().into_iter().flatten();
        lengths.filter_map(|(most, count)| Some((most.parse().ok()?, count.as_u64()?))).collect()
    }

    /// What the nodes of a run measured: what their results say of every step, over what was told while they ran, also in
    /// runs before that one that worked at the same result.
    pub fn curves(
        &self,
        run: &RunInfo,
        nodes: &BTreeMap<String, Vec<(String, Told)>>,
        mut own: BTreeMap<String, Curves>,
    ) -> Result<BTreeMap<String, Curves>> {
        let mut all = BTreeMap::new();
        for (name, told) in nodes.values().flatten() {
            let Some(key) = told.key else { continue };
            let mut curves = own.remove(name).unwrap_or_default();
            let measured = !curves.is_empty();
            let said = match told.digest {
                Some(_) => self.result(&key)?.map(|known| known.curves.clone()).unwrap_or_default(),
                None => Curves::new(),
            };
            let began_before = told.state.is_hit() || told.state != State::Ran && measured;
            if began_before && (measured || !said.is_empty()) {
                for (what, before) in self.before(run, name, &key)?.iter() {
                    let mut whole = before.clone();
                    if let Some(own) = curves.get(what) {
                        whole.extend(own);
                    }
                    curves.insert(what.clone(), whole);
                }
            }
            curves.extend(said);
            if !curves.is_empty() {
                all.insert(name.clone(), curves);
            }
        }
        Ok(all)
    }

    /// What a node measured for this key in runs before that one.
    fn before(&self, run: &RunInfo, node: &str, key: &Key) -> Result<Rc<Curves>> {
        let asked = (node.to_owned(), *key);
        if let Some(known) = self.before.borrow().get(&asked) {
            return Ok(Rc::clone(known));
        }
        let mut worked = Vec::new();
        let earlier = self.history.list()?.filter(|other| other.id < run.id && other.head.same_nodes_as.is_none());
        for other in earlier.take(LOOK_BACK) {
            let nodes = other.nodes().unwrap_or_default();
            match nodes.get(node).filter(|record| record.key == *key).map(|record| record.how) {
                Some(Some(How::Ran)) => {
                    worked.push(other);
                    break;
                }
                Some(None | Some(How::Resumed)) => worked.push(other),
                _ => {}
            }
        }
        let mut tale = Tale::default();
        for other in worked.iter().rev() {
            tale.read_on(&other.events_path())?;
        }
        let curves = Rc::new(tale.curves.remove(node).unwrap_or_default());
        self.before.borrow_mut().insert(asked, Rc::clone(&curves));
        Ok(curves)
    }
}

/// The curves of a file with an object a step.
fn steps(file: BufReader<File>) -> Curves {
    let mut curves = Curves::new();
    metrics::read(file, &mut |step, name, value| curves.entry(name.to_owned()).or_default().push(step, value));
    curves
}
