//! The micro batches of a step through the ranks of a pipeline, by the schedule 1F1B: a rank that is k before the last
//! runs k ahead, and then goes one forward, one backward, so that it keeps k + 1 micro batches at most. With one rank that
//! is forward and backward of one micro batch after the other.

use std::collections::VecDeque;

use anyhow::{Context, Result};
use flow_dist::Pending;
use tch::{Kind, Tensor};

use crate::{
    batches::{Batches, Found, Micro, Which},
    buckets::Sum,
    model::{Gradients, Input, Llama, Tape},
};

/// A model's passes over batches.
pub struct Pipeline<'a> {
    pub model: &'a Llama,
    pub batches: &'a Batches<'a>,
    /// Of weights and activations.
    pub kind: Kind,
    /// Elements of a hidden state.
    pub width: usize,
}

/// A micro batch that went forward and not yet backward.
struct InFlight {
    tape: Tape,
    /// On the last rank, the gradient by the last layer's output.
    gradient: Option<Tensor>,
}

/// What a step found.
pub enum Step {
    /// All micro batches are done.
    Done(Found),
    /// A rank was asked to stop in the midst of it.
    Stopped,
}

impl Pipeline<'_> {
    /// Forward and backward of a step's micro batches; their gradients are summed in the model, and over the ranks that
    /// share the batch by `sum`, as far as they are complete.
    pub fn step(&self, completed: u64, sum: &mut Sum<'_>, overlap: bool) -> Result<Step> {
        let (stage, stages) = self.place();
        let count = self.batches.training.accumulation();
        let ahead = (stages - stage - 1).min(count);
        let mut found = Found::default();
        let mut in_flight = VecDeque::with_capacity(ahead + 1);
        let mut sent = Sent::default();
        for tick in 0..count + ahead {
            // Stages are at different micro batches, and would wait for who stopped: there it is seen at the step's end.
            if stages == 1 && tick > 0 && self.batches.ranks.anyone_asked_to_stop()? {
                return Ok(Step::Stopped);
            }
            if tick < count {
                in_flight.push_back(self.forward(completed, tick, &mut found, &mut sent)?);
            }
            if let Some(micro) = tick.checked_sub(ahead) {
                let one = in_flight.pop_front().context("a micro batch is in flight")?;
                let last = micro + 1 == count;
                self.backward(one, &mut sent, &mut |gradients, from| {
                    if last && overlap { sum.ready(&gradients.flat, from) } else { Ok(()) }
                })?;
            }
        }
        sent.wait()?;
        Ok(Step::Done(found))
    }

    fn forward(&self, completed: u64, micro: usize, found: &mut Found, sent: &mut Sent) -> Result<InFlight> {
        let Micro { ids_bs, target_bs, sight } =
            self.batches.micro(self.model, Which::Training { completed }, micro)?;
        let received = self.receive(&ids_bs)?;
        let input = received.as_ref().map_or(Input::Tokens(&ids_bs), Input::Hidden);
        let (tape, hidden_bsh) = self.model.forward(input, sight)?;
        if !self.is_last() {
            self.send_on(&hidden_bsh, sent)?;
            return Ok(InFlight { tape, gradient: None });
        }
        let scale = 1.0 / self.batches.tokens() as f64;
        let (loss, d_bsh) = self.model.loss(&tape, &target_bs, scale)?;
        found.add(&loss, tape.sight());
        Ok(InFlight { tape, gradient: Some(d_bsh) })
    }

    fn backward(
        &self,
        one: InFlight,
        sent: &mut Sent,
        done: &mut dyn FnMut(&Gradients, usize) -> Result<()>,
    ) -> Result<()> {
        let (stage, _) = self.place();
        let back = &self.batches.ranks.backward;
        let d_bsh = match one.gradient {
            Some(d_bsh) => d_bsh,
            None => {
                let d_bsh = one.tape.like_output();
                back.receive(&d_bsh, stage + 1).context("from the next rank of the pipeline")?;
                d_bsh
            }
        };
        if let Some(d_bsh) = self.model.backward(one.tape, d_bsh, done)? {
            sent.push(back.start_send(&d_bsh, stage - 1)?)?;
        }
        Ok(())
    }

    /// The mean loss over the batches of one validation.
    pub fn validate(&self, round: u64) -> Result<f64> {
        let training = self.batches.training;
        let mut found = Found::default();
        let mut sent = Sent::default();
        for batch in 0..training.limit_val_batches {
            for micro in 0..training.accumulation() {
                let which = Which::Validation { round, batch };
                let Micro { ids_bs, target_bs, sight } = self.batches.micro(self.model, which, micro)?;
                let received = self.receive(&ids_bs)?;
                let input = received.as_ref().map_or(Input::Tokens(&ids_bs), Input::Hidden);
                let hidden_bsh = self.model.hidden(input, &sight)?;
                if self.is_last() {
                    let mut nll_bs = self.model.nll(&hidden_bsh, &target_bs)?;
                    if let Some(learned_bs) = &sight.learned {
                        nll_bs *= learned_bs;
                    }
                    found.add(&nll_bs.sum(Kind::Double), &sight);
                } else {
                    self.send_on(&hidden_bsh, &mut sent)?;
                }
            }
        }
        sent.wait()?;
        Ok(self.batches.mean(&found, training.limit_val_batches)?.0)
    }

    /// This rank's number in the pipeline, and how many there are.
    fn place(&self) -> (usize, usize) {
        let group = &self.batches.ranks.forward;
        (group.rank(), group.size())
    }

    fn is_last(&self) -> bool {
        let (stage, stages) = self.place();
        stage + 1 == stages
    }

    /// The hidden states of the rank before, if there is one.
    fn receive(&self, ids_bs: &Tensor) -> Result<Option<Tensor>> {
        let (stage, _) = self.place();
        let Some(before) = stage.checked_sub(1) else { return Ok(None) };
        let (ranks, parallel) = (self.batches.ranks, &self.batches.training.parallel);
        let (b, s) = ids_bs.size2()?;
        let s = if parallel.sequence { s / parallel.tensor as i64 } else { s };
        let x_bsh = Tensor::empty([b, s, self.width as i64], (self.kind, ids_bs.device()));
        ranks.forward.receive(&x_bsh, before).context("from the rank before in the pipeline")?;
        Ok(Some(x_bsh))
    }

    fn send_on(&self, hidden_bsh: &Tensor, sent: &mut Sent) -> Result<()> {
        let (stage, _) = self.place();
        sent.push(self.batches.ranks.forward.start_send(hidden_bsh, stage + 1)?)
    }
}

/// What is on its way to other ranks. Nobody waits for the other side to take it, or two ranks that both send would wait
/// for each other; but not too much may gather.
#[derive(Default)]
struct Sent(VecDeque<Pending>);

impl Sent {
    /// More than the micro batches that a neighbour can be behind: those that are older have long arrived.
    const MOST: usize = 64;

    fn push(&mut self, pending: Pending) -> Result<()> {
        self.0.push_back(pending);
        if self.0.len() > Self::MOST { self.0.pop_front().map_or(Ok(()), Pending::wait) } else { Ok(()) }
    }

    fn wait(self) -> Result<()> {
        self.0.into_iter().try_for_each(Pending::wait)
    }
}
