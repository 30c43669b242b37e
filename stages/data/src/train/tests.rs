//! What a `train` stage says before it runs, and what it tells the ranks.

use std::fs;

use flow_core::{Kind, Ref, Table, Value, ValueKind};
use serde_json::{Value as Json, json};

use super::*;
use crate::testing::{Stand, repository, stage};

const TINY: &str = r#"{"model_type":"llama","vocab_size":8192,"hidden_size":64,"intermediate_size":128,
    "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"max_position_embeddings":256,
    "rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":false}"#;

fn train(change: impl FnOnce(&mut Json)) -> Train {
    let mut params = json!({
        "model": "m", "train": ["a"], "validation": ["b"], "seq_length": 128, "micro_batch_size": 2,
        "global_batch_size": 8, "max_steps": 10, "val_interval": 5, "parallel": {"data": 2}, "optim": {"lr": 1e-3}
    });
    change(&mut params);
    stage(params)
}

fn tokens(name: &str) -> PathBuf {
    repository().join("tests/golden/preprocess").join(name)
}

/// A stand with a checkpoint's directory and a directory of tokens.
fn stand() -> Stand {
    let mut stand = Stand::new();
    stand.write("project/model/iter_0000000/.metadata", "");
    stand.write("project/model/hf/config.json", TINY);
    for name in ["train_0_text_document", "validation_0_text_document"] {
        for ending in [".bin", ".idx"] {
            let file = format!("{name}{ending}");
            stand.write(&format!("project/tokens/{file}"), fs::read(tokens(&file)).unwrap());
        }
    }
    let (model, tokens) = (stand.place("project/model"), stand.place("project/tokens"));
    stand.input("model", &model).input("train", &tokens).input("validation", &tokens);
    stand
}

fn fields(stand: &Stand, train: &Train) -> Vec<(String, String)> {
    let errors = stand.check(train).0;
    errors.into_iter().map(|e| (e.field.unwrap_or_default(), format!("{} {}", e.message, e.hints.join(" ")))).collect()
}

#[test]
fn a_run_that_works_is_planned() {
    let stand = stand();
    let (errors, facts, _) = stand.check(&train(|_| ()));
    assert_eq!(errors, []);
    let notes: Vec<String> = serde_json::from_value(facts["plan_notes"].clone()).unwrap();
    assert!(notes.iter().any(|note| note.contains("8 sequences = micro 2 × data 2 × 2 accumulated")), "{notes:?}");
    assert!(notes.iter().any(|note| note.contains("GiB a rank")), "{notes:?}");
}

#[test]
fn what_cannot_work_is_said_at_its_field() {
    let stand = stand();
    let only = |field: &str, says: &str, change: fn(&mut Json)| {
        let found = fields(&stand, &train(change));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, field);
        assert!(found[0].1.contains(says), "{found:?}");
    };
    only("global_batch_size", "8 or 12", |t| t["global_batch_size"] = json!(10));
    only("seq_length", "256", |t| t["seq_length"] = json!(512));
    only("parallel.tensor", "tensor = 2", |t| t["parallel"] = json!({"data": 2, "tensor": 4}));
    only("parallel.pipeline", "layers", |t| t["parallel"] = json!({"data": 2, "pipeline": 64}));
    only("memory_limit", "a rank needs", |t| t["memory_limit"] = json!("0.01MB"));
    only("splits", "keep one", |t| t["splits"] = json!("98,1,1"));
    only("val_interval", "splits", |t| t["validation"] = json!([]));
    only("splits", "nothing to validate on", |t| (t["validation"], t["splits"]) = (json!([]), json!("100")));
    only("max_steps", "at most", |t| t["max_steps"] = json!(i64::MAX));
    only("train.0.weight", "above 0", |t| t["train"] = json!([{"tokens": "a", "weight": 0.0}]));
    only("train", "all of them, or to none", |t| t["train"] = json!([{"tokens": "a", "weight": 1.0}, "b"]));
}

/// As TOML would give it.
fn value(json: &Json) -> Value {
    Value::new(match json {
        Json::String(text) => ValueKind::String(text.clone()),
        Json::Array(items) => ValueKind::Array(items.iter().map(value).collect()),
        Json::Object(map) => {
            ValueKind::Table(Table { entries: map.iter().map(|(k, v)| (k.clone(), None, value(v))).collect() })
        }
        number => number.as_i64().map_or_else(|| ValueKind::Float(number.as_f64().unwrap()), ValueKind::Integer),
    })
}

#[test]
fn what_cannot_be_read_hides_no_arithmetic() {
    let table = value(&json!({
        "model": "m", "train": ["a"], "seq_length": 128, "micro_batch_size": 3, "global_batch_size": 8,
        "max_steps": 10, "precision": "fp8", "parallel": {"data": 3}, "optim": {"lr": -1},
        "sched": {"name": "cos", "warmup_steps": 4}
    }));
    let parsed = (Kind::of::<Train>().parse)(&table, &());
    let said: Vec<String> = parsed.errors.iter().map(ToString::to_string).collect();
    let has = |text: &str| said.iter().any(|said| said.contains(text));
    assert!(said.len() == 4 && !parsed.sound, "{said:?}");
    for text in ["`fp8` is not a choice", "`cos` is not a choice", "8 is not a multiple of", "`optim.lr` is -1"] {
        assert!(has(text), "{text} is in {said:?}");
    }
}

#[test]
fn inputs_that_are_something_else_are_refused() {
    let mut stand = stand();
    let folder = stand.place("project/model/hf");
    stand.inputs.clear();
    stand.input("model", &folder).input("train", &folder);
    let found = fields(&stand, &train(|_| ()));
    let said: Vec<_> = found.iter().map(|(field, text)| (field.as_str(), text.as_str())).collect();
    assert!(
        matches!(said[..], [("train", no_idx), ("model", hf)]
        if no_idx.contains("holds no .idx") && hf.contains("hf-to-megatron")),
        "{said:?}"
    );
}

#[test]
fn a_file_where_a_directory_is_needed_is_refused() {
    let mut stand = stand();
    stand.write("project/a.txt", "text");
    let [text, bin] = ["project/a.txt", "project/tokens/train_0_text_document.bin"].map(|name| stand.place(name));
    stand.inputs.clear();
    stand.input("model", &text).input("train", &text).input("validation", &bin);
    let found = fields(&stand, &train(|_| ()));
    let said: Vec<_> = found.iter().map(|(field, text)| (field.as_str(), text.as_str())).collect();
    assert!(
        matches!(said[..], [("train", text), ("validation", bin), ("model", model)]
        if text.contains("a.txt is one file") && model.contains("a.txt holds no Megatron checkpoint")
            && bin.contains("is one file") && bin.contains("tokens/train_0_text_document\"")),
        "{said:?}"
    );
}

#[test]
fn weights_are_shared_out_among_the_files_of_a_source() {
    let mut stand = stand();
    let folder = stand.place("project/tokens");
    let weighted = train(|t| t["train"] = json!([{"tokens": "a", "weight": 3.0}, {"tokens": "b", "weight": 1.0}]));
    let ports: Vec<(String, Vec<Ref>)> = weighted.ports().into_iter().map(|port| (port.name, port.refs)).collect();
    let names: Vec<_> = ports.iter().map(|(name, refs)| (name.as_str(), refs[0].text())).collect();
    assert_eq!(names, [("model", "m"), ("train.0", "a"), ("train.1", "b"), ("validation", "b")]);
    stand.input("train.0", &folder).input("train.1", &folder);
    let sources = stand.ctx(|ctx| sources(ctx, "train", &weighted.train)).unwrap();
    let names: Vec<_> = sources.iter().map(|source| source.prefix.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names[..2], ["train_0_text_document", "validation_0_text_document"]);
    assert_eq!(names[2..], names[..2]);
    let weights: Vec<f64> = sources.iter().filter_map(|source| source.weight).collect();
    assert!((weights[0] + weights[1] - 3.0).abs() < 1e-12 && (weights[2] + weights[3] - 1.0).abs() < 1e-12);
    let sizes = ["train_0_text_document", "validation_0_text_document"]
        .map(|name| fs::metadata(tokens(&format!("{name}.bin"))).unwrap().len() as f64);
    assert!((weights[0] / weights[1] - sizes[0] / sizes[1]).abs() < 1e-9);
    let plain = stand.ctx(|ctx| super::sources(ctx, "train", &train(|_| ()).train)).unwrap();
    assert!(plain.len() == 2 && plain.iter().all(|source| source.weight.is_none()));
}

#[test]
fn workers_that_leave_nothing_are_not_believed() {
    let stand = Stand::new();
    let out = stand.place("out");
    assert!(format!("{:#}", whole(&out).unwrap_err()).contains("no iter_*"));
    stand.write("out/iter_0000010/.metadata", "");
    assert!(format!("{:#}", whole(&out).unwrap_err()).contains("metrics.jsonl"));
    stand.write("out/metrics.jsonl", "");
    whole(&out).unwrap();
}
