//! What `.bin/.idx` datasets hold, for a person; every number of their indices is looked at on the way, and every id if
//! there is a tokenizer that should know them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flow_core::{Diagnostic, Known};
use flow_formats::indexed::{IndexedDataset, bin_path, idx_path};
use serde_json::json;

use crate::{
    tokenize::{Files, Tokenizer},
    weights::Inspection,
};

/// Documents at the beginning of a dataset that are shown.
const SHOWN: usize = 3;

/// Ids of each that are shown.
const BEGINNING: usize = 64;

/// Characters that a line for people has room for.
const LINE: usize = 72;

/// The datasets at `path`: a prefix, one of its two files, or a directory of them; as prefixes, by name.
pub fn at(path: &Path) -> Vec<PathBuf> {
    if idx_path(path).is_file() && bin_path(path).is_file() {
        return vec![path.to_owned()];
    }
    if path.is_file() && is_part(path) {
        return vec![path.with_extension("")];
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let indices = entries.filter(|path| path.extension().is_some_and(|ending| ending == "idx"));
    let mut prefixes: Vec<PathBuf> = indices.map(|path| path.with_extension("")).collect();
    prefixes.sort();
    prefixes
}

fn is_part(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "idx" || ending == "bin")
}

/// What is wrong with something that is there already and is to be tokens: said before the run.
pub fn wrong(known: &Known) -> Option<Diagnostic> {
    let path = known.path.as_deref()?;
    let make = "name what `tokenize` makes: NAME_text_document.bin and .idx";
    if !path.is_file() {
        let empty = !holds_an_index(path);
        return empty.then(|| Diagnostic::new(format!("{} holds no .idx", path.display())).hint(make));
    }
    // A file enters alone: what lies beside it does not come along.
    let wrong = Diagnostic::new(format!("{} is one file, and tokens are a .bin with its .idx", path.display()));
    let prefix = path.with_extension("");
    Some(match is_part(path) && idx_path(&prefix).is_file() && bin_path(&prefix).is_file() {
        true => wrong.hint(format!("without the ending it means both: \"{}\"", prefix.display())),
        false => wrong.hint(make),
    })
}

fn holds_an_index(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return true };
    entries.flatten().any(|entry| {
        let path = entry.path();
        path.extension().is_some_and(|ending| ending == "idx") || (path.is_dir() && holds_an_index(&path))
    })
}

/// Looks at datasets; with the directory of a tokenizer, at their text too.
///
/// # Errors
/// One of them is damaged: with the offset. It holds an id that the tokenizer does not have.
pub fn inspect(prefixes: &[PathBuf], tokenizer: Option<&Path>) -> Result<Inspection> {
    let tokenizer = tokenizer.map(|path| Tokenizer::load(&Files::find(path)?)).transpose()?;
    let headings = ["DATASET", "TYPE", "DOCUMENTS", "SEQUENCES", "TOKENS", "LONGEST"];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    let mut datasets = Vec::new();
    let (mut documents, mut tokens) = (0, 0);
    // How many documents have up to 2ⁿ tokens and more than half of that.
    let mut lengths = [0u64; 65];
    let mut first = Vec::new();
    for prefix in prefixes {
        let set = IndexedDataset::open(prefix)?;
        set.validate().with_context(|| format!("{} is damaged", prefix.display()))?;
        let mut longest = 0;
        for document in 0..set.documents() {
            let mut length = 0;
            for sequence in set.document(document)? {
                length += set.length(sequence)? as u64;
            }
            longest = longest.max(length);
            lengths[length.checked_next_power_of_two().map_or(64, u64::trailing_zeros) as usize] += 1;
        }
        let name = prefix.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let beginnings = beginnings(&set, tokenizer.as_ref())?;
        for (document, (ids, text)) in beginnings.iter().enumerate().filter(|_| prefixes.len() == 1) {
            first.push((FIRST[document], text.as_ref().map_or_else(|| brief(&ids_in_words(ids)), |text| brief(text))));
        }
        if let Some(tokenizer) = &tokenizer {
            known_ids(&set, tokenizer.vocabulary()).with_context(|| format!("{}", bin_path(prefix).display()))?;
        }
        let counts = [set.documents() as u64, set.sequences() as u64, set.tokens(), longest];
        let mut row = vec![name.clone(), set.dtype().name().to_owned()];
        row.extend(counts.map(|count| count.to_string()));
        rows.push(row);
        datasets
            .push(json!({ "name": name, "dtype": set.dtype().name(), "documents": counts[0], "sequences": counts[1],
            "tokens": counts[2], "longest": counts[3],
            "first": beginnings.into_iter().map(|(ids, text)| json!({ "ids": ids, "text": text })).collect::<Vec<_>>() }));
        documents += counts[0];
        tokens += counts[2];
    }
    let held = lengths.iter().enumerate().filter(|(_, count)| **count > 0);
    let held: Vec<(String, u64)> = held.map(|(n, count)| ((1u128 << n).to_string(), *count)).collect();
    let shown: Vec<String> = held.iter().map(|(most, count)| format!("≤ {most}: {count}")).collect();
    let mut facts = vec![
        ("format", "Megatron indexed dataset".to_owned()),
        ("documents", documents.to_string()),
        ("tokens", tokens.to_string()),
        ("tokens a document", shown.join(", ")),
    ];
    facts.extend(first);
    let lengths: serde_json::Map<String, serde_json::Value> =
        held.into_iter().map(|(most, count)| (most, count.into())).collect();
    let json = json!({ "format": "indexed", "documents": documents, "tokens": tokens, "lengths": lengths,
        "datasets": datasets });
    Ok(Inspection { facts, rows, json })
}

/// How the first documents are called.
const FIRST: [&str; SHOWN] = ["first document", "second", "third"];

/// The ids with which the first documents begin, and their text if there is a tokenizer.
fn beginnings(set: &IndexedDataset, tokenizer: Option<&Tokenizer>) -> Result<Vec<(Vec<i64>, Option<String>)>> {
    let mut found = Vec::new();
    for document in 0..set.documents().min(SHOWN) {
        let mut ids = Vec::new();
        for sequence in set.document(document)? {
            set.sequence(sequence)?.read(0..BEGINNING - ids.len(), &mut ids);
        }
        let text = tokenizer.map(|tokenizer| {
            let known: Vec<u32> = ids.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
            tokenizer.decode(&known)
        });
        found.push((ids, text.transpose()?));
    }
    Ok(found)
}

/// Whether every id is one of so many.
fn known_ids(set: &IndexedDataset, vocabulary: usize) -> Result<()> {
    let mut ids = Vec::new();
    for i in 0..set.sequences() {
        ids.clear();
        set.sequence(i)?.read(0..usize::MAX, &mut ids);
        if let Some(at) = ids.iter().position(|id| usize::try_from(*id).map_or(true, |id| id >= vocabulary)) {
            ensure!(false, "id {} at token {at} of sequence {i}: the tokenizer has {vocabulary}", ids[at]);
        }
    }
    Ok(())
}

fn ids_in_words(ids: &[i64]) -> String {
    ids.iter().map(i64::to_string).collect::<Vec<_>>().join(" ")
}

/// In one line that is not too long.
fn brief(text: &str) -> String {
    let escaped = text.escape_debug().to_string();
    match escaped.char_indices().nth(LINE) {
        Some((at, _)) => escaped[..at].to_owned() + "…",
        None => escaped,
    }
}

#[cfg(test)]
mod tests {
    use flow_formats::indexed::{Block, IndexedWriter, TokenType};

    use super::*;
    use crate::{
        testing::{Stand, repository, stage},
        tokenize::Tokenize,
        weights::inspect,
    };

    #[test]
    fn a_dataset_is_told_by_its_prefix_its_files_and_its_directory() {
        let example = repository().join("examples/ja_wiki_mini");
        let mut stand = Stand::new();
        stand.input("input", &example.join("validation_0.jsonl.gz")).input("tokenizer", &example.join("tokenizer"));
        stand.run(&stage::<Tokenize>(json!({"input": "raw", "tokenizer": "base"}))).unwrap();
        let stats: serde_json::Value = serde_json::from_slice(&stand.out("validation_0.stats.json")).unwrap();
        let stats = &stats["keys"]["text"];
        let name = "out/validation_0_text_document";
        for path in ["out".to_owned(), name.to_owned(), format!("{name}.idx"), format!("{name}.bin")] {
            let found = inspect(&stand.place(&path), None).unwrap();
            assert_eq!((&found.json["documents"], &found.json["tokens"]), (&stats["documents"], &stats["tokens"]));
            let lengths = found.json["lengths"].as_object().unwrap().values();
            assert_eq!(lengths.map(|count| count.as_u64().unwrap()).sum::<u64>(), stats["documents"].as_u64().unwrap());
            assert_eq!(found.rows[1][0], "validation_0_text_document");
            assert!(found.facts[4].0 == "first document" && found.facts[4].1.starts_with("7936 "), "{:?}", found.facts);
        }

        let tokenizer = example.join("tokenizer");
        let found = inspect(&stand.place(name), Some(&tokenizer)).unwrap();
        assert!(found.facts[4].1.starts_with("<|begin_of_text|>"), "{:?}", found.facts);
        assert_eq!(found.json["datasets"][0]["first"].as_array().unwrap().len(), 3);
        let foreign = stand.place("foreign");
        let mut writer = IndexedWriter::create(&foreign, TokenType::U16).unwrap();
        let mut block = Block::new(TokenType::U16);
        block.sequence(&[1, 8192, 2]).unwrap();
        block.end_document();
        writer.append(&block).unwrap();
        writer.finish().unwrap();
        assert_eq!(inspect(&foreign, None).unwrap().json["tokens"], 3);
        let error = format!("{:#}", inspect(&foreign, Some(&tokenizer)).unwrap_err());
        assert!(error.contains("foreign.bin: id 8192 at token 1 of sequence 0: the tokenizer has 8192"), "{error}");

        let bin = stand.place(&format!("{name}.bin"));
        let half = std::fs::read(&bin).unwrap();
        std::fs::write(&bin, &half[..half.len() / 2]).unwrap();
        assert!(
            format!("{:#}", inspect(&stand.place("out"), None).unwrap_err()).contains("validation_0_text_document")
        );
    }
}
