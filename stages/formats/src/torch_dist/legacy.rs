//! Megatron-LM's older checkpoints: `mp_rank_TT[_PPP]/model_optim_rng.pt`, one `torch.save` a rank, seen as the chunks of
//! one table. Which part of a tensor a rank has is not written in them; it follows from the tensor's name.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    metadata::{Place, RawTensor, Table},
    payload::{Found, read_pickle},
    region::Region,
};
use crate::{DType, dtype::byte_len, pickle::View, zip::Archive};

const RANK: &str = "mp_rank_";
const FILE: &str = "model_optim_rng.pt";

/// Whether an iteration's directory is of this kind.
pub(super) fn is_legacy(dir: &Path) -> bool {
    ["mp_rank_00", "mp_rank_00_000"].iter().any(|rank| dir.join(rank).join(FILE).is_file())
}

/// A tensor in a rank's file.
struct Part {
    dtype: DType,
    shape: Vec<u64>,
    /// Its first byte in the file.
    at: u64,
    file: String,
}

/// A stage of the pipeline: its layers are numbered from 0 in its files.
type Stage = BTreeMap<String, Vec<Part>>;

/// Reads the tables of contents of all ranks' files.
///
/// # Errors
/// A rank is missing, or what it holds is not what is understood here: with the file and the name.
pub(super) fn read(dir: &Path) -> Result<Table> {
    let ranks = ranks(dir)?;
    let (tensor, pipeline) = ranks.keys().fold((0, 0), |(t, p), rank| (t.max(rank.0 + 1), p.max(rank.1 + 1)));
    ensure!(ranks.len() as u64 == tensor * pipeline, "{} of {} ranks are there", ranks.len(), tensor * pipeline);
    // Sorted: the parts of a tensor come in the order of the tensor ranks. Each stage may hold several pieces of the
    // model (virtual stages): the first piece of every stage comes before the second of any.
    let mut stages: BTreeMap<(usize, u64), Stage> = BTreeMap::new();
    let mut tied = false;
    for (&(_, stage), name) in &ranks {
        let file = format!("{name}/{FILE}");
        let mut take = || -> Result<()> {
            let open = File::open(dir.join(&file))?;
            let archive = Archive::open(&open, 0, open.metadata()?.len())?;
            let pickle = read_pickle(&archive, &open)?;
            let root = pickle.root();
            version(root)?;
            let untied =
                root.get("args").and_then(View::state).and_then(|args| args.get("untie_embeddings_and_output_weights"));
            tied |= untied.and_then(View::as_bool) == Some(false);
            for (piece, model) in models(root)?.into_iter().enumerate() {
                for (key, value) in model.entries().context("the model is no dictionary")? {
                    let key = key.as_str().context("a key that is no string")?;
                    ensure!(
                        value.entries().is_none(),
                        "`{key}` is a dictionary: it is no checkpoint of Megatron-Core's models"
                    );
                    let Some(found) = Found::read(value) else { continue }; // an empty state
                    ensure!(found.is_contiguous(), "the elements of `{key}` do not lie in a row");
                    let (at, len) = found.place(&archive).with_context(|| format!("`{key}`"))?;
                    ensure!(byte_len(found.dtype, &found.shape) == Some(len), "`{key}` has no shape");
                    let part = Part { dtype: found.dtype, shape: found.shape, at, file: file.clone() };
                    let stage = stages.entry((piece, stage)).or_default();
                    stage.entry(key.to_owned()).or_default().push(part);
                }
            }
            Ok(())
        };
        take().with_context(|| format!("cannot use {}", dir.join(&file).display()))?;
    }
    let mut table = Table::default();
    let mut layers = 0;
    for stage in stages.into_values() {
        let mut here = 0;
        for (key, parts) in stage {
            // A tied model's last stage has a copy of the embedding.
            if tied && key == "output_layer.weight" {
                continue;
            }
            let numbered = key.strip_prefix("decoder.layers.").and_then(|rest| rest.split_once('.'));
            let name = match numbered.and_then(|(layer, rest)| Some((u64::from(layer.parse::<u32>().ok()?), rest))) {
                Some((layer, rest)) => {
                    here = here.max(layer + 1);
                    format!("decoder.layers.{}.{rest}", layers + layer)
                }
                None => key.clone(),
            };
            ensure!(parts.len() as u64 == tensor, "`{key}` is on {} of {tensor} tensor ranks", parts.len());
            let whole = join(&key, &parts).with_context(|| format!("`{key}`"))?;
            ensure!(table.tensors.insert(name.clone(), whole).is_none(), "`{name}` is on two stages of the pipeline");
        }
        layers += here;
    }
    Ok(table)
}

/// Megatron-LM has changed the order of the rows of query, key and value, and gives the order with the file: what says nothing is
/// the oldest.
fn version(root: View<'_>) -> Result<()> {
    let version = root.get("checkpoint_version");
    let version = version.and_then(|it| it.as_float().or_else(|| it.as_int().map(|int| int as f64))).unwrap_or(0.0);
    ensure!(
        version >= 3.0,
        "its `checkpoint_version` is {version:?}: before 3.0 the rows of query, key and value may stand in another order; load \
         and save it once with Megatron-LM, which puts them in order"
    );
    Ok(())
}

/// (tensor rank, stage) → directory.
fn ranks(dir: &Path) -> Result<BTreeMap<(u64, u64), String>> {
    let mut ranks = BTreeMap::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let Some(numbers) = name.strip_prefix(RANK) else { continue };
        let numbers = numbers.split('_').map(str::parse).collect::<Result<Vec<u64>, _>>();
        let rank = match numbers.as_deref() {
            Ok([tensor]) => (*tensor, 0),
            Ok([tensor, stage]) => (*tensor, *stage),
            Ok([_, _, _]) => bail!("{name} is a rank of experts, which are not read from this format"),
            _ => bail!("{name} is not the name of a rank"),
        };
        ensure!(rank.0 < 1 << 16 && rank.1 < 1 << 16, "{name} is not the name of a rank");
        ranks.insert(rank, name);
    }
    Ok(ranks)
}

/// The pieces of the model that a rank holds.
fn models(root: View<'_>) -> Result<Vec<View<'_>>> {
    if let Some(model) = root.get("model") {
        return Ok(vec![model]);
    }
    let pieces: Vec<_> = (0..).map_while(|i| root.get(&format!("model{i}"))).collect();
    ensure!(!pieces.is_empty(), "it holds no `model`");
    Ok(pieces)
}

/// One tensor of all tensor ranks' parts.
fn join(key: &str, parts: &[Part]) -> Result<RawTensor> {
    let first = &parts[0];
    for part in parts {
        ensure!(
            (part.dtype, &part.shape) == (first.dtype, &first.shape),
            "the ranks do not agree: {:?} and {:?}",
            first.shape,
            part.shape
        );
    }
    let ends = |names: &[&str]| names.iter().any(|name| key.ends_with(name));
    ensure!(!key.contains(".experts."), "experts are not read from this format");
    // The axis that is split over ranks, and into how many blocks a rank's part falls: fc1 has the gate's and the other's.
    let (axis, blocks) =
        if ends(&["word_embeddings.weight", "output_layer.weight", "linear_qkv.weight", "linear_qkv.bias"]) {
            (0, 1)
        } else if ends(&["linear_fc1.weight"]) {
            (0, 2)
        } else if ends(&["linear_proj.weight", "linear_fc2.weight"]) {
            (1, 1)
        } else if ends(&["norm.weight", "norm_weight", "router.weight"]) {
            return Ok(raw(
                first.dtype,
                first.shape.clone(),
                vec![(vec![0; first.shape.len()], first.shape.clone(), first, 0)],
            ));
        } else {
            bail!("how it is split over ranks is not known");
        };
    let (ranks, mut whole) = (parts.len() as u64, first.shape.clone());
    ensure!(whole.len() > axis && whole[axis].is_multiple_of(blocks), "shape {whole:?}");
    let block = whole[axis] / blocks;
    whole[axis] = whole[axis].checked_mul(ranks).context("too large")?;
    byte_len(first.dtype, &whole).context("too large")?;
    let mut chunks = Vec::new();
    for (rank, part) in (0..).zip(parts) {
        for i in 0..blocks {
            let (mut start, mut size) = (vec![0; whole.len()], part.shape.clone());
            (start[axis], size[axis]) = ((i * ranks + rank) * block, block);
            let skip = i * size.iter().product::<u64>() * part.dtype.size();
            chunks.push((start, size, part, skip));
        }
    }
    Ok(raw(first.dtype, whole, chunks))
}

type Cut<'a> = (Vec<u64>, Vec<u64>, &'a Part, u64);

fn raw(dtype: DType, shape: Vec<u64>, chunks: Vec<Cut<'_>>) -> RawTensor {
    let chunks = chunks
        .into_iter()
        .map(|(start, size, part, skip)| {
            let len = size.iter().product::<u64>() * dtype.size();
            (Region { start, size }, Place { file: part.file.clone(), at: part.at + skip, len, bare: true })
        })
        .collect();
    RawTensor { dtype, shape, chunks }
}
