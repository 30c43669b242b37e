//! [`Tree`]: what a node produces, a directory by content.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// One file of a [`Tree`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The path inside the tree: `/` between parts, never absolute, no `.` or `..` ([`is_safe_name`]).
    pub name: String,
    /// BLAKE3 of the file's bytes.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
    /// The file may be executed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}

/// A directory by content: files with their digests, sorted by name. A single file is a tree of one entry.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tree {
    entries: Vec<Entry>,
}

impl Tree {
    /// A tree of these files, in whatever order they come.
    ///
    /// # Errors
    /// A name is unsafe, or there twice.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, String> {
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if let Some(entry) = entries.iter().find(|entry| !is_safe_name(&entry.name)) {
            return Err(format!("`{}` is not a name that may stand in a tree", entry.name));
        }
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(format!("`{}` is in the tree twice", pair[0].name));
        }
        Ok(Self { entries })
    }

    /// The files, sorted by name.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The file of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok().map(|i| &self.entries[i])
    }

    /// The files of these names, as far as they are there; all if no name is given, or none of them is there: a file that
    /// is named itself may be called anything. `*.gz` is every name that ends so.
    #[must_use]
    pub fn only(&self, names: &[&str]) -> Cow<'_, Self> {
        if names.is_empty() {
            return Cow::Borrowed(self);
        }
        let wanted = |entry: &&Entry| {
            names.iter().any(|name| match name.strip_prefix('*') {
                Some(ending) => entry.name.ends_with(ending),
                None => entry.name == *name,
            })
        };
        let entries: Vec<Entry> = self.entries.iter().filter(wanted).cloned().collect();
        if entries.is_empty() { Cow::Borrowed(self) } else { Cow::Owned(Self { entries }) }
    }

    /// The sum of the files' lengths in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.entries.iter().map(|entry| entry.size).sum()
    }

    /// The digest of the tree: BLAKE3 over, for each file in order of name, the name's length (u32, little-endian),
    /// the name, one byte for executable, and the file's digest. Sizes follow from content and do not enter.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"flow tree 1\n");
        for entry in &self.entries {
            // A name longer than 4 GiB cannot exist in a file system.
            hasher.update(&(entry.name.len() as u32).to_le_bytes());
            hasher.update(entry.name.as_bytes());
            hasher.update(&[u8::from(entry.executable)]);
            hasher.update(&entry.digest.0);
        }
        Digest(*hasher.finalize().as_bytes())
    }
}

/// A relative path that cannot leave the directory it is joined to: non-empty parts between `/`,
/// none of them `.` or `..`, no NUL, no backslash-as-separator tricks needed on Unix.
#[must_use]
pub fn is_safe_name(name: &str) -> bool {
    !name.is_empty()
        && !name.contains('\0')
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, content: &[u8]) -> Entry {
        Entry { name: name.into(), digest: Digest::of(content), size: content.len() as u64, executable: false }
    }

    #[test]
    fn a_tree_is_its_names_and_contents() {
        let tree = Tree::new(vec![entry("b", b"2"), entry("a/c", b"1")]).unwrap();
        let same = Tree::new(vec![entry("a/c", b"1"), entry("b", b"2")]).unwrap();
        assert_eq!(tree.digest(), same.digest());
        assert_eq!(tree.get("b").unwrap().digest, Digest::of(b"2"));
        assert_eq!(tree.size(), 2);
        for other in [
            vec![entry("b", b"1"), entry("a/c", b"2")],
            vec![entry("b", b"2")],
            vec![entry("bb", b"2"), entry("a/c", b"1")],
        ] {
            assert_ne!(tree.digest(), Tree::new(other).unwrap().digest());
        }
    }

    #[test]
    fn a_part_of_a_tree_knows_nothing_of_the_rest() {
        let tree = Tree::new(vec![entry("a", b"1"), entry("b", b"2"), entry("c/a", b"3")]).unwrap();
        let part = Tree::new(vec![entry("a", b"1")]).unwrap();
        assert_eq!(*tree.only(&["a", "z"]), part);
        assert_eq!(*tree.only(&[]), tree);
        assert_eq!(*tree.only(&["z"]), tree, "not the same whatever it is");
        assert_eq!(tree.only(&["*a"]).entries().len(), 2);
    }

    #[test]
    fn names_that_leave_the_tree_are_refused() {
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".", "a/./b", "a\0b"] {
            assert!(!is_safe_name(bad), "{bad:?}");
            assert!(Tree::new(vec![entry(bad, b"")]).is_err());
        }
        assert!(is_safe_name("..a/b.."));
        assert!(Tree::new(vec![entry("a", b""), entry("a", b"1")]).is_err());
    }
}
