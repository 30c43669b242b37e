//! Logits and log-likelihoods are transformers'.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::common::{Ended, FLOW_TORCH, finish, golden, lines, reference};
use serde_json::{Value, json};

/// What transformers answers: `tests/golden/generate/make_reference.py`.
pub fn answers() -> Value {
    let path = golden().join("../generate/reference.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Asks a model, with so many ranks; how they ended, and the answers if there are any.
pub fn try_ask(model: &Path, requests: &[Value], tensor: usize, changes: &Value) -> (Vec<Ended>, Option<Vec<Value>>) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("requests"), requests.iter().map(|request| format!("{request}\n")).collect::<String>()).unwrap();
    let mut job = json!({
        "job": "eval", "node": "eval", "model": model, "requests": path("requests"), "answers": path("answers"),
        "max_length": 512, "batch_size": 4, "device": "cpu", "precision": "fp32", "threads": 1, "tensor": tensor,
    });
    job.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    fs::write(path("job.json"), job.to_string()).unwrap();
    let ended = finish(start(&path("job.json"), tensor));
    (ended, fs::read_to_string(path("answers")).ok().map(|text| lines(&text)))
}

/// Starts the ranks of a job.
pub fn start(job: &Path, tensor: usize) -> Vec<Child> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = |rank: usize| {
        let names = [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", tensor), ("MASTER_PORT", port.into())];
        let mut command = Command::new(FLOW_TORCH);
        command.arg("worker").arg(job).env("MASTER_ADDR", "127.0.0.1");
        command.envs(names.map(|(name, value)| (name, value.to_string())));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    (0..tensor).map(start).collect()
}

/// As [`try_ask`], and they must answer.
pub fn ask(model: &Path, requests: &[Value], tensor: usize, changes: &Value) -> Vec<Value> {
    let (ended, answers) = try_ask(model, requests, tensor, changes);
    ended.iter().for_each(|rank| assert!(rank.status.success(), "{}", rank.stderr));
    answers.unwrap()
}

/// Asks for scores and holds them against transformers'.
fn scores(model: &str, tensor: usize, changes: &Value, near: f64) {
    let expected = answers()[model]["scores"].as_array().unwrap().clone();
    let request = |one: &Value| json!({ "score": { "tokens": one["tokens"], "scored": one["scored"] } });
    let requests: Vec<Value> = expected.iter().map(request).collect();
    let answers = ask(&golden().join(model), &requests, tensor, changes);
    assert_eq!(answers.len(), expected.len());
    for (ours, theirs) in answers.iter().zip(&expected) {
        let [a, b] = [&ours["score"], theirs].map(|one| one["logprob"].as_f64().unwrap());
        assert!((a - b).abs() < near, "{a} and {b} of {theirs}");
        if near < 0.1 {
            assert_eq!(ours["score"]["greedy"], theirs["greedy"], "{theirs}");
        }
    }
}

#[test]
fn log_likelihoods_are_those_of_transformers() {
    for model in ["untied", "tied"] {
        for batch_size in [1, 3, 100] {
            scores(model, 1, &json!({ "batch_size": batch_size }), 1e-3);
        }
        scores(model, 2, &json!({}), 1e-3);
    }
    // The sums are of 512 tokens of some 7 each.
    scores("untied", 1, &json!({ "precision": "bf16" }), 10.0);
}

#[test]
fn what_cannot_be_answered_is_said_with_its_line() {
    let good = json!({ "score": { "tokens": [1, 2], "scored": 1 } });
    for (bad, words) in [
        (json!({ "score": { "tokens": [1, 2], "scored": 2 } }), "a request scores 2 of 2 tokens"),
        (json!({ "score": { "tokens": [1, 2], "scored": 0 } }), "a request scores 0 of 2 tokens"),
        (json!({ "score": { "tokens": [1, 256], "scored": 1 } }), "token 256, and the model's vocabulary has 256"),
        (
            json!({ "score": { "tokens": vec![1; 514], "scored": 1 } }),
            "line 2: 513 tokens go in, and max_length is 512",
        ),
        (json!({ "scoring": {} }), "line 2"),
    ] {
        let (ended, answers) = try_ask(&golden().join("untied"), &[good.clone(), bad], 1, &json!({}));
        assert_eq!((ended[0].status.code(), answers), (Some(1), None));
        assert!(ended[0].stderr.contains(words), "{}", ended[0].stderr);
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
