//! `flow lock`

use flow_engine::RunOptions;

use super::{Done, run};
use crate::args::{self, OnInterrupt};

/// Pins what the pipeline fetches: fetches what has no pin, and with `--update` looks again at what has one.
pub fn lock(args: &args::Lock) -> Done {
    let options =
        RunOptions { targets: args.stages.clone(), update_pins: args.update, pins_only: true, ..RunOptions::default() };
    let how = run::How { jobs: None, json: false, on_interrupt: OnInterrupt::Ask };
    run::run_with(&args.pipeline, &options, &how)
}
