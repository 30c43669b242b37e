//! `dedup`: each document once.

mod minhash;
mod sets;
mod sort;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    time::Instant,
};

use anyhow::Result;
use flow_core::{Check, Ctx, Diagnostic, Input, Level, Port, Refs, Stage};
use flow_formats::documents::Lines;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

use super::{
    default_samples,
    limits::Family,
    sample::Sample,
    texts, throughput,
    write::{Output, Writer},
};
use crate::{
    documents::{Bad, BadLines, OnBadLine, Reader, check_shards, check_workers, shards, write_stats},
    size::Size,
};
use minhash::{MinHash, Unit, bands_and_rows};
use sets::Sets;
use sort::Sorter;

/// Hash functions that are used when only a similarity is said.
const FUNCTIONS: usize = 128;

/// `kind = "dedup"`: one node for all shards. Each becomes a file of the same name without the documents that came before,
/// in it or in a shard before it: letter for letter, or nearly so. Of what is the same the first stays, in the order of the
/// inputs. (Where two inputs have a file of the same name, it lies in a directory that is called by the number of its input.)
/// `stats.json` says how many went, and shows a few of them with the place of the one that stays.
///
/// The documents are read twice. What is known of them in between is sorted in files, 24 bytes for each band of each
/// document, so that memory stays within `memory` whatever the corpus.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dedup {
    /// Documents: `.jsonl`, also compressed.
    #[serde(skip_serializing)]
    input: Refs,
    /// The key whose text counts.
    #[serde(default = "super::default_key")]
    json_key: String,
    /// When texts are the same.
    #[serde(default)]
    exact: Exact,
    /// When they are nearly the same: `true`, or a table that says more; `false` for not at all.
    #[serde(default = "near_by_default")]
    near: Family<Near>,
    /// How much memory the sorting may take; 1GiB if left out.
    #[serde(default = "default_memory", skip_serializing)]
    memory: Size,
    /// How the documents are written: `zst` if nothing is said.
    #[serde(default)]
    output: Output,
    /// How many of the dropped documents are shown in `stats.json`, of each sort; 5 if left out.
    #[serde(default = "default_samples")]
    samples: usize,
    /// What happens with a line that is no document.
    #[serde(default)]
    on_bad_line: OnBadLine,
    /// Threads that work; as many as the stage may use if left out.
    #[serde(default, skip_serializing)]
    workers: Option<usize>,
}

fn default_memory() -> Size {
    Size(1 << 30)
}

fn near_by_default() -> Family<Near> {
    Family(Some(Near::default()))
}

/// When texts are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Exact {
    /// Letter for letter.
    #[default]
    Text,
    /// In NFKC, in small letters, and with all white space alike.
    Normalized,
    /// They are not looked for.
    Off,
}

/// MinHash with banding. `bands` of `rows` hashes each find two documents of similarity *s* with the probability
/// 1 − (1 − *s*^rows)^bands: with 14 and 8, which is what nothing said means, every second pair at 0.69.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Near {
    /// From which Jaccard similarity of their shingles on, between 0 and 1: chooses bands and rows, of 128 hashes.
    #[serde(skip_serializing_if = "Option::is_none")]
    similarity: Option<f64>,
    /// How many bands, in place of a similarity.
    #[serde(skip_serializing_if = "Option::is_none")]
    bands: Option<usize>,
    /// How many hashes in each.
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<usize>,
    /// How many words or characters in a row are a shingle; 5 words or 10 characters if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    ngram: Option<usize>,
    /// What shingles are made of.
    shingle: Shingle,
    /// Other seeds, other hash functions.
    seed: u64,
}

/// What shingles are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Shingle {
    /// Words; in scripts without spaces, pieces that are about as long.
    #[default]
    Word,
    /// Letters and digits.
    Char,
}

impl Near {
    fn bands_and_rows(&self) -> (usize, usize) {
        match self.similarity {
            Some(similarity) => bands_and_rows(similarity, FUNCTIONS),
            None => (self.bands.unwrap_or(14), self.rows.unwrap_or(8)),
        }
    }

    fn minhash(&self) -> MinHash {
        let (bands, rows) = self.bands_and_rows();
        let (unit, ngram) = match self.shingle {
            Shingle::Word => (Unit::Word, 5),
            Shingle::Char => (Unit::Character, 10),
        };
        MinHash::new(unit, self.ngram.unwrap_or(ngram), bands, rows, self.seed)
    }

    fn find_errors(&self, errors: &mut Vec<Diagnostic>) {
        if let Some(similarity) = self.similarity {
            if !(similarity > 0.0 && similarity < 1.0) {
                let error = Diagnostic::new(format!("{similarity} is no similarity")).field("near.similarity");
                errors.push(error.hint("between 0, nothing in common, and 1, the same shingles: such as 0.8"));
            }
            if let Some((field, _)) = [("bands", self.bands), ("rows", self.rows)].iter().find(|set| set.1.is_some()) {
                let error = Diagnostic::new(format!("`similarity` and `{field}` are both there"));
                errors.push(error.field(format!("near.{field}")).hint("a similarity chooses bands and rows: keep one"));
            }
        }
        let (bands, rows) = (self.bands.unwrap_or(14), self.rows.unwrap_or(8));
        for (field, value) in [("bands", self.bands), ("rows", self.rows), ("ngram", self.ngram)] {
            if value == Some(0) {
                errors
                    .push(Diagnostic::new(format!("`{field}` is 0")).field(format!("near.{field}")).hint("1 or more"));
            }
        }
        if bands.saturating_mul(rows) > 4096 {
            let error = Diagnostic::new(format!("{bands} × {rows} hashes of every shingle would take for ever"));
            errors
                .push(error.field(if self.bands.is_some() { "near.bands" } else { "near.rows" }).hint("at most 4096"));
        }
    }
}

/// `stats.json`.
#[derive(Debug, Serialize)]
struct Stats {
    documents: u64,
    kept: u64,
    /// The same as one before them, letter for letter or as `exact` has it.
    exact: u64,
    /// Nearly the same.
    near: u64,
    bytes: u64,
    kept_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bands_and_rows: Option<(usize, usize)>,
    exact_sample: Sample,
    near_sample: Sample,
    files: BTreeMap<String, FileStats>,
}

#[derive(Debug, Default, Serialize)]
struct FileStats {
    documents: u64,
    kept: u64,
    bytes: u64,
    kept_bytes: u64,
    #[serde(flatten)]
    bad: BadLines,
}

/// A file of documents.
struct Shard {
    name: String,
    path: PathBuf,
    /// The number of its first line, of all.
    first: u64,
    stats: FileStats,
}

/// What is known of a block of lines.
struct Signed {
    lines: u64,
    records: Vec<([u8; 16], u64)>,
    bad: Vec<(u64, Bad)>,
}

impl Stage for Dedup {
    const KIND: &'static str = "dedup";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Drops documents that came before, exactly or nearly, across all shards";

    fn expand(self, errors: &mut Vec<Diagnostic>) -> Vec<Self> {
        if let Some(near) = &self.near.0 {
            near.find_errors(errors);
        } else if self.exact == Exact::Off {
            let error = Diagnostic::new("neither exact nor near duplicates are looked for").field("exact");
            errors.push(error.hint("leave `exact` or `near` away"));
        }
        if self.memory.0 < 16 << 20 {
            let error = Diagnostic::new("so little memory would take files without end").field("memory");
            errors.push(error.hint("16MiB or more"));
        }
        check_workers(self.workers, errors);
        vec![self]
    }

    fn ports(&self) -> Vec<Port> {
        vec![Port::all("input", &self.input)]
    }

    fn check(&self, check: &mut Check<'_>) {
        check_shards(check, "input", &self.json_key, self.on_bad_line);
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let started = Instant::now();
        let mut shards = named(ctx.input("input"))?;
        let total: u64 = ctx.input("input").iter().map(|input| input.tree.size()).sum();
        let mut reader = Reader::new(ctx, self.workers, 2 * total);
        let sorter = self.sign(ctx, &mut shards, &mut reader)?;
        let lines = shards.last().map_or(0, |shard| shard.first + shard.stats.documents + shard.stats.bad.skipped);
        let mut sets = Sets::new(&ctx.scratch.join("sets"), lines)?;
        let mut group: Option<([u8; 16], u64)> = None;
        let mut seen = 0u64;
        sorter.finish(|record| {
            let (digest, document) = record.split_at(16);
            let document = u64::from_be_bytes(document.try_into()?);
            match group {
                Some((of, first)) if of == digest => {
                    sets.unite(first, document);
                    if of[0] == EXACT {
                        sets.mark_exact(document);
                    }
                }
                _ => group = Some((digest.try_into()?, document)),
            }
            seen += 1;
            if seen.is_multiple_of(1 << 16) {
                ctx.go_on()?;
            }
            Ok(())
        })?;
        let mut stats = self.write(ctx, &mut shards, &mut sets, &mut reader)?;
        stats.files = shards.into_iter().map(|shard| (shard.name, shard.stats)).collect();
        let sum = |of: fn(&FileStats) -> u64| stats.files.values().map(of).sum::<u64>();
        (stats.documents, stats.kept) = (sum(|file| file.documents), sum(|file| file.kept));
        (stats.bytes, stats.kept_bytes) = (sum(|file| file.bytes), sum(|file| file.kept_bytes));
        let rate = throughput(stats.documents, stats.bytes, started.elapsed().as_secs_f64());
        let Stats { documents, kept, exact, near, .. } = stats;
        ctx.log(
            Level::Info,
            format!("{kept} of {documents} documents kept, {exact} exact and {near} near ones gone in {rate}"),
        );
        write_stats(ctx, "stats.json", &stats)
    }
}

/// What the digests of exact texts begin with.
const EXACT: u8 = 0;

/// What those of bands begin with.
const NEAR: u8 = 1;

impl Dedup {
    /// The first reading: what may be the same as what.
    fn sign(&self, ctx: &Ctx<'_>, shards: &mut [Shard], reader: &mut Reader<'_>) -> Result<Sorter> {
        let keys = [self.json_key.clone()];
        let minhash = self.near.0.as_ref().map(Near::minhash);
        let sign = |block: &[u8]| {
            let mut signed = Signed { lines: 0, records: Vec::new(), bad: Vec::new() };
            for line in Lines::new(block) {
                let number = signed.lines;
                signed.lines += 1;
                let text = match texts(line, &keys) {
                    Ok([text]) => text,
                    Err(bad) => {
                        signed.bad.push((number, bad));
                        continue;
                    }
                };
                let begin = |mut digest: [u8; 16], with| {
                    digest[0] = with;
                    (digest, number)
                };
                signed.records.extend(self.exact(&text).map(|digest| begin(digest, EXACT)));
                let bands = minhash.iter().flat_map(|minhash| minhash.bands(&text));
                signed.records.extend(bands.map(|digest| begin(digest, NEAR)));
            }
            Ok(signed)
        };
        let mut sorter = Sorter::new(ctx.scratch, self.memory.0);
        let mut lines = 0;
        for shard in shards {
            shard.first = lines;
            let stats = &mut shard.stats;
            stats.bytes = reader.blocks(&shard.path, sign, |signed| {
                for (number, bad) in &signed.bad {
                    stats.bad.take(ctx, self.on_bad_line, &shard.path, lines - shard.first + number, bad)?;
                }
                stats.documents += signed.lines - signed.bad.len() as u64;
                for (digest, number) in signed.records {
                    sorter.push(digest, lines + number)?;
                }
                lines += signed.lines;
                Ok(())
            })?;
        }
        Ok(sorter)
    }

    /// The digest of a text that is the same for those that are.
    fn exact(&self, text: &str) -> Option<[u8; 16]> {
        let digest = match self.exact {
            Exact::Off => return None,
            Exact::Text => blake3::hash(text.as_bytes()),
            Exact::Normalized => {
                let plain: String = text.nfkc().flat_map(char::to_lowercase).collect();
                let words: Vec<&str> = plain.split_whitespace().collect();
                blake3::hash(words.join(" ").as_bytes())
            }
        };
        let mut short = [0; 16];
        short.copy_from_slice(&digest.as_bytes()[..16]);
        Some(short)
    }

    /// The second reading: what stays is written.
    fn write(&self, ctx: &Ctx<'_>, shards: &mut [Shard], sets: &mut Sets, reader: &mut Reader<'_>) -> Result<Stats> {
        let keys = [self.json_key.clone()];
        let places: Vec<(u64, String)> = shards.iter().map(|shard| (shard.first, shard.name.clone())).collect();
        let place = |line: u64| {
            let (first, name) = &places[places.partition_point(|place| place.0 <= line) - 1];
            format!("the same as {name}:{}", line - first + 1)
        };
        let (mut samples, mut gone) = ([Sample::default(), Sample::default()], [0, 0]);
        for shard in shards {
            let mut writer = Writer::create(ctx.out, &shard.name, self.output)?;
            let mut lines = shard.first;
            let look = |block: &[u8]| {
                let of = Lines::new(block).map(|line| texts(line, &keys).is_ok()).collect::<Vec<_>>();
                Ok((block.to_vec(), of))
            };
            reader.blocks(&shard.path, look, |(block, documents)| {
                let mut kept = Vec::with_capacity(block.len());
                let mut count = 0;
                let mut here = [Sample::default(), Sample::default()];
                for (number, (line, _)) in Lines::new(&block).zip(documents).enumerate().filter(|(_, line)| line.1) {
                    let document = lines + number as u64;
                    let first = sets.first(document);
                    if first == document {
                        kept.extend_from_slice(line);
                        kept.push(b'\n');
                        count += 1;
                        continue;
                    }
                    let near = usize::from(!sets.is_exact(document));
                    gone[near] += 1;
                    here[near].take(self.samples, number as u64, line, || (place(first), text_of(line, &keys)));
                }
                for (sample, here) in samples.iter_mut().zip(here) {
                    sample.merge(self.samples, here, &shard.name, lines - shard.first);
                }
                lines += Lines::new(&block).count() as u64;
                writer.append(&kept, count)
            })?;
            (shard.stats.kept, shard.stats.kept_bytes) = (writer.documents, writer.bytes);
            writer.finish()?;
        }
        let ([exact, near], [exact_sample, near_sample]) = (gone, samples);
        let bands_and_rows = self.near.0.as_ref().map(Near::bands_and_rows);
        let (documents, kept, bytes, kept_bytes, files) = (0, 0, 0, 0, BTreeMap::new());
        Ok(Stats { documents, kept, exact, near, bytes, kept_bytes, bands_and_rows, exact_sample, near_sample, files })
    }
}

fn text_of(line: &[u8], keys: &[String; 1]) -> String {
    texts(line, keys).map_or_else(|_| String::new(), |[text]| text)
}

/// The files of all inputs, in order, each by a name of its own.
fn named(inputs: &[Input]) -> Result<Vec<Shard>> {
    let mut all = Vec::new();
    for (i, input) in inputs.iter().enumerate() {
        all.extend(shards(input)?.into_iter().map(|(name, path)| (i, name, path)));
    }
    let mut seen = HashSet::new();
    let twice: HashSet<String> =
        all.iter().filter(|shard| !seen.insert(&shard.1)).map(|shard| shard.1.clone()).collect();
    let shard = |(i, name, path): (usize, String, PathBuf)| {
        let name = if twice.contains(&name) { format!("{}/{name}", i + 1) } else { name };
        Shard { name, path, first: 0, stats: FileStats::default() }
    };
    Ok(all.into_iter().map(shard).collect())
}
