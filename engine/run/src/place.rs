//! Results outside of the cache: `outs` in the project's folder, and `export`s to a place of the user's.
//!
//! `outs` are the stage's own files and are put back as they were. An export never overwrites or removes a file that
//! is not as flow put it there: what was exported, with its digest, is remembered in the cache's `state/` directory.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};
use flow_cache::{Cache, Place};
use flow_core::{Digest, Entry, Tree};
use serde::{Deserialize, Serialize};

use crate::{project::Project, record::write_atomic};

/// A file that flow put somewhere for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Exported {
    node: String,
    digest: Digest,
}

/// Path → what was put there.
type Manifest = BTreeMap<PathBuf, Exported>;

/// Puts results in their places.
pub struct Placer<'a> {
    cache: &'a Cache,
    project: &'a Project,
    /// Where the manifest lies.
    file: PathBuf,
    manifest: Mutex<Option<Manifest>>,
}

/// A file that is not where it should be.
pub struct Missing {
    entry: Entry,
    dest: PathBuf,
    export: bool,
}

impl<'a> Placer<'a> {
    /// For the results of a project.
    pub fn new(project: &'a Project, cache: &'a Cache) -> Self {
        let name = blake3::hash(project.absolute_file().as_os_str().as_encoded_bytes()).to_hex();
        let file = cache.root().join("state").join(format!("exports-{}.json", &name[..32]));
        Self { cache, project, file, manifest: Mutex::new(None) }
    }

    /// What of a node's result is not in its place.
    ///
    /// # Errors
    /// A file that the stage should have made is not in its result; something cannot be read.
    pub fn missing(&self, outs: &[String], export: Option<&str>, tree: &Tree) -> Result<Vec<Missing>> {
        let mut missing = Vec::new();
        for out in outs {
            let Some(entry) = tree.get(out) else { bail!("the stage did not make `{out}`, which it lists in `outs`") };
            let dest = self.project.dir().join(out);
            if !self.cache.is_placed(entry, &dest)? {
                missing.push(Missing { entry: entry.clone(), dest, export: false });
            }
        }
        if let Some(export) = export {
            let dir = self.project.dir().join(export);
            for entry in tree.entries() {
                let dest = dir.join(&entry.name);
                if !self.cache.is_placed(entry, &dest)? {
                    missing.push(Missing { entry: entry.clone(), dest, export: true });
                }
            }
        }
        Ok(missing)
    }

    /// Puts the result of a node in its places; `overwrite`: also over files of the user's.
    ///
    /// # Errors
    /// A file of the user's is in the way; something cannot be written.
    pub fn place(
        &self,
        node: &str,
        export: Option<&str>,
        tree: &Tree,
        missing: &[Missing],
        overwrite: bool,
    ) -> Result<()> {
        let Some(export) = export else {
            return missing.iter().try_for_each(|file| self.cache.restore(&file.entry, &file.dest, Place::Copy));
        };
        let dir = self.project.dir().join(export);
        let mut manifest = self.manifest.lock().unwrap_or_else(PoisonError::into_inner);
        let manifest = manifest.get_or_insert_with(|| self.read());
        // All is looked at before anything is written, so that a refusal leaves the directory as it is.
        for file in missing.iter().filter(|file| file.export && !overwrite) {
            let dest = &file.dest;
            if dest.symlink_metadata().is_ok() && !self.is_ours(manifest, dest) {
                bail!(
                    "{} is not as flow put it there and would be overwritten: move it away, or use --force {node}",
                    dest.display()
                );
            }
            if let Some(other) =
                manifest.get(dest).filter(|other| other.node != node && tree.get(&file.entry.name).is_some())
                && self.project.graph().select(&other.node).is_ok()
            {
                bail!("{} is also exported by `{}`: give each stage its own directory", dest.display(), other.node);
            }
        }
        for file in missing {
            self.cache.restore(&file.entry, &file.dest, Place::Copy)?;
        }
        let wanted = |dest: &Path| {
            let name = dest.strip_prefix(&dir).ok().and_then(Path::to_str);
            name.is_some_and(|name| tree.get(name).is_some())
        };
        let gone: Vec<PathBuf> = manifest
            .iter()
            .filter(|(dest, exported)| exported.node == node && !wanted(dest))
            .map(|(dest, _)| dest.clone())
            .collect();
        let mut changed = !gone.is_empty();
        for dest in gone {
            if self.is_ours(manifest, &dest) {
                fs::remove_file(&dest).with_context(|| format!("cannot remove {}", dest.display()))?;
            }
            manifest.remove(&dest);
        }
        for entry in tree.entries() {
            let exported = Exported { node: node.to_owned(), digest: entry.digest };
            changed |= manifest.insert(dir.join(&entry.name), exported.clone()).as_ref() != Some(&exported);
        }
        if changed {
            // Other flows of the same project may have added to it; what they say of other nodes stays.
            let mut all = self.read();
            all.retain(|_, exported| exported.node != node);
            all.extend(manifest.iter().map(|(dest, exported)| (dest.clone(), exported.clone())));
            write_atomic(&self.file, &serde_json::to_vec(&all)?)?;
        }
        Ok(())
    }

    /// Whether the file at `dest` is what flow put there.
    fn is_ours(&self, manifest: &Manifest, dest: &Path) -> bool {
        let Some(exported) = manifest.get(dest) else { return false };
        let now = self.cache.digest_path(dest).ok();
        now.is_some_and(|now| now.entries().first().is_some_and(|entry| entry.digest == exported.digest))
    }

    fn read(&self) -> Manifest {
        let bytes = fs::read(&self.file).unwrap_or_default();
        // A manifest that is lost or damaged only means that flow owns nothing and asks.
        serde_json::from_slice(&bytes).unwrap_or_default()
    }
}

/// The bytes that are missing.
pub fn size(missing: &[Missing]) -> u64 {
    missing.iter().map(|file| file.entry.size).sum()
}
