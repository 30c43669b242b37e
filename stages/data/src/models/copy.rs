//! Moving a model's bytes: tiles of a few megabytes, worked off by several threads, with bounded memory.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use flow_core::{Ctx, Unit};

/// Bytes of a tile. Long enough for disks, short enough that the threads' buffers together stay small.
pub const TILE: u64 = 4 << 20;
/// More threads than this only wait for each other: one file is written by one thread at a time. And each holds its buffers.
const MOST_THREADS: usize = 8;
const REPORT: Duration = Duration::from_millis(200);

/// One piece of work: so many bytes of progress.
pub trait Tile: Sync {
    /// How many bytes it moves.
    fn bytes(&self) -> u64;
}

/// The running of tiles.
pub struct Copying<'a> {
    ctx: &'a Ctx<'a>,
    total: u64,
    done: AtomicU64,
    reported: Mutex<Instant>,
}

impl<'a> Copying<'a> {
    /// Progress and cancellation go through `ctx`.
    pub fn new(ctx: &'a Ctx<'a>, total: u64) -> Self {
        ctx.progress(0, Some(total), Unit::Bytes);
        Self { ctx, total, done: AtomicU64::new(0), reported: Mutex::new(Instant::now()) }
    }

    /// Counts what an earlier run did.
    pub fn had(&self, bytes: u64) {
        self.report(bytes);
    }

    /// Does `work` on every tile, each thread with buffers of its own, and gives the results in the tiles' order.
    /// The first error stops everyone.
    ///
    /// # Errors
    /// The first error, or the run was interrupted.
    pub fn run<T: Tile, R: Send, B: Default>(
        &self,
        tiles: &[T],
        work: impl Fn(&T, &mut B) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let threads = self.ctx.threads.clamp(1, MOST_THREADS).min(tiles.len().max(1));
        let worker = || -> Result<Vec<(usize, R)>> {
            let mut buffers = B::default();
            let mut results = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(tile) = tiles.get(i) else { break };
                let result = self.ctx.go_on().map_err(Into::into).and_then(|()| work(tile, &mut buffers));
                match result {
                    Ok(result) => results.push((i, result)),
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        return Err(error);
                    }
                }
                self.report(tile.bytes());
            }
            Ok(results)
        };
        let mut all: Vec<Option<R>> = (0..tiles.len()).map(|_| None).collect();
        let mut failed = None;
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
            for handle in handles {
                match handle.join() {
                    Ok(Ok(results)) => results.into_iter().for_each(|(i, result)| all[i] = Some(result)),
                    Ok(Err(error)) => failed = failed.take().or(Some(error)),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
        self.ctx.progress(self.done.load(Ordering::Relaxed), Some(self.total), Unit::Bytes);
        match failed {
            Some(error) => Err(error),
            None => all.into_iter().collect::<Option<_>>().context("a tile was left out"),
        }
    }

    fn report(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let Ok(mut reported) = self.reported.try_lock() else { return };
        if reported.elapsed() >= REPORT || done == self.total {
            *reported = Instant::now();
            self.ctx.progress(done, Some(self.total), Unit::Bytes);
        }
    }
}

/// Writes bytes, and has the kernel begin to bring them to the disk: it would wait for gigabytes, and the end for all of them.
///
/// # Errors
/// The file cannot be written.
pub fn write(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    file.write_all_at(bytes, at)?;
    // SAFETY: numbers alone are handed over, and the file is open. What comes of the hint is found out by `fsync`.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), at as i64, bytes.len() as i64, libc::SYNC_FILE_RANGE_WRITE);
    }
    Ok(())
}

/// Says before the first byte that a disk is too small.
///
/// # Errors
/// The file system of `dir` has no room for `bytes`.
pub fn room(dir: &Path, bytes: u64) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: all-zero bytes are a valid `statvfs`, a struct of numbers.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is a C string and `stat` is ours; both live through the call.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) } != 0 {
        return Ok(()); // what cannot be asked is found out by writing
    }
    let free = stat.f_bavail as u64 * stat.f_frsize as u64;
    if bytes > free {
        // As if it had been found out by writing.
        let full = anyhow::Error::new(io::Error::from(io::ErrorKind::StorageFull));
        return Err(full.context(format!(
            "{} has {} MB free, and {} MB are needed: make room (`flow cache gc`), or put the cache on another disk \
             (`FLOW_CACHE_DIR`)",
            dir.display(),
            free / 1_000_000,
            bytes.div_ceil(1_000_000)
        )));
    }
    Ok(())
}
