//! What the worker says: events as JSON lines on standard output, one voice (rank 0's); people's words on standard error.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use flow_core::{Event, Level, Unit};

/// The voice of a rank for one node. All but rank 0's are silent on standard output.
#[derive(Clone, Debug)]
pub struct Voice {
    node: String,
    speaks: bool,
}

impl Voice {
    /// The voice of `rank`.
    pub fn new(node: &str, rank: usize) -> Self {
        Self { node: node.to_owned(), speaks: rank == 0 }
    }

    /// Whether this rank is the one that speaks.
    pub fn speaks(&self) -> bool {
        self.speaks
    }

    /// So many steps or items are done.
    pub fn progress(&self, done: u64, total: Option<u64>, unit: Unit) {
        self.emit(&Event::Progress { node: self.node.clone(), done, total, unit, note: None });
    }

    /// What a step measured. Numbers that JSON cannot say (infinite, NaN) are left out.
    pub fn metrics(&self, step: u64, values: &[(&str, f64)]) {
        let values: BTreeMap<String, f64> = values
            .iter()
            .filter(|(_, value)| value.is_finite())
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect();
        self.emit(&Event::Metrics { node: self.node.clone(), step, values });
    }

    /// Good to know.
    pub fn info(&self, text: impl Into<String>) {
        self.emit(&Event::log(&self.node, Level::Info, text));
    }

    /// May surprise.
    pub fn warn(&self, text: impl Into<String>) {
        self.emit(&Event::log(&self.node, Level::Warning, text));
    }

    fn emit(&self, event: &Event) {
        if !self.speaks {
            return;
        }
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            // Whoever does not listen any more will end this process too; there is nobody to tell.
            let mut out = io::stdout().lock();
            let _ = out.write_all(&line).and_then(|()| out.flush());
        }
    }
}
