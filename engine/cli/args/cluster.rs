//! What can be typed about jobs of a cluster.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::complete;

/// `flow cancel`
#[derive(Debug, Args)]
pub struct Cancel {
    /// The jobs of this pipeline
    #[arg(value_name = "PIPELINE", value_hint = ValueHint::FilePath, required_unless_present = "all")]
    pub file: Option<PathBuf>,
    /// Only those that make these stages
    #[arg(value_name = "STAGE", add = complete::stages())]
    pub stages: Vec<String>,
    /// All jobs of yours on this cache
    #[arg(long, conflicts_with = "file")]
    pub all: bool,
}

/// `flow job`: what a job of a cluster starts.
#[derive(Debug, Args)]
pub struct Job {
    /// The directory of its batch
    pub dir: PathBuf,
    /// Which task of it
    pub task: usize,
}
