//! Which documents are the same: a union-find in a file, so that it may be larger than memory.

use std::{fs::OpenOptions, path::Path};

use anyhow::{Context, Result};
use memmap2::MmapMut;

/// The document is the same, letter for letter, as one before it.
const EXACT: u64 = 1 << 63;

/// Sets of documents; each is known by its first.
pub struct Sets {
    /// For each document the number of one before it in its set, or its own, and whether it is an exact duplicate. Stored
    /// as the difference to its own number, so that a new file, which is zeros, is every document by itself.
    links: MmapMut,
}

impl Sets {
    /// So many documents, each by itself.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new(path: &Path, documents: u64) -> Result<Self> {
        let cannot = || format!("cannot make {} for {documents} documents", path.display());
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).with_context(cannot)?;
        file.set_len(documents.max(1) * 8).with_context(cannot)?;
        // SAFETY: the file is new, in the stage's own scratch directory; nobody else writes to it or cuts it.
        let links = unsafe { MmapMut::map_mut(&file) }.with_context(cannot)?;
        Ok(Self { links })
    }

    fn link(&self, document: u64) -> u64 {
        let at = document as usize * 8;
        u64::from_le_bytes(self.links[at..at + 8].try_into().unwrap_or_default())
    }

    fn set(&mut self, document: u64, link: u64) {
        let at = document as usize * 8;
        self.links[at..at + 8].copy_from_slice(&link.to_le_bytes());
    }

    fn before(&self, document: u64) -> u64 {
        document - (self.link(document) & !EXACT)
    }

    /// The first of a document's set.
    pub fn first(&mut self, mut document: u64) -> u64 {
        loop {
            let before = self.before(document);
            let more = self.before(before);
            if before == more {
                return before;
            }
            // Halves the way for who comes next.
            let exact = self.link(document) & EXACT;
            self.set(document, (document - more) | exact);
            document = more;
        }
    }

    /// Two documents are the same.
    pub fn unite(&mut self, one: u64, other: u64) {
        let (one, other) = (self.first(one), self.first(other));
        let (first, second) = (one.min(other), one.max(other));
        let exact = self.link(second) & EXACT;
        self.set(second, (second - first) | exact);
    }

    /// A document is an exact duplicate of one before it.
    pub fn mark_exact(&mut self, document: u64) {
        self.set(document, self.link(document) | EXACT);
    }

    /// Whether it is.
    pub fn is_exact(&self, document: u64) -> bool {
        self.link(document) & EXACT != 0
    }
}
