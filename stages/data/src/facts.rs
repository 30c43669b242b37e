//! What a directory of a model or a tokenizer says of itself before anything runs:
//!
//! - `model_config`: the object in `config.json`; `vocab_size` and `max_position_embeddings` from it
//! - `tokenizer_vocab`: how many tokens `tokenizer.json` has, added ones included; `max_token_id`: the largest of their ids

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, PoisonError},
    time::SystemTime,
};

use anyhow::{Context, Result};
pub use flow_core::Facts;
use flow_core::{Check, Known};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value as Json;

/// The facts about a file or a directory that exists.
///
/// # Errors
/// `config.json` or `tokenizer.json` is there and cannot be read.
pub fn of_path(path: &Path) -> Result<Facts> {
    let mut facts = Facts::new();
    if let Some(path) = named(path, "config.json") {
        let config: Json = read_json(&path)?;
        for name in ["vocab_size", "max_position_embeddings"] {
            if let Some(value) = config.get(name).filter(|value| value.is_u64()) {
                facts.insert(name.to_owned(), value.clone());
            }
        }
        if config.is_object() {
            facts.insert("model_config".to_owned(), config);
        }
    }
    if let Some(path) = named(path, "tokenizer.json") {
        let (count, max) = tokenizer_sizes(&path)?;
        facts.insert("tokenizer_vocab".to_owned(), count.into());
        facts.insert("max_token_id".to_owned(), max.into());
    }
    Ok(facts)
}

/// The facts about an input: what the stage that makes it says, or what is there already shows.
///
/// # Errors
/// As [`of_path`].
pub fn of(known: &Known) -> Result<Facts> {
    match &known.path {
        Some(path) if known.facts.is_empty() => of_path(path),
        _ => Ok(known.facts.clone()),
    }
}

/// The facts about the inputs of a port, together, without what is said of their makers alone; what cannot be read is said
/// of the port.
pub fn of_port(check: &mut Check<'_>, port: &str) -> Facts {
    let (mut facts, mut errors) = (Facts::new(), Vec::new());
    for read in check.input(port).iter().map(of) {
        match read {
            Ok(more) => facts.extend(more.into_iter().filter(|(name, _)| name != "plan_notes")),
            Err(error) => errors.push(crate::diagnostic(&error)),
        }
    }
    for error in errors {
        check.error(port, error);
    }
    facts
}

/// How many tokens a `tokenizer.json` has, and the largest id. Every shard asks, and the file has megabytes: an answer
/// holds as long as length and time of the file do.
fn tokenizer_sizes(path: &Path) -> Result<(u64, u64)> {
    type Known = HashMap<PathBuf, (Option<(u64, SystemTime)>, (u64, u64))>;
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
    let state = path.metadata().ok().and_then(|file| Some((file.len(), file.modified().ok()?)));
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, sizes)) = known.get(path).filter(|known| known.0.is_some() && known.0 == state) {
        return Ok(*sizes);
    }
    let sizes = read_json::<Sizes>(path)?.count_and_max();
    known.insert(path.to_owned(), (state, sizes));
    Ok(sizes)
}

/// The file of this name: in the directory `path`, or `path` itself.
pub fn named(path: &Path, name: &str) -> Option<PathBuf> {
    let candidate = if path.is_dir() { path.join(name) } else { path.to_owned() };
    (candidate.is_file() && candidate.file_name().is_some_and(|it| it == name)).then_some(candidate)
}

/// Reads a JSON file.
///
/// # Errors
/// It cannot be read, or does not hold a `T`.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    // From memory a parser is several times as fast as from a file.
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not what it should be", path.display()))
}

/// What of a `tokenizer.json` its size follows from.
#[derive(Deserialize)]
struct Sizes {
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
}

#[derive(Deserialize)]
struct Model {
    vocab: Vocabulary,
}

/// Token → id; a list of (token, score) has its places as ids.
struct Vocabulary(HashMap<String, u64>);

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = Vocabulary;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let mut tokens = HashMap::new();
                while let Some((token, id)) = map.next_entry()? {
                    tokens.insert(token, id);
                }
                Ok(Vocabulary(tokens))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vocabulary, A::Error> {
                let mut tokens = HashMap::new();
                while let Some((token, _)) = items.next_element::<(String, IgnoredAny)>()? {
                    tokens.insert(token, tokens.len() as u64);
                }
                Ok(Vocabulary(tokens))
            }
        }
        deserializer.deserialize_any(Tokens)
    }
}

impl Sizes {
    fn count_and_max(self) -> (u64, u64) {
        let mut tokens = self.model.vocab.0;
        tokens.extend(self.added_tokens.into_iter().map(|token| (token.content, token.id)));
        (tokens.len() as u64, tokens.values().copied().max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_added_tokens_once() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let tokens = r#"[{"id":1,"content":"b","special":true},{"id":9,"content":"<s>"}]"#;
        write(
            "tokenizer.json",
            &format!(r#"{{"added_tokens":{tokens},"model":{{"vocab":{{"a":0,"b":1}},"merges":[]}}}}"#),
        );
        let facts = of_path(directory.path()).unwrap();
        assert_eq!((facts["tokenizer_vocab"].as_u64(), facts["max_token_id"].as_u64()), (Some(3), Some(9)));
        assert!(!facts.contains_key("vocab_size"));

        write("tokenizer.json", r#"{"model":{"vocab":[["a",-1.5],["b",-2]]}}"#);
        write("config.json", r#"{"vocab_size":8192,"max_position_embeddings":512,"model_type":"llama"}"#);
        let facts = of_path(directory.path()).unwrap();
        assert_eq!((facts["tokenizer_vocab"].as_u64(), facts["max_token_id"].as_u64()), (Some(2), Some(1)));
        assert_eq!((facts["vocab_size"].as_u64(), facts["max_position_embeddings"].as_u64()), (Some(8192), Some(512)));
        assert_eq!(facts["model_config"]["model_type"], "llama");
        assert_eq!(of_path(&directory.path().join("config.json")).unwrap().len(), 3);

        write("tokenizer.json", "{");
        assert!(format!("{:#}", of_path(directory.path()).unwrap_err()).contains("tokenizer.json"));
    }
}
