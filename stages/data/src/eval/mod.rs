//! `eval`: what a model makes of tasks, beside another model.
//!
//! A task is a file ([`task`]): documents, how a model is asked about them, what is measured. The stage owns the tokenizer:
//! it turns documents into requests of tokens ([`prompt`], [`encode`], [`prepare`]), a worker answers them and knows no task,
//! and every number that follows from the answers is made here ([`judge`], [`stats`]), as lm-evaluation-harness makes it.

mod answer;
mod data;
mod encode;
mod fewshot;
#[cfg(test)]
mod golden;
mod judge;
mod literal;
mod metric;
mod prepare;
mod prompt;
mod random;
mod results;
mod shipped;
mod source;
mod stats;
mod task;
mod tasks;
mod template;
#[cfg(test)]
mod tests;
mod windows;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flow_core::{Check, Ctx, Diagnostic, Digest, Event, Files, Implied, Input, Level, Machine, Port, Ref, Stage, Unit};
use flow_plan::{Device, EvalJob, Job, ModelConfig, Precision, Serving};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    container::{Container, Inside},
    fetch::Fetch,
    models,
    worker::{self, About, Launch, worker},
};
use data::Data;
use encode::Encoder;
use judge::{JsonLines, judge};
use metric::Metric;
use prepare::{Asked, Ready, Requests, prepare};
use results::{FORMAT, MetricResult, ModelName, Results, TaskResults};
use source::Source;
use task::{Kind, Task};
use tasks::{Found, From, TaskRef, is_url, joined};

/// A worker that evaluates keeps nothing: it is given no time when the run is interrupted.
const GRACE: Duration = Duration::from_secs(2);

/// `kind = "eval"`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    /// A Hugging Face directory.
    #[serde(skip_serializing)]
    model: Ref,
    /// Documents in place of a task's own: a table of tasks and what they take, or something alone for what measures
    /// perplexity. JSON lines: `.jsonl`, also `.gz`, `.zst`, `.bz2` and `.xz`.
    #[serde(default, skip_serializing)]
    data: Option<Data>,
    /// Another Hugging Face directory, for the same tasks.
    #[serde(default, skip_serializing)]
    compare: Option<Ref>,
    /// What is measured: tasks that come with flow, and task files.
    #[serde(default = "default_tasks")]
    tasks: Vec<TaskRef>,
    /// Tokens that go in at most; if left out as many as the model was made for, but windows over a text have 2048 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seq_length: Option<usize>,
    /// Sequences in one forward pass.
    #[serde(default = "default_batch_size")]
    batch_size: usize,
    /// The key whose text is taken where perplexity is measured, in place of the task's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    json_key: Option<String>,
    /// The first so many documents of each task alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    /// Where to compute.
    #[serde(default, skip_serializing)]
    device: Device,
    /// Of weights and activations; log-likelihoods are computed in fp32.
    #[serde(default = "default_precision")]
    precision: Precision,
    /// Ranks that share each layer, for a model that does not fit into one GPU.
    #[serde(default = "default_tensor", skip_serializing)]
    tensor: usize,
    /// The image in which the workers run: `"docker://…"`, a file, a stage that makes one; or `{ image = "…", … }`. They are
    /// this machine's own program and libraries, which are seen inside.
    #[serde(default, skip_serializing_if = "Container::is_keyless")]
    container: Option<Container>,
}

fn default_tasks() -> Vec<TaskRef> {
    vec![TaskRef::of_flow("perplexity")]
}
fn default_batch_size() -> usize {
    8
}
fn default_precision() -> Precision {
    Precision::Fp32
}
fn default_tensor() -> usize {
    1
}

/// Longer windows need memory that not everyone has: who wants them says so.
const LONGEST_BY_DEFAULT: usize = 2048;

impl Stage for Eval {
    const KIND: &'static str = "eval";
    const VERSION: u32 = 4;
    const ABOUT: &'static str = "Measures what a model makes of tasks: perplexity, choices, written answers";
    const MANY_NODES: bool = true;

    fn look(&mut self, files: &dyn Files, errors: &mut Vec<Diagnostic>) {
        let mut names: Vec<String> = Vec::new();
        for (i, named) in self.tasks.iter_mut().enumerate() {
            if named.reference.text().is_empty() && named.reference.span().is_none() {
                continue; // It is made up.
            }
            named.look(&format!("tasks.{i}"), files, errors);
            let name = named.name().to_owned();
            if named.found.is_some() && names.contains(&name) {
                let error = Diagnostic::new(format!("two tasks are called `{name}`")).field(format!("tasks.{i}"));
                errors.push(error.hint("results stand under the names: `task = \"…\"` in their files"));
            }
            if let (Some(found), Some(key)) = (&mut named.found, &self.json_key)
                && found.task.kind == Kind::Perplexity
            {
                found.task.text = Some(key.clone());
            }
            names.push(name);
        }
    }

    fn ports(&self) -> Vec<Port> {
        let model = |port, model| Port::one(port, model).only(models::MODEL);
        let mut ports = vec![model("model", &self.model)];
        ports.extend(self.compare.iter().map(|compare| model("compare", compare)));
        if let Some(Data::All(refs)) = &self.data {
            ports.push(Port::all("data", refs));
        }
        for (i, (named, found)) in self.found() {
            let name = &found.task.task;
            let given = self.given(name);
            if let Some(refs) = given {
                ports.push(Port::all(format!("data.{name}"), refs));
            }
            if let From::File { data, fewshot } = &found.from {
                ports.push(Port::one(format!("tasks.{i}"), &named.reference));
                if let Some(data) = data.iter().find(|_| given.is_none() && self.data_port(found) != "data") {
                    ports.push(Port::all(format!("data.{name}"), std::slice::from_ref(data)));
                }
                if let Some(fewshot) = fewshot {
                    ports.push(Port::all(format!("fewshot.{name}"), std::slice::from_ref(fewshot)));
                }
            }
        }
        ports.extend(self.container.as_ref().map(Container::port));
        ports
    }

    fn lacks(&self, machine: &Machine<'_>) -> Option<Diagnostic> {
        self.container.as_ref()?.lacks(machine)
    }

    fn implied(&self) -> Vec<Implied> {
        // A task's name may have dots, a stage's not.
        let named = |of: &str| format!("fetch-{}", of.replace('.', "-"));
        let mut all = Vec::new();
        for port in self.ports() {
            let name = match port.name.split_once('.') {
                Some(("data", task)) => named(task),
                Some(("fewshot", task)) => named(task) + "-fewshot",
                _ => continue,
            };
            let urls = port.refs.iter().filter(|reference| is_url(reference.text()));
            all.extend(urls.map(|url| Fetch::implied(name.clone(), url)));
        }
        all.extend(self.container.as_ref().and_then(Container::implied));
        all
    }

    fn check(&self, check: &mut Check<'_>) {
        check.files.push("results.json".to_owned());
        if self.tasks.is_empty() {
            check.error("tasks", Diagnostic::new("no task is named").hint("tasks = [\"perplexity\"]"));
        }
        let zero = [
            ("seq_length", self.seq_length == Some(0)),
            ("batch_size", self.batch_size == 0),
            ("limit", self.limit == Some(0)),
            ("tensor", self.tensor == 0),
        ];
        for (field, _) in zero.into_iter().filter(|(_, zero)| *zero) {
            check.error(field, Diagnostic::new(format!("`{field}` is 0")).hint("the smallest that works is 1"));
        }
        // One machine may have more GPUs than the model needs.
        let whole = (self.tensor > 0 && check.nodes > 1).then(|| {
            worker::mesh::check(check, "tensor", &[("tensor", self.tensor)], self.tensor, self.device != Device::Cpu)
        });
        let mut notes = Vec::from_iter(whole.flatten());
        for port in ["model", "compare"] {
            self.check_model(port, check, &mut notes);
        }
        check.provide("plan_notes", notes);
        self.check_data(check);
        match &self.container {
            Some(container) => container.check(&mut check.errors),
            None => worker::check(check),
        }
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let program = worker()?;
        let inside = self.container.as_ref().map(|one| Inside::of_workers(one, ctx, false, &program)).transpose()?;
        let about = match &inside {
            Some(inside) => worker::about_inside(&program, inside)?,
            None => worker::about(&program)?,
        };
        ctx.log(Level::Info, format!("{} {}, libtorch {}", program.display(), about.version, about.libtorch));
        let ready: Vec<Ready<'_>> =
            self.found().map(|(_, (_, found))| self.ready(ctx, found)).collect::<Result<_>>()?;
        let mut models = Vec::new();
        for port in ["model", "compare"] {
            let [model] = ctx.input(port) else { continue };
            let encoder = self.encoder(model).with_context(|| format!("evaluation of {}", model.name))?;
            models.push((port, model, Requests::create(ctx.scratch.join(format!("{port}.requests.jsonl")), encoder)?));
        }
        let (ports, requests): (Vec<_>, Vec<_>) =
            models.into_iter().map(|(port, model, requests)| ((port, model), requests)).unzip();
        let answered = self.ask(ctx, &ready, &ports, requests, (&program, inside.as_ref()))?;
        self.tell(ctx, &ready, &ports, &answered, &about)
    }
}

/// What a model was asked and answered.
struct Answered {
    encoder: Encoder,
    asked: Vec<Vec<Asked>>,
    answers: PathBuf,
}

impl Eval {
    /// The tasks that are known, by their place in `tasks`.
    fn found(&self) -> impl Iterator<Item = (usize, (&TaskRef, &Found))> {
        self.tasks.iter().enumerate().filter_map(|(i, named)| Some((i, (named, named.found.as_ref()?))))
    }

    /// What the stage gives to a task by name.
    fn given(&self, task: &str) -> Option<&[Ref]> {
        match &self.data {
            Some(Data::Of(tasks)) => tasks.get(task).map(|refs| &refs[..]),
            _ => None,
        }
    }

    /// The port of a task's documents.
    fn data_port(&self, found: &Found) -> String {
        let is_only = self.tasks.len() == 1;
        if matches!(self.data, Some(Data::All(_))) && (found.task.kind == Kind::Perplexity || is_only) {
            return "data".to_owned();
        }
        format!("data.{}", found.task.task)
    }

    fn window(&self, config: &ModelConfig) -> usize {
        self.seq_length.unwrap_or(config.max_position_embeddings.min(LONGEST_BY_DEFAULT))
    }

    fn encoder(&self, model: &Input) -> Result<Encoder> {
        let config = ModelConfig::read(&model.path)?;
        let (longest, window) = (config.max_position_embeddings, self.window(&config));
        ensure!(window <= longest, "seq_length {window} is longer than its positions");
        Encoder::of_input(model, &config, self.seq_length.unwrap_or(longest), window)
    }

    fn ready<'t>(&self, ctx: &Ctx<'_>, found: &'t Found) -> Result<Ready<'t>> {
        let task = &found.task;
        let inputs = ctx.input(&self.data_port(found));
        let source = match &found.from {
            _ if !inputs.is_empty() => Source::of_inputs(inputs)?,
            From::Flow(shipped) => {
                let text = shipped.data.with_context(|| format!("task `{}` has no documents", task.task))?;
                Source::Flow(format!("the documents of `{}`", task.task), text)
            }
            From::File { .. } => Source::Files(Vec::new()),
        };
        let fewshot = match ctx.input(&format!("fewshot.{}", task.task)) {
            [] => source.clone(),
            inputs => Source::of_inputs(inputs)?,
        };
        Ok(Ready { task, source, fewshot, limit: self.limit.or(task.limit) })
    }

    /// Asks each model.
    fn ask(
        &self,
        ctx: &Ctx<'_>,
        ready: &[Ready<'_>],
        models: &[(&str, &Input)],
        mut requests: Vec<Requests>,
        (program, inside): (&Path, Option<&Inside>),
    ) -> Result<Vec<Answered>> {
        let counts: Vec<u64> = ready.iter().map(|ready| ready.source.count(ctx, ready.limit)).collect::<Result<_>>()?;
        let (mut done, total) = (0, counts.iter().sum());
        for ready in ready {
            let step = |count| progress(ctx, done + count, total, Unit::Documents, "writes prompts");
            done += prepare(ctx, ready, &items(ctx, ready.task), &mut requests, &step)?;
        }
        let mut answered = Vec::new();
        for ((port, model), requests) in models.iter().zip(requests) {
            ensure!(!requests.is_empty(), "the documents have not one token to predict");
            let max_length = requests.longest;
            let (path, encoder, asked) = requests.finish()?;
            let answers = ctx.scratch.join(format!("{port}.answers.jsonl"));
            let serving = Serving {
                model: model.path.clone(),
                max_length,
                batch_size: self.batch_size,
                device: self.device,
                precision: self.precision,
                threads: ctx.threads,
                tensor: self.tensor,
            };
            let (node, told) = (ctx.node.to_owned(), answers.clone());
            let job = Job::Eval(EvalJob { node, serving, requests: path, answers: told });
            // Where two models are asked, it is said which one.
            let asks = format!("asks {}", model.name);
            let named = |event: Event| match event {
                Event::Progress { done, total: Some(total), unit, .. } => progress(ctx, done, total, unit, &asks),
                other => ctx.sink.emit(other),
            };
            let (world_size, threads) = (self.tensor, ctx.threads);
            Launch { program, job: &job, world_size, threads, grace: GRACE, inside }
                .run(&Ctx { sink: &named, ..*ctx })
                .with_context(|| format!("evaluation of {}", model.name))?;
            answered.push(Answered { encoder, asked, answers });
        }
        Ok(answered)
    }

    /// Makes the numbers, and tells them.
    fn tell(
        &self,
        ctx: &Ctx<'_>,
        ready: &[Ready<'_>],
        models: &[(&str, &Input)],
        answered: &[Answered],
        about: &About,
    ) -> Result<()> {
        let samples = ctx.out.join("samples");
        fs::create_dir_all(&samples).with_context(|| format!("cannot create {}", samples.display()))?;
        let mut lines: Vec<JsonLines> =
            answered.iter().map(|model| JsonLines::open(&model.answers)).collect::<Result<_>>()?;
        let mut tasks = Vec::new();
        for (at, (ready, (_, (_, found)))) in ready.iter().zip(self.found()).enumerate() {
            let task = ready.task;
            let mut series = Vec::new();
            for (((port, model), answered), lines) in models.iter().zip(answered).zip(&mut lines) {
                let samples = samples.join(format!("{}.{port}.jsonl", task.task));
                let judged =
                    judge(ctx, task, &answered.encoder, &answered.asked[at], &items(ctx, task), lines, &samples);
                series.push(judged.with_context(|| format!("evaluation of {}", model.name))?);
            }
            let number = |(i, metric): (usize, Metric)| {
                MetricResult::new(metric, &series[0][i], series.get(1).map(|compare| &compare[i]))
            };
            tasks.push(TaskResults {
                task: task.task.clone(),
                version: task.version,
                kind: task.kind,
                digest: self.digest(ctx, found),
                documents: answered[0].asked[at].len() as u64,
                num_fewshot: task.fewshot.count,
                metrics: task.metrics().into_iter().enumerate().map(number).collect(),
            });
        }
        let versions = [
            ("flow", env!("CARGO_PKG_VERSION").to_owned()),
            ("flow_torch", about.version.clone()),
            ("libtorch", about.libtorch.clone()),
        ];
        let name = |(port, model): &(&str, &Input)| {
            (
                (*port).to_owned(),
                ModelName { name: model.name.clone(), digest: model.tree.only(models::MODEL).digest() },
            )
        };
        let results =
            Results { format: FORMAT, versions: versions.into(), models: models.iter().map(name).collect(), tasks };
        let path = ctx.out.join("results.json");
        let text = serde_json::to_string_pretty(&results)? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        results.table().into_iter().for_each(|line| ctx.log(Level::Info, line));
        let values = events(&results);
        ctx.sink.emit(Event::Metrics { node: ctx.node.to_owned(), step: 1, values });
        Ok(())
    }

    /// Of a task's file and its documents.
    fn digest(&self, ctx: &Ctx<'_>, found: &Found) -> Digest {
        let of = |port: &str| ctx.input(port).iter().map(|input| input.tree.digest()).collect::<Vec<_>>();
        let place = self.tasks.iter().position(|named| named.name() == found.task.task).unwrap_or_default();
        let mut digests = match &found.from {
            From::Flow(shipped) => vec![shipped.digest()],
            From::File { .. } => of(&format!("tasks.{place}")),
        };
        digests.extend(of(&self.data_port(found)));
        digests.extend(of(&format!("fewshot.{}", found.task.task)));
        joined(&digests)
    }
}

/// Says how far something is, and what that is.
fn progress(ctx: &Ctx<'_>, done: u64, total: u64, unit: Unit, what: &str) {
    let note = Some(what.to_owned());
    ctx.sink.emit(Event::Progress { node: ctx.node.to_owned(), done, total: Some(total), unit, note });
}

/// Where what is kept of a task's documents lies.
fn items(ctx: &Ctx<'_>, task: &Task) -> PathBuf {
    ctx.scratch.join(format!("{}.items.jsonl", task.task))
}

/// The numbers of the model as a run's curves have them: those of the first perplexity under the names of a validation, the
/// others by task.
fn events(results: &Results) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::new();
    for task in &results.tasks {
        for result in &task.metrics {
            let short = match (task.kind, result.metric) {
                (Kind::Perplexity, Metric::Loss) => "eval_loss",
                (Kind::Perplexity, Metric::TokenPerplexity) => "perplexity",
                (Kind::Perplexity, Metric::BytePerplexity) => "byte_perplexity",
                _ => "",
            };
            let name = match short {
                "" => format!("{}/{}", task.task, result.metric.name()),
                name if values.contains_key(name) => format!("{}/{name}", task.task),
                name => name.to_owned(),
            };
            if result.model.value.is_finite() {
                values.insert(name, result.model.value);
            }
        }
    }
    values
}
