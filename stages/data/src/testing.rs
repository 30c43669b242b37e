//! A stand on which a stage runs without an engine: directories, inputs, and what it said.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use flow_core::{
    Cancel, Check, Ctx, Diagnostic, Digest, Entry, Event, Facts, Input, Known, Network, Pinned, Remarks, Stage, Tree,
    Value, ValueKind, from_value,
};

/// Directories for one stage, and its inputs.
#[derive(Debug)]
pub struct Stand {
    pub directory: tempfile::TempDir,
    pub inputs: BTreeMap<String, Vec<Input>>,
    pub cancel: Cancel,
    pub events: Mutex<Vec<Event>>,
    pub threads: usize,
    pub pinned: Option<Pinned>,
    pub before: Option<Pinned>,
    pub remarks: Mutex<Remarks>,
    pub network: Network,
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl Stand {
    pub fn new() -> Self {
        let stand = Self {
            directory: tempfile::tempdir().unwrap(),
            inputs: BTreeMap::new(),
            cancel: Cancel::default(),
            events: Mutex::default(),
            threads: 2,
            pinned: None,
            before: None,
            remarks: Mutex::default(),
            network: Network::default(),
        };
        for name in ["out", "scratch", "project"] {
            fs::create_dir(stand.place(name)).unwrap();
        }
        stand
    }

    pub fn place(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file below the stand's directory.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.place(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A file or directory as an input of `port`, called by its path.
    pub fn input(&mut self, port: &str, path: &Path) -> &mut Self {
        self.input_called(port, &path.display().to_string(), path)
    }

    pub fn input_called(&mut self, port: &str, name: &str, path: &Path) -> &mut Self {
        let tree = Arc::new(tree(path));
        let input = Input { name: name.to_owned(), path: path.to_owned(), tree };
        self.inputs.entry(port.to_owned()).or_default().push(input);
        self
    }

    pub fn ctx<T>(&self, with: impl FnOnce(&Ctx<'_>) -> T) -> T {
        let sink = |event| self.events.lock().unwrap().push(event);
        with(&Ctx {
            node: "node",
            inputs: &self.inputs,
            out: &self.place("out"),
            scratch: &self.place("scratch"),
            project: &self.place("project"),
            pinned: self.pinned.as_ref(),
            before: self.before.as_ref(),
            remarks: &self.remarks,
            threads: self.threads,
            nodes: 1,
            hosts: &[],
            gpus: &[],
            container_engine: None,
            network: &self.network,
            sink: &sink,
            cancel: &self.cancel,
            whole: &|_| (),
        })
    }

    pub fn run(&self, stage: &impl Stage) -> anyhow::Result<()> {
        self.ctx(|ctx| stage.run(ctx))
    }

    /// What went wrong, with all causes.
    pub fn error(&self, stage: &impl Stage) -> String {
        format!("{:#}", self.run(stage).unwrap_err())
    }

    /// The stage's word before the run, with its inputs known as existing paths.
    pub fn check(&self, stage: &impl Stage) -> (Vec<Diagnostic>, Facts, Option<PathBuf>) {
        let known =
            |input: &Input| Known { name: input.name.clone(), path: Some(input.path.clone()), ..Known::default() };
        let inputs =
            self.inputs.iter().map(|(port, inputs)| (port.clone(), inputs.iter().map(known).collect())).collect();
        check(stage, &self.place("project"), &inputs)
    }

    pub fn out(&self, name: &str) -> Vec<u8> {
        fs::read(self.place("out").join(name))
            .unwrap_or_else(|error| panic!("{name}: {error}; there is {:?}", self.outs()))
    }

    /// The names of all files of the result.
    pub fn outs(&self) -> Vec<String> {
        tree(&self.place("out")).entries().iter().map(|entry| entry.name.clone()).collect()
    }

    /// Empties the result, as before another run.
    pub fn again(&self) {
        fs::remove_dir_all(self.place("out")).unwrap();
        fs::create_dir(self.place("out")).unwrap();
    }

    /// The last progress that was reported.
    pub fn progress(&self) -> (u64, Option<u64>) {
        let events = self.events.lock().unwrap();
        let last = events.iter().rev().find_map(|event| match event {
            Event::Progress { done, total, .. } => Some((*done, *total)),
            _ => None,
        });
        last.unwrap()
    }

    /// The texts of the log.
    pub fn log(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        events
            .iter()
            .filter_map(|event| if let Event::Log { text, .. } = event { Some(text.clone()) } else { None })
            .collect()
    }
}

/// A stage's word before the run, from JSON in place of TOML: errors with their fields, and facts.
pub fn said<S: Stage>(params: serde_json::Value, inputs: &[(&str, Known)]) -> (Vec<String>, Facts) {
    let inputs = inputs.iter().map(|(port, known)| ((*port).to_owned(), vec![known.clone()])).collect();
    let (errors, facts, _) = check(&stage::<S>(params), "/".as_ref(), &inputs);
    (errors.iter().map(|error| format!("{}: {error}", error.field.as_deref().unwrap_or(""))).collect(), facts)
}

fn check(
    stage: &impl Stage,
    project: &Path,
    inputs: &BTreeMap<String, Vec<Known>>,
) -> (Vec<Diagnostic>, Facts, Option<PathBuf>) {
    let mut check = Check::new(project, inputs);
    stage.check(&mut check);
    (check.errors, check.facts, check.result_path)
}

/// What a stage that ran left.
#[derive(Debug)]
pub struct Ran {
    stand: Stand,
    out: PathBuf,
}

impl Ran {
    /// The result's directory.
    pub fn path(&self) -> &Path {
        &self.out
    }

    /// How many bytes of progress it made: all that it meant to.
    pub fn bytes(&self) -> u64 {
        let (done, total) = self.stand.progress();
        assert_eq!(Some(done), total);
        done
    }
}

/// Runs a stage, from JSON in place of TOML, on what lies at these paths: port → path.
pub fn run<S: Stage>(params: serde_json::Value, ports: &[(&str, &Path)]) -> anyhow::Result<Ran> {
    let mut stand = Stand::new();
    for (port, path) in ports {
        stand.input(port, path);
    }
    stand.run(&stage::<S>(params))?;
    let out = stand.place("out");
    Ok(Ran { stand, out })
}

/// A file of the tiny model in `tests/golden/megatron_ckpt`.
pub fn golden(name: &str) -> PathBuf {
    repository().join("tests/golden/megatron_ckpt/untied_v512").join(name)
}

/// What a file or directory holds.
pub fn tree(path: &Path) -> Tree {
    fn walk(path: &Path, name: &str, entries: &mut Vec<Entry>) {
        if path.is_dir() {
            for inner in fs::read_dir(path).unwrap() {
                let inner = inner.unwrap();
                let inner_name = inner.file_name().into_string().unwrap();
                let name = if name.is_empty() { inner_name } else { format!("{name}/{inner_name}") };
                walk(&inner.path(), &name, entries);
            }
        } else {
            let content = fs::read(path).unwrap();
            let executable = path.metadata().unwrap().permissions().mode() & 0o111 != 0;
            entries.push(Entry {
                name: name.into(),
                digest: Digest::of(&content),
                size: content.len() as u64,
                executable,
            });
        }
    }
    let mut entries = Vec::new();
    let name = if path.is_dir() { "" } else { path.file_name().unwrap().to_str().unwrap() };
    walk(path, name, &mut entries);
    Tree::new(entries).unwrap()
}

/// A stage's nodes, from JSON in place of TOML.
pub fn expand<S: Stage>(params: serde_json::Value) -> Result<Vec<S>, Diagnostic> {
    let mut errors = Vec::new();
    let mut stage = from_value::<S>(&value(params))?;
    stage.look(&(), &mut errors);
    let nodes = stage.expand(&mut errors);
    errors.into_iter().next().map_or(Ok(nodes), Err)
}

/// A stage of one node.
pub fn stage<S: Stage>(params: serde_json::Value) -> S {
    let mut nodes = expand(params).unwrap();
    assert_eq!(nodes.len(), 1);
    nodes.remove(0)
}

fn value(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    Value::new(match json {
        Json::String(text) => ValueKind::String(text),
        Json::Bool(truth) => ValueKind::Bool(truth),
        Json::Number(number) => match number.as_i64() {
            Some(integer) => ValueKind::Integer(integer),
            None => ValueKind::Float(number.as_f64().unwrap()),
        },
        Json::Array(items) => ValueKind::Array(items.into_iter().map(value).collect()),
        Json::Object(map) => ValueKind::Table(flow_core::Table {
            entries: map.into_iter().map(|(key, item)| (key, None, value(item))).collect(),
        }),
        Json::Null => panic!("TOML has no null"),
    })
}
