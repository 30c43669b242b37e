//! A file of lines, worked on by several threads, and taken in order.
//!
//! One thread reads and cuts blocks of lines, several work on them, the caller's takes what they made, in the order of the
//! file. Memory is bounded by the buffers: there are a few, a block travels in one, and the reader waits until it is taken. So
//! nothing piles up behind a slow block. A block of one line that is much longer than a block travels alone.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use flow_core::{Cancel, Cancelled, Ctx, Unit};
use flow_formats::{compressed::Decoder, documents::Blocks};

use super::{MAX_DOCUMENT_BYTES, longest_line};

/// Bytes of lines that travel together.
const BLOCK: usize = 1 << 20;

/// A block of more bytes travels alone.
const HUGE: usize = 8 * BLOCK;

/// How often is looked whether to stop while nothing gets done.
const LOOK: Duration = Duration::from_millis(50);

/// Reads a stage's files, one after the other, and says how far it is.
pub struct Reader<'a> {
    ctx: &'a Ctx<'a>,
    threads: usize,
    longest_line: usize,
    before: u64,
    total: u64,
}

impl<'a> Reader<'a> {
    /// Of files that have so many bytes together, as they lie on the disk; with threads as the user wants them.
    pub fn new(ctx: &'a Ctx<'a>, workers: Option<usize>, total: u64) -> Self {
        let threads = workers.unwrap_or(ctx.threads).max(1);
        Self { ctx, threads, longest_line: longest_line(MAX_DOCUMENT_BYTES), before: 0, total }
    }

    /// With texts of so many bytes at most.
    pub fn with_longest_text(self, bytes: usize) -> Self {
        Self { longest_line: longest_line(bytes), ..self }
    }

    /// Calls `work` with blocks of whole lines of the file, on several threads, and `take` with what it gave, in the order of
    /// the file. Returns how many bytes the file has without its compression.
    ///
    /// # Errors
    /// The file cannot be read; `work` or `take` fails; [`Cancelled`].
    pub fn blocks<T: Send>(
        &mut self,
        path: &Path,
        work: impl Fn(&[u8]) -> Result<T> + Sync,
        mut take: impl FnMut(T) -> Result<()>,
    ) -> Result<u64> {
        let (ctx, threads, longest) = (self.ctx, self.threads, self.longest_line);
        let decoder = Decoder::open(path)?;
        let (size, position) = (decoder.size(), decoder.position());
        let (jobs, take_jobs) = mpsc::channel::<(u64, Vec<u8>)>();
        let (done, take_done) = mpsc::channel::<(u64, Vec<u8>, Result<T>)>();
        let (buffers, take_buffers) = mpsc::channel::<Vec<u8>>();
        let count = 2 * threads + 2;
        for _ in 0..count {
            let _ = buffers.send(Vec::new());
        }
        let take_jobs = Mutex::new(take_jobs);
        let bytes = Arc::new(AtomicU64::new(0));
        thread::scope(|scope| {
            let source = Interruptible { source: decoder, bytes: Arc::clone(&bytes), cancel: ctx.cancel };
            let blocks = Blocks::new(source, BLOCK, longest);
            let reader = scope.spawn(move || read(blocks, count, &take_buffers, &jobs));
            for _ in 0..threads {
                let (take_jobs, done, work) = (&take_jobs, done.clone(), &work);
                scope.spawn(move || {
                    loop {
                        let job = take_jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok((number, lines)) = job else { return };
                        // A block that never came back would leave the taker waiting for ever.
                        let made = catch_unwind(AssertUnwindSafe(|| work(&lines)));
                        let made = made.unwrap_or_else(|_| Err(anyhow!("a thread panicked")));
                        if done.send((number, lines, made)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(done);

            let mut next = 0;
            let mut waiting: BTreeMap<u64, (Vec<u8>, Result<T>)> = BTreeMap::new();
            // An early return drops the channels' ends here, upon which reader and workers stop.
            let (buffers, take_done) = (buffers, take_done);
            loop {
                let (number, lines, made) = match take_done.recv_timeout(LOOK) {
                    Ok(done) => done,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        ctx.go_on()?;
                        continue;
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => break,
                };
                waiting.insert(number, (lines, made));
                while let Some((lines, made)) = waiting.remove(&next) {
                    ctx.go_on()?;
                    take(made.with_context(|| format!("cannot work on {}", path.display()))?)?;
                    next += 1;
                    ctx.progress(self.before + position.get(), Some(self.total), Unit::Bytes);
                    // The room that a long line took is not kept for a short one.
                    let _ = buffers.send(if lines.capacity() > 4 * BLOCK { Vec::new() } else { lines });
                }
            }
            ctx.go_on()?;
            match reader.join() {
                Ok(read) => read.with_context(|| format!("cannot read {}", path.display())),
                Err(panic) => resume_unwind(panic),
            }
        })?;
        self.before += size;
        Ok(bytes.load(Ordering::Relaxed))
    }
}

/// Reads until the run is interrupted, also in the middle of a line, and counts.
struct Interruptible<'a> {
    source: Decoder,
    bytes: Arc<AtomicU64>,
    cancel: &'a Cancel,
}

impl Read for Interruptible<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_set() {
            return Err(io::Error::other(Cancelled));
        }
        let n = self.source.read(buffer)?;
        self.bytes.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Hands out blocks in the `count` buffers that there are. Ends early when no buffer comes any more, since the taker gave up, or
/// no job is taken, since the workers did.
fn read(
    mut blocks: Blocks<Interruptible<'_>>,
    count: usize,
    buffers: &mpsc::Receiver<Vec<u8>>,
    jobs: &mpsc::Sender<(u64, Vec<u8>)>,
) -> Result<()> {
    let mut free: Vec<Vec<u8>> = Vec::new();
    // Until so many buffers are free.
    let wait_for = |free: &mut Vec<Vec<u8>>, n: usize| {
        while free.len() < n {
            let Ok(buffer) = buffers.recv() else { return false };
            free.push(buffer);
        }
        true
    };
    for number in 0.. {
        if !wait_for(&mut free, 1) {
            break;
        }
        let mut buffer = free.pop().unwrap_or_default();
        if !blocks.next_into(&mut buffer)? {
            break;
        }
        let alone = buffer.len() > HUGE;
        if alone && !wait_for(&mut free, count - 1)
            || jobs.send((number, buffer)).is_err()
            || alone && !wait_for(&mut free, count)
        {
            break;
        }
    }
    Ok(())
}
