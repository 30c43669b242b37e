//! [`Memo`]: what a pipeline's last run knew, in one file that is read at once.
//!
//! It makes a run in which nothing changed cost two or three `stat` calls a node. Like the index it only saves time:
//! a missing or damaged one is ignored. File: `flowmemo1\n`, the BLAKE3 of the rest, then proofs (id, proof, age) and
//! results (key, the record's stat, cost, age, files), each list after its length; little-endian.

use std::{collections::HashMap, fs, path::PathBuf, sync::Arc};

use anyhow::Result;
use flow_core::{Digest, Entry, Key, Tree};
use rayon::prelude::*;

use crate::{
    cache::Cache,
    files::{Explain as _, write_atomic},
    index::{WORTH, decode, encode},
    proof::{Id, Meta, Proof, Stat, now},
    trust::{ReadFile, read_file},
};

const MAGIC: &[u8] = b"flowmemo1\n";
/// Entries are forgotten when so many saves went by without a use.
const FORGET: u8 = 16;

/// In memory.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    /// Where it is saved; `None` until a pipeline's memo was loaded.
    pub file: Option<PathBuf>,
    proofs: HashMap<Id, (Proof, u8)>,
    results: HashMap<Key, (Known, u8)>,
    /// Files that were hashed while too fresh to be believed: read again before the memo is saved.
    pub fresh: HashMap<Id, PathBuf>,
    changed: bool,
}

/// A result as the memo knows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Known {
    /// Of the record's file.
    pub record: Stat,
    pub tree: Arc<Tree>,
    pub cost: f64,
}

impl Cache {
    /// Loads what the last run of the pipeline `name` (any text that tells it from others) knew. A missing or damaged
    /// memo is as good as an empty one.
    pub fn load_memo(&self, name: &str) {
        let hash = blake3::hash(name.as_bytes()).to_hex();
        let path = self.0.root.join("state/memo").join(&hash[..32]);
        let loaded = fs::read(&path).ok().and_then(|bytes| Memo::load(&bytes)).unwrap_or_default();
        *self.memo() = Memo { file: Some(path), ..loaded };
    }

    /// Writes the memo, if one was loaded and something changed.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save_memo(&self) -> Result<()> {
        let (path, fresh) = {
            let mut memo = self.memo();
            let Some(path) = memo.file.clone() else { return Ok(()) };
            (path, std::mem::take(&mut memo.fresh))
        };
        // What this run made or read while it was too fresh to be believed is mostly old enough by now. Reading it
        // again (it is small) spares the next run that.
        let old_enough = now() - 2_100_000_000;
        fresh.into_par_iter().for_each(|(id, path)| {
            if let Ok(meta) = Meta::of(&path, true)
                && meta.stat.ctime < old_enough
                && meta.stat.size < WORTH
                && let Ok(ReadFile { proof: Some(proof), .. }) = read_file(&path, false)
            {
                self.remember(id, &path, Some(proof));
            }
        });
        let bytes = {
            let mut memo = self.memo();
            if !memo.changed() {
                return Ok(());
            }
            memo.save()
        };
        // Not synced: a memo that a power loss damaged is ignored.
        write_atomic(&self.tmp(), &path, &bytes, false, "memo:written")
            .explain(&self.0.root, || format!("write {}", path.display()))
    }
}

impl Memo {
    pub fn proof(&mut self, id: Id) -> Option<Proof> {
        let (proof, age) = self.proofs.get_mut(&id)?;
        *age = 0;
        Some(*proof)
    }

    pub fn put_proof(&mut self, id: Id, proof: Proof) {
        self.fresh.remove(&id);
        self.changed |= self.proofs.insert(id, (proof, 0)).is_none_or(|(old, _)| old != proof);
    }

    pub fn result(&mut self, key: &Key) -> Option<Known> {
        let (known, age) = self.results.get_mut(key)?;
        *age = 0;
        Some(known.clone())
    }

    pub fn put_result(&mut self, key: Key, known: Known) {
        self.changed = true;
        self.results.insert(key, (known, 0));
    }

    pub fn forget_result(&mut self, key: &Key) {
        self.changed |= self.results.remove(key).is_some();
    }

    /// Whether a save would write something new.
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// The file's bytes; what was long unused is forgotten. Counts as saved.
    pub fn save(&mut self) -> Vec<u8> {
        self.proofs.retain(|_, (_, age)| *age < FORGET);
        self.results.retain(|_, (_, age)| *age < FORGET);
        self.changed = false;
        let mut out = Vec::with_capacity(42 + 96 * self.proofs.len() + 160 * self.results.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; 32]);
        put_len(&mut out, self.proofs.len());
        for (id, (proof, age)) in &mut self.proofs {
            out.extend_from_slice(&id.0);
            out.extend_from_slice(&encode(proof));
            // Unused until somebody asks for it.
            *age += 1;
            out.push(*age);
        }
        put_len(&mut out, self.results.len());
        for (key, (known, age)) in &mut self.results {
            out.extend_from_slice(&key.0);
            out.extend_from_slice(&encode(&Proof { stat: known.record, digest: Digest([0; 32]), boot: 0 })[32..64]);
            out.extend_from_slice(&known.cost.to_le_bytes());
            // Unused until somebody asks for it.
            *age += 1;
            out.push(*age);
            put_len(&mut out, known.tree.entries().len());
            for entry in known.tree.entries() {
                put_len(&mut out, entry.name.len());
                out.extend_from_slice(entry.name.as_bytes());
                out.extend_from_slice(&entry.digest.0);
                out.extend_from_slice(&entry.size.to_le_bytes());
                out.push(u8::from(entry.executable));
            }
        }
        let hash = blake3::hash(&out[MAGIC.len() + 32..]);
        out[MAGIC.len()..MAGIC.len() + 32].copy_from_slice(hash.as_bytes());
        out
    }

    /// Reads what [`Memo::save`] wrote; `None` when that is damaged or of another format.
    pub fn load(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (hash, rest) = rest.split_at_checked(32)?;
        if blake3::hash(rest).as_bytes() != hash {
            return None;
        }
        let mut memo = Self::default();
        let mut reader = Reader(rest);
        let count = reader.len()?;
        memo.proofs.reserve(count);
        for _ in 0..count {
            let id = Id(reader.array()?);
            let proof = decode(reader.take(68)?)?;
            memo.proofs.insert(id, (proof, reader.array::<1>()?[0]));
        }
        let count = reader.len()?;
        memo.results.reserve(count);
        for _ in 0..count {
            let key = Key(reader.array()?);
            let [size, mtime, ctime, ino] = [reader.word()?, reader.word()?, reader.word()?, reader.word()?];
            let record = Stat { size, mtime: mtime as i64, ctime: ctime as i64, ino };
            let cost = f64::from_bits(reader.word()?);
            let age = reader.array::<1>()?[0];
            let count = reader.len()?;
            let mut entries = Vec::new();
            for _ in 0..count {
                let len = reader.len()?;
                let name = std::str::from_utf8(reader.take(len)?).ok()?.to_owned();
                let digest = Digest(reader.array()?);
                let size = reader.word()?;
                entries.push(Entry { name, digest, size, executable: reader.array::<1>()?[0] != 0 });
            }
            let tree = Arc::new(Tree::new(entries).ok()?);
            memo.results.insert(key, (Known { record, tree, cost }, age));
        }
        reader.0.is_empty().then_some(memo)
    }
}

/// Lists in a memo are far below 4 G; a longer one would not come back and be ignored.
pub(crate) fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&(len as u32).to_le_bytes());
}

/// What is left to read of a memo; `None` when that ends too early.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub fn word(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn len(&mut self) -> Option<usize> {
        let len = u32::from_le_bytes(self.array()?) as usize;
        // Every item takes a byte at least; a sum that holds does not make the writer infallible.
        (len <= self.0.len()).then_some(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn stat(n: u64) -> Stat {
        Stat { size: n, mtime: 1, ctime: 2, ino: 3 }
    }

    fn filled(count: u64) -> Memo {
        let mut memo = Memo::default();
        for n in 0..count {
            let digest = Digest::of(&n.to_le_bytes());
            memo.put_proof(Id::path(Path::new(&format!("/{n}"))), Proof { stat: stat(n), digest, boot: 0 });
            let names: &[&str] = if n % 3 == 0 { &[] } else { &["a", "b/ü"] };
            let entry = |name: &&str| Entry { name: (*name).into(), digest, size: n, executable: n % 2 == 0 };
            let tree = Arc::new(Tree::new(names.iter().map(entry).collect()).unwrap());
            memo.put_result(Key(digest.0), Known { record: stat(n), tree, cost: n as f64 / 3.0 });
        }
        memo
    }

    #[test]
    fn comes_back_and_is_refused_when_damaged() {
        let mut memo = filled(50);
        assert!(memo.changed());
        let bytes = memo.save();
        assert!(!memo.changed());
        let mut back = Memo::load(&bytes).unwrap();
        assert!(!back.changed());
        let key = Key(Digest::of(&7u64.to_le_bytes()).0);
        assert_eq!(back.result(&key), memo.result(&key));
        assert_eq!(back.result(&key).unwrap().tree.entries().len(), 2);
        let id = Id::path(Path::new("/7"));
        assert_eq!(back.proof(id), memo.proof(id));
        assert!(back.proof(id).is_some());
        for at in (0..bytes.len()).step_by(61) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert!(Memo::load(&damaged).is_none(), "byte {at}");
            assert!(Memo::load(&bytes[..at]).is_none(), "cut at {at}");
        }
    }

    #[test]
    fn a_lying_length_takes_no_memory() {
        let mut bytes = [MAGIC, &[0; 32], &u32::MAX.to_le_bytes()].concat();
        let hash = *blake3::hash(&bytes[42..]).as_bytes();
        bytes[10..42].copy_from_slice(&hash);
        assert!(Memo::load(&bytes).is_none());
    }

    #[test]
    fn the_unused_is_forgotten_after_a_while_and_the_used_is_not() {
        let mut memo = filled(2);
        let used = Key(Digest::of(&1u64.to_le_bytes()).0);
        for _ in 0..=FORGET {
            memo = Memo::load(&memo.save()).unwrap();
            assert!(memo.result(&used).is_some());
        }
        memo.save();
        assert!(memo.result(&used).is_some());
        assert!(memo.result(&Key(Digest::of(&0u64.to_le_bytes()).0)).is_none());
    }

    #[test]
    fn what_is_known_already_is_no_change() {
        let mut memo = filled(1);
        memo.save();
        let id = Id::path(Path::new("/0"));
        let proof = memo.proof(id).unwrap();
        memo.put_proof(id, proof);
        assert!(!memo.changed());
        memo.put_proof(id, Proof { boot: 1, ..proof });
        assert!(memo.changed());
    }
}
