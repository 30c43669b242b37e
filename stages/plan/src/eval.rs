//! [`EvalJob`]: what is asked of a model, and what it answers.
//!
//! Requests and answers are JSON lines, one a request, in the same order. Whoever asks owns the tokenizer, the prompts and
//! the metrics; the worker knows no task.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Serving;

/// Evaluation of one model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvalJob {
    /// The node's name, for events.
    pub node: String,
    /// The model, and how it is held: of a score all tokens but the last go in, of a generation the prompt and what is made.
    #[serde(flatten)]
    pub serving: Serving,
    /// JSON lines: [`EvalRequest`].
    pub requests: PathBuf,
    /// Where the answers go, whole or not at all, JSON lines: [`EvalAnswer`].
    pub answers: PathBuf,
}

/// A line of what is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvalRequest {
    /// How likely are these tokens?
    Score(Score),
    /// How does it go on?
    Generate(Generate),
}

/// How likely the last tokens are after those before them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// All but the last go in.
    pub tokens: Vec<u32>,
    /// So many of the last are scored: at least one, and not the first token of all.
    pub scored: usize,
}

/// How a prompt goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// More are not made.
    pub max_new_tokens: usize,
    /// Ids that end it; they are no part of the answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub end: Vec<u32>,
    /// Texts that end it as soon as one stands in what was made, decoded with the `tokenizer.json` of the model's directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub until: Vec<String>,
    /// The likeliest token each time, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
}

/// How tokens are drawn, in the words and the order of transformers: the penalty, then temperature, `top_k`, `top_p`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Logits are divided by it; 0 is the likeliest token.
    pub temperature: f64,
    /// Only so many of the likeliest; 0 is all.
    pub top_k: usize,
    /// Only the likeliest that together have this probability; 1 is all.
    pub top_p: f64,
    /// Logits of tokens that were there already, in the prompt too, are divided by it where they are positive, else multiplied.
    pub repetition_penalty: f64,
    /// The same seed, the same tokens, whatever else is in the batch.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// A line of what is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvalAnswer {
    /// To [`EvalRequest::Score`].
    Score(Scored),
    /// To [`EvalRequest::Generate`].
    Generate(Generated),
}

/// How likely they are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scored {
    /// The sum of ln p over the scored tokens.
    pub logprob: f64,
    /// Each of them is the likeliest there.
    pub greedy: bool,
}

/// How it goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generated {
    /// Without what ended it, if that is one of [`Generate::end`].
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub ended: Ending,
}

/// What ended a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// One of [`Generate::end`].
    End,
    /// One of [`Generate::until`].
    Until,
    /// [`Generate::max_new_tokens`].
    Length,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The lines as whoever writes them without this crate does.
    #[test]
    fn lines_are_what_is_agreed() {
        let request: EvalRequest =
            serde_json::from_value(json!({"generate": {"tokens": [1], "max_new_tokens": 2, "sampling": {"top_k": 3}}}))
                .unwrap();
        let EvalRequest::Generate(generate) = request else { panic!("{request:?}") };
        assert_eq!((generate.end.len(), generate.until.len()), (0, 0));
        assert_eq!(generate.sampling, Some(Sampling { top_k: 3, ..Sampling::default() }));
        let score = EvalRequest::Score(Score { tokens: vec![1, 2], scored: 1 });
        assert_eq!(serde_json::to_value(score).unwrap(), json!({"score": {"tokens": [1, 2], "scored": 1}}));
        let answer = EvalAnswer::Generate(Generated { tokens: vec![7], ended: Ending::Until });
        assert_eq!(serde_json::to_value(answer).unwrap(), json!({"generate": {"tokens": [7], "ended": "until"}}));
        assert!(serde_json::from_value::<EvalRequest>(json!({"score": {"tokens": [1, 2], "scoring": 1}})).is_err());
    }
}
