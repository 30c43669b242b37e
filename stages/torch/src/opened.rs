//! [`Opened`]: a Hugging Face directory as a model that can be asked.

use std::path::Path;

use anyhow::{Result, bail};
use flow_plan::{ModelConfig, Recompute};
use tch::{Device, Kind, Tensor};

use crate::{
    model::{
        ContextParallel, Llama, Spread, TensorParallel,
        params::{Layout, Share},
    },
    ranks::Ranks,
    weights,
};

/// A model, or this rank's share of each of its layers.
#[derive(Debug)]
pub struct Opened {
    /// Its geometry.
    pub config: ModelConfig,
    /// Itself.
    pub model: Llama,
    /// Where it is.
    pub device: Device,
}

impl Opened {
    /// Opens it for sequences up to `positions`, with the ranks that share it.
    pub fn with(ranks: &Ranks, dir: &Path, kind: Kind, device: Device, positions: usize) -> Result<Self> {
        let spread = Spread {
            tensor: TensorParallel { group: ranks.tensor.clone(), sequence: false },
            context: ContextParallel::none(),
        };
        Self::open(dir, kind, device, positions, ranks.share(), spread)
    }

    /// Opens all of it.
    pub fn alone(dir: &Path, kind: Kind, device: Device, positions: usize) -> Result<Self> {
        Self::open(dir, kind, device, positions, Share::WHOLE, Spread::none())
    }

    fn open(dir: &Path, kind: Kind, device: Device, positions: usize, share: Share, spread: Spread) -> Result<Self> {
        let config = ModelConfig::read(dir)?;
        let layout = Layout::new(&config, share);
        let flat = Tensor::zeros([layout.total as i64], (kind, device));
        weights::read_hf(dir, &config, &layout, &flat)?;
        let model = Llama::new(&config, &layout, &flat, positions, spread, Recompute::None, None)?;
        Ok(Self { config, model, device })
    }

    /// Refuses ids that the model does not have.
    pub fn has(&self, ids: &[u32]) -> Result<()> {
        let vocabulary = self.config.vocab_size;
        match ids.iter().find(|id| **id as usize >= vocabulary) {
            Some(id) => bail!("a request holds token {id}, and the model's vocabulary has {vocabulary}"),
            None => Ok(()),
        }
    }
}
