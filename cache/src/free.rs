//! Freeing the objects of results that nobody needs for now, while their records stay.
//!
//! An intermediate result is needed as long as something is made from it, and its digest for ever after: keys are made
//! of it. So its record is marked and stays, and its objects go, but for those that other results have too.

use std::{collections::HashSet, fs, io::ErrorKind, time::Duration};

use anyhow::{Context as _, Result};
use flow_core::Key;

use crate::{
    cache::Cache,
    fault::fault,
    files::{Explain as _, write_atomic},
    holds::Closed,
    record::{Bad, ResultRecord},
};

/// How long to wait for flows that are just looking results up: whoever frees has other things to do.
const PATIENCE: Duration = Duration::from_millis(100);

impl Cache {
    /// Frees the objects of these results, unless another flow uses them. Returns how many bytes that gave back; `None`
    /// when flows look results up all the time: try again later. Records are marked before objects go, so it may be
    /// killed: what is left then is removed by gc.
    ///
    /// # Errors
    /// The cache cannot be read or written.
    pub fn free(&self, keys: &HashSet<Key>) -> Result<Option<u64>> {
        self.0.holds.let_go().explain(self.root(), || "note what this flow uses")?;
        let own = self.0.holds.list_path();
        let closed = Closed::new(&self.root().join("locks"), PATIENCE, false, own.as_deref());
        let Some(closed) = closed.explain(self.root(), || "collect what running flows use")? else { return Ok(None) };
        let (mut named, mut going) = (HashSet::new(), Vec::new());
        for found in self.records()? {
            let (key, path, record) = found?;
            match record {
                Ok(record) => {
                    let held = closed.held.contains(&key.0) || closed.held.contains(&record.tree.digest().0);
                    if keys.contains(&key) && !held {
                        going.push((path, record));
                    } else if !record.freed || held {
                        named.extend(record.tree.entries().iter().map(|entry| (entry.digest, entry.executable)));
                    }
                }
                Err(Bad::Wrong(_)) => {}
                // It may name any object.
                Err(Bad::Format(_) | Bad::Unreadable(_)) => return Ok(Some(0)),
            }
        }
        let mut freed = 0;
        for (path, record) in going {
            let record = ResultRecord { freed: true, ..record };
            let bytes = serde_json::to_vec(&record).context("the record cannot be written")?;
            write_atomic(&self.tmp(), &path, &bytes, false, "free:record")
                .explain(self.root(), || format!("write {}", path.display()))?;
            self.memo().forget_result(&record.key);
            fault("free:recorded")?;
            for entry in record.tree.entries() {
                if !named.contains(&(entry.digest, entry.executable)) {
                    let object = self.entry_path(entry);
                    match fs::remove_file(&object) {
                        Ok(()) => freed += entry.size,
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => {
                            Err(error).explain(self.root(), || format!("remove {}", object.display()))?;
                        }
                    }
                }
            }
        }
        Ok(Some(freed))
    }
}
