//! Tests of the stage around its tasks.

use std::{fs, path::PathBuf};

use serde_json::{Value as Json, json};

use super::*;
use crate::testing::{Stand, expand, repository, stage};

pub fn model_dir(stand: &Stand, positions: usize) -> PathBuf {
    let config = json!({"model_type": "llama", "vocab_size": 8192, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": positions, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false});
    stand.write("project/model/config.json", config.to_string());
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let from = repository().join("examples/ja_wiki_mini/tokenizer").join(name);
        fs::copy(from, stand.place("project/model").join(name)).unwrap();
    }
    stand.place("project/model")
}

fn eval(more: &Json) -> Eval {
    let mut params = json!({"model": "m", "data": "d", "limit": 3});
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    stage(params)
}

/// What a model is asked, a request a line, and how much about each document.
fn asked(stand: &Stand, eval: &Eval) -> Result<(Vec<Json>, Vec<Asked>)> {
    stand.ctx(|ctx| {
        let (_, (_, found)) = eval.found().next().unwrap();
        let mut models = vec![Requests::create(ctx.scratch.join("r.jsonl"), eval.encoder(&ctx.input("model")[0])?)?];
        let ready = eval.ready(ctx, found)?;
        prepare(ctx, &ready, &items(ctx, ready.task), &mut models, &|_| {})?;
        let (path, _, mut asked) = models.remove(0).finish()?;
        let text = fs::read_to_string(path)?;
        Ok((text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), asked.remove(0)))
    })
}

#[test]
fn documents_are_asked_about_in_order_and_with_the_token_before_them() {
    let mut stand = Stand::new();
    let model = model_dir(&stand, 256);
    let one = stand.write("project/a.jsonl", "{\"text\":\"日本語\"}\n{\"text\":\"\"}\n");
    let two = stand.write("project/b.jsonl", "{\"text\":\"b\"}\n{\"text\":\"beyond the limit\"}\n");
    stand.input("model", &model).input("data", &one).input("data", &two);
    let (requests, counts) = asked(&stand, &eval(&json!({"tasks": ["loss"]}))).unwrap();
    // The empty one has a BOS alone, and nothing that could be scored.
    assert_eq!(counts.iter().map(|asked| asked.requests).collect::<Vec<_>>(), [1, 0, 1]);
    assert!(requests.iter().all(|request| request["score"]["tokens"][0] == 7936));
    let (requests, counts) = asked(&stand, &eval(&json!({}))).unwrap();
    assert_eq!(counts.iter().map(|asked| asked.requests).collect::<Vec<_>>(), [1, 1, 1]);
    assert_eq!(requests[1], json!({"score": {"tokens": [7936, 7936], "scored": 1}}));
    let small = stand.write(
        "project/model/config.json",
        fs::read_to_string(model.join("config.json")).unwrap().replace("8192", "10"),
    );
    assert!(small.is_file());
    let error = format!("{:#}", asked(&stand, &eval(&json!({}))).unwrap_err());
    assert!(error.contains("a.jsonl: line 1: token "), "{error}");
}

#[test]
fn what_cannot_be_evaluated_is_said_before() {
    let mut stand = Stand::new();
    let model = model_dir(&stand, 256);
    let data = stand.write("project/a.jsonl", "{\"txt\":\"x\"}\n");
    let good = stand.write("project/b.jsonl", "{\"text\":\"x\"}\n");
    let fields = |stand: &Stand, more: Json| {
        let errors = stand.check(&eval(&more)).0;
        errors.iter().map(|e| e.field.clone().unwrap()).collect::<Vec<_>>()
    };
    stand.input("model", &model).input("data", &good);
    assert_eq!(fields(&stand, json!({})), [""; 0]);
    assert_eq!(fields(&stand, json!({"seq_length": 257, "limit": 0})), ["limit", "seq_length"]);
    assert_eq!(fields(&stand, json!({"tasks": ["piqa", "race"]})), ["data"]);
    assert_eq!(fields(&stand, json!({"tasks": ["piqa", "loss"], "data": {"piqqa": "d"}})), ["data.piqqa", "tasks.1"]);
    assert_eq!(fields(&stand, json!({"tasks": ["free-form", "loss"], "seq_length": 128})), ["tasks.0"]);
    let error = expand::<Eval>(json!({"model": "m", "data": "d", "tasks": ["perplexiti"]})).unwrap_err();
    assert_eq!(
        (error.field.as_deref(), &error.hints[..]),
        (Some("tasks.0"), &["did you mean `perplexity`?".to_owned()][..])
    );
    let twice = expand::<Eval>(json!({"model": "m", "tasks": ["piqa", "piqa"]})).unwrap_err();
    assert_eq!(twice.message, "two tasks are called `piqa`");
    stand.input("data", &data);
    assert_eq!(fields(&stand, json!({})), ["data"]);
    assert_eq!(fields(&stand, json!({"json_key": "txt"})), ["data"], "the other file has no `txt`");
    let empty = stand.place("project");
    stand.input("compare", &empty);
    assert_eq!(fields(&stand, json!({"compare": "c"})), ["compare", "data"]);
    let (_, facts, _) = stand.check(&eval(&json!({"seq_length": 100})));
    assert_eq!(facts["plan_notes"], json!(["model: windows of 100 tokens, 8 at a time"]));
}

#[test]
fn data_goes_to_the_tasks_that_it_is_for() {
    let ports = |params: Json| {
        let ports = stage::<Eval>(params).ports();
        ports.into_iter().map(|port| port.name).collect::<Vec<_>>()
    };
    assert_eq!(ports(json!({"model": "m", "data": "d"})), ["model", "data"]);
    assert_eq!(ports(json!({"model": "m", "compare": "c", "tasks": ["piqa", "squad"]})), ["model", "compare"]);
    let tasks = json!({"model": "m", "tasks": ["piqa", "loss"], "data": {"piqa": "p", "loss": ["a", "b"]}});
    assert_eq!(ports(tasks), ["model", "data.piqa", "data.loss"]);
    assert_eq!(eval(&json!({"tasks": ["piqa"]})).ports()[1].name, "data", "the only task takes it");
}

#[test]
fn a_key_sees_the_tasks_that_come_with_flow() {
    let params = |tasks: &[&str]| serde_json::to_value(eval(&json!({ "tasks": tasks }))).unwrap();
    let one = params(&["piqa"]);
    assert_eq!(one["tasks"][0]["task"], "piqa");
    assert_eq!(one["tasks"][0]["digest"].as_str().map(str::len), Some(64));
    assert_ne!(one, params(&["race"]));
}
