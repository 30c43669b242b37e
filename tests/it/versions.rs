//! The guard of stage versions: the same kind, version, parameters and input must give the same bytes as they did when
//! the golden file was written. Whoever changes the bytes raises `VERSION`, or colleagues' caches would serve old ones.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::support::{Events, Sandbox, copy};

/// Every kind without tensors, on the shipped text. What libtorch computes differs in the last bit from CPU to CPU and
/// is compared with references elsewhere.
const PIPELINE: &str = r#"
[params]
dir = "examples/ja_wiki_mini"
[stage.base]
kind = "init-model"
config = "${dir}/config.json"
tokenizer = "${dir}/tokenizer"
seed = 42
[stage.raw]
kind = "fetch"
urls = ["${dir}/train_{0..1}.jsonl.gz"]
[stage.text]
kind = "gunzip"
input = "raw"
[stage.clean]
kind = "filter"
input = "text"
normalize = "nfkc"
length = { min_chars = 200 }
gopher_quality = true
gopher_repetition = true
c4 = true
language = { keep = ["ja"] }
[stage.once]
kind = "dedup"
input = ["clean", "raw"]
near = { similarity = 0.8 }
[stage.parts]
kind = "split"
input = "once"
validation = 0.1
key = "meta.id"
[stage.mixed]
kind = "mix"
sources = [{ input = "parts:train", weight = 3 }, { input = "parts:validation" }]
bytes = "300kB"
[stage.tokens]
kind = "tokenize"
input = "text"
tokenizer = "base"
append_eod = true
[stage.direct]
kind = "tokenize"
input = "${dir}/validation_0.jsonl.gz"
tokenizer = "${dir}/tokenizer"
[stage.merged]
kind = "merge"
input = ["tokens", "direct"]
[stage.megatron]
kind = "hf-to-megatron"
input = "base"
[stage.hf]
kind = "megatron-to-hf"
input = "megatron"
source = "base"
[stage.said]
kind = "command"
run = "cat {in.m}/validation_0.stats.json > {out}/copy; echo 日本 > {out}/two"
in = { m = "direct" }
"#;

/// What a node was and gave.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Golden {
    kind: String,
    version: u64,
    digest: String,
}

fn golden_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stages.json")
}

fn now() -> BTreeMap<String, Golden> {
    let sandbox = Sandbox::with(PIPELINE);
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples"), &sandbox.path("examples"));
    let events: Events = sandbox.json(&[]);
    let finished = events.0.iter().filter(|event| event["event"] == "finished");
    let mut golden = BTreeMap::new();
    for event in finished {
        let (node, key) = (event["node"].as_str().unwrap(), event["key"].as_str().unwrap());
        let record = sandbox.cache().join("results").join(&key[..2]).join(format!("{key}.json"));
        let record: Json = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
        let kind = record["parts"]["kind"].as_str().unwrap().to_owned();
        let version = record["parts"]["version"].as_u64().unwrap();
        let digest = event["digest"].as_str().unwrap().to_owned();
        golden.insert(node.to_owned(), Golden { kind, version, digest });
    }
    golden
}

#[test]
fn changed_bytes_need_a_raised_version() {
    let now = now();
    if std::env::var_os("FLOW_UPDATE_GOLDEN").is_some() {
        fs::write(golden_file(), serde_json::to_string_pretty(&now).unwrap() + "\n").unwrap();
    }
    let golden: BTreeMap<String, Golden> = serde_json::from_slice(&fs::read(golden_file()).unwrap()).unwrap();
    for (node, is) in &now {
        let was = golden.get(node).unwrap_or_else(|| panic!("{node} is not in {}", golden_file().display()));
        assert!(
            is.digest == was.digest || is.version > was.version,
            "`{}` gives other bytes for the same input: bump its VERSION, then run this test with FLOW_UPDATE_GOLDEN=1",
            is.kind
        );
        assert_eq!(is, was, "the golden file is old: run this test with FLOW_UPDATE_GOLDEN=1");
    }
    assert_eq!(golden.len(), now.len());
}
