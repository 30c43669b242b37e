//! Pins: results that stay whatever gc is asked for. `pins/<key>` is a small file that says who wanted that, and which
//! results the key is made of: their records are kept with it, for without them it could not be found again.

use std::{
    collections::HashSet,
    fs,
    io::{self, ErrorKind},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use flow_core::Key;
use serde::{Deserialize, Serialize};

use crate::{
    cache::Cache,
    files::{Explain as _, list, write_atomic},
};

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The result.
    pub key: Key,
    /// For whom and why.
    pub note: String,
    /// The result is kept; if not, its record alone.
    pub whole: bool,
    /// The results whose records are kept with it. Each has a pin of its own.
    pub needs: Vec<Key>,
}

#[derive(Serialize, Deserialize)]
struct File {
    note: String,
    whole: bool,
    needs: Vec<Key>,
}

impl Cache {
    /// Keeps a result, or its record, until [`Cache::unpin`]. Of a key that is pinned whole it stays so.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn pin(&self, pin: &Pin) -> Result<()> {
        let kept = !pin.whole && self.read_pin(&pin.key)?.is_some_and(|there| there.whole);
        if kept { Ok(()) } else { self.write_pin(pin.clone()) }
    }

    fn write_pin(&self, pin: Pin) -> Result<()> {
        let Pin { key, note, whole, needs } = pin;
        let path = self.pin_path(&key);
        let bytes = serde_json::to_vec(&File { note, whole, needs }).context("the pin cannot be written")?;
        write_atomic(&self.tmp(), &path, &bytes, true, "pin:written")
            .explain(self.root(), || format!("write {}", path.display()))
    }

    /// Lets go of a result, and of the records that only it needed. Whether it was pinned.
    ///
    /// # Errors
    /// Something cannot be read, written or removed.
    pub fn unpin(&self, key: &Key) -> Result<bool> {
        let Some(pin) = self.read_pin(key)?.filter(|pin| pin.whole) else { return Ok(false) };
        // Another that is pinned may be made of it.
        self.write_pin(Pin { whole: false, note: String::new(), ..pin })?;
        loop {
            let pins = self.pins()?;
            let needed: HashSet<Key> = pins.iter().flat_map(|pin| pin.needs.iter().copied()).collect();
            let loose: Vec<Key> = pins.iter().filter(|pin| !pin.whole).map(|pin| pin.key).collect();
            let loose: Vec<Key> = loose.into_iter().filter(|key| !needed.contains(key)).collect();
            if loose.is_empty() {
                return Ok(true);
            }
            loose.iter().try_for_each(|key| self.remove_pin(key))?;
        }
    }

    /// What is pinned.
    ///
    /// # Errors
    /// They cannot be read: then nobody may say that something is not pinned.
    pub fn pins(&self) -> Result<Vec<Pin>> {
        let mut pins = Vec::new();
        for path in list(&self.root().join("pins"))? {
            let Some(key) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            pins.extend(self.read_pin(&key)?);
        }
        Ok(pins)
    }

    fn read_pin(&self, key: &Key) -> Result<Option<Pin>> {
        let path = self.pin_path(key);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            bytes => bytes.with_context(|| format!("cannot read the pin {}", path.display()))?,
        };
        // Whatever else is there says that it is wanted.
        let file = serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            let note = String::from_utf8_lossy(&bytes).into_owned();
            File { note, whole: true, needs: Vec::new() }
        });
        let File { note, whole, needs } = file;
        Ok(Some(Pin { key: *key, note, whole, needs }))
    }

    fn remove_pin(&self, key: &Key) -> Result<()> {
        let path = self.pin_path(key);
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => io::Result::Ok(()),
            removed => removed,
        };
        removed.explain(self.root(), || format!("remove {}", path.display()))
    }

    fn pin_path(&self, key: &Key) -> PathBuf {
        self.root().join("pins").join(key.to_string())
    }
}
