//! What can be typed to run a pipeline.

use clap::{Args, ValueEnum};

use super::{Pipeline, Selection};

/// What becomes of a run's jobs when it is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnInterrupt {
    /// Ask, where somebody can answer; else as `leave`
    Ask,
    /// They go on; the next run takes them up
    Leave,
    /// They are cancelled
    Cancel,
}

/// `flow run`
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub pipeline: Pipeline,
    #[command(flatten)]
    pub selection: Selection,
    /// After a failure, go on with what does not depend on it
    #[arg(long, short)]
    pub keep_going: bool,
    /// Nodes that run at once at most, as far as there are cores for them (FLOW_CPUS) [default: the number of cores]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub jobs: Option<u32>,
    /// What becomes of jobs in a cluster when this is interrupted
    #[arg(long, value_name = "WHAT", default_value = "ask")]
    pub on_interrupt: OnInterrupt,
    /// Print every event as a line of JSON on stdout
    #[arg(long)]
    pub json: bool,
}
