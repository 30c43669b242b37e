//! [`Metric`]: the numbers that are told of a task.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{stats::Form, task::Kind};

/// A number that is told of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of documents where the likeliest choice is right; of `log-likelihood`, where the target is what the model
    /// would write.
    Acc,
    /// The same with likelihoods a character.
    AccNorm,
    /// The same with likelihoods a byte.
    AccBytes,
    /// The same with what the prompt adds to the likelihood.
    AccMutualInfo,
    /// Mean squared distance of the choices' probabilities from the truth.
    BrierScore,
    /// e to the negative mean log-likelihood of the targets.
    Perplexity,
    /// e to the negative log-likelihood a word (between white space).
    WordPerplexity,
    /// e to the negative log-likelihood a byte.
    BytePerplexity,
    /// The negative log-likelihood a byte, in bits.
    BitsPerByte,
    /// The negative log-likelihood a scored token.
    Loss,
    /// e to that.
    TokenPerplexity,
    /// Share of answers that are a target.
    ExactMatch,
    /// Share of answers that are a target as SQuAD compares them: without capitals, punctuation, articles.
    Em,
    /// Words that an answer and the nearest target share, as SQuAD counts them.
    F1,
    /// The same with characters: for scripts without spaces.
    F1Char,
    /// Share of answers that are in the task's `language`.
    LanguageConsistency,
    /// Share of answers that are in English.
    EnglishAnswers,
}

use Metric::{
    Acc, AccBytes, AccMutualInfo, AccNorm, BitsPerByte, BrierScore, BytePerplexity, Em, EnglishAnswers, ExactMatch, F1,
    F1Char, LanguageConsistency, Loss, Perplexity, TokenPerplexity, WordPerplexity,
};

impl Metric {
    /// Those that a task of a kind can have.
    pub fn of(kind: Kind) -> &'static [Self] {
        match kind {
            Kind::Perplexity => &[WordPerplexity, BytePerplexity, BitsPerByte, Loss, TokenPerplexity],
            Kind::MultipleChoice => &[Acc, AccNorm, AccBytes, AccMutualInfo, BrierScore],
            Kind::LogLikelihood => &[Acc, Perplexity],
            Kind::Generate => &[ExactMatch, Em, F1, F1Char, LanguageConsistency, EnglishAnswers],
        }
    }

    /// Those that are told of a task that does not say.
    pub fn usual(kind: Kind) -> &'static [Self] {
        match kind {
            Kind::MultipleChoice => &[Acc, AccNorm],
            Kind::Generate => &[ExactMatch],
            Kind::Perplexity | Kind::LogLikelihood => Self::of(kind),
        }
    }

    /// Its name in task files and results.
    pub fn name(self) -> &'static str {
        match self {
            Acc => "acc",
            AccNorm => "acc_norm",
            AccBytes => "acc_bytes",
            AccMutualInfo => "acc_mutual_info",
            BrierScore => "brier_score",
            Perplexity => "perplexity",
            WordPerplexity => "word_perplexity",
            BytePerplexity => "byte_perplexity",
            BitsPerByte => "bits_per_byte",
            Loss => "loss",
            TokenPerplexity => "token_perplexity",
            ExactMatch => "exact_match",
            Em => "em",
            F1 => "f1",
            F1Char => "f1_char",
            LanguageConsistency => "language_consistency",
            EnglishAnswers => "english_answers",
        }
    }

    /// Whether more of it is better.
    pub fn higher_is_better(self) -> bool {
        let lower = [
            BrierScore,
            Perplexity,
            WordPerplexity,
            BytePerplexity,
            BitsPerByte,
            Loss,
            TokenPerplexity,
            EnglishAnswers,
        ];
        !lower.contains(&self)
    }

    /// Whether somebody must say what is right.
    pub fn needs_target(self) -> bool {
        matches!(self, ExactMatch | Em | F1 | F1Char)
    }

    /// How it is made of what documents have.
    pub fn form(self) -> Form {
        match self {
            BrierScore => Form::MeanAlone,
            Perplexity => Form::Perplexity,
            WordPerplexity | BytePerplexity | TokenPerplexity => Form::WeightedPerplexity,
            BitsPerByte => Form::Bits,
            Loss => Form::Nats,
            _ => Form::Mean,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_task_files() {
        for kind in [Kind::Perplexity, Kind::MultipleChoice, Kind::LogLikelihood, Kind::Generate] {
            assert!(Metric::usual(kind).iter().all(|metric| Metric::of(kind).contains(metric)));
            for metric in Metric::of(kind) {
                assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
            }
        }
    }
}
