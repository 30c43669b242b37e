//! What of a run is kept on disk: checkpoints on the way in the scratch directory, the result in the end.
//!
//! Both are `torch_dist`. A checkpoint also has the optimizer's state in fp32 and `flow_state.json`; it gets its name by
//! one rename when every rank's part is on the disk, so what has a name is complete.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use flow_formats::torch_dist::{self, ChunkEntry, Finish, RankWriter, Reader, TrainState};
use flow_plan::TrainJob;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{
    metrics::Metrics,
    model::params::Layout,
    optim::{AdamW, Stretch},
    ranks::Ranks,
    weights,
};

const STATE: &str = "flow_state.json";
const MASTER: &str = "optimizer.state.param.";
const EXP_AVG: &str = "optimizer.state.exp_avg.";
const EXP_AVG_SQ: &str = "optimizer.state.exp_avg_sq.";

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Updates of the optimizer: steps without those that were skipped.
    pub updates: u64,
    /// Validations done.
    pub validations: u64,
    /// The last validation's loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// The parameters that decide the numbers: another run's checkpoint is not continued.
    pub training: serde_json::Value,
}

/// What is saved: the model, and for a checkpoint the optimizer.
pub struct Saved<'a> {
    job: &'a TrainJob,
    ranks: &'a Ranks,
    layout: &'a Layout,
    /// The model's weights.
    weights: &'a Tensor,
    /// Megatron-Bridge's description of the model.
    run_config: &'a str,
    /// The step whose checkpoint is on the disk already.
    saved: u64,
}

impl<'a> Saved<'a> {
    /// For a run that goes on from `step`, whose checkpoint is there (or which is the beginning).
    pub fn new(
        job: &'a TrainJob,
        ranks: &'a Ranks,
        layout: &'a Layout,
        weights: &'a Tensor,
        run_config: &'a str,
        step: u64,
    ) -> Self {
        Self { job, ranks, layout, weights, run_config, saved: step }
    }

    /// Writes a checkpoint with everything that a run needs to go on, if it is not there yet, and removes those that are not
    /// to be kept. `metrics` is on the disk before.
    pub fn checkpoint(&mut self, state: &State, optimizer: &AdamW, metrics: Option<&Metrics>) -> Result<()> {
        if state.step == self.saved {
            return Ok(());
        }
        if let Some(metrics) = metrics {
            metrics.sync()?;
        }
        let bytes = serde_json::to_vec(state)?;
        self.save(&self.job.scratch, state, &[(STATE, &bytes)], Some(optimizer))?;
        self.saved = state.step;
        if self.ranks.rank == 0 {
            let keep = &self.job.training.checkpoint;
            thin_out(&self.job.scratch, keep.keep.max(1), keep.keep_best)?;
        }
        Ok(())
    }

    /// Writes the result: the model alone, with what lies beside the checkpoint that the run began from.
    pub fn result(&self, state: &State) -> Result<()> {
        let (_, iteration) = torch_dist::newest(&self.job.model)?;
        let mut files = Vec::new();
        collect(&iteration.join("tokenizer"), "tokenizer", &mut files)?;
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        self.save(&self.job.out, state, &files, None)?;
        if self.ranks.rank == 0 && self.job.model != iteration {
            let mut beside = Vec::new();
            collect(&self.job.model.join("hf"), "hf", &mut beside)?;
            for (name, bytes) in beside {
                let path = self.job.out.join(name);
                fs::create_dir_all(path.parent().context("a file has a directory")?)?;
                fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// All ranks together: each its share, rank 0 the rest.
    fn save(&self, root: &Path, state: &State, files: &[(&str, &[u8])], optimizer: Option<&AdamW>) -> Result<()> {
        let (ranks, step) = (self.ranks, state.step);
        if ranks.rank == 0 {
            torch_dist::begin(root, step)?;
        }
        // Files take as long as they take: the ranks wait for each other at the store, where no collective's time runs out.
        let name = |what: &str| format!("saved/{}/{step}/{what}", root.display());
        ranks.share_bytes(&name("begun"), Vec::new())?;
        // Those that share the batch hold the same, but for an optimizer's state that is shared out among them.
        let (first, distributed) = (ranks.data.rank() == 0, self.job.training.optim.distributed);
        let mut entries = Vec::new();
        if first || (distributed && optimizer.is_some()) {
            let mut writer = RankWriter::create(&torch_dist::staging(root, step), ranks.rank)?;
            if first {
                let all = Stretch { at: 0, values: self.weights.shallow_clone() };
                weights::write(&mut writer, "", self.layout, &[all])?;
            }
            if let Some(optimizer) = optimizer {
                let [exp_avg, exp_avg_sq] = optimizer.moments();
                weights::write(&mut writer, EXP_AVG, self.layout, &exp_avg)?;
                weights::write(&mut writer, EXP_AVG_SQ, self.layout, &exp_avg_sq)?;
                if self.weights.kind() != Kind::Float {
                    weights::write(&mut writer, MASTER, self.layout, &optimizer.masters())?;
                }
            }
            if ranks.rank == 0 {
                writer.extra_states(self.layout.layers as u64)?;
            }
            entries = writer.finish()?;
        }
        let everyone: Vec<usize> = (0..ranks.world.size()).collect();
        let parts = ranks.gather_bytes(&name("written"), &everyone, &serde_json::to_vec(&entries)?)?;
        if ranks.rank == 0 {
            let mut entries: Vec<ChunkEntry> = Vec::new();
            for part in parts {
                entries.extend(serde_json::from_slice::<Vec<ChunkEntry>>(&part)?);
            }
            let train_state = TrainState {
                step,
                consumed_train_samples: step * self.job.training.global_batch_size as u64,
                skipped_train_samples: 0,
                consumed_valid_samples: self.job.training.validated_samples(state.validations),
                floating_point_operations_so_far: 0.0,
                do_train: true,
                do_valid: true,
                do_test: false,
            };
            let run_config = self.run_config.to_owned();
            torch_dist::finish(root, step, entries, &Finish { run_config, train_state, files })?;
        }
        ranks.share_bytes(&name("named"), Vec::new()).map(drop)
    }
}

/// Samples that so many validations read.
trait Validated {
    fn validated_samples(&self, validations: u64) -> u64;
}

impl Validated for flow_plan::Training {
    fn validated_samples(&self, validations: u64) -> u64 {
        validations * self.limit_val_batches * self.global_batch_size as u64
    }
}

/// The checkpoints in a scratch directory, newest first.
pub fn found(scratch: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = Vec::new();
    let entries = match fs::read_dir(scratch) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries.with_context(|| format!("cannot read {}", scratch.display()))?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("iter_") && !name.contains('.') && path.join(STATE).is_file() {
            found.push(path);
        }
    }
    // Seven digits at least, so that the order of names is that of numbers up to ten million steps.
    found.sort_by_key(|path| std::cmp::Reverse((path.as_os_str().len(), path.clone())));
    Ok(found)
}

/// Reads a checkpoint's `flow_state.json`.
pub fn read_state(checkpoint: &Path) -> Result<State> {
    let path = checkpoint.join(STATE);
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))
}

/// Puts a run back to where a checkpoint left it, as far as this rank goes: all call [`AdamW::publish`] then.
pub fn load(checkpoint: &Path, state: &State, layout: &Layout, flat: &Tensor, optimizer: &mut AdamW) -> Result<()> {
    let reader = Reader::open(checkpoint)?;
    let [exp_avg, exp_avg_sq] = optimizer.moments();
    weights::read(&reader, if flat.kind() == Kind::Float { "" } else { MASTER }, layout, &optimizer.masters())?;
    weights::read(&reader, EXP_AVG, layout, &exp_avg)?;
    weights::read(&reader, EXP_AVG_SQ, layout, &exp_avg_sq)?;
    optimizer.updates = state.updates;
    Ok(())
}

/// Removes what a killed run left half-made.
pub fn sweep(scratch: &Path) -> Result<()> {
    for entry in fs::read_dir(scratch).with_context(|| format!("cannot read {}", scratch.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("iter_") && name.ends_with(".tmp") {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Removes the checkpoints beyond `step`, which could not be used: they would pass for the newest.
pub fn forget_after(scratch: &Path, step: u64) -> Result<()> {
    for path in found(scratch)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.strip_prefix("iter_").and_then(|number| number.parse().ok()).is_some_and(|at: u64| at > step) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// First the name goes, then the files: what has a name is complete.
fn remove(path: &Path) -> Result<()> {
    let gone = path.with_extension("tmp");
    fs::rename(path, &gone)
        .and_then(|()| fs::remove_dir_all(&gone))
        .with_context(|| format!("cannot remove {}", path.display()))
}

/// Removes all but the `keep` newest and the `best` with the lowest validation loss.
fn thin_out(scratch: &Path, keep: usize, best: usize) -> Result<()> {
    let older = found(scratch)?.split_off(keep.min(found(scratch)?.len()));
    let mut older: Vec<(f64, PathBuf)> = older
        .into_iter()
        .map(|path| (read_state(&path).ok().and_then(|state| state.val_loss).unwrap_or(f64::INFINITY), path))
        .collect();
    older.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (_, path) in older.into_iter().skip(best) {
        remove(&path)?;
    }
    Ok(())
}

/// Reads the files below `dir` under `name/…`, if it is there.
fn collect(dir: &Path, name: &str, into: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, file) = (entry.path(), entry.file_name());
        let file = file.to_str().with_context(|| format!("{} has a name that is not UTF-8", path.display()))?;
        let name = format!("{name}/{file}");
        if path.is_dir() {
            collect(&path, &name, into)?;
        } else {
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            ensure!(bytes.len() < 1 << 30, "{} is no small file", path.display());
            into.push((name, bytes));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_and_the_best_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        for (step, val_loss) in [(10, Some(2.0)), (20, Some(1.0)), (30, None), (40, Some(3.0)), (50, Some(4.0))] {
            let path = torch_dist::iteration_dir(dir.path(), step);
            fs::create_dir(&path).unwrap();
            let state = State { step, val_loss, ..State::default() };
            fs::write(path.join(STATE), serde_json::to_vec(&state).unwrap()).unwrap();
        }
        fs::create_dir(torch_dist::staging(dir.path(), 60)).unwrap();
        let steps = || -> Vec<u64> { found(dir.path()).unwrap().iter().map(|p| read_state(p).unwrap().step).collect() };
        assert_eq!(steps(), [50, 40, 30, 20, 10]);
        thin_out(dir.path(), 2, 1).unwrap();
        assert_eq!(steps(), [50, 40, 20]);
        thin_out(dir.path(), 1, 0).unwrap();
        assert_eq!(steps(), [50]);
        assert!(found(&dir.path().join("absent")).unwrap().is_empty());
    }
}
