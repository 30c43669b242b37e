//! Duplicates beside datasketch's, and what the stage writes.

use serde_json::{Value as Json, json};

use super::*;
use crate::testing::{Stand, expand, repository, stage};

fn document(text: &str) -> String {
    json!({ "text": text }).to_string() + "\n"
}

fn read(path: &std::path::Path) -> Vec<String> {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flow_formats::compressed::Decoder::open(path).unwrap(), &mut text).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn stats(stand: &Stand) -> Json {
    serde_json::from_slice(&stand.out("stats.json")).unwrap()
}

#[test]
fn the_documents_that_stay_are_those_of_datasketch() {
    let golden = repository().join("tests/golden/curate");
    let clusters: Json = crate::facts::read_json(&golden.join("clusters.json")).unwrap();
    let documents = read(&golden.join("planted.jsonl.gz"));
    let first: Vec<u64> = clusters["first"].as_array().unwrap().iter().map(|first| first.as_u64().unwrap()).collect();
    let theirs: Vec<&String> =
        documents.iter().zip(&first).zip(0..).filter(|(of, i)| of.1 == i).map(|of| of.0.0).collect();
    for near in [json!({}), json!({ "shingle": "char" }), json!({ "similarity": 0.75, "seed": 3 })] {
        let mut stand = Stand::new();
        stand.input("input", &golden.join("planted.jsonl.gz"));
        stand.run(&stage::<Dedup>(json!({ "input": "raw", "near": near }))).unwrap();
        let ours = read(&stand.place("out/planted.jsonl.zst"));
        assert!(ours.iter().eq(theirs.iter().copied()), "{near}: {} stay, and there {}", ours.len(), theirs.len());
        let stats = stats(&stand);
        assert!(stats["exact"].as_u64().unwrap() > 5 && stats["near"].as_u64().unwrap() > 20, "{stats:#}");
        let why = stats["near_sample"][0]["why"].as_str().unwrap();
        let (_, line) = why.rsplit_once(':').unwrap();
        let gone = stats["near_sample"][0]["line"].as_u64().unwrap() as usize - 1;
        assert_eq!(first[gone] + 1, line.parse::<u64>().unwrap(), "{why}");
    }
    for (similarity, parameters) in clusters["parameters"].as_object().unwrap() {
        let (bands, rows) = bands_and_rows(similarity.parse().unwrap(), 128);
        assert_eq!(json!([bands, rows]), *parameters, "{similarity}");
    }
}

#[test]
fn the_first_of_all_shards_stays_and_the_shards_keep_their_names() {
    let mut stand = Stand::new();
    stand.threads = 3;
    let one = stand.write("a/x.jsonl", document("one") + "\n" + &document("two") + &document("one"));
    let two = stand.write("b/x.jsonl", document("three") + "{\n" + &document(" TWO\t") + &document("ONE"));
    let three = stand.write("c.jsonl", document("three") + &document("four"));
    stand.input("input", &one).input("input", &two).input("input", &three);
    let run = |exact: &str, near: bool| {
        stand.again();
        let params = json!({ "input": "raw", "exact": exact, "near": near, "on_bad_line": "skip", "output": "plain" });
        stand.run(&stage::<Dedup>(params)).unwrap();
        assert_eq!(stand.outs(), ["1/x.jsonl", "2/x.jsonl", "c.jsonl", "stats.json"]);
        ["1/x", "2/x", "c"].map(|name| String::from_utf8(stand.out(&format!("{name}.jsonl"))).unwrap())
    };
    let texts = |texts: &[&str]| texts.iter().map(|text| document(text)).collect::<String>();
    let exact = [texts(&["one", "two"]), texts(&["three", " TWO\t", "ONE"]), texts(&["four"])];
    assert_eq!(run("text", false), exact);
    assert_eq!(run("normalized", false), [texts(&["one", "two"]), texts(&["three"]), texts(&["four"])]);
    assert_eq!(run("off", true), [texts(&["one", "two"]), texts(&["three"]), texts(&["four"])]);
    let told = stats(&stand);
    assert_eq!(
        (&told["documents"], &told["kept"], &told["exact"], &told["near"]),
        (&json!(8), &json!(4), &json!(0), &json!(4))
    );
    assert_eq!(told["files"]["2/x"]["reasons"], json!({ "not_json": 1 }));
    let shown: Vec<&Json> =
        told["near_sample"].as_array().unwrap().iter().filter(|shown| shown["file"] == "c").collect();
    assert_eq!((shown.len(), &shown[0]["why"], &shown[0]["line"]), (1, &json!("the same as 2/x:1"), &json!(1)));
}

#[test]
fn the_result_is_the_same_however_many_threads_and_however_little_memory() {
    let example = repository().join("examples/ja_wiki_mini");
    let run = |threads: usize, memory: &str| {
        let mut stand = Stand::new();
        stand.threads = threads;
        for shard in ["train_0", "validation_0"] {
            stand.input("input", &example.join(format!("{shard}.jsonl.gz")));
        }
        let params = json!({ "input": "raw", "memory": memory, "near": { "similarity": 0.5 } });
        let mut dedup: Dedup = stage(params);
        if memory == "16MiB" {
            dedup.memory = Size(24 * 1000); // smaller than a user may say
        }
        stand.run(&dedup).unwrap();
        assert_eq!(stand.outs(), ["stats.json", "train_0.jsonl.zst", "validation_0.jsonl.zst"]);
        stand.outs().iter().map(|name| stand.out(name)).collect::<Vec<_>>()
    };
    assert!(run(1, "1GiB") == run(4, "16MiB"));
}

#[test]
fn what_cannot_be_is_said_before_anything_runs() {
    for (mut params, field, words) in [
        (json!({ "near": { "similarity": 80 } }), "near.similarity", "no similarity"),
        (json!({ "near": { "similarity": 0.8, "rows": 4 } }), "near.rows", "both there"),
        (json!({ "near": { "bands": 0 } }), "near.bands", "`bands` is 0"),
        (json!({ "near": { "rows": 5000 } }), "near.rows", "for ever"),
        (json!({ "near": false, "exact": "off" }), "exact", "neither"),
        (json!({ "memory": "1MB" }), "memory", "so little memory"),
    ] {
        params["input"] = "raw".into();
        let error = expand::<Dedup>(params).unwrap_err();
        assert!(error.field.as_deref() == Some(field) && error.message.contains(words), "{error:?}");
    }
}
