//! What stages say of the text that went through them, in their `….stats.json`: summed up over shards, whatever the kind.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read as _},
};

use anyhow::Result;
use flow_core::{Key, Tree};
use serde::Serialize;
use serde_json::{Map, Value as Json};

use super::library::Library;

/// A file of numbers is not larger.
const LARGEST: u64 = 8 << 20;
/// So many examples of each reason are shown.
const EXAMPLES: usize = 3;

/// A corpus at a stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Corpus {
    pub documents: Option<u64>,
    pub tokens: Option<u64>,
    pub bytes: Option<u64>,
    pub kept: Option<u64>,
    pub kept_bytes: Option<u64>,
    /// Why documents went, and how many.
    pub dropped: Vec<(String, u64)>,
    /// Where documents went to, or came from: a name, documents, bytes.
    pub parts: Vec<(String, u64, u64)>,
    pub examples: Vec<Example>,
    /// Up to so many tokens → documents.
    pub lengths: BTreeMap<u64, u64>,
}

/// A document that was dropped.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    pub reason: String,
    pub place: String,
    pub why: String,
    pub text: String,
}

/// What the results with these keys say together.
pub fn of(library: &Library<'_>, keys: &[Key]) -> Result<Option<Corpus>> {
    let (mut all, mut lengths) = (Json::Null, BTreeMap::new());
    for key in keys {
        let Some(known) = library.result(key)? else { continue };
        if let Some(stats) = &known.stats {
            add(&mut all, stats);
        }
        for (most, count) in &known.lengths {
            *lengths.entry(*most).or_default() += count;
        }
    }
    let corpus = Corpus { lengths, ..corpus(&all) };
    Ok((corpus != Corpus::default()).then_some(corpus))
}

/// The sum of what the files of statistics in a result say.
pub fn read(tree: &Tree, open: &dyn Fn(&str) -> Option<BufReader<File>>) -> Option<Json> {
    let mut all = Json::Null;
    let is_one = |name: &str| name == "stats.json" || name.ends_with(".stats.json");
    for entry in tree.entries().iter().filter(|entry| is_one(&entry.name) && entry.size <= LARGEST) {
        let mut text = String::new();
        if open(&entry.name)?.read_to_string(&mut text).is_ok()
            && let Ok(stats @ Json::Object(_)) = serde_json::from_str(&text)
        {
            add(&mut all, &stats);
        }
    }
    all.is_object().then_some(all)
}

/// Adds up: numbers are summed, tables name by name, lists of named tables as tables are; other lists are joined.
fn add(sum: &mut Json, more: &Json) {
    if sum.is_null() {
        *sum = more.clone();
        return;
    }
    match (sum, more) {
        (Json::Object(sum), Json::Object(more)) => {
            for (name, more) in more {
                add(sum.entry(name.clone()).or_insert(Json::Null), more);
            }
        }
        (Json::Array(sum), Json::Array(more)) => {
            for more in more {
                match sum.iter().position(|known| name(known).is_some() && name(known) == name(more)) {
                    Some(known) => add(&mut sum[known], more),
                    None if sum.len() < 1000 => sum.push(more.clone()),
                    None => {}
                }
            }
        }
        (Json::Number(sum), Json::Number(more)) => {
            if let (Some(a), Some(b)) = (sum.as_u64(), more.as_u64()) {
                *sum = a.saturating_add(b).into();
            } else if let Some(of) =
                serde_json::Number::from_f64(sum.as_f64().unwrap_or_default() + more.as_f64().unwrap_or_default())
            {
                *sum = of;
            }
        }
        _ => {}
    }
}

/// What an entry of a list is called.
fn name(of: &Json) -> Option<&str> {
    ["rule", "source"].iter().find_map(|name| of.get(name)?.as_str())
}

fn corpus(stats: &Json) -> Corpus {
    let empty = Map::new();
    let table = |name: &str| stats.get(name).and_then(Json::as_object).unwrap_or(&empty);
    let number = |of: &Json, name: &str| of.get(name).and_then(Json::as_u64);
    let keys: Vec<&Json> = table("keys").values().collect();
    let over_keys = |name: &str| keys.iter().filter_map(|key| number(key, name)).reduce(|a, b| a + b);
    let list = |name: &str| stats.get(name).and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();

    let mut dropped: Vec<(String, u64)> = Vec::new();
    let mut examples = Vec::new();
    for rule in list("rules") {
        let of = name(rule).unwrap_or_default().to_owned();
        dropped.push((of.clone(), number(rule, "dropped").unwrap_or(0)));
        show(&of, rule.get("sample"), &mut examples);
    }
    for (what, reason) in [("exact", "the same as one before"), ("near", "nearly the same as one before")] {
        dropped.extend(number(stats, what).map(|count| (reason.to_owned(), count)));
        show(reason, stats.get(format!("{what}_sample")), &mut examples);
    }
    // Lines that are no documents, also of the files of a stage that tells them apart; pages that are no articles.
    let files = table("files").values().filter_map(|file| file.get("reasons")?.as_object());
    for (reason, count) in [table("reasons"), table("dropped")].into_iter().chain(files).flatten() {
        let count = count.as_u64().unwrap_or(0);
        match dropped.iter_mut().find(|(known, _)| known == reason) {
            Some((_, sum)) => *sum += count,
            None => dropped.push((reason.clone(), count)),
        }
    }
    dropped.retain(|(_, count)| *count > 0);

    let parts = table("parts").iter().map(|(name, part)| (name.clone(), part, "documents", "bytes"));
    let sources = list("sources").iter();
    let sources = sources.filter_map(|of| Some((name(of)?.to_owned(), of, "taken_documents", "taken_bytes")));
    let parts = parts
        .chain(sources)
        .map(|(name, of, documents, bytes)| (name, number(of, documents).unwrap_or(0), number(of, bytes).unwrap_or(0)));
    let first = |names: &[&str]| names.iter().find_map(|name| number(stats, name));
    Corpus {
        documents: over_keys("documents").or_else(|| first(&["documents", "articles"])),
        tokens: over_keys("tokens"),
        bytes: first(&["bytes", "text_bytes"]),
        kept: number(stats, "kept"),
        kept_bytes: number(stats, "kept_bytes"),
        dropped,
        parts: parts.collect(),
        examples,
        lengths: BTreeMap::new(),
    }
}

fn show(reason: &str, sample: Option<&Json>, examples: &mut Vec<Example>) {
    for shown in sample.and_then(Json::as_array).into_iter().flatten().take(EXAMPLES) {
        let text = |name: &str| shown.get(name).and_then(Json::as_str).unwrap_or_default().to_owned();
        let line = shown.get("line").and_then(Json::as_u64).unwrap_or_default();
        examples.push(Example {
            reason: reason.to_owned(),
            place: format!("{}, line {line}", text("file")),
            why: text("why"),
            text: text("text"),
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shards_are_summed_whatever_their_kind() {
        let shard = |dropped: u64, file: &str| {
            json!({ "documents": 10, "kept": 10 - dropped, "bytes": 1000, "kept_bytes": 100, "reasons": { "no text": 1 },
                "rules": [
                    { "rule": "length", "dropped": dropped, "sample": [{ "file": file, "line": 3, "why": "58", "text": "a" }] },
                    { "rule": "language", "dropped": 0, "sample": [] } ] })
        };
        let mut sum = Json::Null;
        add(&mut sum, &shard(2, "a"));
        add(&mut sum, &shard(5, "b"));
        let got = corpus(&sum);
        assert_eq!((got.documents, got.kept, got.bytes, got.kept_bytes), (Some(20), Some(13), Some(2000), Some(200)));
        assert_eq!(got.dropped, [("length".to_owned(), 7), ("no text".to_owned(), 2)]);
        assert_eq!(got.examples.iter().map(|e| e.place.as_str()).collect::<Vec<_>>(), ["a, line 3", "b, line 3"]);

        let tokens = json!({ "dtype": "uint16", "bytes": 9, "skipped": 0, "reasons": {},
            "keys": { "text": { "documents": 3, "tokens": 7 }, "title": { "documents": 3, "tokens": 1 } } });
        let got = corpus(&tokens);
        assert_eq!((got.documents, got.tokens, got.dropped.len()), (Some(6), Some(8), 0));

        let mix = json!({ "sources": [{ "source": "a", "documents": 9, "taken_documents": 4, "taken_bytes": 40 }] });
        assert_eq!(corpus(&mix).parts, [("a".to_owned(), 4, 40)]);
    }
}
