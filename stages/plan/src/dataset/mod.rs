//! Which tokens are in which sample: the order of Megatron's `GPTDataset` and `BlendedDataset`, to the bit, so that a
//! run here and one there see the same batches for the same seed.
//!
//! Room: 4 bytes a document and epoch, 12 bytes a sample (20 in a blend), in memory or in files that are mapped
//! ([`numbers`]); tokens and lengths are mapped, not read.

mod blend;
#[cfg(test)]
mod golden;
mod index;
mod numbers;
mod random;
mod splits;

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use flow_formats::indexed::IndexedDataset;

pub use random::RandomState;
pub use splits::Splits;

use crate::DataSource;
use blend::{Blend, planned, ready};
use index::GptDataset;
use numbers::Store;
use splits::normalize;

/// The samples of one part (training or validation) of the data.
pub struct Dataset {
    samples: Samples,
    seq_length: usize,
    repeated: bool,
}

enum Samples {
    One(GptDataset),
    Blend(Blend),
}

/// What is asked of a [`Dataset`].
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Samples that will be read.
    pub samples: u64,
    /// Tokens in a sample, less the one to predict.
    pub seq_length: usize,
    /// Of the sampler.
    pub seed: u32,
}

/// The sources of a part: opened once, cut by every part that needs them.
pub struct Sources {
    tokens: Vec<(PathBuf, Arc<IndexedDataset>)>,
    weights: Option<Vec<f64>>,
    /// Where the order of samples is kept.
    store: Store,
}

impl Sources {
    /// Maps the sources.
    ///
    /// # Errors
    /// A file cannot be read, or some sources have a weight and others do not.
    pub fn open(sources: &[DataSource]) -> Result<Self> {
        let open = |prefix: &PathBuf| Ok((prefix.clone(), Arc::new(IndexedDataset::open(prefix)?)));
        let tokens = sources.iter().map(|source| open(&source.prefix)).collect::<Result<_>>()?;
        let weights: Vec<f64> = sources.iter().filter_map(|source| source.weight).collect();
        ensure!(
            weights.is_empty() || weights.len() == sources.len(),
            "{} of {} sources have a weight: give one to all or to none",
            weights.len(),
            sources.len()
        );
        ensure!(
            weights.iter().all(|weight| weight.is_finite() && *weight > 0.0),
            "weights {weights:?}: each must be above 0"
        );
        Ok(Self { tokens, weights: (!weights.is_empty()).then_some(weights), store: Store::of_environment() })
    }

    /// The training (0), validation (1) or test (2) part of every source, as Megatron builds them from one `blend`.
    ///
    /// # Errors
    /// The part is empty or too large.
    pub fn part(&self, splits: &Splits, part: usize, request: Request) -> Result<Dataset> {
        self.build(splits, part, request, self.tokens.len() == 1 && self.weights.is_none())
    }

    /// All of every source, as Megatron builds them from a blend for each split.
    ///
    /// # Errors
    /// As [`Sources::part`].
    pub fn whole(&self, request: Request) -> Result<Dataset> {
        self.build(&Splits::ALL, 0, request, self.tokens.len() == 1)
    }

    fn build(&self, splits: &Splits, part: usize, request: Request, alone: bool) -> Result<Dataset> {
        ensure!(!self.tokens.is_empty(), "there is no data");
        let Request { samples, seq_length, seed } = request;
        let member = |i: usize, samples: Option<u64>| {
            let (prefix, tokens) = &self.tokens[i];
            splits
                .range(part, tokens.sequences())
                .context("the splits leave nothing for it")
                .and_then(|range| {
                    let tokens = Arc::clone(tokens);
                    GptDataset::build(tokens, prefix, &self.store, range, samples, seq_length, seed)
                })
                .with_context(|| format!("cannot make samples of {}", prefix.display()))
        };
        let weighted = |weights: &[f64]| {
            let weights = normalize(weights);
            let ready = |(i, weight): (usize, &f64)| member(i, Some(ready(samples, *weight)));
            let members = weights.iter().enumerate().map(ready).collect::<Result<_>>()?;
            Blend::build(members, &weights, weights.iter().map(|weight| planned(samples, *weight)).sum(), &self.store)
        };
        let mut repeated = false;
        let samples = match &self.weights {
            _ if alone => Samples::One(member(0, Some(samples))?),
            Some(weights) => Samples::Blend(weighted(weights)?),
            None => {
                // One epoch of each, in proportion to what they have. Megatron ends there and stops a run that needs
                // more; we go on with the same proportions over several epochs.
                let members = (0..self.tokens.len()).map(|i| member(i, None)).collect::<Result<Vec<_>>>()?;
                let weights: Vec<f64> = members.iter().map(|member| member.len() as f64).collect();
                let there: u64 = members.iter().map(GptDataset::len).sum();
                // The very last samples may overdraw a source by one: then too.
                let once =
                    (samples <= there).then(|| Blend::build(members, &weights, samples, &self.store).ok()).flatten();
                repeated = once.is_none();
                Samples::Blend(once.map_or_else(|| weighted(&weights), Ok)?)
            }
        };
        Ok(Dataset { samples, seq_length, repeated })
    }
}

impl Dataset {
    /// How many samples there are: at least as many as were asked for.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty one is never built")]
    pub fn len(&self) -> u64 {
        match &self.samples {
            Samples::One(one) => one.len(),
            Samples::Blend(blend) => blend.len(),
        }
    }

    /// The `seq_length + 1` tokens of sample `i`.
    ///
    /// # Errors
    /// There is no such sample, or the `.bin` does not fit its `.idx`.
    pub fn sample(&self, i: u64) -> Result<Vec<i64>> {
        let mut out = Vec::with_capacity(self.seq_length + 1);
        self.read(i, &mut out)?;
        Ok(out)
    }

    /// Appends the `seq_length + 1` tokens of sample `i` to `out`.
    ///
    /// # Errors
    /// As [`Dataset::sample`].
    pub fn read(&self, i: u64, out: &mut Vec<i64>) -> Result<()> {
        match &self.samples {
            Samples::One(one) => one.read(i, out),
            Samples::Blend(blend) => blend.read(i, out),
        }
    }

    /// How often the documents of each source are read, at most.
    #[must_use]
    pub fn epochs(&self) -> Vec<u64> {
        match &self.samples {
            Samples::One(one) => vec![one.epochs()],
            Samples::Blend(blend) => blend.members.iter().map(GptDataset::epochs).collect(),
        }
    }

    /// Sources without weights that do not suffice for one epoch are read again, where Megatron would stop.
    #[must_use]
    pub fn repeated(&self) -> bool {
        self.repeated
    }
}
