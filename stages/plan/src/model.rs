//! [`ModelConfig`]: the geometry of a Llama, as Hugging Face's `config.json` says it.

use serde::{Deserialize, Serialize};

/// The geometry of a Llama-shaped model. Read from `config.json` by `flow_plan` in both spellings of RoPE
/// (`rope_theta` + `rope_scaling`, and `rope_parameters`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// RoPE's base.
    pub rope_theta: f64,
    /// RoPE's llama3 scaling, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// The output layer is the embedding.
    pub tie_word_embeddings: bool,
}

/// RoPE's llama3 scaling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    /// Wave lengths beyond the low-frequency bound are stretched by this.
    pub factor: f64,
    /// 1.0 in Llama 3.
    pub low_freq_factor: f64,
    /// 4.0 in Llama 3.
    pub high_freq_factor: f64,
    /// 8192 in Llama 3.
    pub original_max_position_embeddings: usize,
}
