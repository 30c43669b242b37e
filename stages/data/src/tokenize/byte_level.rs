//! Tokenizers of which all is known: added tokens, one of the usual regular expressions, byte-level BPE, and ids put
//! before and behind. Encoded here, several times as fast as by any library.

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value as Json;
use tokenizers::Tokenizer as HfTokenizer;

use super::{bpe::Bpe, fast::Around, split::Splitter};

/// A tokenizer of this kind.
pub struct ByteLevel {
    added: Option<Added>,
    splitter: Splitter,
    bpe: Bpe,
    /// What the post-processor puts before
    before: Vec<u32>,
    /// and behind.
    behind: Vec<u32>,
}

/// Tokens that are found in the text before anything else.
struct Added {
    search: AhoCorasick,
    /// By pattern.
    ids: Vec<u32>,
}

impl ByteLevel {
    /// The tokenizer of a model and what stands around it, as `reference` has them; none if it is of another kind. What
    /// `fast` does not let pass is not looked at again.
    pub fn new(bpe: Bpe, around: &Around, reference: &HfTokenizer) -> Option<Self> {
        if !around.normalizer.is_null() {
            return None;
        }
        let splitter = splitter(&around.pre_tokenizer)?;
        let tokens = &around.added_tokens;
        let added = if tokens.is_empty() { None } else { Some(Added::new(tokens, reference)?) };
        let ids = |special| Some(reference.encode_fast("a", special).ok()?.get_ids().to_vec());
        let (plain, special) = (ids(false)?, ids(true)?);
        let start = special.windows(plain.len()).position(|ids| ids == plain)?;
        let (before, behind) = (special[..start].to_vec(), special[start + plain.len()..].to_vec());
        Some(Self { added, splitter, bpe, before, behind })
    }

    /// The ids of a text, with those that the post-processor adds if `special`.
    pub fn encode(&self, text: &str, special: bool) -> Vec<u32> {
        // Japanese has some seven bytes a token, English four.
        let mut ids = Vec::with_capacity(text.len() / 4 + 16);
        let mut symbols = Vec::new();
        if special {
            ids.extend(&self.before);
        }
        let mut between = |text: &str, ids: &mut Vec<u32>| {
            self.splitter.split(text, |piece| self.bpe.encode(piece, &mut symbols, ids));
        };
        let mut start = 0;
        if let Some(added) = &self.added {
            for found in added.search.find_iter(text) {
                between(&text[start..found.start()], &mut ids);
                ids.push(added.ids[found.pattern().as_usize()]);
                start = found.end();
            }
        }
        between(&text[start..], &mut ids);
        if special {
            ids.extend(&self.behind);
        }
        ids
    }
}

impl Added {
    fn new(tokens: &[Json], reference: &HfTokenizer) -> Option<Self> {
        // The reference looks for tokens that are normalized after the others, and not with them.
        if tokens.iter().any(|token| token["normalized"] != tokens[0]["normalized"]) {
            return None;
        }
        let texts = tokens.iter().map(|token| token["content"].as_str().filter(|text| !text.is_empty()));
        let texts: Vec<&str> = texts.collect::<Option<_>>()?;
        let ids = texts.iter().map(|text| reference.token_to_id(text)).collect::<Option<_>>()?;
        let search = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts).ok()?;
        Some(Self { search, ids })
    }
}

/// `ByteLevel`, with its expression or behind one.
fn splitter(json: &Json) -> Option<Splitter> {
    let level = |json: &Json, regex: bool| {
        let is_there = json["type"] == "ByteLevel" && json["add_prefix_space"] == false;
        // Left out, the expression is used.
        is_there && json["use_regex"].as_bool().unwrap_or(true) == regex
    };
    if level(json, true) {
        return Some(Splitter::Gpt2);
    }
    match json["pretokenizers"].as_array()?.as_slice() {
        [only] if level(only, true) => Some(Splitter::Gpt2),
        [split, then] if level(then, false) => {
            let isolates = split["type"] == "Split" && split["behavior"] == "Isolated" && split["invert"] == false;
            Splitter::of_regex(split["pattern"]["Regex"].as_str().filter(|_| isolates)?)
        }
        _ => None,
    }
}
