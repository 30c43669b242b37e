//! Against the reference, on models that no training would give.

use std::{collections::HashMap, sync::LazyLock};

use proptest::{prelude::*, sample::Index};
use serde_json::json;
use tokenizers::{Model as _, models::bpe::BPE};

use super::*;

/// Characters of one to four bytes that share bytes, in more than one place of them, and one on a page of its own.
const CHARS: [char; 9] = ['あ', 'い', 'ぁ', '\u{3080}', '\u{f081}', 'é', 'a', '𠀀', '\u{ac00}'];

/// A model, and the reference's: rules join neighbours in a text, as training does, but any of them and not the most
/// frequent; half of them inside of characters, so that many characters are made. Then rules change places.
fn model(text: &str, choices: &[(Index, bool)], order: &[Index], ignore_merges: bool) -> (Model, BPE) {
    let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    let mut rules: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut symbols: Vec<Vec<u8>> = text.bytes().map(|byte| vec![byte]).collect();
    for (choice, inside) in choices {
        let is_inside = |at: &usize| symbols[at + 1][0] & 0xc0 == 0x80;
        let places: Vec<usize> = (0..symbols.len() - 1).filter(|at| !inside || is_inside(at)).collect();
        if places.is_empty() {
            continue;
        }
        let at = places[choice.index(places.len())];
        let (left, right) = (symbols[at].clone(), symbols[at + 1].clone());
        let both = [left.clone(), right.clone()].concat();
        for at in 0..symbols.len() - 1 {
            if at + 1 < symbols.len() && symbols[at] == left && symbols[at + 1] == right {
                symbols[at] = both.clone();
                symbols.remove(at + 1);
            }
        }
        if symbols.len() < 2 {
            break;
        }
        rules.push((left, right));
        if !tokens.contains(&both) {
            tokens.push(both);
        }
    }
    for (at, other) in order.iter().enumerate().take(rules.len()) {
        let other = other.index(rules.len());
        rules.swap(at, other);
    }
    let vocabulary: HashMap<String, usize> = tokens.iter().map(|token| written(token)).zip(0..).collect();
    let merges: Vec<_> = rules.iter().map(|(left, right)| (written(left), written(right))).collect();
    let json = json!({"type": "BPE", "ignore_merges": ignore_merges, "vocab": vocabulary, "merges": merges});
    (model_of(&json).unwrap(), serde_json::from_str(&json.to_string()).unwrap())
}

fn model_of(json: &serde_json::Value) -> Option<Model> {
    serde_json::from_str::<Written<'_>>(&json.to_string()).unwrap().model()
}

/// As byte-level models write it.
fn written(token: &[u8]) -> String {
    static CHARS: LazyLock<HashMap<u8, char>> = LazyLock::new(|| {
        model::byte_of_char().into_iter().zip('\0'..).filter_map(|(byte, char)| Some((byte?, char))).collect()
    });
    token.iter().map(|byte| CHARS[byte]).collect()
}

fn reference(bpe: &BPE, text: &str) -> Vec<u32> {
    bpe.tokenize(&written(text.as_bytes())).unwrap().into_iter().map(|token| token.id).collect()
}

fn ours(bpe: &Bpe, text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    bpe.encode(text, &mut Vec::new(), &mut ids);
    ids
}

fn text(most: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(&CHARS[..]), 2..most).prop_map(String::from_iter)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_rules_are_followed_as_the_reference_does(
        trained in text(60),
        choices in prop::collection::vec(any::<(Index, bool)>(), 0..50),
        order in prop_oneof![Just(Vec::new()), prop::collection::vec(any::<Index>(), 1..50)],
        ignore_merges in any::<bool>(),
        texts in prop::collection::vec(text(100), 10),
    ) {
        let (model, expected) = model(&trained, &choices, &order, ignore_merges);
        let bpe = Bpe::new(&model).unwrap();
        for text in [trained].into_iter().chain(texts) {
            prop_assert_eq!(ours(&bpe, &text), reference(&expected, &text), "{}", text);
        }
    }
}

#[test]
fn a_rule_across_characters_may_come_before_those_that_make_them() {
    let vocabulary = ["ã", "ģ", "Ĥ", "Ħ", "ãģ", "ãģĤ", "ãģĦ", "Ĥã", "ĤãģĦ"];
    let mut vocabulary: HashMap<String, usize> = vocabulary.into_iter().map(str::to_owned).zip(1000..).collect();
    vocabulary.extend((0..=u8::MAX).map(|byte| (written(&[byte]), usize::from(byte))));
    let merges = ["ãģ Ĥ", "Ĥ ã", "ã ģ", "ãģ Ħ", "Ĥ ãģĦ"];
    let json = json!({"type": "BPE", "vocab": vocabulary, "merges": merges});
    let (model, expected): (_, BPE) = (model_of(&json).unwrap(), serde_json::from_str(&json.to_string()).unwrap());
    let bpe = Bpe::new(&model).unwrap();
    for text in ["あ", "い", "ああ", "あい", "いあい", "あいあああい", "xあyいz"] {
        assert_eq!(ours(&bpe, text), reference(&expected, text), "{text}");
    }
}

#[test]
fn a_text_that_never_breaks_is_merged_in_time_and_space() {
    let bytes: HashMap<String, usize> = (0..=u8::MAX).map(|byte| (written(&[byte]), usize::from(byte))).collect();
    let mut vocabulary = bytes;
    vocabulary.extend([2, 4, 8, 16].into_iter().map(|n| ("a".repeat(n), 256 + n)));
    let merges = [1, 2, 4, 8].map(|n| ("a".repeat(n), "a".repeat(n)));
    let model = model_of(&json!({"vocab": vocabulary, "merges": merges})).unwrap();
    let bpe = Bpe::new(&model).unwrap();
    for (n, expected) in [(62, 6), (63, 7), (1 << 22, 1 << 18)] {
        assert_eq!(ours(&bpe, &"a".repeat(n)).len(), expected, "{n}");
    }
}

#[test]
fn a_model_that_is_not_what_it_says_is_not_served() {
    let of = |json: serde_json::Value| model_of(&json);
    assert!(of(json!({"vocab": {"a": 0, "b": 0}, "merges": []})).is_none(), "two tokens have one id");
    assert!(of(json!({"vocab": {"a": 0, "b": 1}, "merges": ["a b"]})).is_none(), "what a rule makes is no token");
    let model = of(json!({"vocab": {"a": 0, "b": 1}, "merges": []})).unwrap();
    assert!(Bpe::new(&model).is_none(), "most bytes are no tokens");
}
