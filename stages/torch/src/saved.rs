//! What a run writes: checkpoints on the way into its scratch directory, the result in the end.
//!
//! A checkpoint is written while training goes on. The step is held up for as long as it takes to copy what is saved into the
//! machine's memory; from there a thread of every rank writes it, one save at a time. What could not be written is an error
//! at the next step. At an interruption nothing goes on, and nothing is copied.

use std::{
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use flow_dist::runtime;
use tch::{Device, Kind, Tensor, no_grad};

use crate::{
    checkpoint::{EXP_AVG, EXP_AVG_SQ, MASTER, State},
    events::Voice,
    metrics::Metrics,
    optim::{AdamW, Stretch},
    scribe::{Parts, Scribe},
};

/// Elements that are copied in one go: pinned memory comes in powers of two.
const PIECE: i64 = 1 << 25;

/// Whoever waits longer than that for the checkpoint before is told.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is saved of a run: the model, and for a checkpoint the optimizer.
pub struct Saved<'a> {
    scribe: Scribe,
    voice: &'a Voice,
    /// The model's weights.
    weights: &'a Tensor,
    /// Of those that share the batch, this rank writes what all of them have.
    first: bool,
    /// The step whose checkpoint is on the disk already, or on its way.
    saved: u64,
    /// What the next checkpoint is copied to.
    free: Option<Parts>,
    /// A thread that makes room for a copy, or writes one.
    busy: Option<Busy>,
}

struct Busy {
    /// Of which step, and for how long it held training up; none is only room.
    step: Option<(u64, Duration)>,
    began: Instant,
    /// Gives the copy back.
    thread: JoinHandle<Result<Parts>>,
}

impl<'a> Saved<'a> {
    /// For a run that goes on from `step`, whose checkpoint is there (or which is the beginning). Where checkpoints are
    /// written while training goes on, room for their copy is made from now on: the first need not wait for it.
    pub fn new(
        scribe: Scribe,
        voice: &'a Voice,
        (weights, optimizer): (&'a Tensor, &AdamW),
        first: bool,
        step: u64,
    ) -> Result<Self> {
        let mut saved = Self { scribe, voice, weights, first, saved: step, free: None, busy: None };
        if saved.scribe.job.training.checkpoint.copies() {
            let (like, device) = (cut(saved.parts(optimizer)), weights.device());
            saved.start(None, move || room(&like, device))?;
        }
        Ok(saved)
    }

    /// Saves a checkpoint with everything that a run needs to go on, while training goes on.
    pub fn checkpoint(&mut self, state: &State, optimizer: &AdamW, metrics: Option<&Metrics>) -> Result<()> {
        let began = Instant::now();
        self.wait()?;
        let Some(copy) = self.free.take() else { return self.checkpoint_now(state, optimizer, metrics) };
        if began.elapsed() > PATIENCE {
            let seconds = began.elapsed().as_secs_f64();
            self.voice.warn(format!("step {}: waited {seconds:.1} s for the checkpoint before this one", state.step));
        }
        overwrite(&copy, &cut(self.parts(optimizer)));
        let (scribe, state, metrics) = (self.scribe.clone(), state.clone(), metrics.map(Metrics::handle).transpose()?);
        self.saved = state.step;
        self.start(Some((state.step, began.elapsed())), move || {
            scribe.checkpoint(state, &copy, metrics.as_ref())?;
            Ok(copy)
        })
    }

    /// As [`Saved::checkpoint`], while nothing else happens and so without a copy; unless it is there.
    pub fn checkpoint_now(&mut self, state: &State, optimizer: &AdamW, metrics: Option<&Metrics>) -> Result<()> {
        self.wait()?;
        if state.step == self.saved {
            return Ok(());
        }
        let began = Instant::now();
        let metrics = metrics.map(Metrics::handle).transpose()?;
        self.scribe.checkpoint(state.clone(), &self.parts(optimizer), metrics.as_ref())?;
        self.saved = state.step;
        self.tell(state.step, began.elapsed(), began.elapsed());
        Ok(())
    }

    /// Whether something is on its way.
    pub fn is_busy(&self) -> bool {
        self.busy.as_ref().is_some_and(|busy| !busy.thread.is_finished())
    }

    /// Takes note of a checkpoint that got to the disk.
    ///
    /// # Errors
    /// It did not.
    pub fn look(&mut self) -> Result<()> {
        if self.is_busy() { Ok(()) } else { self.wait() }
    }

    /// Waits for what is on its way.
    pub fn wait(&mut self) -> Result<()> {
        let Some(Busy { step, began, thread }) = self.busy.take() else { return Ok(()) };
        let ended = thread.join().unwrap_or_else(|panic| Err(anyhow!("{}", crate::words(panic.as_ref()))));
        let Some((step, held)) = step else {
            self.free = Some(ended.context("there is no room to copy a checkpoint to")?);
            return Ok(());
        };
        self.free = Some(ended.with_context(|| format!("the checkpoint of step {step} is not there"))?);
        self.tell(step, held, began.elapsed());
        Ok(())
    }

    /// Writes the result: the model alone, with what lies beside the checkpoint that the run began from.
    pub fn result(&self, state: &State) -> Result<()> {
        let parts = if self.first { vec![("", vec![whole(self.weights)])] } else { Vec::new() };
        self.scribe.result(state, &parts)
    }

    fn start(
        &mut self,
        step: Option<(u64, Duration)>,
        work: impl FnOnce() -> Result<Parts> + Send + 'static,
    ) -> Result<()> {
        let thread =
            thread::Builder::new().name("save".into()).spawn(work).context("cannot start a thread that saves")?;
        self.busy = Some(Busy { step, began: Instant::now(), thread });
        Ok(())
    }

    fn tell(&self, step: u64, held: Duration, took: Duration) {
        let [held, took] = [held, took].map(|time| time.as_secs_f64());
        self.voice
            .info(format!("step {step} is saved: training was held up for {held:.3} s, the disk took {took:.3} s"));
    }

    /// What this rank writes of a checkpoint. Those that share the batch hold the same, but for an optimizer's state that is
    /// shared out among them.
    fn parts(&self, optimizer: &AdamW) -> Parts {
        let mut parts = Vec::new();
        if self.first {
            parts.push(("", vec![whole(self.weights)]));
        }
        if self.first || self.scribe.job.training.optim.distributed {
            let [exp_avg, exp_avg_sq] = optimizer.moments();
            parts.extend([(EXP_AVG, exp_avg), (EXP_AVG_SQ, exp_avg_sq)]);
            if self.weights.kind() != Kind::Float {
                parts.push((MASTER, optimizer.masters()));
            }
        }
        parts
    }
}

fn whole(flat: &Tensor) -> Stretch {
    Stretch { at: 0, values: flat.shallow_clone() }
}

/// The same elements in pieces.
fn cut(parts: Parts) -> Parts {
    let pieces = |Stretch { at, values }: Stretch| {
        let pieces = values.split(PIECE, 0).into_iter().enumerate();
        pieces.map(move |(i, values)| Stretch { at: at + i * PIECE as usize, values }).collect::<Vec<_>>()
    };
    parts.into_iter().map(|(prefix, stretches)| (prefix, stretches.into_iter().flat_map(pieces).collect())).collect()
}

/// Memory of the machine for a copy of parts that are on `device`: for a GPU's, such as it can write to at full speed. Every
/// page of it is there.
fn room(parts: &Parts, device: Device) -> Result<Parts> {
    let like = |stretch: &Stretch| {
        let values = Tensor::f_zeros(stretch.values.size(), (stretch.values.kind(), Device::Cpu))?;
        let values = if device.is_cuda() { runtime::pinned(&values)? } else { values };
        Ok(Stretch { at: stretch.at, values })
    };
    let room = |stretches: &Vec<Stretch>| stretches.iter().map(like).collect::<Result<_>>();
    parts.iter().map(|(prefix, stretches)| Ok((*prefix, room(stretches)?))).collect()
}

/// Copies parts to where there is room for them.
fn overwrite(copy: &Parts, parts: &Parts) {
    let all =
        |parts: &Parts| parts.iter().flat_map(|(_, stretches)| stretches).map(|s| s.values.shallow_clone()).collect();
    let (copies, values): (Vec<Tensor>, Vec<Tensor>) = (all(copy), all(parts));
    no_grad(|| copies.into_iter().zip(values).for_each(|(mut copy, values)| copy.copy_(&values)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_every_element_in_its_place() {
        let flat = Tensor::arange(3 * PIECE / 2 + 7, (Kind::Int, Device::Cpu));
        let parts = || vec![("a.", vec![Stretch { at: 5, values: flat.shallow_clone() }]), ("b.", vec![whole(&flat)])];
        let copy = room(&cut(parts()), Device::Cpu).unwrap();
        overwrite(&copy, &cut(parts()));
        assert_eq!(
            copy.iter().map(|(prefix, stretches)| (*prefix, stretches.len())).collect::<Vec<_>>(),
            [("a.", 2), ("b.", 2)]
        );
        let first = &copy[0].1;
        assert_eq!((first[0].at, first[1].at), (5, 5 + PIECE as usize));
        let _ = flat.shallow_clone().zero_();
        assert_eq!(first[1].values.int64_value(&[3]), PIECE + 3);
    }
}
