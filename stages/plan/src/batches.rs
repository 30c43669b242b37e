//! [`Data`]: the batches of a run, as Megatron's `MegatronPretrainingSampler` deals them out.
//!
//! A global batch is contiguous samples. Its micro batch `m` is the next `micro_batch_size × data` of them, of which
//! data-parallel rank `r` takes the `r`-th `micro_batch_size`.

use anyhow::{Context as _, Result};

use crate::{DataSource, Dataset, Request, Sources, Splits, Training};

/// The training and validation batches of a run.
pub struct Data {
    train: Dataset,
    validation: Option<Dataset>,
    deal: Deal,
    limit_val_batches: u64,
}

/// How samples are dealt out to data-parallel ranks.
#[derive(Clone, Copy, Debug)]
struct Deal {
    micro_batch_size: u64,
    global_batch_size: u64,
    data: u64,
    seq_length: usize,
}

impl Data {
    /// Opens and indexes the data of a run. All ranks that call it with the same arguments get the same order.
    ///
    /// As Megatron, `max_steps × global_batch_size` samples are asked of the training data and
    /// `(max_steps / val_interval + 1) × limit_val_batches × global_batch_size` of the validation data.
    ///
    /// # Errors
    /// A file cannot be read, or there are not enough tokens for one sample.
    pub fn open(train: &[DataSource], validation: &[DataSource], training: &Training) -> Result<Self> {
        let request = |samples| Request { samples, seq_length: training.seq_length, seed: training.seed };
        let for_training = request(training.max_steps * training.global_batch_size as u64);
        let sources = Sources::open(train).context("training data")?;
        let for_validation = training.validation_samples().map(request);
        let (train, validation) = if let Some(splits) = &training.splits {
            let splits = Splits::parse(splits)?;
            let part = |i, request| sources.part(&splits, i, request);
            let train = part(0, for_training).context("training part of the data")?;
            (train, for_validation.map(|request| part(1, request).context("validation part of the data")).transpose()?)
        } else {
            let train = sources.whole(for_training).context("training data")?;
            let request = for_validation.filter(|_| !validation.is_empty());
            let whole = |request| Sources::open(validation)?.whole(request).context("validation data");
            (train, request.map(whole).transpose()?)
        };
        let deal = Deal {
            micro_batch_size: training.micro_batch_size as u64,
            global_batch_size: training.global_batch_size as u64,
            data: training.parallel.data as u64,
            seq_length: training.seq_length,
        };
        Ok(Self { train, validation, deal, limit_val_batches: training.limit_val_batches })
    }

    /// A micro batch of training: `micro_batch_size` rows of `seq_length + 1` tokens, row after row.
    ///
    /// `consumed_samples` is that of all steps before (steps × `global_batch_size`), `micro` counts from 0 within the
    /// step, `data_rank` is the rank's coordinate on the data axis.
    ///
    /// # Errors
    /// There are no more samples, or a `.bin` does not fit its `.idx`.
    pub fn train_batch(&self, consumed_samples: u64, micro: usize, data_rank: usize) -> Result<Vec<i64>> {
        self.deal.read(&self.train, consumed_samples, micro, data_rank)
    }

    /// A micro batch of validation. `round` counts the validations of the run from 0: each goes on where the last
    /// one stopped, as Megatron's iterator does. `batch` is below `limit_val_batches`.
    ///
    /// # Errors
    /// There is no validation data, or it has no such samples.
    pub fn validation_batch(&self, round: u64, batch: u64, micro: usize, data_rank: usize) -> Result<Vec<i64>> {
        let validation = self.validation.as_ref().context("there is no validation data")?;
        let consumed = (round * self.limit_val_batches + batch) * self.deal.global_batch_size;
        self.deal.read(validation, consumed, micro, data_rank)
    }

    /// Whether there is anything to validate on.
    #[must_use]
    pub fn has_validation(&self) -> bool {
        self.validation.is_some()
    }

    /// The training samples.
    #[must_use]
    pub fn train(&self) -> &Dataset {
        &self.train
    }

    /// The validation samples.
    #[must_use]
    pub fn validation(&self) -> Option<&Dataset> {
        self.validation.as_ref()
    }
}

impl Deal {
    /// The first of the `micro_batch_size` samples of a micro batch.
    fn first(&self, consumed_samples: u64, micro: usize, data_rank: usize) -> u64 {
        consumed_samples + (micro as u64 * self.data + data_rank as u64) * self.micro_batch_size
    }

    fn read(&self, dataset: &Dataset, consumed_samples: u64, micro: usize, data_rank: usize) -> Result<Vec<i64>> {
        let first = self.first(consumed_samples, micro, data_rank);
        let mut rows = Vec::with_capacity(self.micro_batch_size as usize * (self.seq_length + 1));
        (first..first + self.micro_batch_size).try_for_each(|i| dataset.read(i, &mut rows))?;
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_of_a_global_batch_goes_to_one_rank_once() {
        for (micro_batch_size, data, accumulation) in [(1, 1, 1), (2, 3, 4), (4, 2, 1), (1, 8, 2)] {
            let global_batch_size = micro_batch_size * data * accumulation;
            let deal = Deal { micro_batch_size, global_batch_size, data, seq_length: 1 };
            for step in 0..3 {
                let consumed = step * global_batch_size;
                let mut seen: Vec<u64> = (0..accumulation as usize)
                    .flat_map(|micro| (0..data as usize).map(move |rank| deal.first(consumed, micro, rank)))
                    .flat_map(|first| first..first + micro_batch_size)
                    .collect();
                assert!(seen.is_sorted(), "micro batch by micro batch, rank by rank");
                seen.dedup();
                assert!(seen.into_iter().eq(consumed..consumed + global_batch_size));
            }
        }
    }
}
