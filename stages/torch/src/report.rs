//! What a training tells people while it runs: what it is, its steps, and what looks wrong. Rank 0 speaks.

use std::{collections::VecDeque, time::Instant};

use anyhow::Result;
use flow_core::Unit;
use flow_plan::{ModelConfig, TrainJob, Training};
use tch::Device;

use crate::{
    device,
    events::Voice,
    metrics::Line,
    model::params::{Layout, Share},
    nvml::Gpu,
    ranks::Ranks,
    tensorboard::EventFile,
    weights,
};

/// The voice of a training.
pub struct Report<'a> {
    voice: &'a Voice,
    training: &'a Training,
    device: Device,
    ranks: usize,
    spikes: Spikes,
    /// Model FLOPs of a token, and what one GPU can do a second in bf16, where that is known.
    work: (f64, Option<f64>),
    board: Option<EventFile>,
    gpu: Option<Gpu>,
    /// When the first step of this process began, and how many were done then.
    began: (Instant, u64),
}

impl<'a> Report<'a> {
    /// Says what is about to happen after `step` steps.
    pub fn begin(
        voice: &'a Voice,
        job: &'a TrainJob,
        config: &ModelConfig,
        ranks: &Ranks,
        device: Device,
        step: u64,
    ) -> Result<Self> {
        let training = &job.training;
        let parallel = &training.parallel;
        voice.info(format!(
            "Llama of {:.1} M parameters, {} layers; {} on {device:?}, tensor {} × context {} × data {} × pipeline {}, {} threads a rank; {} micro batches of {} × {} tokens a step",
            Layout::new(config, Share::WHOLE).total as f64 / 1e6,
            config.num_hidden_layers,
            weights::dtype(training.precision).torch(),
            parallel.tensor,
            parallel.context,
            parallel.data,
            parallel.pipeline,
            job.threads,
            training.accumulation(),
            training.micro_batch_size,
            training.seq_length,
        ));
        if ranks.world.size() > 1 && device.is_cuda() && ranks.nccl.is_none() {
            voice.warn("ranks on GPUs talk through the machine's memory (Gloo): right, and slow");
        }
        voice.progress(step, Some(training.max_steps), Unit::Steps);
        let board = training.tensorboard.as_ref().filter(|_| ranks.rank == 0);
        Ok(Self {
            voice,
            training,
            device,
            ranks: ranks.world.size(),
            spikes: Spikes::default(),
            work: (config.flops_per_token(training.seq_length), device::peak_flops(device)),
            board: board.map(|dir| EventFile::create(&dir.join(&job.node))).transpose()?,
            gpu: Gpu::of(device).filter(|_| ranks.rank == 0),
            began: (Instant::now(), step),
        })
    }

    /// Says how a step went that took `seconds`, `waited` of them for data.
    pub fn step(&mut self, line: &Line, seconds: f64, waited: f64) -> Result<()> {
        if let Some(usual) = line.loss.and_then(|loss| self.spikes.look(loss)) {
            let loss = line.loss.unwrap_or_default();
            self.voice.warn(format!("step {}: the loss is {loss:.4}, and was {usual:.4} before", line.step));
        }
        let due = line.step.is_multiple_of(self.training.log_interval.max(1));
        if due || line.step == self.training.max_steps || line.val_loss.is_some() {
            self.emit(line, seconds, waited)?;
        }
        Ok(())
    }

    fn emit(&mut self, line: &Line, seconds: f64, waited: f64) -> Result<()> {
        let tokens = self.training.consumed_tokens(self.training.global_batch_size as u64) as f64;
        let absent = f64::NAN;
        let (loss, norm) = (line.loss.unwrap_or(absent), line.grad_norm.unwrap_or(absent));
        let (began, first) = self.began;
        let left = (self.training.max_steps - line.step) as f64;
        let eta = began.elapsed().as_secs_f64() / (line.step - first) as f64 * left;
        let memory = device::peak_memory(self.device).unwrap_or(absent);
        let (flops, peak) = self.work;
        let each = tokens / seconds / self.ranks as f64;
        let mfu = peak.map_or(absent, |peak| each * flops / peak);
        let (busy, taken) = self.gpu.as_ref().and_then(Gpu::load).unwrap_or((absent, absent));
        let values = [
            ("loss", loss),
            ("lr", line.lr),
            ("grad_norm", norm),
            ("val_loss", line.val_loss.unwrap_or(absent)),
            ("tokens_per_second", tokens / seconds),
            ("tokens_per_second_rank", each),
            ("model_tflops_rank", each * flops / 1e12),
            ("mfu", mfu),
            ("step_seconds", seconds),
            ("data_seconds", waited),
            ("gpu_utilization", busy),
            ("gpu_memory_bytes", taken),
            ("consumed_samples", line.consumed_samples as f64),
            ("consumed_tokens", line.consumed_tokens as f64),
            ("memory_bytes", memory),
            ("eta_seconds", eta),
        ];
        self.voice.metrics(line.step, &values);
        if let Some(board) = &mut self.board {
            board.scalars(line.step, &values)?;
        }
        let validation = line.val_loss.map(|loss| format!(", validation {loss:.4}")).unwrap_or_default();
        let mfu = if mfu.is_finite() { format!(", MFU {:.0} %", 100.0 * mfu) } else { String::new() };
        if self.voice.speaks() {
            eprintln!(
                "step {}/{}: loss {loss:.4}, norm {norm:.3}, lr {:.3e}{validation}, {:.0} tokens/s{mfu}, {:.1} GiB, {} left",
                line.step,
                self.training.max_steps,
                line.lr,
                tokens / seconds,
                memory / f64::from(1 << 30),
                duration(eta),
            );
        }
        self.voice.progress(line.step, Some(self.training.max_steps), Unit::Steps);
        Ok(())
    }
}

/// Hours, minutes and seconds as far as they matter.
fn duration(seconds: f64) -> String {
    let (minutes, hours) = (seconds / 60.0, seconds / 3600.0);
    match seconds {
        _ if hours >= 1.0 => format!("{:.0} h {:02.0} min", hours.floor(), (minutes % 60.0).floor()),
        _ if minutes >= 1.0 => format!("{:.0} min", minutes.floor()),
        _ => format!("{seconds:.0} s"),
    }
}

/// Losses that stand out from those before them.
#[derive(Debug, Default)]
struct Spikes(VecDeque<f64>);

impl Spikes {
    /// So many losses are compared with, and as many are waited for.
    const WINDOW: usize = 50;
    /// A spike is above the mean by so many standard deviations, and by a tenth.
    const DEVIATIONS: f64 = 5.0;

    /// The usual loss, if this one is far above it.
    fn look(&mut self, loss: f64) -> Option<f64> {
        let n = self.0.len() as f64;
        let mean = self.0.iter().sum::<f64>() / n;
        let deviation = (self.0.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
        let full = self.0.len() == Self::WINDOW;
        let spike = full && loss > mean + Self::DEVIATIONS * deviation && loss > 1.1 * mean;
        if full {
            self.0.pop_front();
        }
        self.0.push_back(loss);
        spike.then_some(mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_seen_and_noise_is_not() {
        let mut spikes = Spikes::default();
        for i in 0..200 {
            assert_eq!(spikes.look(3.0 - 0.002 * f64::from(i) + 0.05 * f64::from(i % 7)), None);
        }
        let usual = spikes.look(5.0).unwrap();
        assert!((2.5..3.0).contains(&usual));
    }

    #[test]
    fn durations_are_short() {
        assert_eq!([5.2, 150.0, 7300.0].map(duration), ["5 s", "2 min", "2 h 01 min"]);
    }
}
