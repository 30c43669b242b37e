//! The tasks that come with flow: the files in `examples/eval/tasks`, with documents of our own in the shape of the real data.

use flow_core::Digest;

use super::{task::Task, tasks::joined};

/// A task that comes with flow.
#[derive(Debug)]
pub struct Shipped {
    /// Its name.
    pub name: &'static str,
    file: &'static str,
    /// Its documents, if it has some.
    pub data: Option<&'static str>,
}

macro_rules! shipped {
    (@file $name:literal, $ending:literal) => {
        include_str!(concat!("../../../../examples/eval/tasks/", $name, $ending))
    };
    ($name:literal) => {
        Shipped { name: $name, file: shipped!(@file $name, ".toml"), data: Some(shipped!(@file $name, ".jsonl")) }
    };
    ($name:literal without data) => {
        Shipped { name: $name, file: shipped!(@file $name, ".toml"), data: None }
    };
}

/// All of them, by name.
pub const SHIPPED: &[Shipped] = &[
    shipped!("boolq"),
    shipped!("free-form"),
    shipped!("hellaswag"),
    shipped!("input-output"),
    shipped!("lambada"),
    shipped!("language-consistency"),
    shipped!("loss" without data),
    shipped!("perplexity" without data),
    shipped!("piqa"),
    shipped!("race"),
    shipped!("squad"),
    shipped!("wikitext"),
    shipped!("winogrande"),
];

/// The one of this name.
pub fn shipped(name: &str) -> Option<&'static Shipped> {
    SHIPPED.iter().find(|shipped| shipped.name == name)
}

impl Shipped {
    /// What its file says.
    pub fn task(&self) -> Task {
        toml::from_str(self.file).expect("the tasks that come with flow are tested")
    }

    /// Of its file and its documents.
    pub fn digest(&self) -> Digest {
        let data = self.data.map(|data| Digest::of(data.as_bytes()));
        joined(&[Digest::of(self.file.as_bytes())].into_iter().chain(data).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::template::Document;

    #[test]
    fn every_task_fits_its_documents() {
        assert!(SHIPPED.is_sorted_by_key(|shipped| shipped.name));
        for shipped in SHIPPED {
            let task = shipped.task();
            assert_eq!(task.task, shipped.name);
            let mut errors = Vec::new();
            let templates = task.check(&mut errors);
            assert!(errors.is_empty(), "{}: {errors:?}", shipped.name);
            assert_eq!(task.data, shipped.data.map(|_| format!("{}.jsonl", shipped.name)));
            for (i, line) in shipped.data.unwrap_or_default().lines().enumerate() {
                let asked = Document::of_line(line.as_bytes()).and_then(|d| task.ask(&templates, &d, &[]));
                asked.unwrap_or_else(|error| panic!("{}: line {}: {error:#}", shipped.name, i + 1));
            }
        }
    }
}
