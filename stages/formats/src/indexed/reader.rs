//! Reading an indexed dataset by memory map: opening looks at the header and the files' sizes alone, so that it takes
//! no longer for a billion documents; every access checks the numbers that it uses.

use std::{
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;

use super::{HEADER, MAGIC, TokenType, VERSION, bin_path, idx_path};

/// An indexed dataset, mapped into memory.
#[derive(Debug)]
pub struct IndexedDataset {
    idx_path: PathBuf,
    bin_path: PathBuf,
    idx: Mmap,
    /// None when the file is empty: there is nothing to map.
    bin: Option<Mmap>,
    dtype: TokenType,
    sequences: usize,
    documents: usize,
}

/// One sequence of an [`IndexedDataset`].
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    bytes: &'a [u8],
    dtype: TokenType,
}

impl IndexedDataset {
    /// Opens `PREFIX.idx` and `PREFIX.bin`.
    ///
    /// The files must not change while they are open: one that shrinks kills the process, as with every memory map.
    ///
    /// # Errors
    /// A file is missing, is not an index, or its length is not what its header says.
    pub fn open(prefix: &Path) -> Result<Self> {
        let (idx_path, bin_path) = (idx_path(prefix), bin_path(prefix));
        let idx = map(&idx_path)?.with_context(|| format!("{} is empty", idx_path.display()))?;
        let bin = map(&bin_path)?;
        let name = idx_path.display();
        ensure!(idx.len() >= HEADER, "{name}: {} bytes are too few for a header of {HEADER}", idx.len());
        ensure!(&idx[..9] == MAGIC, "{name}: not a Megatron index: it does not begin with MMIDIDX");
        let version = word(&idx, 9);
        ensure!(version == VERSION, "{name}: version {version} at byte 9; only version {VERSION} is known");
        let Some(dtype) = TokenType::from_code(idx[17]) else {
            bail!("{name}: dtype code {} at byte 17 is none of 1 to 8", idx[17]);
        };
        let (sequences, entries) = (word(&idx, 18), word(&idx, 26));
        let size = |sequence_bytes: u64| {
            let arrays = sequences.checked_mul(sequence_bytes)?.checked_add(entries.checked_mul(8)?)?;
            arrays.checked_add(HEADER as u64)
        };
        let length = Some(idx.len() as u64);
        ensure!(
            entries >= 1 && (size(12) == length || size(13) == length),
            "{name}: {} bytes do not fit {sequences} sequences (byte 18) and {entries} document indices (byte 26)",
            idx.len()
        );
        // Both are below the file's length, which fits the address space.
        let (sequences, documents) = (sequences as usize, entries as usize - 1);
        let dataset = Self { idx_path, bin_path, idx, bin, dtype, sequences, documents };
        let end = match sequences {
            0 => 0,
            _ => dataset.place(sequences - 1)?.end,
        };
        ensure!(
            end == dataset.data().len(),
            "{}: {} bytes, but the index ends at byte {end}: the two files do not belong together, or one is cut off",
            dataset.bin_path.display(),
            dataset.data().len()
        );
        Ok(dataset)
    }

    /// The type of the ids.
    #[must_use]
    pub fn dtype(&self) -> TokenType {
        self.dtype
    }

    /// How many sequences there are.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// How many documents there are; a document without sequences counts.
    #[must_use]
    pub fn documents(&self) -> usize {
        self.documents
    }

    /// How many ids there are.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        (self.data().len() / self.dtype.size()) as u64
    }

    /// The `.bin` as bytes.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        self.bin.as_deref().unwrap_or_default()
    }

    /// How many ids sequence `i` has.
    ///
    /// # Errors
    /// There is no such sequence, or its length is negative.
    pub fn length(&self, i: usize) -> Result<usize> {
        ensure!(i < self.sequences, "{}: sequence {i} of {}", self.idx_path.display(), self.sequences);
        let at = HEADER + 4 * i;
        let length = i32::from_le_bytes(array(&self.idx, at));
        usize::try_from(length)
            .map_err(|_| anyhow::anyhow!("{}: length {length} of sequence {i} at byte {at}", self.idx_path.display()))
    }

    /// Sequence `i`.
    ///
    /// # Errors
    /// There is no such sequence, or the index points outside of the `.bin`.
    pub fn sequence(&self, i: usize) -> Result<Sequence<'_>> {
        Ok(Sequence { bytes: &self.data()[self.place(i)?], dtype: self.dtype })
    }

    /// The sequences of document `d`.
    ///
    /// # Errors
    /// There is no such document, or the index points outside of the sequences.
    pub fn document(&self, d: usize) -> Result<Range<usize>> {
        ensure!(d < self.documents, "{}: document {d} of {}", self.idx_path.display(), self.documents);
        let at = HEADER + 12 * self.sequences + 8 * d;
        let (start, end) = (word(&self.idx, at), word(&self.idx, at + 8));
        ensure!(
            start <= end && end <= self.sequences as u64,
            "{}: document {d} at byte {at} is sequences {start} to {end} of {}",
            self.idx_path.display(),
            self.sequences
        );
        Ok(start as usize..end as usize)
    }

    /// Looks at every number of the index: offsets follow from lengths, documents are in order and complete.
    /// Takes as long as reading the index does.
    ///
    /// # Errors
    /// The first that is wrong, with its offset.
    pub fn validate(&self) -> Result<()> {
        let mut expected = 0;
        for i in 0..self.sequences {
            let place = self.place(i)?;
            ensure!(
                place.start == expected,
                "{}: sequence {i} begins at byte {} of the .bin, and the one before ends at {expected} (byte {})",
                self.idx_path.display(),
                place.start,
                self.pointer_at(i)
            );
            expected = place.end;
        }
        let mut next = 0;
        for d in 0..self.documents {
            let document = self.document(d)?;
            ensure!(
                document.start == next,
                "{}: document {d} begins with sequence {}, not {next}",
                self.idx_path.display(),
                document.start
            );
            next = document.end;
        }
        let last = word(&self.idx, HEADER + 12 * self.sequences + 8 * self.documents);
        ensure!(
            last == self.sequences as u64,
            "{}: the last document ends with sequence {last} of {}",
            self.idx_path.display(),
            self.sequences
        );
        Ok(())
    }

    /// The bytes of all lengths, i32 each.
    pub(super) fn length_bytes(&self) -> &[u8] {
        &self.idx[HEADER..HEADER + 4 * self.sequences]
    }

    fn pointer_at(&self, i: usize) -> usize {
        HEADER + 4 * self.sequences + 8 * i
    }

    /// Where sequence `i` lies in the `.bin`.
    fn place(&self, i: usize) -> Result<Range<usize>> {
        let length = self.length(i)? as u64;
        let at = self.pointer_at(i);
        let start = word(&self.idx, at);
        let end = start.checked_add(length * self.dtype.size() as u64);
        match end {
            Some(end) if end <= self.data().len() as u64 => Ok(start as usize..end as usize),
            _ => bail!(
                "{}: sequence {i} is {length} ids from byte {start} (byte {at} of the index), and {} has {} bytes",
                self.idx_path.display(),
                self.bin_path.display(),
                self.data().len()
            ),
        }
    }
}

impl<'a> Sequence<'a> {
    /// How many ids it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// It has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Its ids as they lie in the file.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Appends the ids of `range` to `out`; what of the range lies outside of the sequence is left out.
    /// Floating-point numbers, which no tokenizer writes, are cut to integers.
    pub fn read(&self, range: Range<usize>, out: &mut Vec<i64>) {
        let end = range.end.min(self.len());
        let start = range.start.min(end);
        let size = self.dtype.size();
        let ids = self.bytes[start * size..end * size].chunks_exact(size);
        match self.dtype {
            TokenType::U8 => out.extend(ids.map(|id| i64::from(id[0]))),
            TokenType::I8 => out.extend(ids.map(|id| i64::from(i8::from_le_bytes(array(id, 0))))),
            TokenType::I16 => out.extend(ids.map(|id| i64::from(i16::from_le_bytes(array(id, 0))))),
            TokenType::U16 => out.extend(ids.map(|id| i64::from(u16::from_le_bytes(array(id, 0))))),
            TokenType::I32 => out.extend(ids.map(|id| i64::from(i32::from_le_bytes(array(id, 0))))),
            TokenType::I64 => out.extend(ids.map(|id| i64::from_le_bytes(array(id, 0)))),
            TokenType::F32 => out.extend(ids.map(|id| f32::from_le_bytes(array(id, 0)) as i64)),
            TokenType::F64 => out.extend(ids.map(|id| f64::from_le_bytes(array(id, 0)) as i64)),
        }
    }

    /// All of its ids.
    #[must_use]
    pub fn to_vec(&self) -> Vec<i64> {
        let mut ids = Vec::with_capacity(self.len());
        self.read(0..self.len(), &mut ids);
        ids
    }
}

fn map(path: &Path) -> Result<Option<Mmap>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let size = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?.len();
    if size == 0 {
        return Ok(None);
    }
    // SAFETY: the map is read-only, and `open` tells callers that the files must not shrink meanwhile; in the cache
    // they are read-only files that are only ever replaced as a whole.
    let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {}", path.display()))?;
    Ok(Some(map))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}
