//! Object stores: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage.
//!
//! Credentials come from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`), the machine's own identity where it has one,
//! and the usual files; never from a pipeline or a setting.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{
    BackoffConfig, ClientOptions, Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::{
    RemoteConfig, STALL,
    store::{Body, Failure, Kind, Store, Upload},
};
use crate::files::write_atomic;

/// A part of an upload, unless there would be too many.
const PART: u64 = 8 << 20;
const MOST_PARTS: u64 = 9000;
/// Parts of one object on their way at the same time, and of all: they are in memory.
const PARTS_AT_ONCE: usize = 4;
const PARTS_OF_ALL: usize = 12;

pub(crate) struct Bucket {
    store: Arc<dyn ObjectStore>,
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
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(3),
                base: 2.0,
            },
            max_retries: 3,
            retry_timeout: Duration::from_secs(30),
        };
        let plain = config.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let client = ClientOptions::new()
            .with_allow_http(true)
            // A machine without certificates still speaks plain HTTP.
            .with_no_system_certificates(plain)
            .with_timeout_disabled()
            .with_connect_timeout(Duration::from_secs(5))
            .with_read_timeout(STALL);
        let (store, parts): (Arc<dyn ObjectStore>, Arc<dyn MultipartStore>) = match scheme {
            "s3" => {
                let mut builder = AmazonS3Builder::from_env();
                for (key, value) in aws_files() {
                    if builder.get_config_value(&key).is_none() {
                        builder = builder.with_config(key, value);
                    }
                }
                builder = builder.with_bucket_name(bucket).with_retry(retry).with_client_options(client);
                if let Some(endpoint) = &config.endpoint {
                    builder = builder.with_endpoint(endpoint);
                }
                if let Some(region) = &config.region {
                    builder = builder.with_region(region);
                }
                let store = Arc::new(builder.build()?);
                (Arc::clone(&store) as _, store)
            }
            "gs" => {
                let mut builder = GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(bucket)
                    .with_retry(retry)
                    .with_client_options(client);
                if let Some(endpoint) = &config.endpoint {
                    builder = builder.with_base_url(endpoint);
                }
                let store = Arc::new(builder.build()?);
                (Arc::clone(&store) as _, store)
            }
            "az" => {
                let mut builder = MicrosoftAzureBuilder::from_env()
                    .with_container_name(bucket)
                    .with_retry(retry)
                    .with_client_options(client);
                if let Some(endpoint) = &config.endpoint {
                    builder = builder.with_endpoint(endpoint.clone());
                }
                let store = Arc::new(builder.build()?);
                (Arc::clone(&store) as _, store)
            }
            _ => bail!("`{scheme}` is no object store"),
        };
        let prefix = Path::parse(prefix).context("the prefix is no path")?;
        Ok(Self { store, parts, scheme, prefix, in_memory: Semaphore::new(PARTS_OF_ALL) })
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
            let sent = self.parts.put_part(path, id, index, Bytes::from(bytes).into()).await.map_err(failed)?;
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
        self.store.put(&self.path(name), bytes.into()).await.map_err(|error| self.failure(&error)).map(|_| ())
    }

    async fn put_file(&self, name: &str, upload: &Upload<'_>) -> Result<(), Failure> {
        let path = self.path(name);
        if upload.size > PART {
            return self.send_parts(&path, upload).await;
        }
        let _permit = self.in_memory.acquire().await.map_err(Failure::remote)?;
        let bytes = tokio::fs::read(upload.file).await.map_err(Failure::local)?;
        self.store.put(&path, Bytes::from(bytes).into()).await.map_err(|error| self.failure(&error))?;
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

/// What `~/.aws/credentials` and `~/.aws/config` say of `$AWS_PROFILE`.
fn aws_files() -> Vec<(AmazonS3ConfigKey, String)> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let profile = variable("AWS_PROFILE").unwrap_or_else(|| "default".into());
    let file = |named: &str, usual: &str| {
        variable(named).map(PathBuf::from).or_else(|| Some(PathBuf::from(variable("HOME")?).join(".aws").join(usual)))
    };
    let mut found = Vec::new();
    let sections = [profile.clone(), format!("profile {profile}")];
    for path in [file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), file("AWS_CONFIG_FILE", "config")] {
        let mut text = String::new();
        let read =
            path.and_then(|path| fs::File::open(path).ok()).and_then(|mut file| file.read_to_string(&mut text).ok());
        if read.is_some() {
            found.extend(ini(&text, &sections));
        }
    }
    found
}

fn ini(text: &str, sections: &[String]) -> Vec<(AmazonS3ConfigKey, String)> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = sections.iter().any(|wanted| wanted == section.trim());
        } else if inside && let Some((key, value)) = line.split_once('=') {
            let key = match key.trim() {
                "aws_access_key_id" => AmazonS3ConfigKey::AccessKeyId,
                "aws_secret_access_key" => AmazonS3ConfigKey::SecretAccessKey,
                "aws_session_token" => AmazonS3ConfigKey::Token,
                "region" => AmazonS3ConfigKey::Region,
                "endpoint_url" => AmazonS3ConfigKey::Endpoint,
                _ => continue,
            };
            found.push((key, value.trim().to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_files_are_read() {
        let text = "[other]\nregion = no\n[ default ]\naws_access_key_id=AK\n# x\naws_secret_access_key = s=k\n[more]\nregion=no";
        let found = ini(text, &["default".into()]);
        assert_eq!(
            found,
            [(AmazonS3ConfigKey::AccessKeyId, "AK".into()), (AmazonS3ConfigKey::SecretAccessKey, "s=k".into())]
        );
    }
}
