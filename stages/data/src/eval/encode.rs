//! Texts → what a model is asked, token for token as lm-evaluation-harness asks it.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail, ensure};
use flow_core::Input;
use flow_plan::{EvalRequest, Generate, ModelConfig, Score};
use serde_json::Value as Json;

use super::{task::Task, windows::windows};
use crate::{curate::text::is_space, facts::read_json, tokenize::Tokenizer};

/// A model, as far as what it is asked depends on it.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Arc<Tokenizer>,
    vocab_size: usize,
    /// Stands before everything that has nothing before it: BOS, or EOS of a tokenizer without.
    prefix: u32,
    prefix_text: String,
    /// End a generation.
    end: Vec<u32>,
    /// Tokens that go in at most.
    pub longest: usize,
    /// The same in windows over a text.
    pub window: usize,
}

/// What is asked of a model about one document, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// How likely is the second after the first?
    Score(String, String),
    /// How likely is a text?
    Text(String),
    /// What comes after it?
    Generate(String),
}

impl Encoder {
    /// Reads what is known of a model.
    ///
    /// # Errors
    /// Its files cannot be read.
    pub fn of_input(model: &Input, config: &ModelConfig, longest: usize, window: usize) -> Result<Self> {
        let tokenizer = Tokenizer::of_input(model)?;
        let prefix = tokenizer.special_id("bos_token").or_else(|_| tokenizer.special_id("eos_token"));
        let prefix = prefix.context("of a tokenizer without BOS and EOS nothing can stand before a text")?;
        let mut end: Vec<u32> = tokenizer.special_id("eos_token").ok().into_iter().collect();
        end.extend(ends_of(&model.path)?.into_iter().filter(|id| !end.contains(id)).collect::<Vec<_>>());
        let prefix_text = tokenizer.decode(&[prefix])?;
        let vocab_size = config.vocab_size;
        Ok(Self { tokenizer, vocab_size, prefix, prefix_text, end, longest, window })
    }

    /// A text's tokens, with what the tokenizer puts before and behind, unless it begins with the prefix already.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode_reference(text, !text.starts_with(&self.prefix_text))
    }

    /// What is asked.
    ///
    /// # Errors
    /// The tokenizer cannot encode it, or it cannot be asked.
    pub fn requests(&self, ask: &Ask, task: &Task) -> Result<Vec<EvalRequest>> {
        let requests = match ask {
            Ask::Score(context, continuation) => vec![EvalRequest::Score(self.pair(context, continuation)?)],
            Ask::Text(text) => self.windows(text, task.score_bos)?.into_iter().map(EvalRequest::Score).collect(),
            Ask::Generate(prompt) => vec![EvalRequest::Generate(self.prompt(prompt, task)?)],
        };
        for request in &requests {
            let (EvalRequest::Score(Score { tokens, .. }) | EvalRequest::Generate(Generate { tokens, .. })) = request;
            if let Some(id) = tokens.iter().find(|id| **id as usize >= self.vocab_size) {
                bail!("token {id} is not in the model's vocabulary of {}", self.vocab_size);
            }
        }
        Ok(requests)
    }

    /// White space at the end of the context goes over to the continuation, both are encoded together, and the continuation is
    /// what then follows after as many tokens as the context has alone. Where that is nothing, because the continuation
    /// melts into the context's last token, it is encoded by itself: the same context stays the ground of comparison.
    fn pair(&self, context: &str, continuation: &str) -> Result<Score> {
        ensure!(!continuation.is_empty(), "what is to be scored is an empty text");
        let trimmed = context.trim_end_matches(is_space);
        let continuation = format!("{}{continuation}", &context[trimmed.len()..]);
        let (mut tokens, follows) = if context.is_empty() {
            let mut follows = self.tokenizer.encode_reference(&continuation, false)?;
            let first = follows.first().is_some_and(|first| *first == self.prefix).then(|| follows.remove(0));
            (vec![first.unwrap_or(self.prefix)], follows)
        } else {
            let before = self.encode(trimmed)?;
            let whole = self.encode(&format!("{trimmed}{continuation}"))?;
            let follows = whole.get(before.len()..).unwrap_or_default().to_vec();
            (if before.is_empty() { vec![self.prefix] } else { before }, follows)
        };
        let follows = match follows.is_empty() {
            true => self.tokenizer.encode_reference(&continuation, false)?,
            false => follows,
        };
        let scored = follows.len();
        ensure!(scored > 0, "what is to be scored has no tokens: {continuation:?}");
        ensure!(scored <= self.longest, "what is to be scored has {scored} tokens, and {} go in", self.longest);
        tokens.extend(follows);
        let from = tokens.len().saturating_sub(self.longest + 1);
        Ok(Score { tokens: tokens.split_off(from), scored })
    }

    /// Every token of a text once; with `score_bos` also the one that the tokenizer puts before it.
    fn windows(&self, text: &str, score_bos: bool) -> Result<Vec<Score>> {
        let mut tokens = self.encode(text)?;
        if score_bos || tokens.first() != Some(&self.prefix) {
            tokens.insert(0, self.prefix);
        }
        let windows = windows(tokens.len(), self.window);
        Ok(windows.map(|(range, scored)| Score { tokens: tokens[range].to_vec(), scored }).collect())
    }

    /// A prompt, cut on its left so that there is room for what is to be written.
    fn prompt(&self, prompt: &str, task: &Task) -> Result<Generate> {
        let max_new_tokens = task.max_new_tokens;
        ensure!(
            max_new_tokens < self.longest,
            "max_new_tokens {max_new_tokens} leaves no room for a prompt: {} tokens go in",
            self.longest
        );
        let mut tokens = self.encode(prompt)?;
        if tokens.is_empty() {
            tokens.push(self.prefix);
        }
        let from = tokens.len().saturating_sub(self.longest - max_new_tokens);
        let sampling = task.sampling.as_ref().map(|sampling| {
            let usual = flow_plan::Sampling::default();
            flow_plan::Sampling {
                temperature: sampling.temperature.unwrap_or(usual.temperature),
                top_k: sampling.top_k.unwrap_or(usual.top_k),
                top_p: sampling.top_p.unwrap_or(usual.top_p),
                repetition_penalty: sampling.repetition_penalty.unwrap_or(usual.repetition_penalty),
                seed: sampling.seed.unwrap_or(usual.seed),
            }
        });
        let until = task.until().into_iter().filter(|text| !text.is_empty()).collect();
        Ok(Generate { tokens: tokens.split_off(from), max_new_tokens, end: self.end.clone(), until, sampling })
    }

    /// The text of generated tokens: without special ones, and without what follows a text that ends it.
    ///
    /// # Errors
    /// The tokenizer cannot decode them.
    pub fn text(&self, tokens: &[u32], task: &Task) -> Result<String> {
        let mut text = self.tokenizer.decode_plain(tokens)?;
        for end in task.until().iter().filter(|end| !end.is_empty()) {
            if let Some(at) = text.find(end) {
                text.truncate(at);
            }
        }
        Ok(text)
    }
}

/// The ids that end a generation by `generation_config.json`.
fn ends_of(model: &Path) -> Result<Vec<u32>> {
    let path = model.join("generation_config.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let config: Json = read_json(&path)?;
    let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
    Ok(match &config["eos_token_id"] {
        Json::Array(ids) => ids.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    })
}
