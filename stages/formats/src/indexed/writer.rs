//! Writing an indexed dataset as a stream: memory does not grow with the number of documents, and the files appear
//! under their names only when they are whole.

use std::{
    fs::{File, Permissions},
    io::{BufReader, BufWriter, Read, Seek, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::{Builder, NamedTempFile};

use super::{IndexedDataset, MAGIC, TokenType, VERSION, bin_path, idx_path};

/// Sequences and documents as bytes of a `.bin`, made away from the writer (on another thread).
#[derive(Clone, Debug)]
pub struct Block {
    dtype: TokenType,
    data: Vec<u8>,
    /// Length of each sequence in ids.
    lengths: Vec<u32>,
    /// How many sequences there are before the end of each document.
    ends: Vec<u32>,
}

impl Block {
    /// A block with nothing in it.
    #[must_use]
    pub fn new(dtype: TokenType) -> Self {
        Self { dtype, data: Vec::new(), lengths: Vec::new(), ends: Vec::new() }
    }

    /// Appends a sequence.
    ///
    /// # Errors
    /// An id does not fit the type, which can only be uint16 or int32; or the sequence has 2³¹ ids or more.
    pub fn sequence(&mut self, ids: &[u32]) -> Result<()> {
        ensure!(i32::try_from(ids.len()).is_ok(), "a sequence of {} tokens is too long for an index", ids.len());
        let biggest = ids.iter().copied().max().unwrap_or(0);
        match self.dtype {
            TokenType::U16 => {
                ensure!(biggest <= u32::from(u16::MAX), "token id {biggest} does not fit uint16");
                self.data.extend(ids.iter().flat_map(|id| (*id as u16).to_le_bytes()));
            }
            TokenType::I32 => {
                ensure!(i32::try_from(biggest).is_ok(), "token id {biggest} does not fit int32");
                self.data.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
            }
            other => bail!("token ids are written as uint16 or int32, not {}", other.name()),
        }
        self.lengths.push(ids.len() as u32);
        Ok(())
    }

    /// Ends a document: it holds the sequences since the last end, possibly none.
    pub fn end_document(&mut self) {
        self.ends.push(self.lengths.len() as u32);
    }

    /// How many sequences it holds.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.lengths.len()
    }

    /// How many documents it holds.
    #[must_use]
    pub fn documents(&self) -> usize {
        self.ends.len()
    }

    /// How many ids it holds.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.data.len() / self.dtype.size()
    }
}

/// Writes `PREFIX.bin` and `PREFIX.idx`. What was not [finished](Self::finish) leaves nothing behind.
#[derive(Debug)]
pub struct IndexedWriter {
    prefix: PathBuf,
    dtype: TokenType,
    bin: BufWriter<NamedTempFile>,
    /// The index's arrays are one behind the other, and known to their end only at the end: two nameless files.
    lengths: BufWriter<File>,
    documents: BufWriter<File>,
    sequences: u64,
    document_count: u64,
    tokens: u64,
}

impl IndexedWriter {
    /// Begins to write, in the directory where the prefix lies.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn create(prefix: &Path, dtype: TokenType) -> Result<Self> {
        let directory = directory(prefix);
        let nameless = || {
            let file = tempfile::tempfile_in(directory);
            Ok::<_, anyhow::Error>(BufWriter::new(
                file.with_context(|| format!("cannot create a file in {}", directory.display()))?,
            ))
        };
        let bin = BufWriter::with_capacity(1 << 20, named(directory)?);
        let mut writer = Self {
            prefix: prefix.to_owned(),
            dtype,
            bin,
            lengths: nameless()?,
            documents: nameless()?,
            sequences: 0,
            document_count: 0,
            tokens: 0,
        };
        writer.documents.write_all(&0u64.to_le_bytes())?;
        Ok(writer)
    }

    /// The type of the ids.
    #[must_use]
    pub fn dtype(&self) -> TokenType {
        self.dtype
    }

    /// Appends what a block holds.
    ///
    /// # Errors
    /// The types differ, or writing failed.
    pub fn append(&mut self, block: &Block) -> Result<()> {
        self.same_type(block.dtype)?;
        self.bin.write_all(&block.data).with_context(|| self.cannot("bin"))?;
        for length in &block.lengths {
            self.lengths.write_all(&length.to_le_bytes()).with_context(|| self.cannot("idx"))?;
        }
        for end in &block.ends {
            let end = self.sequences + u64::from(*end);
            self.documents.write_all(&end.to_le_bytes()).with_context(|| self.cannot("idx"))?;
        }
        self.sequences += block.lengths.len() as u64;
        self.document_count += block.ends.len() as u64;
        self.tokens += block.tokens() as u64;
        Ok(())
    }

    /// Appends a whole dataset, as Megatron merges: data behind data, lengths behind lengths, documents moved on.
    /// `progress` is told the bytes of data so far.
    ///
    /// # Errors
    /// The types differ, the dataset is damaged, reading or writing failed, or `progress` does.
    pub fn append_dataset(
        &mut self,
        dataset: &IndexedDataset,
        mut progress: impl FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        self.same_type(dataset.dtype())?;
        dataset.validate()?;
        let mut done = 0;
        for chunk in dataset.data().chunks(8 << 20) {
            self.bin.write_all(chunk).with_context(|| self.cannot("bin"))?;
            done += chunk.len() as u64;
            progress(done)?;
        }
        self.lengths.write_all(dataset.length_bytes()).with_context(|| self.cannot("idx"))?;
        for d in 0..dataset.documents() {
            let end = self.sequences + dataset.document(d)?.end as u64;
            self.documents.write_all(&end.to_le_bytes()).with_context(|| self.cannot("idx"))?;
        }
        self.sequences += dataset.sequences() as u64;
        self.document_count += dataset.documents() as u64;
        self.tokens += dataset.tokens();
        Ok(())
    }

    /// Writes the index and gives both files their names.
    ///
    /// # Errors
    /// Writing failed; neither file is there then, or, if only the last renaming failed, the `.bin` alone.
    pub fn finish(self) -> Result<()> {
        let cannot = self.cannot("idx");
        let Self { prefix, dtype, bin, lengths, documents, sequences, document_count, .. } = self;
        let mut idx = BufWriter::with_capacity(1 << 20, named(directory(&prefix))?);
        (|| {
            idx.write_all(MAGIC)?;
            idx.write_all(&VERSION.to_le_bytes())?;
            idx.write_all(&[dtype.code()])?;
            idx.write_all(&sequences.to_le_bytes())?;
            idx.write_all(&(document_count + 1).to_le_bytes())?;
            let mut lengths = rewound(lengths)?;
            std::io::copy(&mut lengths, &mut idx)?;
            let mut lengths = BufReader::new(lengths);
            lengths.rewind()?;
            let mut pointer = 0u64;
            let mut length = [0; 4];
            for _ in 0..sequences {
                idx.write_all(&pointer.to_le_bytes())?;
                lengths.read_exact(&mut length)?;
                pointer += u64::from(u32::from_le_bytes(length)) * dtype.size() as u64;
            }
            std::io::copy(&mut rewound(documents)?, &mut idx)?;
            Ok::<_, std::io::Error>(())
        })()
        .with_context(|| cannot.clone())?;
        persist(bin, &bin_path(&prefix))?;
        persist(idx, &idx_path(&prefix))
    }

    /// Sequences, documents and ids so far.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        (self.sequences, self.document_count, self.tokens)
    }

    fn same_type(&self, other: TokenType) -> Result<()> {
        ensure!(other == self.dtype, "cannot append {} ids to a dataset of {}", other.name(), self.dtype.name());
        Ok(())
    }

    fn cannot(&self, what: &str) -> String {
        format!("cannot write {}.{what}", self.prefix.display())
    }
}

fn directory(prefix: &Path) -> &Path {
    prefix.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file with a name of its own that goes away unless it is given another; as readable as any file (less the umask).
fn named(directory: &Path) -> Result<NamedTempFile> {
    let mut builder = Builder::new();
    builder.prefix(".indexed-").permissions(Permissions::from_mode(0o666));
    builder.tempfile_in(directory).with_context(|| format!("cannot create a file in {}", directory.display()))
}

fn rewound(file: BufWriter<File>) -> std::io::Result<File> {
    let mut file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(file)
}

fn persist(file: BufWriter<NamedTempFile>, path: &Path) -> Result<()> {
    let file = file.into_inner().map_err(std::io::IntoInnerError::into_error);
    let persisted = file.and_then(|file| file.persist(path).map_err(|error| error.error));
    persisted.map(drop).with_context(|| format!("cannot write {}", path.display()))
}
