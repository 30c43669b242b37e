//! `metrics.jsonl`: one object a step, deterministic numbers alone, so that the same training gives the same bytes.
//!
//! While training runs the file lies in the scratch directory. A resumed run cuts it back to its checkpoint's step and
//! goes on.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use flow_plan::Training;
use serde::{Deserialize, Serialize};

/// The name of the file.
pub const FILE: &str = "metrics.jsonl";

/// What a step measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// From 1.
    pub step: u64,
    /// Mean over the tokens of the global batch, in nats; absent when it is no number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Learning rate of this step.
    pub lr: f64,
    /// L2 norm before clipping; absent when it is no number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Samples after this step.
    pub consumed_samples: u64,
    /// Tokens after this step.
    pub consumed_tokens: u64,
    /// Mean over the tokens of the validation after this step, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// The gradient was not finite, and nothing was learned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
}

impl Line {
    /// The line of a step. Numbers that are none are left out.
    pub fn new(training: &Training, step: u64, loss: f64, lr: f64, norm: f64, val_loss: Option<f64>) -> Self {
        let finite = |x: f64| x.is_finite().then_some(x);
        let consumed_samples = step * training.global_batch_size as u64;
        Self {
            step,
            loss: finite(loss),
            lr,
            grad_norm: finite(norm),
            consumed_samples,
            consumed_tokens: training.consumed_tokens(consumed_samples),
            val_loss: val_loss.and_then(finite),
            skipped: !norm.is_finite(),
        }
    }
}

/// The file, open at its end.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file in `dir` and keeps its first `steps` lines: what a run wrote after its last checkpoint, or half
    /// wrote, goes.
    ///
    /// # Errors
    /// It does not hold the steps 1 to `steps`.
    pub fn open(dir: &Path, steps: u64) -> Result<Self> {
        let path = dir.join(FILE);
        let keep = if steps == 0 { 0 } else { length_of(&path, steps)? };
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        file.set_len(keep)?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
        Ok(Self { path, file })
    }

    /// Adds a step.
    pub fn push(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.write_all(&text).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// The file, for who brings it to the disk while more is added.
    pub fn handle(&self) -> Result<File> {
        self.file.try_clone().with_context(|| format!("cannot open {} again", self.path.display()))
    }

    /// Copies the file into `dir`.
    pub fn publish(&self, dir: &Path) -> Result<()> {
        let temporary = dir.join(format!("{FILE}.tmp"));
        fs::copy(&self.path, &temporary).with_context(|| format!("cannot write {}", temporary.display()))?;
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, dir.join(FILE)).context("cannot name the metrics")
    }
}

/// Whether the file in `dir` holds the steps 1 to `steps`.
pub fn holds(dir: &Path, steps: u64) -> Result<()> {
    if steps > 0 {
        length_of(&dir.join(FILE), steps)?;
    }
    Ok(())
}

/// Bytes of the lines of steps 1 to `steps`.
fn length_of(path: &Path, steps: u64) -> Result<u64> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut reader = BufReader::new(file);
    let (mut text, mut length) = (String::new(), 0);
    for step in 1..=steps {
        text.clear();
        let n = reader.read_line(&mut text)?;
        let line = serde_json::from_str::<Line>(&text).ok().filter(|line| line.step == step && text.ends_with('\n'));
        line.with_context(|| format!("{} does not hold step {step} of {steps}", path.display()))?;
        length += n as u64;
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> Line {
        let loss = Some(1.0 / step as f64);
        Line {
            step,
            loss,
            lr: 0.1,
            grad_norm: None,
            consumed_samples: step,
            consumed_tokens: step,
            val_loss: None,
            skipped: false,
        }
    }

    #[test]
    fn a_resumed_file_is_cut_back_to_its_step() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path(), 0).unwrap();
        (1..=3).for_each(|step| metrics.push(&line(step)).unwrap());
        let path = dir.path().join(FILE);
        let undisturbed = fs::read(&path).unwrap();
        fs::write(&path, [&undisturbed[..], b"{\"step\":4,\"lo"].concat()).unwrap();
        let mut metrics = Metrics::open(dir.path(), 2).unwrap();
        metrics.push(&line(3)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), undisturbed);
        assert!(Metrics::open(dir.path(), 4).unwrap_err().to_string().contains("step 4 of 4"));
        assert_eq!(fs::read(&path).unwrap(), undisturbed, "a refused file is left as it is");
        Metrics::open(dir.path(), 0).unwrap();
        assert!(fs::read(&path).unwrap().is_empty());
    }
}
