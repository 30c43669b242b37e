//! `flow-torch`: one process a rank. Trains, evaluates and generates with libtorch; started by `flow`, by Slurm, or by hand.
//!
//! `flow-torch worker JOB.json` does a job ([`flow_plan::Job`]) as the rank that RANK, WORLD_SIZE, LOCAL_RANK,
//! MASTER_ADDR and MASTER_PORT say; with `--nnodes` it is the [`agent`] that starts those of one machine. Standard output: events. Standard error: words, the reason of a failure last.
//! Exit: 0 done, 1 failed, 75 interrupted with a checkpoint to go on from.

mod agent;
mod ahead;
mod batches;
mod bench;
mod buckets;
mod checkpoint;
mod common;
mod device;
mod eval;
mod events;
mod generate;
mod logits;
mod metrics;
mod model;
mod nvml;
mod opened;
mod optim;
mod pipeline;
mod post;
mod ranks;
mod report;
mod resume;
mod saved;
mod score;
mod scribe;
mod signals;
mod tensorboard;
mod train;
mod weights;

use std::{
    env, fs,
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use anyhow::{Context, Result, anyhow, bail};
use flow_dist::runtime;
use flow_plan::Job;

use ranks::Ranks;

/// How a job ended that did not fail.
pub enum Ended {
    /// Its result is there.
    Done,
    /// It was asked to stop, and can go on.
    Interrupted,
}

const USAGE: &str = "\
usage: flow-torch --about
       flow-torch worker JOB.json                          one rank; RANK, WORLD_SIZE, … say which
       flow-torch worker --rdzv HOST:PORT --nnodes N --node-rank K [--nproc-per-node G] JOB.json
                                                           the ranks of one machine of N; HOST is the first of them
       flow-torch logits MODEL_DIR IDS.json OUT.npy
       flow-torch bench [--layers N] [--seq S] …";
/// The version of what `flow` and this program say to each other.
const PROTOCOL: u32 = 2;
/// Exit code of an interrupted job (EX_TEMPFAIL).
const INTERRUPTED: i32 = 75;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--about"] => about().map(|()| Ended::Done),
        ["worker", job] => worker(Path::new(job)),
        ["worker", ref flags @ .., job] => match agent::Agent::of(flags, Path::new(job)).and_then(agent::Agent::run) {
            Ok(code) => leave_process(code),
            Err(error) => Err(error),
        },
        ["logits", model, ids, out] => {
            logits::logits(Path::new(model), Path::new(ids), Path::new(out)).map(|()| Ended::Done)
        }
        ["bench", ref flags @ ..] => bench::bench(flags).map(|()| Ended::Done),
        _ => {
            eprintln!("{USAGE}");
            leave_process(2);
        }
    };
    match result {
        Ok(Ended::Done) => leave_process(0),
        Ok(Ended::Interrupted) => leave_process(INTERRUPTED),
        Err(error) => {
            eprintln!("{error:#}");
            leave_process(1);
        }
    }
}

/// Ends the process at once: threads of groups whose ranks are gone would keep it waiting otherwise.
pub fn leave_process(code: i32) -> ! {
    let _ = io::stdout().flush();
    let _ = io::stderr().flush();
    // SAFETY: always sound; what was to be written has been.
    unsafe { libc::_exit(code) }
}

/// One JSON object: versions, and how many GPUs libtorch sees.
fn about() -> Result<()> {
    let gpus = if runtime::load_cuda().is_ok() { tch::Cuda::device_count() } else { 0 };
    let about = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "libtorch": runtime::libtorch_version(),
        "protocol": PROTOCOL,
        "cuda": gpus,
    });
    writeln!(io::stdout(), "{about}").context("cannot write to standard output")
}

fn worker(path: &Path) -> Result<Ended> {
    signals::listen()?;
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let job: Job = serde_json::from_str(&text).with_context(|| format!("{} is not a job", path.display()))?;
    let me = ranks::from_environment()?;
    let mut ranks: Option<Ranks> = None;
    // libtorch's errors surface as panics where a Result would only be noise; the others must hear of them too.
    let outcome = catch_unwind(AssertUnwindSafe(|| match &job {
        Job::Train(job) => train::train(job, &me, &mut ranks),
        Job::Eval(job) => eval::eval(job, &me, &mut ranks),
        Job::Generate(job) => generate::talk(job, &me, &mut ranks),
    }))
    .unwrap_or_else(|panic| Err(anyhow!("{}", words(panic.as_ref()))));
    match outcome {
        Ok(ended) => {
            if let Some(ranks) = &ranks {
                ranks.leave();
            }
            Ok(ended)
        }
        Err(error) => {
            let reason = ranks.as_ref().and_then(|ranks| ranks.explain(&format!("{error:#}")));
            let reason = reason.map(|reason| format!("; {reason}")).unwrap_or_default();
            if me.world_size == 1 { Err(error) } else { bail!("rank {}: {error:#}{reason}", me.rank) }
        }
    }
}

/// What a panic said, without libtorch's stack.
pub fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").replace("\\n", "\n").lines().next().unwrap_or_default().to_owned()
}
