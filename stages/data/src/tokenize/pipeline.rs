//! One file → datasets: one thread reads and cuts blocks of lines, several encode, the caller's writes them in order.
//!
//! Memory is bounded by the buffers: there are a few, a block of lines travels in one, and the reader waits until the
//! writer hands one back. So nothing piles up behind a slow block, and the order of the output is that of the input.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use flow_core::{Cancel, Cancelled, Ctx, Level, Unit};
use flow_formats::{
    compressed::Decoder,
    documents::{Blocks, Lines, Text, texts},
    indexed::IndexedWriter,
};

use super::encode::{Encoded, Encoder, Reason};

/// Bytes of lines that travel together.
const BLOCK: usize = 1 << 20;

/// How often is looked whether to stop while nothing gets done.
const LOOK: Duration = Duration::from_millis(50);

/// Bad lines that are told one by one when they are skipped.
const TOLD: u64 = 5;

/// What a file held.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Bytes, uncompressed.
    pub bytes: u64,
    /// Lines.
    pub lines: u64,
    /// Lines that are no documents.
    pub skipped: u64,
    /// The same, by what is wrong with them.
    pub reasons: BTreeMap<Reason, u64>,
    /// Lines that end with a carriage return, with or without a newline behind it.
    pub carriage_returns: u64,
    /// Documents with U+0000 in their text.
    pub nul: u64,
}

/// What the reader hands to the encoders: the block's number and its lines.
type Job = (u64, Vec<u8>);

/// What the encoders hand to the writer: the block's number, its buffer, and what became of it.
type Done = (u64, Vec<u8>, Result<Encoded>);

/// Encodes the file `path` into `writers`, one for each key.
///
/// # Errors
/// The file cannot be read, a line is bad and bad lines are not skipped, the tokenizer or a writer fails.
pub fn run(
    ctx: &Ctx<'_>,
    encoder: &Encoder<'_>,
    threads: usize,
    path: &Path,
    before: u64,
    total: u64,
    writers: &mut [IndexedWriter],
) -> Result<Counts> {
    let decoder = Decoder::open(path)?;
    let position = decoder.position();
    let (jobs, take_jobs) = mpsc::channel::<Job>();
    let (done, take_done) = mpsc::channel::<Done>();
    let (buffers, take_buffers) = mpsc::channel::<Vec<u8>>();
    for _ in 0..2 * threads + 2 {
        let _ = buffers.send(Vec::new());
    }
    let take_jobs = Mutex::new(take_jobs);
    thread::scope(|scope| {
        let source = Interruptible { source: decoder, cancel: ctx.cancel };
        let reader = scope.spawn(move || read(source, &take_buffers, &jobs));
        for _ in 0..threads {
            let (take_jobs, done) = (&take_jobs, done.clone());
            scope.spawn(move || {
                loop {
                    let job = take_jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((number, lines)) = job else { return };
                    // A block that never came back would leave the writer waiting for ever.
                    let encoded = catch_unwind(AssertUnwindSafe(|| encoder.encode(&lines)));
                    let encoded = encoded.unwrap_or_else(|_| Err(anyhow!("the tokenizer panicked")));
                    if done.send((number, lines, encoded)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);

        let mut counts = Counts::default();
        let mut waiting: BTreeMap<u64, (Vec<u8>, Result<Encoded>)> = BTreeMap::new();
        let mut next = 0;
        // An early return drops the channels' ends here, upon which reader and encoders stop.
        let (buffers, take_done) = (buffers, take_done);
        loop {
            let (number, lines, encoded) = match take_done.recv_timeout(LOOK) {
                Ok(done) => done,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    ctx.go_on()?;
                    continue;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            waiting.insert(number, (lines, encoded));
            while let Some((lines, encoded)) = waiting.remove(&next) {
                ctx.go_on()?;
                let encoded = encoded.with_context(|| format!("{}, behind line {}", path.display(), counts.lines))?;
                take(ctx, encoder, path, &encoded, &mut counts)?;
                for (writer, block) in writers.iter_mut().zip(&encoded.blocks) {
                    writer.append(block)?;
                }
                counts.bytes += lines.len() as u64;
                next += 1;
                ctx.progress(before + position.get(), Some(total), Unit::Bytes);
                // The room that a long line took is not kept for a short one.
                let _ = buffers.send(if lines.capacity() > 4 * BLOCK { Vec::new() } else { lines });
            }
        }
        ctx.go_on()?;
        match reader.join() {
            Ok(read) => read.map(|()| counts).with_context(|| format!("cannot tokenize {}", path.display())),
            Err(panic) => resume_unwind(panic),
        }
    })
}

/// Reads until the run is interrupted, also in the middle of a line.
struct Interruptible<'a> {
    source: Decoder,
    cancel: &'a Cancel,
}

impl Read for Interruptible<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_set() { Err(io::Error::other(Cancelled)) } else { self.source.read(buffer) }
    }
}

fn read(source: Interruptible<'_>, buffers: &mpsc::Receiver<Vec<u8>>, jobs: &mpsc::Sender<Job>) -> Result<()> {
    let mut blocks = Blocks::new(source, BLOCK);
    for number in 0.. {
        // No buffer comes any more when the writer gave up, and no job is taken when the encoders did.
        let Ok(mut buffer) = buffers.recv() else { break };
        if !blocks.next_into(&mut buffer)? || jobs.send((number, buffer)).is_err() {
            break;
        }
    }
    Ok(())
}

/// Counts a block's lines, and says or fails what of them is bad.
fn take(ctx: &Ctx<'_>, encoder: &Encoder<'_>, path: &Path, encoded: &Encoded, counts: &mut Counts) -> Result<()> {
    for (number, bad) in &encoded.bad {
        let why = &bad.why;
        let place = format!("{}:{}", path.file_name().unwrap_or_default().to_string_lossy(), counts.lines + number + 1);
        if !encoder.skip_bad {
            bail!("{place}: {why}\nto pass over such lines and count them, set on_bad_line = \"skip\"");
        }
        if counts.skipped < TOLD {
            ctx.log(Level::Warning, format!("{place}: skipped: {why}"));
        }
        counts.skipped += 1;
        *counts.reasons.entry(bad.reason).or_default() += 1;
    }
    counts.lines += encoded.lines;
    counts.carriage_returns += encoded.carriage_returns;
    counts.nul += encoded.nul;
    Ok(())
}

/// Whether both encoders give the same ids for the beginning of a file: for its documents within so many bytes, or, if
/// its first line is longer than that, for the line as it stands there.
///
/// # Errors
/// The file cannot be read, or the reference cannot encode it.
pub fn encoders_agree(encoder: &Encoder<'_>, path: &Path, bytes: usize) -> Result<bool> {
    let mut head = Vec::with_capacity(bytes);
    Decoder::open(path)?.take(bytes as u64).read_to_end(&mut head)?;
    let agree = |text: &str| encoder.tokenizer.agrees(text, encoder.special);
    let mut compared = false;
    for line in Lines::new(&head) {
        let mut found = vec![Text::Missing; encoder.keys.len()];
        if texts(line, encoder.keys, &mut found).is_err() {
            continue;
        }
        compared = true;
        for text in found {
            let texts = match text {
                Text::One(text) => vec![text],
                Text::Many(texts) => texts,
                Text::Missing | Text::Other(_) => Vec::new(),
            };
            for text in texts {
                if !agree(&text)? {
                    return Ok(false);
                }
            }
        }
    }
    if compared { Ok(true) } else { agree(&String::from_utf8_lossy(&head)) }
}
