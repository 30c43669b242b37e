//! A BPE model out of a tokenizer.json, which has megabytes: its strings are looked at where they stand.

use std::{borrow::Cow, fmt};

use ahash::{AHashMap, AHashSet};
use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value as Json;
use tokenizers::models::bpe::BPE;

use super::Merge;

/// A byte-level BPE model.
#[derive(Debug)]
pub struct Model {
    /// Bytes → id.
    pub tokens: AHashMap<Vec<u8>, u32>,
    /// In the order of their ranks.
    pub merges: Vec<Merge>,
    /// A piece that is a token is taken whole.
    pub ignore_merges: bool,
}

/// `model` in a tokenizer.json, as far as byte-level BPE has it.
#[derive(Deserialize)]
pub struct Written<'t> {
    #[serde(rename = "type", default)]
    kind: Json,
    #[serde(default)]
    dropout: Json,
    #[serde(default)]
    unk_token: Json,
    #[serde(default)]
    continuing_subword_prefix: Json,
    #[serde(default)]
    end_of_word_suffix: Json,
    #[serde(default)]
    fuse_unk: Json,
    #[serde(default)]
    byte_fallback: Json,
    #[serde(default)]
    ignore_merges: Json,
    #[serde(borrow)]
    vocab: Tokens<'t>,
    #[serde(borrow)]
    merges: Vec<Rule<'t>>,
}

struct Tokens<'t>(Vec<(Text<'t>, u32)>);

#[derive(Deserialize)]
struct Text<'t>(#[serde(borrow)] Cow<'t, str>);

/// What a rule joins.
struct Rule<'t>(Cow<'t, str>, Cow<'t, str>);

impl Written<'_> {
    /// Whether it has nothing that would make other ids of the same tokens and rules.
    pub fn is_plain(&self) -> bool {
        let others = [
            &self.dropout,
            &self.unk_token,
            &self.continuing_subword_prefix,
            &self.end_of_word_suffix,
            &self.fuse_unk,
            &self.byte_fallback,
        ];
        let is_off = |value: &&Json| matches!(value, Json::Null | Json::Bool(false)) || value.as_str() == Some("");
        self.kind == "BPE" && others.iter().all(is_off)
    }

    /// The same model of the reference's; what is not plain is not in it. None if it is damaged.
    pub fn reference(&self) -> Option<BPE> {
        let tokens: AHashMap<String, u32> =
            self.vocab.0.iter().map(|(text, id)| (text.0.clone().into_owned(), *id)).collect();
        let owned = |text: &Cow<'_, str>| text.clone().into_owned();
        let merges = self.merges.iter().map(|Rule(left, right)| (owned(left), owned(right))).collect();
        BPE::builder().vocab_and_merges(tokens, merges).ignore_merges(self.ignore_merges == true).build().ok()
    }

    /// None if it is not what it says to be: two tokens have an id, or a rule is of what is no token.
    pub fn model(&self) -> Option<Model> {
        let byte_of = byte_of_char();
        let decode = |text: &str, bytes: &mut Vec<u8>| {
            text.chars().all(|char| match byte_of.get(char as usize) {
                Some(Some(byte)) => {
                    bytes.push(*byte);
                    true
                }
                _ => false,
            })
        };
        let mut tokens = AHashMap::with_capacity(self.vocab.0.len());
        let mut taken = AHashSet::with_capacity(self.vocab.0.len());
        for (text, id) in &self.vocab.0 {
            if !taken.insert(*id) {
                return None;
            }
            let mut token = Vec::with_capacity(text.0.len());
            // What is written in other characters is met by no text.
            if decode(&text.0, &mut token) {
                tokens.insert(token, *id);
            }
        }
        let mut both = Vec::new();
        let mut merge = |Rule(left, right): &Rule<'_>| {
            both.clear();
            let is_left = decode(left, &mut both);
            let middle = both.len();
            if !is_left || !decode(right, &mut both) {
                return None;
            }
            let id = |token: &[u8]| tokens.get(token).copied();
            Some(Merge { left: id(&both[..middle])?, right: id(&both[middle..])?, merged: id(&both)? })
        };
        let merges = self.merges.iter().map(&mut merge).collect::<Option<Vec<_>>>()?;
        Some(Model { ignore_merges: self.ignore_merges == true, tokens, merges })
    }
}

/// By character: the byte that byte-level models write it for. These are the printable ones of Latin-1 for themselves, and
/// those from U+0100 on for the others in their order.
pub fn byte_of_char() -> Vec<Option<u8>> {
    let is_itself = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut bytes: Vec<Option<u8>> = (0..=u8::MAX).map(|byte| Some(byte).filter(is_itself)).collect();
    bytes.extend((0..=u8::MAX).filter(|byte| !is_itself(byte)).map(Some));
    bytes
}

impl<'de: 't, 't> Deserialize<'de> for Tokens<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Tokens<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tokens<'de>, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = map.next_entry()? {
                    tokens.push(token);
                }
                Ok(Tokens(tokens))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

impl<'de: 't, 't> Deserialize<'de> for Rule<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Rule<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two tokens, as a list or with a space between them")
            }
            fn visit_borrowed_str<E: Error>(self, both: &'de str) -> Result<Rule<'de>, E> {
                let (left, right) = both.split_once(' ').ok_or_else(|| E::custom("a rule of one token"))?;
                Ok(Rule(left.into(), right.into()))
            }
            fn visit_str<E: Error>(self, both: &str) -> Result<Rule<'de>, E> {
                let (left, right) = both.split_once(' ').ok_or_else(|| E::custom("a rule of one token"))?;
                Ok(Rule(left.to_owned().into(), right.to_owned().into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Rule<'de>, A::Error> {
                let mut next =
                    || items.next_element::<Text<'de>>()?.ok_or_else(|| A::Error::custom("a rule of one token"));
                let (left, right) = (next()?.0, next()?.0);
                match items.next_element::<IgnoredAny>()? {
                    None => Ok(Rule(left, right)),
                    Some(_) => Err(A::Error::custom("a rule of three tokens")),
                }
            }
        }
        deserializer.deserialize_any(Pair)
    }
}
