//! Logits and log-likelihoods are transformers'.

use std::{fs, path::Path, process::Command};

use crate::common::{FLOW_TORCH, golden, reference};
use flow_plan::EvalResults;
use serde_json::{Value, json};

fn evaluate(model: &Path, seq_length: usize, batch_size: usize) -> EvalResults {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden().join("documents.jsonl"), dir.path().join("documents.jsonl")).unwrap();
    let job = json!({
        "job": "eval", "node": "eval", "model": model, "documents": dir.path().join("documents.jsonl"),
        "seq_length": seq_length, "batch_size": batch_size, "device": "cpu", "precision": "fp32",
        "out": dir.path(), "threads": 1,
    });
    fs::write(dir.path().join("job.json"), job.to_string()).unwrap();
    let output = Command::new(FLOW_TORCH).arg("worker").arg(dir.path().join("job.json")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&fs::read(dir.path().join("results.json")).unwrap()).unwrap()
}

#[test]
fn log_likelihoods_are_those_of_transformers() {
    let expected = reference();
    for model in ["untied", "tied"] {
        let theirs = &expected["evaluations"][model];
        for batch_size in [1, 5] {
            let ours = evaluate(&golden().join(model), theirs["seq_length"].as_u64().unwrap() as usize, batch_size);
            let counts = |name: &str| theirs[name].as_u64().unwrap();
            assert_eq!(
                (ours.documents, ours.tokens, ours.bytes),
                (counts("documents"), counts("tokens"), counts("bytes"))
            );
            let nll = theirs["nll"].as_f64().unwrap();
            assert!((ours.nll - nll).abs() < 1e-6 * nll, "{} and {nll}", ours.nll);
        }
    }
}

#[test]
fn logits_are_those_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let expected = reference();
    for model in ["untied", "tied"] {
        let theirs = &expected["logits"][model];
        let ids = dir.path().join("ids.json");
        fs::write(&ids, theirs["ids"].to_string()).unwrap();
        let out = dir.path().join("logits.npy");
        let done = Command::new(FLOW_TORCH).arg("logits").args([&golden().join(model), &ids, &out]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let bytes = fs::read(&out).unwrap();
        assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
        let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        assert_eq!(header % 64, 0);
        let ours: Vec<f64> =
            bytes[header..].chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
        let vocabulary = 256;
        assert_eq!(ours.len(), theirs["ids"].as_array().unwrap().len() * vocabulary);
        // Position → logits of the first ids there.
        for (position, logits) in theirs["at"].as_object().unwrap() {
            let row = position.parse::<usize>().unwrap() * vocabulary;
            for (i, logit) in logits.as_array().unwrap().iter().map(Value::as_f64).enumerate() {
                assert!((ours[row + i] - logit.unwrap()).abs() < 1e-4, "{model} at {position}: {i}");
            }
        }
    }
}
