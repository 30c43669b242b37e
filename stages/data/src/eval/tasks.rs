//! [`TaskRef`]: a task that a stage names: one that comes with flow, or a file.

use std::path::Path;

use flow_core::{Diagnostic, Digest, Files, Ref, Span, Value, did_you_mean, read};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::json;

use super::{
    shipped::{SHIPPED, Shipped, shipped},
    task::Task,
};

/// A task by its name or its file.
#[derive(Debug)]
pub struct TaskRef {
    /// What the user wrote.
    pub reference: Ref,
    /// What it means; nothing if that could not be read.
    pub found: Option<Found>,
}

/// What is behind the name of a task.
#[derive(Debug)]
pub struct Found {
    /// The task.
    pub task: Task,
    /// Where it comes from.
    pub from: From,
}

/// Where a task comes from.
#[derive(Debug)]
pub enum From {
    /// Its file and its data are in this program.
    Flow(&'static Shipped),
    /// A file of the project, with the paths that stand in it.
    File {
        /// Its documents.
        data: Option<Ref>,
        /// Those of its examples.
        fewshot: Option<Ref>,
    },
}

impl TaskRef {
    /// A task that comes with flow.
    pub fn of_flow(name: &str) -> Self {
        Self { reference: Ref::new(name), found: None }
    }

    /// Finds what it means.
    pub fn look(&mut self, field: &str, files: &dyn Files, errors: &mut Vec<Diagnostic>) {
        let name = self.reference.text();
        if let Some(shipped) = shipped(name) {
            self.found = Some(Found { task: shipped.task(), from: From::Flow(shipped) });
            return;
        }
        match files.toml(name) {
            Some(Ok(value)) => self.found = self.read(&value, errors),
            Some(Err(wrong)) => errors.extend(wrong),
            None => {
                let error = Diagnostic::new(format!("there is no task `{name}`")).field(field);
                let names = || SHIPPED.iter().map(|shipped| shipped.name);
                errors.push(match did_you_mean(name, names()) {
                    Some(near) => error.hint(format!("did you mean `{near}`?")),
                    None => error
                        .hint(format!("flow brings along: {}", names().collect::<Vec<_>>().join(", ")))
                        .hint("another one is a TOML file, by its path in the project's folder"),
                });
            }
        }
    }

    fn read(&self, value: &Value, errors: &mut Vec<Diagnostic>) -> Option<Found> {
        let mut read = read::<Task>(value);
        let sound = read.sound();
        errors.append(&mut read.errors);
        let task = read.value.filter(|_| sound)?;
        let mut wrong = Vec::new();
        task.check(&mut wrong);
        let data = task.data.as_deref().map(|path| self.beside(path, "data", value));
        let fewshot = task.fewshot.data.as_deref().map(|path| self.beside(path, "fewshot.data", value));
        let is_sound = wrong.is_empty();
        errors.extend(wrong.into_iter().map(|error| placed(error, value)));
        is_sound.then_some(Found { task, from: From::File { data, fewshot } })
    }

    /// A path that stands in the file, as one in the project's folder; or a URL.
    fn beside(&self, path: &str, field: &str, value: &Value) -> Ref {
        let span: Option<Span> = value.nearest(field).span.clone();
        if is_url(path) {
            return Ref::at(path, span);
        }
        let folder = Path::new(self.reference.text()).parent().unwrap_or(Path::new(""));
        Ref::at(folder.join(path).to_string_lossy(), span)
    }

    /// Its name: of its results, and of the ports of its data.
    pub fn name(&self) -> &str {
        self.found.as_ref().map_or(self.reference.text(), |found| &found.task.task)
    }
}

/// Whether it is taken by a stage of its own.
pub fn is_url(path: &str) -> bool {
    path.contains("://")
}

/// Gives an error the place of the field that it names, in the task's file.
fn placed(mut error: Diagnostic, value: &Value) -> Diagnostic {
    let field = error.field.take().unwrap_or_default();
    error.at(value.nearest(&field).span.clone()).at(value.span.clone())
}

impl<'de> Deserialize<'de> for TaskRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { reference: Ref::deserialize(deserializer)?, found: None })
    }
}

/// Where a task is does not matter to a key: what is in its file enters by a port, and what comes with flow by its digest.
impl Serialize for TaskRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.found {
            Some(Found { from: From::Flow(shipped), .. }) => {
                json!({ "task": shipped.name, "digest": shipped.digest() }).serialize(serializer)
            }
            _ => json!({ "task": self.name() }).serialize(serializer),
        }
    }
}

impl JsonSchema for TaskRef {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TaskRef".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Ref::json_schema(generator)
    }
}

/// One digest of several.
pub fn joined(digests: &[Digest]) -> Digest {
    Digest::of(&digests.iter().flat_map(|digest| digest.0).collect::<Vec<u8>>())
}
