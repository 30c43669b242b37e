//! Where things lie under the root.

use std::path::{Path, PathBuf};

use flow_core::{Digest, Entry, Key};

use crate::cache::Cache;

impl Cache {
    fn sharded(&self, dir: &str, hex: &str, suffix: &str) -> PathBuf {
        let mut path = String::with_capacity(dir.len() + hex.len() + suffix.len() + 4);
        for part in [dir, "/", &hex[..2], "/", hex, suffix] {
            path.push_str(part);
        }
        self.0.root.join(path)
    }

    /// The object with this content: `objects/ab/<digest>`, mode 0444, or `<digest>.x`, mode 0555, when it is there
    /// only as an executable file. The same content may be there in both variants, as two files: a result that is
    /// copied with its mode must not depend on what else the cache has seen.
    #[must_use]
    pub fn object_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_string();
        let plain = self.sharded("objects", &hex, "");
        if !plain.exists() {
            let executable = self.sharded("objects", &hex, ".x");
            if executable.exists() {
                return executable;
            }
        }
        plain
    }

    /// The object of a tree's file, whether it is there or not.
    #[must_use]
    pub fn entry_path(&self, entry: &Entry) -> PathBuf {
        self.sharded("objects", &entry.digest.to_string(), if entry.executable { ".x" } else { "" })
    }

    pub(crate) fn record_path(&self, key: &Key) -> PathBuf {
        self.sharded("results", &key.to_string(), ".json")
    }

    pub(crate) fn view_path(&self, digest: &Digest) -> PathBuf {
        self.sharded("trees", &digest.to_string(), "")
    }

    pub(crate) fn lock_path(&self, key: &Key) -> PathBuf {
        self.0.root.join("locks").join(key.to_string())
    }

    /// A slot's directories: for the result, and for work in progress. Their names tell what nothing can go on from.
    pub(crate) fn scratch_paths(&self, key: &Key, resumable: bool) -> [PathBuf; 2] {
        let scratch = self.0.root.join("scratch");
        let hex = key.to_string();
        [scratch.join(format!("{hex}.out")), scratch.join(if resumable { hex } else { format!("{hex}.tmp") })]
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.0.root.join("tmp")
    }
}

/// The digest and variant that an object's file name stands for.
pub(crate) fn parse_object(path: &Path) -> Option<(Digest, bool)> {
    let name = path.file_name()?.to_str()?;
    let (hex, executable) = name.strip_suffix(".x").map_or((name, false), |hex| (hex, true));
    Some((hex.parse().ok()?, executable))
}

/// The key that a record's file name stands for.
pub(crate) fn parse_record(path: &Path) -> Option<Key> {
    path.file_name()?.to_str()?.strip_suffix(".json")?.parse().ok()
}

/// The key that one of a slot's directories is of, and whether a later run can go on from it.
pub(crate) fn parse_scratch(path: &Path) -> Option<(Key, bool)> {
    let name = path.file_name()?.to_str()?;
    let hex = name.strip_suffix(".out").or_else(|| name.strip_suffix(".tmp"));
    Some((hex.unwrap_or(name).parse().ok()?, hex.is_none()))
}
