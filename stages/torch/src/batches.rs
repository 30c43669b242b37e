//! Micro batches as tensors, this rank's part of each.

use anyhow::{Context as _, Result, bail};
use flow_plan::{Data, Training};
use tch::{Device, Tensor};

use crate::{model::ContextParallel, ranks::Ranks};

/// The batches of a run.
pub struct Batches<'a> {
    pub training: &'a Training,
    pub data: &'a Data,
    /// Tokens that the model knows.
    pub vocab: i64,
    pub device: Device,
    pub ranks: &'a Ranks,
}

/// Which batch of a run.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    /// That of the step after so many.
    Training { completed: u64 },
    /// Of a validation, both from 0.
    Validation { round: u64, batch: u64 },
}

impl Batches<'_> {
    /// What goes in and what is to follow: [b, s] each, s being this rank's part of the sequence.
    pub fn micro(&self, which: Which, micro: usize) -> Result<(Tensor, Tensor)> {
        let data_rank = self.ranks.coords.data;
        let rows = match which {
            Which::Training { completed } => {
                self.data.train_batch(completed * self.training.global_batch_size as u64, micro, data_rank)
            }
            Which::Validation { round, batch } => self.data.validation_batch(round, batch, micro, data_rank),
        }?;
        if let Some(id) = rows.iter().find(|id| !(0..self.vocab).contains(id)) {
            bail!(
                "the data holds token {id}, and the model's vocabulary has {}: tokenize with its own tokenizer",
                self.vocab
            );
        }
        let length = self.training.seq_length as i64;
        let rows_bs = Tensor::from_slice(&rows).view([-1, length + 1]).to_device(self.device);
        let context = ContextParallel { group: self.ranks.context.clone() };
        Ok((context.part(&rows_bs.narrow(1, 0, length), 1), context.part(&rows_bs.narrow(1, 1, length), 1)))
    }

    /// Tokens of a global batch.
    pub fn tokens(&self) -> u64 {
        self.training.consumed_tokens(self.training.global_batch_size as u64)
    }

    /// The mean over the tokens of `batches` global batches. `nll` is this rank's sum over its tokens, or `None` where
    /// the loss is not computed.
    pub fn mean(&self, nll: Option<&Tensor>, batches: u64) -> Result<f64> {
        // All ranks of the tensor axis have the same sum.
        let mine = nll.filter(|_| self.ranks.coords.tensor == 0).map_or(0.0, |nll| nll.double_value(&[]));
        let sum = Tensor::from(mine);
        self.ranks.world.all_reduce(&sum, flow_dist::Reduce::Sum).context("the loss of all ranks")?;
        Ok(sum.double_value(&[]) / (self.tokens() * batches) as f64)
    }
}
