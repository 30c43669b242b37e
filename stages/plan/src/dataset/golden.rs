//! The sample order of the real Megatron: `tests/golden/gpt_dataset` says how it was recorded.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use super::*;

fn golden(name: &str) -> Json {
    let path = root().join("gpt_dataset").join(name);
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn source(name: &str, weight: Option<f64>) -> DataSource {
    DataSource { prefix: root().join("preprocess").join(name), weight }
}

fn sha(bytes: impl IntoIterator<Item = u8>) -> String {
    let bytes: Vec<u8> = bytes.into_iter().collect();
    Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn same_samples(dataset: &Dataset, expected: &Json) {
    assert_eq!(dataset.len(), expected["len"].as_u64().unwrap());
    let hash = |i: u64| sha(dataset.sample(i).unwrap().iter().flat_map(|token| token.to_le_bytes()));
    let hashes = expected["samples_sha256"].as_array().unwrap();
    assert!(hashes.len() >= 17);
    for (i, expected) in hashes.iter().enumerate() {
        assert_eq!(hash(i as u64), expected.as_str().unwrap(), "sample {i}");
    }
    for (i, expected) in expected["first_tokens"].as_array().unwrap().iter().enumerate() {
        assert_eq!(serde_json::to_value(dataset.sample(i as u64).unwrap()).unwrap(), *expected, "sample {i}");
    }
    assert_eq!(hash(dataset.len() - 1), expected["last_sample_sha256"].as_str().unwrap());
}

#[test]
fn one_source_is_read_in_megatrons_order() {
    for name in ["gpt_seq128_seed42_ep2.5.json", "gpt_seq512_seed42_ep1.0.json"] {
        let golden = golden(name);
        let number = |field: &str| golden[field].as_u64().unwrap();
        let sources = Sources::open(&[source("train_0_text_document", None)]).unwrap();
        let splits = Splits::parse(golden["split"].as_str().unwrap()).unwrap();
        for (part, field) in ["train", "valid", "test"].into_iter().enumerate() {
            let samples = golden["requested_samples"][part].as_u64().unwrap();
            let request = Request { samples, seq_length: number("seq_length") as usize, seed: number("seed") as u32 };
            let dataset = sources.part(&splits, part, request).unwrap();
            let expected = &golden[field];
            same_samples(&dataset, expected);
            let Samples::One(one) = &dataset.samples else { panic!("one source is no blend") };
            assert_eq!(one.epochs(), expected["num_epochs"].as_u64().unwrap());
            let indices = [
                ("document_index", sha(one.document_index.iter().flat_map(|x| x.to_le_bytes()))),
                ("sample_index", sha(one.sample_index.iter().flatten().flat_map(|x| x.to_le_bytes()))),
                ("shuffle_index", sha(one.shuffle_index.iter().flat_map(|x| x.to_le_bytes()))),
            ];
            for (index, sha) in indices {
                assert_eq!(sha, expected[index]["sha256"].as_str().unwrap(), "{name} {field} {index}");
            }
        }
    }
}

#[test]
fn a_blend_is_drawn_in_megatrons_order() {
    let golden = golden("blend_0.7_0.3_seed42.json");
    let weight = |i: usize| golden["weights"][i].as_f64();
    let sources =
        Sources::open(&[source("train_0_text_document", weight(0)), source("validation_0_text_document", weight(1))]);
    let sources = sources.unwrap();
    let splits = Splits::parse(golden["split"].as_str().unwrap()).unwrap();
    for (part, field) in ["train", "valid", "test"].into_iter().enumerate() {
        let samples = golden["requested_samples"][part].as_u64().unwrap();
        let dataset = sources.part(&splits, part, Request { samples, seq_length: 128, seed: 42 }).unwrap();
        let expected = &golden[field];
        same_samples(&dataset, expected);
        let Samples::Blend(blend) = &dataset.samples else { panic!("two sources are a blend") };
        let drawn = sha(blend.dataset_index.iter().flat_map(|x| x.to_le_bytes()));
        assert_eq!(drawn, expected["dataset_index"]["sha256"].as_str().unwrap());
        let numbers = sha(blend.dataset_sample_index.iter().flat_map(|x| u64::from(*x).to_le_bytes()));
        assert_eq!(numbers, expected["dataset_sample_index"]["sha256"].as_str().unwrap());
        let lens: Vec<u64> = blend.members.iter().map(GptDataset::len).collect();
        assert_eq!(serde_json::to_value(lens).unwrap(), expected["member_len"]);
    }
}
