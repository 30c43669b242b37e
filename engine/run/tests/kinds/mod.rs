//! Tiny stage kinds, and a project in a temporary directory to try the engine on.
#![allow(dead_code)] // each test binary uses a part of it

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use flow_cache::{Cache, Location, RemoteConfig};
use flow_core::{Cancel, Check, Ctx, Diagnostic, Event, Kind, Level, Pin, Port, Ref, Stage};
use flow_engine::{
    Asked, LoadOptions, Plan, Project, RemoteSettings, RunError, RunOptions, Settings, Summary, Verdict,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Project → the nodes that really ran, in order.
static RAN: Mutex<Option<HashMap<PathBuf, Vec<String>>>> = Mutex::new(None);

fn note(ctx: &Ctx<'_>) {
    let mut ran = RAN.lock().unwrap_or_else(PoisonError::into_inner);
    ran.get_or_insert_default().entry(ctx.project.to_owned()).or_default().push(ctx.node.to_owned());
}

/// Writes `text`, its inputs' bytes after each other, and at most `keep` bytes of that.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cat {
    #[serde(default)]
    text: String,
    #[serde(default, skip_serializing)]
    input: Vec<Ref>,
    #[serde(default, skip_serializing)]
    pair: Vec<Ref>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep: Option<usize>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    outs: Vec<String>,
    /// Fails while this file of the project is there.
    #[serde(default, skip_serializing)]
    fail_while: Option<String>,
    #[serde(default, skip_serializing)]
    sleep: f64,
    /// Appends to this file of the project while it runs.
    #[serde(default, skip_serializing)]
    spoil: Option<String>,
    #[serde(default, skip_serializing)]
    max: Option<u64>,
    /// More text, of which no key knows: other bytes under the same key.
    #[serde(default, skip_serializing)]
    unkeyed: String,
}

impl Cat {
    fn work(&self, ctx: &Ctx<'_>) -> anyhow::Result<()> {
        note(ctx);
        ctx.log(Level::Output, format!("this is {}", ctx.node));
        let until = std::time::Instant::now() + Duration::from_secs_f64(self.sleep);
        while std::time::Instant::now() < until {
            ctx.go_on()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(file) = &self.fail_while
            && ctx.project.join(file).exists()
        {
            return Err(anyhow::anyhow!("{file} is there").context("cannot concatenate"));
        }
        let mut bytes = format!("{}{}", self.text, self.unkeyed).into_bytes();
        for inputs in ctx.inputs.values() {
            for input in inputs {
                for (_, path) in input.files() {
                    bytes.extend(fs::read(&path).with_context(|| path.display().to_string())?);
                }
            }
        }
        if let Some(file) = &self.spoil {
            fs::write(ctx.project.join(file), "spoiled")?;
        }
        bytes.truncate(self.keep.unwrap_or(usize::MAX));
        if self.outs.is_empty() {
            fs::write(ctx.out.join("text"), &bytes)?;
        }
        for out in &self.outs {
            let path = ctx.out.join(out);
            fs::create_dir_all(path.parent().unwrap())?;
            fs::write(path, &bytes)?;
        }
        Ok(())
    }

    fn look(&self, check: &mut Check<'_>) {
        let known: Vec<u64> = check.input("input").iter().filter_map(|i| i.facts.get("size")?.as_u64()).collect();
        let size = self.text.len() as u64 + known.iter().sum::<u64>();
        check.provide("size", size);
        if let Some(max) = self.max.filter(|max| size > *max) {
            check.error("max", Diagnostic::new(format!("{size} bytes are more than {max}")));
        }
    }
}

/// A [`Cat`] that can use several machines.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Spread(Cat);

impl Stage for Spread {
    const KIND: &'static str = "spread";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "all inputs, by several machines";
    const MANY_NODES: bool = true;
    fn run(&self, ctx: &Ctx<'_>) -> anyhow::Result<()> {
        assert_eq!(ctx.nodes, ctx.hosts.len());
        self.0.work(ctx)
    }
}

impl Stage for Cat {
    const KIND: &'static str = "cat";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "all inputs";
    fn ports(&self) -> Vec<Port> {
        vec![Port::all("input", &self.input).or_prefix_of(&[".a", ".b"])]
    }
    fn outs(&self) -> &[String] {
        &self.outs
    }
    fn check(&self, check: &mut Check<'_>) {
        self.look(check);
    }
    fn run(&self, ctx: &Ctx<'_>) -> anyhow::Result<()> {
        self.work(ctx)
    }
}

/// [`Cat`] of each input.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Map(Cat);

impl Stage for Map {
    const KIND: &'static str = "map";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "each input";
    fn ports(&self) -> Vec<Port> {
        vec![Port::each("input", &self.0.input), Port::each("pair", &self.0.pair)]
    }
    fn outs(&self) -> &[String] {
        &self.0.outs
    }
    fn check(&self, check: &mut Check<'_>) {
        self.0.look(check);
    }
    fn run(&self, ctx: &Ctx<'_>) -> anyhow::Result<()> {
        self.0.work(ctx)
    }
}

/// Fetches `server/<last part of the URL>` in the project.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Get {
    urls: Vec<String>,
}

impl Stage for Get {
    const KIND: &'static str = "get";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "a URL";
    fn expand(self, errors: &mut Vec<Diagnostic>) -> Vec<Self> {
        let mut all = Vec::new();
        for url in self.urls {
            match flow_core::expand_braces(&url) {
                Ok(urls) => all.extend(urls.into_iter().map(|url| Self { urls: vec![url] })),
                Err(error) => errors.push(Diagnostic::new(error).field("urls")),
            }
        }
        all
    }
    fn pin(&self) -> Option<Pin> {
        Some(Pin { url: self.urls[0].clone() })
    }
    fn run(&self, ctx: &Ctx<'_>) -> anyhow::Result<()> {
        note(ctx);
        let name = self.urls[0].rsplit('/').next().unwrap();
        fs::copy(ctx.project.join("server").join(name), ctx.out.join(name)).with_context(|| name.to_owned())?;
        Ok(())
    }
}

/// Counts to three in its scratch directory, one step a run, and fails before the third.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Steps {
    /// Seconds to rest after the step.
    #[serde(default, skip_serializing)]
    pause: f64,
}

impl Stage for Steps {
    const KIND: &'static str = "steps";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "resumes";
    const RESUMABLE: bool = true;
    fn run(&self, ctx: &Ctx<'_>) -> anyhow::Result<()> {
        note(ctx);
        let file = ctx.scratch.join("steps");
        let steps = fs::read(&file).map_or(0, |bytes| bytes.len()) + 1;
        fs::write(&file, vec![b'.'; steps])?;
        std::thread::sleep(Duration::from_secs_f64(self.pause));
        if steps < 3 {
            bail!("stopped after step {steps}");
        }
        fs::copy(&file, ctx.out.join("steps"))?;
        Ok(())
    }
}

/// Panics.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Panics {}

impl Stage for Panics {
    const KIND: &'static str = "panics";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "panics";
    fn run(&self, _: &Ctx<'_>) -> anyhow::Result<()> {
        panic!("on purpose")
    }
}

/// The registry.
pub const KINDS: &[Kind] = &[
    Kind::of::<Cat>(),
    Kind::of::<Spread>(),
    Kind::of::<Map>(),
    Kind::of::<Get>(),
    Kind::of::<Steps>(),
    Kind::of::<Panics>(),
];

/// A project and a cache in a temporary directory.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub cache: Cache,
    pub events: Mutex<Vec<Event>>,
    pub cancel: Cancel,
    /// The directory of the team's cache.
    pub team: Option<PathBuf>,
}

impl Lab {
    /// With this pipeline.
    pub fn new(pipeline: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("p")).unwrap();
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        let lab = Self { dir, cache, events: Mutex::default(), cancel: Cancel::default(), team: None };
        lab.write("pipe.toml", pipeline);
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join("p").join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn load(&self) -> Result<Project, Vec<Diagnostic>> {
        Project::load(&self.path("pipe.toml"), KINDS, &LoadOptions::default())
    }

    pub fn settings(&self) -> Settings {
        let remote = self.team.as_ref().map(|team| RemoteSettings {
            config: RemoteConfig {
                location: Location::parse(team.to_str().unwrap()).unwrap(),
                write: true,
                push_limit: None,
                endpoint: None,
                region: None,
                trust: flow_cache::Trust::default(),
            },
            push: Vec::new(),
        });
        Settings {
            remote,
            trust: flow_cache::Trust::default(),
            cache_dir: self.cache.root().to_owned(),
            jobs: 4,
            cpus: 4,
            gpus: 0,
            nodes: 1,
            gpu_names: Vec::new(),
            memory: 1 << 30,
            wait: None,
            network: flow_core::Network::default(),
            executor: "local".into(),
            executors: flow_engine::Executors::new(),
            container_engine: None,
            sources: Vec::new(),
        }
    }

    /// The cache, as a new process would open it.
    pub fn open(&self) -> Cache {
        let cache = Cache::open(self.cache.root()).unwrap();
        if let Some(remote) = self.settings().remote {
            cache.connect(remote.config);
        }
        cache
    }

    /// Loads and runs; as a new process would, with nothing remembered in memory.
    pub fn try_run(&self, options: &RunOptions) -> Result<Summary, RunError> {
        let project = self.load().map_err(RunError::Pipeline)?;
        let cache = self.open();
        self.events.lock().unwrap().clear();
        let sink = |event: Event| self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        flow_engine::run(&project, &cache, &self.settings(), options, &sink, &self.cancel)
    }

    /// What a run tells without loading anything, if nothing changed.
    pub fn unchanged(&self) -> Option<Vec<Event>> {
        let cache = self.open();
        let told = Mutex::new(Vec::new());
        let sink = |event: Event| told.lock().unwrap().push(event);
        let (file, settings) = (self.path("pipe.toml"), self.settings());
        let (load, run) = (LoadOptions::default(), RunOptions::default());
        let asked = Asked { file: &file, kinds: KINDS, load: &load, run: &run, settings: &settings };
        flow_engine::unchanged(&asked, &cache, &sink)?;
        Some(told.into_inner().unwrap())
    }

    /// Runs with these options, and returns the nodes that really ran, sorted.
    pub fn run_with(&self, options: &RunOptions) -> (Summary, Vec<String>) {
        self.take_ran();
        let summary = self.try_run(options).unwrap_or_else(|error| panic!("{error}"));
        (summary, self.take_ran())
    }

    /// Runs all, which must go well, and returns the nodes that really ran, sorted and joined.
    pub fn run(&self) -> String {
        let (summary, ran) = self.run_with(&RunOptions::default());
        assert!(summary.ok, "{:?}", self.events.lock().unwrap());
        assert_eq!(summary.ran, ran.len());
        ran.join(" ")
    }

    pub fn take_ran(&self) -> Vec<String> {
        let project = self.path("");
        let project = project.components().as_path();
        let mut all = RAN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ran = all.get_or_insert_default().remove(project).unwrap_or_default();
        ran.sort();
        ran
    }

    pub fn plan(&self, options: &RunOptions) -> (Project, Plan) {
        let project = self.load().unwrap_or_else(|errors| panic!("{errors:?}"));
        let plan = flow_engine::plan(&project, &self.open(), options).unwrap();
        (project, plan)
    }

    /// Node → verdict, in words.
    pub fn planned(&self) -> Vec<String> {
        let (project, plan) = self.plan(&RunOptions::default());
        let word = |verdict: &Verdict| match verdict {
            Verdict::Off => "off".to_owned(),
            Verdict::Unselected => "unselected".into(),
            Verdict::Cached { .. } => "cached".into(),
            Verdict::Team { .. } => "team".into(),
            Verdict::Run { why, left, .. } => format!("run ({why}){}", if left.is_some() { ", resumes" } else { "" }),
            Verdict::After { upstream, .. } => format!("after {}", upstream.len()),
        };
        let nodes = &project.graph().nodes;
        plan.nodes.iter().map(|planned| format!("{}: {}", nodes[planned.node].name, word(&planned.verdict))).collect()
    }

    /// The content of the only file that a node made.
    pub fn result(&self, node: &str) -> String {
        let project = self.load().unwrap();
        let outputs = flow_engine::outputs(&project, &self.open(), node, &|_, _| (), &self.cancel)
            .unwrap_or_else(|error| panic!("{error}"));
        let file = fs::read_dir(&outputs[0].1).unwrap().next().unwrap().unwrap().path();
        fs::read_to_string(file).unwrap()
    }

    /// Errors of a pipeline as `line:column message | hints`.
    pub fn errors(&self) -> Vec<String> {
        let errors = match self.load() {
            Ok(project) => project.check().err().unwrap_or_default(),
            Err(errors) => errors,
        };
        errors.iter().map(said).collect()
    }

    pub fn failures(&self) -> Vec<(String, Vec<String>)> {
        let events = self.events.lock().unwrap();
        let failed = |event: &Event| match event {
            Event::Failed { node, causes, .. } => Some((node.clone(), causes.clone())),
            _ => None,
        };
        events.iter().filter_map(failed).collect()
    }
}

pub fn said(error: &Diagnostic) -> String {
    let place = error.span.as_ref().map_or("?".into(), |span| {
        let (line, column) = span.line_column();
        format!("{line}:{column}")
    });
    format!("{place} {} | {}", error.message, error.hints.join(" "))
}

/// Whether a path is there.
pub fn there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
