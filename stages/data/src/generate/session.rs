//! [`Session`]: a model in a worker's memory.

use std::{
    collections::BTreeMap,
    io::{BufWriter, Write as _},
    process::ChildStdin,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use flow_core::{Cancel, Cancelled};
use flow_plan::{Device, Ending, FromGenerator, Generate, GenerateJob, Job, Precision, Sampling, Serving, ToGenerator};

use super::{Model, stream::Stream};
use crate::worker::{self, Line, Ranks, Stream as Pipe, verdict};

/// How often it is looked whether it is to stop.
const POLL: Duration = Duration::from_millis(50);

/// How the model is held.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Where.
    pub device: Device,
    /// Of weights and activations; as they are stored, if left out.
    pub precision: Option<Precision>,
    /// Ranks that share each layer.
    pub tensor: usize,
    /// Prompts that go on together.
    pub batch_size: usize,
    /// A prompt and what is made of it have so many tokens at most.
    pub max_length: usize,
    /// Threads of a rank.
    pub threads: usize,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Of [`Model::encode`].
    pub tokens: Vec<u32>,
    /// More are not made.
    pub max_new_tokens: usize,
    /// The likeliest token each time, if left out.
    pub sampling: Option<Sampling>,
}

/// What became of a prompt.
#[derive(Clone, Debug)]
pub struct Completion {
    /// How it goes on, without what ended it.
    pub text: String,
    /// Tokens that were made.
    pub tokens: usize,
    /// What ended it.
    pub ended: Ending,
}

/// What is told while it goes on.
#[derive(Debug)]
pub enum Told<'a> {
    /// The model is in memory: where.
    Ready(&'a str),
    /// A prompt, by its place among those asked, goes on so.
    Text(usize, &'a str),
    /// It does not go on.
    Ended(usize, &'a Completion),
}

/// A worker that has a model in memory. It ends with this value.
pub struct Session<'a> {
    model: &'a Model,
    cancel: Cancel,
    ranks: Ranks,
    lines: Receiver<Line>,
    stdin: BufWriter<ChildStdin>,
    /// Prompts asked so far: their numbers are not used again.
    asked: usize,
}

/// A prompt on its way.
struct Going<'a> {
    place: usize,
    tokens: usize,
    stream: Stream<'a>,
}

impl<'a> Session<'a> {
    /// Starts the worker. Must be called on a thread that lives as long as the session.
    ///
    /// # Errors
    /// There is no worker, or it does not start.
    pub fn start(model: &'a Model, setting: &Setting, cancel: &Cancel) -> Result<Self> {
        let program = worker::worker()?;
        worker::about(&program)?;
        let serving = Serving {
            model: std::path::absolute(&model.dir)?,
            max_length: setting.max_length,
            batch_size: setting.batch_size,
            device: setting.device,
            precision: setting.precision.unwrap_or(model.precision),
            threads: setting.threads,
            tensor: setting.tensor,
        };
        let job = Job::Generate(GenerateJob { serving });
        let (mut ranks, lines) = Ranks::converse(&program, &job, setting.tensor, setting.threads)?;
        let stdin = BufWriter::new(ranks.stdin().context("its input is a pipe")?);
        Ok(Self { model, cancel: cancel.clone(), ranks, lines, stdin, asked: 0 })
    }

    /// Goes on with prompts until none goes on, or one of the texts `until` stands in it. The completions are in the order of
    /// the prompts.
    ///
    /// # Errors
    /// The worker failed, or `tell` did; [`Cancelled`].
    pub fn generate(
        &mut self,
        prompts: &[Prompt],
        until: &[String],
        tell: &mut dyn FnMut(Told<'_>) -> Result<()>,
    ) -> Result<Vec<Completion>> {
        let mut going = BTreeMap::new();
        for (place, prompt) in prompts.iter().enumerate() {
            let generate = Generate {
                tokens: prompt.tokens.clone(),
                max_new_tokens: prompt.max_new_tokens,
                end: self.model.end.clone(),
                until: Vec::new(),
                sampling: prompt.sampling.clone(),
            };
            let stream = Stream::after(&prompt.tokens, &self.model.tokenizer, until);
            going.insert(self.asked, Going { place, tokens: 0, stream });
            self.say(&ToGenerator::Ask { id: self.asked, generate })?;
            self.asked += 1;
        }
        self.stdin.flush().or_else(|_| self.ended())?;
        let mut done: Vec<Option<Completion>> = vec![None; prompts.len()];
        while !going.is_empty() {
            let Some(told) = self.hear()? else { continue };
            let (id, ended) = match told {
                FromGenerator::Ready { place } => {
                    tell(Told::Ready(&place))?;
                    continue;
                }
                FromGenerator::Token { id, token } => {
                    // What was under way when it was let go of.
                    let Some(one) = going.get_mut(&id) else { continue };
                    one.tokens += 1;
                    let ended = one.stream.push(token)?.then_some(Ending::Until);
                    if ended.is_some() {
                        self.say(&ToGenerator::Forget(id))?;
                        self.stdin.flush().or_else(|_| self.ended())?;
                    }
                    (id, ended)
                }
                FromGenerator::Ended { id, ended } => (id, Some(ended)),
            };
            let Some(one) = going.get_mut(&id) else { continue };
            if ended.is_some() {
                one.stream.end()?;
            }
            let text = one.stream.take();
            if !text.is_empty() {
                tell(Told::Text(one.place, &text))?;
            }
            if let (Some(ended), Some(one)) = (ended, ended.and_then(|_| going.remove(&id))) {
                let completion = Completion { text: one.stream.into_text(), tokens: one.tokens, ended };
                tell(Told::Ended(one.place, &completion))?;
                done[one.place] = Some(completion);
            }
        }
        done.into_iter().collect::<Option<_>>().context("every prompt has ended")
    }

    fn say(&mut self, told: &ToGenerator) -> Result<()> {
        let mut line = serde_json::to_vec(told)?;
        line.push(b'\n');
        self.stdin.write_all(&line).or_else(|_| self.ended())
    }

    /// What the worker says next; none for a while without anything.
    fn hear(&mut self) -> Result<Option<FromGenerator>> {
        if self.cancel.is_set() {
            return Err(Cancelled.into());
        }
        match self.lines.recv_timeout(POLL) {
            Ok(Line { rank, stream, text }) => {
                if let (0, Pipe::Stdout, Ok(told)) = (rank, stream, serde_json::from_str(&text)) {
                    return Ok(Some(told));
                }
                self.ranks.0[rank].remember(&text);
                Ok(None)
            }
            Err(RecvTimeoutError::Timeout) => {
                self.ranks.poll()?;
                if self.ranks.0.iter().any(|rank| rank.status.is_some()) { self.ended() } else { Ok(None) }
            }
            Err(RecvTimeoutError::Disconnected) => self.ended(),
        }
    }

    /// The error of a worker that ended and should not have.
    fn ended<T>(&mut self) -> Result<T> {
        if self.cancel.is_set() {
            return Err(Cancelled.into());
        }
        // One of them fails first, and the others because of it.
        std::thread::sleep(POLL * 6);
        self.ranks.poll()?;
        self.ranks.signal(libc::SIGKILL);
        while !self.ranks.ended() {
            std::thread::sleep(POLL / 10);
            self.ranks.poll()?;
        }
        while let Ok(Line { rank, text, .. }) = self.lines.recv_timeout(POLL * 10) {
            self.ranks.0[rank].remember(&text);
        }
        verdict(&self.ranks.0, false)?;
        anyhow::bail!("the worker ended before the prompts did")
    }
}
