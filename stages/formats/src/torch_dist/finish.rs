//! [`finish`]: the last rank's work that makes records a checkpoint; [`complete`] and [`publish`] are its halves.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use flow_core::is_safe_name;

use super::{
    LATEST, LATEST_STATE, METADATA, iteration_dir,
    metadata::encode,
    payload::{tensor, torch_save},
    staging,
    writer::ChunkEntry,
};
use crate::{DType, pickle::Value};

/// What `content_metadata` in `common.pt` says of a model: how its keys are to be read.
pub const CONTENT: [(&str, Value); 2] =
    [("singleton_local_shards", Value::Bool(false)), ("chained_optim_avoid_prefix", Value::Bool(true))];

const STATE: &str = "train_state.pt";

/// Where training stands, as Megatron-Bridge keeps it in `train_state.pt`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainState {
    /// Optimizer steps done.
    pub step: u64,
    /// Sequences trained on.
    pub consumed_train_samples: u64,
    /// Sequences passed over.
    pub skipped_train_samples: u64,
    /// Sequences validated on.
    pub consumed_valid_samples: u64,
    /// Floating-point operations done.
    pub floating_point_operations_so_far: f32,
    /// Training is on.
    pub do_train: bool,
    /// Validation is on.
    pub do_valid: bool,
    /// Testing is on.
    pub do_test: bool,
}

impl TrainState {
    /// The bytes of `train_state.pt`: a dictionary of tensors without axes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut storages = Vec::new();
        let mut entries = Vec::new();
        let mut put = |name, dtype, bytes: &[u8]| {
            entries.push((name, tensor(dtype, &[], storages.len())));
            storages.push(bytes.to_vec());
        };
        for (name, count) in [
            ("step", self.step),
            ("consumed_train_samples", self.consumed_train_samples),
            ("skipped_train_samples", self.skipped_train_samples),
            ("consumed_valid_samples", self.consumed_valid_samples),
        ] {
            // 0.3.1 writes 32 bits and newer versions 64; both read either, so only a long training needs 64.
            match i32::try_from(count) {
                Ok(count) => put(name, DType::I32, &count.to_le_bytes()),
                Err(_) => put(name, DType::I64, &count.to_le_bytes()),
            }
        }
        let operations = self.floating_point_operations_so_far;
        put("floating_point_operations_so_far", DType::F32, &operations.to_le_bytes());
        for (name, truth) in [("do_train", self.do_train), ("do_valid", self.do_valid), ("do_test", self.do_test)] {
            put(name, DType::Bool, &[u8::from(truth)]);
        }
        torch_save("train_state", &Value::dict(entries), &storages)
    }
}

/// What an iteration holds besides its records.
#[derive(Clone, Debug, Default)]
pub struct Finish<'a> {
    /// `run_config.yaml`: Megatron-Bridge's description of the model.
    pub run_config: String,
    /// Where training stands.
    pub train_state: TrainState,
    /// More entries of `common.pt`, which holds what no tensor does. One of a name that is there anyway replaces it.
    pub common: Vec<(&'static str, Value)>,
    /// More files inside of the iteration's directory: name (with `/` for directories in it), content.
    pub files: &'a [(&'a str, &'a [u8])],
}

/// Completes an iteration from what all ranks' [`RankWriter::finish`](super::RankWriter::finish) gave: writes the
/// table and the small files, and only then gives the directory its name and makes it the newest. Killed at any
/// instant, the checkpoint before this one is whole.
///
/// # Errors
/// The chunks do not cover every tensor exactly once, or the disk fails.
pub fn finish(root: &Path, iteration: u64, entries: Vec<ChunkEntry>, more: &Finish<'_>) -> Result<()> {
    complete(root, iteration, entries, more)?;
    publish(root, iteration)
}

/// Writes the table and the small files of an iteration beside its records. It has no name yet: the caller may add to its
/// [`staging`] directory.
///
/// # Errors
/// The chunks do not cover every tensor exactly once, or the disk fails.
pub fn complete(root: &Path, iteration: u64, mut entries: Vec<ChunkEntry>, more: &Finish<'_>) -> Result<()> {
    entries.sort_by(|a, b| a.key.cmp(&b.key).then(a.offset.cmp(&b.offset)));
    for group in entries.chunk_by(|a, b| a.key == b.key) {
        tiles(group).with_context(|| format!("`{}` cannot be saved", group[0].key))?;
    }
    let dir = staging(root, iteration);
    let place = iteration_dir(root, iteration);
    let name = place.file_name().and_then(|name| name.to_str()).context("an iteration has a name")?;
    let write = |file: &str, bytes: &[u8]| {
        ensure!(is_safe_name(file), "`{file}` is no name for a file of a checkpoint");
        let path = dir.join(file);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        write_synced(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };
    for (file, bytes) in more.files {
        write(file, bytes)?;
    }
    write(STATE, &more.train_state.to_bytes())?;
    write("run_config.yaml", more.run_config.as_bytes())?;
    write("common.pt", &torch_save("common", &common(iteration, &more.common), &[]))?;
    write(
        "metadata.json",
        br#"{"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}"#,
    )?;
    write(METADATA, &encode(&entries, name, &save_id(&entries)))
}

/// Gives a completed iteration its name and makes it the newest.
///
/// # Errors
/// It is not complete, or the disk fails.
pub fn publish(root: &Path, iteration: u64) -> Result<()> {
    let dir = staging(root, iteration);
    let place = iteration_dir(root, iteration);
    let name = place.file_name().and_then(|name| name.to_str()).context("an iteration has a name")?;
    let state = fs::read(dir.join(STATE)).with_context(|| format!("{} is not complete", dir.display()))?;
    sync_dir(&dir)?;
    // A crash between these two leaves the old iteration aside, and LATEST naming what is no longer there: so an
    // iteration of the same number is only ever replaced by the run that writes it again and will do so once more.
    let old = root.join(format!("{name}.old.tmp"));
    remove_dir(&old)?;
    match fs::rename(&place, &old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", place.display()));
        }
        _ => {}
    }
    fs::rename(&dir, &place).with_context(|| format!("cannot name {}", place.display()))?;
    remove_dir(&old)?;
    sync_dir(root)?;
    replace(root, LATEST_STATE, &state)?;
    replace(root, LATEST, iteration.to_string().as_bytes())?;
    sync_dir(root)
}

fn common(iteration: u64, more: &[(&'static str, Value)]) -> Value {
    let mut entries = vec![
        ("checkpoint_version", Value::Float(3.0)),
        ("iteration", Value::Int(iteration as i64)),
        ("content_metadata", Value::dict(CONTENT)),
    ];
    entries.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
    entries.extend_from_slice(more);
    Value::dict(entries)
}

/// An identifier in the form of DCP's, which are random: from what the table says, so that the same content has the
/// same bytes.
fn save_id(entries: &[ChunkEntry]) -> String {
    let mut hasher = blake3::Hasher::new();
    for entry in entries {
        hasher.update(format!("{entry:?}\n").as_bytes());
    }
    let hex = hasher.finalize().to_hex();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32])
}

/// The chunks of one key cover it exactly once.
fn tiles(chunks: &[ChunkEntry]) -> Result<()> {
    let first = &chunks[0];
    for chunk in chunks {
        ensure!(
            (chunk.dtype, &chunk.shape) == (first.dtype, &first.shape),
            "the ranks do not agree: {:?} {:?} and {:?} {:?}",
            first.dtype,
            first.shape,
            chunk.dtype,
            chunk.shape
        );
    }
    if first.dtype.is_none() {
        ensure!(chunks.len() == 1, "{} ranks write this object", chunks.len());
        return Ok(());
    }
    // Inside of the tensor (which was checked when they were written), pairwise apart, and together as large as it.
    let elements: u64 = chunks.iter().map(|chunk| chunk.size.iter().product::<u64>()).sum();
    let whole: u64 = first.shape.iter().product();
    for (i, a) in chunks.iter().enumerate() {
        // Sorted by offset: whoever begins behind the end of this one on axis 0 is apart, and so is everyone after.
        let end = a.offset.first().map_or(1, |start| start + a.size[0]);
        for b in chunks[i + 1..].iter().take_while(|b| b.offset.first().is_none_or(|&start| start < end)) {
            let apart = (0..a.offset.len()).any(|axis| {
                a.offset[axis] + a.size[axis] <= b.offset[axis] || b.offset[axis] + b.size[axis] <= a.offset[axis]
            });
            ensure!(
                apart,
                "the chunks at {:?} ({}) and {:?} ({}) overlap: is a replica written too?",
                a.offset,
                a.file,
                b.offset,
                b.file
            );
        }
    }
    ensure!(elements == whole, "{elements} of its {whole} elements were written");
    Ok(())
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn replace(root: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let temporary = root.join(format!("{name}.tmp"));
    let path = root.join(name);
    write_synced(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("cannot write {}", dir.display()))
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
