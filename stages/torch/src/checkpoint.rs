//! The checkpoints in a run's scratch directory: which there are, whether they are what was written, reading one back.
//!
//! They are `torch_dist` with the optimizer's state in fp32 and `flow_state.json`. One gets its name by a rename when every
//! rank's part is on the disk, so what has a name is complete; [`crate::saved`] writes them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use flow_core::Digest;
use flow_formats::torch_dist::Reader;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{model::params::Layout, optim::AdamW, weights};

/// What a checkpoint says of itself: a [`State`].
pub const STATE: &str = "flow_state.json";
/// Before a parameter's key: the fp32 weights where the model has others.
pub const MASTER: &str = "optimizer.state.param.";
/// As [`MASTER`]: the first moments.
pub const EXP_AVG: &str = "optimizer.state.exp_avg.";
/// As [`MASTER`]: the second moments.
pub const EXP_AVG_SQ: &str = "optimizer.state.exp_avg_sq.";

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
    /// Every other file of the checkpoint, with what it holds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, Digest>,
}

impl State {
    /// Whether the files of a checkpoint are what was written, as far as one of `size` ranks looks: each at its part of them.
    pub fn verify(&self, checkpoint: &Path, rank: usize, size: usize) -> Result<()> {
        for (name, digest) in self.files.iter().skip(rank).step_by(size) {
            let path = checkpoint.join(name);
            let mut hasher = blake3::Hasher::new();
            hasher.update_mmap_rayon(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let found = Digest(*hasher.finalize().as_bytes());
            ensure!(found == *digest, "{} is not what was written: it is damaged", path.display());
        }
        Ok(())
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
pub fn thin_out(scratch: &Path, keep: usize, best: usize) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use flow_formats::torch_dist;

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
