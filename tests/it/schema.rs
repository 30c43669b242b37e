//! `flow schema`: what editors are told of pipeline files is what `flow` takes.

use std::{fs, path::Path};

use jsonschema::Validator;
use serde_json::Value as Json;

use crate::support::Sandbox;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn validator() -> Validator {
    let schema: Json = serde_json::from_str(&Sandbox::new().ok(&["schema"])).unwrap();
    jsonschema::draft202012::meta::validate(&schema).unwrap();
    jsonschema::draft202012::new(&schema).unwrap()
}

fn errors(validator: &Validator, toml: &str) -> Vec<String> {
    let pipeline = serde_json::to_value(toml::from_str::<toml::Table>(toml).expect(toml)).unwrap();
    validator.iter_errors(&pipeline).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[test]
fn the_shipped_schema_is_the_one_that_flow_prints() {
    let printed = Sandbox::new().ok(&["schema"]);
    let file = Path::new(ROOT).join("pipelines/flow.schema.json");
    if std::env::var_os("FLOW_UPDATE_GOLDEN").is_some() {
        fs::write(&file, &printed).unwrap();
    }
    let shipped = fs::read_to_string(file).unwrap_or_default();
    assert!(shipped == printed, "pipelines/flow.schema.json is old: run this test with FLOW_UPDATE_GOLDEN=1");
}

#[test]
fn shipped_pipelines_are_taken() {
    let validator = validator();
    let mut seen = 0;
    for entry in fs::read_dir(Path::new(ROOT).join("pipelines")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("#:schema ./flow.schema.json\n"), "{}", path.display());
            assert_eq!(errors(&validator, &text), [""; 0], "{}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 0);
    let sandbox = Sandbox::new();
    sandbox.ok(&["init"]);
    assert_eq!(errors(&validator, &sandbox.read("pipeline.toml")), [""; 0]);
}

/// A pipeline of the README's: every kind, every form that a value may have.
const RIGHT: &str = r#"
[params]
n = 3
optim = { lr = 1e-3 }

[stage.raw]
kind = "fetch"
urls = ["data/{0..2}.jsonl.gz"]
temp = true
retries = "${n}"

[stage.text]
kind = "gunzip"
input = ["raw"]
resources = { cpus = 2, memory = "1GiB" }
timeout = "2h"

[stage.clean]
kind = "filter"
input = "text"
length = { min_chars = "${n}", max_words = 100000 }
scripts = [{ of = ["Han", "Hiragana"], min = 0.5 }]
language = { keep = ["ja"], min_confidence = 0.5 }
exclude = ["^<html"]
gopher_quality = { min_stop_words = false, max_symbol_word_ratio = 0.2 }
gopher_repetition = true
c4 = { bad_words = "words.txt" }
normalize = "nfkc"
output = "gz"

[stage.once]
kind = "dedup"
input = "clean"
exact = "normalized"
near = { similarity = 0.8, shingle = "char" }
memory = "2GiB"

[stage.parts]
kind = "split"
input = "once"
parts = { validation = 0.01, test = "${n}" }

[stage.corpus]
kind = "mix"
sources = [{ input = "parts:train", weight = 2 }, { input = "more.jsonl", weight = "${n}" }]
bytes = "10GB"
max_epochs = false

[stage.unpacked]
kind = "decompress"
input = "data/a.bz2"

[stage.articles]
kind = "wiki-extract"
input = "data/wiki.xml.bz2"
namespaces = [0, 12]

[stage.environment]
kind = "image"
image = "docker://ghcr.io/org/name:1"

[stage.base]
kind = "init-model"
config = { vocab_size = 256, hidden_size = 8 }
dtype = "${dtype}"

[stage.tokens]
kind = "tokenize"
input = "text"
tokenizer = "base"
append_eod = "${eod}"
on_bad_line = "skip"
when = "${n} > 0"

[stage.all]
kind = "merge"
input = "tokens"
timeout = 90

[stage.megatron]
kind = "hf-to-megatron"
input = "base"

[stage.train]
kind = "train"
matrix = { lr = [1e-3, 3e-4], exclude = [{ lr = 1e-3 }] }
model = "megatron"
train = [{ tokens = "all", weight = 1 }, "more"]
seq_length = 64
micro_batch_size = "${n}"
global_batch_size = 8
max_steps = 10
optim = "${optim}"
sched = { name = "linear" }
parallel = { data = 2 }

[stage.hf]
kind = "megatron-to-hf"
input = "train[lr=0.0003]"
source = "base"
max_shard_size = "5GB"
export = "results"

[stage.eval]
kind = "eval"
model = "hf"
data = "text"
needs = ["all"]

[stage.check]
kind = "command"
run = "cat {in.model}/x > {out}/x"
in = { model = ["hf", "base"] }
env = { A = "b" }
container = { image = "docker://ghcr.io/org/name:1", engine = "podman", binds = ["/data:/data:ro"], env = ["HF_*"] }
cache = false

[profile.mini]
params.n = 1
stage.train.optim.min_lr = 1e-5
stage.train.max_steps = 1
stage.raw = { kind = "command", run = "echo > {out}/a" }
"#;

#[test]
fn what_is_right_is_taken() {
    let validator = validator();
    assert_eq!(errors(&validator, RIGHT), [""; 0]);
    for kind in flow_data::KINDS {
        assert!(RIGHT.contains(&format!("kind = \"{}\"", kind.name)), "no example of `{}`", kind.name);
    }
    let laid_over = "include = [\"base.toml\"]\n[stage.train]\nmax_steps = 3";
    assert_eq!(errors(&validator, laid_over), [""; 0]);
}

#[test]
fn what_is_wrong_is_refused() {
    let validator = validator();
    let changed = |from: &str, to: &str| {
        assert!(RIGHT.contains(from), "{from}");
        errors(&validator, &RIGHT.replacen(from, to, 1))
    };
    for (from, to) in [
        ("max_steps = 10", "max_steps = 10\nmax_step = 1"),
        ("max_steps = 10", "max_steps = \"10\""),
        ("max_steps = 10", "max_steps = 0.5"),
        ("max_steps = 10", "max_steps = -1"),
        ("max_steps = 10", ""),
        ("append_eod = \"${eod}\"", "append_eod = \"yes\""),
        ("on_bad_line = \"skip\"", "on_bad_line = \"ignore\""),
        ("kind = \"merge\"", "kind = \"murge\""),
        ("kind = \"merge\"", ""),
        ("optim = \"${optim}\"", "optim = { min_lr = 1.0 }"),
        ("optim = \"${optim}\"", "optim = { lr = 1.0, betas = [0.9] }"),
        ("parallel = { data = 2 }", "parallel = { date = 2 }"),
        ("weight = 1 }", "wieght = 1 }"),
        ("weight = 1 }", "}"),
        ("min_stop_words = false", "min_stop_words = true"),
        ("min_stop_words = false", "min_stop_word = 1"),
        ("gopher_repetition = true", "gopher_repetition = 1"),
        ("min_chars = \"${n}\"", "min_chars = -1"),
        ("exact = \"normalized\"", "exact = \"nearly\""),
        ("similarity = 0.8", "similar = 0.8"),
        ("validation = 0.01", "validation = true"),
        ("weight = 2 }", "wieght = 2 }"),
        ("cpus = 2", "cpu = 2"),
        ("cache = false", "cache = \"no\""),
        ("urls = [\"data/{0..2}.jsonl.gz\"]", "urls = []\nurl = \"a\""),
        ("stage.train.max_steps = 1", "stage.train.max_steps = true"),
        ("stage.train.max_steps = 1", "stage.train.max_stps = 1"),
        ("params.n = 1", "parms.n = 1"),
        ("[stage.raw]", "[stages]\n[stage.raw]"),
    ] {
        assert_ne!(changed(from, to), [""; 0], "`{to}` was taken");
    }
}
