//! Stages between text and tokens: documents as JSON lines in, fewer or other documents as JSON lines out.
//!
//! All of them stream, in memory that does not grow with the corpus, and what they write does not depend on the number of
//! threads. A document that is kept keeps its line as it was, byte for byte, unless its text is changed on purpose.

pub mod dedup;
pub mod filter;
mod limits;
pub mod mix;
mod sample;
pub mod split;
pub mod text;
mod write;

use flow_formats::documents::Text;

use crate::documents::{Bad, MAX_DOCUMENT_BYTES, document};

fn default_key() -> String {
    "text".to_owned()
}

fn default_samples() -> usize {
    5
}

/// What a line holds under the keys, as one text each: a list is its items behind each other, a line each.
fn texts<const N: usize>(line: &[u8], keys: &[String; N]) -> Result<[String; N], Bad> {
    let mut found = document(line, keys, MAX_DOCUMENT_BYTES)?.into_iter();
    Ok(std::array::from_fn(|_| match found.next() {
        Some(Text::One(text)) => text.into_owned(),
        Some(Text::Many(texts)) => texts.join("\n"),
        _ => String::new(),
    }))
}

/// `1,234 of 5,678 documents kept in 1.2 s: …`, for the log.
fn throughput(documents: u64, bytes: u64, seconds: f64) -> String {
    let rate = |count: u64| count as f64 / seconds.max(1e-9);
    format!("{seconds:.1} s: {:.0} documents/s, {:.1} MB/s", rate(documents), rate(bytes) / 1e6)
}
