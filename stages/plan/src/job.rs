//! [`Job`]: what a rank is told. Written as JSON by the stage that starts the ranks, read by `flow-torch`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Device, EvalJob, GenerateJob, Training};

/// What a rank does. `flow-torch worker JOB.json`; events go to its standard output as JSON lines
/// ([`flow_core::Event`]), everything for people to standard error.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "lowercase")]
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
pub enum Job {
    /// Trains.
    Train(TrainJob),
    /// Evaluates.
    Eval(EvalJob),
    /// Goes on with prompts as they come.
    Generate(GenerateJob),
}

impl Job {
    /// How many ranks it takes.
    #[must_use]
    pub fn world_size(&self) -> usize {
        match self {
            Self::Train(job) => job.training.parallel.world_size(),
            Self::Eval(job) => job.serving.tensor,
            Self::Generate(job) => job.serving.tensor,
        }
    }

    /// Threads of one rank.
    #[must_use]
    pub fn threads(&self) -> usize {
        match self {
            Self::Train(job) => job.threads,
            Self::Eval(job) => job.serving.threads,
            Self::Generate(job) => job.serving.threads,
        }
    }

    /// Where it computes.
    #[must_use]
    pub fn device(&self) -> Device {
        match self {
            Self::Train(job) => job.training.device,
            Self::Eval(job) => job.serving.device,
            Self::Generate(job) => job.serving.device,
        }
    }
}

/// Who a rank is, and how it finds the others. From the environment, under torchrun's names: RANK, WORLD_SIZE,
/// LOCAL_RANK, MASTER_ADDR, MASTER_PORT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rank {
    /// From 0.
    pub rank: usize,
    /// How many there are.
    pub world_size: usize,
    /// From 0 on this host.
    pub local_rank: usize,
    /// Where rank 0's store listens: host.
    pub master_addr: String,
    /// And port.
    pub master_port: u16,
}

/// Some tokens: a `.bin/.idx` pair.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DataSource {
    /// Path without `.bin`.
    pub prefix: PathBuf,
    /// Weight in the blend.
    pub weight: Option<f64>,
}

/// Training.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainJob {
    /// The node's name, for events.
    pub node: String,
    /// Directory with `iter_*` or an iteration's directory: a Megatron `torch_dist` checkpoint to begin from.
    pub model: PathBuf,
    /// Hugging Face `config.json` of the model, if the checkpoint's own description does not suffice.
    pub config: Option<PathBuf>,
    /// Training data.
    pub train: Vec<DataSource>,
    /// Validation data.
    pub validation: Vec<DataSource>,
    /// The numbers.
    pub training: Training,
    /// Where the result goes: `iter_*` in `torch_dist`, `metrics.jsonl` (deterministic numbers alone:
    /// step, loss, lr, grad_norm, consumed_samples, consumed_tokens, val_loss; never a time).
    pub out: PathBuf,
    /// Where checkpoints on the way are kept: what is there from an interrupted run is continued.
    pub scratch: PathBuf,
    /// Threads of one rank.
    pub threads: usize,
}
