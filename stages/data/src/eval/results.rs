//! `results.json`, and its table for people.

use std::collections::BTreeMap;

use flow_core::Digest;
use serde::Serialize;

use super::{metric::Metric, stats::Series, task::Kind};

/// The version of this file.
pub const FORMAT: u32 = 2;

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// [`FORMAT`]
    pub format: u32,
    /// Of flow, its worker and libtorch.
    pub versions: BTreeMap<&'static str, String>,
    /// `model`, and `compare` if there is one.
    pub models: BTreeMap<String, ModelName>,
    /// In the order of the stage.
    pub tasks: Vec<TaskResults>,
}

/// A model.
#[derive(Clone, Debug, Serialize)]
pub struct ModelName {
    /// As the pipeline calls it.
    pub name: String,
    /// Of its files.
    pub digest: Digest,
}

/// What was measured in a task.
#[derive(Clone, Debug, Serialize)]
pub struct TaskResults {
    /// Its name.
    pub task: String,
    /// Its version.
    pub version: u32,
    /// Its kind.
    pub kind: Kind,
    /// Of its file and its data.
    pub digest: Digest,
    /// How many there were.
    pub documents: u64,
    /// Examples before each prompt.
    pub num_fewshot: usize,
    /// Its numbers.
    pub metrics: Vec<MetricResult>,
}

/// A number.
#[derive(Clone, Debug, Serialize)]
pub struct MetricResult {
    /// Its name.
    pub metric: Metric,
    /// Whether more of it is better.
    pub higher_is_better: bool,
    /// Of the model.
    pub model: Number,
    /// Of the one that it is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compare: Option<Number>,
    /// The first less the second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Number>,
}

/// A number and its standard error. What is beyond all numbers is null.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Number {
    /// It.
    pub value: f64,
    /// Null where it is not defined.
    pub stderr: Option<f64>,
}

impl MetricResult {
    /// What the documents of one or two models make.
    pub fn new(metric: Metric, model: &Series, compare: Option<&Series>) -> Self {
        let number = |series: &Series| Number { value: series.value(), stderr: series.stderr() };
        let difference = |compare: &Series| Number {
            value: model.value() - compare.value(),
            stderr: model.difference_stderr(compare),
        };
        Self {
            metric,
            higher_is_better: metric.higher_is_better(),
            model: number(model),
            compare: compare.map(number),
            difference: compare.map(difference),
        }
    }
}

impl Results {
    /// Lines for people: a number each, both models side by side.
    pub fn table(&self) -> Vec<String> {
        let has_compare = self.models.contains_key("compare");
        let name = |role: &str| self.models.get(role).map_or_else(String::new, |model| model.name.clone());
        let mut head = vec!["task".to_owned(), "metric".to_owned(), name("model")];
        if has_compare {
            head.extend([name("compare"), "difference".to_owned()]);
        }
        let mut rows = vec![head];
        for task in &self.tasks {
            for result in &task.metrics {
                let arrow = if result.higher_is_better { "↑" } else { "↓" };
                let mut row =
                    vec![task.task.clone(), format!("{} {arrow}", result.metric.name()), result.model.shown(false)];
                row.extend(result.compare.iter().map(|number| number.shown(false)));
                row.extend(result.difference.iter().map(|number| number.shown(true)));
                rows.push(row);
            }
            if task.metrics.is_empty() {
                rows.push(vec![task.task.clone(), format!("{} answers, for others to judge", task.documents)]);
            }
        }
        let width = |column: usize| {
            rows.iter()
                .filter(|row| row.len() > 2)
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
        };
        let widths: Vec<usize> = (0..rows[0].len()).map(|column| width(column).unwrap_or(0)).collect();
        let padded = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        rows.iter().map(padded).collect()
    }
}

impl Number {
    fn shown(self, signed: bool) -> String {
        let digits = |value: f64| match value.abs() {
            large if large >= 1e6 => format!("{value:.3e}"),
            large if large >= 1000.0 => format!("{value:.1}"),
            _ => format!("{value:.4}"),
        };
        let sign = if signed && self.value >= 0.0 { "+" } else { "" };
        match self.stderr.filter(|error| error.is_finite()) {
            Some(error) => format!("{sign}{} ± {}", digits(self.value), digits(error)),
            None => format!("{sign}{}", digits(self.value)),
        }
    }
}
