//! Talking with a model: prompts as text go in, text comes out while it is made.
//!
//! [`Model`] is what is known of it without starting anything: what cannot work is said by it. [`Session`] is the worker
//! that has it in memory.

mod chat;
mod session;
mod stream;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use flow_core::Diagnostic;
use flow_plan::{Inference, ModelConfig};
use serde_json::{Map, Value as Json};

use crate::{
    facts::{named, read_json},
    tokenize::{Files, Tokenizer},
};

pub use chat::Message;
pub use flow_plan::{Device, Ending, Precision, Sampling};
pub use session::{Completion, Prompt, Session, Setting, Told};

/// A Hugging Face directory that can be asked.
#[derive(Debug)]
pub struct Model {
    dir: PathBuf,
    config: ModelConfig,
    tokenizer: Tokenizer,
    end: Vec<u32>,
    /// Of the weights as they are stored.
    precision: Precision,
}

impl Model {
    /// Reads all but the weights.
    ///
    /// # Errors
    /// It is no model that can be asked, or has no tokenizer.
    pub fn open(dir: &Path) -> Result<Self> {
        ensure!(dir.is_dir(), "{} is not a directory", dir.display());
        let config = ModelConfig::read(dir)?;
        let tokenizer = Files::find(dir).and_then(|files| Tokenizer::load(&files))?;
        let raw: Map<String, Json> = read_json(&dir.join("config.json"))?;
        let stored = raw.get("dtype").or_else(|| raw.get("torch_dtype")).and_then(Json::as_str);
        let precision = if stored.is_none_or(|name| name == "float32") { Precision::Fp32 } else { Precision::Bf16 };
        let generation: Map<String, Json> =
            named(dir, "generation_config.json").as_deref().map(read_json).transpose()?.unwrap_or_default();
        let said = generation.get("eos_token_id").filter(|ids| !ids.is_null()).or_else(|| raw.get("eos_token_id"));
        let mut end = said.map(ids).transpose()?.unwrap_or_default();
        end.extend(tokenizer.special_id("eos_token").ok().filter(|id| !end.contains(id)));
        Ok(Self { dir: dir.to_owned(), config, tokenizer, end, precision })
    }

    /// The tokens that a prompt and what is made of it have at most.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.config.max_position_embeddings
    }

    /// Why so many ranks cannot share its layers, if so.
    #[must_use]
    pub fn unshared(&self, ranks: usize) -> Option<Diagnostic> {
        Inference::unshared(&self.config, ranks)
    }

    /// The tokens of a text, with what the tokenizer puts before it.
    ///
    /// # Errors
    /// It has none, none of them is followed by anything, or the model does not have one of them.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.checked(self.tokenizer.encode_reference(text, true)?)
    }

    /// The tokens of a chat, as the model's template says it, up to where the assistant speaks.
    ///
    /// # Errors
    /// It has no template, or as [`Model::encode`].
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let text = chat::prompt(&self.dir, &self.tokenizer, messages)?;
        self.checked(self.tokenizer.encode_reference(&text, false)?)
    }

    fn checked(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        ensure!(!ids.is_empty(), "the prompt has no tokens");
        let positions = self.positions();
        ensure!(
            ids.len() < positions,
            "the prompt has {} tokens, and the model's {positions} positions must hold it and what is made of it",
            ids.len()
        );
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.config.vocab_size) {
            bail!("token {id} of the prompt is not in the model's vocabulary of {}", self.config.vocab_size);
        }
        Ok(ids)
    }
}

/// One id or several.
fn ids(json: &Json) -> Result<Vec<u32>> {
    let all = json.as_array().map_or_else(|| std::slice::from_ref(json), Vec::as_slice);
    let id = |json: &Json| json.as_u64().and_then(|id| u32::try_from(id).ok());
    all.iter().map(id).collect::<Option<_>>().with_context(|| format!("`eos_token_id` is {json}"))
}
