//! The head: logits, cross-entropy and their gradients, some tokens at a time.
//!
//! The logits of a whole sequence over a large vocabulary would be the biggest tensor of the run. Here a chunk of tokens
//! goes forward and backward at once, in fp32, and only its loss and gradients stay.

use anyhow::Result;
use flow_dist::{Reduce, autograd};
use flow_plan::LOSS_CHUNK_TOKENS;
use tch::{Device, Kind, Tensor};

use super::parallel::{TensorParallel, local_ids};

/// Rows of hidden states and the tokens that follow them.
pub struct Head<'a> {
    /// The output layer, split over the vocabulary: [v / tensor, h]
    pub weight_vh: &'a Tensor,
    pub tp: &'a TensorParallel,
}

/// Logits of a chunk after the softmax's numerator was taken.
struct Scores {
    /// exp(logit − largest): [n, v / tensor], fp32
    exp_nv: Tensor,
    /// Their sum over the whole vocabulary: [n]
    sum_n: Tensor,
    /// −ln p(target): [n]
    nll_n: Tensor,
    /// Targets among this rank's rows, and whether they are not: [n]
    local_n: Tensor,
    absent_n: Tensor,
}

impl Head<'_> {
    /// −ln p(target) of each token, fp32, outside the graph.
    pub fn nll(&self, hidden_nh: &Tensor, target_n: &Tensor) -> Result<Tensor> {
        let mut parts = Vec::new();
        for (at, n) in self.chunks(target_n) {
            let logits_nv = self.local_logits(&hidden_nh.narrow(0, at, n));
            parts.push(self.score(logits_nv, &target_n.narrow(0, at, n))?.nll_n);
        }
        Ok(Tensor::cat(&parts, 0))
    }

    /// Of each token: ln p(target), fp32, and whether no token is likelier.
    pub fn judge(&self, hidden_nh: &Tensor, target_n: &Tensor) -> Result<(Tensor, Tensor)> {
        let (mut nll, mut best) = (Vec::new(), Vec::new());
        for (at, n) in self.chunks(target_n) {
            let logits_nv = self.local_logits(&hidden_nh.narrow(0, at, n));
            let target_n = target_n.narrow(0, at, n);
            best.push(self.likeliest(&logits_nv)?.eq_tensor(&target_n));
            nll.push(self.score(logits_nv, &target_n)?.nll_n);
        }
        Ok((-Tensor::cat(&nll, 0), Tensor::cat(&best, 0)))
    }

    /// Over the whole vocabulary, on every rank: [n, v], fp32.
    pub fn logits(&self, hidden_nh: &Tensor) -> Result<Tensor> {
        let logits_nv = self.local_logits(hidden_nh);
        if self.tp.group.size() == 1 { Ok(logits_nv) } else { self.tp.group.all_gather(&logits_nv, 1) }
    }

    /// The sum of −ln p(target) over the tokens that are `learned_n` (fp64, on the device), and the gradient of `scale` × that sum: by the hidden states it is
    /// returned (this rank's partial one), by the weight it is added to `gradient_vh`, fp32.
    pub fn loss_and_gradient(
        &self,
        hidden_nh: &Tensor,
        target_n: &Tensor,
        learned_n: Option<&Tensor>,
        scale: f64,
        gradient_vh: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let mut loss = Tensor::zeros([], (Kind::Double, hidden_nh.device()));
        let mut d_hidden = Vec::new();
        for (at, n) in self.chunks(target_n) {
            let hidden = hidden_nh.narrow(0, at, n);
            let mut scores = self.score(self.local_logits(&hidden), &target_n.narrow(0, at, n))?;
            let learned_n = learned_n.map(|learned_n| learned_n.narrow(0, at, n));
            if let Some(learned_n) = &learned_n {
                scores.nll_n *= learned_n;
            }
            loss += scores.nll_n.sum(Kind::Double);
            // d loss / d logit = p − [it is the target]
            let mut d_logits = scores.exp_nv.g_div_(&scores.sum_n.unsqueeze(-1));
            let minus_n = -scores.absent_n.logical_not().to_kind(Kind::Float).unsqueeze(-1);
            let mut d_logits = d_logits.scatter_add_(1, &scores.local_n.unsqueeze(-1), &minus_n);
            if let Some(learned_n) = &learned_n {
                d_logits = d_logits.g_mul_(&learned_n.unsqueeze(-1));
            }
            let d_logits = d_logits.to_kind(hidden.kind());
            // The scale goes to what comes out, which is smaller.
            d_hidden.push(d_logits.matmul(self.weight_vh) * scale);
            autograd::add_product(gradient_vh, &d_logits.tr(), &hidden, scale)?;
        }
        Ok((loss, Tensor::cat(&d_hidden, 0)))
    }

    /// Of this rank's rows of the vocabulary: [n, v / tensor], fp32.
    fn local_logits(&self, hidden_nh: &Tensor) -> Tensor {
        hidden_nh.linear(self.weight_vh, None::<&Tensor>).to_kind(Kind::Float)
    }

    /// The likeliest token of the whole vocabulary, the first of equals: [n]
    fn likeliest(&self, logits_nv: &Tensor) -> Result<Tensor> {
        let group = &self.tp.group;
        if group.size() == 1 {
            return Ok(logits_nv.argmax(-1, false));
        }
        let (largest_n1, local_n1) = logits_nv.max_dim(-1, true);
        let largest_nr = group.all_gather(&largest_n1, 1)?;
        let ids_nr = group.all_gather(&(local_n1 + logits_nv.size()[1] * group.rank() as i64), 1)?;
        Ok(ids_nr.gather(1, &largest_nr.argmax(-1, true), false).squeeze_dim(-1))
    }

    /// `logits_nv`, which are used up, against targets.
    fn score(&self, mut logits_nv: Tensor, target_n: &Tensor) -> Result<Scores> {
        let group = &self.tp.group;
        let largest_n = logits_nv.amax([-1], false);
        group.all_reduce(&largest_n, Reduce::Max)?;
        let mut logits_nv = logits_nv.g_sub_(&largest_n.unsqueeze(-1));
        let (local_n, absent_n) = local_ids(target_n, self.weight_vh.size()[0], group.rank());
        let target_logit_n =
            logits_nv.gather(1, &local_n.unsqueeze(-1), false).squeeze_dim(-1).masked_fill(&absent_n, 0.0);
        group.all_reduce(&target_logit_n, Reduce::Sum)?;
        let exp_nv = logits_nv.exp_();
        let sum_n = exp_nv.sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
        group.all_reduce(&sum_n, Reduce::Sum)?;
        let nll_n = sum_n.log() - target_logit_n;
        Ok(Scores { exp_nv, sum_n, nll_n, local_n, absent_n })
    }
}

/// Logits of a chunk on a CPU: 4 MB, so that they stay in its cache from one pass to the next.
const CPU_CHUNK_LOGITS: i64 = 1 << 20;

impl Head<'_> {
    /// Where each chunk of tokens begins, and its length.
    fn chunks(&self, target_n: &Tensor) -> impl Iterator<Item = (i64, i64)> + use<> {
        let (total, most) = (target_n.size()[0], LOSS_CHUNK_TOKENS as i64);
        let step = match target_n.device() {
            Device::Cpu => (CPU_CHUNK_LOGITS / self.weight_vh.size()[0]).clamp(most.min(64), most),
            _ => most,
        };
        (0..total).step_by(step as usize).map(move |at| (at, step.min(total - at)))
    }
}
