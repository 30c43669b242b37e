//! When the faster encoder may stand in for the reference: byte-level BPE in the shapes that it implements as a whole,
//! and only if it gives the reference's ids for a set of hard texts. Each run compares both on its own text besides.

use anyhow::Result;
use serde_json::Value as Json;
use tokenizers::Tokenizer as HfTokenizer;

use super::byte_level::ByteLevel;

/// An encoder that gives the reference's ids sooner.
pub enum Fast {
    /// Ours.
    Ours(Box<ByteLevel>),
    /// For normalizers and expressions that ours does not know.
    Fastokens(Box<fastokens::Tokenizer>),
}

impl Fast {
    /// The ids of a text, with those that the post-processor adds if `special`.
    ///
    /// # Errors
    /// The tokenizer cannot encode it.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        match self {
            Self::Ours(tokenizer) => Ok(tokenizer.encode(text, special)),
            Self::Fastokens(tokenizer) => Ok(tokenizer.encode_with_special_tokens(text, special)?),
        }
    }

    /// Whether it gives the reference's ids for the hard texts.
    fn is_sound(&self, reference: &HfTokenizer) -> bool {
        let same = |text: &str, special| {
            let expected = reference.encode_fast(text, special).ok()?;
            Some(self.encode(text, special).ok()? == expected.get_ids())
        };
        PROBES.iter().all(|text| same(text, true) == Some(true) && same(text, false) == Some(true))
    }
}

/// Texts in which tokenizers differ if they differ: spaces of all kinds and in runs, line ends, contractions, digits,
/// cases, combining marks, scripts with and without spaces, wide and rare planes, controls, long runs.
const PROBES: [&str; 30] = [
    "",
    " ",
    "\n",
    "\r\n\r\n \n\t \n",
    "Hello, world!",
    "  leading and trailing  ",
    "It's we'll I'M THEY'RE 'tis ''s' ’s",
    "1 12 123 1234 12345.678 ０１２３４ ١٢٣٤ ½ ⅷ ²³",
    "a\u{a0}b\u{2003}c\u{3000}d\u{200b}e\u{feff}f\u{85}g\u{2028}h\u{2029}i",
    "snake_case camelCase SCREAMING-KEBAB iPhone ＡＢＣ ａｂｃ",
    "日本語の文章です。東京都は、日本の首都である。",
    "カタカナ ｶﾀｶﾅ ひらがな 漢字とカナの混ざった文、そしてEnglishも123も。",
    "長い漢字列国際連合安全保障理事会決議案採択手続規則改正委員会",
    "「引用」『二重』（括弧）・中黒…三点——線〜波",
    "が か\u{3099} ぱ は\u{309a} é e\u{301} ﬁ Å \u{212b} ö o\u{308}",
    "한국어 문장입니다. ᄒ\u{1161}\u{11ab}",
    "Привет, мир! Ελληνικά עברית العربية हिन्दी ไทย",
    "👍🏽👨‍👩‍👧‍👦🇯🇵 e\u{20e3} ☃\u{fe0f}",
    "𠮷野家 𩸽 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \u{10ffff}\u{e000}",
    "\0\u{1}\u{7f}\u{9f}",
    "<|begin_of_text|> <|end_of_text|><s></s> <pad> [CLS]<|im_start|>user\n<|endoftext|>",
    "<|begin_of_text",
    "http://example.org/a?b=c&d=%E6%97%A5#e user@example.org C:\\dir\\file.txt",
    "def f(x):\n\treturn {'a': [1, 2.5e-3], \"b\": None}  # comment\n\n\n",
    "ssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss",
    "                                                                                x",
    "\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n x",
    "ああああああああああああああああああああああああああああああああああああああああああああああああ",
    "!!!!!!!!!!!!!!!!????????????????。。。。。。。。。。。。。。。。、、、、、、、、---------------",
    "İstanbul ǅ ſ ß ẞ Σς",
];

/// The faster encoder for the tokenizer in `text` (a tokenizer.json), which `reference` was loaded from; none if there is none
/// that can be trusted with it.
pub fn load(text: &[u8], reference: &HfTokenizer) -> Option<Fast> {
    let mut json: Json = serde_json::from_slice(text).ok()?;
    if !is_supported(&json) || !added_at_once(reference) {
        return None;
    }
    let ours = ByteLevel::new(&json, reference).map(|ours| Fast::Ours(Box::new(ours)));
    if let Some(ours) = ours.filter(|ours| ours.is_sound(reference)) {
        return Some(ours);
    }
    let fields = json.as_object_mut()?;
    fields.remove("truncation");
    fields.remove("padding");
    let theirs = fastokens::Tokenizer::from_json(json).ok()?;
    Some(Fast::Fastokens(Box::new(theirs))).filter(|theirs| theirs.is_sound(reference))
}

/// The reference looks for the added tokens that are not normalized first, and for the others in what is left; the faster
/// encoder for all of them at once. That is the same unless two of different sorts can stand on the same bytes.
fn added_at_once(reference: &HfTokenizer) -> bool {
    let added = reference.get_added_tokens_decoder().into_values();
    let (normalized, plain): (Vec<_>, Vec<_>) = added.partition(|token| token.normalized);
    !normalized.iter().any(|a| plain.iter().any(|b| overlap(&a.content, &b.content)))
}

/// Whether one is in the other, or one's end is the other's beginning.
fn overlap(a: &str, b: &str) -> bool {
    let joined = |a: &str, b: &str| (0..a.len()).any(|at| a.is_char_boundary(at) && b.starts_with(&a[at..]));
    a.contains(b) || b.contains(a) || joined(a, b) || joined(b, a)
}

fn is_supported(json: &Json) -> bool {
    let model = &json["model"];
    let is_plain = |name: &str| match &model[name] {
        Json::Null | Json::Bool(false) => true,
        Json::String(text) => text.is_empty(),
        _ => false,
    };
    let is_bpe = model["type"] == "BPE"
        && ["dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback"]
            .into_iter()
            .all(is_plain);
    // `single_word` is not implemented there; stripping and normalizing are rare enough to leave to the reference.
    let flags = ["single_word", "lstrip", "rstrip", "normalized"];
    let plain_tokens = json["added_tokens"].as_array().is_none_or(|tokens| {
        tokens.iter().all(|token| {
            flags.iter().all(|flag| token[*flag] != true || *flag == "normalized" && json["normalizer"].is_null())
        })
    });
    let kinds = |json: &Json, list: &str, allowed: &[&str]| match json["type"].as_str() {
        None => json.is_null(),
        Some("Sequence") => json[list].as_array().is_some_and(|steps| {
            steps.iter().all(|step| step["type"].as_str().is_some_and(|kind| allowed.contains(&kind)))
        }),
        Some(kind) => allowed.contains(&kind),
    };
    let levels = json["pre_tokenizer"].to_string().contains("\"ByteLevel\"");
    is_bpe
        && plain_tokens
        && levels
        && kinds(&json["normalizer"], "normalizers", &["NFC"])
        && kinds(&json["pre_tokenizer"], "pretokenizers", &["Split", "Digits", "ByteLevel"])
        && kinds(&json["post_processor"], "processors", &["TemplateProcessing", "ByteLevel"])
}
