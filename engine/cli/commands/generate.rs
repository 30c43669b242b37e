//! `flow generate`

mod source;
mod told;

use std::{io::IsTerminal as _, path::PathBuf};

use flow_core::{Cancel, Cancelled, Diagnostic};
use flow_data::generate::{Message, Model, Prompt, Sampling, Session, Setting};

use super::{Done, path};
use crate::{
    args::{Generate, Pipeline},
    failure::{Failure, draw_all, from_error},
    interrupt,
    ui::diagnostic::Severity,
};
use source::{Line, Question, Typed};
use told::Printer;

/// A conversation is prepared for so many tokens, if the model has as many positions.
const CONVERSATION: usize = 8192;

/// Goes on with prompts.
pub fn generate(args: &Generate) -> Done {
    let sampling = sampling(args)?;
    let Asked { model, prompt } = asked(args)?;
    let model = Model::open(&model).map_err(|error| {
        let wrong =
            from_error(&error).hint("a model is a Hugging Face directory: config.json, safetensors, a tokenizer");
        Failure::Pipeline(vec![wrong])
    })?;
    if let Some(wrong) = model.unshared(args.tensor) {
        return Err(wrong.into());
    }
    let cancel = interrupt::watch().map_err(|error| Failure::Cache(error.into()))?;
    let talk = Talk { args, model: &model, sampling, cancel };
    let interactive = prompt.is_none() && args.prompts.is_none() && std::io::stdin().is_terminal();
    if interactive { talk.converse() } else { talk.answer(prompt) }
}

/// What the words of the command line mean.
struct Asked {
    model: PathBuf,
    prompt: Option<String>,
}

/// A directory, or the result of a stage; and a prompt, if there is one.
fn asked(args: &Generate) -> Result<Asked, Failure> {
    let mut words = args.words.iter();
    let is_pipeline = args.model.is_file();
    let stage = if is_pipeline { words.next() } else { None };
    let (prompt, more) = (words.next().cloned(), words.next());
    if let Some(more) = more {
        let wrong = Diagnostic::new(format!("`{more}` is one word too many"));
        return Err(wrong.hint("a prompt of several words is one in quotes").into());
    }
    if prompt.is_some() && args.prompts.is_some() {
        return Err(Diagnostic::new("a prompt and --prompts: only one of them can be gone on with").into());
    }
    if !is_pipeline {
        if args.profile.is_some() || !args.set.is_empty() {
            let wrong = Diagnostic::new("--profile and --set are for a pipeline");
            return Err(wrong.hint(format!("{} is not the file of one", args.model.display())).into());
        }
        return Ok(Asked { model: args.model.clone(), prompt });
    }
    let Some(stage) = stage else {
        let wrong =
            Diagnostic::new(format!("{} is a file: which of its stages makes the model?", args.model.display()));
        return Err(wrong.hint(format!("flow generate {} STAGE", args.model.display())).into());
    };
    let pipeline = Pipeline { file: args.model.clone(), profile: args.profile.clone(), set: args.set.clone() };
    let mut nodes = path::of_stage(&pipeline, stage)?;
    if let [(first, _), _, ..] = &nodes[..] {
        let wrong = Diagnostic::new(format!("stage `{stage}` has {} nodes, and one model is asked", nodes.len()));
        return Err(wrong.hint(format!("name one of them, such as `{first}`")).into());
    }
    match nodes.pop() {
        Some((_, model)) => Ok(Asked { model, prompt }),
        None => Err(Diagnostic::new(format!("stage `{stage}` is off")).into()),
    }
}

/// What was asked for, and by whom it is answered.
struct Talk<'a> {
    args: &'a Generate,
    model: &'a Model,
    sampling: Option<Sampling>,
    cancel: Cancel,
}

impl Talk<'_> {
    /// All prompts are known before the model is loaded.
    fn answer(&self, prompt: Option<String>) -> Done {
        let questions = source::questions(prompt, self.args.prompts.as_deref(), &self.cancel)?;
        let mut prompts = Vec::with_capacity(questions.len() * self.args.number);
        for question in &questions {
            let said = [Message { role: "user", content: question.prompt.clone() }];
            prompts.extend(
                self.prompts(&question.prompt, &said, self.model.positions())
                    .map_err(|error| question.wrong(&error))?,
            );
        }
        if prompts.is_empty() {
            return Ok(());
        }
        let longest = prompts.iter().map(|prompt| prompt.tokens.len() + prompt.max_new_tokens).max().unwrap_or(0);
        let mut printer = Printer::of(self.args, &questions)?;
        let mut session = self.start(longest, prompts.len())?;
        let done = session.generate(&prompts, &self.args.until, &mut |told| printer.hear(&told));
        done.map_err(|error| failed(&error))?;
        Ok(printer.end()?)
    }

    /// Line by line, as someone types.
    fn converse(&self) -> Done {
        let longest = CONVERSATION.min(self.model.positions());
        let mut session = self.start(longest, self.args.number)?;
        let typed = Typed::listen()?;
        eprintln!("{}; Ctrl-D ends", if self.args.chat { "a chat" } else { "each line is a prompt" });
        let mut said: Vec<Message> = Vec::new();
        loop {
            eprint!("> ");
            let prompt = match typed.next(&self.cancel) {
                Line::Text(line) if line.is_empty() => continue,
                Line::Text(line) => line,
                Line::End => return Ok(()),
                Line::Interrupted => return Err(Failure::Interrupted),
            };
            said.push(Message { role: "user", content: prompt.clone() });
            let prompts = match self.prompts(&prompt, &said, longest) {
                Ok(prompts) => prompts,
                Err(error) => {
                    draw_all(&[from_error(&error).hint("what was said before is forgotten")], Severity::Error);
                    said.clear();
                    continue;
                }
            };
            let question = [Question { prompt, place: None, object: None }];
            let mut printer = Printer::of(self.args, &question)?;
            let done = session.generate(&prompts, &self.args.until, &mut |told| printer.hear(&told));
            let done = done.map_err(|error| failed(&error))?;
            if self.args.chat {
                said.extend(done.into_iter().take(1).map(|one| Message { role: "assistant", content: one.text }));
            } else {
                said.clear();
            }
        }
    }

    /// What the worker is asked for one prompt: as often as it is wanted.
    fn prompts(&self, text: &str, said: &[Message], longest: usize) -> anyhow::Result<Vec<Prompt>> {
        let tokens = if self.args.chat { self.model.encode_chat(said)? } else { self.model.encode(text)? };
        let room = longest.saturating_sub(tokens.len());
        anyhow::ensure!(
            room > 0,
            "the prompt has {} tokens, and {longest} hold it and what is made of it",
            tokens.len()
        );
        let max_new_tokens = self.args.max_new_tokens.min(room);
        let sampling = |n: usize| {
            let seed = |sampling: Sampling| Sampling { seed: sampling.seed.wrapping_add(n as u64), ..sampling };
            self.sampling.clone().map(seed)
        };
        let prompt = |n| Prompt { tokens: tokens.clone(), max_new_tokens, sampling: sampling(n) };
        Ok((0..self.args.number).map(prompt).collect())
    }

    fn start(&self, max_length: usize, prompts: usize) -> Result<Session<'_>, Failure> {
        let setting = Setting {
            device: self.args.device.into(),
            precision: self.args.precision.map(Into::into),
            tensor: self.args.tensor,
            batch_size: self.args.batch_size.min(prompts),
            max_length,
            threads: std::thread::available_parallelism().map_or(1, usize::from).div_ceil(self.args.tensor),
        };
        Session::start(self.model, &setting, &self.cancel).map_err(|error| failed(&error))
    }
}

/// How tokens are drawn; none is always the likeliest.
fn sampling(args: &Generate) -> Result<Option<Sampling>, Failure> {
    let wrong = |what: String| Failure::Pipeline(vec![Diagnostic::new(what)]);
    for (name, value, least, what) in [
        ("temperature", args.temperature, 0.0, "0 or more"),
        ("repetition-penalty", args.repetition_penalty, f64::MIN_POSITIVE, "a number above 0"),
    ] {
        if let Some(value) = value.filter(|value| !(value.is_finite() && *value >= least)) {
            return Err(wrong(format!("--{name} {value} makes no sense: it is {what}")));
        }
    }
    if let Some(top_p) = args.top_p.filter(|top_p| !(*top_p > 0.0 && *top_p <= 1.0)) {
        return Err(wrong(format!("--top-p {top_p} makes no sense: it is a probability, above 0 and up to 1")));
    }
    let draws = args.top_k.is_some() || args.top_p.is_some();
    let temperature = args.temperature.unwrap_or(if draws { 1.0 } else { 0.0 });
    let penalty = args.repetition_penalty.unwrap_or(1.0);
    if temperature == 0.0 && penalty == 1.0 {
        return Ok(None);
    }
    Ok(Some(Sampling {
        temperature,
        top_k: args.top_k.unwrap_or(0),
        top_p: args.top_p.unwrap_or(1.0),
        repetition_penalty: penalty,
        seed: args.seed,
    }))
}

/// The worker failed, as a stage does; or what was told could not be written.
fn failed(error: &anyhow::Error) -> Failure {
    if error.chain().any(<dyn std::error::Error>::is::<Cancelled>) {
        return Failure::Interrupted;
    }
    Failure::Stage(vec![from_error(error)])
}
