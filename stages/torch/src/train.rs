//! Training: mesh → model → optimizer → maybe load → loop { batches → forward and backward → reduce → clip → step →
//! emit → maybe validate, save } → export.

use std::{sync::Arc, time::Instant};

use anyhow::{Result, bail};
use flow_dist::Reduce;
use flow_plan::{Data, KnownData, ModelConfig, Rank, Schedule, TrainJob, Training};
use tch::Tensor;

use crate::{
    Ended,
    ahead::Ahead,
    batches::Batches,
    buckets::{Buckets, Sum},
    checkpoint::State,
    device,
    events::Voice,
    metrics::{Line, Metrics},
    model::{ContextParallel, Gradients, Llama, Spread, TensorParallel, params::Layout},
    optim::AdamW,
    pipeline::{Pipeline, Step},
    ranks::Ranks,
    report::Report,
    resume::{Resumed, begin},
    saved::Saved,
    scribe::Scribe,
    weights,
};

/// Trains as `job` says, as one of its ranks.
pub fn train(job: &TrainJob, me: &Rank, ranks: &mut Option<Ranks>) -> Result<Ended> {
    let training = &job.training;
    let config = ModelConfig::read(job.config.as_deref().unwrap_or(&job.model))?;
    fits(training, &config)?;
    let device = device::set_up(training.device, me, job.threads, training.deterministic)?;
    device::has_room(device, training, &config)?;
    let ranks = &*ranks.insert(Ranks::meet(me, &training.parallel, device)?);
    let voice = Voice::new(&job.node, ranks.rank);
    let data = Arc::new(Data::open(&job.train, &job.validation, training)?);

    let layout = Layout::new(&config, ranks.share());
    let flat = Tensor::zeros([layout.total as i64], (weights::kind(training.precision), device));
    begin(job, &layout, &flat)?;
    let (spread, recompute) = (spread(ranks, training), training.memory.recompute);
    let learns = Some(Gradients::new(&layout, device));
    let model = Llama::new(&config, &layout, &flat, training.seq_length, spread, recompute, learns)?;
    let gradients = model.gradients()?;
    let buckets = Buckets::new(&layout, &ranks.data);
    let mut optimizer = AdamW::new(&flat, &layout, &buckets, &training.optim);

    let resumed = Resumed { layout: &layout, buckets: &buckets, weights: &flat, optimizer: &mut optimizer };
    let mut state = resumed.newest(job, ranks, &voice)?;
    let mut metrics = (ranks.rank == 0).then(|| Metrics::open(&job.scratch, state.step)).transpose()?;
    let run_config = config.run_config_yaml(weights::dtype(training.precision), training.seq_length);
    let scribe = Scribe {
        job: Arc::new(job.clone()),
        post: ranks.post(),
        layout: Arc::new(layout.clone()),
        run_config: run_config.into(),
    };
    let mut saved = Saved::new(scribe, &voice, (&flat, &optimizer), ranks.data.rank() == 0, state.step)?;
    let documents = training.documents(&config);
    let ahead = Ahead::start(&data, training, ranks.coords.data, state.step)?;
    let vocab = config.vocab_size as i64;
    let batches = Batches { training, data: &data, ahead, documents, vocab, device, ranks };
    let pipeline = Pipeline { model: &model, batches: &batches, kind: flat.kind(), width: config.hidden_size };
    let mut report = Report::begin(&voice, job, &config, ranks, device, state.step)?;

    let schedule = Schedule::new(training);
    let tied = config.tie_word_embeddings && ranks.ends.size() > 1;
    while state.step < training.max_steps {
        let began = Instant::now();
        let step = state.step + 1;
        let lr = schedule.lr(state.step);

        let _ = gradients.flat.shallow_clone().zero_();
        let mut sum = buckets.sum(training.optim.distributed);
        let Step::Done(found) = pipeline.step(state.step, &mut sum, !tied)? else {
            return interrupted(&voice, &mut saved, &state, &optimizer, metrics.as_ref());
        };
        complete(gradients, sum, ranks, &layout, tied, training)?;
        let (loss, learned) = batches.mean(&found, 1)?;
        if documents.is_some_and(|documents| documents.loss) {
            // They were added up as if all tokens were learned: how many are is known now.
            let _ = gradients.flat.shallow_clone().g_mul_scalar_(batches.tokens() as f64 / learned);
        }
        let norm = norm(gradients, &buckets, ranks)?;
        let skipped = !norm.is_finite();
        if skipped {
            voice.warn(format!("step {step}: the gradient is not finite; nothing is learned from this batch"));
        } else {
            optimizer.step(&gradients.flat, norm, training.gradient_clip, lr, &buckets)?;
        }
        (state.step, state.updates) = (step, optimizer.updates);
        let seconds = began.elapsed().as_secs_f64();

        let mut val_loss = None;
        if data.has_validation() && step.is_multiple_of(training.val_interval) {
            val_loss = Some(pipeline.validate(state.validations)?);
            state.val_loss = val_loss;
            state.validations += 1;
        }
        let line = Line::new(training, step, loss, lr, norm, val_loss);
        if let Some(metrics) = &mut metrics {
            metrics.push(&line)?;
        }
        report.step(&line, seconds, batches.ahead.waited().as_secs_f64())?;

        saved.look()?;
        if ranks.anyone_asked_to_stop()? {
            return interrupted(&voice, &mut saved, &state, &optimizer, metrics.as_ref());
        }
        let interval = training.checkpoint.interval;
        if interval > 0 && step.is_multiple_of(interval) && step < training.max_steps {
            saved.checkpoint(&state, &optimizer, metrics.as_ref())?;
        }
    }

    saved.wait()?;
    saved.result(&state)?;
    if let Some(metrics) = &metrics {
        metrics.publish(&job.out)?;
    }
    Ok(Ended::Done)
}

/// Refuses what cannot work with this model, before anything is read.
fn fits(training: &Training, config: &ModelConfig) -> Result<()> {
    let known = KnownData { model: Some(config.clone()), ..KnownData::default() };
    match training.check(&known).first() {
        None => Ok(()),
        Some(wrong) => {
            bail!("{}{}", wrong.message, wrong.hints.iter().map(|hint| format!(": {hint}")).collect::<String>())
        }
    }
}

fn spread(ranks: &Ranks, training: &Training) -> Spread {
    let sequence = training.parallel.sequence && training.parallel.tensor > 1;
    Spread {
        tensor: TensorParallel { group: ranks.tensor.clone(), sequence },
        context: ContextParallel { group: ranks.context.clone() },
    }
}

/// Sums what of the gradients is not summed yet over the ranks that share it.
fn complete(
    gradients: &Gradients,
    sum: Sum<'_>,
    ranks: &Ranks,
    layout: &Layout,
    tied: bool,
    training: &Training,
) -> Result<()> {
    if training.parallel.sequence {
        // Each rank of the tensor axis saw its part of the sequence only through the norms.
        let norms = gradients.flat.narrow(0, layout.matrices as i64, (layout.total - layout.matrices) as i64);
        ranks.tensor.all_reduce(&norms, Reduce::Sum)?;
    }
    if let Some(embedding) = tied.then(|| gradients.embedding(layout)).flatten() {
        ranks.ends.all_reduce(embedding, Reduce::Sum)?;
    }
    sum.finish(&gradients.flat)
}

/// The L2 norm of the whole model's gradient.
fn norm(gradients: &Gradients, buckets: &Buckets, ranks: &Ranks) -> Result<f64> {
    let squares = Tensor::from(buckets.squares(&gradients.flat));
    ranks.world.all_reduce(&squares, Reduce::Sum)?;
    Ok(squares.double_value(&[]).sqrt())
}

fn interrupted(
    voice: &Voice,
    saved: &mut Saved<'_>,
    state: &State,
    optimizer: &AdamW,
    metrics: Option<&Metrics>,
) -> Result<Ended> {
    saved.checkpoint_now(state, optimizer, metrics)?;
    voice.info(format!("interrupted after step {}; a checkpoint is there to go on from", state.step));
    Ok(Ended::Interrupted)
}
