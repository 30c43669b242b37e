//! Pins: results that stay whatever gc is asked for. `pins/<key>` is a small file that says who wanted that.

use std::{fs, io::ErrorKind};

use anyhow::{Context as _, Result};
use flow_core::Key;

use crate::{
    cache::Cache,
    files::{Explain as _, list, write_atomic},
};

impl Cache {
    /// Keeps a result until [`Cache::unpin`]; `note` says for whom and why, and comes back from [`Cache::pins`].
    ///
    /// # Errors
    /// It cannot be written.
    pub fn pin(&self, key: &Key, note: &str) -> Result<()> {
        let path = self.root().join("pins").join(key.to_string());
        write_atomic(&self.tmp(), &path, note.as_bytes(), true, "pin:written")
            .explain(self.root(), || format!("write {}", path.display()))
    }

    /// Lets go of a result. Whether it was pinned.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn unpin(&self, key: &Key) -> Result<bool> {
        let path = self.root().join("pins").join(key.to_string());
        match fs::remove_file(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            done => done.explain(self.root(), || format!("remove {}", path.display())).map(|()| true),
        }
    }

    /// What is pinned, with the notes.
    ///
    /// # Errors
    /// They cannot be read: then nobody may say that something is not pinned.
    pub fn pins(&self) -> Result<Vec<(Key, String)>> {
        let mut pins = Vec::new();
        for path in list(&self.root().join("pins"))? {
            let Some(key) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            match fs::read_to_string(&path) {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                note => pins.push((key, note.with_context(|| format!("cannot read the pin {}", path.display()))?)),
            }
        }
        Ok(pins)
    }
}
