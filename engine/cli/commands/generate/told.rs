//! Where texts go: to stdout while they are made, one after the other as they were asked for; or as JSON lines.

use std::{
    fs::{self, File},
    io::{BufWriter, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result};
use flow_data::generate::{Completion, Ending, Told};
use serde_json::json;

use super::source::Question;
use crate::{args::Generate, out};

/// Hears what is made and prints it.
pub struct Printer<'a> {
    questions: &'a [Question],
    /// Texts of each question.
    number: usize,
    to: To,
    /// The text that is printed now.
    current: usize,
    /// What is to be printed of later ones, and whether they have ended.
    later: Vec<(String, bool)>,
    since: Instant,
    tokens: usize,
    ended: usize,
}

enum To {
    /// As they are.
    Text,
    /// JSON lines on stdout.
    Json,
    /// JSON lines in a file, which is there when all are.
    File { path: PathBuf, file: BufWriter<File> },
}

impl<'a> Printer<'a> {
    /// As it is wanted.
    pub fn of(args: &Generate, questions: &'a [Question]) -> Result<Self> {
        let to = match &args.output {
            Some(path) => {
                let file = File::create(temporary(path)).with_context(|| format!("cannot write {}", path.display()))?;
                To::File { path: path.clone(), file: BufWriter::new(file) }
            }
            None if args.json || args.prompts.is_some() => To::Json,
            None => To::Text,
        };
        let later = vec![(String::new(), false); questions.len() * args.number];
        Ok(Self { questions, number: args.number, to, current: 0, later, since: Instant::now(), tokens: 0, ended: 0 })
    }

    /// Takes what is told.
    pub fn hear(&mut self, told: &Told<'_>) -> Result<()> {
        match told {
            Told::Ready(place) => {
                eprintln!("loaded in {:.1} s, on the {place}", self.since.elapsed().as_secs_f64());
                self.since = Instant::now();
            }
            Told::Text(place, text) => {
                if matches!(self.to, To::Text) {
                    self.say(*place, text)?;
                }
            }
            Told::Ended(place, completion) => {
                self.tokens += completion.tokens;
                self.ended += 1;
                match self.to {
                    To::Text => self.say(*place, "\n")?,
                    To::Json | To::File { .. } => self.say(*place, &self.line(*place, completion))?,
                }
                self.later[*place].1 = true;
                while self.later.get(self.current).is_some_and(|(_, ended)| *ended) {
                    self.current += 1;
                    if let Some((text, _)) = self.later.get_mut(self.current) {
                        let text = std::mem::take(text);
                        self.say(self.current, &text)?;
                    }
                }
                if !matches!(self.to, To::Text) && std::io::stderr().is_terminal() {
                    eprint!("\r{} of {}", self.ended, self.later.len());
                }
            }
        }
        Ok(())
    }

    /// All was told.
    pub fn end(self) -> Result<()> {
        if let To::File { path, file } = self.to {
            let file = file.into_inner().map_err(std::io::IntoInnerError::into_error);
            file.and_then(|file| file.sync_all())
                .and_then(|()| fs::rename(temporary(&path), &path))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let seconds = self.since.elapsed().as_secs_f64();
        let newline = if std::io::stderr().is_terminal() { "\n" } else { "" };
        eprintln!("{newline}{} tokens in {seconds:.1} s: {:.1} a second", self.tokens, self.tokens as f64 / seconds);
        Ok(())
    }

    /// Prints a part of a text, now or when those before it have ended.
    fn say(&mut self, place: usize, text: &str) -> Result<()> {
        if place != self.current {
            self.later[place].0 += text;
            return Ok(());
        }
        match &mut self.to {
            To::Text | To::Json => out::write(text),
            To::File { path, file } => {
                file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
            }
        }
    }

    fn line(&self, place: usize, completion: &Completion) -> String {
        let question = &self.questions[place / self.number];
        let mut object = question.object.clone().unwrap_or_default();
        if question.object.is_none() {
            object.insert("prompt".to_owned(), json!(question.prompt));
        }
        let ended = match completion.ended {
            Ending::End => "end",
            Ending::Until => "until",
            Ending::Length => "length",
        };
        object.insert("prediction".to_owned(), json!(completion.text));
        object.insert("tokens".to_owned(), json!(completion.tokens));
        object.insert("ended".to_owned(), json!(ended));
        if self.number > 1 {
            object.insert("sample".to_owned(), json!(place % self.number));
        }
        json!(object).to_string() + "\n"
    }
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}
