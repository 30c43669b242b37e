//! What a model that does not learn is asked: how likely tokens are, and what comes next.

use anyhow::{Context, Result};
use tch::{Tensor, no_grad};

use super::{Cache, Input, Llama, Sight, layer::norm, loss::Head};

impl Llama {
    /// Of `target_n` at the places `at_n` of b × s, after what stands before each in its sequence: ln p in fp32, and whether
    /// no token is likelier. Sequences may be filled up on the right, where causal attention lets nobody see it.
    pub fn judge(&self, ids_bs: &Tensor, at_n: &Tensor, target_n: &Tensor) -> Result<(Tensor, Tensor)> {
        let hidden_bsh = self.hidden(Input::Tokens(ids_bs), &Sight::default())?;
        no_grad(|| {
            let (head, normed_nh) = self.at_head(&hidden_bsh.flatten(0, 1).index_select(0, at_n))?;
            head.judge(&normed_nh, target_n)
        })
    }

    /// Logits of every position, fp32: [b, s, v].
    pub fn logits(&self, ids_bs: &Tensor) -> Result<Tensor> {
        let hidden_bsh = self.hidden(Input::Tokens(ids_bs), &Sight::default())?;
        let (b, s, h) = hidden_bsh.size3()?;
        no_grad(|| Ok(self.logits_of(&hidden_bsh.view([b * s, h]))?.view([b, s, -1])))
    }

    /// An empty cache of up to so many rows.
    pub fn cache(&self, rows: usize) -> Cache {
        let shared = &self.shared;
        let (kind, device) = self.place;
        let heads = self.layers.first().map_or(0, |(layer, _)| layer.key_heads(shared));
        Cache::new(self.layers.len(), rows, heads, shared.head_dim, kind, device)
    }

    /// Adds a row for each prompt; the logits of what comes next: [prompts, v], fp32.
    pub fn begin(&self, cache: &mut Cache, prompts: &[&[u32]]) -> Result<Tensor> {
        let longest = prompts.iter().map(|prompt| prompt.len()).max().context("there is no prompt")?;
        let lengths: Vec<i64> = prompts.iter().map(|prompt| prompt.len() as i64).collect();
        let mut ids: Vec<i64> = Vec::with_capacity(prompts.len() * longest);
        for (prompt, row) in prompts.iter().zip(1..) {
            ids.extend(prompt.iter().map(|id| i64::from(*id)));
            ids.resize(row * longest, 0);
        }
        let last: Vec<i64> = lengths.iter().zip(0..).map(|(length, row)| row * longest as i64 + length - 1).collect();
        no_grad(|| {
            let device = self.place.1;
            let ids_bs = Tensor::from_slice(&ids).view([prompts.len() as i64, longest as i64]).to_device(device);
            let first = cache.add(&lengths);
            let shared = &self.shared;
            let mut x_bsh = self.embed(Input::Tokens(&ids_bs))?.context("only the first rank has the embedding")?;
            for (at, (layer, _)) in self.layers.iter().enumerate() {
                x_bsh = layer.extend(shared, &shared.rope, &x_bsh, |q_bsgnd, k_bsgd, v_bsgd| {
                    cache.begin(at, first, k_bsgd, v_bsgd);
                    let heads = |x: &Tensor| x.transpose(1, 2);
                    let q_bnsd = heads(&q_bsgnd.flatten(2, 3));
                    let o_bnsd = shared.cp.attention(&q_bnsd, &heads(k_bsgd), &heads(v_bsgd), None)?;
                    Ok(o_bnsd.transpose(1, 2).flatten(2, 3))
                })?;
            }
            let last_bh = x_bsh.flatten(0, 1).index_select(0, &Tensor::from_slice(&last).to_device(device));
            self.logits_of(&last_bh)
        })
    }

    /// Adds a token to every row; the logits of what comes next: [rows, v], fp32.
    pub fn go_on(&self, cache: &mut Cache, tokens: &[u32]) -> Result<Tensor> {
        let ids: Vec<i64> = tokens.iter().map(|id| i64::from(*id)).collect();
        no_grad(|| {
            let on_device = |values: &[i64]| Tensor::from_slice(values).to_device(self.place.1).unsqueeze(-1);
            let rope = self.table.at(&on_device(cache.lengths()));
            let step = cache.step();
            let mut x_bsh =
                self.embed(Input::Tokens(&on_device(&ids)))?.context("only the first rank has the embedding")?;
            for (at, (layer, _)) in self.layers.iter().enumerate() {
                x_bsh = layer.extend(&self.shared, &rope, &x_bsh, |q_bsgnd, k_bsgd, v_bsgd| {
                    cache.extend(at, &step, q_bsgnd, k_bsgd, v_bsgd)
                })?;
            }
            self.logits_of(&x_bsh.squeeze_dim(1))
        })
    }

    /// The head, and hidden states as it takes them: [n, h].
    fn at_head(&self, hidden_nh: &Tensor) -> Result<(Head<'_>, Tensor)> {
        let end = self.end()?;
        let head = Head { weight_vh: &end.output.0, tp: &self.shared.tp };
        Ok((head, norm(hidden_nh, &end.norm.0, self.shared.eps)))
    }

    /// Logits over the whole vocabulary: [n, h] → [n, v], fp32.
    fn logits_of(&self, hidden_nh: &Tensor) -> Result<Tensor> {
        let (head, normed_nh) = self.at_head(hidden_nh)?;
        head.logits(&normed_nh)
    }
}
