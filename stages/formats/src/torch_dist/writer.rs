//! [`RankWriter`]: one rank's records.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    metadata::check,
    payload::{tensor_frame, torch_save},
    region::Region,
};
use crate::{DType, dtype::byte_len, pickle::Value};

/// A rank begins a new file when one has so many bytes.
const NEXT_FILE: u64 = 4 << 30;

/// A record that was written: what rank 0 must know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkEntry {
    /// The tensor or object.
    pub key: String,
    /// The type of a tensor's elements; none for an object.
    pub dtype: Option<DType>,
    /// The shape of the whole tensor.
    pub shape: Vec<u64>,
    /// The chunk's first index on each axis.
    pub offset: Vec<u64>,
    /// The chunk's length on each axis.
    pub size: Vec<u64>,
    /// The file, relative to the iteration's directory.
    pub file: String,
    /// The record's first byte.
    pub at: u64,
    /// The record's length in bytes.
    pub len: u64,
}

/// Room for a chunk whose bytes the caller writes.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The file to write to, at any place and from any thread.
    pub file: Arc<File>,
    /// Where the first byte goes.
    pub at: u64,
    /// How many bytes.
    pub len: u64,
    /// The file's name.
    pub name: String,
    /// They are there already: the file is one of those that [`RankWriter::resume`] was told of.
    pub whole: bool,
    entry: usize,
}

/// Writes the files `__{rank}_{n}.distcp` of one rank.
#[derive(Debug)]
pub struct RankWriter {
    dir: PathBuf,
    rank: usize,
    /// Every file so far; the last is being filled.
    files: Vec<(String, Arc<File>)>,
    /// The length of the last file.
    end: u64,
    entries: Vec<(ChunkEntry, usize)>,
    /// Slots that have no checksum yet.
    open: usize,
    /// Files that an interrupted run completed.
    whole: HashSet<String>,
}

impl RankWriter {
    /// A writer into the [`staging`](super::staging) directory, which [`begin`](super::begin) made.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(dir: &Path, rank: usize) -> Result<Self> {
        Self::resume(dir, rank, HashSet::new())
    }

    /// A writer that does again what an interrupted one did, in the same order, but writes nothing into the files of these
    /// names.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn resume(dir: &Path, rank: usize, whole: HashSet<String>) -> Result<Self> {
        let mut writer =
            Self { dir: dir.to_owned(), rank, files: Vec::new(), end: 0, entries: Vec::new(), open: 0, whole };
        writer.next_file()?;
        Ok(writer)
    }

    fn next_file(&mut self) -> Result<()> {
        let name = format!("__{}_{}.distcp", self.rank, self.files.len());
        let path = self.dir.join(&name);
        let whole = self.whole.contains(&name);
        let file = File::options().write(true).create(true).truncate(!whole).open(&path);
        let file = file.with_context(|| format!("cannot make {}", path.display()))?;
        self.files.push((name, Arc::new(file)));
        self.end = 0;
        Ok(())
    }

    /// Makes room for a chunk and notes it. The caller writes its bytes, in any order, and then gives their CRC-32 to
    /// [`RankWriter::seal`].
    ///
    /// # Errors
    /// The chunk does not lie inside of its tensor.
    pub fn reserve(&mut self, key: &str, shape: &[u64], offset: &[u64], size: &[u64], dtype: DType) -> Result<Slot> {
        let region = Region { start: offset.to_vec(), size: size.to_vec() };
        byte_len(dtype, shape).with_context(|| format!("`{key}` of shape {shape:?} is too large"))?;
        check(&region, shape).with_context(|| format!("`{key}`"))?;
        let len = byte_len(dtype, size).context("a chunk is not larger than its tensor")?;
        let frame = tensor_frame(dtype, size, len, 0);
        let total = frame.total(len);
        let entry = self.note(key, Some(dtype), [shape, offset, size], total)?;
        self.open += 1;
        let (ChunkEntry { at, .. }, file) = &self.entries[entry];
        let at = at + frame.before.len() as u64;
        let (name, file) = &self.files[*file];
        Ok(Slot { file: Arc::clone(file), at, len, whole: self.whole.contains(name), name: name.clone(), entry })
    }

    /// Writes what goes around a chunk's bytes.
    ///
    /// # Errors
    /// The file cannot be written.
    #[allow(clippy::needless_pass_by_value)] // a slot is sealed once
    pub fn seal(&mut self, slot: Slot, crc: u32) -> Result<()> {
        self.open -= 1;
        if slot.whole {
            return Ok(());
        }
        let (entry, file) = &self.entries[slot.entry];
        let dtype = entry.dtype.context("an object has no slot")?;
        let frame = tensor_frame(dtype, &entry.size, slot.len, crc);
        let (name, file) = &self.files[*file];
        file.write_all_at(&frame.before, entry.at)
            .and_then(|()| file.write_all_at(&frame.after, slot.at + slot.len))
            .with_context(|| format!("cannot write {}", self.dir.join(name).display()))
    }

    /// Writes a chunk: `bytes` gives exactly as many as `size` elements have, row-major, little-endian.
    ///
    /// # Errors
    /// As [`RankWriter::reserve`]; `bytes` gives fewer or more; the file cannot be written.
    pub fn tensor(
        &mut self,
        key: &str,
        shape: &[u64],
        offset: &[u64],
        size: &[u64],
        dtype: DType,
        bytes: &mut dyn Read,
    ) -> Result<()> {
        let slot = self.reserve(key, shape, offset, size, dtype)?;
        let mut crc = crc32fast::Hasher::new();
        let mut block = vec![0; slot.len.clamp(1, 1 << 20) as usize];
        let mut done = 0;
        loop {
            let n = match bytes.read(&mut block) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).with_context(|| format!("the bytes of `{key}`")),
            };
            if n == 0 {
                break;
            }
            ensure!(done + n as u64 <= slot.len, "`{key}`: more than the {} bytes of {size:?}", slot.len);
            crc.update(&block[..n]);
            slot.file.write_all_at(&block[..n], slot.at + done).with_context(|| format!("cannot write `{key}`"))?;
            done += n as u64;
        }
        ensure!(done == slot.len, "`{key}`: {done} bytes for {size:?}, which has {}", slot.len);
        self.seal(slot, crc.finalize())
    }

    /// Writes an object: a `torch.save` of `value`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn object(&mut self, key: &str, value: &Value) -> Result<()> {
        let bytes = torch_save("archive", value, &[]);
        let entry = self.note(key, None, [&[], &[], &[]], bytes.len() as u64)?;
        let (entry, file) = &self.entries[entry];
        let (name, file) = &self.files[*file];
        if self.whole.contains(name) {
            return Ok(());
        }
        file.write_all_at(&bytes, entry.at).with_context(|| format!("cannot write {}", self.dir.join(name).display()))
    }

    /// Writes the empty states that Transformer Engine's layers would have: Megatron does not load a checkpoint
    /// without them. Once a checkpoint.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn extra_states(&mut self, num_layers: u64) -> Result<()> {
        let parts = ["self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2"];
        let keys = |layer| parts.map(|part| format!("decoder.layers.{part}._extra_state/shard_{layer}_{num_layers}"));
        self.empty_states((0..num_layers).flat_map(keys))
    }

    /// The same under these keys, for models with other modules.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn empty_states(&mut self, keys: impl Iterator<Item = String>) -> Result<()> {
        for key in keys {
            self.object(&key, &Value::List(vec![Value::None]))?;
        }
        Ok(())
    }

    fn note(&mut self, key: &str, dtype: Option<DType>, boxes: [&[u64]; 3], len: u64) -> Result<usize> {
        if self.end >= NEXT_FILE {
            self.next_file()?;
        }
        let [shape, offset, size] = boxes.map(<[u64]>::to_vec);
        let file = self.files.len() - 1;
        let name = self.files[file].0.clone();
        let entry = ChunkEntry { key: key.to_owned(), dtype, shape, offset, size, file: name, at: self.end, len };
        self.end += len;
        self.entries.push((entry, file));
        Ok(self.entries.len() - 1)
    }

    /// Bytes that the records have so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|(entry, _)| entry.len).sum()
    }

    /// Waits until everything is on the disk, and says what there is: for rank 0's [`finish`](super::finish).
    ///
    /// # Errors
    /// A chunk has room and no bytes, or the disk fails.
    pub fn finish(self) -> Result<Vec<ChunkEntry>> {
        ensure!(self.open == 0, "{} chunks were not written", self.open);
        for (name, file) in &self.files {
            file.sync_all().with_context(|| format!("cannot write {}", self.dir.join(name).display()))?;
        }
        Ok(self.entries.into_iter().map(|(entry, _)| entry).collect())
    }
}
