//! Object stores: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{
    Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::{
    RemoteConfig, STALL, provider,
    store::{Body, Failure, Kind, Store, Upload},
};
use crate::files::write_atomic;

/// A part of an upload, unless there would be too many.
const PART: u64 = 8 << 20;
const MOST_PARTS: u64 = 9000;
/// Parts of one object on their way at the same time, and of all: they are in memory.
const PARTS_AT_ONCE: usize = 4;
const PARTS_OF_ALL: usize = 12;
/// Bytes a second with which one of them may go up.
const SLOWEST: u64 = 16 << 10;

pub(crate) struct Bucket {
    store: Arc<dyn ObjectStore>,
    /// What is sent takes the time it takes: nothing comes back meanwhile.
    writes: Arc<dyn ObjectStore>,
    parts: Arc<dyn MultipartStore>,
    scheme: &'static str,
    prefix: Path,
    in_memory: Semaphore,
}

/// What is remembered of an upload that is not complete.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// Where: another prefix or bucket is another upload.
    name: String,
    /// What: compressing again may give other bytes.
    content: String,
    part: u64,
    id: String,
    /// Part → what the store calls it.
    done: BTreeMap<usize, String>,
}

impl Note {
    fn read(path: &std::path::Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Only a memo: without it the next run sends everything again.
    fn write(&self, path: &std::path::Path) {
        let (Ok(text), Some(dir)) = (serde_json::to_vec(self), path.parent()) else { return };
        let _ = fs::create_dir_all(dir).and_then(|()| write_atomic(dir, path, &text, false, "team:upload"));
    }
}

impl Bucket {
    pub fn new(scheme: &'static str, bucket: &str, prefix: &str, config: &RemoteConfig) -> Result<Self> {
        let ((store, _), (writes, parts)) =
            (provider::build(scheme, bucket, config, Some(STALL))?, provider::build(scheme, bucket, config, None)?);
        let prefix = Path::parse(prefix).context("the prefix is no path")?;
        Ok(Self { store, writes, parts, scheme, prefix, in_memory: Semaphore::new(PARTS_OF_ALL) })
    }

    /// With what to do about it, where that is known: what stores say is long and not for people.
    fn failure(&self, error: &Error) -> Failure {
        let text = error.to_string();
        let credentials = match self.scheme {
            "s3" => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials",
            "gs" => "GOOGLE_SERVICE_ACCOUNT",
            _ => "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        };
        let has = |signs: &[&str]| signs.iter().any(|sign| text.contains(sign));
        let advice = if has(&["RequestTimeTooSkewed"]) {
            "this machine's clock is not the server's: set it right".to_owned()
        } else if has(&["NoSuchBucket", "ContainerNotFound"]) {
            "there is no such bucket".to_owned()
        } else if has(&["169.254.169.254", "metadata.google.internal"]) {
            format!("there are no credentials: set {credentials}")
        } else if matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. })
            || has(&["401 Unauthorized", "403 Forbidden"])
        {
            format!("it refuses these credentials: check {credentials}")
        } else {
            return Failure::remote(text);
        };
        Failure::remote(format!("{advice} ({text})"))
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), Path::join)
    }

    /// Waits for something that is sent as long as a slow line that others use too may take.
    async fn patiently<T>(&self, size: u64, sent: impl Future<Output = T>) -> Result<T, Failure> {
        let patience = STALL + Duration::from_secs(size / SLOWEST);
        let seconds = patience.as_secs();
        let late = |_| Failure::remote(format!("{size} bytes could not be sent within {seconds} s"));
        tokio::time::timeout(patience, sent).await.map_err(late)
    }

    /// A bucket that is not there is not an empty one.
    fn absent<T>(&self, error: &Error) -> Result<Option<T>, Failure> {
        let missing = ["NoSuchBucket", "ContainerNotFound"].iter().any(|sign| error.to_string().contains(sign));
        if missing { Err(self.failure(error)) } else { Ok(None) }
    }

    /// Goes on with an upload that was begun, if it is of the same bytes; begins one else.
    async fn send_parts(&self, path: &Path, upload: &Upload<'_>) -> Result<(), Failure> {
        let content = hash(upload.file).map_err(Failure::local)?;
        let name = path.to_string();
        let left = Note::read(upload.note);
        if let Some(note) = left.filter(|note| note.name == name && note.content == content && note.part > 0) {
            match self.finish_parts(path, upload, note).await {
                Err(Failure { kind: Kind::Wrong, .. }) => {}
                done => return done,
            }
        }
        let part = PART.max(upload.size.div_ceil(MOST_PARTS).next_multiple_of(1 << 20));
        let id = self.parts.create_multipart(path).await.map_err(|error| self.failure(&error))?;
        self.abandon(upload.note).await;
        let note = Note { name, content, part, id, done: BTreeMap::new() };
        // From its first instant: what nobody knows of stays in the store for ever.
        note.write(upload.note);
        // A refusal is no fault of these bytes.
        self.finish_parts(path, upload, note).await.map_err(|failure| match failure.kind {
            Kind::Wrong => Failure { kind: Kind::Remote, ..failure },
            _ => failure,
        })
    }

    async fn finish_parts(&self, path: &Path, upload: &Upload<'_>, note: Note) -> Result<(), Failure> {
        let file = fs::File::open(upload.file).map_err(Failure::local)?;
        let (part, id) = (note.part, note.id.clone());
        let count = upload.size.div_ceil(part) as usize;
        let open: Vec<usize> = (0..count).filter(|index| !note.done.contains_key(index)).collect();
        let note = Mutex::new(note);
        let (file, id, noted) = (&file, &id, &note);
        let failed = |error: Error| match is_refused(&error) {
            true => Failure { kind: Kind::Wrong, ..self.failure(&error) },
            false => self.failure(&error),
        };
        stream::iter(open.into_iter().map(|index| async move {
            let _permit = self.in_memory.acquire().await.map_err(Failure::remote)?;
            let start = index as u64 * part;
            let mut bytes = vec![0; part.min(upload.size - start) as usize];
            file.read_exact_at(&mut bytes, start).map_err(Failure::local)?;
            let size = bytes.len() as u64;
            let sent = self.parts.put_part(path, id, index, Bytes::from(bytes).into());
            let sent = self.patiently(size, sent).await?.map_err(failed)?;
            let mut note = noted.lock().unwrap_or_else(PoisonError::into_inner);
            note.done.insert(index, sent.content_id);
            note.write(upload.note);
            (upload.progress)(size);
            Ok::<(), Failure>(())
        }))
        .buffer_unordered(PARTS_AT_ONCE)
        .try_collect::<()>()
        .await?;
        let note = note.into_inner().unwrap_or_else(PoisonError::into_inner);
        let parts = note.done.into_values().map(|content_id| PartId { content_id }).collect();
        self.parts.complete_multipart(path, id, parts).await.map_err(failed)?;
        let _ = fs::remove_file(upload.note);
        Ok(())
    }
}

fn hash(file: &std::path::Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(file)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[async_trait]
impl Store for Bucket {
    async fn get(&self, name: &str, from: u64) -> Result<Option<Body>, Failure> {
        let options = GetOptions { range: (from > 0).then_some(GetRange::Offset(from)), ..GetOptions::default() };
        match self.store.get_opts(&self.path(name), options).await {
            Ok(got) => {
                let from = got.range.start;
                Ok(Some(Body { from, stream: got.into_stream().map_err(Failure::remote).boxed() }))
            }
            Err(error @ Error::NotFound { .. }) => self.absent(&error),
            // Nothing lies behind what we have: there is no error of its own for that.
            Err(error) if from > 0 && is_behind_the_end(&error) => {
                Ok(Some(Body { from, stream: stream::empty().boxed() }))
            }
            Err(error) => Err(self.failure(&error)),
        }
    }

    async fn size(&self, name: &str) -> Result<Option<u64>, Failure> {
        match self.store.head(&self.path(name)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(error @ Error::NotFound { .. }) => self.absent(&error),
            Err(error) => Err(self.failure(&error)),
        }
    }

    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), Failure> {
        let path = self.path(name);
        let size = bytes.len() as u64;
        self.patiently(size, self.writes.put(&path, bytes.into())).await?.map_err(|error| self.failure(&error))?;
        Ok(())
    }

    async fn put_file(&self, name: &str, upload: &Upload<'_>) -> Result<(), Failure> {
        let path = self.path(name);
        if upload.size > PART {
            return self.send_parts(&path, upload).await;
        }
        let _permit = self.in_memory.acquire().await.map_err(Failure::remote)?;
        let bytes = tokio::fs::read(upload.file).await.map_err(Failure::local)?;
        let sent = self.writes.put(&path, Bytes::from(bytes).into());
        self.patiently(upload.size, sent).await?.map_err(|error| self.failure(&error))?;
        (upload.progress)(upload.size);
        Ok(())
    }

    async fn abandon(&self, path: &std::path::Path) {
        let Some(note) = Note::read(path) else { return };
        // What cannot be taken back now is the store's to clean up: it has rules for that.
        let _ = self.parts.abort_multipart(&Path::from(note.name), &note.id).await;
        let _ = fs::remove_file(path);
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, Failure> {
        let prefix = self.path(prefix.trim_end_matches('/'));
        let cut = self.prefix.as_ref().len();
        let names = self.store.list(Some(&prefix));
        names
            .map_ok(|meta| meta.location.as_ref()[cut..].trim_start_matches('/').to_owned())
            .try_collect()
            .await
            .map_err(|error| self.failure(&error))
    }
}

/// Whether the store refuses to go on with an upload: each says in its own way that it forgot it.
fn is_refused(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. } | Error::PermissionDenied { .. })
        || error.to_string().contains("non-2xx status code: 4")
}

fn is_behind_the_end(error: &Error) -> bool {
    let text = error.to_string();
    ["416", "InvalidRange", "Wanted range starting at"].iter().any(|sign| text.contains(sign))
}
