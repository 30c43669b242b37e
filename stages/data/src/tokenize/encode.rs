//! A block of JSON lines → blocks of token ids, one for each key. Knows nothing of files, threads or progress.

use std::{
    borrow::Cow,
    fmt,
    io::Read,
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::{Result, anyhow};
use flow_core::{Cancel, Cancelled};
use flow_formats::{
    compressed::Decoder,
    documents::{Lines, Text},
    indexed::{Block, TokenType},
};

use super::tokenizer::Tokenizer;
use crate::documents::{Bad, document, strings};

/// A longer text is encoded on a thread of its own, which an interrupted run leaves behind: nothing can ask the
/// tokenizer to stop, and cutting the text could change ids.
const LONG: usize = 4 << 20;

/// How often who waits for such a thread looks whether to stop.
const LOOK: Duration = Duration::from_millis(50);

/// The most bytes of a file that are encoded twice before anything else.
const HEAD: usize = 64 << 10;

/// A text of each block that is not longer is encoded twice.
const COMPARED: usize = 2 << 10;

/// The faster encoder gave other ids than the reference.
#[derive(Debug)]
pub struct Differs;

impl fmt::Display for Differs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the fast encoder differs from the reference on this text")
    }
}

impl std::error::Error for Differs {}

/// How documents become ids.
#[derive(Debug)]
pub struct Encoder<'a> {
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The faster encoder is used.
    pub fast: bool,
    /// The keys whose text is wanted.
    pub keys: &'a [String],
    /// The ids that the post-processor adds are wanted.
    pub special: bool,
    /// An id that every sequence must begin with, put before if the tokenizer does not.
    pub bos: Option<u32>,
    /// The id behind each document.
    pub eod: Option<u32>,
    /// The type of the ids in the files.
    pub dtype: TokenType,
    /// A text of more bytes makes its line bad.
    pub longest: usize,
    /// A bad line is passed over, not the end.
    pub skip_bad: bool,
    /// Long texts look here.
    pub cancel: &'a Cancel,
}

/// What a block of lines became.
#[derive(Debug)]
pub struct Encoded {
    /// One for each key.
    pub blocks: Vec<Block>,
    /// How many lines it had.
    pub lines: u64,
    /// Lines that are no documents: number in the block from 0, and why. At most one if bad lines are not skipped.
    pub bad: Vec<(u64, Bad)>,
    /// Lines that end with a carriage return, with or without a newline behind it.
    pub carriage_returns: u64,
    /// Documents with U+0000 in their text.
    pub nul: u64,
}

impl Encoder<'_> {
    /// Encodes lines, as Megatron's `preprocess_data.py` does: every string is a sequence, unless it gives no ids;
    /// the document's last sequence ends with `eod`, unless there is none; a document without sequences counts.
    ///
    /// # Errors
    /// The tokenizer fails; [`Differs`]; [`Cancelled`] in the middle of a long text.
    pub fn encode(&self, lines: &[u8]) -> Result<Encoded> {
        let mut compare = self.fast;
        let mut encoded = Encoded {
            blocks: self.keys.iter().map(|_| Block::new(self.dtype)).collect(),
            lines: 0,
            bad: Vec::new(),
            // Inside of JSON there is none but as white space, which Python takes for the end of a line too.
            carriage_returns: lines.iter().filter(|byte| **byte == b'\r').count() as u64,
            nul: 0,
        };
        for line in Lines::new(lines) {
            let number = encoded.lines;
            encoded.lines += 1;
            match document(line, self.keys, self.longest) {
                Ok(found) => {
                    encoded.nul += u64::from(found.iter().any(|text| strings(text).iter().any(|s| s.contains('\0'))));
                    if let Some(text) = found.iter().flat_map(strings).find(|text| compare && text.len() <= COMPARED) {
                        compare = false;
                        self.compare(text)?;
                    }
                    for (block, text) in encoded.blocks.iter_mut().zip(found) {
                        self.append(block, text)?;
                    }
                }
                Err(bad) => {
                    encoded.bad.push((number, bad));
                    if !self.skip_bad {
                        break;
                    }
                }
            }
        }
        Ok(encoded)
    }

    /// Compares both encoders on the beginning of a file: on its documents there, or, if its first line is longer than that, on the
    /// line as it stands.
    ///
    /// # Errors
    /// [`Differs`]; the file cannot be read, or the reference cannot encode it.
    pub fn compare_head(&self, path: &Path) -> Result<()> {
        let mut head = Vec::with_capacity(HEAD);
        Decoder::open(path)?.take(HEAD as u64).read_to_end(&mut head)?;
        let mut compared = false;
        for found in Lines::new(&head).filter_map(|line| document(line, self.keys, self.longest).ok()) {
            compared = true;
            found.iter().flat_map(strings).try_for_each(|text| self.compare(text))?;
        }
        if compared { Ok(()) } else { self.compare(&String::from_utf8_lossy(&head)) }
    }

    fn compare(&self, text: &str) -> Result<()> {
        if self.tokenizer.agrees(text, self.special)? { Ok(()) } else { Err(Differs.into()) }
    }

    fn append(&self, block: &mut Block, text: Text<'_>) -> Result<()> {
        let texts = match text {
            Text::One(text) => vec![text],
            Text::Many(texts) => texts,
            Text::Missing | Text::Other(_) => Vec::new(),
        };
        // The last sequence waits until it is known to be the last.
        let mut last: Option<Vec<u32>> = None;
        for text in texts {
            let ids = self.ids(text)?;
            if ids.is_empty() {
                continue;
            }
            if let Some(before) = last.replace(ids) {
                block.sequence(&before)?;
            }
        }
        if let Some(mut ids) = last {
            ids.extend(self.eod);
            block.sequence(&ids)?;
        }
        block.end_document();
        Ok(())
    }

    fn ids(&self, text: Cow<'_, str>) -> Result<Vec<u32>> {
        let mut ids = if text.len() > LONG {
            self.on_a_thread_of_its_own(text.into_owned())?
        } else {
            self.tokenizer.encode(&text, self.special, self.fast)?
        };
        if let Some(bos) = self.bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    fn on_a_thread_of_its_own(&self, text: String) -> Result<Vec<u32>> {
        let (tokenizer, special, fast) = (Arc::clone(&self.tokenizer), self.special, self.fast);
        let (send, receive) = mpsc::sync_channel(1);
        // When nobody waits any more the answer goes nowhere.
        std::thread::Builder::new()
            .name("long text".into())
            .spawn(move || drop(send.send(tokenizer.encode(&text, special, fast))))?;
        loop {
            match receive.recv_timeout(LOOK) {
                Ok(ids) => return ids,
                Err(mpsc::RecvTimeoutError::Timeout) if self.cancel.is_set() => return Err(Cancelled.into()),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(anyhow!("the tokenizer panicked")),
            }
        }
    }
}
