//! Going on where a run was left: from the newest checkpoint in its scratch directory that is whole and of this run.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use flow_formats::torch_dist::{self, Reader};
use flow_plan::TrainJob;
use tch::Tensor;

use crate::{
    buckets::Buckets,
    checkpoint::{self, State},
    events::Voice,
    model::params::Layout,
    optim::{AdamW, Stretch},
    ranks::Ranks,
    weights,
};

/// What is put back.
pub struct Resumed<'a> {
    pub layout: &'a Layout,
    pub buckets: &'a Buckets,
    pub weights: &'a Tensor,
    pub optimizer: &'a mut AdamW,
}

impl Resumed<'_> {
    /// Goes back to the newest checkpoint that can be used; to the start if there is none.
    pub fn newest(mut self, job: &TrainJob, ranks: &Ranks, voice: &Voice) -> Result<State> {
        let training = serde_json::Value::Object(job.training.keyed());
        let mut checkpoints: Vec<String> = Vec::new();
        if ranks.rank == 0 {
            fs::create_dir_all(&job.scratch).with_context(|| format!("cannot make {}", job.scratch.display()))?;
            checkpoint::sweep(&job.scratch)?;
            for path in checkpoint::found(&job.scratch)? {
                match usable(&path, &job.scratch, &training) {
                    Ok(()) => checkpoints.push(path.to_str().context("a path is UTF-8")?.to_owned()),
                    Err(why) => voice.warn(format!("{} is passed over: {why:#}", path.display())),
                }
            }
        }
        // All look at what rank 0 found, in its order.
        let post = ranks.post();
        let shared = post.share("checkpoints", serde_json::to_vec(&checkpoints)?)?;
        let checkpoints: Vec<String> = serde_json::from_slice(&shared)?;
        for path in checkpoints.iter().map(Path::new) {
            let loaded = self.load(path, ranks);
            let mine = loaded.as_ref().err().map(|why| format!("{why:#}")).unwrap_or_default();
            let name = |what: &str| format!("{what} {}", path.display());
            let all = post.gather(&name("taken"), mine.as_bytes())?;
            let why = post.share(&name("verdict"), all.into_iter().find(|why| !why.is_empty()).unwrap_or_default())?;
            if let (true, Ok(state)) = (why.is_empty(), loaded) {
                self.optimizer.publish(self.buckets)?;
                voice.info(format!("going on from {} after step {}", path.display(), state.step));
                if ranks.rank == 0 {
                    checkpoint::forget_after(&job.scratch, state.step)?;
                }
                return Ok(state);
            }
            voice.warn(format!("{} is passed over: {}", path.display(), String::from_utf8_lossy(&why)));
            // Half of it may have been read.
            begin(job, self.layout, self.weights)?;
            self.optimizer.reset();
        }
        if ranks.rank == 0 {
            checkpoint::forget_after(&job.scratch, 0)?;
        }
        Ok(State { training, ..State::default() })
    }

    fn load(&mut self, path: &Path, ranks: &Ranks) -> Result<State> {
        let state = checkpoint::read_state(path)?;
        state.verify(path, ranks.rank, ranks.world.size())?;
        checkpoint::load(path, &state, self.layout, self.weights, self.optimizer)?;
        Ok(state)
    }
}

/// Reads the weights that a run begins from.
pub fn begin(job: &TrainJob, layout: &Layout, flat: &Tensor) -> Result<()> {
    let (_, source) = torch_dist::newest(&job.model)?;
    let all = Stretch { at: 0, values: flat.shallow_clone() };
    weights::read(&Reader::open(&source)?, "", layout, &[all])
        .with_context(|| format!("cannot take the model from {}", source.display()))
}

/// Whether a checkpoint is of this run, and its steps are in `metrics.jsonl`.
fn usable(path: &Path, scratch: &Path, training: &serde_json::Value) -> Result<()> {
    let state = checkpoint::read_state(path)?;
    if state.training != *training {
        bail!("it is of a run with other parameters");
    }
    crate::metrics::holds(scratch, state.step)
}
