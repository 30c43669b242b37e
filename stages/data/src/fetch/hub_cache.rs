//! What the hub's own tools keep on this machine: `models--ORG--NAME/refs/REVISION` names a commit, and
//! `snapshots/COMMIT/` holds its files, those that somebody needed, as links to `blobs/` that are called by their content.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::hub::{Commit, HubFile, Repository};

/// The hub's cache directory.
#[derive(Clone, Debug)]
pub struct HubCache(pub PathBuf);

impl HubCache {
    /// The directory that the environment names: `HF_HUB_CACHE`, `HF_HOME/hub`, `~/.cache/huggingface/hub`.
    pub fn from_environment() -> Option<Self> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = || set("XDG_CACHE_HOME").or_else(|| Some(env::home_dir()?.join(".cache")));
        let home = || set("HF_HOME").or_else(|| Some(cache()?.join("huggingface")));
        set("HF_HUB_CACHE").or_else(|| Some(home()?.join("hub"))).map(Self)
    }

    fn folder(&self, repository: &Repository) -> PathBuf {
        self.0.join(format!("{}--{}", repository.kind, repository.name.replace('/', "--")))
    }

    /// The commit that a revision was when it was last looked up, and what of it is here.
    ///
    /// # Errors
    /// Nothing is.
    pub fn commit(&self, repository: &Repository, revision: &str) -> Result<Commit> {
        let folder = self.folder(repository);
        let named = fs::read_to_string(folder.join("refs").join(revision)).map(|id| id.trim().to_owned());
        let id = named.unwrap_or_else(|_| revision.to_owned());
        let is_id = !id.is_empty() && id.bytes().all(|c| c.is_ascii_hexdigit());
        let snapshot = folder.join("snapshots").join(&id);
        if !is_id || !snapshot.is_dir() {
            bail!(
                "HF_HUB_OFFLINE is set, and {} does not hold `{revision}` of {}: unset it, or run `hf download {}` where \
                 there is a network",
                self.0.display(),
                repository.name,
                repository.name
            );
        }
        let mut files = Vec::new();
        list(&snapshot, "", &mut files).with_context(|| format!("cannot read {}", snapshot.display()))?;
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Commit { id, files })
    }

    /// Where a file of a commit lies, if it is here and as long as it must be.
    pub fn file(&self, repository: &Repository, commit: &str, file: &HubFile) -> Option<PathBuf> {
        let path = self.folder(repository).join("snapshots").join(commit).join(&file.name);
        let found = path.metadata().ok()?;
        (found.is_file() && file.size.is_none_or(|size| size == found.len())).then_some(path)
    }
}

fn list(directory: &Path, prefix: &str, files: &mut Vec<HubFile>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let name = format!("{prefix}{name}");
        let found = path.metadata()?;
        if found.is_dir() {
            list(&path, &format!("{name}/"), files)?;
        } else {
            // A blob of LFS is called by its SHA-256.
            let blob = fs::read_link(&path).ok();
            let blob = blob.and_then(|blob| blob.file_name()?.to_str().map(str::to_owned));
            let sha256 = blob.filter(|blob| blob.len() == 64 && blob.bytes().all(|c| c.is_ascii_hexdigit()));
            files.push(HubFile { name, size: Some(found.len()), sha256 });
        }
    }
    Ok(())
}
