//! Megatron-Core's distributed checkpoint, `torch_dist`: PyTorch's DCP files under Megatron's names.
//!
//! A checkpoint is a directory of iterations, and `latest_checkpointed_iteration.txt` that names the newest. An
//! iteration holds `__{rank}_{n}.distcp` (records: each a small torch archive with one chunk of a tensor, or an
//! object), `.metadata` (which tensor's which chunk is which record), and some small files. Chunks are boxes of a
//! global tensor; how they are cut is free, so a reader that assembles boxes reads any tensor and pipeline split.
//!
//! Megatron-LM's format before this one, `mp_rank_*/model_optim_rng.pt`, is read as if it were this; NeMo's archives are read
//! in place.
//!
//! [`Reader`] reads, [`RankWriter`] and [`finish`] write: the ranks in parallel, each its chunks, rank 0 the rest.
//! Layers are stacked on axis 0 of one tensor (`decoder.layers.mlp.linear_fc1.weight` is [L, 2F, h]); a reader sees
//! other spellings in this one ([`canonical`](self)).

mod canonical;
mod finish;
mod home;
mod legacy;
mod metadata;
mod payload;
mod reader;
mod region;
mod sums;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

pub use finish::{CONTENT, Finish, TrainState, complete, finish, publish};
pub use payload::torch_save;
pub use reader::{Chunk, Reader, TensorInfo};
pub use writer::{ChunkEntry, RankWriter, Slot};

/// Names the newest iteration, in the checkpoint's directory.
pub const LATEST: &str = "latest_checkpointed_iteration.txt";
/// A copy of the newest iteration's `train_state.pt`, in the checkpoint's directory.
pub const LATEST_STATE: &str = "latest_train_state.pt";
/// The table of records, in an iteration's directory.
pub const METADATA: &str = ".metadata";

/// The directory of an iteration: `iter_0000050`.
#[must_use]
pub fn iteration_dir(root: &Path, iteration: u64) -> PathBuf {
    root.join(format!("iter_{iteration:07}"))
}

/// The directory in which the ranks write an iteration before it is complete.
#[must_use]
pub fn staging(root: &Path, iteration: u64) -> PathBuf {
    root.join(format!("iter_{iteration:07}.tmp"))
}

/// Makes an empty [`staging`] directory, in place of what an interrupted run left there. One rank calls this, before
/// any rank writes.
///
/// # Errors
/// The directory cannot be made.
pub fn begin(root: &Path, iteration: u64) -> Result<PathBuf> {
    let dir = staging(root, iteration);
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot clear {}", dir.display()));
        }
        _ => {}
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// Whether a directory holds an iteration, in this format or in Megatron-LM's older one.
fn is_iteration(dir: &Path) -> bool {
    dir.join(METADATA).is_file() || legacy::is_legacy(dir)
}

/// The newest iteration of a checkpoint, or the one whose own directory this is: its number and its directory. A `.nemo` (or
/// a directory with one in it, as a stage that fetches or unpacks it leaves it) is the only iteration that it has.
///
/// # Errors
/// There is no checkpoint here, or the newest iteration's directory is gone.
pub fn newest(path: &Path) -> Result<(u64, PathBuf)> {
    if path.is_file() {
        home::Home::open(path)?;
        return Ok((0, path.to_owned()));
    }
    // NeMo 2 keeps the one that it has beside its `context`.
    let weights = path.join("weights");
    if !path.join(LATEST).is_file() && is_iteration(&weights) {
        return Ok((0, weights));
    }
    if is_iteration(path) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        return Ok((number(name).unwrap_or(0), path.to_owned()));
    }
    let latest = path.join(LATEST);
    match fs::read_to_string(&latest) {
        Ok(text) => {
            let text = text.trim();
            let (iteration, dir) = match text {
                "release" => (0, path.join("release")),
                digits => {
                    let iteration = digits.parse().with_context(|| format!("{} says `{digits}`", latest.display()))?;
                    (iteration, iteration_dir(path, iteration))
                }
            };
            if !is_iteration(&dir) {
                bail!(
                    "{} says `{text}`, but {} is no checkpoint, or not complete: {}",
                    latest.display(),
                    dir.display(),
                    what_instead(&dir)
                )
            }
            Ok((iteration, dir))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let paths = inside(path).with_context(|| format!("cannot read {}", path.display()))?;
            let iteration = |dir: &PathBuf| {
                let iteration = number(dir.file_name()?.to_str()?)?;
                is_iteration(dir).then(|| (iteration, dir.clone()))
            };
            if let Some(newest) = paths.iter().filter_map(iteration).max() {
                return Ok(newest);
            }
            let mut archives = paths.iter().filter(|path| path.extension().is_some_and(|ending| ending == "nemo"));
            if let (Some(archive), None) = (archives.next(), archives.next()) {
                return newest(archive);
            }
            bail!(
                "{} is no Megatron checkpoint: {}, and neither {LATEST} nor iter_*/{METADATA}",
                path.display(),
                what_instead(path)
            )
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", latest.display())),
    }
}

fn inside(dir: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

/// Why a directory holds no iteration. A tensor of zarr's is a directory of its own, and so is a rank's pickle.
fn what_instead(dir: &Path) -> String {
    let mut paths = inside(dir).unwrap_or_default();
    for i in 0..paths.len() {
        paths.extend(inside(&paths[i]).unwrap_or_default());
    }
    home::without_table(paths.iter().filter_map(|path| path.to_str()))
}

fn number(name: &str) -> Option<u64> {
    name.strip_prefix("iter_").filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}
