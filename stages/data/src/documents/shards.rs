//! The files of a stage that holds documents: their names, what stands beside them, and a look at their first lines.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flow_core::{Check, Ctx, Diagnostic, Input};
use flow_formats::{
    compressed::{Decoder, strip_ending},
    documents::{Blocks, Lines},
};
use serde::Serialize;

use super::{MAX_DOCUMENT_BYTES, OnBadLine, document};
use crate::diagnostic;

/// A single file is taken whatever its name; in a directory the others are something else, as the counts that stages which
/// write documents put beside them.
pub fn is_jsonl(name: &str, entries: usize) -> bool {
    let plain = strip_ending(name);
    let is_stats = name == "stats.json" || name.ends_with(".stats.json");
    entries == 1 || !is_stats && [".jsonl", ".ndjson", ".json"].iter().any(|ending| plain.ends_with(ending))
}

/// `wiki/train_0.jsonl.gz` → `wiki/train_0`
pub fn stem(name: &str) -> &str {
    let plain = strip_ending(name);
    let endings = [".jsonl", ".ndjson", ".json"];
    endings.iter().find_map(|ending| plain.strip_suffix(ending)).filter(|stem| !stem.is_empty()).unwrap_or(plain)
}

/// The documents of an input: the name that their file has without endings, and where it lies; in order.
///
/// # Errors
/// There are none, or two files would become one.
pub fn shards(input: &Input) -> Result<Vec<(String, PathBuf)>> {
    let entries = input.tree.entries().len();
    let files = input.files().into_iter().filter(|(name, _)| is_jsonl(name, entries));
    let files: Vec<_> = files.map(|(name, path)| (stem(name).to_owned(), path)).collect();
    ensure!(!files.is_empty(), "{} holds no .jsonl, plain or as .gz, .zst, .bz2 or .xz", input.name);
    if let Some(pair) = files.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        bail!("{} holds {} twice", input.name, pair[0].0);
    }
    Ok(files)
}

/// The counts of what became of a file, beside it: under a name of their own, so that shards can lie in one directory.
pub fn stats_name(stem: &str) -> String {
    format!("{stem}.stats.json")
}

/// Writes them.
///
/// # Errors
/// The file cannot be written.
pub fn write_stats(ctx: &Ctx<'_>, name: &str, stats: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(stats)? + "\n";
    let path = ctx.out.join(name);
    // Where the documents themselves go may be beside the directory of this name.
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    made.and_then(|()| std::fs::write(&path, text)).with_context(|| format!("cannot write {name}"))
}

/// Whether the first lines of the files that are there already are documents with this key. Little is read, and nothing is
/// said where more would have to be.
pub fn check_shards(check: &mut Check<'_>, port: &str, key: &str, then: OnBadLine) {
    let keys = [key.to_owned()];
    let of_key = |error: Diagnostic| error.hint("json_key = \"…\" names the key whose text counts");
    look_at(check, port, &keys, MAX_DOCUMENT_BYTES, then, of_key);
}

/// The same for several keys; `of_key` completes what is said of a line that has no text under one of them.
pub fn look_at(
    check: &mut Check<'_>,
    port: &str,
    keys: &[String],
    longest: usize,
    then: OnBadLine,
    of_key: impl Fn(Diagnostic) -> Diagnostic,
) {
    let paths: Vec<_> = check.input(port).iter().filter_map(|known| known.path.clone()).collect();
    for path in paths.iter().filter(|path| path.is_file()) {
        if let Err(error) = look_at_file(path, keys, longest, then, &of_key) {
            let field = error.field.clone().unwrap_or_else(|| port.to_owned());
            check.error(&field, error);
        }
    }
}

fn look_at_file(
    path: &Path,
    keys: &[String],
    longest: usize,
    then: OnBadLine,
    of_key: &impl Fn(Diagnostic) -> Diagnostic,
) -> Result<(), Diagnostic> {
    const LOOK: usize = 64 << 10;
    let mut block = Vec::new();
    let first = Decoder::open(path).and_then(|decoder| {
        let head = std::io::Read::take(decoder, LOOK as u64);
        Ok(Blocks::new(head, LOOK, LOOK).next_into(&mut block)?)
    });
    first.map_err(|error| diagnostic(&error))?;
    let Some(line) = Lines::new(&block).next().filter(|line| line.len() < block.len()) else { return Ok(()) };
    match document(line, keys, longest) {
        Err(bad) if then == OnBadLine::Fail => {
            let error = Diagnostic::new(format!("{}:1: {}", path.display(), bad.why))
                .hint("to pass over lines that are no documents, set on_bad_line = \"skip\"");
            Err(if bad.reason.is_of_key() { of_key(error) } else { error })
        }
        _ => Ok(()),
    }
}
