//! [`Key`] and [`KeyParts`]: what goes into a stage, and its name.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{
    Digest,
    digest::{parse_hex, write_hex},
};

/// The version of the key's own definition. Raising it makes every cached result unreachable.
pub const KEY_FORMAT: u32 = 1;

/// The name of a result: BLAKE3 of the canonical JSON of [`KeyParts`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 32]);

/// Everything that decides what a node produces. Stored with the result, so that "why did this run" is a
/// difference of two of these and never a guess.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyParts {
    /// [`KEY_FORMAT`].
    pub format: u32,
    /// The stage kind's name.
    pub kind: String,
    /// The stage kind's version: raised by hand when the same input gives other bytes.
    pub version: u32,
    /// The stage's parameters as it serializes them; operational knobs are not among them.
    pub params: Json,
    /// Port → digests of the trees that enter there, in order.
    pub inputs: BTreeMap<String, Vec<Digest>>,
}

impl KeyParts {
    /// The key of these parts.
    #[must_use]
    pub fn key(&self) -> Key {
        let mut text = String::with_capacity(256);
        text.push_str("{\"format\":");
        text.push_str(&self.format.to_string());
        text.push_str(",\"inputs\":{");
        for (i, (port, digests)) in self.inputs.iter().enumerate() {
            if i > 0 {
                text.push(',');
            }
            write_string(port, &mut text);
            text.push_str(":[");
            for (j, digest) in digests.iter().enumerate() {
                if j > 0 {
                    text.push(',');
                }
                write_string(&digest.to_string(), &mut text);
            }
            text.push(']');
        }
        text.push_str("},\"kind\":");
        write_string(&self.kind, &mut text);
        text.push_str(",\"params\":");
        write_canonical(&self.params, &mut text);
        text.push_str(",\"version\":");
        text.push_str(&self.version.to_string());
        text.push('}');
        Key(*blake3::hash(text.as_bytes()).as_bytes())
    }
}

/// JSON with sorted object keys, no white space, and numbers as `serde_json` writes them.
///
/// Sorted here and not by `serde_json`'s map, whose order depends on a feature that any dependency may turn on.
#[must_use]
pub fn canonical_json(value: &Json) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    text
}

fn write_canonical(value: &Json, out: &mut String) {
    match value {
        Json::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by(|a, b| a.0.cmp(b.0));
            out.push('{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_string(key, out);
                out.push(':');
                write_canonical(value, out);
            }
            out.push('}');
        }
        Json::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        Json::String(text) => write_string(text, out),
        Json::Number(number) => out.push_str(&number.to_string()),
        Json::Bool(true) => out.push_str("true"),
        Json::Bool(false) => out.push_str("false"),
        Json::Null => out.push_str("null"),
    }
}

fn write_string(text: &str, out: &mut String) {
    // Most texts are as they are.
    if text.bytes().any(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        out.push_str(&Json::from(text).to_string());
    } else {
        out.extend(["\"", text, "\""]);
    }
}

impl Key {
    /// The first 12 hexadecimal digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.short())
    }
}

impl FromStr for Key {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse_hex(text).map(Self).ok_or_else(|| format!("`{text}` is not a key: 64 lower-case hexadecimal digits"))
    }
}

crate::serde_as_text!(Key);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parts(params: Json) -> KeyParts {
        KeyParts {
            format: KEY_FORMAT,
            kind: "tokenize".into(),
            version: 1,
            params,
            inputs: BTreeMap::from([("input".into(), vec![Digest::of(b"a")]), ("tokenizer".into(), vec![])]),
        }
    }

    #[test]
    fn the_key_is_the_hash_of_canonical_json() {
        let parts = parts(json!({"json_key": "text", "append_eod": true, "a": [1, 0.5, null, "\u{1}é\""]}));
        let whole = serde_json::to_value(&parts).unwrap();
        assert_eq!(parts.key().0, *blake3::hash(canonical_json(&whole).as_bytes()).as_bytes());
        // Guards the definition: a change here loses every cache in the world, and needs KEY_FORMAT raised.
        assert_eq!(parts.key().to_string(), "28a615f093e268f87e6b2b58b66ec90c23ceda6894f4bb34bd7a76d856aea755");
    }

    #[test]
    fn order_of_parameters_is_no_meaning_and_everything_else_is() {
        let a: Json = serde_json::from_str(r#"{"x":1,"y":{"b":2,"a":3}}"#).unwrap();
        let b: Json = serde_json::from_str(r#"{"y":{"a":3,"b":2},"x":1}"#).unwrap();
        assert_eq!(parts(a.clone()).key(), parts(b).key());
        for other in
            [json!({"x":1,"y":{"b":2,"a":4}}), json!({"x":1.0,"y":{"b":2,"a":3}}), json!({"x":"1","y":{"b":2,"a":3}})]
        {
            assert_ne!(parts(a.clone()).key(), parts(other).key());
        }
        let mut moved = parts(a.clone());
        let digests = moved.inputs.remove("input").unwrap();
        moved.inputs.insert("tokenizer".into(), digests);
        moved.inputs.insert("input".into(), vec![]);
        assert_ne!(moved.key(), parts(a).key());
    }
}
