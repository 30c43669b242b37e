//! [`Task`]: what a task file holds. Its words are near those of lm-evaluation-harness, so that tasks can be carried over.

use flow_core::Diagnostic;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{metric::Metric, template::Templates};
use crate::curate::filter::language;

/// What is measured over some documents, and how a model is asked.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Its name: its results stand under it, and data is given to it by it.
    pub task: String,
    /// Raised when its numbers are no longer those from before.
    #[serde(default = "one")]
    pub version: u32,
    /// What is asked of a model.
    pub kind: Kind,
    /// Documents, JSON lines: a path relative to this file, or a URL, which is taken as `fetch` takes it.
    #[serde(default)]
    pub data: Option<String>,
    /// Stands before every prompt. A template.
    #[serde(default)]
    pub description: Option<String>,
    /// The prompt: a column or a template; of `perplexity` the text that is scored.
    #[serde(default)]
    pub text: Option<String>,
    /// What is right: of `multiple-choice` the number of the choice (from 0) or the choice itself, of the others the text,
    /// or a column with a list of texts that are all right. A column or a template.
    #[serde(default)]
    pub target: Option<String>,
    /// What there is to choose from: a column with a list, an expression that gives one, or a list of templates.
    #[serde(default)]
    pub choices: Option<Choices>,
    /// In place of `text`: one prompt a choice, and `target` is what follows each of them.
    #[serde(default)]
    pub contexts: Option<Choices>,
    /// With `contexts`: the number of the right one, from 0. A column or a template.
    #[serde(default)]
    pub label: Option<String>,
    /// Stands between a prompt and a choice, and between a few-shot example and its answer.
    #[serde(default = "space")]
    pub target_delimiter: String,
    /// Examples with their answers before the prompt.
    #[serde(default)]
    pub fewshot: Fewshot,
    /// A generation ends where one of these texts begins; the few-shot delimiter if left out.
    #[serde(default)]
    pub until: Option<Vec<String>>,
    /// The most tokens that are generated.
    #[serde(default = "max_new_tokens")]
    pub max_new_tokens: usize,
    /// How tokens are chosen; the likeliest if left out.
    #[serde(default)]
    pub sampling: Option<Sampling>,
    /// What is done to a generated text before it is judged, in this order.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// What differs and does not count for `exact_match`.
    #[serde(default)]
    pub exact_match: ExactMatch,
    /// The language that answers are to be in, for `language_consistency`: a code of ISO 639.
    #[serde(default = "japanese")]
    pub language: String,
    /// The numbers that are told; those usual for the kind if left out.
    #[serde(default)]
    pub metrics: Option<Vec<Metric>>,
    /// Of `perplexity`: whether the token that a tokenizer puts before a text is scored like the others, after another
    /// one, as lm-evaluation-harness does it.
    #[serde(default = "yes")]
    pub score_bos: bool,
    /// The first so many documents alone.
    #[serde(default)]
    pub limit: Option<u64>,
}

/// What is asked of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// How likely a text is, in windows: `loglikelihood_rolling`.
    Perplexity,
    /// Which of several texts is the likeliest after a prompt: `multiple_choice`.
    MultipleChoice,
    /// How likely a text is after a prompt, and whether it is what the model would write: `loglikelihood`.
    LogLikelihood,
    /// What the model writes after a prompt: `generate_until`.
    Generate,
}

impl Kind {
    /// Its name in task files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Perplexity => "perplexity",
            Self::MultipleChoice => "multiple-choice",
            Self::LogLikelihood => "log-likelihood",
            Self::Generate => "generate",
        }
    }
}

/// One template or column that gives a list, or a list of templates.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a column with a list, an expression that gives one, or a list of templates")]
pub enum Choices {
    /// Gives a list.
    Column(String),
    /// Give a text each.
    Templates(Vec<String>),
}

/// Examples with their answers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Fewshot {
    /// How many.
    pub count: usize,
    /// Where they are from: a path relative to this file, or a URL; the task's own documents if left out.
    pub data: Option<String>,
    /// Stands behind each.
    pub delimiter: String,
    /// Which are taken.
    pub sampler: Sampler,
    /// Of the random ones.
    pub seed: u64,
    /// Whether one more is drawn, and the document that is asked about is none of them; if left out: yes where they are
    /// from the task's own documents.
    pub exclude_document: Option<bool>,
}

impl Default for Fewshot {
    fn default() -> Self {
        let delimiter = "\n\n".to_owned();
        Self { count: 0, data: None, delimiter, sampler: Sampler::Random, seed: 1234, exclude_document: None }
    }
}

/// Which examples are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Sampler {
    /// Others for each document, as Python's `random.Random(seed).sample` draws them.
    Random,
    /// The first.
    First,
}

/// How tokens are chosen.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Logits are divided by it.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// The likeliest so many alone.
    #[serde(default)]
    pub top_k: Option<usize>,
    /// The likeliest that have so much probability together alone.
    #[serde(default)]
    pub top_p: Option<f64>,
    /// What was written already is made less likely by it.
    #[serde(default)]
    pub repetition_penalty: Option<f64>,
    /// Of the draws about the first document; each other one has the next.
    #[serde(default)]
    pub seed: Option<u64>,
}

/// Something that is done to a generated text.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// White space at both ends goes.
    RemoveWhitespace,
    /// All letters become small.
    Lowercase,
    /// The first line that is not blank is kept.
    FirstLine,
    /// The first group of the first match (all of it if there is no group) is kept; nothing if there is none.
    Regex(String),
}

/// What does not count.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExactMatch {
    /// Capital and small letters.
    pub ignore_case: bool,
    /// Punctuation of ASCII.
    pub ignore_punctuation: bool,
    /// Digits of ASCII.
    pub ignore_numbers: bool,
}

fn one() -> u32 {
    1
}
fn space() -> String {
    " ".to_owned()
}
fn max_new_tokens() -> usize {
    256
}
fn japanese() -> String {
    "ja".to_owned()
}
fn yes() -> bool {
    true
}

impl Task {
    /// What is wrong with it; and its templates.
    pub fn check(&self, errors: &mut Vec<Diagnostic>) -> Templates {
        let mut error = |field: &str, message: String, hint: &str| {
            errors.push(Diagnostic::new(message).field(field).hint(hint));
        };
        let fits = |c: char| c.is_alphanumeric() || "_-.".contains(c);
        if self.task.is_empty() || self.task.starts_with('.') || !self.task.chars().all(fits) {
            let hint = "letters, digits, `_`, `-` and `.`: results and files are named after it";
            error("task", format!("`{}` cannot be the name of a task", self.task), hint);
        }
        let kind = self.kind.name();
        let needed: &[(&str, bool)] = match self.kind {
            Kind::Perplexity => &[],
            Kind::MultipleChoice if self.contexts.is_some() => {
                &[("target", self.target.is_some()), ("label", self.label.is_some())]
            }
            Kind::MultipleChoice => {
                &[("text", self.text.is_some()), ("choices", self.choices.is_some()), ("target", self.target.is_some())]
            }
            Kind::LogLikelihood => &[("text", self.text.is_some()), ("target", self.target.is_some())],
            Kind::Generate => &[("text", self.text.is_some())],
        };
        for (field, _) in needed.iter().filter(|(_, has)| !has) {
            error("kind", format!("a task of kind `{kind}` needs `{field}`"), "a column, or a template");
        }
        let is_choice = self.kind == Kind::MultipleChoice;
        let idle = [
            ("target", self.target.is_some() && self.kind == Kind::Perplexity),
            ("choices", self.choices.is_some() && (!is_choice || self.contexts.is_some())),
            ("contexts", self.contexts.is_some() && !is_choice),
            ("text", self.text.is_some() && self.contexts.is_some()),
            ("label", self.label.is_some() && self.contexts.is_none()),
            ("until", self.until.is_some() && self.kind != Kind::Generate),
            ("sampling", self.sampling.is_some() && self.kind != Kind::Generate),
            ("filters", !self.filters.is_empty() && self.kind != Kind::Generate),
            ("fewshot", self.fewshot.count > 0 && self.kind == Kind::Perplexity),
        ];
        for (field, _) in idle.into_iter().filter(|(_, idle)| *idle) {
            error(field, format!("`{field}` has no meaning here, in a task of kind `{kind}`"), "leave it away");
        }
        for (field, zero) in [("max_new_tokens", self.max_new_tokens == 0), ("limit", self.limit == Some(0))] {
            if zero {
                error(field, format!("`{field}` is 0"), "the smallest that works is 1");
            }
        }
        if self.fewshot.count > 0 && self.kind == Kind::Generate && self.target.is_none() {
            error("fewshot", "examples have answers, and there is no `target`".to_owned(), "a column, or a template");
        }
        for (i, metric) in self.metrics.iter().flatten().enumerate() {
            let known = Metric::of(self.kind);
            if !known.contains(metric) {
                let names: Vec<&str> = known.iter().map(|metric| metric.name()).collect();
                let hint = format!("it has: {}", names.join(", "));
                error(&format!("metrics.{i}"), format!("a task of kind `{kind}` has no `{}`", metric.name()), &hint);
            } else if metric.needs_target() && self.target.is_none() && self.kind == Kind::Generate {
                let message = format!("`{}` needs to know what is right", metric.name());
                error(&format!("metrics.{i}"), message, "target = \"…\", a column or a template");
            }
        }
        for (i, filter) in self.filters.iter().enumerate() {
            if let Filter::Regex(pattern) = filter
                && let Err(wrong) = regex::Regex::new(pattern)
            {
                error(&format!("filters.{i}"), "this is no regular expression".to_owned(), &wrong.to_string());
            }
        }
        if self.metrics().contains(&Metric::LanguageConsistency) && !language::is_known(&self.language) {
            error("language", format!("`{}` is no language that can be told", self.language), "a code of ISO 639: ja");
        }
        let sampling = self.sampling.as_ref();
        let wrong = |value: Option<f64>, fits: fn(f64) -> bool| value.is_some_and(|value| !fits(value));
        let wrong = [
            ("temperature", wrong(sampling.and_then(|s| s.temperature), |t| t > 0.0), "above 0"),
            ("top_p", wrong(sampling.and_then(|s| s.top_p), |p| p > 0.0 && p <= 1.0), "above 0, at most 1"),
            ("repetition_penalty", wrong(sampling.and_then(|s| s.repetition_penalty), |p| p > 0.0), "above 0"),
            ("top_k", sampling.and_then(|s| s.top_k) == Some(0), "1 or more"),
        ];
        for (name, _, hint) in wrong.into_iter().filter(|(_, wrong, _)| *wrong) {
            error(&format!("sampling.{name}"), format!("`{name}` does not work"), hint);
        }
        self.templates(errors)
    }

    fn templates(&self, errors: &mut Vec<Diagnostic>) -> Templates {
        let mut templates = Templates::new();
        let text = self.text.as_deref().or((self.kind == Kind::Perplexity).then_some("text"));
        let fields = [
            ("description", self.description.as_deref()),
            ("text", text),
            ("target", self.target.as_deref()),
            ("label", self.label.as_deref()),
        ];
        for (field, source) in fields {
            source.iter().for_each(|source| templates.add(field, source, errors));
        }
        for (field, choices) in [("choices", &self.choices), ("contexts", &self.contexts)] {
            match choices {
                Some(Choices::Column(source)) => templates.add(field, source, errors),
                Some(Choices::Templates(sources)) => {
                    for (i, source) in sources.iter().enumerate() {
                        templates.add(&format!("{field}.{i}"), source, errors);
                    }
                }
                None => {}
            }
        }
        templates
    }

    /// The numbers that are told.
    pub fn metrics(&self) -> Vec<Metric> {
        let usual = || Metric::usual(self.kind).iter().copied().filter(|m| self.target.is_some() || !m.needs_target());
        self.metrics.clone().unwrap_or_else(|| usual().collect())
    }

    /// Where a generation ends.
    pub fn until(&self) -> Vec<String> {
        self.until.clone().unwrap_or_else(|| vec![self.fewshot.delimiter.clone()])
    }
}
