//! Micro batches as tensors, this rank's part of each.

use anyhow::{Context as _, Result, bail};
use flow_dist::runtime;
use flow_plan::{Data, Documents, Training};
use tch::{Device, Kind, Tensor};

use crate::{
    ahead::Ahead,
    model::{ContextParallel, Llama, Sight},
    ranks::Ranks,
};

/// The batches of a run.
pub struct Batches<'a> {
    pub training: &'a Training,
    pub data: &'a Data,
    /// The training data, read ahead.
    pub ahead: Ahead,
    /// What is made of ends of documents.
    pub documents: Option<Documents>,
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

/// A micro batch, this rank's part of each sequence: [b, s].
pub struct Micro {
    /// What goes in.
    pub ids_bs: Tensor,
    /// What is to follow.
    pub target_bs: Tensor,
    /// What ends of documents change in it.
    pub sight: Sight,
}

/// What a rank with the output layer found in some micro batches; nothing on another.
#[derive(Default)]
pub struct Found {
    /// The sum of −ln p, fp64.
    nll: Option<Tensor>,
    /// Over so many tokens, where that is not all, fp64.
    learned: Option<Tensor>,
}

impl Found {
    /// Adds a micro batch: the sum over the tokens that are learned of it.
    pub fn add(&mut self, nll: &Tensor, sight: &Sight) {
        let plus = |sum: Option<Tensor>, x: &Tensor| sum.map_or_else(|| x.shallow_clone(), |sum| sum + x);
        self.nll = Some(plus(self.nll.take(), nll));
        if let Some(learned_bs) = &sight.learned {
            self.learned = Some(plus(self.learned.take(), &learned_bs.sum(Kind::Double)));
        }
    }
}

impl Batches<'_> {
    /// A micro batch for `model`.
    pub fn micro(&self, model: &Llama, which: Which, micro: usize) -> Result<Micro> {
        let data_rank = self.ranks.coords.data;
        let rows = match which {
            Which::Training { completed } => self.ahead.take(completed, micro),
            Which::Validation { round, batch } => self.data.validation_batch(round, batch, micro, data_rank),
        }?;
        if let Some(id) = rows.iter().find(|id| !(0..self.vocab).contains(id)) {
            bail!(
                "the data holds token {id}, and the model's vocabulary has {}: tokenize with its own tokenizer",
                self.vocab
            );
        }
        let length = self.training.seq_length;
        let sight = self.documents.as_ref().map(|documents| {
            let inputs: Vec<&[i64]> = rows.chunks(length + 1).map(|row| &row[..length]).collect();
            model.sight(documents, &inputs)
        });
        let mut rows_bs = Tensor::from_slice(&rows).view([-1, length as i64 + 1]);
        if self.device.is_cuda() {
            // From pinned memory, so that nobody waits until the device has done all that it was given before.
            rows_bs = runtime::pinned(&rows_bs)?.to_device_(self.device, Kind::Int64, true, false);
        }
        let context = ContextParallel { group: self.ranks.context.clone() };
        let part = |from: i64| context.part(&rows_bs.narrow(1, from, length as i64), 1);
        Ok(Micro { ids_bs: part(0), target_bs: part(1), sight: sight.unwrap_or_default() })
    }

    /// Tokens of a global batch.
    pub fn tokens(&self) -> u64 {
        self.training.consumed_tokens(self.training.global_batch_size as u64)
    }

    /// The mean over the tokens of `batches` global batches that are learned, and how many these are.
    pub fn mean(&self, found: &Found, batches: u64) -> Result<(f64, f64)> {
        // All ranks of the tensor axis have the same sums.
        let mine = |sum: &Option<Tensor>| {
            sum.as_ref().filter(|_| self.ranks.coords.tensor == 0).map_or(0.0, |sum| sum.double_value(&[]))
        };
        let sums = Tensor::from_slice(&[mine(&found.nll), mine(&found.learned)]);
        self.ranks.world.all_reduce(&sums, flow_dist::Reduce::Sum).context("the loss of all ranks")?;
        let learned = match self.documents {
            Some(Documents { loss: true, .. }) => sums.double_value(&[1]).max(1.0),
            _ => (self.tokens() * batches) as f64,
        };
        Ok((sums.double_value(&[0]) / learned, learned))
    }
}
