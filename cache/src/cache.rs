//! [`Cache`]: the handle that everything else is a method of.

use std::{
    collections::HashSet,
    fmt, fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    fault::fault,
    files::{Explain as _, create_new, fresh, write_atomic},
    holds::{Ask, Holds},
    index::Index,
    memo::Memo,
    spare::Spares,
    witness::Witness,
};

/// A cache directory. Cheap to clone; may be used from many threads, and by many processes at once.
#[derive(Clone)]
pub struct Cache(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub root: PathBuf,
    pub index: Index,
    pub holds: Holds,
    pub spares: Arc<Spares>,
    pub remote: OnceLock<Arc<crate::remote::Inner>>,
    memo: Mutex<Memo>,
    witness: Mutex<Option<Witness>>,
    warnings: Mutex<Vec<String>>,
    /// What [`Cache::warn_once`] has said.
    said: Mutex<HashSet<String>>,
}

const DIRS: [&str; 10] =
    ["objects", "results", "scratch", "locks", "trees", "runs", "state/memo", "tmp", "quarantine", "pins"];

/// Backup programs leave directories alone that hold this file (<https://bford.info/cachedir/>).
const TAG: &str =
    "Signature: 8a477f597d28d172789f06886806bc55\n# The cache of flow. See https://bford.info/cachedir/\n";

impl Cache {
    /// Opens the cache in a directory, which is made if it is not there. Nothing is written if it is complete, so that
    /// a cache that this user may only read works for reading.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root).with_context(|| format!("`{}` is no path", root.display()))?;
        for dir in DIRS {
            let dir = root.join(dir);
            match fs::create_dir(&dir) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(_) => fs::create_dir_all(&dir).explain(&root, || format!("make {}", dir.display()))?,
                Ok(()) => {}
            }
        }
        let tag = root.join("CACHEDIR.TAG");
        if !tag.exists() {
            // Good manners only.
            let _ = write_atomic(&root.join("tmp"), &tag, TAG.as_bytes(), false, "tag");
        }
        Ok(Self(Arc::new(Inner {
            index: Index::new(root.join("state/index")),
            holds: Holds::new(root.join("locks")),
            spares: Arc::new(Spares::new(root.clone())),
            remote: OnceLock::new(),
            memo: Mutex::default(),
            witness: Mutex::default(),
            warnings: Mutex::default(),
            said: Mutex::default(),
            root,
        })))
    }

    /// The cache's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Where the engine keeps records of runs.
    #[must_use]
    pub fn runs_dir(&self) -> PathBuf {
        self.0.root.join("runs")
    }

    /// What this process uses is kept from now on, also while it makes nothing itself: what it waits for may take days.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn stay(&self) -> Result<()> {
        self.0.holds.publish().explain(self.root(), || "note what this flow uses")
    }

    /// Who is asked, again and again with how long that is, while this cache waits for a gc to end; an error ends the wait,
    /// and what waited fails with it. Only the first one is kept.
    pub fn while_waiting(&self, ask: impl Fn(Duration) -> Result<()> + Send + Sync + 'static) {
        let _ = self.0.holds.while_waiting.set(Ask(Box::new(ask)));
    }

    /// What went wrong and was survived since the last call: damaged objects, an index that cannot be used.
    #[must_use]
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks whether a directory of the cache can be written to.
    ///
    /// # Errors
    /// It cannot: an [`crate::Unusable`] that says why and what to do.
    pub fn probe(&self, dir: &Path) -> Result<()> {
        let write = || {
            let (path, mut file) = fresh(dir, |path| create_new(path, 0o600))?;
            let written = file.write_all(&[0x5a; 1 << 16]).and_then(|()| fault("probe"));
            fs::remove_file(path)?;
            written
        };
        write().explain(self.root(), || format!("write to {}", dir.display()))
    }

    pub(crate) fn warn(&self, text: String) {
        let mut warnings = self.0.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// Of what is seen again by the next who looks.
    pub(crate) fn warn_once(&self, text: String) {
        if self.0.said.lock().unwrap_or_else(PoisonError::into_inner).insert(text.clone()) {
            self.warn(text);
        }
    }

    /// Held for map operations only, never while files are touched.
    pub(crate) fn memo(&self) -> MutexGuard<'_, Memo> {
        self.0.memo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is looked at just now, if that is noted.
    pub(crate) fn witness(&self) -> MutexGuard<'_, Option<Witness>> {
        self.0.witness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves something that cannot be trusted out of the way, for people to look at. Returns where it went, or why it
    /// stayed, as the end of a warning; nothing if another thread or process was faster, which says so itself.
    pub(crate) fn quarantine(&self, path: &Path) -> Option<String> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let dir = self.0.root.join("quarantine");
        for n in 0..1000 {
            let target = dir.join(if n == 0 { name.to_string() } else { format!("{name}-{n}") });
            if target.symlink_metadata().is_ok() {
                continue;
            }
            return match fs::rename(path, &target) {
                Ok(()) => Some(format!("moved to {}", target.display())),
                Err(e) if e.kind() == ErrorKind::NotFound => None,
                Err(e) => Some(format!("and cannot be moved away: {e}")),
            };
        }
        Some(format!("and {} is full of it", dir.display()))
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cache").field(&self.0.root).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_again_and_says_why_it_cannot() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("deep/cache");
        let cache = Cache::open(&root).unwrap();
        assert_eq!(Cache::open(&root).unwrap().root(), cache.root());
        assert!(cache.runs_dir().is_dir() && root.join("CACHEDIR.TAG").is_file());
        fs::write(dir.path().join("file"), "").unwrap();
        let error = format!("{:#}", Cache::open(&dir.path().join("file")).unwrap_err());
        assert!(error.contains("cannot make") && error.contains("file/objects"), "{error}");
    }

    #[test]
    fn quarantine_keeps_all_it_gets() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        for content in ["1", "2"] {
            fs::write(dir.path().join("bad"), content).unwrap();
            assert!(cache.quarantine(&dir.path().join("bad")).unwrap().starts_with("moved to"));
        }
        assert_eq!(fs::read_to_string(dir.path().join("quarantine/bad")).unwrap(), "1");
        assert_eq!(fs::read_to_string(dir.path().join("quarantine/bad-1")).unwrap(), "2");
        assert_eq!(cache.quarantine(&dir.path().join("bad")), None);
    }
}
