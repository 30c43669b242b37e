//! What a job says to its head: lines of a file on the disk that both see.
//!
//! The job appends, and syncs what it wrote now and then, as others on a network's file system see it no sooner. The head
//! reads from where it was, whole lines only. A job that its scheduler started again appends to the same file.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use flow_core::{Event, How, Record, Sink};
use serde::{Deserialize, Serialize};

use crate::record::now;

/// So often what was written is brought to where others see it.
const SYNC: Duration = Duration::from_secs(2);
/// Progress of a node is said no more often.
const PROGRESS: Duration = Duration::from_secs(1);
/// The head takes so much of one file at a time.
const TAKE: u64 = 1 << 20;

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// What the job says of itself.
    Word(Word),
    /// What its nodes do.
    Event(Record),
}

/// What a job says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub enum Word {
    /// It has begun, on this machine.
    Began {
        /// The machine.
        host: String,
    },
    /// It has nothing more to do with a node.
    Ended {
        /// The node.
        node: String,
        /// Why.
        end: Ending,
    },
}

/// What became of a node in a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Its result is in the cache.
    Made(How),
    /// It failed.
    Failed {
        /// What went wrong, and the causes, outermost first.
        causes: Vec<String>,
        /// The cache cannot be used: nothing else would fare better.
        unusable: bool,
    },
    /// It was not begun: the job had to end before.
    Untouched,
    /// It was stopped by the job's time limit, and kept what it has.
    Limit,
    /// It was stopped by somebody else, and kept what it has.
    Stopped,
}

/// The job's end.
pub struct Writer(Mutex<State>);

struct State {
    file: File,
    dirty: Option<Instant>,
    progress: Option<(String, Instant)>,
}

impl Writer {
    /// Appends to a file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(Mutex::new(State { file, dirty: None, progress: None })))
    }

    /// Says something of the job, and sees to it that it is heard.
    pub fn say(&self, word: Word) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.write(&Line::Word(word));
        state.sync();
    }

    /// Brings what was written to where others see it, if it is time to.
    pub fn sync(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.dirty.is_some_and(|since| since.elapsed() >= SYNC) {
            state.sync();
        }
    }
}

impl State {
    fn write(&mut self, line: &Line) {
        // A number that is none is written as null; what cannot be written (a full disk) the head does without: the
        // result is what counts.
        if let Ok(mut text) = serde_json::to_vec(line) {
            text.push(b'\n');
            self.file.write_all(&text).ok();
            self.dirty.get_or_insert_with(Instant::now);
        }
    }

    fn sync(&mut self) {
        self.file.sync_data().ok();
        self.dirty = None;
    }
}

impl Sink for Writer {
    fn emit(&self, event: Event) {
        let event = event.hidden();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Event::Progress { node, .. } = &event {
            let soon = |(last, said): &(String, Instant)| last == node && said.elapsed() < PROGRESS;
            if state.progress.as_ref().is_some_and(soon) {
                return;
            }
            state.progress = Some((node.clone(), Instant::now()));
        }
        state.write(&Line::Event(Record { time: now(), event }));
    }
}

/// The head's end.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    at: u64,
}

impl Tail {
    /// Of a file that may not be there yet, from its beginning.
    pub fn new(path: PathBuf) -> Self {
        Self { path, at: 0 }
    }

    /// The lines that are new, and whether there may be more at once. What cannot be read is read the next time.
    pub fn read(&mut self) -> (Vec<Line>, bool) {
        let mut bytes = Vec::new();
        let read = (|| {
            // Opened anew each time: a file system of a network looks whether it changed when it is opened.
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.at))?;
            file.take(TAKE).read_to_end(&mut bytes)
        })();
        if read.is_err() {
            return (Vec::new(), false);
        }
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let more = bytes.len() as u64 == TAKE;
        // A line longer than what is taken at once would never end: it is passed over.
        self.at += if whole == 0 && more { TAKE } else { whole as u64 };
        let lines = bytes[..whole].split(|byte| *byte == b'\n');
        (lines.filter_map(|line| serde_json::from_slice(line).ok()).collect(), more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow_core::Level;
    use std::fs;

    #[test]
    fn what_is_said_is_heard_once_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.jsonl");
        let mut tail = Tail::new(path.clone());
        assert_eq!(tail.read(), (Vec::new(), false));
        let writer = Writer::open(&path).unwrap();
        let event = Event::log("a", Level::Output, "x");
        writer.emit(event.clone());
        writer.say(Word::Ended { node: "a".into(), end: Ending::Made(How::Ran) });
        let (lines, _) = tail.read();
        assert!(matches!(&lines[..], [Line::Event(record), Line::Word(Word::Ended { .. })] if record.event == event));
        // The half of a line is not there yet.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"job\":\"began\",").unwrap();
        assert_eq!(tail.read().0, []);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"\"host\":\"n1\"}\nrubbish\n").unwrap();
        assert_eq!(tail.read().0, [Line::Word(Word::Began { host: "n1".into() })]);
        fs::remove_file(&path).unwrap();
        assert_eq!(tail.read().0, []);
    }
}
