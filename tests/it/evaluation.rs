//! Evaluation by tasks: what is wrong with their files is said, and the numbers are those of lm-evaluation-harness.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use serde_json::Value as Json;

use crate::{
    servers::{answering, asked, plain},
    support::{Sandbox, copy},
};

const PIPELINE: &str = "tests/golden/lm_eval/pipeline.toml";

fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for dir in ["examples", "tests/golden/lm_eval"] {
        fs::create_dir_all(sandbox.path(dir).parent().unwrap()).unwrap();
        copy(&root.join(dir), &sandbox.path(dir));
    }
    sandbox
}

#[test]
fn what_is_wrong_with_a_task_is_said_where_it_stands() {
    let sandbox = project();
    let said = |file: &str, text: &str| {
        sandbox.write(&format!("tests/golden/lm_eval/tasks/{file}"), text);
        let output = sandbox.run(&["check", PIPELINE]);
        assert_eq!(output.code, Some(2), "{output}");
        output.stderr
    };
    let head = "task = \"mc\"\nkind = \"multiple-choice\"\n";
    let stderr = said("mc.toml", &format!("{head}choises = [\"a\"]\n"));
    assert!(stderr.contains("mc.toml:3:1") && stderr.contains("did you mean `choices`?"), "{stderr}");
    let stderr =
        said("mc.toml", &format!("{head}text = \"{{{{q\"\nchoices = \"c\"\ntarget = \"t\"\nmetrics = [\"f1\"]\n"));
    assert!(stderr.contains("mc.toml:3:8") && stderr.contains("`text` is no template"), "{stderr}");
    assert!(stderr.contains("mc.toml:6:12") && stderr.contains("has no `f1`"), "{stderr}");
    let stderr = said(
        "mc.toml",
        &format!("{head}data = \"ftp://x.org/d.jsonl\"\ntext = \"q\"\nchoices = \"c\"\ntarget = \"t\"\n"),
    );
    assert!(stderr.contains("mc.toml:3:8") && stderr.contains("not a kind of URL that can be fetched"), "{stderr}");
    let stderr =
        said("mc.toml", &format!("{head}data = \"no.jsonl\"\ntext = \"q\"\nchoices = \"c\"\ntarget = \"t\"\n"));
    assert!(stderr.contains("mc.toml:3:8") && stderr.contains("neither a stage nor a file"), "{stderr}");
    let stderr = said(
        "mc.toml",
        &format!("{head}data = \"mc.jsonl\"\ntext = \"quest\"\nchoices = [\"a\"]\ntarget = \"label\"\n"),
    );
    assert!(stderr.contains("there is no column `quest`: the columns are a, b, c, label, q"), "{stderr}");
}

/// A URL in a task's file is a stage of its own, which tasks share: planned, pinned, kept, and taken by `eval`.
#[test]
fn documents_behind_urls_are_fetched() {
    let asked_for = Arc::new(Mutex::new(Vec::new()));
    let heads = Arc::clone(&asked_for);
    let port = answering(move |head| {
        let name = asked(head).1.to_owned();
        let body = if name == "shots.jsonl" { "{\"q\":\"1\",\"a\":0}\n" } else { "{\"q\":\"2\",\"a\":1}\n" };
        heads.lock().unwrap().push(name);
        plain("200 OK", "", body.as_bytes())
    });
    let sandbox = Sandbox::new();
    let task = |name: &str| {
        let text = format!(
            "task = \"{name}\"\nkind = \"multiple-choice\"\ndata = \"http://127.0.0.1:{port}/own.jsonl\"\n\
             text = \"q\"\nchoices = [\"no\", \"yes\"]\ntarget = \"a\"\n\
             [fewshot]\ncount = 1\ndata = \"http://127.0.0.1:{port}/shots.jsonl\"\n"
        );
        sandbox.write(&format!("tasks/{name}.toml"), &text);
    };
    task("one.a");
    task("two");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ja_wiki_mini");
    let place = |name: &str| example.join(name).display().to_string();
    sandbox.pipeline(&format!(
        "[stage.fetch-one-a]\nkind = \"command\"\nrun = \"true\"\n\
         [stage.model]\nkind = \"init-model\"\nconfig = \"{}\"\ntokenizer = \"{}\"\n\
         [stage.eval]\nkind = \"eval\"\nmodel = \"model\"\ntasks = [\"tasks/one.a.toml\", \"tasks/two.toml\"]\n",
        place("config.json"),
        place("tokenizer")
    ));
    let graph = sandbox.ok(&["graph", "p.toml"]);
    // Its name is another's: it gets the next.
    assert!(graph.contains("<- model, fetch-one-a-2, fetch-one-a-fewshot"), "{graph}");
    let off = sandbox.ok(&["plan", "p.toml", "--set", "stage.eval.when=false"]);
    assert_eq!(off.matches("\noff ").count(), 3, "what it alone takes is off with it: {off}");
    sandbox.ok(&["lock", "p.toml"]);
    let sorted = || {
        let mut all = asked_for.lock().unwrap().clone();
        all.sort();
        all
    };
    assert_eq!(sorted(), ["own.jsonl", "shots.jsonl"], "once each");
    let pins = sandbox.read("flow.lock");
    assert!(pins.contains("/own.jsonl\"]") && pins.contains("/shots.jsonl\"]"), "{pins}");
    if std::env::var_os("FLOW_TORCH").is_none() {
        return;
    }
    let events = sandbox.json(&[]);
    assert_eq!((events.how()["fetch-one-a-2"], events.how()["eval"]), ("cached", "ran"));
    assert_eq!(sorted().len(), 2);
    let sample = Path::new(sandbox.ok(&["path", "p.toml", "eval"]).trim()).join("samples/two.model.jsonl");
    let sample: Json = serde_json::from_slice(&fs::read(sample).unwrap()).unwrap();
    assert_eq!((sample["prompt"].as_str(), sample["target"].as_u64()), (Some("1 no\n\n2"), Some(1)));
}

/// Needs `flow-torch`: run where FLOW_TORCH names it.
#[test]
fn numbers_are_those_of_lm_evaluation_harness() {
    if std::env::var_os("FLOW_TORCH").is_none() {
        eprintln!("left out: FLOW_TORCH names no trainer (`cargo xtask test` builds it)");
        return;
    }
    let sandbox = project();
    sandbox.ok(&["run", PIPELINE]);
    let out = sandbox.ok(&["path", PIPELINE, "eval"]).trim().to_owned();
    let read = |path: &Path| -> Json { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let results = read(&Path::new(&out).join("results.json"));
    let golden = read(&sandbox.path("tests/golden/lm_eval/golden.json"));
    let tasks = results["tasks"].as_array().unwrap();
    assert_eq!(tasks.len(), golden.as_object().unwrap().len());
    let near = |ours: f64, theirs: f64, by: f64, what: &str| {
        assert!((ours - theirs).abs() <= by * theirs.abs().max(1.0), "{what}: {ours}, not {theirs}");
    };
    for task in tasks {
        let name = task["task"].as_str().unwrap();
        let golden = &golden[name];
        for metric in task["metrics"].as_array().unwrap() {
            let metric_name = metric["metric"].as_str().unwrap();
            let theirs = &golden["numbers"];
            let value = metric["model"]["value"].as_f64().unwrap();
            near(value, theirs[metric_name].as_f64().unwrap(), 1e-4, &format!("{name}, {metric_name}"));
            if let Some(error) = metric["model"]["stderr"].as_f64() {
                let theirs = theirs[format!("{metric_name}_stderr")].as_f64().unwrap();
                near(error, theirs, 1e-4, &format!("{name}, error of {metric_name}"));
            }
        }
        let samples = fs::read_to_string(Path::new(&out).join(format!("samples/{name}.model.jsonl"))).unwrap();
        let samples: Vec<Json> = samples.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(task["documents"].as_u64(), Some(samples.len() as u64));
        if task["kind"] == "generate" {
            let ours: Vec<&str> = samples.iter().map(|sample| sample["prediction"].as_str().unwrap()).collect();
            assert_eq!(Json::from(ours), golden["texts"], "{name}");
            continue;
        }
        let answers = golden["answers"].as_array().unwrap().iter();
        let theirs: Vec<f64> = answers.map(|answer| answer["score"]["logprob"].as_f64().unwrap()).collect();
        let ours: Vec<f64> =
            samples.iter().flat_map(|s| s["logprobs"].as_array().unwrap()).map(|ll| ll.as_f64().unwrap()).collect();
        if task["kind"] == "perplexity" {
            near(ours.iter().sum(), theirs.iter().sum(), 1e-6, name);
        } else {
            assert_eq!(ours.len(), theirs.len(), "{name}");
            ours.iter().zip(&theirs).for_each(|(ours, theirs)| {
                assert!((ours - theirs).abs() < 1e-3, "{name}: {ours}, not {theirs}");
            });
        }
    }
    let shown = sandbox.ok(&["show", "last", "eval"]);
    assert!(shown.contains("TASK") && shown.contains("mc_own_shots") && shown.contains("acc ↑"), "{shown}");
    // Nothing of it is done twice, and another document is another key.
    let how = |events: &str| crate::support::Events::of(events).how()["eval"].to_owned();
    assert_eq!(how(&sandbox.ok(&["run", PIPELINE, "--json"])), "cached");
    let plan = |sandbox: &Sandbox| sandbox.ok(&["plan", PIPELINE, "--json"]);
    let before = plan(&sandbox);
    let data = "tests/golden/lm_eval/tasks/shots.jsonl";
    let text = sandbox.read(data).replace("zero", "one");
    sandbox.write(data, &text);
    assert_ne!(plan(&sandbox), before);
}
