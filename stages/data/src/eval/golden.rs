//! What lm-evaluation-harness asked and counted in `tests/golden/lm_eval`: the same tokens, and of the same answers the same
//! numbers. The model itself is asked in `tests/it/evaluation.rs`.

use std::{collections::BTreeMap, fs, path::PathBuf};

use flow_core::Files;
use flow_plan::{EvalAnswer, EvalRequest};
use serde::Deserialize;
use serde_json::Value as Json;

use super::{tests::model_dir, *};
use crate::testing::{Stand, repository};

/// What is kept of a task.
#[derive(Deserialize)]
struct Golden {
    requests: Vec<Json>,
    answers: Vec<EvalAnswer>,
    numbers: BTreeMap<String, f64>,
    texts: Vec<String>,
}

fn place(name: &str) -> PathBuf {
    repository().join("tests/golden/lm_eval").join(name)
}

/// Tokens of a request; of a score also how many are scored.
fn tokens(request: &Json) -> (Json, Json) {
    let of = request.get("score").or(request.get("generate")).unwrap();
    (of["tokens"].clone(), of["scored"].clone())
}

fn read(name: &str) -> BTreeMap<String, Golden> {
    serde_json::from_str(&fs::read_to_string(place(name)).unwrap()).unwrap()
}

#[test]
fn the_same_is_asked_and_the_same_follows() {
    let golden = read("golden.json");
    assert_eq!(golden.len(), 11);
    for (name, golden) in golden {
        let text = fs::read_to_string(place(&format!("tasks/{name}.toml"))).unwrap();
        let task: Task = toml::from_str(&text).unwrap();
        let source = |file: &str| Source::Files(vec![place("tasks").join(file)]);
        let own = source(task.data.as_deref().unwrap());
        let fewshot = task.fewshot.data.as_deref().map_or(own.clone(), source);
        compare(&Ready { task: &task, source: own, fewshot, limit: None }, &golden);
    }
}

/// The tasks that come with flow, beside lm-eval's own files over the same documents.
#[test]
fn what_comes_with_flow_asks_as_lm_eval_does() {
    let golden = read("shipped.json");
    assert_eq!(golden.len(), 7);
    for (name, golden) in golden {
        let shipped = shipped::shipped(&name).unwrap();
        let source = Source::Flow(name, shipped.data.unwrap());
        compare(&Ready { task: &shipped.task(), fewshot: source.clone(), source, limit: None }, &golden);
    }
}

fn compare(ready: &Ready<'_>, golden: &Golden) {
    let (task, name) = (ready.task, &ready.task.task);
    let mut stand = Stand::new();
    let model = model_dir(&stand, 512);
    stand.input("model", &model);
    let eval: Eval = crate::testing::stage(serde_json::json!({"model": "m", "data": "d"}));
    stand.ctx(|ctx| {
        let encoder = eval.encoder(&ctx.input("model")[0]).unwrap();
        let mut models = vec![Requests::create(ctx.scratch.join("r.jsonl"), encoder).unwrap()];
        prepare(ctx, ready, &items(ctx, task), &mut models, &|_| {}).unwrap();
        let (path, encoder, asked) = models.remove(0).finish().unwrap();
        let text = fs::read_to_string(path).unwrap();
        let ours: Vec<Json> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        // lm-eval writes longer prompts first, so that they are compared as sets.
        let mut lines: Vec<_> = ours.iter().map(tokens).zip(0..).collect();
        let answers = golden.answers.iter().map(Some).chain(std::iter::repeat(None));
        let mut theirs: Vec<_> = golden.requests.iter().map(tokens).zip(answers).collect();
        let is_sorted = task.kind == Kind::Generate;
        if is_sorted {
            lines.sort_by_key(|line| line.0.0.to_string());
            theirs.sort_by_key(|line| line.0.0.to_string());
        }
        assert_eq!(ours.len(), golden.requests.len(), "{name}");
        let mut given = vec![None; ours.len()];
        for ((ours, at), (theirs, answer)) in lines.iter().zip(&theirs) {
            assert_eq!(ours, theirs, "{name}: request {at}");
            given[*at] = answer.cloned();
        }
        if golden.answers.is_empty() {
            return;
        }
        let path = ctx.scratch.join("a.jsonl");
        let answers: Vec<String> = given.iter().map(|answer| serde_json::to_string(answer).unwrap()).collect();
        fs::write(&path, answers.join("\n")).unwrap();
        let samples = ctx.scratch.join("samples.jsonl");
        let mut answers = JsonLines::open(&path).unwrap();
        let series = judge(ctx, task, &encoder, &asked[0], &items(ctx, task), &mut answers, &samples).unwrap();
        for (metric, series) in task.metrics().into_iter().zip(&series) {
            let near = |what: &str, ours: f64| {
                let theirs = golden.numbers[what];
                assert!((ours - theirs).abs() <= 1e-9 * theirs.abs().max(1.0), "{name}, {what}: {ours}, not {theirs}");
            };
            near(metric.name(), series.value());
            if let Some(error) = series.stderr() {
                near(&format!("{}_stderr", metric.name()), error);
            }
        }
        let samples = fs::read_to_string(samples).unwrap();
        let predictions = samples.lines().map(|line| serde_json::from_str::<Json>(line).unwrap()["prediction"].clone());
        for (ours, theirs) in predictions.zip(&golden.texts) {
            assert_eq!(ours.as_str(), Some(theirs.as_str()), "{name}");
        }
    });
}

/// A continuation that melts into its context has no tokens in lm-eval, which stops there.
#[test]
fn a_continuation_that_melts_into_its_context_is_scored_by_itself() {
    let mut stand = Stand::new();
    let model = model_dir(&stand, 512);
    stand.input("model", &model);
    let task: Task = toml::from_str("task = \"t\"\nkind = \"log-likelihood\"\ntext = \"x\"\ntarget = \"y\"").unwrap();
    let eval: Eval = crate::testing::stage(serde_json::json!({"model": "m", "data": "d"}));
    stand.ctx(|ctx| {
        let encoder = eval.encoder(&ctx.input("model")[0]).unwrap();
        let ask = |context: &str, continuation: &str| {
            let ask = encode::Ask::Score(context.to_owned(), continuation.to_owned());
            encoder.requests(&ask, &task).map(|mut requests| match requests.remove(0) {
                EvalRequest::Score(score) => (score.tokens, score.scored),
                EvalRequest::Generate(_) => unreachable!("a score is asked for"),
            })
        };
        let (melted, scored) = ask("日", "本").unwrap();
        let (apart, _) = ask("", "本").unwrap();
        assert_eq!((melted.len(), scored), (3, 1));
        assert_eq!(melted.last(), apart.last());
        assert_eq!(ask("a", "").unwrap_err().to_string(), "what is to be scored is an empty text");
    });
    // No files are needed for what comes with flow.
    assert!(().toml("piqa").is_none());
}
