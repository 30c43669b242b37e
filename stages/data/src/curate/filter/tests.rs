//! The rules by example, beside datatrove's, and what the stage writes.

use serde_json::{Value as Json, json};

use super::*;
use crate::testing::{Stand, expand, repository, stage};

/// The documents of a stand's result.
fn lines(stand: &Stand, name: &str) -> Vec<String> {
    let mut text = String::new();
    let mut decoder = flow_formats::compressed::Decoder::open(&stand.place("out").join(name)).unwrap();
    std::io::Read::read_to_string(&mut decoder, &mut text).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn stats(stand: &Stand, stem: &str) -> Json {
    serde_json::from_slice(&stand.out(&stats_name(stem))).unwrap()
}

fn document(text: &str) -> String {
    json!({ "text": text }).to_string() + "\n"
}

/// Why a filter with these parameters drops a text.
fn judged(params: &Json, text: &str) -> Result<Option<String>, &'static str> {
    let mut params = params.clone();
    params["input"] = "raw".into();
    let filter: Filter = stage(params);
    Sieve::new(&filter, &None).unwrap().judge(text).map_err(|drop| drop.rule)
}

/// What datatrove calls the rules.
fn called(name: &str) -> String {
    let rule = match name {
        "gopher_short_doc" => "gopher_quality.min_doc_words",
        "gopher_long_doc" => "gopher_quality.max_doc_words",
        "gopher_below_avg_threshold" => "gopher_quality.min_avg_word_length",
        "gopher_above_avg_threshold" => "gopher_quality.max_avg_word_length",
        "gopher_too_many_hashes" | "gopher_too_many_ellipsis" => "gopher_quality.max_symbol_word_ratio",
        "gopher_too_many_bullets" => "gopher_quality.max_bullet_lines_ratio",
        "gopher_too_many_end_ellipsis" => "gopher_quality.max_ellipsis_lines_ratio",
        "gopher_below_alpha_threshold" => "gopher_quality.min_alpha_words_ratio",
        "gopher_enough_stop_words" => "gopher_quality.min_stop_words",
        "lorem_ipsum" => "c4.filter_lorem_ipsum",
        "curly_bracket" => "c4.filter_curly_bracket",
        "too_few_sentences" => "c4.min_num_sentences",
        _ => match name.strip_prefix("duplicated_").and_then(|rest| rest.strip_suffix("_n_grams")) {
            Some(n) => return format!("gopher_repetition.dup_{n}_gram"),
            None => return format!("gopher_repetition.{name}"),
        },
    };
    rule.to_owned()
}

#[test]
fn every_document_is_judged_as_datatrove_does() {
    let golden = repository().join("tests/golden/curate");
    let verdicts: Json = crate::facts::read_json(&golden.join("filters.json")).unwrap();
    let japanese = repository().join("examples/ja_wiki_mini/validation_0.jsonl.gz");
    let mut seen = std::collections::BTreeSet::new();
    for (language, path) in [("english", golden.join("documents.jsonl.gz")), ("japanese", japanese)] {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut flow_formats::compressed::Decoder::open(&path).unwrap(), &mut text).unwrap();
        let verdicts = verdicts[language].as_array().unwrap();
        assert_eq!(text.lines().count(), verdicts.len());
        for (line, verdict) in text.lines().zip(verdicts) {
            let document: Json = serde_json::from_str(line).unwrap();
            let text = document["text"].as_str().unwrap();
            for (name, verdict) in verdict.as_object().unwrap().iter().filter(|(name, _)| *name != "left") {
                let mut params = json!({ name: true });
                if language == "japanese" && name == "gopher_quality" {
                    params[name] = json!({ "min_avg_word_length": false, "max_avg_word_length": false,
                        "min_stop_words": false, "min_alpha_words_ratio": false });
                }
                if name == "c4" {
                    params[name] = json!({ "terminal_punctuation": ".?!\"'" });
                }
                let ours = judged(&params, text).map_err(str::to_owned);
                let theirs = verdict.as_str().map(called);
                assert_eq!(ours.as_ref().err(), theirs.as_ref(), "{language} {name} of {line}");
                if let (Ok(Some(left)), Some(digest)) = (&ours, verdict.get("left").and_then(Json::as_str)) {
                    let ours = <sha2::Sha256 as sha2::Digest>::digest(left);
                    let ours: String = ours[..8].iter().map(|byte| format!("{byte:02x}")).collect();
                    assert_eq!(ours, digest, "what c4 leaves of {line}");
                }
                seen.extend(theirs);
            }
        }
    }
    assert!(seen.len() >= 20, "the golden file shows too few rules: {seen:?}");
}

#[test]
fn what_is_kept_keeps_its_line_and_what_goes_is_counted_and_shown() {
    let mut stand = Stand::new();
    let kept = "{ \"id\": 1.50, \"text\": \"\\u65e5本語の長い文章です。\", \"x\": [1] }";
    let mut text = format!("{kept}\r\n{}{}", document("short"), document("ABC too long for any one of us to read"));
    text += &document("a word that is bad, said of it");
    stand.write("raw/sub/a.jsonl.zst", zstd::encode_all(text.as_bytes(), 1).unwrap());
    stand.write("raw/b.jsonl", document("also short") + "\n" + "{\n");
    stand.write("raw/stats.json", "{}");
    stand.write("raw/b.stats.json", "{}");
    let raw = stand.place("raw");
    stand.input("input", &raw);
    let words = stand.write("words.txt", "bad\n\n禁句\n");
    stand.input("c4.bad_words", &words);
    let off = json!({ "filter_no_terminal_punct": false, "min_words_per_line": false, "min_num_sentences": false,
        "bad_words": "words.txt" });
    let filter = |output: &str| {
        stage::<Filter>(json!({ "input": "raw", "length": { "min_chars": 11 }, "exclude": ["^A.C"], "c4": off,
            "on_bad_line": "skip", "output": output, "samples": 1 }))
    };
    stand.run(&filter("zst")).unwrap();
    assert_eq!(stand.outs(), ["b.jsonl.zst", "b.stats.json", "sub/a.jsonl.zst", "sub/a.stats.json"]);
    assert_eq!((lines(&stand, "sub/a.jsonl.zst"), lines(&stand, "b.jsonl.zst")), (vec![kept.to_owned()], vec![]));
    let (told, of_b) = (stats(&stand, "sub/a"), stats(&stand, "b"));
    assert_eq!((&told["documents"], &told["kept"], &told["changed"]), (&json!(4), &json!(1), &json!(0)));
    let dropped = |rule: &str| {
        let rules = told["rules"].as_array().unwrap();
        rules.iter().find(|told| told["rule"] == rule).unwrap()["dropped"].as_u64().unwrap()
    };
    assert_eq!(["length.min_chars", "exclude", "c4.bad_words", "c4.filter_lorem_ipsum"].map(dropped), [1, 1, 1, 0]);
    let bad = told["rules"].as_array().unwrap().iter().find(|told| told["rule"] == "c4.bad_words").unwrap();
    assert_eq!(
        bad["sample"],
        json!([{ "file": "sub/a", "line": 4, "why": "bad,", "text": "a word that is bad, said of it" }])
    );
    assert_eq!((&of_b["documents"], &of_b["kept"]), (&json!(1), &json!(0)));
    assert_eq!(of_b["reasons"], json!({ "blank": 1, "not_json": 1 }));
    assert!(stand.log().iter().any(|line| line.starts_with("1 of 5 documents kept in ")), "{:?}", stand.log());

    for (output, name) in [("gz", "sub/a.jsonl.gz"), ("plain", "sub/a.jsonl")] {
        stand.again();
        stand.run(&filter(output)).unwrap();
        assert_eq!(lines(&stand, name), [kept]);
    }
}

#[test]
fn the_result_is_the_same_however_many_threads_work() {
    let run = |threads: usize| {
        let mut stand = Stand::new();
        stand.threads = threads;
        let example = repository().join("examples/ja_wiki_mini/train_0.jsonl.gz");
        stand.input("input", &example);
        let params = json!({ "input": "raw", "normalize": "nfkc", "gopher_repetition": true, "c4": true,
            "length": { "min_chars": 300 }, "language": { "keep": ["ja"] } });
        stand.run(&stage::<Filter>(params)).unwrap();
        assert!(stats(&stand, "train_0")["changed"].as_u64().unwrap() > 0);
        (stand.out("train_0.jsonl.zst"), stand.out("train_0.stats.json"))
    };
    assert!(run(1) == run(5));
}

#[test]
fn japanese_prose_passes_the_published_thresholds() {
    let mut stand = Stand::new();
    let example = repository().join("examples/ja_wiki_mini/train_0.jsonl.gz");
    stand.input("input", &example);
    let params = json!({ "input": "raw", "gopher_quality": true, "gopher_repetition": true, "c4": true });
    stand.run(&stage::<Filter>(params)).unwrap();
    let told = stats(&stand, "train_0");
    let (kept, all) = (told["kept"].as_u64().unwrap(), told["documents"].as_u64().unwrap());
    assert!(kept * 10 > all * 8, "{told:#}");
}

#[test]
fn a_text_may_be_brought_into_a_normal_form() {
    let nfkc = json!({ "normalize": "nfkc" });
    assert_eq!(judged(&nfkc, "ＡＢＣ ｶﾞ ①").unwrap().unwrap(), "ABC ガ 1");
    assert_eq!(judged(&nfkc, "ABC").unwrap(), None);
    assert_eq!(judged(&json!({ "normalize": "nfc" }), "か\u{3099}ｶ").unwrap().unwrap(), "がｶ");
}

#[test]
fn languages_are_told_by_script_and_trigrams() {
    let of = |code: &str, text: &str| judged(&json!({ "language": { "keep": [code] } }), text).is_ok();
    for (code, text) in [
        ("ja", "東京は日本の首都であり、世界でも最大級の都市である。"),
        ("zh", "北京是中华人民共和国的首都，也是全国的政治和文化中心。"),
        ("ko", "서울은 대한민국의 수도이며 가장 큰 도시입니다."),
        ("en", "London is the capital of the United Kingdom and its largest city."),
        ("de", "Berlin ist die Hauptstadt der Bundesrepublik Deutschland und ihre größte Stadt."),
        ("ru", "Москва является столицей России и крупнейшим городом страны."),
    ] {
        assert!(of(code, text), "{text}");
        for other in ["ja", "zh", "ko", "en", "de", "ru"].into_iter().filter(|other| *other != code) {
            assert!(!of(other, text), "{text} is not {other}");
        }
    }
    assert!(!of("en", "12345 ... !!"));
    let japanese =
        json!({ "scripts": [{ "of": ["Han", "Hiragana", "Katakana"], "min": 0.5 }, { "of": ["Latn"], "max": 0.2 }] });
    assert!(judged(&japanese, "これはAIです").is_err() && judged(&japanese, "これは人工知能です").is_ok());
    assert_eq!(judged(&json!({ "include": ["猫", "犬"] }), "鳥がいる"), Err("include"));
}

#[test]
fn what_cannot_be_is_said_before_anything_runs() {
    let error = |params: Json| {
        let mut params = params;
        params["input"] = "raw".into();
        let error = expand::<Filter>(params).unwrap_err();
        (error.field.clone().unwrap_or_default(), error.message)
    };
    for (params, field, words) in [
        (json!({ "length": { "min_chars": 5, "max_chars": 4 } }), "length.min_chars", "at least 5 and at most 4"),
        (json!({ "gopher_repetition": { "dup_5_gram": 15 } }), "gopher_repetition.dup_5_gram", "more than all"),
        (json!({ "gopher_quality": { "stop_words": ["の"] } }), "gopher_quality.min_stop_words", "only 1 stop words"),
        (json!({ "language": { "keep": ["jp"] } }), "language.keep.0", "no language that can be told"),
        (json!({ "scripts": [{ "of": ["Hirgana"], "min": 0.5 }] }), "scripts.0.of.0", "no script of Unicode"),
        (json!({ "scripts": [{ "of": ["Han"], "min": 0.5, "max": 0.4 }] }), "scripts.0.min", "between 0.5 and 0.4"),
        (json!({ "exclude": ["a", "("] }), "exclude.1", "no regular expression"),
        (json!({ "workers": 0 }), "workers", "no worker"),
        (json!({ "gopher_quality": { "max_doc_words": true } }), "", "a number of 0 or more, or false for no limit"),
        (json!({ "gopher_quality": "yes" }), "", "true, false, or a table of thresholds"),
        (json!({ "c4": { "bracket": true } }), "", "bracket"),
    ] {
        let (at, message) = error(params);
        assert!(at == field && message.contains(words), "{at}: {message}");
    }
    let mut stand = Stand::new();
    let path = stand.write("a.jsonl", "{\"body\": \"x\"}\n{}\n");
    stand.input("input", &path);
    let (errors, ..) = stand.check(&stage::<Filter>(json!({ "input": "raw" })));
    assert!(errors[0].message.contains("a.jsonl:1: `text` is missing"), "{}", errors[0].message);
    assert!(stand.error(&stage::<Filter>(json!({ "input": "raw" }))).contains("on_bad_line"));
    stand.again();
    stand.cancel.set();
    assert!(stand.error(&stage::<Filter>(json!({ "input": "raw", "json_key": "body" }))).contains("interrupted"));
}
