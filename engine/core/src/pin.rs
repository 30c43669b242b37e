//! What a stage takes from outside: how `flow.lock` knows it, and what the stage tells of it.

use std::fmt;

use serde::Deserialize;

use crate::Digest;

/// Something named by a URL, whose content `flow.lock` pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The URL as the lock file spells it, without secrets.
    pub url: String,
}

/// What a URL gave, as `flow.lock` says it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pinned {
    /// The digest of the tree that the stage produced.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The server's entity tag: asks it later whether anything changed.
    #[serde(default)]
    pub etag: Option<String>,
    /// The commit that a repository's branch stood at: asks for the same again when the branch has moved on.
    #[serde(default)]
    pub revision: Option<String>,
}

/// What a stage says of its run besides its result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remarks {
    /// [`Pinned::etag`]
    pub etag: Option<String>,
    /// [`Pinned::revision`]
    pub revision: Option<String>,
    /// Whether it could use what an interrupted run had left, if it knows.
    pub resumed: Option<bool>,
}

/// The error of a stage that found what [`crate::Ctx::before`] says unchanged: the result is the one of then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unchanged;

impl fmt::Display for Unchanged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing changed since it was fetched")
    }
}

impl std::error::Error for Unchanged {}
