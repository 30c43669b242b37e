//! The files of a tokenizer, and what its configuration says.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value as Json;
use tokenizers::AddedToken;

use super::sentencepiece::bos_and_eos;
use crate::facts::{named, read_json};

/// What of `tokenizer_config.json` and `special_tokens_map.json` changes ids.
#[derive(Debug, Default)]
pub struct Config(serde_json::Map<String, Json>);

/// The files of a tokenizer.
#[derive(Debug)]
pub struct Files {
    /// What it is made of.
    pub model: ModelFiles,
    config: Option<PathBuf>,
    special: Option<PathBuf>,
    added: Option<PathBuf>,
}

/// What a tokenizer is made of.
#[derive(Debug)]
pub enum ModelFiles {
    /// A `tokenizer.json`, which says all.
    Json(PathBuf),
    /// As GPT-2's lie there.
    Gpt2 { vocabulary: PathBuf, merges: PathBuf },
    /// A SentencePiece `.model`.
    SentencePiece(PathBuf),
}

/// The names of all of them.
pub const FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// What GPT-2's own class takes for all of these.
const GPT2_SPECIAL: &str = "<|endoftext|>";

/// Names of tokens in the configuration.
const SPECIAL: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl Files {
    /// The files of a tokenizer that lie in the directory `path`; or `path` is the `tokenizer.json` or `.model` itself. Of several
    /// a `tokenizer.json` counts, as for `transformers`.
    ///
    /// # Errors
    /// There is no tokenizer.
    pub fn find(path: &Path) -> Result<Self> {
        let sentencepiece = || {
            let is_model = path.is_file() && path.extension().is_some_and(|ending| ending == "model");
            let names = FILES.iter().filter(|name| name.ends_with(".model"));
            if is_model { Some(path.to_owned()) } else { names.filter_map(|name| named(path, name)).next() }
        };
        let gpt2 = || Some((named(path, "vocab.json")?, named(path, "merges.txt")?)).filter(|_| path.is_dir());
        let model = if let Some(json) = named(path, "tokenizer.json") {
            ModelFiles::Json(json)
        } else if let Some(model) = sentencepiece() {
            ModelFiles::SentencePiece(model)
        } else if let Some((vocabulary, merges)) = gpt2() {
            ModelFiles::Gpt2 { vocabulary, merges }
        } else {
            bail!("{} holds no tokenizer.json, SentencePiece .model, or vocab.json with merges.txt", path.display());
        };
        let beside = |name: &str| path.is_dir().then(|| named(path, name)).flatten();
        let [config, special, added] =
            ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"].map(beside);
        Ok(Self { model, config, special, added })
    }

    /// All of them.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let model = match &self.model {
            ModelFiles::Json(one) | ModelFiles::SentencePiece(one) => vec![one],
            ModelFiles::Gpt2 { vocabulary, merges } => vec![vocabulary, merges],
        };
        model.into_iter().chain(&self.config).chain(&self.special).chain(&self.added).map(PathBuf::as_path)
    }

    /// What the configuration says.
    ///
    /// # Errors
    /// A file is there and is no JSON object, or the model is damaged.
    pub fn config(&self) -> Result<Config> {
        let mut config: serde_json::Map<String, Json> =
            self.config.as_deref().map(read_json).transpose()?.unwrap_or_default();
        let special: serde_json::Map<String, Json> =
            self.special.as_deref().map(read_json).transpose()?.unwrap_or_default();
        // The map is from before the configuration knew its tokens, and rules over such a configuration alone.
        let old = !config.contains_key("added_tokens_decoder");
        if let Some(added) = self.added.as_deref().filter(|_| old) {
            config.insert("added_tokens_decoder".into(), decoder(read_json(added)?, &special));
        }
        for (name, value) in special {
            if old || config.get(&name).is_none_or(Json::is_null) {
                config.insert(name, value);
            }
        }
        let mut config = Config(config);
        match &self.model {
            ModelFiles::Json(_) => {}
            ModelFiles::Gpt2 { .. } => {
                ["bos_token", "eos_token", "unk_token"].iter().for_each(|name| config.suppose(name, GPT2_SPECIAL));
            }
            ModelFiles::SentencePiece(path) => {
                let known = ["bos_token", "eos_token"].into_iter().zip(bos_and_eos(path)?);
                known.for_each(|(name, piece)| piece.iter().for_each(|piece| config.suppose(name, piece)));
            }
        }
        Ok(config)
    }
}

/// The `added_tokens_decoder` that a configuration from before there was one stands for: `added_tokens.json` has the tokens
/// and their ids, and `special_tokens_map.json` says which of them are special.
fn decoder(added: serde_json::Map<String, Json>, special: &serde_json::Map<String, Json>) -> Json {
    let one_or_more = |value: &'_ Json| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    let special: Vec<Json> = special.values().flat_map(one_or_more).collect();
    let token = |(text, id): (String, Json)| {
        let special = special.iter().any(|token| content(token) == Some(&text));
        (id.to_string(), serde_json::json!({ "content": text, "special": special, "normalized": !special }))
    };
    Json::Object(added.into_iter().map(token).collect())
}

/// A token in a configuration: its text, or an object with its text as `content`.
fn content(value: &Json) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

impl Config {
    /// The text of `eos_token`, `bos_token`, …
    #[must_use]
    pub fn special(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(content)
    }

    /// Names a token that the configuration does not.
    fn suppose(&mut self, name: &str, token: &str) {
        if self.special(name).is_none() {
            self.0.insert(name.to_owned(), token.into());
        }
    }

    /// What a switch is set to.
    pub fn truth(&self, name: &str) -> Option<bool> {
        self.0.get(name)?.as_bool()
    }

    /// The class that `transformers` would make of it; empty if nothing is said.
    pub fn class(&self) -> &str {
        self.0.get("tokenizer_class").and_then(Json::as_str).unwrap_or_default()
    }

    /// Whether it is of a class that makes its post-processor from the configuration.
    pub fn puts_bos(&self) -> bool {
        ["Llama", "CodeLlama", "Gemma"].iter().any(|family| self.class().starts_with(family))
    }

    /// Tokens that the configuration declares, in the order of their ids; then the special ones without an id.
    ///
    /// # Errors
    /// One of them is none.
    pub fn declared(&self) -> Result<Vec<AddedToken>> {
        let mut declared: Vec<(u32, AddedToken)> = Vec::new();
        if let Some(Json::Object(tokens)) = self.0.get("added_tokens_decoder") {
            for (id, token) in tokens {
                let id = id.parse().with_context(|| format!("added_tokens_decoder: `{id}` is not an id"))?;
                declared.push((id, added_token(token)?));
            }
        }
        declared.sort_by_key(|(id, _)| *id);
        let mut tokens: Vec<AddedToken> = declared.into_iter().map(|(_, token)| token).collect();
        let more = self.0.get("additional_special_tokens").and_then(Json::as_array);
        let special = SPECIAL.iter().filter_map(|name| self.0.get(*name)).chain(more.into_iter().flatten());
        for token in special.filter(|token| content(token).is_some()) {
            let mut token = added_token(token)?;
            token.special = true;
            if tokens.iter().all(|known| known.content != token.content) {
                tokens.push(token);
            }
        }
        Ok(tokens)
    }
}

fn added_token(value: &Json) -> Result<AddedToken> {
    #[derive(Deserialize)]
    struct Flags {
        content: String,
        #[serde(default)]
        single_word: bool,
        #[serde(default)]
        lstrip: bool,
        #[serde(default)]
        rstrip: bool,
        #[serde(default)]
        normalized: Option<bool>,
        #[serde(default)]
        special: bool,
    }
    if let Some(content) = value.as_str() {
        return Ok(AddedToken::from(content, true));
    }
    let flags = Flags::deserialize(value).with_context(|| format!("`{value}` is not a token"))?;
    Ok(AddedToken {
        content: flags.content,
        single_word: flags.single_word,
        lstrip: flags.lstrip,
        rstrip: flags.rstrip,
        normalized: flags.normalized.unwrap_or(!flags.special),
        special: flags.special,
    })
}
