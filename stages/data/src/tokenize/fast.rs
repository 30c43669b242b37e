//! When the faster encoder may stand in for the reference: byte-level BPE in the shapes that it implements as a whole,
//! and only if it gives the reference's ids for a set of hard texts. Each run compares both on its own text besides.

use anyhow::Result;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokenizers::{AddedToken, Tokenizer as HfTokenizer};

use super::{
    bpe::{Bpe, Written},
    byte_level::ByteLevel,
    split,
};

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

/// A tokenizer.json whose model is one that a faster encoder may serve, parsed: once for both encoders, since it has megabytes.
#[derive(Deserialize)]
pub struct File<'t> {
    #[serde(default)]
    version: Json,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Json,
    #[serde(default)]
    pre_tokenizer: Json,
    #[serde(default)]
    post_processor: Json,
    #[serde(default)]
    decoder: Json,
    #[serde(borrow)]
    model: Written<'t>,
}

impl<'t> File<'t> {
    /// None if it is of another kind, or not what it should be.
    pub fn read(text: &'t [u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(text).ok().filter(|file| file.model.is_plain())
    }

    /// The reference. It reads files itself, and takes ten times as long for that as for the rest: so it reads what stands around
    /// the model, and is given that.
    pub fn reference(&self) -> Option<HfTokenizer> {
        let around = json!({"version": self.version, "added_tokens": [], "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer, "post_processor": self.post_processor, "decoder": self.decoder,
            "model": {"type": "BPE", "vocab": {}, "merges": []}});
        let mut reference: HfTokenizer = around.to_string().parse().ok()?;
        reference.with_model(self.model.reference()?);
        reference.add_tokens(self.added_tokens.iter().cloned()).ok()?;
        Some(reference)
    }

    /// Ours, of the model; none if it does not serve.
    pub fn bpe(&self) -> Option<Bpe> {
        split::prepare();
        Bpe::new(&self.model.model()?)
    }
}

/// What stands around the model.
pub struct Around {
    pub added_tokens: Vec<Json>,
    pub normalizer: Json,
    pub pre_tokenizer: Json,
    pub post_processor: Json,
}

impl Around {
    fn of(reference: &HfTokenizer) -> Option<Self> {
        let mut added: Vec<_> = reference.get_added_tokens_decoder().into_iter().collect();
        added.sort_by_key(|(id, _)| *id);
        Some(Self {
            added_tokens: added.into_iter().map(|(_, token)| json!(token)).collect(),
            normalizer: serde_json::to_value(reference.get_normalizer()).ok()?,
            pre_tokenizer: serde_json::to_value(reference.get_pre_tokenizer()).ok()?,
            post_processor: serde_json::to_value(reference.get_post_processor()).ok()?,
        })
    }
}

/// The faster encoder for a tokenizer with a plain model, which is `bpe` if ours serves it, and `reference` as it is configured;
/// none if there is none that can be trusted with it.
pub fn load(bpe: Option<Bpe>, reference: &HfTokenizer) -> Option<Fast> {
    let around = Around::of(reference)?;
    if !is_supported(&around) || !added_at_once(reference) {
        return None;
    }
    let ours = bpe.and_then(|bpe| ByteLevel::new(bpe, &around, reference)).map(|ours| Fast::Ours(Box::new(ours)));
    if let Some(ours) = ours.filter(|ours| ours.is_sound(reference)) {
        return Some(ours);
    }
    let mut json: Json = serde_json::from_str(&reference.to_string(false).ok()?).ok()?;
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

fn is_supported(around: &Around) -> bool {
    let Around { added_tokens, normalizer, pre_tokenizer, post_processor } = around;
    // `single_word` is not implemented there; stripping and normalizing are rare enough to leave to the reference.
    let flags = ["single_word", "lstrip", "rstrip", "normalized"];
    let plain_tokens = added_tokens
        .iter()
        .all(|token| flags.iter().all(|flag| token[*flag] != true || *flag == "normalized" && normalizer.is_null()));
    let kinds = |json: &Json, list: &str, allowed: &[&str]| match json["type"].as_str() {
        None => json.is_null(),
        Some("Sequence") => json[list].as_array().is_some_and(|steps| {
            steps.iter().all(|step| step["type"].as_str().is_some_and(|kind| allowed.contains(&kind)))
        }),
        Some(kind) => allowed.contains(&kind),
    };
    let levels = pre_tokenizer.to_string().contains("\"ByteLevel\"");
    plain_tokens
        && levels
        && kinds(normalizer, "normalizers", &["NFC"])
        && kinds(pre_tokenizer, "pretokenizers", &["Split", "Digits", "ByteLevel"])
        && kinds(post_processor, "processors", &["TemplateProcessing", "ByteLevel"])
}
