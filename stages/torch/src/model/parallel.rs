//! Layers that are spread over the tensor axis, and plain where that axis is 1.
//!
//! A column-parallel weight has its output rows split over the ranks, a row-parallel one its input columns; between the
//! two, a rank works on its share of heads or of the feed-forward width, and talks to nobody.

use anyhow::Result;
use flow_dist::{Group, autograd};
use tch::Tensor;

/// The dimension of `x_bsh` that sequence parallelism splits.
const SEQUENCE: i64 = 1;

/// The tensor axis of the mesh, as the layers see it.
#[derive(Clone, Debug)]
pub struct TensorParallel {
    /// The ranks that share each layer.
    pub group: Group,
    /// Outside the parallel regions, each rank holds its part of the sequence only.
    pub sequence: bool,
}

impl TensorParallel {
    /// One rank holds all.
    pub fn none() -> Self {
        Self { group: Group::solo(), sequence: false }
    }

    /// Into a parallel region: every rank gets the whole sequence.
    fn enter(&self, x_bsh: &Tensor) -> Result<Tensor> {
        if self.sequence {
            autograd::gather_to(&self.group, x_bsh, SEQUENCE)
        } else {
            autograd::copy_to(&self.group, x_bsh)
        }
    }

    /// Out of it: the ranks' partial results are summed.
    fn leave(&self, y_bsh: &Tensor) -> Result<Tensor> {
        if self.sequence {
            autograd::reduce_scatter_from(&self.group, y_bsh, SEQUENCE)
        } else {
            autograd::reduce_from(&self.group, y_bsh)
        }
    }

    /// [`TensorParallel::enter`] outside the graph, for the head, which has its own backward.
    pub fn whole_sequence(&self, x_bsh: &Tensor) -> Result<Tensor> {
        if self.sequence { self.group.all_gather(x_bsh, SEQUENCE) } else { Ok(x_bsh.shallow_clone()) }
    }

    /// What [`TensorParallel::enter`] does backward: sums the ranks' partial gradients.
    pub fn sum_gradient(&self, dx_bsh: Tensor) -> Result<Tensor> {
        if self.sequence {
            return self.group.reduce_scatter(&dx_bsh, SEQUENCE);
        }
        self.group.all_reduce(&dx_bsh, flow_dist::Reduce::Sum)?;
        Ok(dx_bsh)
    }
}

/// A weight that is multiplied with: [out, in]
#[derive(Debug)]
pub struct Matrix {
    pub weight: Tensor,
    /// Where its gradient is summed, in a model that learns. Its shape, fp32.
    pub gradient: Option<Tensor>,
}

impl Matrix {
    /// [b, s, in] → [b, s, out]
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.gradient {
            Some(gradient) => autograd::linear(x, &self.weight, gradient),
            None => Ok(x.linear(&self.weight, None::<&Tensor>)),
        }
    }
}

/// A linear layer without bias whose output features are split: [out / tensor, in]
#[derive(Debug)]
pub struct Column(pub Matrix);

impl Column {
    /// `x_bsh` → [b, s, out / tensor]
    pub fn forward(&self, tp: &TensorParallel, x_bsh: &Tensor) -> Result<Tensor> {
        self.0.forward(&tp.enter(x_bsh)?)
    }
}

/// A linear layer without bias whose input features are split: [out, in / tensor]
#[derive(Debug)]
pub struct Row(pub Matrix);

impl Row {
    /// [b, s, in / tensor] → `y_bsh`
    pub fn forward(&self, tp: &TensorParallel, x: &Tensor) -> Result<Tensor> {
        tp.leave(&self.0.forward(x)?)
    }
}

/// Token embeddings whose vocabulary is split.
#[derive(Debug)]
pub struct Embedding {
    /// [vocabulary / tensor, h]
    pub weight: Tensor,
}

impl Embedding {
    /// Tokens → `x_bsh`
    pub fn forward(&self, tp: &TensorParallel, ids_bs: &Tensor) -> Result<Tensor> {
        let look_up = |ids: &Tensor| Tensor::embedding(&self.weight, ids, -1, false, false);
        if tp.group.size() == 1 {
            return Ok(look_up(ids_bs));
        }
        let rows = self.weight.size()[0];
        let (ids, absent) = local_ids(ids_bs, rows, tp.group.rank());
        tp.leave(&look_up(&ids).masked_fill(&absent.unsqueeze(-1), 0.0))
    }
}

/// Ids among this rank's `rows` of the vocabulary, 0 for those of others, and a mask of the latter.
pub fn local_ids(ids: &Tensor, rows: i64, rank: usize) -> (Tensor, Tensor) {
    let local = ids - rows * rank as i64;
    let absent = local.lt(0).logical_or(&local.ge(rows));
    (local.masked_fill(&absent, 0), absent)
}
