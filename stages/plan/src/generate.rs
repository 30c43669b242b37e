//! [`GenerateJob`]: a conversation with a model, in JSON lines: [`ToGenerator`] on the standard input of rank 0,
//! [`FromGenerator`] on its standard output. It ends when the input does and everything is answered.

use serde::{Deserialize, Serialize};

use crate::{Ending, Generate, Serving};

/// A model that waits for prompts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GenerateJob {
    /// The model, and how it is held.
    #[serde(flatten)]
    pub serving: Serving,
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
