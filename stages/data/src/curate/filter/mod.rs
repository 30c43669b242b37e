//! `filter`: documents that are worth reading.

mod c4;
mod gopher;
pub mod language;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::Path, time::Instant};

use anyhow::{Context, Result};
use flow_core::{Check, Ctx, Diagnostic, Level, Port, Refs, Stage};
use flow_formats::documents::{Lines, replace_text};
use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfkc_quick};

use super::{
    default_samples,
    limits::{Family, Limit},
    sample::Sample,
    text, texts, throughput,
    write::{Output, Writer},
};
use crate::documents::{
    Bad, BadLines, OnBadLine, Reader, check_shards, check_workers, is_jsonl, shards, stats_name, stem, write_stats,
};

/// `kind = "filter"`: one node a shard. `NAME.jsonl`, also `.gz`, `.zst`, `.bz2` and `.xz` → `NAME.jsonl.zst` with the
/// documents that every rule lets pass, in their order, each on its line as it was unless `normalize` or `c4` changed its
/// text; and `NAME.stats.json`, which says of each rule how many documents it dropped, with a few of them. The rules are asked
/// in the order in which they stand here, and the first that drops a document counts it.
///
/// A word is what stands between white space. In scripts without spaces it is a piece of a run of one script: two Han
/// characters, up to four hiragana, katakana as far as they go, up to four letters of Thai, Lao, Khmer or Burmese.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Documents: `.jsonl`, also compressed; one node a file.
    #[serde(skip_serializing)]
    input: Refs,
    /// The key whose text counts.
    #[serde(default = "super::default_key")]
    json_key: String,
    /// Brings the text into a normal form of Unicode before anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    normalize: Option<Form>,
    /// How long texts may be.
    #[serde(default)]
    length: Length,
    /// What part of the letters must be of which scripts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    scripts: Vec<language::Share>,
    /// Which languages are kept, of those that a model of scripts and trigrams tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    language: Option<language::Language>,
    /// Regular expressions, one of which must match somewhere in the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    include: Vec<String>,
    /// Regular expressions, none of which may match anywhere in the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    exclude: Vec<String>,
    /// Gopher's rules of quality: `true`, or a table of what is to be other than published; `false` switches a rule off.
    #[serde(default)]
    gopher_quality: Family<gopher::Quality>,
    /// Gopher's rules of repetition, likewise.
    #[serde(default)]
    gopher_repetition: Family<gopher::Repetition>,
    /// C4's rules, likewise. They take lines out of texts, and drop what is then too little.
    #[serde(default)]
    c4: Family<c4::C4>,
    /// How the documents are written: `zst` if nothing is said.
    #[serde(default)]
    output: Output,
    /// How many of the documents that a rule dropped are shown in the counts; 5 if left out.
    #[serde(default = "default_samples")]
    samples: usize,
    /// What happens with a line that is no document.
    #[serde(default)]
    on_bad_line: OnBadLine,
    /// Threads that work; as many as the stage may use if left out.
    #[serde(default, skip_serializing)]
    workers: Option<usize>,
}

/// A normal form of Unicode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Form {
    /// Characters are composed.
    Nfc,
    /// What looks otherwise and means the same becomes the same, too: full-width letters, half-width kana, ligatures.
    Nfkc,
}

/// How long texts may be: too short or too long ones go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Length {
    /// The least characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    min_chars: Option<u64>,
    /// The most.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_chars: Option<u64>,
    /// The least words.
    #[serde(skip_serializing_if = "Option::is_none")]
    min_words: Option<u64>,
    /// The most.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_words: Option<u64>,
    /// The least bytes of UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    min_bytes: Option<u64>,
    /// The most.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_bytes: Option<u64>,
}

/// Why a document goes.
#[derive(Debug, PartialEq, Eq)]
pub struct Drop {
    rule: &'static str,
    why: String,
}

impl Drop {
    fn when(is: bool, rule: &'static str, why: impl FnOnce() -> String) -> Result<(), Self> {
        if is { Err(Self { rule, why: why() }) } else { Ok(()) }
    }
}

/// `NAME.stats.json`.
#[derive(Debug, Serialize)]
struct Stats {
    documents: u64,
    kept: u64,
    dropped: u64,
    /// Of those that were kept, those whose text is not what it was.
    changed: u64,
    bytes: u64,
    kept_bytes: u64,
    #[serde(flatten)]
    bad: BadLines,
    /// In the order in which they are asked.
    rules: Vec<RuleStats>,
}

#[derive(Debug, Serialize)]
struct RuleStats {
    rule: &'static str,
    dropped: u64,
    sample: Sample,
}

/// What became of a block of lines.
#[derive(Default)]
struct Sifted {
    lines: u64,
    kept: Vec<u8>,
    documents: u64,
    changed: u64,
    dropped: BTreeMap<&'static str, (u64, Sample)>,
    bad: Vec<(u64, Bad)>,
}

impl Stage for Filter {
    const KIND: &'static str = "filter";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "Drops documents by length, language, quality, repetition and patterns";

    fn expand(self, errors: &mut Vec<Diagnostic>) -> Vec<Self> {
        self.find_errors(errors);
        vec![self]
    }

    fn ports(&self) -> Vec<Port> {
        let mut ports = vec![Port::each("input", &self.input)];
        ports.extend(self.bad_words().map(|words| Port::one("c4.bad_words", words)));
        ports
    }

    fn check(&self, check: &mut Check<'_>) {
        let names =
            check.input("input").iter().flat_map(|known| &known.files).filter(|name| is_jsonl(name, usize::MAX));
        check.files = names.flat_map(|name| [self.output.name(stem(name)), stats_name(stem(name))]).collect();
        check_shards(check, "input", &self.json_key, self.on_bad_line);
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let started = Instant::now();
        let input = ctx.one("input")?;
        let sieve = Sieve::new(self, &self.read_bad_words(ctx)?)?;
        let mut reader = Reader::new(ctx, self.workers, input.tree.size());
        let (mut documents, mut kept, mut bytes) = (0, 0, 0);
        let mut dropped: Vec<(&str, u64)> = sieve.rules().into_iter().map(|rule| (rule, 0)).collect();
        for (stem, path) in shards(input)? {
            let stats = self.filter(ctx, &sieve, &mut reader, &stem, &path)?;
            documents += stats.documents;
            kept += stats.kept;
            bytes += stats.bytes;
            dropped.iter_mut().zip(&stats.rules).for_each(|(all, rule)| all.1 += rule.dropped);
            write_stats(ctx, &stats_name(&stem), &stats)?;
        }
        for (rule, dropped) in dropped.iter().filter(|rule| rule.1 > 0) {
            ctx.log(Level::Info, format!("{dropped} dropped by {rule}"));
        }
        let rate = throughput(documents, bytes, started.elapsed().as_secs_f64());
        ctx.log(Level::Info, format!("{kept} of {documents} documents kept in {rate}"));
        Ok(())
    }
}

impl Filter {
    fn filter(
        &self,
        ctx: &Ctx<'_>,
        sieve: &Sieve<'_>,
        reader: &mut Reader<'_>,
        stem: &str,
        path: &Path,
    ) -> Result<Stats> {
        let rule = |rule| RuleStats { rule, dropped: 0, sample: Sample::default() };
        let mut rules: Vec<RuleStats> = sieve.rules().into_iter().map(rule).collect();
        let mut writer = Writer::create(ctx.out, stem, self.output)?;
        let (mut lines, mut documents, mut changed, mut bad) = (0, 0, 0, BadLines::default());
        let sift = |block: &[u8]| sieve.sift(block);
        let bytes = reader.blocks(path, sift, |sifted| {
            for (number, wrong) in &sifted.bad {
                bad.take(ctx, self.on_bad_line, path, lines + number, wrong)?;
            }
            writer.append(&sifted.kept, sifted.documents)?;
            documents += sifted.lines - sifted.bad.len() as u64;
            changed += sifted.changed;
            for (rule, (dropped, sample)) in sifted.dropped {
                if let Some(stats) = rules.iter_mut().find(|stats| stats.rule == rule) {
                    stats.dropped += dropped;
                    stats.sample.merge(self.samples, sample, stem, lines);
                }
            }
            lines += sifted.lines;
            Ok(())
        })?;
        let (kept, kept_bytes) = (writer.documents, writer.bytes);
        writer.finish()?;
        Ok(Stats { documents, kept, dropped: documents - kept, changed, bytes, kept_bytes, bad, rules })
    }

    fn bad_words(&self) -> Option<&flow_core::Ref> {
        self.c4.0.as_ref()?.bad_words.as_ref()
    }

    /// The words of the file of bad ones, if there is one.
    fn read_bad_words(&self, ctx: &Ctx<'_>) -> Result<Option<String>> {
        let Some(name) = self.bad_words() else { return Ok(None) };
        let files = ctx.one("c4.bad_words")?.files();
        let [(_, path)] = &files[..] else {
            anyhow::bail!("`bad_words` is one file of words, and `{}` holds {}", name.text(), files.len())
        };
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(text))
    }

    fn find_errors(&self, errors: &mut Vec<Diagnostic>) {
        let Length { min_chars, max_chars, min_words, max_words, min_bytes, max_bytes } = self.length;
        let mut ends = vec![
            ("length.min_chars", min_chars.map(|n| n as f64), max_chars.map(|n| n as f64)),
            ("length.min_words", min_words.map(|n| n as f64), max_words.map(|n| n as f64)),
            ("length.min_bytes", min_bytes.map(|n| n as f64), max_bytes.map(|n| n as f64)),
        ];
        let mut parts: Vec<(Limit, &str)> = Vec::new();
        if let Some(quality) = &self.gopher_quality.0 {
            ends.push(("gopher_quality.min_doc_words", quality.min_doc_words.0, quality.max_doc_words.0));
            let [shortest, longest] = [quality.min_avg_word_length, quality.max_avg_word_length];
            ends.push(("gopher_quality.min_avg_word_length", shortest.0, longest.0));
            parts.push((quality.max_bullet_lines_ratio, "gopher_quality.max_bullet_lines_ratio"));
            parts.push((quality.max_ellipsis_lines_ratio, "gopher_quality.max_ellipsis_lines_ratio"));
            parts.push((quality.min_alpha_words_ratio, "gopher_quality.min_alpha_words_ratio"));
            if quality.min_stop_words.0.is_some_and(|least| least > quality.stop_words.len() as f64) {
                let error = Diagnostic::new(format!("there are only {} stop words", quality.stop_words.len()));
                errors.push(error.field("gopher_quality.min_stop_words").hint("no text would pass"));
            }
        }
        parts.extend(self.gopher_repetition.0.iter().flat_map(gopher::Repetition::limits));
        for (field, min, max) in ends {
            if let (Some(min), Some(max)) = (min, max)
                && min > max
            {
                errors.push(Diagnostic::new(format!("no text has at least {min} and at most {max}")).field(field));
            }
        }
        for (limit, field) in parts {
            if let Limit(Some(limit)) = limit
                && limit > 1.0
            {
                let error = Diagnostic::new(format!("{limit} is more than all: it is a part of 1")).field(field);
                errors.push(error.hint("such as 0.3; or false for no limit"));
            }
        }
        for (i, share) in self.scripts.iter().enumerate() {
            share.check(i, errors);
        }
        if let Some(language) = &self.language {
            language.check(errors);
        }
        for (list, patterns) in [("include", &self.include), ("exclude", &self.exclude)] {
            for (i, pattern) in patterns.iter().enumerate() {
                if let Err(error) = compile(pattern) {
                    let text = error.to_string();
                    let error =
                        Diagnostic::new(format!("`{pattern}` is no regular expression")).field(format!("{list}.{i}"));
                    errors.push(error.cause(text.trim_end().to_owned()));
                }
            }
        }
        check_workers(self.workers, errors);
    }
}

fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).build()
}

/// [`Filter`], ready.
struct Sieve<'a> {
    of: &'a Filter,
    keys: [String; 1],
    include: Vec<Regex>,
    exclude: Vec<Regex>,
    c4: Option<c4::Rules>,
}

impl<'a> Sieve<'a> {
    fn new(of: &'a Filter, bad_words: &Option<String>) -> Result<Self> {
        let compiled =
            |patterns: &[String]| patterns.iter().map(|pattern| Ok(compile(pattern)?)).collect::<Result<Vec<_>>>();
        let c4 = of.c4.0.as_ref().map(|c4| c4.ready(bad_words.as_deref()));
        Ok(Self {
            of,
            keys: [of.json_key.clone()],
            include: compiled(&of.include)?,
            exclude: compiled(&of.exclude)?,
            c4: c4.transpose()?,
        })
    }

    /// The rules that are on, in the order in which they are asked.
    fn rules(&self) -> Vec<&'static str> {
        let length = &self.of.length;
        let own = [
            (length.min_chars.is_some(), "length.min_chars"),
            (length.max_chars.is_some(), "length.max_chars"),
            (length.min_words.is_some(), "length.min_words"),
            (length.max_words.is_some(), "length.max_words"),
            (length.min_bytes.is_some(), "length.min_bytes"),
            (length.max_bytes.is_some(), "length.max_bytes"),
            (!self.of.scripts.is_empty(), "scripts"),
            (self.of.language.is_some(), "language"),
            (!self.include.is_empty(), "include"),
            (!self.exclude.is_empty(), "exclude"),
        ];
        let mut rules: Vec<_> = own.into_iter().filter(|rule| rule.0).map(|rule| rule.1).collect();
        rules.extend(self.of.gopher_quality.0.iter().flat_map(gopher::Quality::rules));
        rules.extend(self.of.gopher_repetition.0.iter().flat_map(gopher::Repetition::rules));
        rules.extend(self.of.c4.0.iter().flat_map(c4::C4::rules));
        rules
    }

    fn sift(&self, block: &[u8]) -> Result<Sifted> {
        let mut sifted = Sifted::default();
        for line in Lines::new(block) {
            let number = sifted.lines;
            sifted.lines += 1;
            let text = match texts(line, &self.keys) {
                Ok([text]) => text,
                Err(bad) => {
                    sifted.bad.push((number, bad));
                    continue;
                }
            };
            match self.judge(&text) {
                Ok(kept) => {
                    match kept.filter(|kept| *kept != text) {
                        None => sifted.kept.extend_from_slice(line),
                        Some(kept) => {
                            let replaced = replace_text(line, &self.of.json_key, &kept);
                            sifted.kept.extend_from_slice(replaced.context("the line was read before")?.as_bytes());
                            sifted.changed += 1;
                        }
                    }
                    sifted.kept.push(b'\n');
                    sifted.documents += 1;
                }
                Err(drop) => {
                    let (dropped, sample) = sifted.dropped.entry(drop.rule).or_default();
                    *dropped += 1;
                    sample.take(self.of.samples, number, line, || (drop.why, text));
                }
            }
        }
        Ok(sifted)
    }

    /// The text to write if it may be another, or why it goes.
    fn judge(&self, text: &str) -> Result<Option<String>, Drop> {
        let normal: Option<String> = match self.of.normalize {
            Some(Form::Nfc) if is_nfc_quick(text.chars()) != IsNormalized::Yes => Some(text.nfc().collect()),
            Some(Form::Nfkc) if is_nfkc_quick(text.chars()) != IsNormalized::Yes => Some(text.nfkc().collect()),
            _ => None,
        };
        let text = normal.as_deref().unwrap_or(text);
        self.judge_plain(text)?;
        match &self.c4 {
            Some(c4) => c4.judge(text).map(Some),
            None => Ok(normal),
        }
    }

    fn judge_plain(&self, text: &str) -> Result<(), Drop> {
        let of = self.of;
        let length = &of.length;
        let bounds = |count: u64, what: &str, min: Option<u64>, max: Option<u64>, rules: [&'static str; 2]| {
            let said = || format!("{count} {what}");
            Drop::when(min.is_some_and(|min| count < min), rules[0], said)?;
            Drop::when(max.is_some_and(|max| count > max), rules[1], said)
        };
        if length.min_chars.or(length.max_chars).is_some() {
            let count = text.chars().count() as u64;
            bounds(count, "characters", length.min_chars, length.max_chars, ["length.min_chars", "length.max_chars"])?;
        }
        let count_words = length.min_words.or(length.max_words).is_some();
        let needed = count_words || of.gopher_quality.0.is_some() || of.gopher_repetition.0.is_some();
        let words = if needed { text::words(text) } else { Vec::new() };
        if count_words {
            let count = words.len() as u64;
            bounds(count, "words", length.min_words, length.max_words, ["length.min_words", "length.max_words"])?;
        }
        let bytes = text.len() as u64;
        bounds(bytes, "bytes", length.min_bytes, length.max_bytes, ["length.min_bytes", "length.max_bytes"])?;
        for share in &of.scripts {
            share.judge(text)?;
        }
        if let Some(language) = &of.language {
            language.judge(text)?;
        }
        let included = self.include.is_empty() || self.include.iter().any(|pattern| pattern.is_match(text));
        Drop::when(!included, "include", || "no pattern matches".to_owned())?;
        let excluded = self.exclude.iter().find(|pattern| pattern.is_match(text));
        Drop::when(excluded.is_some(), "exclude", || {
            format!("`{}` matches", excluded.map_or("", |found| found.as_str()))
        })?;
        if let Some(quality) = &of.gopher_quality.0 {
            quality.judge(text, &words)?;
        }
        if let Some(repetition) = &of.gopher_repetition.0 {
            repetition.judge(text, &words)?;
        }
        Ok(())
    }
}
