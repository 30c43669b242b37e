//! [`Kind`]: a stage kind in the registry, and what it makes of a stage's table.

use std::{fmt, sync::Arc};

use serde_json::Value as Json;

use crate::{Diagnostic, DynStage, Files, Ref, Stage, Value, read::read, schema_of};

/// What a stage kind made of a stage's table.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The nodes that it stands for. If not [`Parsed::sound`], some of what they hold is made up.
    pub nodes: Vec<Arc<dyn DynStage>>,
    /// All that is wrong with it.
    pub errors: Vec<Diagnostic>,
    /// Whether the nodes are what the user wrote.
    pub sound: bool,
}

/// A line of the registry.
#[derive(Clone, Copy)]
pub struct Kind {
    /// [`Stage::KIND`]
    pub name: &'static str,
    /// [`Stage::VERSION`]
    pub version: u32,
    /// [`Stage::ABOUT`]
    pub about: &'static str,
    /// [`Stage::RESUMABLE`]
    pub resumable: bool,
    /// [`Stage::LOCAL`]
    pub local: bool,
    /// [`Stage::MANY_NODES`]
    pub many_nodes: bool,
    /// Reads a stage's table (without the keys that every stage has) and the files that it names, and expands it.
    pub parse: fn(&Value, &dyn Files) -> Parsed,
    /// The JSON Schema of that table.
    pub schema: fn() -> Json,
}

impl Kind {
    /// The line of a stage kind.
    #[must_use]
    pub const fn of<S: Stage>() -> Self {
        Self {
            name: S::KIND,
            version: S::VERSION,
            about: S::ABOUT,
            resumable: S::RESUMABLE,
            local: S::LOCAL,
            many_nodes: S::MANY_NODES,
            parse: |value, files| {
                let mut read = read::<S>(value);
                let Some(mut stage) = read.value.take() else {
                    return Parsed { errors: read.errors, ..Parsed::default() };
                };
                let sound = read.errors.is_empty() && read.made_up.is_empty();
                let (mut errors, mut also) = (Vec::new(), Vec::new());
                if !sound {
                    stage.check_but(&read.made_up_at, &mut also);
                }
                stage.look(files, &mut errors);
                let nodes = stage.expand(&mut errors);
                // What is wrong with what was made up is not the user's.
                errors.retain(|error| {
                    let key = error.field.as_deref().and_then(|field| field.split('.').next());
                    key.is_none_or(|key| !read.made_up.iter().any(|made_up| made_up == key))
                });
                let sound = sound && errors.is_empty();
                read.errors.extend(errors);
                read.errors.extend(also);
                let nodes = nodes.into_iter().map(|stage| Arc::new(stage) as Arc<dyn DynStage>).collect();
                Parsed { nodes, errors: read.errors, sound }
            },
            schema: schema_of::<S>,
        }
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// A stage that stands in no file: another one cannot do without it, such as the `fetch` of a URL that a task names.
#[derive(Clone, Debug)]
pub struct Implied {
    /// What a reference says that means it, and where that stands. Those that say the same share one stage.
    pub reference: Ref,
    /// What it is called, if nothing else is.
    pub name: String,
    /// Its table, as it could stand in the file.
    pub table: Value,
}
