//! [`Training`]: the parameters of a `train` stage that decide the numbers. The stage adds its inputs to them.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// What the TOML of a `train` stage may hold beside its inputs. Field names are the field's own (Megatron's, NeMo's).
///
/// `Serialize` writes all of it, for the ranks; what enters a key is [`Training::keyed`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Tokens in a sequence.
    pub seq_length: usize,
    /// Sequences in one forward pass of one data-parallel rank. Not part of the key: a batch is the same in other portions.
    pub micro_batch_size: usize,
    /// Sequences in one optimizer step, over all ranks.
    pub global_batch_size: usize,
    /// Optimizer steps.
    pub max_steps: u64,
    /// Of the sampler (and of dropout, had it any).
    #[serde(default = "default_seed")]
    pub seed: u32,
    /// Of weights and activations; gradients are accumulated and the loss is computed in fp32.
    #[serde(default)]
    pub precision: Precision,
    /// Where the ranks compute. Not part of the key.
    #[serde(default)]
    pub device: Device,
    /// Gradients are scaled down to this global L2 norm; 0 is off.
    #[serde(default = "default_clip")]
    pub gradient_clip: f64,
    /// Steps between two lines of the log. Not part of the key.
    #[serde(default = "one")]
    pub log_interval: u64,
    /// Steps between two validations; 0 is never.
    #[serde(default)]
    pub val_interval: u64,
    /// Global batches in one validation.
    #[serde(default = "one")]
    pub limit_val_batches: u64,
    /// Megatron's split of the training data into train, validation, test: `"98,1,1"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub splits: Option<String>,
    /// Positions are counted from the beginning of each document, as Megatron's option has it.
    #[serde(default, skip_serializing_if = "is_off")]
    pub reset_position_ids: bool,
    /// Attention does not reach over the end of a document, as Megatron's option has it.
    #[serde(default, skip_serializing_if = "is_off")]
    pub reset_attention_mask: bool,
    /// What follows the end of a document is not learned, as Megatron's option has it. The loss is the mean over the
    /// tokens of the global batch that are, as with its `--calculate-per-token-loss`.
    #[serde(default, skip_serializing_if = "is_off")]
    pub eod_mask_loss: bool,
    /// The token that ends a document, for the three options above; the model's `eos_token_id` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eod_token_id: Option<i64>,
    /// How the work is spread over processes. Not part of the key: a training goes on with another mesh.
    #[serde(default)]
    pub parallel: Parallel,
    /// The optimizer.
    pub optim: Optim,
    /// The learning rate over time.
    #[serde(default)]
    pub sched: Sched,
    /// What is kept on the way. Not part of the key.
    #[serde(default)]
    pub checkpoint: Checkpointing,
    /// What is given for memory. Not part of the key: it changes no number.
    #[serde(default)]
    pub memory: Memory,
    /// What a rank may take of its device's memory: `"48GB"`, `"80GiB"`. Not part of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<String>,
    /// Where TensorBoard's event files go, in a directory named as the node. Not part of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensorboard: Option<PathBuf>,
    /// Weights & Biases. Not part of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wandb: Option<Wandb>,
    /// On a GPU too the same input gives the same bits, by slower kernels. (On a CPU it always does.) Not part of the key.
    #[serde(default)]
    pub deterministic: bool,
}

impl Training {
    /// What decides the numbers, and so enters the key: all but the fields that say that they are not part of it. What
    /// sums the same numbers in another order (a mesh, a device) is not another training.
    ///
    /// # Panics
    /// Never: a `Training` is a JSON object.
    #[must_use]
    pub fn keyed(&self) -> Map<String, Json> {
        let Ok(Json::Object(mut all)) = serde_json::to_value(self) else { unreachable!("a struct is an object") };
        for knob in KNOBS {
            all.remove(knob);
        }
        if let Some(optim) = all.get_mut("optim").and_then(Json::as_object_mut) {
            optim.remove("distributed");
        }
        all
    }
}

/// What decides how and where the numbers are made, and not which.
const KNOBS: [&str; 10] = [
    "checkpoint",
    "deterministic",
    "device",
    "log_interval",
    "memory",
    "memory_limit",
    "micro_batch_size",
    "parallel",
    "tensorboard",
    "wandb",
];

fn default_seed() -> u32 {
    1234 // Megatron's
}
fn default_clip() -> f64 {
    1.0
}
fn is_off(on: &bool) -> bool {
    !on
}
fn is_on(on: &bool) -> bool {
    *on
}
fn default_wandb_dir() -> PathBuf {
    "wandb".into()
}
fn one() -> u64 {
    1
}
fn one_usize() -> usize {
    1
}

/// The type of weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit.
    Fp32,
    /// bfloat16, with fp32 master weights.
    #[default]
    Bf16,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// CUDA if there is a GPU for every rank, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// One GPU a rank.
    Cuda,
}

/// The mesh. Processes = tensor × pipeline × context × data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Parallel {
    /// Ranks that share each layer.
    pub tensor: usize,
    /// Ranks that share the layers.
    pub pipeline: usize,
    /// Ranks that share each sequence.
    pub context: usize,
    /// Ranks that share the batch.
    pub data: usize,
    /// Norms and residuals split along the sequence within the tensor group.
    pub sequence: bool,
}

impl Default for Parallel {
    fn default() -> Self {
        Self { tensor: 1, pipeline: 1, context: 1, data: 1, sequence: false }
    }
}

impl Parallel {
    /// The number of processes.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.tensor * self.pipeline * self.context * self.data
    }
}

/// The optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Optim {
    /// Which.
    #[serde(default)]
    pub name: OptimName,
    /// The highest learning rate.
    pub lr: f64,
    /// The lowest, at the end of the decay.
    #[serde(default)]
    pub min_lr: f64,
    /// Decay of the moments.
    #[serde(default = "default_betas")]
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Decoupled; on matrices alone, not on norms and biases, as Megatron.
    #[serde(default)]
    pub weight_decay: f64,
    /// The optimizer's state is sharded over the data-parallel ranks. Changes no number, so not part of the key.
    #[serde(default)]
    pub distributed: bool,
}

fn default_betas() -> [f64; 2] {
    [0.9, 0.95]
}
fn default_eps() -> f64 {
    1e-8
}

/// The optimizers there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimName {
    /// AdamW.
    #[default]
    Adamw,
}

/// The learning rate over time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sched {
    /// The shape after warm-up.
    pub name: SchedName,
    /// Steps from 0 to `lr`, linear.
    pub warmup_steps: u64,
    /// Steps at `min_lr` at the end, as NeMo's CosineAnnealing.
    pub constant_steps: u64,
    /// Steps after which `min_lr` is reached; `max_steps` − `constant_steps` if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<u64>,
}

/// The shapes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SchedName {
    /// Half a cosine from `lr` to `min_lr`.
    #[default]
    Cosine,
    /// A line from `lr` to `min_lr`.
    Linear,
    /// `lr`.
    Constant,
}

/// Checkpoints on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpointing {
    /// Steps between two; 0 is at the end alone.
    pub interval: u64,
    /// How many of the newest are kept while the run goes on.
    pub keep: usize,
    /// How many with the best validation loss are kept.
    pub keep_best: usize,
    /// They are written while training goes on, from a copy in the machine's memory; without, training waits.
    #[serde(skip_serializing_if = "is_on")]
    pub background: bool,
}

impl Checkpointing {
    /// Whether what is saved is copied first.
    #[must_use]
    pub fn copies(&self) -> bool {
        self.interval > 0 && self.background
    }
}

impl Default for Checkpointing {
    fn default() -> Self {
        Self { interval: 0, keep: one_usize(), keep_best: 0, background: true }
    }
}

/// Where a run is shown by Weights & Biases: a directory that `wandb sync` takes, and with `WANDB_API_KEY` set, online.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wandb {
    /// The project.
    pub project: String,
    /// The run's name; the node's if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The run's id; a new one if not given. A training that goes on keeps its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The team or user; the key's own if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<String>,
    /// Runs that are shown together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Where runs are kept, in the project's folder.
    #[serde(default = "default_wandb_dir")]
    pub dir: PathBuf,
}

/// What is given for memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// What is computed again in the backward pass.
    pub recompute: Recompute,
}

/// What is computed again in the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// The second half of every layer, the feed-forward: three quarters of what a layer keeps, for a fifth of the time.
    Selective,
    /// Every layer.
    Full,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::training;

    /// What is written here is in the keys of trained models: a change makes everyone train again.
    #[test]
    fn the_key_sees_what_decides_the_numbers() {
        let mut training = training();
        let keyed = training.keyed();
        let expected = serde_json::json!({
            "seq_length": 64, "global_batch_size": 12, "max_steps": 20, "seed": 1234,
            "precision": "bf16", "gradient_clip": 1.0, "val_interval": 5, "limit_val_batches": 2,
            "optim": {"name": "adamw", "lr": 1e-3, "min_lr": 0.0, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0},
            "sched": {"name": "cosine", "warmup_steps": 0, "constant_steps": 0},
        });
        assert_eq!(Json::Object(keyed.clone()), expected);
        training.device = Device::Cpu;
        training.log_interval = 7;
        training.micro_batch_size = 1;
        training.parallel = Parallel { tensor: 2, sequence: true, ..Parallel::default() };
        training.checkpoint = Checkpointing { interval: 3, keep: 2, keep_best: 1, background: false };
        training.memory.recompute = Recompute::Full;
        training.memory_limit = Some("48GB".to_owned());
        training.deterministic = true;
        training.tensorboard = Some("boards".into());
        training.optim.distributed = true;
        assert_eq!(training.keyed(), keyed);
    }

    #[test]
    fn the_ranks_see_all_of_it() {
        let mut training = training();
        training.device = Device::Cpu;
        training.log_interval = 7;
        training.checkpoint = Checkpointing { interval: 3, keep: 2, keep_best: 1, background: false };
        training.memory.recompute = Recompute::Full;
        training.memory_limit = Some("48GB".to_owned());
        training.deterministic = true;
        training.tensorboard = Some("boards".into());
        training.optim.distributed = true;
        let text = serde_json::to_string(&training).unwrap();
        assert_eq!(serde_json::from_str::<Training>(&text).unwrap(), training);
    }
}
