//! `flow job`: what a job of a cluster runs. Nobody types it.

use anyhow::Context as _;
use flow_engine::{Stop, run_job};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU},
    iterator::Signals,
};

use super::{Done, text};
use crate::{args, failure::Failure};

/// Makes the nodes of a task.
pub fn job(args: &args::Job) -> Done {
    let stop = watch().context("cannot listen to signals").map_err(Failure::Cache)?;
    let env = std::env::vars_os().filter_map(text).collect();
    match run_job(&args.dir, args.task, flow_data::KINDS, env, &stop) {
        Ok(true) => Ok(()),
        // Why, the head says.
        Ok(false) => Err(Failure::Stage(Vec::new())),
        Err(error) => Err(Failure::Cache(error)),
    }
}

/// Schedulers warn of the time limit with different signals: Slurm with that of `--signal`, Grid Engine with SIGUSR1
/// (a soft limit) or SIGUSR2 (`-notify`) or SIGXCPU.
fn watch() -> std::io::Result<Stop> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU])?;
    let stop = Stop::default();
    let told = stop.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGTERM | SIGINT | SIGHUP => told.asked.set(),
                _ => told.limit.set(),
            }
        }
    })?;
    Ok(stop)
}
