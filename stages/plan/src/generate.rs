//! [`GenerateJob`]: a conversation with a model, in JSON lines: [`ToGenerator`] on the standard input of rank 0,
//! [`FromGenerator`] on its standard output. It ends when the input does and everything is answered.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Device, Ending, Generate, Inference, Precision};

/// A model that waits for prompts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GenerateJob {
    /// A Hugging Face directory.
    pub model: PathBuf,
    /// A prompt and what is made of it have so many tokens at most.
    pub max_length: usize,
    /// Prompts that go on together.
    pub batch_size: usize,
    /// Where to compute.
    pub device: Device,
    /// Of weights and activations.
    pub precision: Precision,
    /// Threads of a rank.
    pub threads: usize,
    /// Ranks that share each layer.
    pub tensor: usize,
}

impl GenerateJob {
    /// What it needs.
    #[must_use]
    pub fn inference(&self) -> Inference {
        Inference {
            max_length: self.max_length,
            batch_size: self.batch_size,
            precision: self.precision,
            tensor: self.tensor,
            generates: true,
        }
    }
}

/// What a generator is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToGenerator {
    /// Goes on with a prompt.
    Ask {
        /// What it is called from then on.
        id: usize,
        /// The prompt.
        generate: Generate,
    },
    /// Lets go of one: nothing more is wanted of it. What was under way still comes, an end does not.
    Forget(usize),
}

/// What a generator tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FromGenerator {
    /// The model is there.
    Ready {
        /// Where: `CPU`, `GPU`, `2 GPUs`.
        place: String,
    },
    /// One more token.
    Token {
        /// Of this prompt.
        id: usize,
        /// It.
        token: u32,
    },
    /// No more tokens.
    Ended {
        /// Of this prompt.
        id: usize,
        /// Why.
        ended: Ending,
    },
}
