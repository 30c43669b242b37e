//! What an evaluation measured: the `results.json` of an `eval` stage, in the form of now and in the first, or of a command
//! that writes one of these forms.

use std::{fs::File, io::BufReader};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::{out, ui::format};

/// The evaluation of a model, perhaps beside another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// What the model is called, and the one that it is compared with.
    pub model: String,
    pub compare: Option<String>,
    pub rows: Vec<Row>,
    /// Program → version.
    pub versions: Vec<(String, String)>,
}

/// A number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub task: String,
    /// What else is to be said of the task: how many documents, how many shots.
    pub about: String,
    pub metric: String,
    pub higher_is_better: bool,
    pub model: Option<Value>,
    pub compare: Option<Value>,
    pub difference: Option<Value>,
}

/// A number and its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Value {
    pub value: f64,
    pub stderr: Option<f64>,
}

impl Row {
    /// Whether the model is better than the other, if that is known to be more than chance: two standard errors.
    pub fn better(&self) -> Option<bool> {
        let Value { value, stderr } = self.difference?;
        let is_more = value != 0.0 && stderr.is_some_and(|stderr| value.abs() > 2.0 * stderr);
        is_more.then_some((value > 0.0) == self.higher_is_better)
    }
}

#[derive(Deserialize)]
struct Results {
    models: Map<String, Json>,
    #[serde(default)]
    versions: Map<String, Json>,
    tasks: Vec<Task>,
}

#[derive(Deserialize)]
struct Task {
    task: String,
    version: Option<u64>,
    documents: Option<u64>,
    num_fewshot: Option<u64>,
    metrics: Vec<Metric>,
}

#[derive(Deserialize)]
struct Metric {
    metric: String,
    #[serde(default)]
    higher_is_better: bool,
    model: Option<Number>,
    compare: Option<Number>,
    difference: Option<Number>,
}

/// As it is written: what is beyond all numbers is null.
#[derive(Deserialize)]
struct Number {
    value: Option<f64>,
    stderr: Option<f64>,
}

impl Number {
    fn known(self) -> Option<Value> {
        Some(Value { value: self.value?, stderr: self.stderr })
    }
}

impl Evaluation {
    /// As a table for a terminal: a row a number, with the other model's and the difference beside it if there is one.
    pub fn table(&self) -> String {
        let shown = |value: Option<Value>, sign: &str| {
            let Some(Value { value, stderr }) = value else { return "-".to_owned() };
            let sign = if value > 0.0 { sign } else { "" };
            let error = stderr.map(|stderr| format!(" ± {}", format::value(stderr))).unwrap_or_default();
            format!("{sign}{}{error}", format::value(value))
        };
        let mut rows = vec![vec!["TASK".to_owned(), "METRIC".to_owned(), self.model.clone()]];
        rows[0].extend(self.compare.iter().flat_map(|compare| [compare.clone(), "DIFFERENCE".to_owned()]));
        for row in &self.rows {
            let arrow = if row.higher_is_better { "↑" } else { "↓" };
            let mut cells = vec![row.task.clone(), format!("{} {arrow}", row.metric), shown(row.model, "")];
            if self.compare.is_some() {
                let better = match row.better() {
                    Some(true) => " better",
                    Some(false) => " worse",
                    None => "",
                };
                cells.extend([shown(row.compare, ""), format!("{}{better}", shown(row.difference, "+"))]);
            }
            rows.push(cells.iter().map(|cell| format::tame(cell)).collect());
        }
        out::table(&rows, &[])
    }
}

/// Reads it; nothing if there is none, or it says what is not known here.
pub fn read(open: &dyn Fn(&str) -> Option<BufReader<File>>) -> Option<Evaluation> {
    let json: Json = serde_json::from_reader(open("results.json")?).ok()?;
    let found = if json["tasks"].is_array() { now(serde_json::from_value(json).ok()?) } else { first(&json)? };
    (!found.rows.is_empty()).then_some(found)
}

fn now(results: Results) -> Evaluation {
    let name = |of: &str| Some(results.models.get(of)?.get("name")?.as_str()?.to_owned());
    let text = |(name, version): (&String, &Json)| Some((name.clone(), version.as_str()?.to_owned()));
    let (model, compare) = (name("model").unwrap_or_else(|| "model".into()), name("compare"));
    let versions = results.versions.iter().filter_map(text).collect();
    let rows = results.tasks.into_iter().flat_map(|task| {
        let mut about: Vec<String> = Vec::new();
        about.extend(task.documents.map(|count| format!("{count} documents")));
        about.extend(task.num_fewshot.filter(|count| *count > 0).map(|count| format!("{count} shots")));
        about.extend(task.version.map(|version| format!("version {version}")));
        let about = about.join(", ");
        task.metrics.into_iter().map(move |metric| Row {
            task: task.task.clone(),
            about: about.clone(),
            metric: metric.metric,
            higher_is_better: metric.higher_is_better,
            model: metric.model.and_then(Number::known),
            compare: metric.compare.and_then(Number::known),
            difference: metric.difference.and_then(Number::known),
        })
    });
    Evaluation { model, compare, rows: rows.collect(), versions }
}

/// The first form: task → model, compare, difference → number. Of all its numbers less is better.
fn first(json: &Json) -> Option<Evaluation> {
    const METRICS: [&str; 4] = ["loss", "token_perplexity", "byte_perplexity", "bits_per_byte"];
    let mut rows = Vec::new();
    let mut compared = false;
    for (task, of) in json.get("tasks")?.as_object()? {
        for metric in METRICS {
            let value = |side: &str| Some(Value { value: of.get(side)?.get(metric)?.as_f64()?, stderr: None });
            let documents = of.get("model").and_then(|model| model.get("documents")).and_then(Json::as_u64);
            compared |= of.get("compare").is_some();
            rows.push(Row {
                task: task.clone(),
                about: documents.map(|count| format!("{count} documents")).unwrap_or_default(),
                metric: metric.to_owned(),
                higher_is_better: false,
                model: value("model"),
                compare: value("compare"),
                difference: value("difference"),
            });
        }
    }
    rows.retain(|row| row.model.is_some());
    let compare = compared.then(|| "before training".to_owned());
    Some(Evaluation { model: "trained".into(), compare, rows, versions: Vec::new() })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn of(results: &Json) -> Option<Evaluation> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("results.json"), results.to_string()).unwrap();
        read(&|name| File::open(dir.path().join(name)).ok().map(BufReader::new))
    }

    #[test]
    fn both_forms_are_read_and_better_is_more_than_chance() {
        let value = |value: f64, stderr: Option<f64>| json!({ "value": value, "stderr": stderr });
        let metric = |difference: f64| {
            json!({ "metric": "acc", "higher_is_better": true, "model": value(0.5, Some(0.1)),
                "compare": value(0.4, Some(0.1)), "difference": value(difference, Some(0.1)) })
        };
        let json = json!({ "format": 2, "versions": { "flow": "1" }, "models": { "model": { "name": "hf" }, "compare": { "name": "base" } },
            "tasks": [{ "task": "piqa", "version": 1, "kind": "multiple-choice", "documents": 20, "num_fewshot": 5,
                "metrics": [metric(0.19), metric(0.21), metric(-0.3), { "metric": "ppl", "model": { "value": null } }] }] });
        let mut got = of(&json).unwrap();
        assert_eq!(got.rows.pop().unwrap().model, None, "a number beyond all numbers is none");
        assert_eq!((got.model.as_str(), got.compare.as_deref()), ("hf", Some("base")));
        assert_eq!(got.rows.iter().map(Row::better).collect::<Vec<_>>(), [None, Some(true), Some(false)]);
        assert_eq!(got.rows[0].about, "20 documents, 5 shots, version 1");
        let table = got.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["TASK", "METRIC", "hf", "base", "DIFFERENCE"]);
        assert!(lines[2].starts_with("piqa  acc ↑") && lines[2].ends_with("0.4 ± 0.1  +0.21 ± 0.1 better"), "{table}");
        assert!(lines[3].ends_with("-0.3 ± 0.1 worse"), "{table}");

        let side = |loss: f64| json!({ "loss": loss, "documents": 4 });
        let json = json!({ "tasks": { "perplexity": { "model": side(5.0), "compare": side(9.0), "difference": { "loss": -4.0 } } } });
        let got = of(&json).unwrap();
        assert_eq!((got.rows.len(), got.rows[0].better()), (1, None), "its error is not known");
        assert_eq!(of(&json!({ "tasks": [] , "models": {} })), None);
        assert_eq!(of(&json!({ "score": 1 })), None);
    }
}
