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
mod stream;
mod text;
mod write;

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use flow_core::{Check, Ctx, Diagnostic, Input, Level};
use flow_formats::{
    compressed::Decoder,
    documents::{Blocks, Lines, Text},
};
use serde::Serialize;

use crate::{
    diagnostic,
    tokenize::{
        MAX_DOCUMENT_BYTES, OnBadLine,
        encode::{Bad, Reason, document},
        is_jsonl, stem,
    },
};

/// Bad lines of a file that are told one by one when they are passed over.
const TOLD: u64 = 5;

fn default_key() -> String {
    "text".to_owned()
}

fn default_samples() -> usize {
    5
}

/// The documents of an input: the name that their file has without endings, and where it lies; in order.
fn shards(input: &Input) -> Result<Vec<(String, PathBuf)>> {
    let entries = input.tree.entries().len();
    let files = input.files().into_iter().filter(|(name, _)| is_jsonl(name, entries));
    let files: Vec<_> = files.map(|(name, path)| (stem(name).to_owned(), path)).collect();
    ensure!(!files.is_empty(), "{} holds no .jsonl, plain or as .gz, .zst, .bz2 or .xz", input.name);
    if let Some(pair) = files.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        bail!("{} holds {} twice", input.name, pair[0].0);
    }
    Ok(files)
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

/// Lines of a file that are no documents.
#[derive(Clone, Debug, Default, Serialize)]
struct BadLines {
    /// How many.
    skipped: u64,
    /// What is wrong with them.
    reasons: BTreeMap<Reason, u64>,
}

impl BadLines {
    /// Counts one, or fails: line `number` of the file, from 0.
    fn take(&mut self, ctx: &Ctx<'_>, then: OnBadLine, path: &Path, number: u64, bad: &Bad) -> Result<()> {
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

/// Whether the first lines of the files that are there already are documents with this key. Little is read, and nothing is
/// said where more would have to be.
fn check_shards(check: &mut Check<'_>, port: &str, key: &str, then: OnBadLine) {
    let paths: Vec<_> = check.input(port).iter().filter_map(|known| known.path.clone()).collect();
    for path in paths.iter().filter(|path| path.is_file()) {
        if let Err(error) = look_at(path, key, then) {
            let field = error.field.clone().unwrap_or_else(|| port.to_owned());
            check.error(&field, error);
        }
    }
}

fn look_at(path: &Path, key: &str, then: OnBadLine) -> Result<(), Diagnostic> {
    const LOOK: usize = 64 << 10;
    let mut block = Vec::new();
    let first = Decoder::open(path).and_then(|decoder| {
        let head = decoder.take(LOOK as u64);
        Ok(Blocks::new(head, LOOK).next_into(&mut block)?)
    });
    first.map_err(|error| diagnostic(&error))?;
    let Some(line) = Lines::new(&block).next().filter(|line| line.len() < block.len()) else { return Ok(()) };
    let keys = [key.to_owned()];
    match document(line, &keys, MAX_DOCUMENT_BYTES) {
        Err(bad) if then == OnBadLine::Fail => {
            let error = Diagnostic::new(format!("{}:1: {}", path.display(), bad.why))
                .hint("to pass over lines that are no documents, set on_bad_line = \"skip\"");
            Err(if bad.reason.is_of_key() {
                error.hint("json_key = \"…\" names the key whose text counts")
            } else {
                error
            })
        }
        _ => Ok(()),
    }
}

/// Writes `stats.json`.
fn write_stats(ctx: &Ctx<'_>, stats: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(stats)? + "\n";
    std::fs::write(ctx.out.join("stats.json"), text).context("cannot write stats.json")
}

/// `1,234 of 5,678 documents kept in 1.2 s: …`, for the log.
fn throughput(documents: u64, bytes: u64, seconds: f64) -> String {
    let rate = |count: u64| count as f64 / seconds.max(1e-9);
    format!("{seconds:.1} s: {:.0} documents/s, {:.1} MB/s", rate(documents), rate(bytes) / 1e6)
}
