//! What is known of a file without reading it, reading it when nothing is, and remembering it.

use std::{fs::OpenOptions, io, os::unix::fs::OpenOptionsExt as _, path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail};
use flow_core::{Digest, Entry, Tree};
use rayon::prelude::*;
use rustix::{fs::OFlags, io::Errno};

use crate::{
    cache::Cache,
    hash::hash_file,
    index::WORTH,
    proof::{Id, Meta, Proof, Stat, wait_a_tick},
    walk::{describe, walk},
};

/// From so many files on, work is spread over threads.
pub(crate) const MANY: usize = 32;
/// How often a file that changes under the reader is read again.
const ATTEMPTS: u32 = 3;

/// A file that was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadFile {
    pub digest: Digest,
    pub stat: Stat,
    /// Why it need not be read again, if that can be said already.
    pub proof: Option<Proof>,
}

/// What an entry's object is.
#[derive(Debug)]
pub(crate) enum Object {
    Good,
    Missing,
    Damaged(String),
}

/// Hashes a file. It is read again when it changed meanwhile.
pub(crate) fn read_file(path: &Path, synced: bool) -> io::Result<ReadFile> {
    for _ in 0..ATTEMPTS {
        // Opening a pipe that took the file's place must not block.
        let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
        let meta = Meta::of_file(&file)?;
        if !meta.is_file() {
            return Err(io::Error::other(format!("it is {}", describe(meta.kind))));
        }
        let stat = meta.stat;
        let began = wait_a_tick(&stat);
        match hash_file(&file, stat.size) {
            Ok(digest) if Meta::of_file(&file)?.stat == stat => {
                return Ok(ReadFile { digest, stat, proof: Proof::new(stat, digest, began, synced) });
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other("it changes while it is read"))
}

impl Cache {
    /// The digest of a file or directory's content: a tree with its files, or with one entry named by the file name.
    /// Links are followed. What is unchanged by size, times and inode since it was last read is not read again.
    ///
    /// # Errors
    /// Something cannot be read, is no file or directory, or has a name that is not UTF-8.
    pub fn digest_path(&self, path: &Path) -> Result<Tree> {
        let path = &std::path::absolute(path).with_context(|| format!("`{}` is no path", path.display()))?;
        let meta = Meta::of(path, true).with_context(|| format!("cannot read {}", path.display()))?;
        let entry = |name: String, path: &Path, meta: &Meta| -> Result<Entry> {
            let (digest, size) = self
                .digest_of(Id::path(path), path, meta, true)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Ok(Entry { name, digest, size, executable: meta.executable() })
        };
        let entries = if meta.is_file() {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                bail!("the name {} is not UTF-8: rename it", path.display());
            };
            vec![entry(name.to_owned(), path, &meta)?]
        } else if meta.kind == rustix::fs::FileType::Directory {
            let found = walk(path, &mut |dir, meta| self.note(dir, true, Some(meta), None))?;
            if found.len() < MANY {
                found.into_iter().map(|file| entry(file.name, &file.path, &file.meta)).collect::<Result<_>>()?
            } else {
                found.into_par_iter().map(|file| entry(file.name, &file.path, &file.meta)).collect::<Result<_>>()?
            }
        } else {
            bail!("{} is {}: only files and directories have content", path.display(), describe(meta.kind));
        };
        Tree::new(entries).map_err(anyhow::Error::msg)
    }

    /// The digest and length of a file whose `meta` was just asked for, links followed or not.
    pub(crate) fn digest_of(&self, id: Id, path: &Path, meta: &Meta, follow: bool) -> io::Result<(Digest, u64)> {
        let Some(digest) = self.known(id, &meta.stat) else {
            let read = read_file(path, false)?;
            self.remember(id, path, read.proof);
            let meta = Meta { stat: read.stat, ..*meta };
            self.note(path, follow, Some(&meta), read.proof.is_none().then_some(read.digest));
            return Ok((read.digest, read.stat.size));
        };
        self.note(path, follow, Some(meta), None);
        Ok((digest, meta.stat.size))
    }

    /// What a file with this stat was found to be.
    pub(crate) fn known(&self, id: Id, stat: &Stat) -> Option<Digest> {
        let proof = self.memo().proof(id);
        if let Some(proof) = proof.filter(|proof| proof.holds(stat)) {
            return Some(proof.digest);
        }
        if stat.size < WORTH {
            return None;
        }
        let proof = self.0.index.get(id, &|text| self.warn(text)).filter(|proof| proof.holds(stat))?;
        self.memo().put_proof(id, proof);
        Some(proof.digest)
    }

    /// Remembers what a file is, if that can be believed already; else to look again before the memo is saved.
    pub(crate) fn remember(&self, id: Id, path: &Path, proof: Option<Proof>) {
        let Some(proof) = proof else {
            self.memo().fresh.insert(id, path.to_owned());
            return;
        };
        self.memo().put_proof(id, proof);
        if proof.stat.size >= WORTH {
            self.0.index.put(id, &proof, &|text| self.warn(text));
        }
    }

    /// Whether an entry's object is there and is what it should be: trusted by its stat, or read.
    ///
    /// # Errors
    /// It cannot be told.
    pub(crate) fn check_object(&self, entry: &Entry) -> Result<Object> {
        let path = self.entry_path(entry);
        let failed = || format!("cannot read the object {}", path.display());
        let Some(meta) = Meta::find(&path, false).with_context(failed)? else { return Ok(Object::Missing) };
        if !meta.is_file() {
            return Ok(Object::Damaged(format!("it is {}", describe(meta.kind))));
        }
        if meta.stat.size != entry.size {
            let (is, should) = (meta.stat.size, entry.size);
            return Ok(Object::Damaged(format!("it has {is} bytes and should have {should}")));
        }
        match self.digest_of(Id::object(entry), &path, &meta, false) {
            Ok((digest, _)) if digest == entry.digest => Ok(Object::Good),
            Ok((digest, _)) => Ok(Object::Damaged(format!("its content is {}", digest.short()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Object::Missing),
            // The disk lost it. Other errors, as too many open files, say nothing of the object.
            Err(e) if Errno::from_io_error(&e) == Some(Errno::IO) => Ok(Object::Damaged(format!("reading fails: {e}"))),
            Err(e) => Err(e).with_context(failed),
        }
    }

    /// Whether the cache has the bytes of an entry.
    #[must_use]
    pub fn has(&self, entry: &Entry) -> bool {
        matches!(self.check_object(entry), Ok(Object::Good))
    }

    /// Whether all objects of a tree whose view was taken, and the view, are what they should be: trusted by their stat, or
    /// read. Damaged objects are put in quarantine, and told in [`Cache::take_warnings`]; `of` says whose they are.
    ///
    /// # Errors
    /// It cannot be told.
    pub fn is_intact(&self, tree: &Arc<Tree>, of: &str) -> Result<bool> {
        Ok(self.objects_good(tree, &|| format!("`{of}`"))? && self.view_is_good(&self.view_path(&tree.digest()), tree))
    }

    /// Whether all objects of a tree are good. Damaged ones are put in quarantine; `of` says whose they are.
    pub(crate) fn objects_good(&self, tree: &Arc<Tree>, of: &dyn Fn() -> String) -> Result<bool> {
        let entries = tree.entries();
        let states: Vec<Object> = if entries.len() < MANY {
            entries.iter().map(|entry| self.check_object(entry)).collect::<Result<_>>()?
        } else {
            entries.par_iter().map(|entry| self.check_object(entry)).collect::<Result<_>>()?
        };
        let mut good = true;
        for (entry, state) in entries.iter().zip(states) {
            let path = self.entry_path(entry);
            match state {
                Object::Good => continue,
                Object::Missing => {
                    self.warn_once(format!("{} of {} is gone: it has to be made again", path.display(), of()));
                }
                Object::Damaged(why) => {
                    if let Some(went) = self.quarantine(&path) {
                        let (path, of) = (path.display(), of());
                        self.warn(format!("{path} of {of} is damaged ({why}), {went}: it has to be made again"));
                    }
                }
            }
            good = false;
        }
        Ok(good)
    }
}
