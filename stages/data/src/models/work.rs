//! [`Work`]: the files of a conversion in the making. They lie in the scratch directory until all are there; each that is whole
//! gets a mark, and a conversion that was killed goes on with those that have one.

use std::{
    collections::{HashSet, VecDeque},
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{Scope, ScopedJoinHandle},
};

use anyhow::{Context, Result};
use flow_core::Ctx;

/// Files that wait for the disk at the same time.
const MOST_SYNCING: usize = 8;

/// Files that are being written.
#[derive(Debug)]
pub struct Work {
    files: PathBuf,
    marks: PathBuf,
}

impl Work {
    /// Goes on in a scratch directory.
    ///
    /// # Errors
    /// It cannot be written to.
    pub fn begin(scratch: &Path) -> Result<Self> {
        let work = Self { files: scratch.join("files"), marks: scratch.join("whole") };
        for dir in [&work.files, &work.marks] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(work)
    }

    /// Where the files are written: what lies here in the end is the result.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.files
    }

    /// The names of those in a directory that an earlier run completed. Its length is in the mark: one that was touched since
    /// does not count.
    #[must_use]
    pub fn whole(&self, dir: &Path) -> HashSet<String> {
        let whole = |name: &String| {
            let len = fs::read_to_string(self.marks.join(name)).ok()?.parse::<u64>().ok()?;
            (dir.join(name).metadata().ok()?.len() == len).then_some(())
        };
        marks(&self.marks).into_iter().filter(|name| whole(name).is_some()).collect()
    }

    /// Does work that completes files one after the other: they are hashed and brought to the disk beside it.
    ///
    /// # Errors
    /// The work's, or a file does not get to the disk.
    pub fn syncing<'env>(
        &'env self,
        ctx: &'env Ctx<'env>,
        work: impl FnOnce(&mut Syncing<'_, 'env>) -> Result<()>,
    ) -> Result<()> {
        std::thread::scope(|scope| {
            let mut syncing = Syncing { work: self, ctx, scope, threads: VecDeque::new() };
            work(&mut syncing)?;
            syncing.threads.into_iter().try_for_each(joined)
        })
    }

    /// Marks a file as whole, once its bytes are on the disk.
    fn mark(&self, name: &str, file: &File) -> Result<()> {
        let write = || -> std::io::Result<()> {
            file.sync_all()?;
            fs::write(self.marks.join(name), file.metadata()?.len().to_string())
        };
        write().with_context(|| format!("cannot write {name}"))
    }

    /// Bytes on the disk that need no more room.
    #[must_use]
    pub fn has(&self, dir: &Path) -> u64 {
        let files = fs::read_dir(dir).into_iter().flatten().flatten();
        files
            .filter_map(|file| file.metadata().ok())
            .filter(fs::Metadata::is_file)
            .map(|meta| meta.blocks() * 512)
            .sum()
    }

    /// Gives the files their places in the result.
    ///
    /// # Errors
    /// One cannot be moved.
    pub fn deliver(self, out: &Path) -> Result<()> {
        let entries = fs::read_dir(&self.files).with_context(|| format!("cannot read {}", self.files.display()))?;
        for entry in entries {
            let entry = entry?;
            fs::rename(entry.path(), out.join(entry.file_name()))
                .with_context(|| format!("cannot move {} to {}", entry.path().display(), out.display()))?;
        }
        // What the marks are of is no longer here.
        fs::remove_dir_all(&self.marks)
            .and_then(|()| fs::remove_dir(&self.files))
            .with_context(|| format!("cannot remove {}", self.marks.display()))
    }

    /// What there is in a scratch directory, for people.
    #[must_use]
    pub fn left(scratch: &Path) -> String {
        match marks(&scratch.join("whole")).len() {
            0 => "no file is whole yet".to_owned(),
            1 => "behind 1 file that is whole".to_owned(),
            n => format!("behind {n} files that are whole"),
        }
    }
}

/// Files on their way to the disk.
pub struct Syncing<'scope, 'env> {
    work: &'env Work,
    ctx: &'env Ctx<'env>,
    scope: &'scope Scope<'scope, 'env>,
    threads: VecDeque<ScopedJoinHandle<'scope, Result<()>>>,
}

impl Syncing<'_, '_> {
    /// All bytes of this file of that directory were written.
    ///
    /// # Errors
    /// An earlier one did not get to the disk.
    pub fn completed(&mut self, dir: &Path, name: String, file: Arc<File>) -> Result<()> {
        if self.threads.len() >= MOST_SYNCING {
            self.threads.pop_front().map_or(Ok(()), joined)?;
        }
        let (work, ctx, path) = (self.work, self.ctx, dir.join(&name));
        self.threads.push_back(self.scope.spawn(move || {
            ctx.is_whole(&path);
            work.mark(&name, &file)
        }));
        Ok(())
    }
}

fn joined(thread: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn marks(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
