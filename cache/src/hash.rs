//! BLAKE3 of a file on all cores.
//!
//! BLAKE3 is a tree of chunks: every thread hashes its own piece of the file as a subtree, and the pieces are merged.

use std::{cell::RefCell, fs::File, io, os::unix::fs::FileExt as _};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use flow_core::Digest;

use crate::window::Window;

/// What a thread takes at once. A power of two, as all lengths here, so that every piece is a whole subtree.
const PIECE: u64 = 1 << 20;
/// What is mapped at once: bounds the memory, and large files are read from front to back.
const STRETCH: u64 = 1 << 27;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The digest of the first `size` bytes of a file.
///
/// # Errors
/// Reading fails; [`io::ErrorKind::UnexpectedEof`] when the file is shorter. By less than a page that may go unseen:
/// the caller compares lengths afterwards, as he must anyway for files that grow.
pub(crate) fn hash_file(file: &File, size: u64) -> io::Result<Digest> {
    if size <= PIECE {
        return with_read(file, 0, size, Digest::of);
    }
    let (left, right) = halves(file, 0, size)?;
    Ok(Digest(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()))
}

/// Both halves of a stretch of more than a piece.
fn halves(file: &File, offset: u64, len: u64) -> io::Result<(ChainingValue, ChainingValue)> {
    if len > STRETCH {
        let left = left_subtree_len(len);
        let node = |offset, len| match len {
            ..=PIECE => read_leaf(file, offset, len),
            _ => halves(file, offset, len).map(|(left, right)| merge_subtrees_non_root(&left, &right, Mode::Hash)),
        };
        return Ok((node(offset, left)?, node(offset + left, len - left)?));
    }
    if let Some(window) = Window::open(file, offset, len) {
        // At most a stretch, so it fits.
        let leaf = |at: u64, len: u64| Ok(chain(window.bytes((at - offset) as usize, len as usize)?, at));
        let mapped = spread(offset, len, &leaf);
        if window.close()
            && let Ok(mapped) = mapped
        {
            return Ok(mapped);
        }
    }
    spread(offset, len, &|at, len| read_leaf(file, at, len))
}

/// Both halves, on as many threads as there are.
fn spread<F>(offset: u64, len: u64, leaf: &F) -> io::Result<(ChainingValue, ChainingValue)>
where
    F: Fn(u64, u64) -> io::Result<ChainingValue> + Sync,
{
    let left = left_subtree_len(len);
    let node = |offset, len| match len {
        ..=PIECE => leaf(offset, len),
        _ => spread(offset, len, leaf).map(|(left, right)| merge_subtrees_non_root(&left, &right, Mode::Hash)),
    };
    let (left, right) = rayon::join(|| node(offset, left), || node(offset + left, len - left));
    Ok((left?, right?))
}

fn chain(bytes: &[u8], offset: u64) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset).update(bytes);
    hasher.finalize_non_root()
}

fn read_leaf(file: &File, offset: u64, len: u64) -> io::Result<ChainingValue> {
    with_read(file, offset, len, |bytes| chain(bytes, offset))
}

/// Calls `look`, which must not read itself, with bytes of the file.
fn with_read<T>(file: &File, offset: u64, len: u64, look: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
    BUFFER.with_borrow_mut(|buffer| {
        // At most a piece, so it fits.
        let len = len as usize;
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        file.read_exact_at(&mut buffer[..len], offset)?;
        Ok(look(&buffer[..len]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek as _, Write as _};

    #[test]
    fn equals_blake3_at_every_kind_of_length() {
        let bytes: Vec<u8> = (0..3 * PIECE + 4097).map(|i| ((i * i) >> 3) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        for size in [0, 1, 1024, 1025, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1023, 3 * PIECE + 4097] {
            assert_eq!(hash_file(&file, size).unwrap(), Digest::of(&bytes[..size as usize]), "{size}");
        }
        let error = hash_file(&file, bytes.len() as u64 + 4096).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let read = spread(0, 2 * PIECE + 1023, &|at, len| read_leaf(&file, at, len)).unwrap();
        assert_eq!(halves(&file, 0, 2 * PIECE + 1023).unwrap(), read, "mapped and read");
    }

    #[test]
    fn equals_blake3_over_several_stretches() {
        // Holes cost no disk.
        let mut file = tempfile::tempfile().unwrap();
        for at in [0, STRETCH - 3, STRETCH + PIECE, 2 * STRETCH + 5] {
            file.seek(io::SeekFrom::Start(at)).unwrap();
            file.write_all(b"content").unwrap();
        }
        let mut hasher = blake3::Hasher::new();
        file.rewind().unwrap();
        hasher.update_reader(&file).unwrap();
        let size = file.metadata().unwrap().len();
        assert_eq!(size, 2 * STRETCH + 12);
        assert_eq!(hash_file(&file, size).unwrap().0, *hasher.finalize().as_bytes());
    }
}
