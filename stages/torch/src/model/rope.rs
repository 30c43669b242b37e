//! Rotary position embeddings, with the scaling of Llama 3.

use std::f64::consts::TAU;

use anyhow::Result;
use flow_dist::autograd;
use flow_plan::ModelConfig;
use tch::{Device, Kind, Tensor};

/// The rotations of some positions.
#[derive(Debug)]
pub struct Rope {
    /// [1 or b, s, 1, 1, d / 2], fp32
    cos: Tensor,
    /// As `cos`.
    sin: Tensor,
}

impl Rope {
    /// Angles in fp32, by the same operations as transformers', so that far positions agree to the last bit.
    pub fn new(config: &ModelConfig, positions: &Tensor, device: Device) -> Self {
        let angles = positions.to_kind(Kind::Float).outer(&inverse_frequencies(config));
        let shape = [1, positions.size()[0], 1, 1, config.head_dim as i64 / 2];
        Self { cos: angles.cos().view(shape).to(device), sin: angles.sin().view(shape).to(device) }
    }

    /// Of these the rotations at `places_bs`.
    pub fn at(&self, places_bs: &Tensor) -> Self {
        let (size, last) = (places_bs.size(), self.cos.size()[4]);
        let chosen = |x: &Tensor| x.index_select(1, &places_bs.flatten(0, -1)).view([size[0], size[1], 1, 1, last]);
        Self { cos: chosen(&self.cos), sin: chosen(&self.sin) }
    }

    /// Turns [b, s, …, …, d], the first s of the positions; the halves of the last dimension are the two coordinates, as in Hugging Face's Llama.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let s = x.size()[1];
        autograd::rotate(x, &self.cos.narrow(1, 0, s), &self.sin.narrow(1, 0, s))
    }
}

/// [d / 2], fp32
fn inverse_frequencies(config: &ModelConfig) -> Tensor {
    let d = config.head_dim as i64;
    let exponents = Tensor::arange_start_step(0, d, 2, (Kind::Float, Device::Cpu)) / d;
    let plain = Tensor::pow_scalar(config.rope_theta, &exponents).reciprocal();
    let Some(scaling) = &config.rope_scaling else { return plain };
    let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
    let original = scaling.original_max_position_embeddings as f64;
    let wave_length = plain.reciprocal() * TAU;
    let stretched = &plain / scaling.factor;
    // 0 for waves that do not fit into the original context, 1 for those that fit often, a line between.
    let share = (wave_length.reciprocal() * original - low) / (high - low);
    let blended = (share.ones_like() - &share) * &stretched + &share * &plain;
    let long = wave_length.gt(original / low);
    let short = wave_length.lt(original / high);
    stretched.where_self(&long, &plain.where_self(&short, &blended))
}
