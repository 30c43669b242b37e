//! Which encoder serves which tokenizer, and what happens when two differ.

use super::*;

#[test]
fn an_encoder_that_differs_is_found_in_any_block_and_not_used() {
    // Two tokens have each other's ids, and the head of the file does not show it.
    let own = Tokenizer::load(&Files::find(&example("tokenizer")).unwrap()).unwrap();
    let is_whole = |id: &u32| own.encode_fast(&own.decode(&[*id]).unwrap(), false).unwrap() == [*id];
    let [one, two] = [7000..7400u32, 7400..7900].map(|mut ids| ids.find(is_whole).unwrap());
    let mut json: serde_json::Value = facts::read_json(&example("tokenizer/tokenizer.json")).unwrap();
    for id in json["model"]["vocab"].as_object_mut().unwrap().values_mut() {
        *id = if *id == one {
            two.into()
        } else if *id == two {
            one.into()
        } else {
            id.take()
        };
    }
    let mut stand = Stand::new();
    stand.write("other/tokenizer.json", json.to_string());
    let mut other = Tokenizer::load(&Files::find(&stand.place("other")).unwrap()).unwrap();
    let joined = own.decode(&[one]).unwrap();
    let line = |text: &str| json!({ "text": text }).to_string() + "\n";
    let shard = stand.write("a.jsonl", line("短い文。").repeat(200_000) + &line(&joined).repeat(60_000));
    let place = stand.place("other");
    stand.input("input", &shard).input("tokenizer", &place);
    let tokenize = stage::<Tokenize>(json!({"input": "raw", "tokenizer": "base"}));
    stand.run(&tokenize).unwrap();
    let results = || ["bin", "idx"].map(|ending| stand.out(&format!("a_text_document.{ending}")));
    let expected = results();
    stand.again();
    other.fast = own.fast;
    stand.ctx(|ctx| tokenize.run_with(ctx, &Arc::new(other))).unwrap();
    assert!(stand.log().iter().any(|line| line.contains("going on with the reference alone")), "{:?}", stand.log());
    assert!(results() == expected);
}

/// The reference looks for those that are not normalized first: that they overlap may stand anywhere.
#[test]
fn added_tokens_of_two_sorts_are_left_to_the_reference() {
    let mut tokenizer: serde_json::Value = facts::read_json(&example("tokenizer/tokenizer.json")).unwrap();
    let mut is_fast = |second_is_normalized: bool| {
        let added = |content: &str, id: u32, normalized: bool| {
            json!({"content": content, "id": id, "normalized": normalized, "special": false, "single_word": false,
                "lstrip": false, "rstrip": false})
        };
        let plain = tokenizer["added_tokens"].clone();
        for token in tokenizer["added_tokens"].as_array_mut().unwrap() {
            token["normalized"] = json!(false);
        }
        let tokens = tokenizer["added_tokens"].as_array_mut().unwrap();
        tokens.extend([added("qzab", 9000, false), added("abzq", 9001, second_is_normalized)]);
        let text = tokenizer.to_string();
        tokenizer["added_tokens"] = plain;
        let reference = tokenizers::Tokenizer::from_bytes(&text).unwrap();
        super::fast::load(super::fast::File::read(text.as_bytes()).unwrap().bpe(), &reference).is_some()
    };
    assert!(is_fast(false));
    assert!(!is_fast(true));
}

#[test]
fn the_reference_out_of_its_parts_is_the_one_that_it_reads() {
    let text = fs::read_to_string(example("tokenizer/tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["normalizer"] = json!({"type": "NFC"});
    json["added_tokens"].as_array_mut().unwrap().push(json!({"id": 8192, "content": "\u{304c}", "normalized": true,
        "special": false, "single_word": false, "lstrip": true, "rstrip": false}));
    let rules = json["model"]["merges"].as_array().unwrap().iter();
    let both = |rule: &serde_json::Value| {
        rule.as_str()
            .map_or_else(|| format!("{} {}", rule[0].as_str().unwrap(), rule[1].as_str().unwrap()), str::to_owned)
    };
    json["model"]["merges"] = rules.map(both).collect();
    json["model"]["ignore_merges"] = true.into();
    for text in [text, json.to_string()] {
        let ours = fast::File::read(text.as_bytes()).unwrap().reference().unwrap();
        let theirs: tokenizers::Tokenizer = text.parse().unwrap();
        assert!(ours.to_string(true).unwrap() == theirs.to_string(true).unwrap());
    }
}

#[test]
fn each_shape_has_its_encoder() {
    let level =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split = |regex: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, level(false)]})
    };
    let base: serde_json::Value = facts::read_json(&example("tokenizer/tokenizer.json")).unwrap();
    let qwen = base["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].as_str().unwrap().replace("{1,3}", "");
    for (name, value, is_ours) in [
        ("pre_tokenizer", base["pre_tokenizer"].clone(), true),
        ("pre_tokenizer", level(true), true),
        ("pre_tokenizer", split(&qwen), true),
        ("pre_tokenizer", split(r"\p{L}+|\P{L}+"), false),
        ("normalizer", json!({"type": "NFC"}), false),
    ] {
        let stand = Stand::new();
        let mut json = base.clone();
        json[name] = value.clone();
        stand.write("t/tokenizer.json", json.to_string());
        let tokenizer = Tokenizer::load(&Files::find(&stand.place("t")).unwrap()).unwrap();
        assert!(tokenizer.is_fast(), "{value}");
        assert_eq!(matches!(tokenizer.fast, Some(fast::Fast::Ours(_))), is_ours, "{value}");
        assert!(tokenizer.agrees(&long_text(1 << 16), true).unwrap(), "{value}");
    }
}

#[test]
fn tokenizers_of_other_shapes_go_by_the_reference() {
    let stand = Stand::new();
    let model = json!({"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2}, "unk_token": "?"});
    let json = json!({"version": "1.0", "model": model, "pre_tokenizer": {"type": "Whitespace"}, "added_tokens": [],
        "truncation": {"max_length": 1, "direction": "Right", "strategy": "LongestFirst", "stride": 0}});
    stand.write("t/tokenizer.json", json.to_string());
    let tokenizer = Tokenizer::load(&Files::find(&stand.place("t")).unwrap()).unwrap();
    assert!(!tokenizer.is_fast());
    assert_eq!(tokenizer.encode_fast("a b c", true).unwrap(), [0, 1, 2], "and truncation is off");

    let mut stand = stand;
    let (shard, tokenizer) = (stand.write("a.jsonl", "{\"text\": \"a b\"}\n"), stand.place("t"));
    stand.input("input", &shard).input("tokenizer", &tokenizer);
    stand.run(&stage::<Tokenize>(json!({"input": "raw", "tokenizer": "base"}))).unwrap();
    assert!(stand.log()[0].starts_with("no fast encoder serves"), "{:?}", stand.log());
}
