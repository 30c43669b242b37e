//! Against Megatron's own bytes, and the reference encoder on everything that there is to encode.

mod encoders;

use std::{collections::BTreeMap, fs, io::Read, path::PathBuf};

use flow_formats::{
    compressed::Decoder,
    documents::Lines,
    indexed::{IndexedDataset, TokenType},
};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::*;
use crate::testing::{Stand, expand, repository, stage};

fn golden(name: &str) -> PathBuf {
    repository().join("tests/golden/preprocess").join(name)
}

fn example(name: &str) -> PathBuf {
    repository().join("examples/ja_wiki_mini").join(name)
}

#[derive(Deserialize)]
struct Expected {
    bin: String,
    idx: String,
    documents: u64,
    sequences: u64,
    tokens: u64,
}

fn manifest() -> BTreeMap<String, Expected> {
    facts::read_json(&golden("manifest.json")).unwrap()
}

/// Runs a stage on one shard.
fn run(shard: &Path, mut params: serde_json::Value) -> Stand {
    let mut stand = Stand::new();
    stand.input("input", shard).input("tokenizer", &example("tokenizer"));
    params["input"] = json!("raw");
    params["tokenizer"] = json!("base");
    stand.run(&stage::<Tokenize>(params)).unwrap();
    stand
}

#[track_caller]
fn assert_golden(stand: &Stand, stem: &str, expected: &Expected) {
    let digest = |ending: &str| -> String {
        let bytes = stand.out(&format!("{stem}_text_document.{ending}"));
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    assert_eq!((digest("bin"), digest("idx")), (expected.bin.clone(), expected.idx.clone()), "{stem}");
    let stats: serde_json::Value = serde_json::from_slice(&stand.out(&stats_name(stem))).unwrap();
    let counts = &stats["keys"]["text"];
    assert_eq!(
        counts,
        &json!({"documents": expected.documents, "sequences": expected.sequences, "tokens": expected.tokens})
    );
}

#[test]
fn the_bytes_are_megatrons() {
    for name in ["train_0", "validation_0"] {
        let stand = run(&example(&format!("{name}.jsonl.gz")), json!({"append_eod": true}));
        for ending in ["bin", "idx"] {
            let file = format!("{name}_text_document.{ending}");
            assert!(stand.out(&file) == fs::read(golden(&file)).unwrap(), "{file}");
        }
        assert_eq!(stand.outs().len(), 3, "and the counts: {:?}", stand.outs());
    }
}

#[test]
fn every_shard_and_option_is_as_in_the_manifest() {
    let expected = manifest();
    for name in ["train_1", "train_2", "validation_0"] {
        assert_golden(&run(&example(&format!("{name}.jsonl.gz")), json!({"append_eod": true})), name, &expected[name]);
    }
    let validation = example("validation_0.jsonl.gz");
    assert_golden(&run(&validation, json!({})), "validation_0", &expected["validation_0_noeod"]);
    let nobos = json!({"append_eod": true, "add_bos": false});
    assert_golden(&run(&validation, nobos), "validation_0", &expected["validation_0_nobos"]);
    let bos = json!({"append_eod": true, "add_bos": true});
    assert_golden(&run(&validation, bos), "validation_0", &expected["validation_0"]);
    for name in ["edge", "nofinalnl", "cr", "empty"] {
        let shard = golden(&format!("{name}.jsonl"));
        assert_golden(&run(&shard, json!({"append_eod": true})), name, &expected[name]);
        let plain = json!({"append_eod": true, "add_bos": false});
        assert_golden(&run(&shard, plain), name, &expected[&format!("{name}_plain")]);
    }
    assert_eq!(
        fs::metadata(run(&golden("empty.jsonl"), json!({})).place("out/empty_text_document.idx")).unwrap().len(),
        42
    );
}

#[test]
fn compression_and_threads_change_nothing() {
    let mut text = Vec::new();
    Decoder::open(&example("train_0.jsonl.gz")).unwrap().read_to_end(&mut text).unwrap();
    let expected = &manifest()["train_0"];
    for (name, content) in [
        ("train_0.jsonl", text.clone()),
        ("train_0.jsonl.zst", zstd::encode_all(&text[..], 1).unwrap()),
        ("train_0.json", text.clone()),
    ] {
        for workers in [1, 5] {
            let shards = Stand::new();
            let shard = shards.write(name, &content);
            assert_golden(&run(&shard, json!({"append_eod": true, "workers": workers})), "train_0", expected);
        }
    }
}

#[test]
fn bad_lines_fail_with_their_place_or_are_counted() {
    let shard = golden("bad.jsonl");
    let stand = run(&shard, json!({"append_eod": true, "on_bad_line": "skip"}));
    assert_golden(&stand, "bad", &manifest()["bad_skipped"]);
    let stats: serde_json::Value = serde_json::from_slice(&stand.out("bad.stats.json")).unwrap();
    assert_eq!((&stats["lines"], &stats["skipped"]), (&json!(32), &json!(16)));
    let reasons =
        json!({"blank": 2, "byte_order_mark": 1, "invalid_utf8": 1, "not_json": 5, "no_text": 6, "half_surrogate": 1});
    assert_eq!(stats["reasons"], reasons);
    assert!(stand.log().iter().any(|line| line.starts_with("bad.jsonl:2: skipped: a blank line")), "{:?}", stand.log());

    let mut stand = Stand::new();
    let lines = "{\"text\":\"良\"}\n".repeat(300_000);
    let shard = stand.write("big.jsonl", format!("{lines}{{\"txt\":\"x\"}}\n{{}}\n"));
    stand.input("input", &shard).input("tokenizer", &example("tokenizer"));
    let error = stand.error(&stage::<Tokenize>(json!({"input": "raw", "tokenizer": "base"})));
    assert!(error.contains("big.jsonl:300001: `text` is missing; did you mean `txt`?"), "{error}");
    assert!(error.contains("on_bad_line"), "{error}");
    assert_eq!(stand.outs(), Vec::<String>::new(), "nothing is left behind");
}

#[test]
fn what_is_odd_is_counted() {
    let lines: [&[u8]; 8] = [
        b"{\"text\":\"one\"}\r\n",
        b"{\"text\":\"\\u0000\"}\r",
        b"\xef\xbb\xbf{\"text\":\"marked\"}\n",
        b"{\"text\":\"\xed\xa0\x80\"}\n",
        b"{\"text\":\"\\ud800\"}\n",
        b"{\"text\":\"0123456789\"}\n",
        b"{\"text\":[\"01234\",\"56789\"]}\n",
        b"{\"text\":\"012345678\"}\n",
    ];
    let mut stand = Stand::new();
    let shard = stand.write("odd.jsonl", lines.concat());
    stand.input("input", &shard).input("tokenizer", &example("tokenizer"));
    let params = |bad: &str| json!({"input": "raw", "tokenizer": "base", "max_document_bytes": 9, "on_bad_line": bad});
    stand.run(&stage::<Tokenize>(params("skip"))).unwrap();
    let odd: serde_json::Value = serde_json::from_slice(&stand.out("odd.stats.json")).unwrap();
    let reasons = json!({"byte_order_mark": 1, "invalid_utf8": 1, "half_surrogate": 1, "too_long": 2});
    assert_eq!(odd["reasons"], reasons);
    assert_eq!((&odd["lines"], &odd["skipped"]), (&json!(8), &json!(5)));
    assert_eq!((&odd["carriage_returns"], &odd["nul"]), (&json!(2), &json!(1)));
    assert_eq!(odd["keys"]["text"]["documents"], 3);

    let mut stand = Stand::new();
    let shard = stand.write("long.jsonl", format!("{{\"text\":\"{}\"}}\n", "a".repeat(MAX_DOCUMENT_BYTES + 1)));
    stand.input("input", &shard).input("tokenizer", &example("tokenizer"));
    let error = stand.error(&stage::<Tokenize>(json!({"input": "raw", "tokenizer": "base"})));
    assert!(error.contains("long.jsonl:1: `text` has 16777217 bytes, and `max_document_bytes` is 16777216"), "{error}");
}

#[test]
fn of_a_line_without_end_no_more_is_read_than_says_so() {
    let mut stand = Stand::new();
    // What is in other keys counts as well.
    let most = crate::documents::longest_line(1000);
    let (fits, longer) = (most - 25, most - 24);
    let line = |other: usize, text: &str| format!("{{\"other\":\"{}\",\"text\":\"{text}\"}}\r\n", "x".repeat(other));
    let long = line(20 << 20, "long");
    let lines = [line(0, "one"), long.clone(), line(fits, "two"), line(longer, "not"), line(0, "three"), long].concat();
    let shard = stand.write("a.jsonl.zst", zstd::encode_all(lines.as_bytes(), 1).unwrap());
    stand.input("input", &shard).input("tokenizer", &example("tokenizer"));
    let params =
        |bad: &str| json!({"input": "raw", "tokenizer": "base", "max_document_bytes": 1000, "on_bad_line": bad});
    stand.run(&stage::<Tokenize>(params("skip"))).unwrap();
    let stats: serde_json::Value = serde_json::from_slice(&stand.out("a.stats.json")).unwrap();
    assert_eq!((&stats["lines"], &stats["reasons"]), (&json!(6), &json!({"too_long": 3})), "{stats}");
    assert_eq!((&stats["bytes"], &stats["keys"]["text"]["documents"]), (&json!(lines.len()), &json!(3)));
    stand.again();
    let error = stand.error(&stage::<Tokenize>(params("fail")));
    assert!(error.contains("a.jsonl.zst:2: the line has more than 1054576 bytes"), "{error}");
}

#[test]
fn several_keys_have_files_of_their_own() {
    let mut stand = Stand::new();
    let shard =
        stand.write("wiki/a.jsonl", "{\"title\":\"題\",\"text\":[\"本\",\"文\"]}\n{\"text\":[],\"title\":\"二\"}\n");
    stand.write("wiki/README.md", "not a shard");
    stand.input("input", shard.parent().unwrap()).input("tokenizer", &example("tokenizer"));
    stand
        .run(&stage::<Tokenize>(json!({"input": "raw", "tokenizer": "base", "json_keys": ["title", "text"]})))
        .unwrap();
    assert_eq!(stand.outs().len(), 5);
    let open = |key: &str| IndexedDataset::open(&stand.place("out").join(format!("a_{key}_document"))).unwrap();
    assert_eq!((open("title").sequences(), open("title").documents()), (2, 2));
    assert_eq!((open("text").sequences(), open("text").documents()), (2, 2));
}

#[test]
fn two_outputs_of_one_name_are_refused() {
    let mut stand = Stand::new();
    let shard = stand.write("col/a.jsonl", "{\"x\":\"one\",\"b_x\":\"two\"}\n");
    stand.write("col/a_b.jsonl", "{\"x\":\"three\",\"b_x\":\"four\"}\n");
    stand.input("input", shard.parent().unwrap()).input("tokenizer", &example("tokenizer"));
    let tokenize = |keys| stage::<Tokenize>(json!({"input": "raw", "tokenizer": "base", "json_keys": keys}));
    let error = stand.error(&tokenize(["x", "b_x"]));
    assert!(error.contains("would both be `a_b_x_document`"), "{error}");
    assert_eq!(stand.outs(), [""; 0], "it is said before anything is written");
}

#[test]
fn tokens_that_were_added_before_configurations_knew_them_count() {
    let stand = Stand::new();
    let tokenizer = stand.write("t/tokenizer.json", "{}");
    stand.write("t/added_tokens.json", "{\"<sep>\": 1200, \"<x>\": 1201}");
    stand.write("t/special_tokens_map.json", "{\"sep_token\": {\"content\": \"<sep>\"}}");
    let declared = || {
        let config = files::Files::find(tokenizer.parent().unwrap()).unwrap().config().unwrap();
        let token = |token: tokenizers::AddedToken| (token.content, token.special, token.normalized);
        config.declared().unwrap().into_iter().map(token).collect::<Vec<_>>()
    };
    assert_eq!(declared(), [("<sep>".into(), true, false), ("<x>".into(), false, true)]);
    stand.write("t/tokenizer_config.json", "{\"added_tokens_decoder\": {}}");
    assert_eq!(
        declared().iter().map(|token| token.0.as_str()).collect::<Vec<_>>(),
        ["<sep>"],
        "now the configuration says"
    );
}

#[test]
fn a_big_vocabulary_is_int32() {
    let mut tokenizer: serde_json::Value = facts::read_json(&example("tokenizer/tokenizer.json")).unwrap();
    let added = tokenizer["added_tokens"].clone();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    // An added token that is not in the vocabulary gets the next free id, whatever the file says.
    for token in added.as_array().unwrap() {
        vocabulary.insert(token["content"].as_str().unwrap().to_owned(), token["id"].clone());
    }
    for i in 0..65_500 - 8192 {
        vocabulary.insert(format!("unused {i}"), json!(8192 + i));
    }
    let narrow = run(&golden("edge.jsonl"), json!({"append_eod": true}));
    let mut stand = Stand::new();
    stand.write("big/tokenizer.json", tokenizer.to_string());
    fs::copy(example("tokenizer/tokenizer_config.json"), stand.place("big/tokenizer_config.json")).unwrap();
    let big = stand.place("big");
    stand.input("input", &golden("edge.jsonl")).input("tokenizer", &big);
    stand.run(&stage::<Tokenize>(json!({"input": "raw", "tokenizer": "base", "append_eod": true}))).unwrap();
    let open = |stand: &Stand| IndexedDataset::open(&stand.place("out/edge_text_document")).unwrap();
    let (wide, narrow) = (open(&stand), open(&narrow));
    assert_eq!((wide.dtype(), narrow.dtype()), (TokenType::I32, TokenType::U16));
    assert_eq!(wide.sequences(), narrow.sequences());
    for i in 0..wide.sequences() {
        assert_eq!(wide.sequence(i).unwrap().to_vec(), narrow.sequence(i).unwrap().to_vec());
    }
}

/// Loaded once: it takes a while.
fn tokenizer() -> &'static Tokenizer {
    static LOADED: std::sync::LazyLock<Tokenizer> =
        std::sync::LazyLock::new(|| Tokenizer::load(&Files::find(&example("tokenizer")).unwrap()).unwrap());
    &LOADED
}

#[test]
fn the_fast_encoder_agrees_on_the_whole_corpus() {
    assert!(tokenizer().is_fast(), "the example's tokenizer is of the shape that the fast encoder serves");
    let mut documents = 0;
    for name in ["train_0", "train_1", "train_2", "validation_0"] {
        let mut text = Vec::new();
        Decoder::open(&example(&format!("{name}.jsonl.gz"))).unwrap().read_to_end(&mut text).unwrap();
        for line in Lines::new(&text) {
            let document: serde_json::Value = serde_json::from_slice(line).unwrap();
            let text = document["text"].as_str().unwrap();
            assert!(tokenizer().agrees(text, true).unwrap(), "{text}");
            documents += 1;
        }
    }
    assert_eq!(documents, 818 + 815 + 819 + 149);
}

/// Text that is odd in the ways that tokenizers care about.
pub fn odd_text() -> impl Strategy<Value = String> {
    let special = prop::sample::select(vec![
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|",
        "|>",
        "'s",
        "'LL",
        "\r\n",
        "\n\n",
        "   ",
        "\u{3000}",
        "が",
        "か\u{3099}",
        "e\u{301}",
        "１２３",
        "123",
        "。。。",
        "👨‍👩‍👧",
        "\u{200d}",
        "\0",
    ]);
    let piece = prop_oneof![
        4 => "\\PC{0,8}",
        2 => any::<String>(),
        3 => "[ぁ-んァ-ヶ一-龠、。「」ー]{0,12}",
        2 => "[a-zA-Z' \\t\\n0-9.,!-]{0,12}",
        3 => special.prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_fast_encoder_agrees_on_any_text(text in odd_text(), special in any::<bool>()) {
        prop_assert!(tokenizer().agrees(&text, special).unwrap(), "{text:?}");
    }
}

#[test]
fn special_tokens_of_the_configuration_alone_are_found_too() {
    let stand = Stand::new();
    let base = example("tokenizer/tokenizer.json");
    fs::create_dir(stand.place("t")).unwrap();
    fs::copy(&base, stand.place("t/tokenizer.json")).unwrap();
    stand.write("t/tokenizer_config.json", r#"{"eos_token":{"content":"<eos>","lstrip":false},"bos_token":null}"#);
    stand.write("t/special_tokens_map.json", r#"{"bos_token":"<|begin_of_text|>"}"#);
    let tokenizer = Tokenizer::load(&Files::find(&stand.place("t")).unwrap()).unwrap();
    assert_eq!(tokenizer.vocabulary(), 8193);
    assert_eq!(tokenizer.special_id("eos_token").unwrap(), 8192);
    assert_eq!(tokenizer.special_id("bos_token").unwrap(), 7936);
    assert_eq!(tokenizer.encode_fast("a<eos>", false).unwrap().last(), Some(&8192));
    assert!(tokenizer.special_id("pad_token").is_err());
    assert!(tokenizer.is_fast() && tokenizer.agrees("x<eos> y <eos>", true).unwrap());
}

#[test]
fn what_cannot_work_is_said_before_the_run() {
    let params = |more: serde_json::Value| {
        let mut params = json!({"input": "raw", "tokenizer": "base"});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    };
    for (more, field) in [
        (json!({"json_key": "a", "json_keys": ["b"]}), "json_keys"),
        (json!({"json_key": "a/b"}), "json_key"),
        (json!({"json_keys": ["a", "a"]}), "json_keys.1"),
        (json!({"workers": 0}), "workers"),
    ] {
        assert_eq!(expand::<Tokenize>(params(more)).unwrap_err().field.as_deref(), Some(field));
    }
    assert!(expand::<Tokenize>(params(json!({"on_bad_line": "skp"}))).unwrap_err().hints[0].contains("`skip`"));

    let mut stand = Stand::new();
    stand.input("input", &example("train_0.jsonl.gz")).input("tokenizer", &example("tokenizer"));
    let (errors, facts, _) = stand.check(&stage::<Tokenize>(params(json!({"append_eod": true}))));
    assert_eq!(errors, []);
    assert_eq!((facts["tokenizer_vocab"].as_u64(), facts["max_token_id"].as_u64()), (Some(8192), Some(8191)));
    let (errors, ..) = stand.check(&stage::<Tokenize>(params(json!({"json_key": "texd"}))));
    assert_eq!(errors[0].field.as_deref(), Some("json_key"));
    assert!(errors[0].message.contains("did you mean `text`?"), "{}", errors[0].message);

    for (line, field, hint) in
        [("{\"text\": tru}\n", "input", "on_bad_line"), ("{\"body\": \"\"}\n", "input", "json_key")]
    {
        let mut stand = Stand::new();
        let shard = stand.write("a.jsonl", line);
        stand.input("input", &shard).input("tokenizer", &example("tokenizer"));
        let (errors, ..) = stand.check(&stage::<Tokenize>(params(json!({}))));
        assert_eq!(errors[0].field.as_deref(), Some(field), "{line}");
        assert!(errors[0].message.contains("a.jsonl:1: "), "{}", errors[0].message);
        assert!(errors[0].hints.last().unwrap().contains(hint), "{:?}", errors[0].hints);
    }

    let mut stand = Stand::new();
    let shard = stand.write("a.jsonl.gz", "<html>");
    stand.write("none/tokenizer.model", "");
    let none = stand.place("none");
    stand.input("input", &shard).input("tokenizer", &none);
    let (errors, ..) = stand.check(&stage::<Tokenize>(params(json!({}))));
    let fields: Vec<_> = errors.iter().map(|error| error.field.as_deref().unwrap()).collect();
    assert_eq!(fields, ["tokenizer", "input"]);
    assert!(errors[0].message.contains("is no model of SentencePiece"), "{}", errors[0].message);

    let mut stand = Stand::new();
    let tokenizer = example("tokenizer/tokenizer.json");
    stand.input("tokenizer", &tokenizer);
    let (errors, ..) = stand.check(&stage::<Tokenize>(params(json!({"append_eod": true}))));
    assert!(errors[0].message.contains("`append_eod` needs the tokenizer's `eos_token`"), "{errors:?}");
}

#[test]
fn an_interrupted_run_stops() {
    let mut stand = Stand::new();
    stand.input("input", &example("train_0.jsonl.gz")).input("tokenizer", &example("tokenizer"));
    stand.cancel.set();
    let error = stand.run(&stage::<Tokenize>(json!({"input": "raw", "tokenizer": "base"}))).unwrap_err();
    assert!(error.downcast_ref::<flow_core::Cancelled>().is_some(), "{error:#}");
}

/// A text that is long enough for a thread of its own, of real documents.
fn long_text(bytes: usize) -> String {
    let mut documents = Vec::new();
    let mut decoder = Decoder::open(&example("train_0.jsonl.gz")).unwrap();
    decoder.read_to_end(&mut documents).unwrap();
    let documents = String::from_utf8(documents).unwrap();
    documents.repeat(bytes.div_ceil(documents.len()))
}

#[test]
fn a_long_line_is_one_document_among_others() {
    let long = long_text(5 << 20);
    let line = |text: &str| json!({ "text": text }).to_string() + "\n";
    let mut stand = Stand::new();
    // The first line is the one that both encoders are compared on.
    let shard = stand.write("a.jsonl", [line(&long), line("短い"), line(&long)].concat());
    stand.input("input", &shard).input("tokenizer", &example("tokenizer"));
    stand.run(&stage::<Tokenize>(json!({"input": "raw", "tokenizer": "base"}))).unwrap();
    let set = IndexedDataset::open(&stand.place("out/a_text_document")).unwrap();
    let expected = tokenizer().encode_fast(&long, true).unwrap();
    assert_eq!(set.documents(), 3);
    for sequence in [0, 2] {
        let ids = set.sequence(sequence).unwrap().to_vec();
        assert!(ids.into_iter().eq(expected.iter().copied().map(i64::from)));
    }
}

#[test]
fn an_interrupt_does_not_wait_for_a_long_text() {
    let tokenizer = Tokenizer::load(&Files::find(&example("tokenizer")).unwrap()).unwrap();
    let tokenizer = std::sync::Arc::new(tokenizer);
    let params = json!({"input": "raw", "tokenizer": "base", "max_document_bytes": 64 << 20});
    let tokenize = stage::<Tokenize>(params);
    let cancel = Cancel::default();
    cancel.set();
    let encoder = tokenize.encoder(&tokenizer, &cancel).unwrap();
    let line = json!({ "text": long_text(32 << 20) }).to_string();
    let error = encoder.encode(line.as_bytes()).unwrap_err();
    assert!(error.downcast_ref::<flow_core::Cancelled>().is_some(), "{error:#}");
    assert_eq!(std::sync::Arc::strong_count(&tokenizer), 3, "ours, the encoder's, and that of who is still at it");
}
