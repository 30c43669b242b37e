//! Views: a tree as a directory, made of symbolic links to objects.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use flow_core::{Entry, Tree};

use crate::{
    cache::Cache,
    fault::fault,
    files::{Explain as _, fresh, remove_all},
};

impl Cache {
    /// A directory that holds a tree's files under their names, as symbolic links to its objects; made when it is not
    /// there, or not as it should be. Never written to by who uses it.
    ///
    /// # Errors
    /// An object is not in the cache; the cache cannot be written.
    pub fn view(&self, tree: &Tree) -> Result<PathBuf> {
        let inside = self.0.holds.enter()?;
        let digest = tree.digest();
        inside.hold(digest.0).explain(self.root(), || "note what this flow uses")?;
        let path = self.view_path(&digest);
        for _ in 0..10 {
            if self.view_is_good(&path, tree) {
                return Ok(path);
            }
            for entry in tree.entries() {
                if !self.entry_path(entry).exists() {
                    bail!("`{}` of the tree {} is not in the cache", entry.name, digest.short());
                }
            }
            let failed = || format!("make the view {}", path.display());
            let (temp, ()) = fresh(&self.tmp(), |temp| fs::create_dir(temp)).explain(self.root(), failed)?;
            let built = self.build_view(&temp, tree, &path);
            if built.is_err() {
                let _ = remove_all(&temp);
            }
            built.explain(self.root(), failed)?;
        }
        bail!("the view {} changes all the time: something writes into it", path.display())
    }

    /// Links are relative, so that the cache may be moved, or mounted elsewhere.
    fn link_of(&self, entry: &Entry) -> PathBuf {
        let depth = 3 + entry.name.matches('/').count();
        let mut link: PathBuf = std::iter::repeat_n("..", depth).collect();
        let object = self.entry_path(entry);
        link.push(object.strip_prefix(self.root()).unwrap_or(&object));
        link
    }

    fn build_view(&self, temp: &Path, tree: &Tree, path: &Path) -> io::Result<()> {
        for entry in tree.entries() {
            let link = temp.join(&entry.name);
            if entry.name.contains('/')
                && let Some(parent) = link.parent()
            {
                fs::create_dir_all(parent)?;
            }
            symlink(self.link_of(entry), link)?;
        }
        fault("view:built")?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        if fs::rename(temp, path).is_ok() {
            return Ok(());
        }
        if self.view_is_good(path, tree) {
            // Another process was faster.
            return remove_all(temp);
        }
        // Something is in the way that is no view of this tree. It is moved, not removed where it stands: no moment
        // in which half of it is there.
        let (old, ()) = fresh(&self.tmp(), |old| fs::create_dir(old))?;
        let _ = fs::rename(path, old.join("view"));
        remove_all(&old)?;
        match fs::rename(temp, path) {
            // Lost a race; the caller looks again.
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                remove_all(temp)
            }
            done => done,
        }
    }

    pub(crate) fn view_is_good(&self, path: &Path, tree: &Tree) -> bool {
        let all = tree.entries().iter().all(|entry| {
            let link = path.join(&entry.name);
            fs::read_link(&link).is_ok_and(|to| to == self.link_of(entry)) && link.exists()
        });
        all && count_leaves(path).is_some_and(|count| count == tree.entries().len())
    }
}

/// How many things that are no directories are under a directory.
fn count_leaves(dir: &Path) -> Option<usize> {
    let mut count = 0;
    for entry in fs::read_dir(dir).ok()? {
        let entry = entry.ok()?;
        count += if entry.file_type().ok()?.is_dir() { count_leaves(&entry.path())? } else { 1 };
    }
    Some(count)
}
