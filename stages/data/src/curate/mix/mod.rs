//! `mix`: one corpus of several.

#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use flow_core::{Check, Ctx, Diagnostic, Level, Port, Ref, Stage, is_safe_name};
use flow_formats::documents::Lines;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    limits::Limit,
    texts, throughput,
    write::{Output, Writer},
};
use crate::{
    documents::{Bad, BadLines, OnBadLine, Reader, check_shards, check_workers, shards, stats_name, write_stats},
    size::Size,
};

/// By how many bits of their digests documents are counted.
const BINS: usize = 1 << 16;

/// `kind = "mix"`: documents of several sources as one corpus, `NAME.jsonl.zst`, in which each has its weight, or comes
/// so many times; and `NAME.stats.json`, which says what was taken of each. Which documents of a source are taken follows from
/// their digests, exactly as many as there is room for; they stand source by source, and round by round where a source
/// comes more than once, since whoever trains shuffles them.
///
/// The weights of a `train` stage are the other way to mix: they draw sequences at training, of data that was tokenized
/// once, and may be changed without tokenizing anything again. Take those if all that matters is what a training sees.
/// Take this to cut a source down before it is tokenized, for a budget in documents or bytes, or for a corpus that others
/// are to have as it is.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// What is mixed.
    sources: Vec<Source>,
    /// How many documents there are to be, of which each source has its weight. Without it or `bytes`: as many bytes as can
    /// be without taking a document twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    documents: Option<u64>,
    /// How many bytes of JSON lines there are to be: `"10GB"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<Size>,
    /// How many times a source may come for its weight; 4 if left out. If that is not enough, the stage fails and says so.
    #[serde(default = "default_max_epochs")]
    max_epochs: Limit,
    /// The key whose text makes a line a document.
    #[serde(default = "super::default_key")]
    json_key: String,
    /// Another seed, another choice.
    #[serde(default)]
    seed: u64,
    /// The result's name, before `.jsonl`.
    #[serde(default = "default_name")]
    name: String,
    /// In how many files the result is: `NAME_0.jsonl.zst`, …; one if left out.
    #[serde(default = "one")]
    shards: u64,
    /// How the documents are written: `zst` if nothing is said.
    #[serde(default)]
    output: Output,
    /// What happens with a line that is no document.
    #[serde(default)]
    on_bad_line: OnBadLine,
    /// Threads that work; as many as the stage may use if left out.
    #[serde(default, skip_serializing)]
    workers: Option<usize>,
}

/// What is mixed: with a weight, or so many times.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Source {
    /// Documents: a stage, or a path to `.jsonl`, also compressed.
    #[serde(skip_serializing)]
    input: Ref,
    /// What part of the result it is, beside the other weights: 1 if neither this nor `epochs` is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<f64>,
    /// How many times all of it comes: 0.5 is every second document, 2 is all of them twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epochs: Option<f64>,
}

fn default_max_epochs() -> Limit {
    4.0.into()
}

fn default_name() -> String {
    "mixed".to_owned()
}

fn one() -> u64 {
    1
}

/// `NAME.stats.json`.
#[derive(Debug, Serialize)]
struct Stats {
    documents: u64,
    bytes: u64,
    sources: Vec<SourceStats>,
    #[serde(flatten)]
    bad: BadLines,
}

#[derive(Debug, Serialize)]
struct SourceStats {
    source: String,
    documents: u64,
    bytes: u64,
    taken_documents: u64,
    taken_bytes: u64,
}

/// What a source holds: documents and bytes, also by the beginnings of the documents' digests.
struct Counts {
    documents: u64,
    bytes: u64,
    documents_in: Vec<u64>,
    bytes_in: Vec<u64>,
}

/// What is taken of a source.
#[derive(Debug, PartialEq)]
struct Plan {
    /// All of it, so many times.
    whole: u64,
    /// Once more those before this bin,
    below: usize,
    /// and so much of it.
    left: u64,
}

/// A block of lines, and the digest of each that is a document.
type Digested = (Vec<u8>, Vec<Result<u64, Bad>>);

impl Stage for Mix {
    const KIND: &'static str = "mix";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "Mixes documents of several sources into one corpus, by weights or epochs";

    fn expand(self, errors: &mut Vec<Diagnostic>) -> Vec<Self> {
        self.find_errors(errors);
        vec![self]
    }

    fn ports(&self) -> Vec<Port> {
        let port = |(i, source): (usize, &Source)| Port::all(port_name(i), std::slice::from_ref(&source.input));
        self.sources.iter().enumerate().map(port).collect()
    }

    fn check(&self, check: &mut Check<'_>) {
        let files = self.names().map(|name| self.output.name(&name));
        check.files = files.chain([stats_name(&self.name)]).collect();
        for i in 0..self.sources.len() {
            check_shards(check, &port_name(i), &self.json_key, self.on_bad_line);
        }
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let started = Instant::now();
        let mut sources = Vec::new();
        let mut total = 0;
        for i in 0..self.sources.len() {
            let mut files: Vec<PathBuf> = Vec::new();
            for input in ctx.input(&port_name(i)) {
                files.extend(shards(input)?.into_iter().map(|shard| shard.1));
                total += input.tree.size();
            }
            sources.push(files);
        }
        let mut bad = BadLines::default();
        // How often the second reading reads is not known yet.
        let mut reader = Reader::new(ctx, self.workers, 2 * total);
        let mut counts = Vec::new();
        for files in &sources {
            counts.push(self.count(ctx, files, &mut reader, &mut bad)?);
        }
        let mut plans = self.plans(&counts)?;
        let stats = |(source, counts): (&Source, &Counts)| SourceStats {
            source: source.input.text().to_owned(),
            documents: counts.documents,
            bytes: counts.bytes,
            taken_documents: 0,
            taken_bytes: 0,
        };
        let mut sources_stats: Vec<SourceStats> = self.sources.iter().zip(&counts).map(stats).collect();
        let create = |name: String| Writer::create(ctx.out, &name, self.output);
        let mut writers = self.names().map(create).collect::<Result<Vec<_>>>()?;
        let rounds = plans.iter().map(|plan| plan.whole + 1).max().unwrap_or(0);
        for round in 0..rounds {
            for ((files, plan), stats) in sources.iter().zip(&mut plans).zip(&mut sources_stats) {
                let last = round == plan.whole;
                if round > plan.whole || last && plan.below == 0 && plan.left == 0 {
                    continue;
                }
                for path in files {
                    self.take(path, &mut reader, last.then_some(&mut *plan), stats, &mut writers)?;
                }
            }
        }
        let (mut documents, mut bytes) = (0, 0);
        for writer in writers {
            documents += writer.documents;
            bytes += writer.bytes;
            writer.finish()?;
        }
        ensure!(documents > 0, "nothing would be in the corpus: no document fits into the budget, or there is none");
        for source in &sources_stats {
            let SourceStats { source, documents, taken_documents, .. } = source;
            ctx.log(Level::Info, format!("{source}: {taken_documents} documents of {documents}"));
        }
        let rate = throughput(documents, bytes, started.elapsed().as_secs_f64());
        ctx.log(Level::Info, format!("{documents} documents in {rate}"));
        write_stats(ctx, &stats_name(&self.name), &Stats { documents, bytes, sources: sources_stats, bad })
    }
}

fn port_name(source: usize) -> String {
    format!("sources.{source}.input")
}

impl Mix {
    fn find_errors(&self, errors: &mut Vec<Diagnostic>) {
        let mut say = |field: String, text: String, hint: &str| {
            errors.push(Diagnostic::new(text).field(field).hint(hint));
        };
        if self.sources.is_empty() {
            say(
                "sources".into(),
                "there is nothing to mix".into(),
                "sources = [{ input = \"wiki\", weight = 0.7 }, …]",
            );
        }
        let by_epochs = self.sources.iter().any(|source| source.epochs.is_some());
        for (i, source) in self.sources.iter().enumerate() {
            let weighted = source.weight.is_some();
            for (field, value) in [("weight", source.weight), ("epochs", source.epochs)] {
                if value.is_some_and(|value| !(value > 0.0 && value.is_finite())) {
                    let text = format!("nothing would come of a {field} of {}", value.unwrap_or_default());
                    say(format!("sources.{i}.{field}"), text, "more than 0; or leave the source away");
                }
            }
            if by_epochs && weighted {
                let text = "weights and epochs do not go together".to_owned();
                say(format!("sources.{i}.weight"), text, "give all sources a weight, or all of them epochs");
            } else if by_epochs && source.epochs.is_none() {
                let text = "the other sources have epochs".to_owned();
                say(format!("sources.{i}"), text, "epochs = 1 takes all of it once");
            }
        }
        if self.documents.is_some() && self.bytes.is_some() {
            say("bytes".into(), "`documents` and `bytes` are both there".into(), "keep one of them");
        }
        for (field, is_there) in [("documents", self.documents.is_some()), ("bytes", self.bytes.is_some())] {
            if by_epochs && is_there {
                say(
                    field.into(),
                    format!("epochs say how much there is, and `{field}` too"),
                    "weights share a budget out",
                );
            }
        }
        if self.documents == Some(0) {
            say("documents".into(), "there would be nothing".into(), "1 or more");
        }
        if self.max_epochs.0.is_some_and(|most| most <= 0.0) {
            say("max_epochs".into(), "no source may come".into(), "1 or more, or false for no limit");
        }
        if self.shards == 0 || self.shards > 4096 {
            say("shards".into(), format!("{} files", self.shards), "from 1 to 4096");
        }
        if !is_safe_name(&self.name) || self.name.contains('/') {
            say("name".into(), format!("`{}` is not a file name", self.name), "a name without `/`, such as \"corpus\"");
        }
        check_workers(self.workers, errors);
    }

    /// Of the files, without their endings.
    fn names(&self) -> impl Iterator<Item = String> {
        (0..self.shards)
            .map(|shard| if self.shards == 1 { self.name.clone() } else { format!("{}_{shard}", self.name) })
    }

    fn digest(&self, line: &[u8]) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"flow mix\n").update(&self.seed.to_le_bytes()).update(line);
        let mut digest = [0; 8];
        hasher.finalize_xof().fill(&mut digest);
        u64::from_be_bytes(digest)
    }

    fn digests(&self, block: &[u8]) -> Digested {
        let keys = [self.json_key.clone()];
        let digest = |line| texts(line, &keys).map(|_| self.digest(line));
        (block.to_vec(), Lines::new(block).map(digest).collect())
    }

    /// The first reading: what a source holds.
    fn count(&self, ctx: &Ctx<'_>, files: &[PathBuf], reader: &mut Reader<'_>, bad: &mut BadLines) -> Result<Counts> {
        let mut counts = Counts { documents: 0, bytes: 0, documents_in: vec![0; BINS], bytes_in: vec![0; BINS] };
        for path in files {
            let mut lines = 0;
            reader.blocks(
                path,
                |block| Ok(self.digests(block)),
                |(block, digests)| {
                    for (line, digest) in Lines::new(&block).zip(&digests) {
                        match digest {
                            Ok(digest) => {
                                let bytes = line.len() as u64 + 1;
                                counts.documents += 1;
                                counts.bytes += bytes;
                                counts.documents_in[bin(*digest)] += 1;
                                counts.bytes_in[bin(*digest)] += bytes;
                            }
                            Err(wrong) => bad.take(ctx, self.on_bad_line, path, lines, wrong)?,
                        }
                        lines += 1;
                    }
                    Ok(())
                },
            )?;
        }
        Ok(counts)
    }

    /// What is taken of each source.
    fn plans(&self, counts: &[Counts]) -> Result<Vec<Plan>> {
        let by_documents = self.documents.is_some();
        let size = |counts: &Counts| if by_documents { counts.documents } else { counts.bytes };
        let epochs: Vec<f64> = if self.sources.iter().any(|source| source.epochs.is_some()) {
            self.sources.iter().map(|source| source.epochs.unwrap_or(1.0)).collect()
        } else {
            if let Some(empty) = counts.iter().position(|counts| counts.documents == 0) {
                let name = self.sources[empty].input.text();
                bail!("`{name}` holds no document, so it cannot have a weight: leave it away, or say `epochs`");
            }
            let weights: Vec<f64> = self.sources.iter().map(|source| source.weight.unwrap_or(1.0)).collect();
            let all: f64 = weights.iter().sum();
            // What there would be in all if this source came once.
            let once = weights.iter().zip(counts).map(|(weight, counts)| size(counts) as f64 * all / weight);
            let budget = match (self.documents, self.bytes) {
                (Some(documents), _) => documents as f64,
                (_, Some(bytes)) => bytes.0 as f64,
                _ => once.fold(f64::INFINITY, f64::min),
            };
            weights.iter().zip(counts).map(|(weight, counts)| budget * weight / all / size(counts) as f64).collect()
        };
        let plan = |((epochs, counts), source): ((&f64, &Counts), &Source)| {
            let name = source.input.text();
            ensure!(
                source.epochs.is_some() || !self.max_epochs.exceeded_by(*epochs),
                "for its weight `{name}` would have to come {epochs:.2} times, and `max_epochs` is {}: lower its weight or the \
                 budget, or raise max_epochs",
                self.max_epochs.0.unwrap_or_default()
            );
            let bins = if by_documents { &counts.documents_in } else { &counts.bytes_in };
            let whole = epochs.floor();
            let mut left = ((epochs - whole) * size(counts) as f64).round() as u64;
            let mut below = 0;
            while below < BINS && bins[below] <= left {
                left -= bins[below];
                below += 1;
            }
            Ok(Plan { whole: whole as u64, below, left: if below == BINS { 0 } else { left } })
        };
        epochs.iter().zip(counts).zip(&self.sources).map(plan).collect()
    }

    /// Another reading: writes a file's documents, all or those of a plan.
    fn take(
        &self,
        path: &Path,
        reader: &mut Reader<'_>,
        mut plan: Option<&mut Plan>,
        stats: &mut SourceStats,
        writers: &mut [Writer],
    ) -> Result<()> {
        let by_documents = self.documents.is_some();
        reader.blocks(
            path,
            |block| Ok(self.digests(block)),
            |(block, digests)| {
                let mut parts = vec![(Vec::new(), 0); writers.len()];
                for (line, digest) in Lines::new(&block).zip(&digests) {
                    let Ok(digest) = digest else { continue };
                    let bytes = line.len() as u64 + 1;
                    if let Some(plan) = plan.as_deref_mut() {
                        let amount = if by_documents { 1 } else { bytes };
                        let at_the_edge = bin(*digest) == plan.below && amount <= plan.left;
                        if bin(*digest) >= plan.below && !at_the_edge {
                            continue;
                        }
                        plan.left -= if at_the_edge { amount } else { 0 };
                    }
                    // The bits that did not choose it.
                    let shard =
                        usize::try_from((digest & 0xffff_ffff) % writers.len() as u64).context("a number of files")?;
                    let (lines, documents) = &mut parts[shard];
                    lines.extend_from_slice(line);
                    lines.push(b'\n');
                    *documents += 1;
                    stats.taken_documents += 1;
                    stats.taken_bytes += bytes;
                }
                writers
                    .iter_mut()
                    .zip(parts)
                    .try_for_each(|(writer, (lines, documents))| writer.append(&lines, documents))
            },
        )?;
        Ok(())
    }
}

fn bin(digest: u64) -> usize {
    (digest >> 48) as usize
}
