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
                ("document_index", sha(one.document_index().iter().flat_map(|x| x.to_le_bytes()))),
                ("sample_index", sha(one.sample_index().iter().flatten().flat_map(|x| x.to_le_bytes()))),
                ("shuffle_index", sha(one.shuffle_index().iter().flat_map(|x| x.to_le_bytes()))),
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
        let index = blend.index.as_chunks::<2>().0;
        let drawn = sha(index.iter().flat_map(|x| (x[0] as u16).to_le_bytes()));
        assert_eq!(drawn, expected["dataset_index"]["sha256"].as_str().unwrap());
        let numbers = sha(index.iter().flat_map(|x| u64::from(x[1]).to_le_bytes()));
        assert_eq!(numbers, expected["dataset_sample_index"]["sha256"].as_str().unwrap());
        let lens: Vec<u64> = blend.members.iter().map(GptDataset::len).collect();
        assert_eq!(serde_json::to_value(lens).unwrap(), expected["member_len"]);
    }
}

#[derive(serde::Deserialize)]
struct Mix {
    prefixes: Vec<String>,
    weights: Option<Vec<f64>>,
}

impl Mix {
    fn sources(&self) -> Vec<DataSource> {
        let weight = |i: usize| self.weights.as_ref().map(|weights| weights[i]);
        self.prefixes.iter().enumerate().map(|(i, name)| source(name, weight(i))).collect()
    }
}

#[derive(serde::Deserialize)]
struct Case {
    train: Mix,
    validation: Option<Mix>,
    splits: Option<String>,
    sizes: [u64; 2],
    seq_length: usize,
    seed: u32,
    result: [Option<Order>; 2],
}

#[derive(Debug, PartialEq, serde::Deserialize)]
struct Order {
    len: u64,
    sha256: String,
}

/// Blends with and without weights, common and separate splits, many sizes, lengths and seeds, by `make_orders.py`.
#[test]
fn whatever_is_asked_for_comes_in_megatrons_order() {
    let cases: Vec<Case> = serde_json::from_value(golden("orders.json")).unwrap();
    assert!(cases.len() > 40);
    for (number, case) in cases.into_iter().enumerate() {
        let request = |samples| Request { samples, seq_length: case.seq_length, seed: case.seed };
        let sources = Sources::open(&case.train.sources()).unwrap();
        let built = if let Some(splits) = &case.splits {
            let splits = Splits::parse(splits).unwrap();
            [0, 1].map(|part| Some(sources.part(&splits, part, request(case.sizes[part])).unwrap()))
        } else {
            let open = |mix: &Mix| Sources::open(&mix.sources()).unwrap();
            let validation = case.validation.as_ref().map(|mix| open(mix).whole(request(case.sizes[1])).unwrap());
            [Some(sources.whole(request(case.sizes[0])).unwrap()), validation]
        };
        let order = |dataset: Dataset| {
            let last = dataset.len() - 1;
            let mut tokens = Vec::new();
            (0..150.min(dataset.len())).chain([last]).for_each(|i| dataset.read(i, &mut tokens).unwrap());
            Order { len: dataset.len(), sha256: sha(tokens.into_iter().flat_map(i64::to_le_bytes)) }
        };
        assert_eq!(built.map(|dataset| dataset.map(order)), case.result, "case {number}");
    }
}

#[test]
fn sources_that_do_not_suffice_are_read_again() {
    let sources = [source("train_0_text_document", None), source("validation_0_text_document", None)];
    let sources = Sources::open(&sources).unwrap();
    let request = |samples| Request { samples, seq_length: 512, seed: 1 };
    let once = sources.whole(request(1900)).unwrap();
    assert!(!once.repeated() && once.epochs() == [1, 1]);
    let again = sources.whole(request(6000)).unwrap();
    assert!(again.repeated() && again.len() >= 6000 && again.epochs() == [4, 4]);
    assert_eq!(again.sample(5999).unwrap().len(), 513);
    assert!(again.sample(again.len()).unwrap_err().to_string().contains("there is no sample"));
}

#[test]
fn data_that_cannot_be_used_is_named() {
    let error = |sources: &[DataSource], splits: &str, seq_length| {
        let request = Request { samples: 1, seq_length, seed: 1 };
        let built = Sources::open(sources).and_then(|s| s.part(&Splits::parse(splits).unwrap(), 1, request));
        format!("{:#}", built.err().unwrap())
    };
    let good = source("train_0_text_document", None);
    assert!(error(&[source("nothing", None)], "1,1", 8).contains("nothing.idx"));
    assert!(
        error(std::slice::from_ref(&good), "100,0,0", 8).contains("train_0_text_document: the splits leave nothing")
    );
    assert!(
        error(std::slice::from_ref(&good), "9999,1", 8).contains("0 tokens in 0 sequences are not one sample of 8 + 1")
    );
    assert!(error(&[good, source("train_0_text_document", Some(1.0))], "1,1", 8).contains("1 of 2 sources"));
    assert!(error(&[source("train_0_text_document", Some(-1.0))], "1,1", 8).contains("above 0"));
    assert!(error(&[], "1,1", 8).contains("there is no data"));
}

#[test]
fn what_is_kept_in_files_is_taken_by_who_comes_again() {
    let directory = tempfile::tempdir().unwrap();
    let files = || {
        let entries = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap());
        let mut files: Vec<_> =
            entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().modified().unwrap())).collect();
        files.retain(|file| !file.0.to_string_lossy().ends_with(".lock"));
        files.sort();
        files
    };
    let order = |store: Store, seed: u32| {
        let sources = [source("train_0_text_document", Some(0.7)), source("validation_0_text_document", Some(0.3))];
        let mut sources = Sources::open(&sources).unwrap();
        sources.store = store;
        let dataset = sources.whole(Request { samples: 5000, seq_length: 64, seed }).unwrap();
        let mut tokens = Vec::new();
        (0..dataset.len()).for_each(|i| dataset.read(i, &mut tokens).unwrap());
        sha(tokens.into_iter().flat_map(i64::to_le_bytes))
    };
    let kept = || Store::in_directory(directory.path());
    let here = order(Store::default(), 7);
    assert_eq!(order(kept(), 7), here);
    let made = files();
    assert_eq!(made.len(), 3, "two sources and the blend: {made:?}");
    assert_eq!((order(kept(), 7), files()), (here.clone(), made.clone()));
    assert_ne!(order(kept(), 8), here);
    assert_eq!(files().len(), 5, "another seed is another order of each source, and the same blend");
}
