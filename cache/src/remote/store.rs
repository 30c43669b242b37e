//! [`Store`]: what a team's cache must be able to do, and no more: names to bytes.

use std::{fmt, path::Path};

use anyhow::Error;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use super::location::tame;

/// A place for bytes under names such as `objects/ab/…`. What is there under a name is there whole; it may be replaced
/// by the same.
#[async_trait]
pub(crate) trait Store: Send + Sync {
    /// The bytes of a name from `from` on; `None` when it is not there.
    async fn get(&self, name: &str, from: u64) -> Result<Option<Body>, Failure>;

    /// The length of what is there under a name.
    async fn size(&self, name: &str) -> Result<Option<u64>, Failure>;

    /// Puts bytes there.
    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), Failure>;

    /// Puts a file there.
    async fn put_file(&self, name: &str, upload: &Upload<'_>) -> Result<(), Failure>;

    /// Forgets what was begun to be put there and noted.
    async fn abandon(&self, _note: &Path) {}

    /// Whether half of what was put may lie there when somebody is killed.
    fn leaves_halves(&self) -> bool {
        false
    }

    /// The names that begin so.
    async fn list(&self, prefix: &str) -> Result<Vec<String>, Failure>;
}

/// What is there, as it comes.
pub(crate) struct Body {
    /// Where it really begins: a server may not know ranges, and then sends all.
    pub from: u64,
    pub stream: BoxStream<'static, Result<Bytes, Failure>>,
}

/// A file that goes up.
pub(crate) struct Upload<'a> {
    pub file: &'a Path,
    pub size: u64,
    /// Where a store may note how far it is, for the next try to go on from.
    pub note: &'a Path,
    /// Told how many bytes went up since it was told the last time.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// Why something could not be done.
#[derive(Debug)]
pub(crate) struct Failure {
    pub kind: Kind,
    pub error: Error,
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The remote cannot be reached, or refuses.
    Remote,
    /// What it has is not what it should be, or is gone.
    Wrong,
    /// This machine: a full disk.
    Local,
    /// Asked to stop.
    Cancelled,
}

impl Failure {
    /// The remote does not do what it should; what it said is made fit for people.
    pub fn remote(error: impl fmt::Display) -> Self {
        Self { kind: Kind::Remote, error: Error::msg(tame(&error.to_string())) }
    }

    pub fn local(error: impl Into<Error>) -> Self {
        Self { kind: Kind::Local, error: error.into() }
    }

    pub fn wrong(error: impl fmt::Display) -> Self {
        Self { kind: Kind::Wrong, error: Error::msg(error.to_string()) }
    }

    pub fn cancelled() -> Self {
        Self { kind: Kind::Cancelled, error: flow_core::Cancelled.into() }
    }
}
