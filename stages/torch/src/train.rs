//! Training: mesh → model → optimizer → maybe load → loop { batches → forward and backward → reduce → clip → step →
//! emit → maybe validate, save } → export.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use flow_core::Unit;
use flow_dist::Reduce;
use flow_formats::torch_dist::{self, Reader};
use flow_plan::{Data, ModelConfig, Rank, Recompute, Schedule, TrainJob, Training};
use tch::{Device, Kind, Tensor};

use crate::{
    Ended,
    checkpoint::{self, Saved, State},
    device,
    events::Voice,
    metrics::{Line, Metrics},
    model::{Gradients, Llama, TensorParallel, params::Layout},
    optim::{self, AdamW},
    ranks::{self, Ranks},
    signals, weights,
};

/// Trains as `job` says, as one of its ranks.
pub fn train(job: &TrainJob, me: &Rank, ranks: &mut Option<Ranks>) -> Result<Ended> {
    let training = &job.training;
    let config = ModelConfig::read(job.config.as_deref().unwrap_or(&job.model))?;
    fits(training, &config)?;
    let device = device::set_up(training.device, me, job.threads)?;
    let ranks = &*ranks.insert(Ranks::meet(me, &training.parallel)?);
    let voice = Voice::new(&job.node, ranks.rank);
    let data = Data::open(&job.train, &job.validation, training)?;

    let layout = Layout::new(&config, (ranks.coords.tensor, training.parallel.tensor));
    let flat = Tensor::zeros([layout.total as i64], (weights::kind(training.precision), device));
    let (_, source) = torch_dist::newest(&job.model)?;
    weights::read(&Reader::open(&source)?, "", &layout, &flat)
        .with_context(|| format!("cannot take the model from {}", source.display()))?;
    let tp = TensorParallel {
        group: ranks.tensor.clone(),
        sequence: training.parallel.sequence && training.parallel.tensor > 1,
    };
    let sequence_parallel = tp.sequence;
    let model = Llama::new(&config, &layout, &flat, training.seq_length, tp)?;
    let mut optimizer = AdamW::new(&flat, layout.matrices, &training.optim);
    let mut gradients = Gradients::new(&layout, device);

    let mut state = resume(job, ranks, &layout, &flat, &mut optimizer, &voice)?;
    let mut metrics = (ranks.rank == 0).then(|| Metrics::open(&job.scratch, state.step)).transpose()?;
    let run_config = config.run_config_yaml(weights::dtype(training.precision), training.seq_length);
    let saved = Saved { job, ranks, layout: &layout, weights: &flat, run_config: &run_config };
    let batches = Batches { training, data: &data, vocab: config.vocab_size as i64, device, ranks };
    announce(&voice, job, &config, ranks, device, &state);

    let schedule = Schedule::new(training);
    while state.step < training.max_steps {
        let began = Instant::now();
        let step = state.step + 1;
        let lr = schedule.lr(state.step);

        let mut nll = Tensor::zeros([], (Kind::Double, device));
        let _ = gradients.flat.zero_();
        for micro in 0..training.accumulation() {
            let (ids_bs, target_bs) = batches.training(state.step, micro)?;
            let scale = 1.0 / (batches.tokens() * training.accumulation()) as f64;
            let recompute = training.memory.recompute == Recompute::Full;
            nll += model.forward_backward(&ids_bs, &target_bs, scale, recompute, &mut gradients)?;
        }

        if sequence_parallel {
            // Each rank of the tensor axis saw its part of the sequence only through the norms.
            let norms = gradients.flat.narrow(0, layout.matrices as i64, (layout.total - layout.matrices) as i64);
            ranks.tensor.all_reduce(&norms, Reduce::Sum)?;
        }
        ranks.data.all_reduce(&gradients.flat, Reduce::Avg)?;
        let norm = optim::norm(&gradients.flat, layout.matrices, &ranks.tensor)?;
        let skipped = !norm.is_finite();
        if skipped {
            voice.warn(format!("step {step}: the gradient is not finite; nothing is learned from this batch"));
        } else {
            optimizer.step(&mut gradients.flat, norm, training.gradient_clip, lr)?;
        }
        let (loss, stop) = batches.mean_and_stop(&nll, training.accumulation())?;
        state.step = step;
        state.updates = optimizer.updates;

        let seconds = began.elapsed().as_secs_f64();
        let mut val_loss = None;
        if data.has_validation() && step.is_multiple_of(training.val_interval) {
            val_loss = Some(validate(&model, &batches, state.validations)?);
            state.val_loss = val_loss;
            state.validations += 1;
        }
        let consumed_samples = step * training.global_batch_size as u64;
        let finite = |x: f64| x.is_finite().then_some(x);
        let line = Line {
            step,
            loss: finite(loss),
            lr,
            grad_norm: finite(norm),
            consumed_samples,
            consumed_tokens: training.consumed_tokens(consumed_samples),
            val_loss: val_loss.and_then(finite),
            skipped,
        };
        if let Some(metrics) = &mut metrics {
            metrics.push(&line)?;
        }
        if step.is_multiple_of(training.log_interval.max(1)) || step == training.max_steps || val_loss.is_some() {
            emit(&voice, &line, training, seconds, device);
        }

        let interval = training.checkpoint.interval;
        let due = interval > 0 && step.is_multiple_of(interval) && step < training.max_steps;
        if due || stop {
            if let Some(metrics) = &metrics {
                metrics.sync()?;
            }
            saved.checkpoint(&state, &optimizer)?;
        }
        if stop {
            voice.info(format!("interrupted after step {step}; a checkpoint is there to go on from"));
            return Ok(Ended::Interrupted);
        }
    }

    saved.result(&state)?;
    if let Some(metrics) = &metrics {
        metrics.publish(&job.out)?;
    }
    Ok(Ended::Done)
}

/// Refuses what cannot work with this model, before anything is read.
fn fits(training: &Training, config: &ModelConfig) -> Result<()> {
    ranks::supported(&training.parallel)?;
    let tensor = training.parallel.tensor;
    for (what, size) in [
        ("vocabulary", config.vocab_size),
        ("number of key and value heads", config.num_key_value_heads),
        ("feed-forward width", config.intermediate_size),
    ] {
        ensure!(size.is_multiple_of(tensor), "tensor = {tensor} does not divide the model's {what}, {size}");
    }
    ensure!(
        !training.parallel.sequence || training.seq_length.is_multiple_of(tensor),
        "tensor = {tensor} does not divide seq_length {}, as sequence parallelism needs",
        training.seq_length
    );
    let unit = training.micro_batch_size * training.parallel.data;
    ensure!(
        unit > 0 && training.global_batch_size > 0 && training.global_batch_size.is_multiple_of(unit),
        "global_batch_size {} is not a multiple of micro_batch_size × data = {unit}",
        training.global_batch_size
    );
    Ok(())
}

/// Goes back to the newest checkpoint in the scratch directory that can be read; to the start if there is none.
fn resume(
    job: &TrainJob,
    ranks: &Ranks,
    layout: &Layout,
    flat: &Tensor,
    optimizer: &mut AdamW,
    voice: &Voice,
) -> Result<State> {
    let training = decisive(&job.training);
    let mut checkpoints: Vec<String> = Vec::new();
    if ranks.rank == 0 {
        fs::create_dir_all(&job.scratch).with_context(|| format!("cannot make {}", job.scratch.display()))?;
        checkpoint::sweep(&job.scratch)?;
        for path in checkpoint::found(&job.scratch)? {
            match usable(&path, &job.scratch, &training) {
                Ok(()) => checkpoints.push(path.to_str().context("a path is UTF-8")?.to_owned()),
                Err(why) => voice.warn(format!("{} is passed over: {why:#}", path.display())),
            }
        }
    }
    // All look at what rank 0 found, in its order.
    let shared = ranks.share_bytes("checkpoints", serde_json::to_vec(&checkpoints)?)?;
    let checkpoints: Vec<String> = serde_json::from_slice(&shared)?;
    for path in checkpoints {
        let path = Path::new(&path);
        let loaded = checkpoint::read_state(path)
            .and_then(|state| checkpoint::load(path, &state, layout, flat, optimizer).map(|()| state));
        let failed = Tensor::from(if loaded.is_ok() { 0.0 } else { 1.0f64 });
        ranks.world.all_reduce(&failed, Reduce::Max)?;
        match loaded {
            Ok(state) if failed.double_value(&[]) == 0.0 => {
                voice.info(format!("going on from {} after step {}", path.display(), state.step));
                if ranks.rank == 0 {
                    checkpoint::forget_after(&job.scratch, state.step)?;
                }
                return Ok(state);
            }
            Ok(_) => {}
            Err(why) => voice.warn(format!("{} is passed over: {why:#}", path.display())),
        }
        // Half of it may have been read.
        let (_, source) = torch_dist::newest(&job.model)?;
        weights::read(&Reader::open(&source)?, "", layout, flat)?;
        *optimizer = AdamW::new(flat, layout.matrices, &job.training.optim);
    }
    if ranks.rank == 0 {
        checkpoint::forget_after(&job.scratch, 0)?;
    }
    Ok(State { training, ..State::default() })
}

/// Whether a checkpoint is of this run, and its steps are in `metrics.jsonl`.
fn usable(path: &Path, scratch: &Path, training: &serde_json::Value) -> Result<()> {
    let state = checkpoint::read_state(path)?;
    if state.training != *training {
        bail!("it is of a run with other parameters");
    }
    crate::metrics::holds(scratch, state.step)
}

/// The parameters that decide the numbers. How the model is spread does not.
fn decisive(training: &Training) -> serde_json::Value {
    let mut table = training.keyed();
    table.remove("parallel");
    table.into()
}

/// Micro batches as tensors.
struct Batches<'a> {
    training: &'a Training,
    data: &'a Data,
    vocab: i64,
    device: Device,
    ranks: &'a Ranks,
}

impl Batches<'_> {
    /// Tokens of one micro batch.
    fn tokens(&self) -> usize {
        self.training.micro_batch_size * self.training.seq_length
    }

    fn training(&self, completed: u64, micro: usize) -> Result<(Tensor, Tensor)> {
        let consumed = completed * self.training.global_batch_size as u64;
        self.split(&self.data.train_batch(consumed, micro, self.ranks.coords.data)?)
    }

    fn validation(&self, round: u64, batch: u64, micro: usize) -> Result<(Tensor, Tensor)> {
        self.split(&self.data.validation_batch(round, batch, micro, self.ranks.coords.data)?)
    }

    /// Rows of L + 1 tokens → what goes in, and what is to follow: [b, L] each.
    fn split(&self, rows: &[i64]) -> Result<(Tensor, Tensor)> {
        if let Some(id) = rows.iter().find(|id| !(0..self.vocab).contains(id)) {
            bail!(
                "the data holds token {id}, and the model's vocabulary has {}: tokenize with its own tokenizer",
                self.vocab
            );
        }
        let length = self.training.seq_length as i64;
        let rows_bs = Tensor::from_slice(rows).view([-1, length + 1]).to_device(self.device);
        Ok((rows_bs.narrow(1, 0, length), rows_bs.narrow(1, 1, length)))
    }

    /// The mean over the tokens of all ranks, and whether any rank was asked to stop. `nll` is this rank's sum over
    /// `count` micro batches.
    fn mean_and_stop(&self, nll: &Tensor, count: usize) -> Result<(f64, bool)> {
        let mine = if self.ranks.coords.tensor == 0 { nll.double_value(&[]) } else { 0.0 };
        let stop = if signals::asked_to_stop() { 1.0 } else { 0.0 };
        let both = Tensor::from_slice(&[mine, stop]);
        self.ranks.world.all_reduce(&both, Reduce::Sum)?;
        let tokens = self.tokens() * count * self.training.parallel.data;
        Ok((both.double_value(&[0]) / tokens as f64, both.double_value(&[1]) > 0.0))
    }
}

/// The mean loss over the batches of one validation.
fn validate(model: &Llama, batches: &Batches<'_>, round: u64) -> Result<f64> {
    let training = batches.training;
    let mut nll = Tensor::zeros([], (Kind::Double, batches.device));
    for batch in 0..training.limit_val_batches {
        for micro in 0..training.accumulation() {
            let (ids_bs, target_bs) = batches.validation(round, batch, micro)?;
            nll += model.nll(&ids_bs, &target_bs)?.sum(Kind::Double);
        }
    }
    Ok(batches.mean_and_stop(&nll, training.accumulation() * usize::try_from(training.limit_val_batches)?)?.0)
}

fn announce(voice: &Voice, job: &TrainJob, config: &ModelConfig, ranks: &Ranks, device: Device, state: &State) {
    let training = &job.training;
    let whole = Layout::new(config, (0, 1)).total as f64;
    let parallel = &training.parallel;
    voice.info(format!(
        "Llama of {:.1} M parameters, {} layers; {} on {device:?}, tensor {} × data {}, {} threads a rank; {} micro batches of {} × {} tokens a step",
        whole / 1e6,
        config.num_hidden_layers,
        weights::dtype(training.precision).torch(),
        parallel.tensor,
        parallel.data,
        job.threads,
        training.accumulation(),
        training.micro_batch_size,
        training.seq_length,
    ));
    if ranks.world.size() > 1 && device.is_cuda() {
        voice.warn("ranks on GPUs talk through the machines' memory (Gloo): right, and slow");
    }
    if training.optim.distributed && ranks.data.size() > 1 {
        voice.warn("optim.distributed: the optimizer's state is not sharded yet; every rank holds all of it");
    }
    voice.progress(state.step, Some(training.max_steps), Unit::Steps);
}

fn emit(voice: &Voice, line: &Line, training: &Training, seconds: f64, device: Device) {
    let tokens = training.consumed_tokens(training.global_batch_size as u64) as f64;
    let absent = f64::NAN;
    let (loss, norm) = (line.loss.unwrap_or(absent), line.grad_norm.unwrap_or(absent));
    voice.metrics(
        line.step,
        &[
            ("loss", loss),
            ("lr", line.lr),
            ("grad_norm", norm),
            ("val_loss", line.val_loss.unwrap_or(absent)),
            ("tokens_per_second", tokens / seconds),
            ("step_seconds", seconds),
            ("consumed_samples", line.consumed_samples as f64),
            ("consumed_tokens", line.consumed_tokens as f64),
            ("memory_bytes", device::peak_memory(device).unwrap_or(absent)),
        ],
    );
    let validation = line.val_loss.map(|loss| format!(", validation {loss:.4}")).unwrap_or_default();
    eprintln!(
        "step {}: loss {loss:.4}, norm {norm:.3}, lr {:.3e}{validation}, {:.0} tokens/s",
        line.step,
        line.lr,
        tokens / seconds
    );
    voice.progress(line.step, Some(training.max_steps), Unit::Steps);
}
