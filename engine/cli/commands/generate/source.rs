//! Where prompts come from: the command line, a file, standard input.

use std::{
    fs,
    io::{self, BufRead as _},
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use flow_core::{Cancel, Diagnostic};
use serde_json::{Map, Value as Json};

use crate::failure::{Failure, from_error};

/// How often it is looked whether it is to stop.
const POLL: Duration = Duration::from_millis(50);

/// A prompt and where it stands.
#[derive(Debug)]
pub struct Question {
    /// It.
    pub prompt: String,
    /// `questions.jsonl: line 3`
    pub place: Option<String>,
    /// What it came in.
    pub object: Option<Map<String, Json>>,
}

impl Question {
    /// It cannot be asked.
    pub fn wrong(&self, error: &anyhow::Error) -> Failure {
        let mut wrong = from_error(error);
        if let Some(place) = &self.place {
            wrong.message = format!("{place}: {}", wrong.message);
        }
        Failure::Pipeline(vec![wrong])
    }
}

/// All prompts.
pub fn questions(prompt: Option<String>, file: Option<&Path>, cancel: &Cancel) -> Result<Vec<Question>, Failure> {
    if let Some(prompt) = prompt {
        return Ok(vec![Question { prompt, place: None, object: None }]);
    }
    if let Some(file) = file {
        return from_file(file);
    }
    let typed = Typed::listen()?;
    let mut questions = Vec::new();
    for number in 1.. {
        match typed.next(cancel) {
            Line::Text(prompt) if prompt.is_empty() => {}
            Line::Text(prompt) => {
                questions.push(Question { prompt, place: Some(format!("stdin: line {number}")), object: None });
            }
            Line::End => break,
            Line::Interrupted => return Err(Failure::Interrupted),
        }
    }
    Ok(questions)
}

fn from_file(file: &Path) -> Result<Vec<Question>, Failure> {
    let text = fs::read_to_string(file)
        .map_err(|error| Diagnostic::new(format!("cannot read {}", file.display())).cause(error.to_string()))?;
    let question = |(at, line): (usize, &str)| {
        let place = format!("{}: line {}", file.display(), at + 1);
        let wrong = |what: &str| {
            let hint = r#"each line is an object with a text as `prompt`: {"prompt": "…"}"#;
            Failure::from(Diagnostic::new(format!("{place}: {what}")).hint(hint))
        };
        let object: Map<String, Json> = serde_json::from_str(line).map_err(|error| wrong(&error.to_string()))?;
        let prompt = object.get("prompt").or_else(|| object.get("input"));
        let prompt = prompt.ok_or_else(|| wrong("`prompt` is missing"))?;
        let prompt = prompt.as_str().ok_or_else(|| wrong("`prompt` is no text"))?.to_owned();
        Ok(Question { prompt, place: Some(place), object: Some(object) })
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(question).collect()
}

/// Lines of standard input, read on a thread of their own: who waits for one can be interrupted.
pub struct Typed(Receiver<io::Result<String>>);

/// What came of waiting for a line.
pub enum Line {
    /// Without its end.
    Text(String),
    /// There are no more.
    End,
    /// Ctrl-C.
    Interrupted,
}

impl Typed {
    /// Begins to read.
    pub fn listen() -> Result<Self, Failure> {
        let (sender, receiver) = channel();
        let read = move || io::stdin().lock().lines().try_for_each(|line| sender.send(line).map_err(drop));
        let started = thread::Builder::new().name("stdin".into()).spawn(read);
        started.map_err(|error| Diagnostic::new("cannot start a thread").cause(error.to_string()))?;
        Ok(Self(receiver))
    }

    /// The next line. What cannot be read ends the input.
    pub fn next(&self, cancel: &Cancel) -> Line {
        loop {
            if cancel.is_set() {
                return Line::Interrupted;
            }
            match self.0.recv_timeout(POLL) {
                Ok(Ok(line)) => return Line::Text(line),
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => return Line::End,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
