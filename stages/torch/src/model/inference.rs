//! What a model that does not learn is asked: how likely tokens are, and what comes next.

use anyhow::Result;
use tch::{Tensor, no_grad};

use super::{Input, Llama, Sight, layer::norm, loss::Head};

impl Llama {
    /// Of `target_n` at the places `at_n` of b × s, after what stands before each in its sequence: ln p in fp32, and whether
    /// no token is likelier. Sequences may be filled up on the right, where causal attention lets nobody see it.
    pub fn judge(&self, ids_bs: &Tensor, at_n: &Tensor, target_n: &Tensor) -> Result<(Tensor, Tensor)> {
        let hidden_bsh = self.hidden(Input::Tokens(ids_bs), &Sight::default())?;
        no_grad(|| self.with_head(&hidden_bsh.flatten(0, 1).index_select(0, at_n), |head, x| head.judge(x, target_n)))
    }

    /// Logits of every position, fp32: [b, s, v].
    pub fn logits(&self, ids_bs: &Tensor) -> Result<Tensor> {
        let hidden_bsh = self.hidden(Input::Tokens(ids_bs), &Sight::default())?;
        let (b, s, h) = hidden_bsh.size3()?;
        no_grad(|| Ok(self.with_head(&hidden_bsh.view([b * s, h]), |head, x| head.logits(x))?.view([b, s, -1])))
    }

    /// Gives the head to `ask`, and what it is asked about as the head takes it: [n, h].
    fn with_head<T>(&self, hidden_nh: &Tensor, ask: impl FnOnce(&Head<'_>, &Tensor) -> Result<T>) -> Result<T> {
        let end = self.end()?;
        let head = Head { weight_vh: &end.output.0, tp: &self.shared.tp };
        ask(&head, &norm(hidden_nh, &end.norm.0, self.shared.eps))
    }
}
