//! Records sorted in memory that is bounded, by runs on the disk.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rayon::slice::ParallelSliceMut;

/// A digest, and the number of the document that has it, both so that they sort as bytes.
pub type Record = [u8; 24];

/// Runs that are merged at a time: so many files are open.
const RUNS: usize = 128;

/// Collects records, and gives them back in order.
pub struct Sorter {
    directory: PathBuf,
    most: usize,
    buffer: Vec<Record>,
    runs: Vec<PathBuf>,
    made: usize,
}

impl Sorter {
    /// With `bytes` of memory; the runs are files in `directory`.
    pub fn new(directory: &Path, bytes: u64) -> Self {
        let most = usize::try_from(bytes / size_of::<Record>() as u64).unwrap_or(usize::MAX).max(1);
        Self { directory: directory.to_owned(), most, buffer: Vec::new(), runs: Vec::new(), made: 0 }
    }

    /// Takes a record.
    ///
    /// # Errors
    /// A run cannot be written.
    pub fn push(&mut self, digest: [u8; 16], document: u64) -> Result<()> {
        if self.buffer.len() == self.most {
            self.spill()?;
        }
        // Doubling would take half more than there is.
        if self.buffer.len() == self.buffer.capacity() {
            let more = self.buffer.len().clamp(1 << 12, 1 << 22).min(self.most - self.buffer.len());
            self.buffer.reserve_exact(more);
        }
        let mut record = [0; 24];
        record[..16].copy_from_slice(&digest);
        record[16..].copy_from_slice(&document.to_be_bytes());
        self.buffer.push(record);
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        self.buffer.par_sort_unstable();
        let mut run = self.create()?;
        for record in &self.buffer {
            run.1.write_all(record).with_context(|| format!("cannot write {}", run.0.display()))?;
        }
        self.buffer.clear();
        self.close(run)
    }

    fn create(&mut self) -> Result<(PathBuf, BufWriter<File>)> {
        let path = self.directory.join(format!("run-{}", self.made));
        self.made += 1;
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok((path, BufWriter::with_capacity(1 << 20, file)))
    }

    fn close(&mut self, (path, mut file): (PathBuf, BufWriter<File>)) -> Result<()> {
        file.flush().with_context(|| format!("cannot write {}", path.display()))?;
        self.runs.push(path);
        Ok(())
    }

    /// Calls `take` with every record, in order.
    ///
    /// # Errors
    /// A run cannot be written or read; `take` fails.
    pub fn finish(mut self, mut take: impl FnMut(&Record) -> Result<()>) -> Result<()> {
        if self.runs.is_empty() {
            self.buffer.par_sort_unstable();
            return self.buffer.iter().try_for_each(take);
        }
        self.spill()?;
        self.buffer = Vec::new();
        while self.runs.len() > RUNS {
            let some: Vec<PathBuf> = self.runs.drain(..RUNS).collect();
            let mut run = self.create()?;
            merge(&some, |record| run.1.write_all(record).context("cannot write a run"))?;
            self.close(run)?;
        }
        merge(&self.runs, &mut take)
    }
}

/// Merges sorted runs, and removes them.
fn merge(runs: &[PathBuf], mut take: impl FnMut(&Record) -> Result<()>) -> Result<()> {
    use std::{cmp::Reverse, collections::BinaryHeap};
    let open = |path: &PathBuf| File::open(path).map(|file| BufReader::with_capacity(256 << 10, file));
    let cannot = |path: &PathBuf| format!("cannot read {}", path.display());
    let mut files = runs.iter().map(|path| open(path).with_context(|| cannot(path))).collect::<Result<Vec<_>>>()?;
    let mut next = |i: usize| -> Result<Option<Record>> {
        let mut record = [0; 24];
        match files[i].read_exact(&mut record) {
            Ok(()) => Ok(Some(record)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error).with_context(|| cannot(&runs[i])),
        }
    };
    let mut heads = BinaryHeap::new();
    for i in 0..runs.len() {
        heads.extend(next(i)?.map(|record| Reverse((record, i))));
    }
    while let Some(Reverse((record, i))) = heads.pop() {
        take(&record)?;
        heads.extend(next(i)?.map(|record| Reverse((record, i))));
    }
    for path in runs {
        std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_in_order_whatever_the_memory() {
        let records: Vec<[u8; 16]> = (0..20_000u64)
            .map(|i| {
                let mut digest = [0; 16];
                digest.copy_from_slice(&blake3::hash(&(i % 7_000).to_le_bytes()).as_bytes()[..16]);
                digest
            })
            .collect();
        let sorted = |bytes: u64| {
            let directory = tempfile::tempdir().unwrap();
            let mut sorter = Sorter::new(directory.path(), bytes);
            for (i, digest) in records.iter().enumerate() {
                sorter.push(*digest, i as u64).unwrap();
            }
            let mut all = Vec::new();
            sorter
                .finish(|record| {
                    all.push(*record);
                    Ok(())
                })
                .unwrap();
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
            all
        };
        let whole = sorted(1 << 30);
        assert!(whole.len() == records.len() && whole.is_sorted());
        // 400 runs are more than are merged at a time.
        assert!(whole == sorted(24 * 50) && whole == sorted(24 * 19_999));
    }
}
