//! What is drawn as curves: of every run the same measurement in one chart.

use serde::Serialize;

use super::{
    curve::Curve,
    data::{Node, Report, Run},
};

/// A chart.
#[derive(Debug, Serialize)]
pub struct Chart<'a> {
    pub id: String,
    pub title: String,
    /// How its numbers are written: `bytes`, `count`, or nothing.
    pub unit: &'static str,
    /// It may be looked at on a logarithmic scale.
    pub log: bool,
    pub series: Vec<Series<'a>>,
}

/// A curve of a chart.
#[derive(Debug, Serialize)]
pub struct Series<'a> {
    pub name: String,
    /// Curves of one training share a colour.
    pub color: usize,
    /// The second of that colour.
    pub dashed: bool,
    pub curve: &'a Curve,
}

/// A measurement that is known: title, unit, whether its logarithm makes sense, and what it is called; the second is drawn
/// beside the first.
struct Known(&'static str, &'static str, bool, &'static [(&'static str, &'static str)]);

const KNOWN: [Known; 9] = [
    Known("Loss", "", true, &[("loss", ""), ("val_loss", "validation")]),
    Known("Learning rate", "", true, &[("lr", "")]),
    Known("Gradient norm", "", true, &[("grad_norm", "")]),
    Known("Tokens a second", "count", false, &[("tokens_per_second", "")]),
    Known("Memory of a rank", "bytes", false, &[("memory_bytes", ""), ("gpu_memory_bytes", "taken on the GPU")]),
    Known("Seconds a step", "", true, &[("step_seconds", ""), ("data_seconds", "waiting for data")]),
    Known("Model FLOPs utilization", "", false, &[("mfu", "")]),
    Known("GPU utilization", "", false, &[("gpu_utilization", "")]),
    Known("Model TFLOP/s of a rank", "count", false, &[("model_tflops_rank", "")]),
];
/// What follows from something that is shown.
const HIDDEN: [&str; 4] = ["consumed_samples", "consumed_tokens", "eta_seconds", "tokens_per_second_rank"];
/// Fewer points are no curve.
const FEWEST: usize = 2;

/// The name of a run among several: A, B, …
pub fn letter(run: usize) -> String {
    match u8::try_from(run).ok().filter(|run| *run < 26) {
        Some(run) => char::from(b'A' + run).to_string(),
        None => format!("#{}", run + 1),
    }
}

/// Every training of the report, with the number of its colour.
fn trainings(report: &Report) -> Vec<(usize, &Run, usize, &Node)> {
    let mut all = Vec::new();
    for (nth, run) in report.runs.iter().enumerate() {
        for node in run.stages.iter().flat_map(|stage| &stage.nodes) {
            if node.curves.values().any(|curve| curve.len() >= FEWEST) {
                all.push((all.len(), run, nth, node));
            }
        }
    }
    all
}

/// The charts of a report.
pub fn of(report: &Report) -> Vec<Chart<'_>> {
    let trainings = trainings(report);
    let several_nodes = trainings.iter().any(|(_, _, _, node)| node.name != trainings[0].3.name);
    let name = |run: usize, node: &Node, what: &str| {
        let run = if report.runs.len() > 1 { letter(run) } else { String::new() };
        let node = if several_nodes { node.name.as_str() } else { "" };
        let name = [&run, node, what].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        if name.is_empty() { "training".to_owned() } else { name }
    };
    let series = |of: &[(&str, &'static str)]| {
        let mut all = Vec::new();
        for (color, _, run, node) in &trainings {
            for (nth, (metric, what)) in of.iter().enumerate() {
                if let Some(curve) = node.curves.get(*metric).filter(|curve| curve.len() >= FEWEST) {
                    all.push(Series { name: name(*run, node, what), color: *color, dashed: nth > 0, curve });
                }
            }
        }
        all
    };
    let mut charts = Vec::new();
    for Known(title, unit, log, of) in KNOWN {
        let series = series(of);
        if !series.is_empty() {
            charts.push(Chart { id: of[0].0.to_owned(), title: title.to_owned(), unit, log, series });
        }
    }
    let is_known = |metric: &str| {
        HIDDEN.contains(&metric) || KNOWN.iter().any(|Known(.., of)| of.iter().any(|(name, _)| *name == metric))
    };
    let mut others: Vec<&String> = trainings.iter().flat_map(|(.., node)| node.curves.keys()).collect();
    others.sort_unstable();
    others.dedup();
    for metric in others.into_iter().filter(|metric| !is_known(metric)) {
        let series = series(&[(metric, "")]);
        if !series.is_empty() {
            charts.push(Chart { id: format!("x-{metric}"), title: metric.clone(), unit: "", log: true, series });
        }
    }
    charts
}
