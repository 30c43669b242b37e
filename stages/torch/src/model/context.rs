//! Sequences that are spread over the context axis, and whole where that axis is 1.
//!
//! A sequence is cut in 2 n chunks of which rank r of n has chunk r and chunk 2 n − 1 − r, as Megatron deals them out: under
//! a causal mask every rank then has the same to do. Keys and values are gathered, queries stay.

use anyhow::Result;
use flow_dist::{Group, autograd};
use tch::{Kind, Tensor};

use super::sight::Spans;

/// The dimension of positions in `x_bnsd`.
const POSITIONS: i64 = 2;

/// The context axis of the mesh, as the layers see it.
#[derive(Clone, Debug)]
pub struct ContextParallel {
    /// The ranks that share each sequence.
    pub group: Group,
}

impl ContextParallel {
    /// One rank has all positions.
    pub fn none() -> Self {
        Self { group: Group::solo() }
    }

    /// This rank's part of `x`, whose dimension `dim` are the positions of whole sequences: a multiple of 2 n.
    pub fn part(&self, x: &Tensor, dim: i64) -> Tensor {
        if self.group.size() == 1 {
            return x.shallow_clone();
        }
        let chunk = x.size()[dim as usize] / (2 * self.group.size()) as i64;
        let chunks = self.chunks(self.group.rank()).map(|at| x.narrow(dim, at * chunk, chunk));
        Tensor::cat(&chunks, dim)
    }

    /// Which chunks of a sequence a rank has.
    fn chunks(&self, rank: usize) -> [i64; 2] {
        [rank as i64, (2 * self.group.size() - 1 - rank) as i64]
    }

    /// Which chunks of a sequence this rank has: one that is the whole, or two.
    pub fn seen(&self) -> Vec<i64> {
        if self.group.size() == 1 { vec![0] } else { self.chunks(self.group.rank()).to_vec() }
    }

    /// How long the chunks of a sequence of `length` are.
    pub fn chunk(&self, length: i64) -> i64 {
        if self.group.size() == 1 { length } else { length / (2 * self.group.size()) as i64 }
    }

    /// Causal attention of this rank's queries to all keys that `spans` lets them see: [b, heads, s, d], where s is this
    /// rank's part. Fewer key heads than query heads are shared out.
    pub fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, spans: Option<&Spans>) -> Result<Tensor> {
        if self.group.size() == 1 {
            return match spans {
                None => Ok(attend(q, k, v, None)),
                Some(Spans::Masks(masks)) => Ok(attend(q, k, v, masks.first())),
                Some(Spans::Pieces(begins, longest)) => autograd::piecewise_attention(q, k, v, begins, *longest),
            };
        }
        let (keys, values) = (self.whole(k)?, self.whole(v)?);
        let chunk = q.size()[POSITIONS as usize] / 2;
        let outputs = self.chunks(self.group.rank()).into_iter().enumerate().map(|(i, at)| {
            let seen = (at + 1) * chunk;
            let [k, v] = [&keys, &values].map(|x| x.narrow(POSITIONS, 0, seen));
            let q = q.narrow(POSITIONS, i as i64 * chunk, chunk);
            match spans {
                Some(Spans::Masks(masks)) => Ok(attend(&q, &k, &v, masks.get(i))),
                _ => suffix(&q, &k, &v),
            }
        });
        Ok(Tensor::cat(&outputs.collect::<Result<Vec<_>>>()?, POSITIONS))
    }

    /// The parts of all ranks, in the order of positions.
    fn whole(&self, x: &Tensor) -> Result<Tensor> {
        let n = self.group.size();
        let gathered = autograd::gather_to(&self.group, x, POSITIONS)?;
        let chunk = gathered.size()[POSITIONS as usize] / (2 * n) as i64;
        // Where each chunk of the sequence lies in what was gathered.
        let mut order: Vec<(i64, i64)> = (0..n).flat_map(|rank| self.chunks(rank)).zip(0..).collect();
        order.sort_unstable();
        let chunks: Vec<Tensor> =
            order.iter().map(|(_, lies)| gathered.narrow(POSITIONS, lies * chunk, chunk)).collect();
        Ok(Tensor::cat(&chunks, POSITIONS))
    }
}

/// Attention of queries that stand at the end of the keys' positions.
fn suffix(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    if q.device().is_cuda() && q.kind() == Kind::BFloat16 {
        return autograd::causal_suffix_attention(q, k, v);
    }
    let (queries, keys) = (q.size()[POSITIONS as usize], k.size()[POSITIONS as usize]);
    let mask = Tensor::ones([queries, keys], (Kind::Bool, q.device())).tril(keys - queries);
    Ok(attend(q, k, v, Some(&mask)))
}

/// libtorch's attention: causal without a mask.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Tensor {
    let shared = q.size()[1] / k.size()[1];
    if mask.is_some() && shared > 1 && q.device().is_cuda() {
        // Its kernel that takes masks does not share heads out; the one that does has all scores in memory.
        let [k, v] = [k, v].map(|x| x.repeat_interleave_self_int(shared, 1, None));
        return Tensor::scaled_dot_product_attention(q, &k, &v, mask, 0.0, false, None, false);
    }
    Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, mask.is_none(), None, shared > 1)
}
