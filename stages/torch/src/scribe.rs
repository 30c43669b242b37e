//! [`Scribe`]: writes what all ranks save together, each its share, rank 0 the rest. Any thread may do it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use flow_core::Digest;
use flow_formats::torch_dist::{self, ChunkEntry, Finish, RankWriter, TrainState};
use flow_plan::TrainJob;
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{STATE, State, thin_out},
    common,
    model::params::Layout,
    optim::Stretch,
    post::Post,
    weights,
};

/// What a rank writes: stretches of the flat buffers, by what stands before their parameters' keys.
pub type Parts = Vec<(&'static str, Vec<Stretch>)>;

/// Knows all but the numbers.
#[derive(Clone, Debug)]
pub struct Scribe {
    /// What is done.
    pub job: Arc<TrainJob>,
    /// The way to the others.
    pub post: Post,
    /// This rank's share of the model.
    pub layout: Arc<Layout>,
    /// Megatron-Bridge's description of the model.
    pub run_config: Arc<str>,
}

/// What a rank tells rank 0 of what it wrote.
#[derive(Default, Serialize, Deserialize)]
struct Written {
    entries: Vec<ChunkEntry>,
    files: BTreeMap<String, Digest>,
}

impl Scribe {
    /// Writes a checkpoint and removes those that are not to be kept. What `metrics` has so far is on the disk before.
    pub fn checkpoint(&self, mut state: State, parts: &Parts, metrics: Option<&File>) -> Result<()> {
        if let Some(metrics) = metrics {
            metrics.sync_data().context("cannot write the metrics")?;
        }
        let (root, keep) = (&self.job.scratch, &self.job.training.checkpoint);
        if let Some(written) = self.write(root, state.step, parts, true)? {
            self.complete(root, &state, written.entries, &[], common::of(&self.job.training, &state))?;
            let staging = torch_dist::staging(root, state.step);
            state.files = written.files;
            digest_others(&staging, &mut state.files)?;
            let path = staging.join(STATE);
            let bytes = serde_json::to_vec(&state)?;
            File::create(&path)
                .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
                .with_context(|| format!("cannot write {}", path.display()))?;
            torch_dist::publish(root, state.step)?;
            thin_out(root, keep.keep.max(1), keep.keep_best)?;
        }
        self.named(root, state.step)
    }

    /// Writes the result: the model alone, with what lies beside the checkpoint that the run began from.
    pub fn result(&self, state: &State, parts: &Parts) -> Result<()> {
        let (_, iteration) = torch_dist::newest(&self.job.model)?;
        let mut files = Vec::new();
        collect(&iteration.join("tokenizer"), "tokenizer", &mut files)?;
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        let root = &self.job.out;
        if let Some(written) = self.write(root, state.step, parts, false)? {
            self.complete(root, state, written.entries, &files, Vec::new())?;
            torch_dist::publish(root, state.step)?;
            if self.job.model != iteration {
                let mut beside = Vec::new();
                collect(&self.job.model.join("hf"), "hf", &mut beside)?;
                for (name, bytes) in beside {
                    let path = root.join(name);
                    fs::create_dir_all(path.parent().context("a file has a directory")?)?;
                    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
                }
            }
        }
        self.named(root, state.step)
    }

    /// Writes this rank's records; gives rank 0 what all wrote, `with_digests` of the files if it is to be known.
    fn write(&self, root: &Path, step: u64, parts: &Parts, with_digests: bool) -> Result<Option<Written>> {
        if self.post.rank() == 0 {
            torch_dist::begin(root, step)?;
        }
        self.post.share(&name(root, step, "begun"), Vec::new())?;
        let mut written = Written::default();
        if !parts.is_empty() {
            let staging = torch_dist::staging(root, step);
            let mut writer = RankWriter::create(&staging, self.post.rank())?;
            for (prefix, stretches) in parts {
                weights::write(&mut writer, prefix, &self.layout, stretches)?;
            }
            if self.post.rank() == 0 {
                writer.extra_states(self.layout.layers as u64)?;
            }
            written.entries = writer.finish()?;
            for ChunkEntry { file, .. } in &written.entries {
                if with_digests && !written.files.contains_key(file) {
                    written.files.insert(file.clone(), digest(&staging.join(file))?);
                }
            }
        }
        let everyone = self.post.gather(&name(root, step, "written"), &serde_json::to_vec(&written)?)?;
        if self.post.rank() != 0 {
            return Ok(None);
        }
        let mut all = Written::default();
        for bytes in everyone {
            let one: Written = serde_json::from_slice(&bytes)?;
            all.entries.extend(one.entries);
            all.files.extend(one.files);
        }
        Ok(Some(all))
    }

    /// What rank 0 writes beside the records.
    fn complete(
        &self,
        root: &Path,
        state: &State,
        entries: Vec<ChunkEntry>,
        files: &[(&str, &[u8])],
        common: common::Common,
    ) -> Result<()> {
        let training = &self.job.training;
        let train_state = TrainState {
            step: state.step,
            consumed_train_samples: state.step * training.global_batch_size as u64,
            skipped_train_samples: 0,
            consumed_valid_samples: state.validations * training.limit_val_batches * training.global_batch_size as u64,
            floating_point_operations_so_far: 0.0,
            do_train: true,
            do_valid: true,
            do_test: false,
        };
        let run_config = self.run_config.to_string();
        torch_dist::complete(root, state.step, entries, &Finish { run_config, train_state, common, files })
    }

    /// Waits until rank 0 is done.
    fn named(&self, root: &Path, step: u64) -> Result<()> {
        self.post.share(&name(root, step, "named"), Vec::new()).map(drop)
    }
}

/// What the ranks say of a save to each other.
fn name(root: &Path, step: u64, what: &str) -> String {
    format!("saved/{}/{step}/{what}", root.display())
}

/// Of a file that was just written. By one thread: training goes on beside it.
fn digest(path: &Path) -> Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// Adds the files of a directory that are not known yet.
fn digest_others(dir: &Path, known: &mut BTreeMap<String, Digest>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let name = entry?.file_name().into_string().ok().context("a checkpoint's files have names of ours")?;
        if !known.contains_key(&name) {
            known.insert(name.clone(), digest(&dir.join(name))?);
        }
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
