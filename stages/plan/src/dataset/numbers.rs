//! [`Numbers`]: the arrays that say where samples are. In memory, or in a file that is mapped: then they may be larger than
//! memory, every process of a host maps the same pages, and whoever comes again with the same data finds them made.

use std::{
    fs::{File, OpenOptions},
    ops::Deref,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use flow_formats::indexed::idx_path;
use memmap2::{Mmap, MmapMut};

/// An array of numbers that does not change any more.
pub enum Numbers {
    /// In memory.
    Here(Vec<u32>),
    /// In a file.
    Mapped(Mmap),
}

impl Deref for Numbers {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        match self {
            Self::Here(numbers) => numbers,
            // SAFETY: a map begins at a page, which is aligned for any number, and every four bytes are one.
            Self::Mapped(map) => unsafe { std::slice::from_raw_parts(map.as_ptr().cast(), map.len() / 4) },
        }
    }
}

/// Where numbers are kept.
#[derive(Clone, Debug, Default)]
pub struct Store {
    directory: Option<PathBuf>,
}

impl Store {
    /// In the directory that `FLOW_INDEX_DIR` names; in memory if it names none.
    pub fn of_environment() -> Self {
        Self { directory: std::env::var_os("FLOW_INDEX_DIR").filter(|name| !name.is_empty()).map(PathBuf::from) }
    }

    #[cfg(test)]
    pub fn in_directory(directory: &Path) -> Self {
        Self { directory: Some(directory.to_owned()) }
    }

    /// What tells the content of these datasets from others; nothing if nothing is kept.
    ///
    /// # Errors
    /// An index cannot be read.
    pub fn digest<'a>(&self, prefixes: impl IntoIterator<Item = &'a Path>) -> Result<Option<blake3::Hash>> {
        if self.directory.is_none() {
            return Ok(None);
        }
        let mut all = blake3::Hasher::new();
        for prefix in prefixes {
            let path = idx_path(prefix);
            let mut one = blake3::Hasher::new();
            one.update_mmap_rayon(&path).with_context(|| format!("cannot read {}", path.display()))?;
            all.update(one.finalize().as_bytes());
        }
        Ok(Some(all.finalize()))
    }

    /// `len` numbers as `make` fills them in, from zeros; taken from the file if somebody made those of this name before.
    ///
    /// # Errors
    /// `make` fails, or the file cannot be written or mapped.
    pub fn numbers(&self, name: &str, len: usize, make: impl FnOnce(&mut [u32]) -> Result<()>) -> Result<Numbers> {
        let Some(directory) = self.directory.as_deref().filter(|_| len > 0) else {
            let mut numbers = vec![0; len];
            make(&mut numbers)?;
            return Ok(Numbers::Here(numbers));
        };
        let path = directory.join(name);
        let cannot = || format!("cannot keep {}", path.display());
        std::fs::create_dir_all(directory).with_context(cannot)?;
        if let Some(map) = map(&path, len)? {
            return Ok(Numbers::Mapped(map));
        }
        // One makes them, the others wait. The lock ends with its holder.
        let lock = directory.join(format!("{name}.lock"));
        let lock = File::create(&lock).with_context(cannot)?;
        lock.lock().with_context(cannot)?;
        if let Some(map) = map(&path, len)? {
            return Ok(Numbers::Mapped(map));
        }
        let new = directory.join(format!("{name}.new"));
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&new).with_context(cannot)?;
        file.set_len(len as u64 * 4).with_context(cannot)?;
        // SAFETY: only the holder of the lock has this file, and it is not cut while it is mapped.
        let mut numbers = unsafe { MmapMut::map_mut(&file) }.with_context(cannot)?;
        // SAFETY: as in `deref`.
        make(unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), len) })?;
        numbers.flush().with_context(cannot)?;
        file.sync_all().with_context(cannot)?;
        std::fs::rename(&new, &path).with_context(cannot)?;
        map(&path, len)?.map(Numbers::Mapped).with_context(cannot)
    }
}

/// The file, if it is there.
fn map(path: &Path, len: usize) -> Result<Option<Mmap>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| format!("cannot read {}", path.display()))?,
    };
    // SAFETY: files get their names when they are whole, and are not written to after that.
    let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {}", path.display()))?;
    ensure!(map.len() == len * 4, "{} has not the length that it was made with: remove it", path.display());
    Ok(Some(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_made_once_and_never_half() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::in_directory(directory.path());
        let made = std::sync::atomic::AtomicUsize::new(0);
        let make = |numbers: &mut [u32]| {
            made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            numbers.iter_mut().zip(0..).for_each(|(number, i)| *number = i);
            Ok(())
        };
        assert!(store.numbers("a", 1000, |_| anyhow::bail!("no")).is_err());
        let ask = || assert!(store.numbers("a", 1000, make).unwrap().iter().copied().eq(0..1000));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(ask);
            }
        });
        assert_eq!(made.into_inner(), 1);
        assert!(store.numbers("a", 999, |_| Ok(())).is_err());
        assert!(matches!(store.numbers("b", 0, |_| Ok(())).unwrap(), Numbers::Here(_)));
    }
}
