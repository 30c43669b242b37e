//! The files of a directory, links followed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use rustix::fs::FileType;

use crate::{Cache, proof::Meta};

/// A regular file under the walked directory.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its path in the directory, `/` between parts.
    pub name: String,
    pub path: PathBuf,
    /// Of the file itself, whatever links led there.
    pub meta: Meta,
    /// A symbolic link was on the way, so the file is not the directory's own.
    pub linked: bool,
}

/// All files under `root`, in order of name. Empty directories do not count. `listed` hears of each directory just before
/// it is listed.
///
/// # Errors
/// A special file, a link to nowhere or in a circle, a name that is not UTF-8, or what cannot be read.
pub(crate) fn walk(root: &Path, listed: &mut dyn FnMut(&Path, &Meta)) -> Result<Vec<Found>> {
    let meta = Meta::of(root, true).with_context(|| format!("cannot read {}", root.display()))?;
    let mut found = Vec::new();
    let mut above = vec![(meta.dev, meta.stat.ino)];
    listed(root, &meta);
    walk_into(root, "", false, &mut above, &mut found, listed)?;
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn walk_into(
    dir: &Path,
    prefix: &str,
    linked: bool,
    above: &mut Vec<(u64, u64)>,
    found: &mut Vec<Found>,
    listed: &mut dyn FnMut(&Path, &Meta),
) -> Result<()> {
    let unreadable = || format!("cannot list the directory {}", dir.display());
    for entry in fs::read_dir(dir).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let path = entry.path();
        let file_name = entry.file_name();
        let Some(name) = file_name.to_str() else {
            bail!("the name {} is not UTF-8: rename it", path.display());
        };
        let name = format!("{prefix}{name}");
        let is_link = entry.file_type().with_context(unreadable)?.is_symlink();
        let meta = Meta::of(&path, true).with_context(|| {
            let what = if is_link { "follow the link" } else { "read" };
            format!("cannot {what} {}", path.display())
        })?;
        let linked = linked || is_link;
        match meta.kind {
            FileType::RegularFile => found.push(Found { name, path, meta, linked }),
            FileType::Directory => {
                let id = (meta.dev, meta.stat.ino);
                if above.contains(&id) {
                    bail!("the link {} leads to a directory that it is in", path.display());
                }
                above.push(id);
                listed(&path, &meta);
                walk_into(&path, &format!("{name}/"), linked, above, found, listed)?;
                above.pop();
            }
            kind => bail!("{} is {}: only files and directories have content", path.display(), describe(kind)),
        }
    }
    Ok(())
}

impl Cache {
    /// Whether [`Cache::digest_path`] would take a path, as far as can be seen without reading a file: it refuses with the
    /// same words.
    ///
    /// # Errors
    /// As there.
    pub fn look_at(path: &Path) -> Result<()> {
        let path = &std::path::absolute(path).with_context(|| format!("`{}` is no path", path.display()))?;
        let meta = Meta::of(path, true).with_context(|| format!("cannot read {}", path.display()))?;
        match meta.kind {
            FileType::RegularFile if path.file_name().is_some_and(|name| name.to_str().is_none()) => {
                bail!("the name {} is not UTF-8: rename it", path.display())
            }
            FileType::RegularFile => Ok(()),
            FileType::Directory => walk(path, &mut |_, _| {}).map(drop),
            kind => bail!("{} is {}: only files and directories have content", path.display(), describe(kind)),
        }
    }
}

/// A special file, for people.
pub(crate) fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        _ => "a special file",
    }
}
