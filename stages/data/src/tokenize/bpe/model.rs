//! A BPE model out of a tokenizer.json.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::Merge;

/// A byte-level BPE model.
#[derive(Debug)]
pub struct Model {
    /// Bytes → id.
    pub tokens: HashMap<Vec<u8>, u32>,
    /// In the order of their ranks.
    pub merges: Vec<Merge>,
    /// A piece that is a token is taken whole.
    pub ignore_merges: bool,
}

impl Model {
    /// None if it is not what it says to be: two tokens have an id, or a rule is of what is no token.
    pub fn of_json(json: &Json) -> Option<Self> {
        let bytes = byte_of_char();
        let decode = |text: &str| text.chars().map(|char| bytes.get(&char).copied()).collect::<Option<Vec<u8>>>();
        let vocabulary = json["vocab"].as_object()?;
        let mut tokens = HashMap::with_capacity(vocabulary.len());
        let mut taken = std::collections::HashSet::with_capacity(vocabulary.len());
        for (text, id) in vocabulary {
            let id = u32::try_from(id.as_u64()?).ok()?;
            if !taken.insert(id) {
                return None;
            }
            // What is written in other characters is met by no text.
            if let Some(token) = decode(text) {
                tokens.insert(token, id);
            }
        }
        let merge = |rule: &Json| {
            let (left, right) = match rule {
                Json::String(both) => both.split_once(' ')?,
                _ => (rule[0].as_str()?, rule[1].as_str()?),
            };
            let (left, right) = (decode(left)?, decode(right)?);
            let merged = [left.as_slice(), right.as_slice()].concat();
            Some(Merge { left: *tokens.get(&left)?, right: *tokens.get(&right)?, merged: *tokens.get(&merged)? })
        };
        let merges = json["merges"].as_array()?.iter().map(merge).collect::<Option<Vec<_>>>()?;
        Some(Self { ignore_merges: json["ignore_merges"] == true, tokens, merges })
    }
}

/// The characters that byte-level models write for bytes: the printable ones of Latin-1 for themselves, and those from
/// U+0100 on for the others in their order.
pub fn byte_of_char() -> HashMap<char, u8> {
    let is_itself = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=u8::MAX).filter(|byte| !is_itself(byte)).zip('\u{100}'..);
    let themselves = (0..=u8::MAX).filter(is_itself).map(|byte| (char::from(byte), byte));
    others.map(|(byte, char)| (char, byte)).chain(themselves).collect()
}
