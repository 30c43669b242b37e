//! `flow-torch bench --layers N --seq S …`: what a machine makes of a geometry, so that one can size a run: tokens a second,
//! model FLOP/s, memory beside its estimate, and where the time goes. Weights and tokens are random; without flags the
//! geometry is Llama-3.1-8B's.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use flow_dist::Group;
use flow_plan::{Device as Wanted, MemoryEstimate, ModelConfig, Optim, Precision, Rank, Recompute, TrainJob, Training};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tch::{Cuda, Device, Kind, Tensor};

use crate::{
    buckets::Buckets,
    checkpoint::State,
    device,
    events::Voice,
    model::{
        Gradients, Input, Llama, Sight, Spread,
        params::{Layout, Share},
    },
    optim::AdamW,
    post::Post,
    saved::Saved,
    scribe::Scribe,
    weights,
};

/// What the flags say: `--layers 4` is `layers`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Flags {
    layers: usize,
    hidden: usize,
    ffn: usize,
    heads: usize,
    kv: usize,
    vocab: usize,
    seq: usize,
    micro: usize,
    steps: usize,
    threads: usize,
    /// Updates too: without, a model fits whose optimizer does not.
    optimizer: bool,
    /// Saves checkpoints into this directory: with the optimizer.
    save: Option<PathBuf>,
    recompute: Recompute,
    precision: Precision,
    device: Wanted,
}

impl Default for Flags {
    fn default() -> Self {
        Self {
            layers: 32,
            hidden: 4096,
            ffn: 14336,
            heads: 32,
            kv: 8,
            vocab: 128_256,
            seq: 8192,
            micro: 1,
            steps: 8,
            threads: 1,
            optimizer: false,
            save: None,
            recompute: Recompute::None,
            precision: Precision::Bf16,
            device: Wanted::Auto,
        }
    }
}

impl Flags {
    /// `--name value`, or `--name` alone for what is on or off.
    fn parse(arguments: &[&str]) -> Result<Self> {
        let mut table = Map::new();
        let mut left = arguments.iter().peekable();
        while let Some(flag) = left.next() {
            let name = flag.strip_prefix("--").with_context(|| format!("`{flag}` is no flag"))?;
            let value = left.next_if(|next| !next.starts_with("--"));
            let value = value.map_or(Value::Bool(true), |text| text.parse::<u64>().map_or(json!(text), Value::from));
            table.insert(name.to_owned(), value);
        }
        Ok(serde_json::from_value(Value::Object(table))?)
    }

    fn model(&self) -> Result<ModelConfig> {
        ensure!(self.heads > 0 && self.hidden.is_multiple_of(self.heads), "heads do not divide hidden");
        Ok(ModelConfig {
            vocab_size: self.vocab,
            hidden_size: self.hidden,
            intermediate_size: self.ffn,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.kv,
            head_dim: self.hidden / self.heads,
            max_position_embeddings: self.seq,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: None,
            tie_word_embeddings: false,
            eos_token_id: None,
        })
    }

    fn training(&self) -> Result<Training> {
        let mut training: Training = serde_json::from_value(json!({
            "seq_length": self.seq, "micro_batch_size": self.micro, "global_batch_size": self.micro,
            "max_steps": self.steps, "optim": {"lr": 1e-5},
        }))?;
        training.precision = self.precision;
        training.memory.recompute = self.recompute;
        training.checkpoint.interval = u64::from(self.save.is_some());
        Ok(training)
    }
}

/// Seconds of the phases of a step.
#[derive(Clone, Copy, Debug, Default)]
struct Phases {
    forward: f64,
    head: f64,
    backward: f64,
    optimizer: f64,
}

/// Measures as `arguments` say, and prints one JSON object.
pub fn bench(arguments: &[&str]) -> Result<()> {
    let flags = Flags::parse(arguments)?;
    let (config, training) = (flags.model()?, flags.training()?);
    let errors = training.check(&flow_plan::KnownData { model: Some(config.clone()), ..Default::default() });
    if let Some(wrong) = errors.first() {
        bail!("{}", wrong.message);
    }
    let rank = Rank { rank: 0, world_size: 1, local_rank: 0, master_addr: String::new(), master_port: 0 };
    let device = device::set_up(flags.device, &rank, flags.threads, false)?;
    let kind = weights::kind(flags.precision);
    tch::manual_seed(1);
    let layout = Layout::new(&config, Share::WHOLE);
    let flat = Tensor::empty([layout.total as i64], (kind, device)).normal_(0.0, 0.02);
    let _ = flat.narrow(0, layout.matrices as i64, (layout.total - layout.matrices) as i64).fill_(1.0);
    let learns = Some(Gradients::new(&layout, device));
    let model = Llama::new(&config, &layout, &flat, flags.seq, Spread::none(), flags.recompute, learns)?;
    let gradients = &model.gradients()?.flat;
    let buckets = Buckets::new(&layout, &Group::solo());
    let optim = Optim { distributed: false, ..training.optim.clone() };
    let mut optimizer = flags.optimizer.then(|| AdamW::new(&flat, &layout, &buckets, &optim));

    let ids =
        Tensor::randint(config.vocab_size as i64, [flags.micro as i64, flags.seq as i64 + 1], (Kind::Int64, device));
    let length = flags.seq as i64;
    let (ids_bs, target_bs) = (ids.narrow(1, 0, length), ids.narrow(1, 1, length));
    let scale = 1.0 / (flags.micro * flags.seq) as f64;
    let step = |optimizer: Option<&mut AdamW>, mut marked: Option<&mut Phases>| -> Result<f64> {
        let mut last = Instant::now();
        let mut mark = |of: fn(&mut Phases) -> &mut f64| {
            if let Some(phases) = &mut marked {
                synchronize(device);
                *of(phases) += last.elapsed().as_secs_f64();
                last = Instant::now();
            }
        };
        let (tape, _) = model.forward(Input::Tokens(&ids_bs), Sight::default())?;
        mark(|phases| &mut phases.forward);
        let (loss, d_bsh) = model.loss(&tape, &target_bs, scale)?;
        mark(|phases| &mut phases.head);
        model.backward(tape, d_bsh, &mut |_, _| Ok(()))?;
        mark(|phases| &mut phases.backward);
        if let Some(optimizer) = optimizer {
            let norm = buckets.squares(gradients).sqrt();
            optimizer.step(gradients, norm, 1.0, 1e-5, &buckets)?;
            let _ = gradients.shallow_clone().zero_();
            mark(|phases| &mut phases.optimizer);
        }
        Ok(loss.double_value(&[]) * scale)
    };
    for _ in 0..2 {
        step(optimizer.as_mut(), None)?;
    }
    synchronize(device);
    let began = Instant::now();
    let mut loss = 0.0;
    for _ in 0..flags.steps {
        loss = step(optimizer.as_mut(), None)?;
    }
    synchronize(device);
    let seconds = began.elapsed().as_secs_f64() / flags.steps as f64;
    let mut phases = Phases::default();
    for _ in 0..3 {
        step(optimizer.as_mut(), Some(&mut phases))?;
    }

    let saves = match (&flags.save, &mut optimizer) {
        (None, _) => Value::Null,
        (Some(_), None) => bail!("--save is of what --optimizer has"),
        (Some(dir), Some(optimizer)) => {
            let scribe = scribe(dir, &training, &layout);
            saves(scribe, (&flat, optimizer), &mut |optimizer| {
                step(Some(optimizer), None)?;
                synchronize(device);
                Ok(())
            })?
        }
    };

    let tokens = (flags.micro * flags.seq) as f64 / seconds;
    let gib = |bytes: f64| (bytes / f64::from(1 << 30) * 100.0).round() / 100.0;
    let estimate = MemoryEstimate::of(&training, &config);
    let optimizer_bytes = if flags.optimizer { 0 } else { estimate.optimizer };
    let result = json!({
        "device": format!("{device:?}"), "libtorch": flow_dist::runtime::libtorch_version(),
        "parameters": layout.total, "layers": flags.layers, "seq_length": flags.seq, "micro_batch_size": flags.micro,
        "precision": flags.precision, "recompute": flags.recompute, "loss": loss,
        "step_seconds": seconds, "tokens_per_second": tokens.round(),
        "model_tflops": (tokens * config.flops_per_token(flags.seq) / 1e10).round() / 100.0,
        "memory_gib": device::peak_memory(device).map(gib),
        "estimated_gib": gib((estimate.total() - optimizer_bytes) as f64),
        "phase_seconds": {
            "forward": phases.forward / 3.0, "head": phases.head / 3.0, "backward": phases.backward / 3.0,
            "optimizer": phases.optimizer / 3.0,
        },
        "saves": saves,
    });
    writeln!(std::io::stdout(), "{result:#}").context("cannot write to standard output")
}

fn scribe(dir: &Path, training: &Training, layout: &Layout) -> Scribe {
    let job = TrainJob {
        node: "bench".to_owned(),
        model: dir.to_owned(),
        config: None,
        train: Vec::new(),
        validation: Vec::new(),
        training: training.clone(),
        out: dir.to_owned(),
        scratch: dir.to_owned(),
        threads: 1,
    };
    Scribe { job: job.into(), post: Post::new(0, 1, None), layout: layout.clone().into(), run_config: "".into() }
}

/// How long checkpoints hold training up that are written beside it, and one for which it waits.
fn saves(
    scribe: Scribe,
    (flat, optimizer): (&Tensor, &mut AdamW),
    step: &mut dyn FnMut(&mut AdamW) -> Result<()>,
) -> Result<Value> {
    let silent = Voice::new("bench", 1);
    let (mut held, mut disk, mut steps, mut state) = (Vec::new(), Vec::new(), 0, State::default());
    let began = Instant::now();
    let mut saved = Saved::new(scribe, &silent, (flat, optimizer), true, 0)?;
    saved.wait()?;
    let room = began.elapsed().as_secs_f64();
    for _ in 0..2 {
        state.step += 1;
        let began = Instant::now();
        saved.checkpoint(&state, optimizer, None)?;
        held.push(began.elapsed().as_secs_f64());
        while saved.is_busy() {
            step(optimizer)?;
            steps += 1;
        }
        saved.wait()?;
        disk.push(began.elapsed().as_secs_f64());
    }
    state.step += 1;
    let began = Instant::now();
    saved.checkpoint_now(&state, optimizer, None)?;
    let waiting = began.elapsed().as_secs_f64();
    let beside = disk.iter().sum::<f64>() - held.iter().sum::<f64>();
    Ok(json!({
        "room_seconds": room, "held_up_seconds": held, "on_disk_after_seconds": disk,
        "step_seconds_meanwhile": beside / f64::from(steps), "waiting_seconds": waiting,
    }))
}

fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_numbers_words_and_switches() {
        let flags = Flags::parse(&["--layers", "2", "--recompute", "full", "--optimizer", "--seq", "16"]).unwrap();
        assert_eq!((flags.layers, flags.seq, flags.optimizer), (2, 16, true));
        assert_eq!(flags.recompute, Recompute::Full);
        assert!(Flags::parse(&["--layer", "2"]).unwrap_err().to_string().contains("layer"));
        assert!(Flags::parse(&["layers"]).is_err());
    }
}
