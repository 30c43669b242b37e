//! [`Tale`]: what the events of a run tell, taken as they come: how each node stands, when it worked and when it waited,
//! what it measured. Of a run that goes on only what is new is read.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom},
    path::Path,
};

use anyhow::{Context, Result};
use flow_core::{Digest, Event, How, Key, Level, Record, Unit};
use serde::{Deserialize, Serialize};

use super::curve::Curve;

/// So many warnings of a node are kept.
const WARNINGS: usize = 20;

/// How a node stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not begun; what a stage looks like of which nothing is known.
    #[default]
    Ahead,
    Off,
    Cached,
    Shared,
    Remote,
    Ran,
    Resumed,
    NotRun,
    Interrupted,
    Killed,
    Waiting,
    Retry,
    Running,
    Failed,
}

impl State {
    /// In a word or two.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ahead => "to go",
            Self::Off => "off",
            Self::Cached => "cached",
            Self::Shared => "shared",
            Self::Remote => "from the team",
            Self::Ran => "ran",
            Self::Resumed => "resumed",
            Self::NotRun => "not run",
            Self::Interrupted => "interrupted",
            Self::Killed => "killed",
            Self::Waiting => "waiting",
            Self::Retry => "tried again",
            Self::Running => "running",
            Self::Failed => "failed",
        }
    }

    /// The class that gives it its colour: states that say the same to a reader share one.
    pub fn class(self) -> &'static str {
        match self {
            Self::Ahead | Self::Off | Self::NotRun => "st-none",
            Self::Cached | Self::Shared | Self::Remote => "st-hit",
            Self::Ran | Self::Resumed => "st-ran",
            Self::Waiting | Self::Retry => "st-wait",
            Self::Running => "st-run",
            Self::Failed | Self::Killed | Self::Interrupted => "st-bad",
        }
    }

    /// Its result was there and was not made.
    pub fn is_hit(self) -> bool {
        matches!(self, Self::Cached | Self::Shared | Self::Remote)
    }

    /// It is not over.
    pub fn goes_on(self) -> bool {
        matches!(self, Self::Waiting | Self::Retry | Self::Running)
    }
}

impl From<How> for State {
    fn from(how: How) -> Self {
        match how {
            How::Ran => Self::Ran,
            How::Resumed => Self::Resumed,
            How::Cached => Self::Cached,
            How::Shared => Self::Shared,
            How::Remote => Self::Remote,
            How::Off => Self::Off,
        }
    }
}

/// A stretch of time in which a node did one thing; seconds since 1970.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Span {
    pub from: f64,
    /// Nothing while it goes on.
    pub to: Option<f64>,
    pub what: State,
}

/// How far a running node is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Progress {
    pub done: u64,
    pub total: Option<u64>,
    pub unit: Unit,
    pub note: Option<String>,
}

/// What is known of a node.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Told {
    pub state: State,
    /// Why it ran, why it waits, or which failed before it.
    pub why: String,
    pub key: Option<Key>,
    pub digest: Option<Digest>,
    pub seconds: Option<f64>,
    pub bytes: Option<u64>,
    /// What it took when it was made.
    pub cost: f64,
    pub spans: Vec<Span>,
    pub progress: Option<Progress>,
    pub causes: Vec<String>,
    pub log: Vec<String>,
    pub warnings: Vec<String>,
}

/// What the events tell.
#[derive(Clone, Debug, Default)]
pub struct Tale {
    read: u64,
    pub nodes: BTreeMap<String, Told>,
    /// Node → what was measured → values.
    pub curves: BTreeMap<String, BTreeMap<String, Curve>>,
    /// The time of the newest event.
    pub newest: Option<f64>,
}

/// Most lines of a long run are of these two kinds, and an [`Event`] of all kinds takes its time to read.
#[derive(Deserialize)]
struct Measured {
    time: f64,
    node: String,
    step: u64,
    values: BTreeMap<String, Option<f64>>,
}

impl Tale {
    /// Takes what the file of events says beyond what was taken before; whether there was anything.
    ///
    /// # Errors
    /// The file cannot be read; that it is not there is none.
    pub fn read(&mut self, events: &Path) -> Result<bool> {
        let context = || format!("cannot read {}", events.display());
        let mut file = match File::open(events) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            opened => BufReader::new(opened.with_context(context)?),
        };
        file.seek(SeekFrom::Start(self.read)).with_context(context)?;
        let (before, mut line) = (self.read, Vec::new());
        loop {
            line.clear();
            let length = file.read_until(b'\n', &mut line).with_context(context)?;
            // What is being written is taken when it is whole.
            if length == 0 || line.last() != Some(&b'\n') {
                return Ok(self.read > before);
            }
            self.read += length as u64;
            self.take(&line);
        }
    }

    /// Reads another run's events over those that were taken.
    pub fn read_on(&mut self, events: &Path) -> Result<bool> {
        self.read = 0;
        self.read(events)
    }

    fn take(&mut self, line: &[u8]) {
        const METRICS: &[u8] = b"\"event\":\"metrics\"";
        let head = &line[..line.len().min(80)];
        if head.windows(METRICS.len()).any(|part| part == METRICS) {
            let Ok(measured) = serde_json::from_slice::<Measured>(line) else { return };
            self.newest = Some(measured.time);
            let curves = self.curves.entry(measured.node).or_default();
            for (name, value) in measured.values {
                if let Some(value) = value {
                    curves.entry(name).or_default().push(measured.step, value);
                }
            }
        } else if let Ok(record) = serde_json::from_slice::<Record>(line) {
            self.newest = Some(record.time);
            if let Some(node) = record.event.node().filter(|node| !node.is_empty()) {
                self.nodes.entry(node.to_owned()).or_default().apply(record.time, record.event);
            }
        }
    }

    /// Says of what did not end how it stands in a run that is over.
    pub fn settle(&mut self, alive: bool, interrupted: bool, finished: Option<f64>) {
        if alive {
            return;
        }
        for told in self.nodes.values_mut().filter(|told| told.state.goes_on()) {
            told.state = match (interrupted, finished) {
                (true, _) => State::Interrupted,
                (false, Some(_)) => State::NotRun,
                (false, None) => State::Killed,
            };
            told.end(finished.or(self.newest).unwrap_or_default());
            if let Some(last) = told.spans.last_mut().filter(|last| last.what == State::Running) {
                last.what = told.state;
            }
        }
    }

    /// Makes of it the tale of a run that found everything as this one had left it, at that time.
    pub fn found_again(&mut self, time: f64) {
        for told in self.nodes.values_mut() {
            if told.state != State::Off {
                told.state = State::Cached;
            }
            told.spans = vec![Span { from: time, to: Some(time), what: told.state }];
            told.seconds = None;
            (told.why, told.progress) = (String::new(), None);
            (told.causes, told.log, told.warnings) = (Vec::new(), Vec::new(), Vec::new());
        }
        self.curves.clear();
    }
}

impl Told {
    fn begin(&mut self, from: f64, what: State) {
        self.end(from);
        self.state = what;
        self.spans.push(Span { from, to: None, what });
    }

    fn end(&mut self, time: f64) {
        if let Some(last) = self.spans.last_mut() {
            last.to.get_or_insert(time);
        }
    }

    fn apply(&mut self, time: f64, event: Event) {
        match event {
            Event::Waiting { reason, .. } => {
                self.begin(time, State::Waiting);
                self.why = reason;
            }
            Event::Started { key, why, .. } => {
                self.begin(time, State::Running);
                (self.key, self.why) = (Some(key), why);
            }
            Event::Progress { done, total, unit, note, .. } => {
                self.progress = Some(Progress { done, total, unit, note });
            }
            Event::Log { level: Level::Warning | Level::Error, text, .. } if self.warnings.len() < WARNINGS => {
                self.warnings.push(text);
            }
            Event::Finished { how, key, digest, seconds, bytes, cost, .. } => {
                match self.spans.last_mut().filter(|last| last.to.is_none() && last.what == State::Running) {
                    Some(last) => last.what = how.into(),
                    None => self.begin(time, how.into()),
                }
                self.end(time);
                self.state = how.into();
                (self.key, self.digest, self.bytes) = (Some(key), Some(digest), Some(bytes));
                (self.seconds, self.cost, self.progress) = (Some(seconds), cost, None);
                // What an attempt before this one said is in its log.
                (self.causes, self.log) = (Vec::new(), Vec::new());
            }
            Event::Failed { causes, seconds, log, retry_after, .. } => {
                self.end(time);
                if let Some(last) = self.spans.last_mut() {
                    last.what = State::Failed;
                }
                self.state = if retry_after.is_some() { State::Retry } else { State::Failed };
                (self.seconds, self.causes, self.log, self.progress) = (Some(seconds), causes, log, None);
            }
            Event::Blocked { by, .. } => (self.state, self.why) = (State::NotRun, format!("{by} failed")),
            Event::RunStarted { .. } | Event::RunFinished { .. } | Event::Log { .. } | Event::Metrics { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn events_are_taken_as_they_come_and_never_half_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let mut tale = Tale::default();
        assert!(!tale.read(&path).unwrap());
        let mut file = File::create(&path).unwrap();
        let key = "ab".repeat(32);
        let started = format!(r#"{{"time":5.0,"event":"started","node":"t","key":"{key}","why":"never ran"}}"#);
        let waiting = r#"{"time":2.0,"event":"waiting","node":"t","reason":"b has it"}"#;
        let torn = r#"{"time":6.0,"event":"metrics","node":"t","step":1,"values":{"lo"#;
        write!(file, "{waiting}\n{started}\n{torn}").unwrap();
        assert!(tale.read(&path).unwrap() && !tale.read(&path).unwrap());
        let told = &tale.nodes["t"];
        assert_eq!((told.state, told.why.as_str()), (State::Running, "never ran"));
        assert_eq!(told.spans[0], Span { from: 2.0, to: Some(5.0), what: State::Waiting });
        assert_eq!(told.spans[1], Span { from: 5.0, to: None, what: State::Running });
        writeln!(file, "ss\":3.5,\"norm\":null}}}}").unwrap();
        assert!(tale.read(&path).unwrap());
        assert_eq!(tale.curves["t"]["loss"].last(), Some((1, 3.5)));
        assert!(!tale.curves["t"].contains_key("norm"));
        tale.settle(true, false, None);
        assert_eq!(tale.nodes["t"].state, State::Running);
        tale.settle(false, false, None);
        assert_eq!((tale.nodes["t"].state, tale.nodes["t"].spans[1].to), (State::Killed, Some(6.0)));
    }
}
