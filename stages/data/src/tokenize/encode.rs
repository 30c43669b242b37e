//! A block of JSON lines → blocks of token ids, one for each key. Knows nothing of files, threads or progress.

use std::{
    borrow::Cow,
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::{Result, anyhow};
use flow_core::{Cancel, Cancelled};
use flow_formats::{
    documents::{BLANK, BYTE_ORDER_MARK, HALF_SURROGATE, INVALID_UTF8, Lines, Text, texts},
    indexed::{Block, TokenType},
};
use serde::Serialize;

use super::tokenizer::Tokenizer;

/// A longer text is encoded on a thread of its own, which an interrupted run leaves behind: nothing can ask the
/// tokenizer to stop, and cutting the text could change ids.
const LONG: usize = 4 << 20;

/// How often who waits for such a thread looks whether to stop.
const LOOK: Duration = Duration::from_millis(50);

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
    /// The tokenizer fails; [`Cancelled`] in the middle of a long text.
    pub fn encode(&self, lines: &[u8]) -> Result<Encoded> {
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

/// The texts under the keys, none of them of more than `longest` bytes; or why the line is no document.
pub fn document<'l>(line: &'l [u8], keys: &[String], longest: usize) -> Result<Vec<Text<'l>>, Bad> {
    let mut found = vec![Text::Missing; keys.len()];
    texts(line, keys, &mut found).map_err(|bad| Bad { reason: Reason::of_line(&bad.why), why: bad.to_string() })?;
    for (key, text) in keys.iter().zip(&found) {
        match text {
            Text::One(_) | Text::Many(_) => {
                let bytes: usize = strings(text).iter().map(|text| text.len()).sum();
                if bytes > longest {
                    let why = format!("`{key}` has {bytes} bytes, and `max_document_bytes` is {longest}");
                    return Err(Bad { reason: Reason::TooLong, why });
                }
            }
            Text::Missing => return Err(Bad { reason: Reason::NoText, why: missing(key, line) }),
            Text::Other(what) => {
                let reason = if *what == HALF_SURROGATE { Reason::HalfSurrogate } else { Reason::NoText };
                return Err(Bad { reason, why: format!("`{key}` {what}") });
            }
        }
    }
    Ok(found)
}

/// What a document has under a key, as a list.
fn strings<'t, 'l>(text: &'t Text<'l>) -> &'t [Cow<'l, str>] {
    match text {
        Text::One(text) => std::slice::from_ref(text),
        Text::Many(texts) => texts,
        Text::Missing | Text::Other(_) => &[],
    }
}

/// A line that is no document.
#[derive(Debug)]
pub struct Bad {
    /// What it is counted as.
    pub reason: Reason,
    /// Why, in words.
    pub why: String,
}

/// What bad lines are counted as in `stats.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nothing, or white space.
    Blank,
    /// It begins with U+FEFF.
    ByteOrderMark,
    /// Its bytes are not UTF-8.
    InvalidUtf8,
    /// It is not a JSON object.
    NotJson,
    /// It has no text under a key.
    NoText,
    /// Its text has an escape for half of a character.
    HalfSurrogate,
    /// Its text is longer than `max_document_bytes`.
    TooLong,
}

impl Reason {
    fn of_line(why: &str) -> Self {
        match why {
            BLANK => Self::Blank,
            BYTE_ORDER_MARK => Self::ByteOrderMark,
            INVALID_UTF8 => Self::InvalidUtf8,
            _ => Self::NotJson,
        }
    }

    /// The line is JSON, but has not what is wanted of it.
    pub fn is_of_key(self) -> bool {
        matches!(self, Self::NoText | Self::HalfSurrogate)
    }
}

/// Says what keys there are instead.
fn missing(key: &str, line: &[u8]) -> String {
    let keys: Vec<String> = match serde_json::from_slice(line) {
        Ok(serde_json::Value::Object(object)) => object.into_iter().map(|(key, _)| key).collect(),
        _ => Vec::new(),
    };
    let near = flow_core::did_you_mean(key, keys.iter().map(String::as_str));
    match near {
        Some(near) => format!("`{key}` is missing; did you mean `{near}`?"),
        None if keys.is_empty() => format!("`{key}` is missing"),
        None => format!("`{key}` is missing; there are {}", keys.join(", ")),
    }
}
