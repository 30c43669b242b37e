//! Against the ids of SentencePiece itself: `tests/golden/tokenizers/make.py`.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
    path::PathBuf,
};

use flow_formats::{compressed::Decoder, documents::Lines};
use prost::Message;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{proto, *};
use crate::{
    facts::read_json,
    testing::{Stand, repository, stage},
    tokenize::{Files, Tokenize, Tokenizer},
};

fn golden(name: &str) -> PathBuf {
    repository().join("tests/golden/tokenizers").join(name)
}

/// The ids of all texts, and the digest of those of a whole shard.
#[derive(Deserialize)]
struct Expected {
    texts: Vec<Vec<u32>>,
    validation_0: String,
}

#[track_caller]
fn assert_golden(name: &str, file: &str) {
    let tokenizer = Tokenizer::load(&Files::find(&golden(file)).unwrap()).unwrap();
    let texts: Vec<String> = read_json(&golden("texts.json")).unwrap();
    let expected = read_json::<BTreeMap<String, Expected>>(&golden("ids.json")).unwrap().remove(name).unwrap();
    assert_eq!(texts.len(), expected.texts.len());
    for (text, expected) in texts.iter().zip(&expected.texts) {
        assert_eq!(tokenizer.encode_reference(text, true).unwrap(), *expected, "{name}: {text:?}");
        assert!(tokenizer.agrees(text, true).unwrap(), "{name}: {text:?}");
    }
    let mut shard = Vec::new();
    let path = repository().join("examples/ja_wiki_mini/validation_0.jsonl.gz");
    Decoder::open(&path).unwrap().read_to_end(&mut shard).unwrap();
    let mut digest = Sha256::new();
    for line in Lines::new(&shard) {
        let document: HashMap<String, serde_json::Value> = serde_json::from_slice(line).unwrap();
        for id in tokenizer.encode_reference(document["text"].as_str().unwrap(), true).unwrap() {
            digest.update(id.to_le_bytes());
        }
    }
    let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, expected.validation_0, "{name}");
}

#[test]
fn the_ids_are_those_of_sentencepiece() {
    for name in ["llama", "bpe", "unigram", "fallback"] {
        assert_golden(name, &format!("{name}.model"));
    }
}

#[test]
fn a_vocabulary_with_merges_is_read_as_gpt2_does() {
    assert_golden("gpt2", "gpt2");
    let tokenizer = Tokenizer::load(&Files::find(&golden("gpt2")).unwrap()).unwrap();
    assert!(tokenizer.is_fast());
    assert_eq!((tokenizer.special_id("eos_token").unwrap(), tokenizer.vocabulary()), (0, 1200));
    let stand = Stand::new();
    for (name, text) in [("vocab.json", None), ("merges.txt", Some("a b\n"))] {
        let text = text.map_or_else(|| std::fs::read_to_string(golden("gpt2").join(name)).unwrap(), str::to_owned);
        stand.write(&format!("t/{name}"), text);
    }
    let error = || format!("{:#}", Tokenizer::load(&Files::find(&stand.place("t")).unwrap()).unwrap_err());
    assert!(error().contains("does not begin with `#version`"), "{}", error());
    stand.write("t/tokenizer_config.json", r#"{"tokenizer_class": "RobertaTokenizer"}"#);
    assert!(error().contains("this is of RobertaTokenizer"), "{}", error());
}

#[test]
fn a_model_in_a_directory_is_configured_beside_it() {
    let mut stand = Stand::new();
    std::fs::create_dir(stand.place("t")).unwrap();
    std::fs::copy(golden("llama.model"), stand.place("t/tokenizer.model")).unwrap();
    let shard = stand.write("a.jsonl", "{\"text\":\"日本 <s>\"}\n");
    let run = |stand: &mut Stand, more: serde_json::Value| {
        let place = stand.place("t");
        stand.inputs.clear();
        stand.input("input", &shard).input("tokenizer", &place);
        let mut params = json!({"input": "raw", "tokenizer": "base", "append_eod": true});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (errors, ..) = stand.check(&stage::<Tokenize>(params.clone()));
        assert_eq!(errors, []);
        stand.again();
        stand.run(&stage::<Tokenize>(params)).unwrap();
        let set = flow_formats::indexed::IndexedDataset::open(&stand.place("out/a_text_document")).unwrap();
        set.sequence(0).unwrap().to_vec()
    };
    let plain: Vec<i64> = SentencePiece::load(&golden("llama.model"))
        .unwrap()
        .encode("日本 <s>")
        .iter()
        .map(|id| i64::from(*id))
        .collect();
    let with = |before: &[i64]| [before, &plain, &[2]].concat();
    assert_eq!(run(&mut stand, json!({})), with(&[]), "the model knows its end of a document");
    assert_eq!(run(&mut stand, json!({"add_bos": true})), with(&[1]));
    stand.write(
        "t/tokenizer_config.json",
        r#"{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}"#,
    );
    assert_eq!(run(&mut stand, json!({})), with(&[1]));
    assert_eq!(run(&mut stand, json!({"add_bos": false})), with(&[]));
    stand.write("t/tokenizer_config.json", r#"{"additional_special_tokens": ["<|im_start|>"]}"#);
    let error = format!("{:#}", Tokenizer::load(&Files::find(&stand.place("t")).unwrap()).unwrap_err());
    assert!(error.contains("`<|im_start|>` that the model has not"), "{error}");
}

#[test]
fn ids_become_text_again() {
    let llama = SentencePiece::load(&golden("llama.model")).unwrap();
    for text in ["日本 a  b", "👍🏽\0\n", "", "  x"] {
        assert_eq!(llama.decode(&llama.encode(text)), text);
    }
    assert_eq!(llama.decode(&[1, 0]), "<s> \u{2047} ");
    let bpe = SentencePiece::load(&golden("bpe.model")).unwrap();
    assert_eq!(bpe.decode(&bpe.encode(" ａ  👍 b<sep> ")), "a \u{2047} b<sep>".replace("a \u{2047} ", "a  \u{2047}  "));
}

#[test]
fn what_would_not_be_exact_or_is_damaged_is_refused() {
    let bytes = std::fs::read(golden("bpe.model")).unwrap();
    let model = || proto::Model::decode(&bytes[..]).unwrap();
    let error = |change: fn(&mut proto::Model)| {
        let mut model = model();
        change(&mut model);
        format!("{:#}", SentencePiece::new(&model).err().unwrap())
    };
    let unused = error(|model| model.pieces[9].kind = Some(Kind::Unused as i32));
    assert!(unused.contains("piece 9 is marked as unused"), "{unused}");
    assert!(
        error(|model| model.trainer.as_mut().unwrap().model_type = Some(3)).contains("a model of words or characters")
    );
    assert!(error(|model| model.trainer.as_mut().unwrap().byte_fallback = Some(true)).contains("0 of 256 bytes"));
    assert!(error(|model| model.normalizer.as_mut().unwrap().charsmap.truncate(9)).contains("damaged"));
    assert!(error(|model| model.normalizer.as_mut().unwrap().escape_whitespaces = Some(false)).contains("not served"));
    let stand = Stand::new();
    for content in [&b""[..], b"{}", &bytes[..bytes.len() / 2]] {
        let path = stand.write("x.model", content);
        assert!(format!("{:#}", SentencePiece::load(&path).err().unwrap()).contains("x.model is no model"));
    }
}
