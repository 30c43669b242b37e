//! A tokenizer as `transformers` would load it from the same directory, with a faster encoder for those where that one is known
//! to give the same ids; or a model of SentencePiece, as its own library reads it.

use std::{
    panic::resume_unwind,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use flow_core::{Digest, Input};
use tokenizers::Tokenizer as HfTokenizer;

use super::{
    fast::{self, Fast, File},
    files::{Config, Files, ModelFiles},
    sentencepiece::SentencePiece,
    transformers::{as_transformers_does, gpt2},
};

/// A loaded tokenizer. Encodes from many threads at once.
pub struct Tokenizer {
    reference: Reference,
    pub(super) fast: Option<Fast>,
    config: Config,
}

/// What ids are measured by.
enum Reference {
    HuggingFace(Box<HfTokenizer>),
    /// With the ids that are put before and behind.
    SentencePiece {
        model: Box<SentencePiece>,
        before: Option<u32>,
        behind: Option<u32>,
    },
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
        for file in files.paths() {
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
        let config = files.config()?;
        match &files.model {
            ModelFiles::Json(path) => {
                let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                Self::of_json(&text, path, config)
            }
            ModelFiles::Gpt2 { vocabulary, merges } => {
                Self::of_json(&gpt2(vocabulary, merges, &config)?, vocabulary, config)
            }
            ModelFiles::SentencePiece(path) => Self::of_sentencepiece(path, config),
        }
    }

    fn of_json(text: &[u8], path: &Path, config: Config) -> Result<Self> {
        let name = path.display();
        let file = File::read(text);
        // Both take their time, and neither needs the other.
        let (hf, bpe) = thread::scope(|scope| {
            let bpe = scope.spawn(|| file.as_ref().and_then(File::bpe));
            (file.as_ref().and_then(File::reference), bpe.join())
        });
        // What it does not give out of its parts it reads, or says why not.
        let hf = hf.map_or_else(|| HfTokenizer::from_bytes(text), Ok);
        let mut hf = hf.map_err(|error| anyhow!("{name}: {error}"))?;
        let bpe = bpe.unwrap_or_else(|panic| resume_unwind(panic));
        as_transformers_does(&mut hf, &config).with_context(|| format!("beside {name}"))?;
        let splits_special = config.truth("split_special_tokens") == Some(true);
        let fast = file.filter(|_| !splits_special).and_then(|_| fast::load(bpe, &hf));
        Ok(Self { reference: Reference::HuggingFace(Box::new(hf)), fast, config })
    }

    fn of_sentencepiece(path: &Path, config: Config) -> Result<Self> {
        let model = Box::new(SentencePiece::load(path)?);
        for token in config.declared()?.into_iter().map(|token| token.content) {
            ensure!(
                model.id(&token).is_some(),
                "tokenizer_config.json beside {} has a token `{token}` that the model has not: \
                 `AutoTokenizer.from_pretrained(…).save_pretrained(…)` makes a tokenizer.json of both",
                path.display()
            );
        }
        let put = |flag: &str, name: &str, default: bool| {
            let is_wanted = config.truth(flag).unwrap_or(default);
            let token = || config.special(name).with_context(|| format!("`{flag}` is set, but `{name}` is not"));
            let id = |token| model.id(token).with_context(|| format!("the model has no piece `{token}`"));
            is_wanted.then(|| token().and_then(id)).transpose()
        };
        let before = put("add_bos_token", "bos_token", config.puts_bos())?;
        let behind = put("add_eos_token", "eos_token", false)?;
        Ok(Self { reference: Reference::SentencePiece { model, before, behind }, fast: None, config })
    }

    /// How many tokens it has, added ones included: `len(tokenizer)`.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        match &self.reference {
            Reference::HuggingFace(hf) => hf.get_vocab_size(true),
            Reference::SentencePiece { model, .. } => model.vocabulary(),
        }
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
        let id = match &self.reference {
            Reference::HuggingFace(hf) => hf.token_to_id(token),
            Reference::SentencePiece { model, .. } => model.id(token),
        };
        id.with_context(|| format!("the tokenizer has no token `{token}`"))
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
        match &self.reference {
            Reference::HuggingFace(hf) => {
                let encoding = hf.encode_fast(text, special).map_err(|error| anyhow!("{error}"))?;
                Ok(encoding.get_ids().to_vec())
            }
            Reference::SentencePiece { model, before, behind } => {
                let mut ids = model.encode(text);
                if special {
                    ids.splice(0..0, *before);
                    ids.extend(behind);
                }
                Ok(ids)
            }
        }
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
        match &self.reference {
            Reference::HuggingFace(hf) => hf.decode(ids, false).map_err(|error| anyhow!("{error}")),
            Reference::SentencePiece { model, .. } => Ok(model.decode(ids)),
        }
    }

    /// The text of ids, without special tokens.
    ///
    /// # Errors
    /// The tokenizer cannot decode.
    pub fn decode_plain(&self, ids: &[u32]) -> Result<String> {
        match &self.reference {
            Reference::HuggingFace(hf) => hf.decode(ids, true).map_err(|error| anyhow!("{error}")),
            Reference::SentencePiece { model, .. } => Ok(model.decode(ids)),
        }
    }

    /// The text of `eos_token`, `bos_token`, …, if the configuration names one.
    #[must_use]
    pub fn special(&self, name: &str) -> Option<&str> {
        self.config.special(name)
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
