//! BLAKE3 of a file on all cores.
//!
//! BLAKE3 is a tree of chunks, so every thread reads its own piece into its own small buffer and hashes it as a
//! subtree. Faster than mapping the file (no page faults, the piece is still in the core's cache when it is hashed),
//! memory is bounded, and a file that is truncated meanwhile is an error and not a SIGBUS.

use std::{cell::RefCell, fs::File, io, os::unix::fs::FileExt};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use flow_core::Digest;

/// What a thread reads at once. A power of two, so that every piece but the last is a whole subtree.
const PIECE: u64 = 512 << 10;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The digest of the first `size` bytes of a file.
///
/// # Errors
/// Reading fails; [`io::ErrorKind::UnexpectedEof`] when the file is shorter.
pub(crate) fn hash_file(file: &File, size: u64) -> io::Result<Digest> {
    if size <= PIECE {
        return with_piece(file, 0, size, |bytes| Digest(*blake3::hash(bytes).as_bytes()));
    }
    let left = left_subtree_len(size);
    let (a, b) = rayon::join(|| subtree(file, 0, left), || subtree(file, left, size - left));
    Ok(Digest(*merge_subtrees_root(&a?, &b?, Mode::Hash).as_bytes()))
}

fn subtree(file: &File, offset: u64, len: u64) -> io::Result<ChainingValue> {
    if len <= PIECE {
        return with_piece(file, offset, len, |bytes| {
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(offset).update(bytes);
            hasher.finalize_non_root()
        });
    }
    let left = left_subtree_len(len);
    let (a, b) = rayon::join(|| subtree(file, offset, left), || subtree(file, offset + left, len - left));
    Ok(merge_subtrees_non_root(&a?, &b?, Mode::Hash))
}

fn with_piece<T>(file: &File, offset: u64, len: u64, hash: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
    BUFFER.with_borrow_mut(|buffer| {
        // At most PIECE, so it fits a usize.
        let len = len as usize;
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        file.read_exact_at(&mut buffer[..len], offset)?;
        Ok(hash(&buffer[..len]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn equals_blake3_at_every_kind_of_length() {
        let bytes: Vec<u8> = (0..3 * PIECE + 4097).map(|i| ((i * i) >> 3) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        for size in [0, 1, 1024, 1025, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1023, 3 * PIECE + 4097] {
            assert_eq!(hash_file(&file, size).unwrap(), Digest::of(&bytes[..size as usize]), "{size}");
        }
        let error = hash_file(&file, bytes.len() as u64 + 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
