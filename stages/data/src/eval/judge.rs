//! Answers → what documents have of each metric, and a line of each for people.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, BufWriter, Lines, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use flow_core::Ctx;
use flow_plan::{EvalAnswer, Scored};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};

use super::{
    answer,
    encode::Encoder,
    metric::Metric,
    prepare::Asked,
    prompt::{Gold, Item},
    stats::Series,
    task::{Kind, Task},
};

/// A file of JSON lines that is read one after the other.
pub struct JsonLines {
    name: String,
    lines: Lines<BufReader<File>>,
    number: usize,
}

impl JsonLines {
    /// Opens it.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { name: path.display().to_string(), lines: BufReader::new(file).lines(), number: 0 })
    }

    fn next<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.number += 1;
        let place = || format!("{}, line {}", self.name, self.number);
        let line = self.lines.next().with_context(|| format!("{} is missing", place()))?.with_context(place)?;
        serde_json::from_str(&line).with_context(place)
    }
}

/// What a document has, by metric.
struct Judged {
    values: Vec<(f64, f64)>,
    sample: Map<String, Json>,
}

/// Judges what a model answered about the documents of a task: the numbers in the order of the task's metrics. `answers`
/// stands where the task's begin; `samples` gets a line a document.
///
/// # Errors
/// An answer is missing, or is no number.
pub fn judge(
    ctx: &Ctx<'_>,
    task: &Task,
    encoder: &Encoder,
    asked: &[Asked],
    items: &Path,
    answers: &mut JsonLines,
    samples: &Path,
) -> Result<Vec<Series>> {
    let metrics = task.metrics();
    let mut series: Vec<Series> = metrics.iter().map(|metric| Series::new(metric.form())).collect();
    let mut items = JsonLines::open(items)?;
    let cannot = || format!("cannot write {}", samples.display());
    let mut out = BufWriter::new(File::create(samples).with_context(cannot)?);
    for (at, asked) in asked.iter().enumerate() {
        if at % 1024 == 0 {
            ctx.go_on()?;
        }
        let item: Item = items.next()?;
        let answered: Vec<EvalAnswer> = (0..asked.requests).map(|_| answers.next()).collect::<Result<_>>()?;
        let judged = document(task, &metrics, encoder, *asked, &item, &answered)
            .with_context(|| format!("task `{}`, document {at}", task.task))?;
        let mut line = Map::new();
        line.insert("document".to_owned(), json!(at));
        line.extend(judged.sample);
        for ((metric, series), value) in metrics.iter().zip(&mut series).zip(judged.values) {
            series.push(value);
            if task.kind != Kind::Perplexity {
                line.insert(metric.name().to_owned(), json!(value.0));
            }
        }
        serde_json::to_writer(&mut out, &line).with_context(cannot)?;
        out.write_all(b"\n").with_context(cannot)?;
    }
    out.flush().with_context(cannot)?;
    Ok(series)
}

fn document(
    task: &Task,
    metrics: &[Metric],
    encoder: &Encoder,
    asked: Asked,
    item: &Item,
    answers: &[EvalAnswer],
) -> Result<Judged> {
    let mut sample = Map::new();
    if task.kind != Kind::Perplexity {
        sample.insert("prompt".to_owned(), json!(item.prompt));
    }
    let values = match &item.gold {
        Gold::Text { words, bytes } => {
            let ll: f64 = scores(answers)?.iter().map(|score| score.logprob).sum();
            for (name, value) in [("words", *words), ("bytes", *bytes)] {
                sample.insert(name.to_owned(), json!(value));
            }
            sample.insert("tokens".to_owned(), json!(asked.scored));
            sample.insert("logprobs".to_owned(), json!([ll]));
            let weight = |metric: &Metric| match metric {
                Metric::WordPerplexity => *words as f64,
                Metric::BytePerplexity | Metric::BitsPerByte => *bytes as f64,
                _ => asked.scored as f64,
            };
            metrics.iter().map(|metric| (ll, weight(metric))).collect()
        }
        Gold::Choice { choices, right } => {
            let lls: Vec<f64> = scores(answers)?.iter().map(|score| score.logprob).collect();
            let (given, alone) = lls.split_at(choices.len());
            sample.insert("choices".to_owned(), json!(choices));
            sample.insert("target".to_owned(), json!(right));
            sample.insert("prediction".to_owned(), json!(likeliest(given.iter().copied())));
            sample.insert("logprobs".to_owned(), json!(lls));
            metrics.iter().map(|metric| (choice(*metric, given, alone, choices, *right), 1.0)).collect()
        }
        Gold::Answers(targets) if task.kind == Kind::LogLikelihood => {
            let [score] = scores(answers)?[..] else { bail!("one answer is needed, and there are {}", answers.len()) };
            sample.insert("target".to_owned(), json!(targets.first()));
            sample.insert("prediction".to_owned(), json!(score.greedy));
            sample.insert("logprobs".to_owned(), json!([score.logprob]));
            let greedy = f64::from(u8::from(score.greedy));
            metrics.iter().map(|m| (if *m == Metric::Acc { greedy } else { score.logprob }, 1.0)).collect()
        }
        Gold::Answers(targets) => {
            let [EvalAnswer::Generate(generated)] = answers else { bail!("what was asked is not answered") };
            let text = encoder.text(&generated.tokens, task)?;
            let prediction = answer::filtered(&text, &task.filters);
            sample.insert("target".to_owned(), json!(targets));
            sample.insert("prediction".to_owned(), json!(prediction));
            if prediction != text {
                sample.insert("text".to_owned(), json!(text));
            }
            sample.insert("ended".to_owned(), serde_json::to_value(generated.ended)?);
            metrics.iter().map(|metric| (answer::score(*metric, &prediction, targets, task), 1.0)).collect()
        }
    };
    Ok(Judged { values, sample })
}

fn scores(answers: &[EvalAnswer]) -> Result<Vec<Scored>> {
    let score = |answer: &EvalAnswer| match answer {
        EvalAnswer::Score(score) => {
            ensure!(
                score.logprob.is_finite(),
                "the log-likelihood is not a number: the weights are damaged, or bf16 overflowed"
            );
            Ok(*score)
        }
        EvalAnswer::Generate(_) => bail!("what was asked is not answered"),
    };
    answers.iter().map(score).collect()
}

/// The first of those that nothing is above.
fn likeliest(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (at, value) in values.enumerate() {
        if value > best.1 {
            best = (at, value);
        }
    }
    best.0
}

/// What a choice has. `given`: log-likelihoods after the prompt; `alone`: after nothing, if they were asked for.
fn choice(metric: Metric, given: &[f64], alone: &[f64], choices: &[String], right: usize) -> f64 {
    let by = |length: fn(&String) -> usize| {
        likeliest(given.iter().zip(choices).map(|(ll, choice)| ll / length(choice) as f64)) == right
    };
    let is_right = match metric {
        Metric::AccNorm => by(|choice| choice.chars().count()),
        Metric::AccBytes => by(String::len),
        Metric::AccMutualInfo => likeliest(given.iter().zip(alone).map(|(ll, alone)| ll - alone)) == right,
        Metric::BrierScore => {
            let most = given.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = given.iter().map(|ll| (ll - most).exp()).sum();
            let off = |(at, ll): (usize, &f64)| (ll - most).exp() / sum - f64::from(u8::from(at == right));
            return given.iter().enumerate().map(off).map(|off| off * off).sum();
        }
        _ => likeliest(given.iter().copied()) == right,
    };
    f64::from(u8::from(is_right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_judged_by_what_the_metric_counts() {
        let choices = ["日本".to_owned(), "a long one".to_owned()];
        let given = [-3.0, -9.0];
        let is = |metric| choice(metric, &given, &[-2.0, -9.0], &choices, 1);
        assert_eq!((is(Metric::Acc), is(Metric::AccNorm), is(Metric::AccBytes)), (0.0, 1.0, 0.0));
        assert_eq!(is(Metric::AccMutualInfo), 1.0);
        let far = 1.0 / (1.0 + (-6f64).exp());
        assert!((is(Metric::BrierScore) - 2.0 * far * far).abs() < 1e-12);
        assert_eq!(likeliest([-1.0, -1.0].into_iter()), 0, "the first of equals");
        assert_eq!(likeliest([f64::NEG_INFINITY, -1.0].into_iter()), 1);
    }
}
