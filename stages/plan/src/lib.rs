//! The arithmetic of training, without tensors: parameters, mesh, sampler, schedule, memory.
//!
//! Shared by the stage that starts the ranks (`flow-data`) and the ranks themselves (`flow-torch`).

mod job;
mod model;
mod params;

pub use job::{DataSource, EvalJob, Job, Rank, TrainJob};
pub use model::{ModelConfig, RopeScaling};
pub use params::{
    Checkpointing, Device, Memory, Optim, OptimName, Parallel, Precision, Recompute, Sched, SchedName, Training,
};
