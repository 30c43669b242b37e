//! [`ResultRecord`]: the file that says what a key's result is.

use std::collections::BTreeMap;

use anyhow::Result;
use flow_core::{Digest, Entry, Key, KeyParts, Tree};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::remote::PublicKey;

/// The version of the record's format.
pub(crate) const FORMAT: u32 = 1;

/// `results/ab/<key>.json`: a result, and what it was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResultRecord {
    /// The version of this format: 1.
    pub format: u32,
    /// The result's name: the hash of `parts`.
    pub key: Key,
    /// What it was made from.
    pub parts: KeyParts,
    /// The files.
    pub tree: Tree,
    /// How long it took, in seconds.
    pub cost: f64,
    /// When it was made, in seconds since 1970, UTC.
    pub created: f64,
    /// The machine that made it.
    pub host: String,
    /// flow's version that made it.
    pub version: String,
    /// Its objects are not here, because they were freed or nobody asked the team for them: what it is is known, and who
    /// needs it has it fetched or made again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub freed: bool,
    /// Who gave it to the team, if it came from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<Origin>,
}

/// Who gave a result to the team, when, and how its objects lie there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// `user@host`, as he says.
    pub by: String,
    /// In seconds since 1970, UTC, as his clock says.
    pub time: f64,
    /// The objects that lie there compressed, with their sizes as such.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub compressed: BTreeMap<Digest, u64>,
    /// Whose signature it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PublicKey>,
    /// Ed25519, in hexadecimal digits, over the canonical JSON of the record without this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

impl Origin {
    /// How many bytes of an entry go over the wire.
    #[must_use]
    pub fn wire_size(&self, entry: &Entry) -> u64 {
        self.compressed.get(&entry.digest).copied().unwrap_or(entry.size)
    }
}

/// Why a record cannot be used.
#[derive(Debug)]
pub(crate) enum Bad {
    /// It is of another format: not wrong, and somebody else's flow may read it.
    Format(u32),
    /// It is not what it says.
    Wrong(String),
    /// What it says is unknown: too many open files, no permission, a failing disk.
    Unreadable(std::io::Error),
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Format(format) => write!(f, "its format is {format} and this flow knows {FORMAT}"),
            Self::Wrong(why) => f.write_str(why),
            Self::Unreadable(error) => write!(f, "it cannot be read: {error}"),
        }
    }
}

impl ResultRecord {
    /// Reads a record and checks all that it says of itself: key and parts agree, and the names may stand in a tree.
    pub(crate) fn parse(bytes: &[u8], key: &Key) -> Result<Self, Bad> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        // Another format may have other fields.
        let mut record: Self = match serde_json::from_slice(bytes) {
            Ok(record) => record,
            Err(e) => match serde_json::from_slice(bytes) {
                Ok(Head { format }) if format != FORMAT => return Err(Bad::Format(format)),
                _ => return Err(Bad::Wrong(format!("it does not parse: {e}"))),
            },
        };
        if record.format != FORMAT {
            return Err(Bad::Format(record.format));
        }
        if record.key != *key || record.parts.key() != *key {
            return Err(Bad::Wrong("its key is not that of its parts".into()));
        }
        // What was deserialized was not checked for order, double and unsafe names.
        record.tree = Tree::new(record.tree.entries().to_vec()).map_err(Bad::Wrong)?;
        Ok(record)
    }
}

/// A record as it was written, with the mark that its objects are elsewhere or without it. A field that this flow does
/// not know stays, as it is signed.
pub(crate) fn marked(record: &[u8], freed: bool) -> Result<Vec<u8>> {
    let mut json: Map<String, Value> = serde_json::from_slice(record)?;
    json.remove("freed");
    if freed {
        json.insert("freed".into(), true.into());
    }
    Ok(serde_json::to_vec(&json)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow_core::KEY_FORMAT;
    use proptest::prelude::*;
    use serde_json::json;

    fn sample() -> (Key, Value) {
        let inputs = [("input".to_owned(), vec![Digest::of(b"i")])].into();
        let parts = KeyParts { format: KEY_FORMAT, kind: "k".into(), version: 1, params: json!({"a": 1}), inputs };
        let tree = json!({"entries": [{"name": "a", "digest": Digest::of(b"x"), "size": 1}]});
        let key = parts.key();
        let record = json!({"format": 1, "key": key, "parts": parts, "tree": tree, "cost": 1.5, "created": 2.0,
            "host": "h", "version": "0"});
        (key, record)
    }

    fn parse(key: &Key, record: &Value) -> Result<ResultRecord, String> {
        ResultRecord::parse(record.to_string().as_bytes(), key).map_err(|bad| bad.to_string())
    }

    #[test]
    fn a_record_must_be_what_it_says() {
        let (key, record) = sample();
        assert_eq!(parse(&key, &record).unwrap().tree.entries()[0].name, "a");
        let changed = |path: &str, value: Value| {
            let mut record = record.clone();
            *record.pointer_mut(path).unwrap() = value;
            parse(&key, &record).unwrap_err()
        };
        assert!(changed("/format", json!(2)).contains("format is 2"));
        assert!(changed("/parts/params/a", json!(2)).contains("not that of its parts"));
        assert!(changed("/key", json!(Key([1; 32]))).contains("not that of its parts"));
        for name in ["../../../etc/passwd", "/etc/passwd", "a/./b", ""] {
            assert!(changed("/tree/entries/0/name", json!(name)).contains("not a name"), "{name}");
        }
        let entry = record["tree"]["entries"][0].clone();
        assert!(changed("/tree/entries", json!([entry, entry])).contains("twice"));
        assert!(changed("/tree", json!(3)).contains("does not parse"));
        assert!(parse(&Key([2; 32]), &record).is_err());
        assert!(matches!(ResultRecord::parse(br#"{"format":9,"new":1}"#, &key), Err(Bad::Format(9))));
    }

    /// What of a record that was read can be relied on, whatever bytes it was read from.
    fn is_sound(record: &ResultRecord, key: &Key) -> bool {
        let names: Vec<&str> = record.tree.entries().iter().map(|entry| entry.name.as_str()).collect();
        record.key == *key
            && record.parts.key() == *key
            && names.is_sorted_by(|a, b| a < b)
            && names.iter().all(|name| flow_core::is_safe_name(name))
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_nothing_wrong_is_believed(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let (key, _) = sample();
            prop_assert!(ResultRecord::parse(&bytes, &key).is_err());
        }

        #[test]
        fn a_record_that_was_tampered_with_is_refused_or_sound(
            cuts in prop::collection::vec((0usize..600, 0usize..20, prop::collection::vec(any::<u8>(), 0..20)), 1..4),
            text in any::<bool>(),
        ) {
            let (key, record) = sample();
            let mut bytes = record.to_string().into_bytes();
            for (at, gone, mut new) in cuts {
                // What JSON is made of is read further than what it is not.
                const OF_JSON: &[u8] = b"0a/.{}[]\":, -e\\";
                if text {
                    new.iter_mut().for_each(|byte| *byte = OF_JSON[usize::from(*byte) % OF_JSON.len()]);
                }
                let at = at.min(bytes.len());
                let end = (at + gone).min(bytes.len());
                bytes.splice(at..end, new);
            }
            if let Ok(read) = ResultRecord::parse(&bytes, &key) {
                prop_assert!(is_sound(&read, &key), "{}", String::from_utf8_lossy(&bytes));
            }
        }
    }
}
