//! [`EvalResults`]: what an evaluation measures, and what follows from it.

use serde::{Deserialize, Serialize};

/// What the worker measured. Every token of a document but its first is scored exactly once, as lm-eval's rolling
/// log-likelihood does it: windows of `seq_length` tokens follow each other, and the last one is moved back so that it
/// is as long as the others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalResults {
    /// Documents with at least one scored token.
    pub documents: u64,
    /// Scored tokens.
    pub tokens: u64,
    /// Bytes of text in these documents, UTF-8.
    pub bytes: u64,
    /// Sum over the scored tokens of −ln p, in nats.
    pub nll: f64,
}

impl EvalResults {
    /// Validation loss: nats a token.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.nll / self.tokens as f64
    }

    /// Perplexity of a token.
    #[must_use]
    pub fn token_perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// Perplexity of a byte: comparable between tokenizers, of documents that begin with BOS (else the first token's
    /// bytes count, and it is not predicted).
    #[must_use]
    pub fn byte_perplexity(&self) -> f64 {
        (self.nll / self.bytes as f64).exp()
    }

    /// Bits a byte: as comparable as [`Self::byte_perplexity`].
    #[must_use]
    pub fn bits_per_byte(&self) -> f64 {
        self.nll / self.bytes as f64 / std::f64::consts::LN_2
    }
}
