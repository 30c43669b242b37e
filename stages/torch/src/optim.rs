//! AdamW over flat buffers, and the gradient's norm.

use anyhow::Result;
use flow_dist::{Group, Reduce, runtime};
use flow_plan::Optim;
use tch::{Kind, Tensor, no_grad};

/// Elements that a norm looks at in one go: bounds its fp64 copy.
const NORM_CHUNK: i64 = 1 << 24;

/// AdamW with decoupled weight decay on the matrices; fp32 throughout.
#[derive(Debug)]
pub struct AdamW {
    /// The weights that are optimized: the model's own in fp32, an fp32 copy of bf16 ones.
    pub master: Tensor,
    /// First moment.
    pub exp_avg: Tensor,
    /// Second moment.
    pub exp_avg_sq: Tensor,
    /// Updates so far: a skipped step is none.
    pub updates: u64,
    /// The model's weights, where they are another type than `master`.
    weights: Option<Tensor>,
    /// Elements that decay; the norms behind them do not.
    matrices: i64,
    optim: Optim,
}

impl AdamW {
    /// For the model on `weights`, of which the first `matrices` elements decay.
    pub fn new(weights: &Tensor, matrices: usize, optim: &Optim) -> Self {
        let master = weights.to_kind(Kind::Float);
        Self {
            exp_avg: master.zeros_like(),
            exp_avg_sq: master.zeros_like(),
            updates: 0,
            weights: (weights.kind() != Kind::Float).then(|| weights.shallow_clone()),
            matrices: matrices as i64,
            optim: optim.clone(),
            master,
        }
    }

    /// One update by `gradient`, whose norm is `norm`; scaled down to a norm of `clip`, unless that is 0.
    pub fn step(&mut self, gradient: &mut Tensor, norm: f64, clip: f64, lr: f64) -> Result<()> {
        self.updates += 1;
        no_grad(|| {
            let scale = clip / (norm + 1e-6);
            if clip > 0.0 && scale < 1.0 {
                let _ = gradient.g_mul_scalar_(scale);
            }
            let total = self.master.size()[0];
            for (at, n, weight_decay) in
                [(0, self.matrices, self.optim.weight_decay), (self.matrices, total - self.matrices, 0.0)]
            {
                let part = |x: &Tensor| x.narrow(0, at, n);
                runtime::adamw(
                    [&part(&self.master), &part(gradient), &part(&self.exp_avg), &part(&self.exp_avg_sq)],
                    self.updates,
                    &runtime::AdamW { lr, betas: self.optim.betas, eps: self.optim.eps, weight_decay },
                )?;
            }
            self.publish();
            Ok(())
        })
    }

    /// Rounds the master weights to the model's, where these are another type.
    pub fn publish(&mut self) {
        if let Some(weights) = &mut self.weights {
            no_grad(|| weights.copy_(&self.master));
        }
    }
}

/// The L2 norm of a gradient whose first `matrices` elements are split over `tensor`, and whose rest every rank of it
/// has. Summed in fp64.
pub fn norm(gradient: &Tensor, matrices: usize, tensor: &Group) -> Result<f64> {
    no_grad(|| {
        let squares = |from: i64, to: i64| -> Tensor {
            let mut sum = Tensor::zeros([], (Kind::Double, gradient.device()));
            for at in (from..to).step_by(NORM_CHUNK as usize) {
                sum += gradient.narrow(0, at, NORM_CHUNK.min(to - at)).to_kind(Kind::Double).square().sum(Kind::Double);
            }
            sum
        };
        let split = squares(0, matrices as i64);
        tensor.all_reduce(&split, Reduce::Sum)?;
        Ok((split + squares(matrices as i64, gradient.size()[0])).sqrt().double_value(&[]))
    })
}
