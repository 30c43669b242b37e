//! One transformer layer: attention and feed-forward, each behind an RMSNorm and added to the residual stream.

use anyhow::{Result, anyhow};
use flow_dist::autograd;
use tch::Tensor;

use super::{
    context::ContextParallel,
    parallel::{Column, Row, TensorParallel},
    rope::Rope,
    sight::Sight,
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
    /// The norms of a part, and which of [`super::params::LAYER`] they are. The matrices' gradients are summed where they
    /// are made.
    pub fn norms(&self, part: Part) -> Vec<(usize, &Tensor)> {
        let (attention, feed_forward) = ((4, &self.input_norm), (5, &self.post_norm));
        match part {
            Part::Whole => vec![attention, feed_forward],
            Part::Attention => vec![attention],
            Part::FeedForward => vec![feed_forward],
        }
    }

    /// `x_bsh` → `y_bsh`; with sequence parallelism, s is this rank's part.
    pub fn forward(&self, shared: &Shared, sight: &Sight, part: Part, x_bsh: &Tensor) -> Result<Tensor> {
        let attended = |x_bsh: &Tensor| -> Result<Tensor> {
            Ok(x_bsh + self.attention(shared, sight, &norm(x_bsh, &self.input_norm, shared.eps))?)
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

    fn attention(&self, shared: &Shared, sight: &Sight, x_bsh: &Tensor) -> Result<Tensor> {
        let [q_bsgnd, k_bsgnd, v_bsgnd] =
            self.queries_keys_values(shared, sight.rope.as_ref().unwrap_or(&shared.rope), x_bsh)?;
        let (b, s, d) = (q_bsgnd.size()[0], q_bsgnd.size()[1], shared.head_dim);
        let heads = |x: Tensor| x.reshape([b, s, -1, d]).transpose(1, 2);
        // Copies, as q is one: a window would keep all of q, k and v until the backward pass.
        let (k_bgsd, v_bgsd) = (heads(k_bsgnd.contiguous()), heads(v_bsgnd.contiguous()));
        let o_bnsd = shared.cp.attention(&heads(q_bsgnd), &k_bgsd, &v_bgsd, sight.spans.as_ref())?;
        self.proj.forward(&shared.tp, &o_bnsd.transpose(1, 2).reshape([b, s, -1]))
    }

    /// Turned by `rope`, this rank's heads. g: its key-value heads; each has `queries` query heads, one key, one value.
    fn queries_keys_values(&self, shared: &Shared, rope: &Rope, x_bsh: &Tensor) -> Result<[Tensor; 3]> {
        let (queries, d) = (shared.queries, shared.head_dim);
        let qkv = self.qkv.forward(&shared.tp, x_bsh)?;
        let (b, s, _) = qkv.size3()?;
        let qkv_bsgnd = qkv.view([b, s, -1, queries + 2, d]);
        // Split, not narrowed: the gradients of the parts are joined once, and not added up on zeros.
        let [qk_bsgnd, v_bsgnd] = split(&qkv_bsgnd, [queries + 1, 1])?;
        let [q_bsgnd, k_bsgnd] = split(&rope.rotate(&qk_bsgnd)?, [queries, 1])?;
        Ok([q_bsgnd, k_bsgnd, v_bsgnd])
    }

    /// Key-value heads of this rank.
    pub fn key_heads(&self, shared: &Shared) -> i64 {
        self.qkv.0.weight.size()[0] / ((shared.queries + 2) * shared.head_dim)
    }

    /// [`Layer::forward`] without a graph, where `attend` keeps keys and values: it is given queries [b, s, g, n, d], keys
    /// and values [b, s, g, d], and gives what is attended to: [b, s, g n d].
    pub fn extend(
        &self,
        shared: &Shared,
        rope: &Rope,
        x_bsh: &Tensor,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let normed_bsh = norm(x_bsh, &self.input_norm, shared.eps);
        let [q_bsgnd, k_bsgnd, v_bsgnd] = self.queries_keys_values(shared, rope, &normed_bsh)?;
        let o = attend(&q_bsgnd, &k_bsgnd.squeeze_dim(3), &v_bsgnd.squeeze_dim(3))?;
        let x_bsh = x_bsh + self.proj.forward(&shared.tp, &o)?;
        Ok(&x_bsh + self.feed_forward(shared, &norm(&x_bsh, &self.post_norm, shared.eps))?)
    }

    fn feed_forward(&self, shared: &Shared, x_bsh: &Tensor) -> Result<Tensor> {
        let gate_up = self.fc1.forward(&shared.tp, x_bsh)?;
        self.fc2.forward(&shared.tp, &autograd::swiglu(&gate_up)?)
    }
}

/// The parts of the axis of a group's heads.
fn split<const N: usize>(x_bsgnd: &Tensor, sizes: [i64; N]) -> Result<[Tensor; N]> {
    <[Tensor; N]>::try_from(x_bsgnd.split_with_sizes(sizes, 3)).map_err(|_| anyhow!("a split into {N} parts"))
}

/// RMSNorm over the last dimension.
pub fn norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    x.rms_norm(weight.size(), Some(weight), eps)
}
