//! Documents as a file of JSON lines, compressed as the user wants it.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use flate2::write::GzEncoder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How documents are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// `.jsonl.zst`: as small as gzip, and read several times as fast.
    #[default]
    Zst,
    /// `.jsonl.gz`, for programs that read nothing else.
    Gz,
    /// `.jsonl`
    Plain,
}

impl Output {
    /// The file of documents with this stem.
    pub fn name(self, stem: &str) -> String {
        let ending = match self {
            Self::Zst => ".zst",
            Self::Gz => ".gz",
            Self::Plain => "",
        };
        format!("{stem}.jsonl{ending}")
    }
}

/// A file of documents that is being written. It is one frame or member whatever its size, since some readers stop behind
/// the first.
pub struct Writer {
    path: PathBuf,
    file: Encoder,
    /// Documents so far.
    pub documents: u64,
    /// Bytes of lines so far.
    pub bytes: u64,
}

enum Encoder {
    Plain(BufWriter<File>),
    Gz(GzEncoder<BufWriter<File>>),
    Zst(zstd::Encoder<'static, BufWriter<File>>),
}

impl Writer {
    /// A new file in `directory`.
    ///
    /// # Errors
    /// It cannot be created, or is there already.
    pub fn create(directory: &Path, stem: &str, output: Output) -> Result<Self> {
        let path = directory.join(output.name(stem));
        let cannot = || format!("cannot create {}", path.display());
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(cannot)?;
        }
        let file = BufWriter::with_capacity(256 << 10, File::create_new(&path).with_context(cannot)?);
        let file = match output {
            Output::Plain => Encoder::Plain(file),
            Output::Gz => Encoder::Gz(GzEncoder::new(file, flate2::Compression::new(6))),
            Output::Zst => {
                let mut encoder = zstd::Encoder::new(file, 3).with_context(cannot)?;
                encoder.include_checksum(true).with_context(cannot)?;
                Encoder::Zst(encoder)
            }
        };
        Ok(Self { path, file, documents: 0, bytes: 0 })
    }

    /// Writes so many whole lines.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, lines: &[u8], documents: u64) -> Result<()> {
        let written = match &mut self.file {
            Encoder::Plain(file) => file.write_all(lines),
            Encoder::Gz(file) => file.write_all(lines),
            Encoder::Zst(file) => file.write_all(lines),
        };
        self.documents += documents;
        self.bytes += lines.len() as u64;
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Ends the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(self) -> Result<()> {
        let file = match self.file {
            Encoder::Plain(file) => Ok(file),
            Encoder::Gz(file) => file.finish(),
            Encoder::Zst(file) => file.finish(),
        };
        file.and_then(|mut file| file.flush()).with_context(|| format!("cannot write {}", self.path.display()))
    }
}
