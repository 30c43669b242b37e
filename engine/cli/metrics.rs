//! `metrics.jsonl`: what a stage writes that trains, or any command that measures: an object a step.

use std::{
    fs::File,
    io::{BufRead, BufReader},
};

use flow_cache::Cache;
use flow_core::Key;
use flow_engine::Measured;
use serde_json::Value as Json;

/// The file in a result.
pub const FILE: &str = "metrics.jsonl";
/// Numbers of a step that are no measurement.
const COUNTS: [&str; 3] = ["step", "consumed_samples", "consumed_tokens"];

/// Reads the file: each measurement with its step and name.
pub fn read(file: impl BufRead, take: &mut dyn FnMut(u64, &str, f64)) {
    // Not by `lines`: one that is no text ends nothing.
    for line in file.split(b'\n').map_while(Result::ok) {
        let Ok(Json::Object(values)) = serde_json::from_slice(&line) else { continue };
        let Some(step) = values.get("step").and_then(Json::as_u64) else { continue };
        for (name, value) in values.iter().filter(|(name, _)| !COUNTS.contains(&name.as_str())) {
            if let Some(value) = value.as_f64() {
                take(step, name, value);
            }
        }
    }
}

/// The newest of all that a result says of its steps, if it is here and says something.
pub fn of_result(cache: &Cache, key: &Key) -> Option<Measured> {
    let record = cache.record(key).ok()??;
    let file = File::open(cache.entry_path(record.tree.get(FILE)?)).ok()?;
    let mut measured = Measured::default();
    read(BufReader::new(file), &mut |step, name, value| {
        measured.step = step;
        measured.values.insert(name.to_owned(), value);
    });
    (!measured.values.is_empty()).then_some(measured)
}
