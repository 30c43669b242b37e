//! [`Data`]: the documents that a stage gives to its tasks; and what is said of them, and of the models, before the run.

use std::{collections::BTreeMap, fmt};

use flow_core::{Check, Diagnostic, Ref, Refs, did_you_mean};
use flow_plan::{Inference, ModelConfig};
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Value as Json;

use super::{Eval, source::first_line, tasks::From, template::Document};
use crate::{diagnostic, facts};

/// Documents in place of the tasks' own.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
pub enum Data {
    /// For what measures perplexity; or for the only task.
    All(Refs),
    /// By task.
    Of(BTreeMap<String, Refs>),
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Data;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a stage or a path, a list of them, or a table of tasks and what they take")
            }
            fn visit_str<E>(self, text: &str) -> Result<Data, E> {
                Ok(Data::All([Ref::new(text)].into_iter().collect()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Data, A::Error> {
                let mut refs: Vec<Ref> = Vec::new();
                while let Some(item) = items.next_element()? {
                    refs.push(item);
                }
                if refs.is_empty() {
                    return Err(serde::de::Error::custom("an empty list: name at least one stage or path"));
                }
                Ok(Data::All(refs.into_iter().collect()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Data, A::Error> {
                let mut tasks = BTreeMap::new();
                while let Some((task, refs)) = entries.next_entry()? {
                    tasks.insert(task, refs);
                }
                Ok(Data::Of(tasks))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl Eval {
    /// Says that a task has no documents, that some are for no task, that the first of them do not fit.
    pub(super) fn check_data(&self, check: &mut Check<'_>) {
        let names: Vec<&str> = self.tasks.iter().map(super::tasks::TaskRef::name).collect();
        let whose = "say whose they are: data = { TASK = \"…\" }";
        match &self.data {
            Some(Data::Of(tasks)) => {
                for task in tasks.keys().filter(|task| !names.contains(&task.as_str())) {
                    let error = Diagnostic::new(format!("there is no task `{task}` here"));
                    let hint = match did_you_mean(task, names.iter().copied()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("the tasks: {}", names.join(", ")),
                    };
                    check.error(&format!("data.{task}"), error.hint(hint));
                }
            }
            Some(Data::All(_))
                if self.found().count() == names.len()
                    && self.found().all(|(_, (_, f))| self.data_port(f) != "data") =>
            {
                let error = Diagnostic::new("none of the tasks measures perplexity, and there are several");
                check.error("data", error.hint(whose));
            }
            _ => {}
        }
        if self.json_key.is_some()
            && self.found().all(|(_, (_, found))| found.task.kind != super::Kind::Perplexity)
            && self.found().count() == names.len()
        {
            let error = Diagnostic::new("`json_key` is for tasks that measure perplexity, and there is none");
            check.error("json_key", error.hint("other tasks name their columns in their files"));
        }
        for (i, (named, found)) in self.found() {
            let task = &found.task;
            let port = self.data_port(found);
            let inputs = check.input(&port).to_vec();
            let has_own = match &found.from {
                From::Flow(shipped) => shipped.data.is_some(),
                From::File { data, .. } => data.is_some(),
            };
            if inputs.is_empty() && !has_own && self.given(&task.task).is_none() && port != "data" {
                let error = Diagnostic::new(format!("task `{}` has no documents", task.task));
                check.error(&format!("tasks.{i}"), error.hint(whose));
            }
            let templates = task.check(&mut Vec::new());
            for path in inputs.iter().filter_map(|known| known.path.as_ref()).filter(|path| path.is_file()) {
                let asked = first_line(path).and_then(|line| {
                    let Some(line) = line else { return Ok(()) };
                    task.ask(&templates, &Document::of_line(&line)?, &[]).map(drop)
                });
                if let Err(error) = asked.map_err(|error| error.context(format!("{}: line 1", path.display()))) {
                    let hint = if task.kind == super::Kind::Perplexity {
                        "documents are JSON lines; json_key names the key of the text".to_owned()
                    } else {
                        format!(
                            "documents are JSON lines, and `{}` says which columns they have",
                            named.reference.text()
                        )
                    };
                    check.error(&port, diagnostic(&error).hint(hint));
                }
            }
        }
    }

    /// Says what of a model cannot be evaluated.
    pub(super) fn check_model(&self, port: &str, check: &mut Check<'_>, notes: &mut Vec<String>) {
        let Some(known) = check.input(port).first().cloned() else { return };
        if let Some(path) = known.path.as_ref().filter(|path| !path.join("config.json").is_file()) {
            let wrong = Diagnostic::new(format!("{} holds no config.json", path.display()));
            check.error(
                port,
                wrong.hint("name a Hugging Face directory, or a stage that makes one, such as `megatron-to-hf`"),
            );
            return;
        }
        let read = facts::of(&known).and_then(|facts| {
            let config = facts.get("model_config").map(ModelConfig::from_json).transpose()?;
            Ok((config, facts.get("tokenizer_vocab").and_then(Json::as_u64)))
        });
        let (config, tokens) = match read {
            Ok((Some(config), tokens)) => (config, tokens),
            Ok((None, _)) => return,
            Err(error) => return check.error(port, diagnostic(&error)),
        };
        // What is 0 was said.
        if let Some(wrong) = Inference::unshared(&config, self.tensor).filter(|_| self.tensor > 0) {
            check.error("tensor", wrong);
        }
        let longest = config.max_position_embeddings;
        if let Some(asked) = self.seq_length.filter(|asked| *asked > longest) {
            let wrong =
                Diagnostic::new(format!("seq_length {asked} is longer than the {longest} positions of {}", known.name));
            check.error("seq_length", wrong.hint(format!("at most seq_length = {longest}")));
        }
        let room = self.seq_length.unwrap_or(longest);
        for (i, (_, found)) in self.found() {
            let new = found.task.max_new_tokens;
            if found.task.kind == super::Kind::Generate && new >= room {
                let wrong = format!(
                    "task `{}` writes {new} tokens, which leaves no room for a prompt in the {room} of {}",
                    found.task.task, known.name
                );
                check.error(&format!("tasks.{i}"), Diagnostic::new(wrong).hint("a smaller max_new_tokens in its file"));
            }
        }
        if let Some(tokens) = tokens.filter(|tokens| *tokens > config.vocab_size as u64) {
            let wrong =
                format!("the tokenizer of {} has {tokens} tokens, and its model {}", known.name, config.vocab_size);
            check.error(port, Diagnostic::new(wrong).hint("give the model the tokenizer that it was trained with"));
        }
        notes.push(format!("{port}: windows of {} tokens, {} at a time", self.window(&config), self.batch_size));
    }
}
