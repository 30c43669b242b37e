//! `tokenize`: JSON lines → the token ids that Megatron trains on, byte-identical with its `preprocess_data.py`.

mod bpe;
mod byte_level;
mod encode;
mod fast;
mod files;
mod sentencepiece;
mod split;
mod tokenizer;
mod transformers;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Instant};

use anyhow::{Context, Result, bail};
use flow_core::{Cancel, Check, Ctx, Diagnostic, Level, Port, Ref, Refs, Stage};
use flow_formats::indexed::{IndexedWriter, TokenType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    diagnostic,
    documents::{
        BadLines, MAX_DOCUMENT_BYTES, OnBadLine, Reader, check_workers, is_jsonl, look_at, shards, stats_name, stem,
        write_stats,
    },
    facts,
};
use encode::{Differs, Encoder};

pub use files::Files;
pub use tokenizer::Tokenizer;

/// `kind = "tokenize"`: one node a shard. `NAME.jsonl`, also `.gz`, `.zst`, `.bz2` and `.xz` → `NAME_KEY_document.bin/.idx` for each
/// key, and `NAME.stats.json`, which counts its lines, those that are no documents by what is wrong with them
/// (`blank`, `byte_order_mark`, `invalid_utf8`, `not_json`, `no_text`, `half_surrogate`, `too_long`), the lines that end with a
/// carriage return and the documents with U+0000, both of which are taken. For what Megatron calls partitions, give several files
/// (`train_{0..9}.jsonl.gz`) and a `merge` behind: each file is a node, and is made again alone.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tokenize {
    /// Documents: `.jsonl`, also compressed; one node a file.
    #[serde(skip_serializing)]
    input: Refs,
    /// A stage or a directory with `tokenizer.json`; or with a SentencePiece `.model`, or `vocab.json` and `merges.txt` as GPT-2 has
    /// them. A `.model` gives the ids of SentencePiece itself: what stands in a text like a control token is text, and nothing is
    /// put before or behind it unless `tokenizer_config.json` says `add_bos_token` or `add_eos_token`, or its class is Llama's or Gemma's.
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

/// `NAME.stats.json`.
#[derive(Debug, Serialize)]
struct Stats {
    dtype: &'static str,
    vocabulary: usize,
    /// Without its compression.
    bytes: u64,
    lines: u64,
    #[serde(flatten)]
    bad: BadLines,
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
    const VERSION: u32 = 3;
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
        check_workers(self.workers, errors);
        vec![self]
    }

    fn ports(&self) -> Vec<Port> {
        vec![Port::each("input", &self.input), Port::one("tokenizer", &self.tokenizer).only(files::FILES)]
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
        let stems: Vec<&str> = names.filter(|name| is_jsonl(name, usize::MAX)).map(|name| stem(name)).collect();
        let twice = self.twice(stems.iter().copied()).err();
        let named = stems.iter().flat_map(|stem| {
            let of = move |key: &String| ["bin", "idx"].map(|ending| format!("{}.{ending}", output(stem, key)));
            self.keys().iter().flat_map(of).chain([stats_name(stem)])
        });
        check.files = named.collect();
        if let Some(twice) = twice {
            check.error("json_keys", Diagnostic::new(twice.to_string()));
        }
        look_at(check, "input", self.keys(), self.longest(), self.on_bad_line, |error| {
            match self.json_key {
                // What the file does not write cannot be pointed at: then it is the input that is wrong.
                Some(_) if self.default_key => error.hint("json_key = \"…\" names the key whose text is taken"),
                Some(_) => error.field("json_key"),
                None => error.field("json_keys"),
            }
        });
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        self.run_with(ctx, &Tokenizer::of_input(ctx.one("tokenizer")?)?)
    }
}

/// The name of the dataset of a file's key, as Megatron names it.
fn output(stem: &str, key: &str) -> String {
    format!("{stem}_{key}_document")
}

impl Tokenize {
    fn run_with(&self, ctx: &Ctx<'_>, tokenizer: &Arc<Tokenizer>) -> Result<()> {
        let mut encoder = self.encoder(tokenizer, ctx.cancel)?;
        if !encoder.fast {
            let text = "no fast encoder serves this kind of tokenizer: the reference encodes, which takes several times as long";
            ctx.log(Level::Info, text);
        }
        match self.tokenize(ctx, &encoder) {
            Err(error) if error.is::<Differs>() => {
                ctx.log(Level::Warning, format!("{Differs}: going on with the reference alone"));
                // What it gave before is not to be trusted either.
                std::fs::remove_dir_all(ctx.out)?;
                std::fs::create_dir(ctx.out)?;
                encoder.fast = false;
                self.tokenize(ctx, &encoder)
            }
            done => done,
        }
    }

    /// Encodes all files of the input.
    fn tokenize(&self, ctx: &Ctx<'_>, encoder: &Encoder<'_>) -> Result<()> {
        let started = Instant::now();
        let input = ctx.one("input")?;
        let files = shards(input)?;
        self.twice(files.iter().map(|(stem, _)| stem.as_ref()))?;
        if encoder.fast {
            encoder.compare_head(&files[0].1)?;
        }
        let mut reader = Reader::new(ctx, self.workers, input.tree.size()).with_longest_text(self.longest());
        let (mut documents, mut tokens, mut bytes) = (0, 0, 0);
        for (stem, path) in &files {
            let stats = self.tokenize_file(ctx, encoder, &mut reader, stem, path)?;
            bytes += stats.bytes;
            documents += stats.keys.values().map(|key| key.documents).sum::<u64>();
            tokens += stats.keys.values().map(|key| key.tokens).sum::<u64>();
            write_stats(ctx, &stats_name(stem), &stats)?;
        }
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

    /// Whether no file and key give an output of the name that others give.
    fn twice<'s>(&self, stems: impl Iterator<Item = &'s str>) -> Result<()> {
        let mut given = BTreeMap::new();
        for stem in stems {
            for key in self.keys() {
                if let Some((other, its)) = given.insert(output(stem, key), (stem, key)) {
                    bail!(
                        "`{its}` of `{other}` and `{key}` of `{stem}` would both be `{}`: tokenize them by two stages",
                        output(stem, key)
                    );
                }
            }
        }
        Ok(())
    }

    fn tokenize_file(
        &self,
        ctx: &Ctx<'_>,
        encoder: &Encoder<'_>,
        reader: &mut Reader<'_>,
        stem: &str,
        path: &Path,
    ) -> Result<Stats> {
        let create = |key: &String| {
            let prefix = ctx.out.join(output(stem, key));
            if let Some(parent) = prefix.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
            }
            IndexedWriter::create(&prefix, encoder.dtype)
        };
        let mut writers = self.keys().iter().map(create).collect::<Result<Vec<_>>>()?;
        let mut stats = Stats {
            dtype: encoder.dtype.name(),
            vocabulary: encoder.tokenizer.vocabulary(),
            bytes: 0,
            lines: 0,
            bad: BadLines::default(),
            carriage_returns: 0,
            nul: 0,
            keys: BTreeMap::new(),
        };
        let encode = |block: &[u8]| encoder.encode(block);
        let bytes = reader.blocks(path, encode, |encoded| {
            for (number, bad) in &encoded.bad {
                stats.bad.take(ctx, self.on_bad_line, path, stats.lines + number, bad)?;
            }
            stats.lines += encoded.lines;
            stats.carriage_returns += encoded.carriage_returns;
            stats.nul += encoded.nul;
            writers.iter_mut().zip(&encoded.blocks).try_for_each(|(writer, block)| writer.append(block))
        });
        stats.bytes = bytes?;
        for (key, writer) in self.keys().iter().zip(writers) {
            let (sequences, documents, tokens) = writer.counts();
            stats.keys.insert(key.clone(), KeyStats { documents, sequences, tokens });
            writer.finish()?;
        }
        Ok(stats)
    }

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
        let files = Files::find(path)
            .map_err(|error| diagnostic(&error).hint("`tokenizer` names a stage or a directory with one"))?;
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
}

#[cfg(test)]
mod tests;
