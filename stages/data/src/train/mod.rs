//! `train`: starts one worker process a rank on this host, and watches them.

mod params;
#[cfg(test)]
mod tests;
mod wandb;

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use flow_core::{Check, Ctx, Diagnostic, Implied, Input, Known, Level, Machine, Port, Stage};
use flow_formats::indexed::IndexedDataset;
use flow_plan::{DataSource, Device, Job, KnownData, ModelConfig, Splits, TrainJob, Training};

use crate::{
    container::{Container, Inside},
    datasets, diagnostic,
    worker::{self, Launch, worker},
};
use params::Mix;

pub use params::Train;

/// What a `.bin/.idx` prefix lacks.
const ENDINGS: &[&str] = &[".bin", ".idx"];

/// How long the ranks have to write a checkpoint when the run is interrupted.
pub(crate) const GRACE: Duration = Duration::from_secs(120);

impl Stage for Train {
    const KIND: &'static str = "train";
    const VERSION: u32 = 3;
    const ABOUT: &'static str = "Trains a model on tokens, one process a rank";
    const RESUMABLE: bool = true;
    const MANY_NODES: bool = true;

    fn ports(&self) -> Vec<Port> {
        let mut ports = vec![Port::one("model", &self.model)];
        for (name, mix) in [("train", &self.train), ("validation", &self.validation)] {
            let all = |name: String, refs: &[_]| Port::all(name, refs).or_prefix_of(ENDINGS).only(&["*.bin", "*.idx"]);
            if mix.weights().is_empty() {
                let refs: Vec<_> = mix.0.iter().map(|portion| portion.tokens.clone()).collect();
                ports.extend((!refs.is_empty()).then(|| all(name.to_owned(), &refs)));
            } else {
                // One port each: a stage may be several nodes, and its weight is theirs together.
                let portions = mix.0.iter().enumerate();
                ports.extend(portions.map(|(i, p)| all(format!("{name}.{i}"), std::slice::from_ref(&p.tokens))));
            }
        }
        ports.extend(self.container.as_ref().map(Container::port));
        ports
    }

    fn implied(&self) -> Vec<Implied> {
        self.container.as_ref().and_then(Container::implied).into_iter().collect()
    }

    fn lacks(&self, machine: &Machine<'_>) -> Option<Diagnostic> {
        self.container.as_ref()?.lacks(machine)
    }

    fn left(&self, scratch: &Path) -> Option<String> {
        let step = |name: String| name.strip_prefix("iter_")?.parse::<u64>().ok();
        let names = fs::read_dir(scratch).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let newest = names.filter_map(step).max();
        Some(newest.map_or("no checkpoint yet".into(), |step| format!("from its checkpoint of step {step}")))
    }

    fn check(&self, check: &mut Check<'_>) {
        check.files.push("metrics.jsonl".to_owned());
        self.check_sources(check);
        let model = check.input("model").first().map(known_model).transpose();
        let model = model.map(Option::flatten).unwrap_or_else(|error| {
            check.error("model", diagnostic(&error));
            None
        });
        let tokens = |fact: &str| {
            let inputs = check.inputs.iter().filter(|(port, _)| is_data(port)).flat_map(|(_, inputs)| inputs);
            inputs.filter_map(|known| known.facts.get(fact)?.as_u64()).max()
        };
        let known = KnownData {
            model: model.clone(),
            tokenizer_vocab: tokens("tokenizer_vocab"),
            max_token_id: tokens("max_token_id"),
        };
        let errors = self.training.check(&known);
        if errors.is_empty() {
            let mut lines = self.training.plan_lines(model.as_ref());
            lines.extend(self.check_mesh(check));
            check.provide("plan_notes", lines);
        }
        check.errors.extend(errors);
        let inputs = check.inputs;
        let facts = inputs.get("model").into_iter().flatten().flat_map(|known| &known.facts);
        for (name, fact) in facts.filter(|(name, _)| *name != "plan_notes") {
            check.provide(name, fact.clone());
        }
        match &self.container {
            Some(container) => container.check(&mut check.errors),
            None => worker::check(check),
        }
    }

    fn check_but(&self, made_up: &[String], errors: &mut Vec<Diagnostic>) {
        errors.extend(self.training.check_but(made_up));
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let program = worker()?;
        let writes = self.training.tensorboard.is_some();
        let inside = self.container.as_ref().map(|one| Inside::of_workers(one, ctx, writes, &program)).transpose()?;
        let about = match &inside {
            Some(inside) => worker::about_inside(&program, inside)?,
            None => worker::about(&program)?,
        };
        ctx.log(Level::Info, format!("{} {}, libtorch {}", program.display(), about.version, about.libtorch));
        let world_size = self.training.parallel.world_size();
        let threads = (ctx.threads / (world_size / ctx.nodes).max(1)).max(1);
        let model = ctx.one("model")?;
        let job = Job::Train(TrainJob {
            node: ctx.node.to_owned(),
            model: model.path.clone(),
            config: ["config.json", "hf/config.json"].iter().find_map(|name| model.file(name)),
            train: sources(ctx, "train", &self.train)?,
            validation: sources(ctx, "validation", &self.validation)?,
            training: self.placed(ctx),
            out: ctx.out.to_owned(),
            scratch: ctx.scratch.to_owned(),
            threads,
        });
        let launch =
            Launch { program: &program, job: &job, world_size, threads, grace: GRACE, inside: inside.as_ref() };
        let Some(wandb) = &self.training.wandb else {
            launch.run(ctx)?;
            return whole_soon(ctx);
        };
        let config = serde_json::to_value(&self.training)?;
        let run = wandb::Run::begin(wandb, &config, ctx).context("wandb")?;
        let ended = launch.run(&Ctx { sink: &run, ..*ctx }).and_then(|()| whole_soon(ctx));
        run.end(ended.is_ok());
        ended
    }
}

impl Train {
    /// The numbers, with paths that mean the same to every rank.
    fn placed(&self, ctx: &Ctx<'_>) -> Training {
        let mut training = self.training.clone();
        training.tensorboard = training.tensorboard.map(|dir| ctx.project.join(dir));
        training
    }

    fn check_mesh(&self, check: &mut Check<'_>) -> Option<String> {
        let Training { parallel: mesh, device, .. } = &self.training;
        let sizes =
            [("tensor", mesh.tensor), ("pipeline", mesh.pipeline), ("context", mesh.context), ("data", mesh.data)];
        worker::mesh::check(check, "parallel", &sizes, mesh.world_size(), *device != Device::Cpu)
    }

    fn check_sources(&self, check: &mut Check<'_>) {
        for (name, mix) in [("train", &self.train), ("validation", &self.validation)] {
            let weights = mix.weights();
            if !weights.is_empty() && weights.len() != mix.0.len() {
                let wrong = format!("{} of {} sources have a weight", weights.len(), mix.0.len());
                check.error(name, Diagnostic::new(wrong).hint("give a weight to all of them, or to none"));
            }
            if let Some(i) = weights.iter().position(|weight| !weight.is_finite() || *weight <= 0.0) {
                let wrong = format!("a weight of {}", weights[i]);
                check.error(&format!("{name}.{i}.weight"), Diagnostic::new(wrong).hint("it must be above 0"));
            }
        }
        if self.train.0.is_empty() {
            check.error(
                "train",
                Diagnostic::new("there is nothing to train on").hint("name a stage or a .bin/.idx prefix"),
            );
        }
        let training = &self.training;
        let (given, splits) = (!self.validation.0.is_empty(), training.splits.is_some());
        if given && splits {
            let wrong = Diagnostic::new("`validation` and `splits` both say what to validate on");
            check.error("splits", wrong.hint("keep one of them"));
        } else if training.val_interval > 0 && !given && !splits {
            let wrong = Diagnostic::new("there is nothing to validate on");
            check.error("val_interval", wrong.hint("give `validation`, or splits = \"98,1,1\", or val_interval = 0"));
        } else if training.val_interval > 0
            && let Some(Ok(parts)) = training.splits.as_deref().map(Splits::parse)
            && parts.range(1, usize::MAX >> 16).is_none_or(|part| part.is_empty())
        {
            let wrong = Diagnostic::new("`splits` leaves nothing to validate on");
            check.error("splits", wrong.hint("such as splits = \"98,1,1\", or val_interval = 0"));
        } else if training.val_interval == 0 && given {
            let odd = Diagnostic::new("`validation` is given, and val_interval is 0: nothing is validated");
            check.warnings.push(odd.field("validation").hint("set val_interval to the steps between two validations"));
        }
        for (port, inputs) in check.inputs.iter().filter(|(port, _)| is_data(port)) {
            inputs.iter().filter_map(datasets::wrong).for_each(|wrong| check.error(port, wrong));
        }
    }
}

/// Whether tokens enter at a port.
fn is_data(port: &str) -> bool {
    ["train", "validation"].contains(&port.split('.').next().unwrap_or(port))
}

/// The geometry of the model, if it is known before the run.
fn known_model(known: &Known) -> Result<Option<ModelConfig>> {
    if let Some(config) = known.facts.get("model_config") {
        return ModelConfig::from_json(config).with_context(|| format!("cannot train {}", known.name)).map(Some);
    }
    let Some(path) = &known.path else { return Ok(None) };
    let is_checkpoint = holds_a_checkpoint(path);
    if !is_checkpoint && path.join("config.json").is_file() {
        bail!("{} is a Hugging Face directory: put a stage `hf-to-megatron` between", path.display());
    }
    ensure!(is_checkpoint, "{} holds no Megatron checkpoint (iter_*, or .metadata)", path.display());
    Ok(ModelConfig::read(path).ok())
}

fn holds_a_checkpoint(path: &Path) -> bool {
    let Ok(entries) = fs::read_dir(path) else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        name == ".metadata" || name.to_string_lossy().starts_with("iter_") || name == "release"
    })
}

/// The sources of a mix, in order. The weight of a source that is several `.bin/.idx` is divided in proportion to
/// their tokens.
fn sources(ctx: &Ctx<'_>, name: &str, mix: &Mix) -> Result<Vec<DataSource>> {
    let weights = mix.weights();
    if weights.is_empty() {
        let prefixes = ctx.input(name).iter().map(prefixes).collect::<Result<Vec<_>>>()?;
        return Ok(prefixes.into_iter().flatten().map(|prefix| DataSource { prefix, weight: None }).collect());
    }
    let mut sources = Vec::new();
    for (i, weight) in weights.into_iter().enumerate() {
        let prefixes = ctx.input(&format!("{name}.{i}")).iter().map(prefixes).collect::<Result<Vec<_>>>()?.concat();
        let tokens = prefixes.iter().map(|prefix| Ok(IndexedDataset::open(prefix)?.tokens()));
        let tokens = tokens.collect::<Result<Vec<u64>>>()?;
        let all: u64 = tokens.iter().sum();
        ensure!(all > 0, "source {i} of `{name}` holds no tokens");
        let parts = tokens.into_iter().map(|tokens| Some(weight * (tokens as f64 / all as f64)));
        sources.extend(prefixes.into_iter().zip(parts).map(|(prefix, weight)| DataSource { prefix, weight }));
    }
    Ok(sources)
}

/// The `.bin/.idx` pairs of an input, in the order of their names.
fn prefixes(input: &Input) -> Result<Vec<PathBuf>> {
    let mut prefixes = Vec::new();
    for (name, path) in input.files() {
        let Some(stem) = name.strip_suffix(".bin") else { continue };
        let index =
            input.file(&format!("{stem}.idx")).with_context(|| format!("{}: {name} has no .idx", input.name))?;
        let (bin, idx) = (path.with_extension(""), index.with_extension(""));
        ensure!(bin == idx, "{}: {} and {} do not lie together", input.name, path.display(), index.display());
        prefixes.push(bin);
    }
    ensure!(!prefixes.is_empty(), "{} holds no .bin with its .idx", input.name);
    Ok(prefixes)
}

/// How long what another machine wrote may take to be seen: file systems of the network look at a directory again after a
/// minute at the latest.
const LAG: Duration = Duration::from_secs(75);

/// [`whole`], as soon as it can be seen.
fn whole_soon(ctx: &Ctx<'_>) -> Result<()> {
    let elsewhere = ctx.nodes > 1 || !ctx.hosts.is_empty();
    let until = Instant::now() + if elsewhere { LAG } else { Duration::ZERO };
    loop {
        match whole(ctx.out) {
            Err(_) if Instant::now() < until => thread::sleep(Duration::from_millis(200)),
            told => return told,
        }
        ctx.go_on()?;
    }
}

/// Whether the workers left what they must.
fn whole(out: &Path) -> Result<()> {
    let entries = fs::read_dir(out).with_context(|| format!("cannot read {}", out.display()))?;
    let checkpoint = entries.flatten().any(|entry| {
        entry.file_name().to_string_lossy().starts_with("iter_") && entry.path().join(".metadata").is_file()
    });
    ensure!(checkpoint, "the workers ended well and left no iter_*/.metadata in {}", out.display());
    ensure!(
        out.join("metrics.jsonl").is_file(),
        "the workers ended well and left no metrics.jsonl in {}",
        out.display()
    );
    Ok(())
}
