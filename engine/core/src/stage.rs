//! [`Stage`]: what a stage kind is, and all that it sees: [`Check`] before the run, [`Ctx`] during it.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value as Json;

use crate::{
    Cancel, Cancelled, Diagnostic, Event, Implied, Level, Network, Pin, Pinned, Ref, Remarks, Sink, Tree, Unit, Value,
};

/// A stage kind: the struct *is* its parameters.
///
/// `Deserialize` says what TOML may hold (use `#[serde(deny_unknown_fields)]`); `Serialize` says what the key sees:
/// mark [`Ref`]s and operational knobs (threads, intervals, retries) `skip_serializing`, and a new optional field
/// `skip_serializing_if` default, so that old keys survive. `JsonSchema` tells editors what `Deserialize` takes.
pub trait Stage: Serialize + DeserializeOwned + JsonSchema + fmt::Debug + Send + Sync + 'static {
    /// The name in TOML: `kind = "tokenize"`.
    const KIND: &'static str;
    /// Raised by hand when the same input and parameters give other bytes.
    const VERSION: u32;
    /// One line for people.
    const ABOUT: &'static str;
    /// What an interrupted run left in [`Ctx::scratch`] is handed to the next run of the same key.
    const RESUMABLE: bool = false;
    /// It runs where flow runs unless its stage names an `executor`, whatever the settings say of others: machines of a
    /// cluster mostly see no network.
    const LOCAL: bool = false;
    /// It makes use of several nodes if it is given them ([`Ctx::nodes`]); others are refused more than one.
    const MANY_NODES: bool = false;

    /// Reads the small files that say what it takes, before it is asked for its [ports](Self::ports). What is wrong with
    /// them goes to `errors`.
    fn look(&mut self, files: &dyn Files, errors: &mut Vec<Diagnostic>) {
        let _ = (files, errors);
    }

    /// One stage of the file as several nodes (`fetch`: one a URL). Most are one node.
    ///
    /// What is wrong with the parameters in themselves goes to `errors`, all of it; what is left is then only used to
    /// find more that is wrong.
    fn expand(self, errors: &mut Vec<Diagnostic>) -> Vec<Self>
    where
        Self: Sized,
    {
        let _ = errors;
        vec![self]
    }

    /// The inputs.
    fn ports(&self) -> Vec<Port> {
        Vec::new()
    }

    /// Files and directories that appear in the project's folder (paths relative to it) besides being kept in the
    /// cache. While the stage runs nothing is in their places but what it puts there itself.
    fn outs(&self) -> &[String] {
        &[]
    }

    /// The directories of the result that another stage may take apart from the rest, as `NAME:PART`.
    fn parts(&self) -> &[String] {
        &[]
    }

    /// The stages that its [ports](Self::ports) refer to and that no file has.
    fn implied(&self) -> Vec<Implied> {
        Vec::new()
    }

    /// What this node takes from outside that has no digest until it was seen once: pinned in `flow.lock`.
    /// A path of this machine is a [`Port`], not a pin.
    fn pin(&self) -> Option<Pin> {
        None
    }

    /// Says before the run what cannot work, and what is known about the result. Fast: no big file is read.
    fn check(&self, check: &mut Check<'_>) {
        let _ = check;
    }

    /// Says what cannot work of parameters that could not all be read, and that are not [checked](Self::check) therefore:
    /// nothing that follows from those at `made_up`, such as `sched.name`.
    fn check_but(&self, made_up: &[String], errors: &mut Vec<Diagnostic>) {
        let _ = (made_up, errors);
    }

    /// What the machine that it runs on does not have of what it takes, besides cores, GPUs and memory.
    fn lacks(&self, machine: &Machine<'_>) -> Option<Diagnostic> {
        let _ = machine;
        None
    }

    /// What an interrupted run left in `scratch`, for people: `from its checkpoint of step 50`.
    fn left(&self, scratch: &Path) -> Option<String> {
        let _ = scratch;
        None
    }

    /// Does the work: reads [`Ctx::inputs`], fills [`Ctx::out`] with regular files. Blocking; on its own thread.
    ///
    /// # Errors
    /// The work failed; nothing in `out` is used. [`Cancelled`] when the run was interrupted.
    fn run(&self, ctx: &Ctx<'_>) -> anyhow::Result<()>;
}

/// The small files of a project that stages read while the pipeline is loaded. What is read of them must enter by a
/// port, so that a change of it is seen.
pub trait Files {
    /// The TOML in a file, by its path in the project's folder; nothing if there is no such file.
    fn toml(&self, path: &str) -> Option<Result<Value, Vec<Diagnostic>>>;
}

/// No files.
impl Files for () {
    fn toml(&self, _: &str) -> Option<Result<Value, Vec<Diagnostic>>> {
        None
    }
}

/// A named input of a stage.
#[derive(Clone, Debug)]
pub struct Port {
    /// The port's name in keys and in [`Ctx::inputs`]: the field's name, `in.model` for nested ones.
    pub name: String,
    /// Stages or paths.
    pub refs: Vec<Ref>,
    /// Whether the stage runs once for all of it, or once for each.
    pub mode: Mode,
    /// A path that does not exist may be a prefix: with each of these endings it must be a file (`.bin`, `.idx`).
    pub endings: &'static [&'static str],
    /// Of what enters, the stage reads the files of these names alone ([`Tree::only`]): the key sees no others. Empty:
    /// it reads all.
    pub only: &'static [&'static str],
}

/// How a stage with several inputs on one port runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One node takes all.
    All,
    /// One node for each input: shards.
    Each,
    /// One node, and only one thing may enter.
    One,
}

impl Port {
    /// A port that takes everything its reference names.
    #[must_use]
    pub fn all(name: impl Into<String>, refs: &[Ref]) -> Self {
        Self { name: name.into(), refs: refs.to_vec(), mode: Mode::All, endings: &[], only: &[] }
    }

    /// A port that takes exactly one thing: a stage that is several nodes is refused.
    #[must_use]
    pub fn one(name: impl Into<String>, reference: &Ref) -> Self {
        Self { mode: Mode::One, ..Self::all(name, std::slice::from_ref(reference)) }
    }

    /// A port that makes one node of each input.
    #[must_use]
    pub fn each(name: impl Into<String>, refs: &[Ref]) -> Self {
        Self { name: name.into(), refs: refs.to_vec(), mode: Mode::Each, endings: &[], only: &[] }
    }

    /// Paths on this port may be prefixes of files with these endings.
    #[must_use]
    pub fn or_prefix_of(mut self, endings: &'static [&'static str]) -> Self {
        self.endings = endings;
        self
    }

    /// Of a directory the stage reads the files of these names alone, so that another file beside them is not another
    /// key. Some of them may not be there; the stage sees the whole directory all the same.
    #[must_use]
    pub fn only(mut self, names: &'static [&'static str]) -> Self {
        self.only = names;
        self
    }
}

/// What is known before the run about something: small named facts that flow along the graph,
/// such as `vocab_size` of a model or `max_token_id` of a tokenizer. Names are documented where they are provided.
pub type Facts = BTreeMap<String, Json>;

/// What is known before the run about one input.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The node's or path's name.
    pub name: String,
    /// A file or directory that exists now and is what will enter.
    pub path: Option<PathBuf>,
    /// What the stage that makes it said of it.
    pub facts: Facts,
    /// Names of files that it has for sure; it may have others.
    pub files: Vec<String>,
}

/// What is known of a machine on which a stage is to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine<'a> {
    /// What runs containers, if the settings say so.
    pub container_engine: Option<&'a str>,
}

/// What a stage sees when it is checked.
#[derive(Debug)]
pub struct Check<'a> {
    /// The project's folder: relative paths are relative to it.
    pub project: &'a Path,
    /// Port → what is known of its inputs.
    pub inputs: &'a BTreeMap<String, Vec<Known>>,
    /// What the stage says of its result.
    pub facts: Facts,
    /// How many machines it will have ([`Ctx::nodes`]).
    pub nodes: usize,
    /// How many GPUs of each; 0 if it asks for none.
    pub gpus: usize,
    /// [`Ctx::hosts`]
    pub hosts: &'a [String],
    /// It runs on another machine, of a cluster: what there is on this one says nothing.
    pub elsewhere: bool,
    /// A run begins when nothing is wrong, and this node may run in it: what a plan only warns of is an error then.
    /// Who waits for something looks whether the run was interrupted.
    pub about_to_run: Option<&'a Cancel>,
    /// Names of files that the result will have for sure: what lies in their way is said before the run. It may have others.
    pub files: Vec<String>,
    /// A file or directory that exists now and has the same content as the result will have.
    pub result_path: Option<PathBuf>,
    /// What cannot work.
    pub errors: Vec<Diagnostic>,
    /// What may surprise.
    pub warnings: Vec<Diagnostic>,
}

impl<'a> Check<'a> {
    /// Of a stage that asks for one machine and no GPU, before a plan.
    #[must_use]
    pub fn new(project: &'a Path, inputs: &'a BTreeMap<String, Vec<Known>>) -> Self {
        Self {
            project,
            inputs,
            facts: Facts::new(),
            nodes: 1,
            gpus: 0,
            hosts: &[],
            elsewhere: false,
            about_to_run: None,
            files: Vec::new(),
            result_path: None,
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// What is known of the inputs of a port.
    #[must_use]
    pub fn input(&self, port: &str) -> &[Known] {
        self.inputs.get(port).map_or(&[], Vec::as_slice)
    }

    /// A fact about the first input of a port that has it.
    #[must_use]
    pub fn fact(&self, port: &str, name: &str) -> Option<&Json> {
        self.input(port).iter().find_map(|known| known.facts.get(name))
    }

    /// Says that a field's value cannot work.
    pub fn error(&mut self, field: &str, error: Diagnostic) {
        self.errors.push(error.field(field));
    }

    /// Provides a fact about the result.
    pub fn provide(&mut self, name: &str, value: impl Into<Json>) {
        self.facts.insert(name.to_owned(), value.into());
    }
}

/// One input of a running node: a tree, and where it lies.
#[derive(Clone, Debug)]
pub struct Input {
    /// The node's or path's name.
    pub name: String,
    /// A directory that holds the tree's files under their names (possibly as symbolic links), or, for a path that
    /// is a single file, that file. Never written to.
    pub path: PathBuf,
    /// What it holds.
    pub tree: Arc<Tree>,
}

impl Input {
    /// Where the file of this name in the tree lies.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        self.tree.get(name)?;
        Some(if self.path.is_dir() { self.path.join(name) } else { self.path.clone() })
    }

    /// Every file: its name in the tree, and where it lies.
    #[must_use]
    pub fn files(&self) -> Vec<(&str, PathBuf)> {
        let is_dir = self.path.is_dir();
        let place = |name: &str| if is_dir { self.path.join(name) } else { self.path.clone() };
        self.tree.entries().iter().map(|entry| (entry.name.as_str(), place(&entry.name))).collect()
    }
}

/// What a stage sees while it runs.
pub struct Ctx<'a> {
    /// The node's name: `tokens[2]`.
    pub node: &'a str,
    /// Port → inputs, in order.
    pub inputs: &'a BTreeMap<String, Vec<Input>>,
    /// An empty directory to fill: what is in it afterwards is the result.
    pub out: &'a Path,
    /// A directory beside it on the same file system, for work in progress. For a [`Stage::RESUMABLE`] kind it holds
    /// what the last interrupted run of the same key left; for others it is empty.
    pub scratch: &'a Path,
    /// The project's folder.
    pub project: &'a Path,
    /// What the result must be, if this node has a [`Pin`] and `flow.lock` knows it.
    pub pinned: Option<&'a Pinned>,
    /// What the URL gave earlier, if the run is to look whether it still does and the result of then is there: a stage
    /// that finds nothing changed may end with [`Unchanged`].
    pub before: Option<&'a Pinned>,
    /// How many machines are this node's; `threads` and `gpus` are of each. Above 1 for who can use them alone
    /// ([`Stage::MANY_NODES`]).
    pub nodes: usize,
    /// Which machines, if the user names them: the first one's processes meet the others'. None: this one, or those that a
    /// scheduler gave.
    pub hosts: &'a [String],
    /// How many threads the stage may keep busy.
    pub threads: usize,
    /// The GPUs that are this node's alone, as `CUDA_VISIBLE_DEVICES` names them. None if it asked for none: then what
    /// flow was started with is all there is to say.
    pub gpus: &'a [String],
    /// What runs containers, if the settings say so.
    pub container_engine: Option<&'a str>,
    /// How files are taken from the network.
    pub network: &'a Network,
    /// Where events go.
    pub sink: &'a dyn Sink,
    /// What the stage says of its run.
    pub remarks: &'a Mutex<Remarks>,
    /// Look often.
    pub cancel: &'a Cancel,
    /// [`Ctx::is_whole`]
    pub whole: &'a (dyn Fn(&Path) + Sync),
}

impl Ctx<'_> {
    /// The inputs of a port.
    #[must_use]
    pub fn input(&self, port: &str) -> &[Input] {
        self.inputs.get(port).map_or(&[], Vec::as_slice)
    }

    /// The only input of a port.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn one(&self, port: &str) -> anyhow::Result<&Input> {
        match self.input(port) {
            [input] => Ok(input),
            inputs => anyhow::bail!("`{port}` needs exactly one input and has {}", inputs.len()),
        }
    }

    /// The variable that shows a process this node's GPUs and no others; nothing if the node asked for none.
    #[must_use]
    pub fn gpu_variable(&self) -> Option<(&'static str, String)> {
        (!self.gpus.is_empty()).then(|| ("CUDA_VISIBLE_DEVICES", self.gpus.join(",")))
    }

    /// Reports progress.
    pub fn progress(&self, done: u64, total: Option<u64>, unit: Unit) {
        self.sink.emit(Event::Progress { node: self.node.to_owned(), done, total, unit, note: None });
    }

    /// Writes a line to the node's log.
    pub fn log(&self, level: Level, text: impl Into<String>) {
        self.sink.emit(Event::log(self.node, level, text));
    }

    /// A file that will be of the result, and to which nobody writes any more: it is hashed now, while its bytes are still in
    /// memory, and not read from the disk again when all is done. It may move to its place later. Takes as long as the hashing.
    pub fn is_whole(&self, path: &Path) {
        (self.whole)(path);
    }

    /// Says something of the run.
    pub fn remark(&self, remark: impl FnOnce(&mut Remarks)) {
        remark(&mut self.remarks.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Stops a stage that was asked to stop.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn go_on(&self) -> Result<(), Cancelled> {
        if self.cancel.is_set() { Err(Cancelled) } else { Ok(()) }
    }
}

/// A [`Stage`] behind a pointer.
pub trait DynStage: fmt::Debug + Send + Sync {
    /// [`Stage::ports`]
    fn ports(&self) -> Vec<Port>;
    /// [`Stage::implied`]
    fn implied(&self) -> Vec<Implied>;
    /// [`Stage::outs`]
    fn outs(&self) -> &[String];
    /// [`Stage::parts`]
    fn parts(&self) -> &[String];
    /// [`Stage::pin`]
    fn pin(&self) -> Option<Pin>;
    /// [`Stage::check`]
    fn check(&self, check: &mut Check<'_>);
    /// [`Stage::lacks`]
    fn lacks(&self, machine: &Machine<'_>) -> Option<Diagnostic>;
    /// [`Stage::left`]
    fn left(&self, scratch: &Path) -> Option<String>;
    /// [`Stage::run`]
    ///
    /// # Errors
    /// As there.
    fn run(&self, ctx: &Ctx<'_>) -> anyhow::Result<()>;
    /// What the key sees of the parameters.
    fn params(&self) -> Json;
}

impl<S: Stage> DynStage for S {
    fn ports(&self) -> Vec<Port> {
        Stage::ports(self)
    }
    fn implied(&self) -> Vec<Implied> {
        Stage::implied(self)
    }
    fn outs(&self) -> &[String] {
        Stage::outs(self)
    }
    fn parts(&self) -> &[String] {
        Stage::parts(self)
    }
    fn pin(&self) -> Option<Pin> {
        Stage::pin(self)
    }
    fn check(&self, check: &mut Check<'_>) {
        Stage::check(self, check);
    }
    fn lacks(&self, machine: &Machine<'_>) -> Option<Diagnostic> {
        Stage::lacks(self, machine)
    }
    fn left(&self, scratch: &Path) -> Option<String> {
        Stage::left(self, scratch)
    }
    fn run(&self, ctx: &Ctx<'_>) -> anyhow::Result<()> {
        Stage::run(self, ctx)
    }
    fn params(&self) -> Json {
        serde_json::to_value(self).expect("a stage's parameters have string keys and finite numbers")
    }
}
