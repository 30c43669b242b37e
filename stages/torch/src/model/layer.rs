//! One transformer layer: attention and feed-forward, each behind an RMSNorm and added to the residual stream.

use anyhow::Result;
use tch::Tensor;

use super::{
    context::ContextParallel,
    parallel::{Column, Row, TensorParallel},
    rope::Rope,
};

/// The weights of a layer, this rank's share.
#[derive(Debug)]
pub struct Layer {
    /// Before attention: [h]
    pub input_norm: Tensor,
    /// Query, key and value, group after group as Megatron has them:
    /// for each key-value head its query heads, then itself, then its value. [(heads + 2 kv) d / tensor, h]
    pub qkv: Column,
    /// [h, heads d / tensor]
    pub proj: Row,
    /// Before the feed-forward layer: [h]
    pub post_norm: Tensor,
    /// Gate, then up: [2 f / tensor, h]
    pub fc1: Column,
    /// [h, f / tensor]
    pub fc2: Row,
}

/// What the layers share.
#[derive(Debug)]
pub struct Shared {
    pub tp: TensorParallel,
    pub cp: ContextParallel,
    pub rope: Rope,
    pub eps: f64,
    /// Query heads for each key-value head.
    pub queries: i64,
    pub head_dim: i64,
}

/// What of a layer is done in one go: the unit of recomputation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first half.
    Attention,
    /// The second half.
    FeedForward,
}

impl Layer {
    /// The weights of a part, and which of [`super::params::LAYER`] they are.
    pub fn weights(&self, part: Part) -> Vec<(usize, &Tensor)> {
        let attention = [(0, &self.qkv.weight), (1, &self.proj.weight), (4, &self.input_norm)];
        let feed_forward = [(2, &self.fc1.weight), (3, &self.fc2.weight), (5, &self.post_norm)];
        match part {
            Part::Whole => [attention, feed_forward].concat(),
            Part::Attention => attention.to_vec(),
            Part::FeedForward => feed_forward.to_vec(),
        }
    }

    /// `x_bsh` → `y_bsh`; with sequence parallelism, s is this rank's part.
    pub fn forward(&self, shared: &Shared, part: Part, x_bsh: &Tensor) -> Result<Tensor> {
        let attended = |x_bsh: &Tensor| -> Result<Tensor> {
            Ok(x_bsh + self.attention(shared, &norm(x_bsh, &self.input_norm, shared.eps))?)
        };
        let fed = |x_bsh: &Tensor| -> Result<Tensor> {
            Ok(x_bsh + self.feed_forward(shared, &norm(x_bsh, &self.post_norm, shared.eps))?)
        };
        match part {
            Part::Whole => fed(&attended(x_bsh)?),
            Part::Attention => attended(x_bsh),
            Part::FeedForward => fed(x_bsh),
        }
    }

    fn attention(&self, shared: &Shared, x_bsh: &Tensor) -> Result<Tensor> {
        let (queries, d) = (shared.queries, shared.head_dim);
        let qkv = self.qkv.forward(&shared.tp, x_bsh)?;
        let (b, s, _) = qkv.size3()?;
        // g: key-value heads of this rank; each has `queries` query heads, one key, one value.
        let qkv_bsgnd = qkv.view([b, s, -1, queries + 2, d]);
        let qk_bsgnd = shared.rope.rotate(&qkv_bsgnd.narrow(3, 0, queries + 1))?;
        let heads = |x: Tensor| x.reshape([b, s, -1, d]).transpose(1, 2);
        let q_bnsd = heads(qk_bsgnd.narrow(3, 0, queries));
        // Copies, as q is one: a window would keep all of q, k and v until the backward pass.
        let k_bgsd = heads(qk_bsgnd.narrow(3, queries, 1).contiguous());
        let v_bgsd = heads(qkv_bsgnd.narrow(3, queries + 1, 1).contiguous());
        let o_bnsd = shared.cp.attention(&q_bnsd, &k_bgsd, &v_bgsd)?;
        self.proj.forward(&shared.tp, &o_bnsd.transpose(1, 2).reshape([b, s, -1]))
    }

    fn feed_forward(&self, shared: &Shared, x_bsh: &Tensor) -> Result<Tensor> {
        let gate_up = self.fc1.forward(&shared.tp, x_bsh)?.chunk(2, -1);
        self.fc2.forward(&shared.tp, &(gate_up[0].silu() * &gate_up[1]))
    }
}

/// RMSNorm over the last dimension.
pub fn norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    x.rms_norm(weight.size(), Some(weight), eps)
}
