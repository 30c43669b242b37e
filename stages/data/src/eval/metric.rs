//! [`Metric`]: the numbers that are told of a task.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{stats::Form, task::Kind};

/// The metrics, each with its name in task files and results.
macro_rules! metrics {
    ($($(#[doc = $doc:literal])+ $metric:ident = $name:literal,)+) => {
        /// A number that is told of a task.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub enum Metric {
            $($(#[doc = $doc])+ #[serde(rename = $name)] $metric,)+
        }

        impl Metric {
            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$metric => $name,)+
                }
            }
        }
    };
}

metrics! {
    /// Share of documents where the likeliest choice is right; of `log-likelihood`, where the target is what the model
    /// would write.
    Acc = "acc",
    /// The same with likelihoods a character.
    AccNorm = "acc_norm",
    /// The same with likelihoods a byte.
    AccBytes = "acc_bytes",
    /// The same with what the prompt adds to the likelihood.
    AccMutualInfo = "acc_mutual_info",
    /// Mean squared distance of the choices' probabilities from the truth.
    BrierScore = "brier_score",
    /// e to the negative mean log-likelihood of the targets.
    Perplexity = "perplexity",
    /// e to the negative log-likelihood a word (between white space).
    WordPerplexity = "word_perplexity",
    /// e to the negative log-likelihood a byte.
    BytePerplexity = "byte_perplexity",
    /// The negative log-likelihood a byte, in bits.
    BitsPerByte = "bits_per_byte",
    /// The negative log-likelihood a scored token.
    Loss = "loss",
    /// e to that.
    TokenPerplexity = "token_perplexity",
    /// Share of answers that are a target.
    ExactMatch = "exact_match",
    /// Share of answers that are a target as SQuAD compares them: without capitals, punctuation, articles.
    Em = "em",
    /// Words that an answer and the nearest target share, as SQuAD counts them.
    F1 = "f1",
    /// The same with characters: for scripts without spaces.
    F1Char = "f1_char",
    /// Share of answers that are in the task's `language`.
    LanguageConsistency = "language_consistency",
    /// Share of answers that are in English.
    EnglishAnswers = "english_answers",
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
    fn what_is_usual_can_be_had() {
        for kind in [Kind::Perplexity, Kind::MultipleChoice, Kind::LogLikelihood, Kind::Generate] {
            assert!(Metric::usual(kind).iter().all(|metric| Metric::of(kind).contains(metric)));
        }
    }
}
