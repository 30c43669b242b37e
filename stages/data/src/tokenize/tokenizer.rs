//! A Hugging Face tokenizer as `transformers` would load it from the same directory, with a faster encoder for the
//! tokenizers where that one is known to give the same ids.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, anyhow, bail};
use flow_core::{Digest, Input};
use serde::Deserialize;
use serde_json::Value as Json;
use tokenizers::{
    AddedToken, PreTokenizerWrapper, Tokenizer as HfTokenizer,
    pre_tokenizers::byte_level::ByteLevel,
    processors::template::{SpecialToken, Template, TemplateProcessing},
};

use super::fast::{self, Fast};
use crate::facts::{named, read_json};

/// A loaded tokenizer. Encodes from many threads at once.
pub struct Tokenizer {
    hf: HfTokenizer,
    fast: Option<Fast>,
    config: Config,
}

/// What of `tokenizer_config.json` and `special_tokens_map.json` changes ids.
#[derive(Debug, Default)]
pub struct Config(serde_json::Map<String, Json>);

/// The files of a tokenizer.
#[derive(Debug)]
pub struct Files {
    tokenizer: PathBuf,
    config: Option<PathBuf>,
    special: Option<PathBuf>,
}

/// The names of all of them.
pub const FILES: &[&str] = &["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

const SPECIAL: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl Files {
    /// The files of a tokenizer that lie in the directory `path`; or `path` is the `tokenizer.json` itself.
    ///
    /// # Errors
    /// There is no `tokenizer.json`.
    pub fn find(path: &Path) -> Result<Self> {
        let Some(tokenizer) = named(path, "tokenizer.json") else {
            let hint = if path.join("tokenizer.model").is_file() {
                "; it has a SentencePiece tokenizer.model, which `AutoTokenizer.from_pretrained(…).save_pretrained(…)` \
                 turns into a tokenizer.json"
            } else {
                ""
            };
            bail!("{} holds no tokenizer.json{hint}", path.display());
        };
        let beside = |name: &str| path.is_dir().then(|| named(path, name)).flatten();
        Ok(Self { tokenizer, config: beside("tokenizer_config.json"), special: beside("special_tokens_map.json") })
    }

    /// What the configuration says.
    ///
    /// # Errors
    /// A file is there and is no JSON object.
    pub fn config(&self) -> Result<Config> {
        let mut config: serde_json::Map<String, Json> =
            self.config.as_deref().map(read_json).transpose()?.unwrap_or_default();
        let special: serde_json::Map<String, Json> =
            self.special.as_deref().map(read_json).transpose()?.unwrap_or_default();
        // The map is from before the configuration knew its tokens, and rules over such a configuration alone.
        let old = !config.contains_key("added_tokens_decoder");
        for (name, value) in special {
            if old || config.get(&name).is_none_or(Json::is_null) {
                config.insert(name, value);
            }
        }
        Ok(Config(config))
    }
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

    fn truth(&self, name: &str) -> Option<bool> {
        self.0.get(name)?.as_bool()
    }

    /// Tokens that the configuration declares, in the order of their ids; then the special ones without an id.
    fn declared(&self) -> Result<Vec<AddedToken>> {
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

/// The last tokenizers of this process: shards are nodes, and each would load the same one again.
static LOADED: Mutex<Vec<(Digest, Arc<Tokenizer>)>> = Mutex::new(Vec::new());

/// More are not kept.
const KEPT: usize = 2;

impl Tokenizer {
    /// The tokenizer of an input.
    ///
    /// # Errors
    /// There is none, or its files are damaged.
    pub fn of_input(input: &Input) -> Result<Arc<Self>> {
        let files = Files::find(&input.path).with_context(|| format!("`tokenizer`: {}", input.name))?;
        let mut hasher = blake3::Hasher::new();
        for file in [Some(&files.tokenizer), files.config.as_ref(), files.special.as_ref()].into_iter().flatten() {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            hasher.update(name.as_bytes());
            let entry = input.tree.get(&name).with_context(|| format!("{} has no {name} by content", input.name))?;
            hasher.update(&entry.digest.0);
        }
        let digest = Digest(*hasher.finalize().as_bytes());
        // Held while loading: another shard waits for this one instead of loading too.
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = loaded.iter().position(|known| known.0 == digest) {
            return Ok(Arc::clone(&loaded[at].1));
        }
        let tokenizer = Arc::new(Self::load(&files)?);
        if loaded.len() == KEPT {
            loaded.remove(0);
        }
        loaded.push((digest, Arc::clone(&tokenizer)));
        Ok(tokenizer)
    }

    /// Loads a tokenizer.
    ///
    /// # Errors
    /// A file is damaged.
    pub fn load(files: &Files) -> Result<Self> {
        let name = files.tokenizer.display();
        let text = std::fs::read(&files.tokenizer).with_context(|| format!("cannot read {name}"))?;
        let mut hf = HfTokenizer::from_bytes(&text).map_err(|error| anyhow!("{name}: {error}"))?;
        let config = files.config()?;
        let changed = as_transformers_does(&mut hf, &config).with_context(|| format!("beside {name}"))?;
        let fast = if config.truth("split_special_tokens") == Some(true) {
            None
        } else if changed {
            fast::load(hf.to_string(false).map_err(|error| anyhow!("{name}: {error}"))?.as_bytes(), &hf)
        } else {
            fast::load(&text, &hf)
        };
        Ok(Self { hf, fast, config })
    }

    /// How many tokens it has, added ones included: `len(tokenizer)`.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.hf.get_vocab_size(true)
    }

    /// The id of the token that `eos_token`, `bos_token`, … names.
    ///
    /// # Errors
    /// The configuration does not name it, or the tokenizer does not have it.
    pub fn special_id(&self, name: &str) -> Result<u32> {
        let token = self.config.special(name).with_context(|| format!("tokenizer_config.json names no `{name}`"))?;
        self.id(token)
    }

    /// The id of a token.
    ///
    /// # Errors
    /// The tokenizer does not have it.
    pub fn id(&self, token: &str) -> Result<u32> {
        self.hf.token_to_id(token).with_context(|| format!("the tokenizer has no token `{token}`"))
    }

    /// Whether the faster encoder may be tried.
    #[must_use]
    pub fn is_fast(&self) -> bool {
        self.fast.is_some()
    }

    /// The ids of a text, from the reference implementation; with what the post-processor adds if `special`.
    ///
    /// # Errors
    /// The tokenizer cannot encode it.
    pub fn encode_reference(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.hf.encode_fast(text, special).map_err(|error| anyhow!("{error}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The same ids from the faster encoder, if there is one; only for who [agrees](Self::agrees).
    ///
    /// # Errors
    /// The tokenizer cannot encode it.
    pub fn encode_fast(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        match &self.fast {
            Some(fast) => fast.encode(text, special),
            None => self.encode_reference(text, special),
        }
    }

    /// The ids of a text, from the faster encoder if it is wanted.
    ///
    /// # Errors
    /// The tokenizer cannot encode it.
    pub fn encode(&self, text: &str, special: bool, fast: bool) -> Result<Vec<u32>> {
        if fast { self.encode_fast(text, special) } else { self.encode_reference(text, special) }
    }

    /// The text of ids, special tokens too.
    ///
    /// # Errors
    /// The tokenizer cannot decode.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.hf.decode(ids, false).map_err(|error| anyhow!("{error}"))
    }

    /// Whether both encoders give the same ids for a text.
    ///
    /// # Errors
    /// The reference cannot encode it.
    pub fn agrees(&self, text: &str, special: bool) -> Result<bool> {
        let Some(fast) = &self.fast else { return Ok(true) };
        let reference = self.encode_reference(text, special)?;
        Ok(fast.encode(text, special).is_ok_and(|ids| ids == reference))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("tokens", &self.vocabulary()).field("fast", &self.is_fast()).finish()
    }
}

/// Changes a tokenizer as `transformers` does when it loads the same directory; tells whether anything changed.
fn as_transformers_does(hf: &mut HfTokenizer, config: &Config) -> Result<bool> {
    // Callers pass neither truncation nor padding, which turns off both.
    let mut changed = hf.get_truncation().is_some() || hf.get_padding().is_some();
    hf.with_truncation(None).map_err(|error| anyhow!("{error}"))?;
    hf.with_padding(None);
    hf.set_encode_special_tokens(config.truth("split_special_tokens").unwrap_or(false));

    let known = hf.get_added_tokens_decoder();
    let missing: Vec<AddedToken> = config
        .declared()?
        .into_iter()
        .filter(|token| !known.values().any(|known| known.content == token.content))
        .collect();
    for token in missing {
        changed = true;
        let added = if token.special { hf.add_special_tokens([token]) } else { hf.add_tokens([token]) };
        added.map_err(|error| anyhow!("{error}"))?;
    }

    if let Some(PreTokenizerWrapper::ByteLevel(level)) = hf.get_pre_tokenizer() {
        let wanted = config.truth("add_prefix_space").unwrap_or(false);
        if level.add_prefix_space != wanted {
            let level = ByteLevel::new(wanted, level.trim_offsets, level.use_regex);
            hf.with_pre_tokenizer(Some(level));
            changed = true;
        }
    }

    // These classes make their post-processor from the configuration, and overrule the one in tokenizer.json.
    let class = config.0.get("tokenizer_class").and_then(Json::as_str).unwrap_or_default();
    let explicit = config.truth("add_bos_token").is_some() || config.truth("add_eos_token").is_some();
    if explicit && ["Llama", "CodeLlama", "Gemma"].iter().any(|family| class.starts_with(family)) {
        let template = bos_and_eos(hf, config)?;
        hf.with_post_processor(Some(template));
        changed = true;
    }
    Ok(changed)
}

/// The post-processor that puts BOS before and EOS behind, as far as the configuration wants them.
fn bos_and_eos(hf: &HfTokenizer, config: &Config) -> Result<TemplateProcessing> {
    let mut template = vec!["$A:0".to_owned()];
    let mut tokens = Vec::new();
    for (flag, name, default) in [("add_bos_token", "bos_token", true), ("add_eos_token", "eos_token", false)] {
        if config.truth(flag).unwrap_or(default) {
            let token = config.special(name).with_context(|| format!("`{flag}` is set, but `{name}` is not"))?;
            let id = hf.token_to_id(token).with_context(|| format!("the tokenizer has no token `{token}`"))?;
            template.insert(if name == "bos_token" { 0 } else { template.len() }, format!("{token}:0"));
            tokens.push(SpecialToken::from((token.to_owned(), id)));
        }
    }
    let template = Template::try_from(template).map_err(|error| anyhow!("{error}"))?;
    TemplateProcessing::builder()
        .single(template)
        .special_tokens(tokens)
        .build()
        .map_err(|error| anyhow!("the post-processor of this tokenizer: {error}"))
}
