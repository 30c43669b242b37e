//! [`Heads`]: what the runs were that are over, in the cache's index: from there they are read sooner than from a file each.
//!
//! The files are the truth. Which runs there are is what their directory says, and what is not in the index (it was lost,
//! another flow has it, another process wrote the run) is read from its file, and added. A run that goes on or was killed
//! never is: what its file says may change.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use flow_cache::Cache;

use crate::run_head::RunHead;

/// Where they are in the index.
const RUNS: &str = "runs";
/// A head of more bytes has so many stages that to read it is work wherever it is.
const LARGEST: usize = 32 << 10;

/// The heads of runs that are over.
#[derive(Debug)]
pub(crate) struct Heads {
    cache: Cache,
    known: OnceLock<HashMap<String, Vec<u8>>>,
    /// What files said since: also who lives long reads each once.
    said: Mutex<HashMap<String, Vec<u8>>>,
}

impl Heads {
    /// Of the runs of a cache.
    pub fn of(cache: &Cache) -> Self {
        Self { cache: cache.clone(), known: OnceLock::new(), said: Mutex::default() }
    }

    /// What the index knows of a run. `all` are the runs that there are: what it knows of others goes.
    pub fn get(&self, all: &[String], id: &str) -> Option<RunHead> {
        let known = self.known.get_or_init(|| {
            let mut known = self.cache.indexed(RUNS).unwrap_or_default();
            let there: HashSet<&str> = all.iter().map(String::as_str).collect();
            let gone: Vec<String> = known.keys().filter(|id| !there.contains(id.as_str())).cloned().collect();
            if !gone.is_empty() {
                known.retain(|id, _| there.contains(id.as_str()));
                self.cache.index(RUNS, &[], &gone);
            }
            known
        });
        let head: RunHead = match known.get(id) {
            Some(bytes) => serde_json::from_slice(bytes).ok()?,
            None => serde_json::from_slice(self.said().get(id)?).ok()?,
        };
        (head.id == id && head.finished.is_some()).then_some(head)
    }

    /// Adds what a file said.
    pub fn learn(&self, head: &RunHead) {
        if head.finished.is_some()
            && let Ok(bytes) = serde_json::to_vec(head)
            && bytes.len() <= LARGEST
        {
            self.said().insert(head.id.clone(), bytes);
        }
    }

    fn said(&self) -> MutexGuard<'_, HashMap<String, Vec<u8>>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Heads {
    /// All at once, and after whoever waits has what they asked for.
    fn drop(&mut self) {
        let new: Vec<_> = std::mem::take(&mut *self.said()).into_iter().collect();
        if !new.is_empty() {
            self.cache.index(RUNS, &new, &[]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::history::History;

    /// A run that is over, or was killed.
    fn write(root: &Path, id: &str, finished: Option<f64>) {
        let head = RunHead { id: id.to_owned(), pipeline: "p".into(), finished, ..RunHead::default() };
        fs::create_dir_all(root.join("runs").join(id)).unwrap();
        fs::write(root.join("runs").join(id).join("run.json"), serde_json::to_vec(&head).unwrap()).unwrap();
    }

    /// As a process sees them that has just begun.
    fn seen(root: &Path) -> Vec<(String, Option<f64>)> {
        let history = History::open(&Cache::open(root).unwrap());
        let all: Vec<_> = history.all().unwrap().into_iter().map(|run| (run.id, run.head.finished)).collect();
        let listed: Vec<_> = history.list().unwrap().map(|run| (run.id, run.head.finished)).collect();
        assert_eq!(all, listed);
        all
    }

    fn indexed(root: &Path) -> Vec<String> {
        let mut ids: Vec<_> = Cache::open(root).unwrap().indexed(RUNS).unwrap().into_keys().collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn the_index_is_filled_used_and_made_again_and_the_files_are_the_truth() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let id = |n: usize| format!("20260101-{n:06}");
        (0..200).for_each(|n| write(root, &id(n), (n != 7).then_some(n as f64)));
        let mut expected: Vec<_> = (0..200).rev().map(|n| (id(n), (n != 7).then_some(n as f64))).collect();
        assert_eq!(seen(root), expected, "it is not there yet");
        // The newest are read from their files, and so is what may go on.
        let known: Vec<_> = (0..136).filter(|n| *n != 7).map(id).collect();
        assert_eq!(indexed(root), known);

        // What is there is not read again.
        fs::write(root.join("runs").join(id(3)).join("run.json"), "{").unwrap();
        assert_eq!(seen(root), expected);

        // Nor by who lives long and has no index, as another flow has it.
        let (holder, long) = (Cache::open(root).unwrap(), Cache::open(root).unwrap());
        assert!(holder.indexed(RUNS).is_some());
        let history = History::open(&long);
        let file = root.join("runs").join(id(4)).join("run.json");
        let there = fs::read(&file).unwrap();
        assert_eq!(history.all().unwrap().len(), expected.len() - 1);
        fs::write(&file, "{").unwrap();
        assert_eq!(history.all().unwrap().len(), expected.len() - 1);
        fs::write(&file, there).unwrap();
        drop((history, long, holder));

        // Another process wrote a run, one that seemed killed is over, and two are gone.
        write(root, &id(500), Some(500.0));
        write(root, &id(7), Some(7.0));
        for gone in [5, 199] {
            fs::remove_dir_all(root.join("runs").join(id(gone))).unwrap();
        }
        expected.retain(|(run, _)| *run != id(5) && *run != id(199));
        expected.insert(0, (id(500), Some(500.0)));
        expected.iter_mut().filter(|(run, _)| *run == id(7)).for_each(|(_, finished)| *finished = Some(7.0));
        assert_eq!(seen(root), expected);
        assert_eq!(indexed(root), (0..136).filter(|n| *n != 5).map(id).collect::<Vec<_>>());

        // Another flow has it: nobody waits, nothing is said, and what is in the files is seen.
        write(root, &id(3), Some(3.0));
        let other = Cache::open(root).unwrap();
        assert!(other.indexed(RUNS).is_some());
        let cache = Cache::open(root).unwrap();
        assert_eq!(cache.indexed(RUNS), None);
        assert_eq!(History::open(&cache).all().unwrap().len(), expected.len());
        assert_eq!(cache.take_warnings(), Vec::<String>::new());
        drop((cache, other));

        // Damaged, or lost.
        let db = root.join("state/index/db");
        let length = fs::metadata(&db).unwrap().len();
        fs::write(&db, vec![0xff; length as usize]).unwrap();
        assert_eq!(seen(root), expected);
        fs::remove_dir_all(root.join("state/index")).unwrap();
        assert_eq!(seen(root), expected);
        assert_eq!(indexed(root).len(), 135);
    }
}
