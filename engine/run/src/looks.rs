//! What is looked at on the disk while a pipeline is loaded, noted for [`crate::unchanged`].
//!
//! The loader has no cache to tell. So it notes here, by thread, whenever somebody collects; whoever reads a file or
//! asks whether one is there, and decides by the answer, has to say so.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
};

use flow_cache::Cache;
use flow_core::Digest;

/// A path that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// It was read, and had this content.
    Read(PathBuf, Digest),
    /// Nothing was there; or (`Some`) a directory, or something that is none.
    Found(PathBuf, Option<bool>),
}

thread_local! {
    static LOOKS: RefCell<Option<Vec<Look>>> = const { RefCell::new(None) };
}

/// Collects what `act` looks at on this thread.
pub fn collect<T>(act: impl FnOnce() -> T) -> (T, Vec<Look>) {
    let before = LOOKS.replace(Some(Vec::new()));
    let done = act();
    (done, LOOKS.replace(before).unwrap_or_default())
}

/// Notes what was collected on another thread.
pub fn add(more: Vec<Look>) {
    LOOKS.with_borrow_mut(|looks| looks.as_mut().map(|looks| looks.extend(more)));
}

/// Notes that a file was read, and had these bytes.
pub fn read(path: &Path, bytes: &[u8]) {
    note(|| Look::Read(path.to_owned(), Digest::of(bytes)));
}

/// Notes whether something is at a path: a directory, or something that is none.
pub fn found(path: &Path, directory: Option<bool>) {
    note(|| Look::Found(path.to_owned(), directory));
}

fn note(look: impl FnOnce() -> Look) {
    LOOKS.with_borrow_mut(|looks| looks.as_mut().map(|looks| looks.push(look())));
}

impl Look {
    /// Makes it part of the witness that `cache` is taking.
    pub fn attest(&self, cache: &Cache) {
        match self {
            Self::Read(path, digest) => cache.saw_file(path, digest),
            Self::Found(path, directory) => cache.saw(path, *directory),
        }
    }
}
