//! What settings say of the network: `connections`, and the `[mirrors]` table.

use std::{collections::BTreeMap, fmt};

use flow_core::{Diagnostic, Table, Value};
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

/// What URLs begin with → what stands there instead.
pub(crate) type Mirrors = BTreeMap<String, OneOrMore>;

/// A text, or a list of them; an empty list takes back what another file says.
#[derive(Debug)]
pub(crate) struct OneOrMore(pub Vec<String>);

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = OneOrMore;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the beginning of a URL, or a list of them")
            }
            fn visit_str<E>(self, text: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OneOrMore, A::Error> {
                let mut texts = Vec::new();
                while let Some(item) = items.next_element()? {
                    texts.push(item);
                }
                Ok(OneOrMore(texts))
            }
        }
        deserializer.deserialize_any(Texts)
    }
}

/// What is wrong with the mirrors of a file: each is the beginning of a URL, as is what it stands for.
pub(crate) fn check(mirrors: &Mirrors, file: &Value) -> Vec<Diagnostic> {
    let table = file.as_table().and_then(|table| table.get("mirrors")?.as_table());
    let mut errors = Vec::new();
    for (start, _, value) in table.map_or(&[][..], |table: &Table| &table.entries) {
        let Some(OneOrMore(to)) = mirrors.get(start) else { continue };
        for bad in [start].into_iter().chain(to).filter(|text| !is_start(text)) {
            let error = Diagnostic::new(format!("`{bad}` is not the beginning of a URL")).at(value.span.clone());
            errors.push(error.hint("https://… or http://…; HF_ENDPOINT names another hub"));
        }
    }
    errors
}

fn is_start(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(char::is_whitespace))
}
