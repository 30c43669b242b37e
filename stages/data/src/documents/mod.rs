//! Documents as stages read them: which files hold them, what of a line is taken, and how bad lines are counted. What reads
//! documents goes through here, so that all stages take the same lines for documents.

mod shards;
mod stream;

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use anyhow::{Result, bail};
use flow_core::{Ctx, Diagnostic, Level};
use flow_formats::documents::{BLANK, BYTE_ORDER_MARK, HALF_SURROGATE, INVALID_UTF8, Text, texts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use shards::{check_shards, is_jsonl, look_at, shards, stats_name, stem, write_stats};
pub use stream::Reader;

/// Longer texts are hardly documents, and a text that never breaks takes some fifteen times its bytes of memory, and more
/// where the reference encodes it.
pub const MAX_DOCUMENT_BYTES: usize = 16 << 20;

/// The most bytes of a line that is taken, for texts of so many bytes at most: JSON may write six bytes for one, and there may be
/// other keys. So much of a longer line is kept as says that it is longer.
pub const fn longest_line(longest_text: usize) -> usize {
    longest_text.saturating_mul(6).saturating_add(1 << 20)
}

/// Bad lines of a file that are told one by one when they are passed over.
const TOLD: u64 = 5;

/// What happens with a line that is no document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBadLine {
    /// The stage fails and names the line.
    #[default]
    Fail,
    /// The line is counted and left out.
    Skip,
}

/// A line that is no document.
#[derive(Debug)]
pub struct Bad {
    /// What it is counted as.
    pub reason: Reason,
    /// Why, in words.
    pub why: String,
}

/// What bad lines are counted as.
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
    /// It, or its text, is longer than `max_document_bytes` allows.
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

/// Some threads are needed where their number is said.
pub fn check_workers(workers: Option<usize>, errors: &mut Vec<Diagnostic>) {
    if workers == Some(0) {
        errors.push(Diagnostic::new("no worker would do anything").field("workers").hint("1 or more"));
    }
}

/// The texts under the keys, none of them of more than `longest` bytes; or why the line is no document.
pub fn document<'l>(line: &'l [u8], keys: &[String], longest: usize) -> Result<Vec<Text<'l>>, Bad> {
    let most = longest_line(longest);
    if line.len() > most {
        let why = format!("the line has more than {most} bytes, and `max_document_bytes` is {longest}");
        return Err(Bad { reason: Reason::TooLong, why });
    }
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
pub fn strings<'t, 'l>(text: &'t Text<'l>) -> &'t [Cow<'l, str>] {
    match text {
        Text::One(text) => std::slice::from_ref(text),
        Text::Many(texts) => texts,
        Text::Missing | Text::Other(_) => &[],
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

/// Lines of a file that are no documents.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BadLines {
    /// How many.
    pub skipped: u64,
    /// What is wrong with them.
    reasons: BTreeMap<Reason, u64>,
}

impl BadLines {
    /// Counts one, or fails: line `number` of the file, from 0.
    ///
    /// # Errors
    /// Bad lines are to fail.
    pub fn take(&mut self, ctx: &Ctx<'_>, then: OnBadLine, path: &Path, number: u64, bad: &Bad) -> Result<()> {
        let place = format!("{}:{}", path.file_name().unwrap_or_default().to_string_lossy(), number + 1);
        let why = &bad.why;
        if then == OnBadLine::Fail {
            bail!("{place}: {why}\nto pass over such lines and count them, set on_bad_line = \"skip\"");
        }
        if self.skipped < TOLD {
            ctx.log(Level::Warning, format!("{place}: skipped: {why}"));
        }
        self.skipped += 1;
        *self.reasons.entry(bad.reason).or_default() += 1;
        Ok(())
    }
}
