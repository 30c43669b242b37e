//! `tokenize`: JSON lines → the token ids that Megatron trains on, byte-identical with its `preprocess_data.py`.

mod bpe;
mod byte_level;
pub(crate) mod encode;
mod fast;
mod pipeline;
mod split;
mod tokenizer;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Instant};

use anyhow::{Context, Result, ensure};
use flow_core::{Cancel, Check, Ctx, Diagnostic, Level, Port, Ref, Refs, Stage};
use flow_formats::{
    compressed::{Decoder, strip_ending},
    documents::{Blocks, Lines},
    indexed::{IndexedWriter, TokenType},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{diagnostic, facts};
use encode::{Encoder, Reason};

pub use tokenizer::{Files, Tokenizer};

/// The most bytes of a file that are encoded twice, to see that the faster encoder gives the reference's ids.
const COMPARED: usize = 64 << 10;

/// Longer texts are hardly documents, and a text that never breaks takes some fifteen times its bytes of memory, and more
/// where the reference encodes it.
pub(crate) const MAX_DOCUMENT_BYTES: usize = 16 << 20;

/// `kind = "tokenize"`: one node a shard. `NAME.jsonl`, also `.gz`, `.zst`, `.bz2` and `.xz` → `NAME_KEY_document.bin/.idx` for each
/// key, and `stats.json`, which counts for each file its lines, those that are no documents by what is wrong with them
/// (`blank`, `byte_order_mark`, `invalid_utf8`, `not_json`, `no_text`, `half_surrogate`, `too_long`), the lines that end with a
/// carriage return and the documents with U+0000, both of which are taken. For what Megatron calls partitions, give several files
/// (`train_{0..9}.jsonl.gz`) and a `merge` behind: each file is a node, and is made again alone.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tokenize {
    /// Documents: `.jsonl`, also compressed; one node a file.
    #[serde(skip_serializing)]
    input: Refs,
    /// A stage or a directory with `tokenizer.json`.
    #[serde(skip_serializing)]
    tokenizer: Ref,
    /// The key whose text is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    json_key: Option<String>,
    /// The key above is not the file's word.
    #[serde(skip)]
    default_key: bool,
    /// Several keys, each with files of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    json_keys: Vec<String>,
    /// Every document ends with the end-of-document token.
    #[serde(default)]
    append_eod: bool,
    /// That token, if it is not the tokenizer's `eos_token`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eod_token: Option<String>,
    /// Every sequence begins with `bos_token` (true), or gets nothing that the tokenizer's post-processor would add
    /// (false). Left out, the post-processor decides, as in Megatron.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    add_bos: Option<bool>,
    /// What happens with a line that is no document: blank, not a JSON object in UTF-8, with a byte order mark, without
    /// text under a key, with half of a surrogate pair, or too long.
    #[serde(default)]
    on_bad_line: OnBadLine,
    /// A line whose text has more bytes is no document; 16777216 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_document_bytes: Option<usize>,
    /// Threads that encode; as many as the stage may use if left out.
    #[serde(default, skip_serializing)]
    workers: Option<usize>,
}

/// What happens with a line that is no document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnBadLine {
    /// The stage fails and names the line.
    #[default]
    Fail,
    /// The line is counted and left out.
    Skip,
}

/// `stats.json`.
#[derive(Debug, Serialize)]
struct Stats {
    dtype: &'static str,
    vocabulary: usize,
    files: BTreeMap<String, FileStats>,
}

#[derive(Debug, Serialize)]
struct FileStats {
    bytes: u64,
    lines: u64,
    /// Lines that are no documents, and why.
    skipped: u64,
    reasons: BTreeMap<Reason, u64>,
    /// Lines that end with a carriage return: taken as Python does, `\r\n` and `\r` end a line as `\n` does.
    carriage_returns: u64,
    /// Documents with U+0000, which is text like any other.
    nul: u64,
    keys: BTreeMap<String, KeyStats>,
}

#[derive(Debug, Serialize)]
struct KeyStats {
    documents: u64,
    sequences: u64,
    tokens: u64,
}

impl Stage for Tokenize {
    const KIND: &'static str = "tokenize";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "Turns JSON lines into Megatron's .bin/.idx of token ids";

    fn expand(mut self, errors: &mut Vec<Diagnostic>) -> Vec<Self> {
        match (&self.json_key, self.json_keys.is_empty()) {
            (Some(_), false) => {
                let error = Diagnostic::new("`json_key` and `json_keys` are both there").field("json_keys");
                errors.push(error.hint("keep one of them"));
            }
            (None, true) => (self.json_key, self.default_key) = (Some("text".to_owned()), true),
            _ => {}
        }
        for (i, key) in self.keys().iter().enumerate() {
            let field = if self.json_key.is_some() { "json_key".to_owned() } else { format!("json_keys.{i}") };
            if key.is_empty() || key.contains(['/', '\0']) {
                let error = Diagnostic::new(format!("`{key}` cannot be part of a file name")).field(field);
                errors.push(error.hint("the key becomes part of NAME_KEY_document.bin"));
            } else if self.keys()[..i].contains(key) {
                errors.push(Diagnostic::new(format!("`{key}` stands there twice")).field(field));
            }
        }
        if self.workers == Some(0) {
            errors.push(Diagnostic::new("no worker would encode anything").field("workers").hint("1 or more"));
        }
        vec![self]
    }

    fn ports(&self) -> Vec<Port> {
        vec![Port::each("input", &self.input), Port::one("tokenizer", &self.tokenizer).only(tokenizer::FILES)]
    }

    fn check(&self, check: &mut Check<'_>) {
        let tokenizer = check.input("tokenizer").iter().find_map(|known| known.path.clone());
        if let Some(Err(error)) = tokenizer.map(|path| self.look_at_tokenizer(&path)) {
            check.error("tokenizer", error);
        } else {
            let mut facts = facts::of_port(check, "tokenizer");
            facts.retain(|name, _| name == "tokenizer_vocab" || name == "max_token_id");
            check.facts.extend(facts);
        }
        let names = check.input("input").iter().flat_map(|known| &known.files);
        let named = names.filter(|name| is_jsonl(name, usize::MAX)).flat_map(|name| {
            let of = move |key| ["bin", "idx"].map(|ending| format!("{}_{key}_document.{ending}", stem(name)));
            self.keys().iter().flat_map(of)
        });
        check.files = named.chain(["stats.json".to_owned()]).collect();
        let shards: Vec<_> = check.input("input").iter().filter_map(|known| known.path.clone()).collect();
        for path in shards.iter().filter(|path| path.is_file()) {
            if let Err(error) = self.look_at_shard(path) {
                let field = error.field.clone().unwrap_or_else(|| "input".to_owned());
                check.error(&field, error);
            }
        }
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let started = Instant::now();
        let input = ctx.one("input")?;
        let tokenizer = Tokenizer::of_input(ctx.one("tokenizer")?)?;
        let mut encoder = self.encoder(&tokenizer, ctx.cancel)?;
        let files: Vec<_> =
            input.files().into_iter().filter(|(name, _)| is_jsonl(name, input.tree.entries().len())).collect();
        ensure!(!files.is_empty(), "{} holds no .jsonl, plain or as .gz, .zst, .bz2 or .xz", input.name);
        if encoder.fast && !pipeline::encoders_agree(&encoder, &files[0].1, COMPARED)? {
            encoder.fast = false;
            let text = "the fast encoder differs from the reference on this text: going on with the reference alone";
            ctx.log(Level::Warning, text);
        } else if !encoder.fast {
            let text = "no fast encoder serves this kind of tokenizer: the reference encodes, which takes several times as long";
            ctx.log(Level::Info, text);
        }

        let threads = self.workers.unwrap_or(ctx.threads).max(1);
        let total = input.tree.size();
        let (mut before, mut documents, mut tokens, mut bytes) = (0, 0, 0, 0);
        let mut stats =
            Stats { dtype: encoder.dtype.name(), vocabulary: tokenizer.vocabulary(), files: BTreeMap::new() };
        for (name, path) in &files {
            let stem = stem(name);
            let create = |key: &String| {
                let prefix = ctx.out.join(format!("{stem}_{key}_document"));
                if let Some(parent) = prefix.parent() {
                    std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
                }
                IndexedWriter::create(&prefix, encoder.dtype)
            };
            let mut writers = self.keys().iter().map(create).collect::<Result<Vec<_>>>()?;
            let counts = pipeline::run(ctx, &encoder, threads, path, before, total, &mut writers)?;
            before += path.metadata()?.len();
            bytes += counts.bytes;
            let mut keys = BTreeMap::new();
            for (key, writer) in self.keys().iter().zip(writers) {
                let (sequences, documents_here, tokens_here) = writer.counts();
                documents += documents_here;
                tokens += tokens_here;
                keys.insert(key.clone(), KeyStats { documents: documents_here, sequences, tokens: tokens_here });
                writer.finish()?;
            }
            let file = FileStats {
                bytes: counts.bytes,
                lines: counts.lines,
                skipped: counts.skipped,
                reasons: counts.reasons,
                carriage_returns: counts.carriage_returns,
                nul: counts.nul,
                keys,
            };
            ensure!(stats.files.insert(stem.to_owned(), file).is_none(), "{} holds {stem} twice", input.name);
        }
        let text = serde_json::to_string_pretty(&stats)? + "\n";
        std::fs::write(ctx.out.join("stats.json"), text).context("cannot write stats.json")?;
        let seconds = started.elapsed().as_secs_f64();
        let rate = |count: u64| count as f64 / seconds;
        let text = format!(
            "{documents} documents, {tokens} tokens in {seconds:.1} s: {:.0} documents/s, {:.0} tokens/s, {:.1} MB/s",
            rate(documents),
            rate(tokens),
            rate(bytes) / 1e6
        );
        ctx.log(Level::Info, text);
        Ok(())
    }
}

impl Tokenize {
    fn keys(&self) -> &[String] {
        self.json_key.as_ref().map_or(self.json_keys.as_slice(), std::slice::from_ref)
    }

    fn longest(&self) -> usize {
        self.max_document_bytes.unwrap_or(MAX_DOCUMENT_BYTES)
    }

    fn encoder<'a>(&'a self, tokenizer: &Arc<Tokenizer>, cancel: &'a Cancel) -> Result<Encoder<'a>> {
        let eod = match (&self.eod_token, self.append_eod) {
            (_, false) => None,
            (Some(token), true) => Some(tokenizer.id(token).context("`eod_token`")?),
            (None, true) => {
                Some(tokenizer.special_id("eos_token").context("`append_eod` needs an end-of-document token")?)
            }
        };
        let bos = (self.add_bos == Some(true)).then(|| tokenizer.special_id("bos_token").context("`add_bos`"));
        Ok(Encoder {
            tokenizer: Arc::clone(tokenizer),
            fast: tokenizer.is_fast(),
            keys: self.keys(),
            special: self.add_bos != Some(false),
            bos: bos.transpose()?,
            eod,
            dtype: TokenType::for_vocabulary(tokenizer.vocabulary()),
            longest: self.longest(),
            skip_bad: self.on_bad_line == OnBadLine::Skip,
            cancel,
        })
    }

    /// Why the tokenizer at `path` does not serve, if it does not.
    fn look_at_tokenizer(&self, path: &Path) -> Result<(), Diagnostic> {
        let files = Files::find(path).map_err(|error| {
            diagnostic(&error).hint("`tokenizer` names a stage or a directory with a tokenizer.json")
        })?;
        let config = files.config().map_err(|error| diagnostic(&error))?;
        let needed = [
            ("append_eod", "eos_token", self.append_eod && self.eod_token.is_none()),
            ("add_bos", "bos_token", self.add_bos == Some(true)),
        ];
        let unnamed = needed.into_iter().find(|needed| needed.2 && config.special(needed.1).is_none());
        if let Some((field, token, _)) = unnamed {
            let error = Diagnostic::new(format!(
                "`{field}` needs the tokenizer's `{token}`, which {} does not name",
                path.display()
            ));
            return Err(error.hint(format!("put `\"{token}\": \"…\"` into its tokenizer_config.json")));
        }
        Ok(())
    }

    /// Whether the first line of a shard has the keys. Reads little, and is silent where it would have to read more.
    fn look_at_shard(&self, path: &Path) -> Result<(), Diagnostic> {
        const LOOK: usize = 64 << 10;
        let mut block = Vec::new();
        let first = Decoder::open(path).and_then(|decoder| {
            let head = std::io::Read::take(decoder, LOOK as u64);
            Ok(Blocks::new(head, LOOK).next_into(&mut block)?)
        });
        first.map_err(|error| diagnostic(&error))?;
        let Some(line) = Lines::new(&block).next().filter(|line| line.len() < block.len()) else { return Ok(()) };
        if self.on_bad_line == OnBadLine::Skip {
            return Ok(());
        }
        encode::document(line, self.keys(), self.longest()).map(drop).map_err(|bad| {
            let error = Diagnostic::new(format!("{}:1: {}", path.display(), bad.why))
                .hint("to pass over lines that are no documents, set on_bad_line = \"skip\"");
            match (bad.reason.is_of_key(), self.json_key.is_some()) {
                (false, _) => error,
                // What the file does not write cannot be pointed at: then it is the input that is wrong.
                (true, true) if self.default_key => error.hint("json_key = \"…\" names the key whose text is taken"),
                (true, true) => error.field("json_key"),
                (true, false) => error.field("json_keys"),
            }
        })
    }
}

/// A single file is taken whatever its name; in a directory the others are something else, as the `stats.json` that stages
/// which write documents put beside them.
pub(crate) fn is_jsonl(name: &str, entries: usize) -> bool {
    let plain = strip_ending(name);
    entries == 1 || name != "stats.json" && [".jsonl", ".ndjson", ".json"].iter().any(|ending| plain.ends_with(ending))
}

/// `wiki/train_0.jsonl.gz` → `wiki/train_0`
pub(crate) fn stem(name: &str) -> &str {
    let plain = strip_ending(name);
    let endings = [".jsonl", ".ndjson", ".json"];
    endings.iter().find_map(|ending| plain.strip_suffix(ending)).filter(|stem| !stem.is_empty()).unwrap_or(plain)
}

#[cfg(test)]
mod tests;
