//! [`Serving`]: how a model is held to be asked; and [`Inference`], what that needs, before anything is started: the memory of
//! a rank, and how layers can be shared.

use std::{fmt, path::PathBuf};

use flow_core::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::{Device, LOSS_CHUNK_TOKENS, ModelConfig, Precision, memory};

/// A model, and how it is held to be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Serving {
    /// A Hugging Face directory.
    pub model: PathBuf,
    /// A sequence has so many tokens at most.
    pub max_length: usize,
    /// Sequences in one forward pass.
    pub batch_size: usize,
    /// Where to compute.
    pub device: Device,
    /// Of weights and activations. Log-probabilities are computed in fp32.
    pub precision: Precision,
    /// Threads of a rank.
    pub threads: usize,
    /// Ranks that share each layer.
    pub tensor: usize,
}

/// Prompts go in together as long as they have no more tokens than this, with what they are filled up with.
pub const PROMPT_TOKENS: usize = 8192;

/// How a model is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Inference {
    /// Tokens of a sequence at most.
    pub max_length: usize,
    /// Sequences at a time.
    pub batch_size: usize,
    /// Of weights, activations, keys and values.
    pub precision: Precision,
    /// Ranks that share each layer.
    pub tensor: usize,
    /// Keys and values are kept: sequences go on, and are not scored alone.
    pub generates: bool,
}

/// Bytes of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InferenceMemory {
    /// Weights.
    pub weights: u64,
    /// Keys and values of all sequences, as long as they may become.
    pub cache: u64,
    /// What a forward pass has at a time: of scored sequences, or of prompts.
    pub activations: u64,
    /// Logits in fp32, and what is made of them.
    pub logits: u64,
}

impl InferenceMemory {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.cache + self.activations + self.logits
    }
}

impl Inference {
    /// How a model is asked that is held so. `generates`: not for scores alone.
    #[must_use]
    pub fn of(serving: &Serving, generates: bool) -> Self {
        let Serving { max_length, batch_size, precision, tensor, .. } = *serving;
        Self { max_length, batch_size, precision, tensor, generates }
    }

    /// What a rank needs at most.
    #[must_use]
    pub fn memory(&self, model: &ModelConfig) -> InferenceMemory {
        let element = match self.precision {
            Precision::Fp32 => 4,
            Precision::Bf16 => 2,
        };
        let (tensor, layers) = (self.tensor as u64, model.num_hidden_layers as u64);
        let (length, rows) = (self.max_length as u64, self.batch_size as u64);
        let groups = model.num_key_value_heads as u64 * model.head_dim as u64 / tensor;
        let queries = model.num_attention_heads as u64 * model.head_dim as u64 / tensor;
        let whole = rows * length;
        let tokens = if self.generates { whole.min(length.max(PROMPT_TOKENS as u64)).max(rows) } else { whole };
        // The residual stream before and after, its normed self; queries, keys and values as they come, turned, and attention's
        // output; or gate and up, and their product.
        let (hidden, ffn) = (model.hidden_size as u64, model.intermediate_size as u64 / tensor);
        let widest = (4 * queries + 4 * groups).max(3 * ffn);
        let chosen = tokens.min(LOSS_CHUNK_TOKENS as u64).max(rows);
        InferenceMemory {
            weights: memory::parameters(model, layers, true, true, tensor) * element,
            cache: if self.generates { 2 * layers * groups * rows * length * element } else { 0 },
            activations: tokens * (3 * hidden + widest) * element,
            logits: chosen * model.vocab_size as u64 / tensor * (element + 8),
        }
    }

    /// Why so many ranks cannot share the layers of a model, if so.
    #[must_use]
    pub fn unshared(model: &ModelConfig, tensor: usize) -> Option<Diagnostic> {
        if splits(model, tensor) {
            return None;
        }
        let message = format!(
            "tensor = {tensor} does not divide the {} key-value heads, the feed-forward width {} and the vocabulary {}",
            model.num_key_value_heads, model.intermediate_size, model.vocab_size
        );
        let can: Vec<String> = (1..=model.num_key_value_heads.min(64))
            .filter(|tensor| splits(model, *tensor))
            .map(|n| n.to_string())
            .collect();
        Some(Diagnostic::new(message).hint(format!("what does: {}", can.join(", "))))
    }

    /// Why it does not fit into `limit` bytes a rank, called `what`, and what would make it fit.
    #[must_use]
    pub fn exceeds(&self, model: &ModelConfig, limit: u64, what: &str) -> Option<Diagnostic> {
        let needs = self.memory(model);
        if needs.total() <= limit {
            return None;
        }
        let wrong = Diagnostic::new(format!("a rank needs {}, and {what} is {}", gib(needs.total()), gib(limit)))
            .hint(format!("memory: {needs}"));
        let mut tried = self.clone();
        let smaller =
            std::iter::successors(Some(self.batch_size / 2), |rows| Some(rows / 2)).take_while(|rows| *rows > 0);
        for batch_size in smaller {
            tried.batch_size = batch_size;
            if tried.memory(model).total() <= limit {
                return Some(wrong.hint(format!("batch_size = {batch_size} would do: {}", tried.said(model))));
            }
        }
        let mut with = if self.batch_size > 1 { vec!["batch_size = 1".to_owned()] } else { Vec::new() };
        if self.precision == Precision::Fp32 {
            tried.precision = Precision::Bf16;
            with.push("precision = \"bf16\"".to_owned());
            if tried.memory(model).total() <= limit {
                return Some(wrong.hint(format!("{} would do: {}", with.join(", "), tried.said(model))));
            }
        }
        for tensor in (self.tensor + 1..=model.num_key_value_heads).filter(|tensor| splits(model, *tensor)) {
            tried.tensor = tensor;
            if tried.memory(model).total() <= limit {
                with.push(format!("tensor = {tensor}"));
                return Some(wrong.hint(format!("{} would do: {} a rank", with.join(", "), tried.said(model))));
            }
        }
        Some(wrong.hint("shorter sequences or a smaller model would do"))
    }

    fn said(&self, model: &ModelConfig) -> String {
        gib(self.memory(model).total())
    }
}

fn splits(model: &ModelConfig, tensor: usize) -> bool {
    let sizes = [model.num_key_value_heads, model.intermediate_size, model.vocab_size];
    tensor > 0 && sizes.iter().all(|size| size.is_multiple_of(tensor))
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

impl fmt::Display for InferenceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [total, weights, cache, activations, logits] =
            [self.total(), self.weights, self.cache, self.activations, self.logits].map(gib);
        write!(
            f,
            "{total} a rank = weights {weights} + keys and values {cache} + activations {activations} + logits {logits}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{llama_8b, model};

    fn inference(batch_size: usize, precision: Precision) -> Inference {
        Inference { max_length: 8192, batch_size, precision, tensor: 1, generates: true }
    }

    /// By hand, from Llama-3.1-8B's published numbers: 8.03 G parameters; 128 KiB of keys and values a token in bf16.
    #[test]
    fn weights_and_keys_are_counted() {
        let memory = inference(4, Precision::Bf16).memory(&llama_8b());
        assert_eq!(memory.weights, 8_030_261_248 * 2);
        assert_eq!(memory.cache, 4 * 8192 * 128 * 1024);
        assert_eq!(Inference { generates: false, ..inference(4, Precision::Bf16) }.memory(&llama_8b()).cache, 0);
        let halved = Inference { tensor: 2, ..inference(4, Precision::Bf16) }.memory(&llama_8b());
        assert_eq!(halved.cache * 2, memory.cache);
        assert!(halved.weights < memory.weights * 51 / 100);
    }

    #[track_caller]
    fn said(inference: &Inference, limit: u64) -> String {
        inference.exceeds(&llama_8b(), limit << 30, "the memory").expect("it does not fit").hints.join("; ")
    }

    #[test]
    fn what_would_fit_is_named() {
        let large = inference(64, Precision::Bf16);
        assert!(large.exceeds(&llama_8b(), 200 << 30, "the memory").is_none());
        assert!(said(&large, 60).contains("batch_size = 32 would do"), "{}", said(&large, 60));
        let whole = inference(2, Precision::Fp32);
        assert!(said(&whole, 24).contains("batch_size = 1, precision = \"bf16\" would do"), "{}", said(&whole, 24));
        assert!(said(&whole, 12).contains("tensor = 2 would do"), "{}", said(&whole, 12));
        assert!(said(&whole, 1).contains("smaller model"), "{}", said(&whole, 1));
    }

    #[test]
    fn layers_that_do_not_split_are_refused() {
        assert_eq!(Inference::unshared(&model(), 3).unwrap().hints, ["what does: 1, 2"]);
        assert!(Inference::unshared(&model(), 2).is_none());
    }
}
