//! Megatron's indexed dataset: `PREFIX.bin` holds token ids one after another, `PREFIX.idx` says where sequences and
//! documents begin and end.
//!
//! `.idx`, little-endian, no padding: `MMIDIDX\0\0`, u64 version 1, u8 [`TokenType`], u64 S (sequences), u64 D (one
//! more than documents), i32\[S\] lengths in tokens, i64\[S\] byte offsets into `.bin`, i64\[D\] index of each
//! document's first sequence (the last one is S). A multimodal file has i8\[S\] modes behind.

mod reader;
mod writer;

use std::path::{Path, PathBuf};

pub use reader::{IndexedDataset, Sequence};
pub use writer::{Block, IndexedWriter};

/// The first nine bytes of an `.idx`.
const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";

/// The only version there is.
const VERSION: u64 = 1;

/// Length of what stands before the arrays.
const HEADER: usize = 34;

/// The type of the numbers in a `.bin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum TokenType {
    U8,
    I8,
    I16,
    I32,
    I64,
    F64,
    F32,
    U16,
}

impl TokenType {
    const ALL: [(u8, Self, usize, &'static str); 8] = [
        (1, Self::U8, 1, "uint8"),
        (2, Self::I8, 1, "int8"),
        (3, Self::I16, 2, "int16"),
        (4, Self::I32, 4, "int32"),
        (5, Self::I64, 8, "int64"),
        (6, Self::F64, 8, "float64"),
        (7, Self::F32, 4, "float32"),
        (8, Self::U16, 2, "uint16"),
    ];

    /// What Megatron chooses for a tokenizer of so many tokens (added ones included): `uint16` below 65,500, else `int32`.
    #[must_use]
    pub fn for_vocabulary(tokens: usize) -> Self {
        if tokens < 65_500 { Self::U16 } else { Self::I32 }
    }

    fn row(self) -> &'static (u8, Self, usize, &'static str) {
        &Self::ALL[Self::ALL.iter().position(|row| row.1 == self).unwrap_or_default()]
    }

    /// The byte that means it in an `.idx`.
    #[must_use]
    pub fn code(self) -> u8 {
        self.row().0
    }

    /// The type that a byte of an `.idx` means.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().find(|row| row.0 == code).map(|row| row.1)
    }

    /// Bytes of one number.
    #[must_use]
    pub fn size(self) -> usize {
        self.row().2
    }

    /// Its name in NumPy.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().3
    }
}

/// The path of the `.bin` of a prefix.
#[must_use]
pub fn bin_path(prefix: &Path) -> PathBuf {
    with_ending(prefix, ".bin")
}

/// The path of the `.idx` of a prefix.
#[must_use]
pub fn idx_path(prefix: &Path) -> PathBuf {
    with_ending(prefix, ".idx")
}

/// `prefix` with `ending` behind: unlike `with_extension`, a dot in the name is no ending.
fn with_ending(prefix: &Path, ending: &str) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

#[cfg(test)]
mod tests;
