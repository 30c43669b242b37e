//! What `.bin/.idx` datasets hold, for a person; every number of their indices is looked at on the way.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flow_formats::indexed::{IndexedDataset, bin_path, idx_path};
use serde_json::json;

use crate::weights::Inspection;

/// The datasets at `path`: a prefix, one of its two files, or a directory of them; as prefixes, by name.
pub fn at(path: &Path) -> Vec<PathBuf> {
    if idx_path(path).is_file() && bin_path(path).is_file() {
        return vec![path.to_owned()];
    }
    let is_part = |path: &Path| path.extension().is_some_and(|ending| ending == "idx" || ending == "bin");
    if path.is_file() && is_part(path) {
        return vec![path.with_extension("")];
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let indices = entries.filter(|path| path.extension().is_some_and(|ending| ending == "idx"));
    let mut prefixes: Vec<PathBuf> = indices.map(|path| path.with_extension("")).collect();
    prefixes.sort();
    prefixes
}

/// Looks at datasets.
///
/// # Errors
/// One of them is damaged: with the offset.
pub fn inspect(prefixes: &[PathBuf]) -> Result<Inspection> {
    let headings = ["DATASET", "TYPE", "DOCUMENTS", "SEQUENCES", "TOKENS", "LONGEST"];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    let mut datasets = Vec::new();
    let (mut documents, mut tokens) = (0, 0);
    // How many documents have up to 2ⁿ tokens and more than half of that.
    let mut lengths = [0u64; 65];
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
        let counts = [set.documents() as u64, set.sequences() as u64, set.tokens(), longest];
        let mut row = vec![name.clone(), set.dtype().name().to_owned()];
        row.extend(counts.map(|count| count.to_string()));
        rows.push(row);
        datasets
            .push(json!({ "name": name, "dtype": set.dtype().name(), "documents": counts[0], "sequences": counts[1],
            "tokens": counts[2], "longest": counts[3] }));
        documents += counts[0];
        tokens += counts[2];
    }
    let held = lengths.iter().enumerate().filter(|(_, count)| **count > 0);
    let held: Vec<(String, u64)> = held.map(|(n, count)| ((1u128 << n).to_string(), *count)).collect();
    let shown: Vec<String> = held.iter().map(|(most, count)| format!("≤ {most}: {count}")).collect();
    let facts = vec![
        ("format", "Megatron indexed dataset".to_owned()),
        ("documents", documents.to_string()),
        ("tokens", tokens.to_string()),
        ("tokens a document", shown.join(", ")),
    ];
    let lengths: serde_json::Map<String, serde_json::Value> =
        held.into_iter().map(|(most, count)| (most, count.into())).collect();
    let json = json!({ "format": "indexed", "documents": documents, "tokens": tokens, "lengths": lengths,
        "datasets": datasets });
    Ok(Inspection { facts, rows, json })
}

#[cfg(test)]
mod tests {
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
        let stats: serde_json::Value = serde_json::from_slice(&stand.out("stats.json")).unwrap();
        let stats = &stats["files"]["validation_0"]["keys"]["text"];
        let name = "out/validation_0_text_document";
        for path in ["out".to_owned(), name.to_owned(), format!("{name}.idx"), format!("{name}.bin")] {
            let found = inspect(&stand.place(&path)).unwrap();
            assert_eq!((&found.json["documents"], &found.json["tokens"]), (&stats["documents"], &stats["tokens"]));
            let lengths = found.json["lengths"].as_object().unwrap().values();
            assert_eq!(lengths.map(|count| count.as_u64().unwrap()).sum::<u64>(), stats["documents"].as_u64().unwrap());
            assert_eq!(found.rows[1][0], "validation_0_text_document");
        }
        let bin = stand.place(&format!("{name}.bin"));
        let half = std::fs::read(&bin).unwrap();
        std::fs::write(&bin, &half[..half.len() / 2]).unwrap();
        assert!(format!("{:#}", inspect(&stand.place("out")).unwrap_err()).contains("validation_0_text_document"));
    }
}
