//! A directory that all share, also over NFS: files come by rename, nothing is locked, nothing is listed to be sure.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
    task::spawn_blocking,
};

use super::store::{Body, Failure, Store, Upload};
use crate::files::{TEMP, create_new, fresh, list, rename_making_parent};

const CHUNK: usize = 1 << 20;

/// What was not written to for so long was left by a killed process.
const LEFT: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
pub(crate) struct Dir {
    root: PathBuf,
    /// Directories that were looked through for what killed processes left.
    swept: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Dir {
    pub fn new(root: PathBuf) -> Self {
        Self { root, swept: Arc::default() }
    }

    /// What cannot be done with a file of it; that it is not there is no failure, but that the whole directory is not
    /// (a mount that is gone) is one.
    fn failure(&self, path: &Path, error: &io::Error) -> Failure {
        Failure::remote(format!("{}: {error}", path.display()))
    }

    fn absent<T>(&self) -> Result<Option<T>, Failure> {
        match self.root.metadata() {
            Ok(_) => Ok(None),
            Err(error) => Err(self.failure(&self.root, &error)),
        }
    }

    async fn write(
        &self,
        name: &str,
        fill: impl FnOnce(&mut fs::File) -> io::Result<()> + Send + 'static,
    ) -> Result<(), Failure> {
        let (root, path) = (self.root.clone(), self.root.join(name));
        let target = path.clone();
        let swept = Arc::clone(&self.swept);
        let written = spawn_blocking(move || {
            // Not made here when it is missing: a mount that is gone must not be filled underneath.
            root.metadata()?;
            let dir = target.parent().unwrap_or(&root);
            fs::create_dir_all(dir)?;
            let (temp, mut file) = fresh(dir, |temp| create_new(temp, 0o444))?;
            if swept.lock().unwrap_or_else(PoisonError::into_inner).insert(dir.to_owned()) {
                sweep(dir, &file);
            }
            let done =
                fill(&mut file).and_then(|()| file.sync_all()).and_then(|()| rename_making_parent(&temp, &target));
            if done.is_err() {
                let _ = fs::remove_file(&temp);
            }
            done
        });
        written.await.map_err(Failure::remote)?.map_err(|error| self.failure(&path, &error))
    }
}

/// Removes what killed processes left beside a file that was made just now. All times are the file server's.
fn sweep(dir: &Path, new: &fs::File) {
    let modified = |meta: fs::Metadata| meta.modified().ok();
    let Some(now) = new.metadata().ok().and_then(modified) else { return };
    for path in list(dir).unwrap_or_default() {
        let left = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMP))
            && path.symlink_metadata().is_ok_and(|meta| {
                let age = modified(meta).and_then(|time| now.duration_since(time).ok());
                age.is_some_and(|age| age > LEFT)
            });
        if left {
            // Another may be faster, and what is another's may have to stay.
            let _ = fs::remove_file(path);
        }
    }
}

#[async_trait]
impl Store for Dir {
    async fn get(&self, name: &str, from: u64) -> Result<Option<Body>, Failure> {
        let path = self.root.join(name);
        let mut file = match File::open(&path).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.absent(),
            Err(error) => return Err(self.failure(&path, &error)),
        };
        file.seek(io::SeekFrom::Start(from)).await.map_err(|error| self.failure(&path, &error))?;
        let stream = stream::unfold((file, path), |(mut file, path)| async move {
            let mut buffer = BytesMut::with_capacity(CHUNK);
            match file.read_buf(&mut buffer).await {
                Ok(0) => None,
                Ok(_) => Some((Ok(buffer.freeze()), (file, path))),
                Err(error) => Some((Err(Failure::remote(format!("{}: {error}", path.display()))), (file, path))),
            }
        });
        Ok(Some(Body { from, stream: stream.boxed() }))
    }

    async fn size(&self, name: &str) -> Result<Option<u64>, Failure> {
        let path = self.root.join(name);
        match tokio::fs::metadata(&path).await {
            Ok(meta) => Ok(Some(meta.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.absent(),
            Err(error) => Err(self.failure(&path, &error)),
        }
    }

    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), Failure> {
        self.write(name, move |file| io::Write::write_all(file, &bytes)).await
    }

    async fn put_file(&self, name: &str, upload: &Upload<'_>) -> Result<(), Failure> {
        let source = fs::File::open(upload.file).map_err(Failure::local)?;
        self.write(name, move |file| {
            if rustix::fs::ioctl_ficlone(&*file, &source).is_ok() {
                return Ok(());
            }
            io::copy(&mut &source, file).map(|_| ())
        })
        .await?;
        (upload.progress)(upload.size);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, Failure> {
        let (root, prefix) = (self.root.clone(), prefix.to_owned());
        let walked = spawn_blocking(move || {
            root.metadata().with_context(|| format!("cannot list {}", root.display()))?;
            let mut names = Vec::new();
            let mut stack = vec![root.join(prefix.trim_end_matches('/'))];
            while let Some(dir) = stack.pop() {
                for path in list(&dir)? {
                    // Links are not followed: they may lead around in a ring.
                    if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
                        stack.push(path);
                    } else if let Some(name) = path.strip_prefix(&root).ok().and_then(Path::to_str)
                        && !name.contains(TEMP)
                    {
                        names.push(name.to_owned());
                    }
                }
            }
            anyhow::Ok(names)
        });
        walked.await.map_err(Failure::remote)?.map_err(|error| Failure::remote(format!("{error:#}")))
    }
}
