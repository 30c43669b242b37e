//! [`Weights`]: the tensors of a model, in whichever of the formats it lies, read in pieces.
//!
//! A Megatron checkpoint can be seen under Hugging Face's names ([`Weights::under_hf_names`]): the same table that converts it
//! says which rows lie where. So any two formats can be compared without a byte being written.

mod compare;
mod inspect;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use flow_formats::{
    DType,
    safetensors::{Index, Tensor, read_header},
    torch_dist::{self, Chunk, Reader},
};
use serde_json::Value as Json;

use crate::{
    facts,
    models::{self, Layout, Model},
};

pub use compare::{Comparison, Difference, Outcome, compare};
pub use inspect::{Inspection, inspect};

/// A model's tensors.
#[derive(Debug)]
pub struct Weights {
    /// What they lie in.
    pub format: String,
    /// The `config.json` that lies with them.
    pub config: Option<Json>,
    /// Type and shape by name.
    pub tensors: BTreeMap<String, (DType, Vec<u64>)>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Files {
        places: BTreeMap<String, Tensor>,
        files: BTreeMap<PathBuf, File>,
    },
    Checkpoint(Reader),
    /// Under Hugging Face's names: rows by the tensor's place in the layout.
    Seen {
        reader: Reader,
        layout: Layout,
        rows: BTreeMap<String, Vec<usize>>,
    },
}

impl Weights {
    /// Opens a Hugging Face directory, a `.safetensors` file, a Megatron checkpoint (its newest iteration) or one
    /// iteration of it.
    ///
    /// # Errors
    /// It is none of these, or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let found = files_of(path)?;
        if found.keys().any(|name| name.ends_with(".safetensors")) {
            let places = match path.is_dir() {
                true => Index::read(&found)?.tensors,
                false => read_header(path)?,
            };
            let mut files = BTreeMap::new();
            for Tensor { file, .. } in places.values() {
                if !files.contains_key(file) {
                    let open = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
                    files.insert(file.clone(), open);
                }
            }
            let tensors = places.iter().map(|(name, at)| (name.clone(), (at.dtype, at.shape.clone()))).collect();
            let config = found.get("config.json").map(|path| facts::read_json(path)).transpose()?;
            let format = "Hugging Face (safetensors)".to_owned();
            return Ok(Self { format, config, tensors, source: Source::Files { places, files } });
        }
        let (iteration, dir) = torch_dist::newest(path)
            .with_context(|| format!("{} holds neither *.safetensors nor a Megatron checkpoint", path.display()))?;
        let reader = Reader::open(&dir)?;
        let places = [dir.join("hf/config.json"), dir.join("../hf/config.json")];
        let config = places.iter().find(|path| path.is_file()).map(|path| facts::read_json(path)).transpose()?;
        let tensors = reader.tensors().iter().map(|(key, it)| (key.clone(), (it.dtype, it.shape.clone()))).collect();
        let format = match models::has_megatron_keys(&reader) {
            true => format!("Megatron ({}), iteration {iteration}", reader.container()),
            false => "PyTorch (torch.distributed.checkpoint)".to_owned(),
        };
        Ok(Self { format, config, tensors, source: Source::Checkpoint(reader) })
    }

    /// In how many pieces a checkpoint lies, and in how many files.
    #[must_use]
    pub fn cut(&self) -> Option<(usize, usize)> {
        let Source::Checkpoint(reader) = &self.source else { return None };
        let chunks = || reader.tensors().values().flat_map(|tensor| &tensor.chunks);
        Some((chunks().count(), chunks().map(Chunk::file).collect::<BTreeSet<_>>().len()))
    }

    /// What of a checkpoint's records was not read is, if the rest of them was: their checksums are compared.
    ///
    /// # Errors
    /// One is damaged.
    pub fn check_rest(&self) -> Result<()> {
        match &self.source {
            Source::Files { .. } => Ok(()),
            Source::Checkpoint(reader) | Source::Seen { reader, .. } => reader.check_rest(),
        }
    }

    /// Whether two models' tensors have names of one kind.
    #[must_use]
    pub fn is_named_as(&self, other: &Self) -> bool {
        match (&self.source, &other.source) {
            (Source::Checkpoint(a), Source::Checkpoint(b)) => {
                models::has_megatron_keys(a) == models::has_megatron_keys(b)
            }
            (Source::Checkpoint(_), _) | (_, Source::Checkpoint(_)) => false,
            _ => true,
        }
    }

    /// The same tensors as the Hugging Face model of this config names them. What the config's family does not have
    /// (the optimizer's state) is left out; padding of the vocabulary too.
    ///
    /// # Errors
    /// The family is not known, or the checkpoint has not what the config says.
    pub fn under_hf_names(self, config: &Json) -> Result<Self> {
        let Source::Checkpoint(reader) = self.source else { return Ok(self) };
        let layout = Model::of(config)?.layout_in(&reader)?;
        let mut rows: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (i, row) in layout.rows.iter().enumerate() {
            rows.entry(layout.hf[row.hf].name.clone()).or_default().push(i);
        }
        let mut tensors = BTreeMap::new();
        for (name, rows) in &rows {
            let row = &layout.rows[rows[0]];
            let target = &layout.megatron[row.target];
            // One that is missing is left out here too, and is then said to be missing.
            let Some(tensor) = reader.tensor(&target.key) else { continue };
            let same = |(i, (found, wanted)): (usize, (&u64, &u64))| {
                found == wanted || i == 0 && target.vocabulary && found > wanted
            };
            ensure!(
                tensor.shape.len() == target.shape.len()
                    && tensor.shape.iter().zip(&target.shape).enumerate().all(same),
                "`{}` has shape {:?} in the checkpoint, and config.json makes it {:?}",
                target.key,
                tensor.shape,
                target.shape
            );
            tensors.insert(name.clone(), (tensor.dtype, layout.hf[row.hf].shape.clone()));
        }
        Ok(Self { tensors, source: Source::Seen { reader, layout, rows }, ..self })
    }

    /// Reads rows `from..from + count` of a tensor, where a row is what the last of several axes spans, or one element.
    ///
    /// # Errors
    /// There is no such tensor, or it cannot be read.
    pub fn read(&self, name: &str, from: u64, count: u64, out: &mut [u8]) -> Result<()> {
        let (dtype, shape) = self.tensors.get(name).with_context(|| format!("there is no `{name}`"))?;
        let width = width(shape) * dtype.size();
        ensure!(out.len() as u64 == count * width, "`{name}`: a buffer of {} bytes for {count} rows", out.len());
        match &self.source {
            Source::Files { places, files } => {
                let place = &places[name];
                files[&place.file]
                    .read_exact_at(out, place.at + from * width)
                    .with_context(|| format!("cannot read `{name}` from {}", place.file.display()))
            }
            Source::Checkpoint(reader) => read_rows(reader, name, shape, (from, count), width, out),
            Source::Seen { reader, layout, rows } => {
                for &run in &rows[name] {
                    let run = &layout.rows[run];
                    let (low, high) = (from.max(run.hf_row), (from + count).min(run.hf_row + run.rows));
                    if low >= high {
                        continue;
                    }
                    let target = &layout.megatron[run.target];
                    let (mut start, mut size) = target.chunks[run.chunk].clone();
                    start[target.axis] += run.row + low - run.hf_row;
                    size[target.axis] = high - low;
                    let part = &mut out[((low - from) * width) as usize..((high - from) * width) as usize];
                    reader.read(&target.key, &start, &size, part)?;
                }
                Ok(())
            }
        }
    }
}

/// Elements of a row.
fn width(shape: &[u64]) -> u64 {
    match shape {
        [] | [_] => 1,
        [.., last] => *last,
    }
}

/// How many rows there are.
fn rows(shape: &[u64]) -> u64 {
    match shape {
        [one] => *one,
        [all @ .., _] => all.iter().product(),
        [] => 1,
    }
}

/// Rows of a Megatron tensor, counted through all its axes but the last.
fn read_rows(
    reader: &Reader,
    key: &str,
    shape: &[u64],
    (mut from, mut count): (u64, u64),
    width: u64,
    mut out: &mut [u8],
) -> Result<()> {
    let (Some(last), true) = (shape.len().checked_sub(2), shape.len() >= 2) else {
        let (start, size) = if shape.is_empty() { (vec![], vec![]) } else { (vec![from], vec![count]) };
        return reader.read(key, &start, &size, out);
    };
    while count > 0 {
        // As far as one index of the outer axes goes: that is a box.
        let (mut outer, inner) = (from / shape[last], from % shape[last]);
        let n = count.min(shape[last] - inner);
        let (mut start, mut size) = (vec![0; shape.len()], vec![1; shape.len()]);
        for axis in (0..last).rev() {
            start[axis] = outer % shape[axis];
            outer /= shape[axis];
        }
        (start[last], size[last], size[last + 1]) = (inner, n, shape[last + 1]);
        let (part, rest) = out.split_at_mut((n * width) as usize);
        reader.read(key, &start, &size, part)?;
        (out, from, count) = (rest, from + n, count - n);
    }
    Ok(())
}

/// The files of a directory, or the file itself, by name.
fn files_of(path: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let named = |path: PathBuf| Some((path.file_name()?.to_str()?.to_owned(), path));
    if path.is_file() {
        return Ok(named(path.to_owned()).into_iter().collect());
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    Ok(paths.into_iter().filter(|path| path.is_file()).filter_map(named).collect())
}
