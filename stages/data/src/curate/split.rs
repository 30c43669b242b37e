//! `split`: documents told apart for good, as those to train on and those to validate with.

use std::{collections::BTreeMap, path::Path, time::Instant};

use anyhow::Result;
use flow_core::{Check, Ctx, Diagnostic, Level, Port, Refs, Stage};
use flow_formats::documents::{Lines, raw_value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    texts, throughput,
    write::{Output, Writer},
};
use crate::documents::{
    Bad, BadLines, OnBadLine, Reader, check_shards, check_workers, is_jsonl, shards, stats_name, stem, write_stats,
};

/// `kind = "split"`: one node a shard. `NAME.jsonl`, also compressed → `train/NAME.jsonl.zst`, `validation/NAME.jsonl.zst` or
/// whatever the parts are called, which other stages take as `"STAGE:train"` and `"STAGE:validation"`; and
/// `NAME.stats.json`.
///
/// The part of a document follows from a digest of its id, or of its text where it has none. So it stays in its part
/// whatever comes or goes beside it, in every shard and every corpus, and copies of a text with different ids should be gone
/// before (`dedup`). A part that is made larger keeps what it had, if it is the first by name.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Documents: `.jsonl`, also compressed; one node a file.
    #[serde(skip_serializing)]
    input: Refs,
    /// How much is for validation, from 0 to 1: short for `parts = { validation = … }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    validation: Option<f64>,
    /// The parts by their names, and how much of all documents each is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    parts: BTreeMap<String, f64>,
    /// The name of the part with all the others.
    #[serde(default = "default_rest")]
    rest: String,
    /// The key of the id, `a.b` for one inside of another. A document without it counts by its text.
    #[serde(default = "default_id")]
    key: String,
    /// The key whose text counts where there is no id.
    #[serde(default = "super::default_key")]
    json_key: String,
    /// Another seed, another choice.
    #[serde(default)]
    seed: u64,
    /// How the documents are written: `zst` if nothing is said.
    #[serde(default)]
    output: Output,
    /// What happens with a line that is no document.
    #[serde(default)]
    on_bad_line: OnBadLine,
    /// Threads that work; as many as the stage may use if left out.
    #[serde(default, skip_serializing)]
    workers: Option<usize>,
    /// The names of all parts, the last of which is the rest.
    #[serde(skip)]
    names: Vec<String>,
}

fn default_rest() -> String {
    "train".to_owned()
}

fn default_id() -> String {
    "id".to_owned()
}

/// `NAME.stats.json`.
#[derive(Debug, Default, Serialize)]
struct Stats {
    documents: u64,
    /// Those that have no id.
    by_text: u64,
    bytes: u64,
    parts: BTreeMap<String, Part>,
    #[serde(flatten)]
    bad: BadLines,
}

#[derive(Debug, Default, Serialize)]
struct Part {
    documents: u64,
    bytes: u64,
}

/// A block of lines, by part.
struct Sorted {
    lines: u64,
    by_text: u64,
    parts: Vec<(Vec<u8>, u64)>,
    bad: Vec<(u64, Bad)>,
}

impl Stage for Split {
    const KIND: &'static str = "split";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "Splits documents into parts, such as train and validation, by a hash of their ids";

    fn expand(mut self, errors: &mut Vec<Diagnostic>) -> Vec<Self> {
        if let Some(validation) = self.validation {
            if self.parts.contains_key("validation") {
                let error = Diagnostic::new("`validation` and `parts.validation` are both there").field("validation");
                errors.push(error.hint("keep one of them"));
            }
            self.parts.insert("validation".to_owned(), validation);
        }
        let field = |name: &str| match self.validation {
            Some(_) if name == "validation" => name.to_owned(),
            _ => format!("parts.{name}"),
        };
        if self.parts.is_empty() {
            let error = Diagnostic::new("there is nothing to split").field("validation");
            errors.push(error.hint("validation = 0.005, or parts = { validation = 0.005, test = 0.01 }"));
        }
        for (name, part) in &self.parts {
            if !(*part > 0.0 && *part < 1.0) {
                let error = Diagnostic::new(format!("{part} is no part of the documents")).field(field(name));
                errors.push(error.hint("between 0 and 1: 0.005 is every two hundredth"));
            }
            if *name == self.rest {
                let error = Diagnostic::new(format!("`{name}` is the rest, which needs no number")).field(field(name));
                errors.push(error.hint("leave it away; or rest = \"…\" names another"));
            }
        }
        let names = self.parts.keys().map(|name| (name, field(name))).chain([(&self.rest, "rest".to_owned())]);
        for (name, field) in names {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
            if name.is_empty() || !name.chars().all(is_plain) {
                let error = Diagnostic::new(format!("`{name}` is no name of a part")).field(field);
                errors.push(error.hint("letters, digits, `_` and `-`: it becomes a directory"));
            }
        }
        let all: f64 = self.parts.values().sum();
        if all >= 1.0 && self.parts.values().all(|part| *part < 1.0) {
            let error = Diagnostic::new(format!("the parts are {all}, and nothing is left for `{}`", self.rest));
            errors.push(error.field("parts"));
        }
        check_workers(self.workers, errors);
        self.names = self.parts.keys().chain([&self.rest]).cloned().collect();
        vec![self]
    }

    fn ports(&self) -> Vec<Port> {
        vec![Port::each("input", &self.input)]
    }

    fn parts(&self) -> &[String] {
        &self.names
    }

    fn check(&self, check: &mut Check<'_>) {
        let names =
            check.input("input").iter().flat_map(|known| &known.files).filter(|name| is_jsonl(name, usize::MAX));
        let of = |name: &String| {
            let parts = self.names.iter().map(|part| self.output.name(&format!("{part}/{}", stem(name))));
            parts.chain([stats_name(stem(name))]).collect::<Vec<_>>()
        };
        check.files = names.flat_map(of).collect();
        check_shards(check, "input", &self.json_key, self.on_bad_line);
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let started = Instant::now();
        let input = ctx.one("input")?;
        let mut reader = Reader::new(ctx, self.workers, input.tree.size());
        let mut all = Stats::default();
        for (stem, path) in shards(input)? {
            let stats = self.split(ctx, &mut reader, &stem, &path)?;
            all.documents += stats.documents;
            all.bytes += stats.bytes;
            for (name, part) in &stats.parts {
                all.parts.entry(name.clone()).or_default().documents += part.documents;
            }
            write_stats(ctx, &stats_name(&stem), &stats)?;
        }
        let parts = all.parts.iter().map(|(name, part)| format!("{} {name}", part.documents));
        let rate = throughput(all.documents, all.bytes, started.elapsed().as_secs_f64());
        let text = format!("{} documents: {} in {rate}", all.documents, parts.collect::<Vec<_>>().join(", "));
        ctx.log(Level::Info, text);
        Ok(())
    }
}

impl Split {
    fn split(&self, ctx: &Ctx<'_>, reader: &mut Reader<'_>, stem: &str, path: &Path) -> Result<Stats> {
        let create = |name: &String| Writer::create(ctx.out, &format!("{name}/{stem}"), self.output);
        let mut writers = self.names.iter().map(create).collect::<Result<Vec<_>>>()?;
        let (mut stats, mut lines) = (Stats::default(), 0);
        let sort = |block: &[u8]| Ok(self.sort(block));
        stats.bytes = reader.blocks(path, sort, |sorted| {
            for (number, bad) in &sorted.bad {
                stats.bad.take(ctx, self.on_bad_line, path, lines + number, bad)?;
            }
            for (writer, (lines, documents)) in writers.iter_mut().zip(sorted.parts) {
                writer.append(&lines, documents)?;
            }
            lines += sorted.lines;
            stats.by_text += sorted.by_text;
            Ok(())
        })?;
        for (name, writer) in self.names.iter().zip(writers) {
            let part = Part { documents: writer.documents, bytes: writer.bytes };
            stats.documents += part.documents;
            stats.parts.insert(name.clone(), part);
            writer.finish()?;
        }
        Ok(stats)
    }

    fn sort(&self, block: &[u8]) -> Sorted {
        let keys = [self.json_key.clone()];
        let mut sorted =
            Sorted { lines: 0, by_text: 0, parts: vec![(Vec::new(), 0); self.names.len()], bad: Vec::new() };
        let path: Vec<&str> = self.key.split('.').collect();
        for line in Lines::new(block) {
            let number = sorted.lines;
            sorted.lines += 1;
            let text = match texts(line, &keys) {
                Ok([text]) => text,
                Err(bad) => {
                    sorted.bad.push((number, bad));
                    continue;
                }
            };
            let id = id(line, &path);
            sorted.by_text += u64::from(id.is_none());
            let part = self.part(id.as_deref(), &text);
            let (lines, documents) = &mut sorted.parts[part];
            lines.extend_from_slice(line);
            lines.push(b'\n');
            *documents += 1;
        }
        sorted
    }

    /// The number of the part of a document.
    fn part(&self, id: Option<&str>, text: &str) -> usize {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"flow split\n").update(&self.seed.to_le_bytes());
        match id {
            Some(id) => hasher.update(b"id").update(id.as_bytes()),
            None => hasher.update(b"text").update(text.as_bytes()),
        };
        let mut digest = [0; 8];
        hasher.finalize_xof().fill(&mut digest);
        // 53 bits are what a float between 0 and 1 has room for.
        let place = (u64::from_le_bytes(digest) >> 11) as f64 / (1u64 << 53) as f64;
        let mut end = 0.0;
        let ends = self.parts.values().map(|part| {
            end += part;
            end
        });
        ends.take_while(|end| *end <= place).count()
    }
}

/// The id of a document: a string, or what JSON writes for a number.
fn id(line: &[u8], path: &[&str]) -> Option<String> {
    match raw_value(line, path)? {
        "null" => None,
        text if text.starts_with('"') => serde_json::from_str(text).ok(),
        text if text.starts_with(['{', '[']) => None,
        text => Some(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::testing::{Stand, expand, stage};

    fn documents(range: std::ops::Range<usize>) -> String {
        let line = |i| match i % 3 {
            0 => json!({ "meta": { "id": format!("doc-{i}") }, "text": "the same" }).to_string(),
            1 => json!({ "text": "the same", "meta": { "id": i } }).to_string(),
            _ => json!({ "text": format!("text {i}") }).to_string(),
        };
        range.map(line).collect::<Vec<_>>().join("\n")
    }

    fn run(text: &str, params: &Json) -> (Vec<Vec<String>>, Json) {
        let mut stand = Stand::new();
        let path = stand.write("a.jsonl", text);
        stand.input("input", &path);
        let mut params = params.clone();
        for (key, value) in [("input", "raw"), ("output", "plain"), ("key", "meta.id")] {
            params[key] = value.into();
        }
        let split: Split = stage(params);
        stand.run(&split).unwrap();
        let lines = |part: &String| {
            let text = String::from_utf8(stand.out(&format!("{part}/a.jsonl"))).unwrap();
            text.lines().map(str::to_owned).collect()
        };
        (split.names.iter().map(lines).collect(), serde_json::from_slice(&stand.out("a.stats.json")).unwrap())
    }

    #[test]
    fn a_document_stays_in_its_part_whatever_comes_beside_it() {
        let (parts, stats) = run(&documents(0..3000), &json!({ "validation": 0.1 }));
        assert_eq!((parts[0].len() + parts[1].len(), &stats["by_text"]), (3000, &json!(1000)));
        assert!((200..400).contains(&parts[0].len()), "{}", parts[0].len());
        assert_eq!(stats["parts"]["validation"]["documents"], parts[0].len());
        let (more, _) = run(&documents(1000..6000), &json!({ "validation": 0.1 }));
        let in_both = |part: &[String], other: &[String]| part.iter().filter(|line| other.contains(line)).count();
        assert_eq!((in_both(&parts[0], &more[1]), in_both(&parts[1], &more[0])), (0, 0));
        assert!(in_both(&parts[0], &more[0]) > 100);
        // A larger part keeps what it had; another seed chooses others.
        let (larger, _) = run(&documents(0..3000), &json!({ "validation": 0.2 }));
        assert_eq!(in_both(&parts[0], &larger[0]), parts[0].len());
        let (other, _) = run(&documents(0..3000), &json!({ "validation": 0.1, "seed": 1 }));
        assert!(in_both(&parts[0], &other[0]) < parts[0].len() / 2);
        let (three, _) = run(&documents(0..3000), &json!({ "parts": { "a": 0.5, "b": 0.3 }, "rest": "c" }));
        assert!(three.iter().zip([1500, 900, 600]).all(|(part, about)| part.len().abs_diff(about) < 150));
    }

    #[test]
    fn what_cannot_be_is_said_before_anything_runs() {
        for (mut params, field, words) in [
            (json!({}), "validation", "nothing to split"),
            (json!({ "validation": 5 }), "validation", "5 is no part"),
            (json!({ "validation": 0.1, "parts": { "validation": 0.1 } }), "validation", "both there"),
            (json!({ "parts": { "a": 0.5, "b": 0.5 } }), "parts", "nothing is left for `train`"),
            (json!({ "parts": { "train": 0.5 } }), "parts.train", "is the rest"),
            (json!({ "parts": { "a/b": 0.5 } }), "parts.a/b", "no name of a part"),
            (json!({ "validation": 0.1, "rest": "" }), "rest", "no name of a part"),
        ] {
            params["input"] = "raw".into();
            let error = expand::<Split>(params).unwrap_err();
            assert!(error.field.as_deref() == Some(field) && error.message.contains(words), "{error:?}");
        }
    }
}
