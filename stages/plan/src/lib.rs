//! The arithmetic of training, without tensors: parameters, mesh, sampler, schedule, memory.
//!
//! Shared by the stage that starts the ranks (`flow-data`) and the ranks themselves (`flow-torch`).

pub mod agent;
mod batch;
mod batches;
mod dataset;
mod documents;
mod eval;
mod fit;
mod generate;
mod inference;
mod job;
mod memory;
mod mesh;
mod model;
mod params;
mod schedule;

pub use batch::KnownData;
pub use batches::Data;
pub use dataset::{Dataset, RandomState, Request, Sources, Splits};
pub use documents::Documents;
pub use eval::{Ending, EvalAnswer, EvalJob, EvalRequest, Generate, Generated, Sampling, Score, Scored};
pub use fit::parse_bytes;
pub use generate::{FromGenerator, GenerateJob, ToGenerator};
pub use inference::{Inference, InferenceMemory, PROMPT_TOKENS, Serving};
pub use job::{DataSource, Job, Rank, TrainJob};
pub use memory::{LOSS_CHUNK_TOKENS, MemoryEstimate};
pub use mesh::{Axis, Coords, Mesh};
pub use model::{ModelConfig, RopeScaling};
pub use params::{
    Checkpointing, Device, Memory, Optim, OptimName, Parallel, Precision, Recompute, Sched, SchedName, Training, Wandb,
};
pub use schedule::Schedule;

#[cfg(test)]
mod tests {
    use super::{ModelConfig, Training};

    /// A small run: 2 data-parallel ranks, 3 micro batches of 2 sequences each.
    pub fn training() -> Training {
        serde_json::from_value(serde_json::json!({
            "seq_length": 64, "micro_batch_size": 2, "global_batch_size": 12, "max_steps": 20,
            "val_interval": 5, "limit_val_batches": 2, "parallel": {"data": 2}, "optim": {"lr": 1e-3}
        }))
        .unwrap()
    }

    /// A tiny Llama.
    pub fn model() -> ModelConfig {
        ModelConfig {
            vocab_size: 512,
            hidden_size: 32,
            intermediate_size: 88,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            max_position_embeddings: 128,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            tie_word_embeddings: false,
            eos_token_id: None,
        }
    }

    /// Llama-3.1-8B.
    pub fn llama_8b() -> ModelConfig {
        ModelConfig {
            vocab_size: 128_256,
            hidden_size: 4096,
            intermediate_size: 14_336,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 8,
            head_dim: 128,
            max_position_embeddings: 131_072,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: None,
            tie_word_embeddings: false,
            eos_token_id: None,
        }
    }
}
