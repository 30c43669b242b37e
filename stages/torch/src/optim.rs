//! AdamW over stretches of the flat buffers: all of them, or with the distributed optimizer this rank's share.

use anyhow::Result;
use flow_dist::runtime;
use flow_plan::Optim;
use tch::{Kind, Tensor, no_grad};

use crate::{buckets::Buckets, model::params::Layout};

/// Some elements of a flat buffer, in their order.
#[derive(Debug)]
pub struct Stretch {
    /// The first one's place.
    pub at: usize,
    /// Their values.
    pub values: Tensor,
}

/// AdamW with decoupled weight decay on the matrices; fp32 throughout.
#[derive(Debug)]
pub struct AdamW {
    parts: Vec<Part>,
    /// Updates so far: a skipped step is none.
    pub updates: u64,
    /// The model's weights.
    weights: Tensor,
    optim: Optim,
}

/// A stretch that this rank updates.
#[derive(Debug)]
struct Part {
    at: usize,
    decays: bool,
    /// The weights that are optimized: the model's own in fp32, an fp32 copy of bf16 ones.
    master: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

impl AdamW {
    /// For the model on `weights`. With `optim.distributed`, the ranks of `buckets` share out the state and the work.
    pub fn new(weights: &Tensor, layout: &Layout, buckets: &Buckets, optim: &Optim) -> Self {
        let part = |range: std::ops::Range<usize>| {
            let master = weights.narrow(0, range.start as i64, range.len() as i64).to_kind(Kind::Float);
            let (exp_avg, exp_avg_sq) = (master.zeros_like(), master.zeros_like());
            Part { at: range.start, decays: range.start < layout.matrices, master, exp_avg, exp_avg_sq }
        };
        let owned = if optim.distributed { buckets.mine() } else { buckets.whole() };
        let parts = owned.into_iter().map(part).collect();
        Self { parts, updates: 0, weights: weights.shallow_clone(), optim: optim.clone() }
    }

    /// Back to the beginning, with the model's weights as they are now.
    pub fn reset(&mut self) {
        self.updates = 0;
        no_grad(|| {
            for part in &mut self.parts {
                let weights = self.weights.narrow(0, part.at as i64, part.master.size()[0]);
                part.master.copy_(&weights);
                let _ = (part.exp_avg.zero_(), part.exp_avg_sq.zero_());
            }
        });
    }

    /// One update by `gradient`, whose norm is `norm`; scaled down to a norm of `clip`, unless that is 0.
    pub fn step(&mut self, gradient: &Tensor, norm: f64, clip: f64, lr: f64, buckets: &Buckets) -> Result<()> {
        self.updates += 1;
        let scale = clip / (norm + 1e-6);
        no_grad(|| {
            for part in &self.parts {
                let mut gradient = gradient.narrow(0, part.at as i64, part.master.size()[0]);
                if clip > 0.0 && scale < 1.0 {
                    let _ = gradient.g_mul_scalar_(scale);
                }
                let weight_decay = if part.decays { self.optim.weight_decay } else { 0.0 };
                runtime::adamw(
                    [&part.master, &gradient, &part.exp_avg, &part.exp_avg_sq],
                    self.updates,
                    &runtime::AdamW { lr, betas: self.optim.betas, eps: self.optim.eps, weight_decay },
                )?;
            }
            self.publish(buckets)
        })
    }

    /// Gives the model the master weights, rounded to its type, from whichever rank has them.
    pub fn publish(&mut self, buckets: &Buckets) -> Result<()> {
        no_grad(|| {
            if self.weights.kind() != Kind::Float {
                for part in &self.parts {
                    self.weights.narrow(0, part.at as i64, part.master.size()[0]).copy_(&part.master);
                }
            }
            if self.optim.distributed { buckets.gather(&self.weights) } else { Ok(()) }
        })
    }

    /// The fp32 weights that this rank updates.
    pub fn masters(&self) -> Vec<Stretch> {
        self.stretches(|part| &part.master)
    }

    /// Their first and their second moments.
    pub fn moments(&self) -> [Vec<Stretch>; 2] {
        [self.stretches(|part| &part.exp_avg), self.stretches(|part| &part.exp_avg_sq)]
    }

    fn stretches(&self, of: impl Fn(&Part) -> &Tensor) -> Vec<Stretch> {
        self.parts.iter().map(|part| Stretch { at: part.at, values: of(part).shallow_clone() }).collect()
    }
}
