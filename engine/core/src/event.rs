//! [`Event`]: one enum for the engine's word to the screen, a worker's to the engine, and the run's file on disk.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Key};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A run began.
    RunStarted {
        /// The run's id.
        run: String,
        /// The pipeline file.
        pipeline: String,
        /// The profile, if one was chosen.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        profile: Option<String>,
        /// How many nodes the graph has.
        nodes: usize,
        /// flow's version.
        version: String,
    },
    /// A node waits for something outside: another flow that does the same work, a remote.
    Waiting {
        /// The node.
        node: String,
        /// For what.
        reason: String,
    },
    /// A node began to run.
    Started {
        /// The node.
        node: String,
        /// Its key.
        key: Key,
        /// Why it runs and is not skipped.
        why: String,
    },
    /// A running node got further.
    Progress {
        /// The node.
        node: String,
        /// So much is done.
        done: u64,
        /// Of so much, if known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
        /// Of what.
        unit: Unit,
        /// A word for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    },
    /// A running node measured something: `loss`, `lr`, `grad_norm`, `tokens_per_second`, …
    Metrics {
        /// The node.
        node: String,
        /// The training step, from 1.
        step: u64,
        /// Name → value.
        values: BTreeMap<String, f64>,
    },
    /// A line of a node's log.
    Log {
        /// The node.
        node: String,
        /// How serious.
        level: Level,
        /// The line, without its end.
        text: String,
        /// The rank that wrote it, where a node has several.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rank: Option<usize>,
    },
    /// A node is done.
    Finished {
        /// The node.
        node: String,
        /// How its result came.
        how: How,
        /// Its key.
        key: Key,
        /// The digest of its tree.
        digest: Digest,
        /// How long it took now, in seconds.
        seconds: f64,
        /// The size of its tree in bytes.
        bytes: u64,
        /// How long it took when it was run, in seconds: what a hit saved.
        #[serde(default)]
        cost: f64,
    },
    /// A node failed.
    Failed {
        /// The node.
        node: String,
        /// What went wrong, and the causes, outermost first.
        causes: Vec<String>,
        /// How long it took, in seconds.
        seconds: f64,
        /// The last lines of its log.
        log: Vec<String>,
        /// It is tried again after so many seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<f64>,
    },
    /// A node cannot run because another failed.
    Blocked {
        /// The node.
        node: String,
        /// The one that failed.
        by: String,
    },
    /// A run ended.
    RunFinished {
        /// Everything that was asked for is there.
        ok: bool,
        /// It was interrupted.
        interrupted: bool,
        /// Nodes that ran.
        ran: usize,
        /// Nodes whose result was in the cache.
        skipped: usize,
        /// Nodes that failed.
        failed: usize,
        /// How long it took, in seconds.
        seconds: f64,
        /// What the cache saved, in seconds.
        saved: f64,
    },
}

/// How a node's result came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// It ran.
    Ran,
    /// It went on from where an interrupted run left off.
    Resumed,
    /// It was in the cache.
    Cached,
    /// Another flow was doing it; its result was taken.
    Shared,
    /// It came from the team's cache.
    Remote,
    /// Its `when` says that it is not wanted.
    Off,
}

/// What progress counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Documents.
    Documents,
    /// Tokens.
    Tokens,
    /// Training steps.
    Steps,
    /// Anything else.
    Items,
}

/// How serious a line of a log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// What a program printed.
    Output,
    /// Good to know.
    Info,
    /// May surprise.
    Warning,
    /// Went wrong.
    Error,
}

/// An event with its time: one line of `events.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Seconds since 1970, UTC.
    pub time: f64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Where events go.
pub trait Sink: Send + Sync {
    /// Takes an event. Never blocks for long, never fails.
    fn emit(&self, event: Event);
}

impl<F: Fn(Event) + Send + Sync> Sink for F {
    fn emit(&self, event: Event) {
        self(event);
    }
}

impl Event {
    /// A line of a node's log that is no rank's.
    #[must_use]
    pub fn log(node: impl Into<String>, level: Level, text: impl Into<String>) -> Self {
        Self::Log { node: node.into(), level, text: text.into(), rank: None }
    }

    /// The node that this is about.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Waiting { node, .. }
            | Self::Started { node, .. }
            | Self::Progress { node, .. }
            | Self::Metrics { node, .. }
            | Self::Log { node, .. }
            | Self::Finished { node, .. }
            | Self::Failed { node, .. }
            | Self::Blocked { node, .. } => Some(node),
            Self::RunStarted { .. } | Self::RunFinished { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_flat_line_and_comes_back() {
        let record = Record {
            time: 1.5,
            event: Event::Progress { node: "raw[0]".into(), done: 3, total: None, unit: Unit::Bytes, note: None },
        };
        let line = serde_json::to_string(&record).unwrap();
        assert_eq!(line, r#"{"time":1.5,"event":"progress","node":"raw[0]","done":3,"unit":"bytes"}"#);
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
    }
}
