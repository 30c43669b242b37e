//! Megatron-LM's older checkpoints: `mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt`, one `torch.save` a rank, seen as the chunks of
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
use crate::{
    DType,
    dtype::byte_len,
    pickle::View,
    zip::{Archive, Member},
};

const RANK: &str = "mp_rank_";
const FILE: &str = "model_optim_rng.pt";

/// Whether an iteration's directory is of this kind.
pub(super) fn is_legacy(dir: &Path) -> bool {
    ["mp_rank_00", "mp_rank_00_000", "mp_rank_00_000_000"].iter().any(|rank| dir.join(rank).join(FILE).is_file())
}

/// Whose file it is. Ordered as the parts of a tensor are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    tensor: u64,
    stage: u64,
    experts: u64,
}

/// A tensor in a rank's file.
struct Part {
    dtype: DType,
    shape: Vec<u64>,
    /// Its first byte in the file.
    at: u64,
    /// The member of the file's archive that it lies in.
    inside: Member,
    file: String,
}

/// A stage of the pipeline: its layers are numbered from 0 in its files.
type Stage = BTreeMap<String, Vec<Part>>;

/// Reads the tables of contents of all ranks' files.
///
/// # Errors
/// A rank is missing, or what it holds is not what is understood here: with the file and the name.
pub(super) fn read(dir: &Path) -> Result<Table> {
    let names = names(dir)?;
    let (_, first) = names.first().context("it has no ranks")?;
    let args = look(dir, first, |_, root| Ok(Args::of(root)))?;
    let ranks = args.ranks(names)?;
    let count = |of: fn(&Rank) -> u64| ranks.keys().map(of).max().map_or(0, |last| last + 1);
    let tensor = count(|rank| rank.tensor);
    // Where experts are cut otherwise, not every rank of either has a file for every rank of the other.
    ensure!(
        args.expert_tensor.is_none_or(|it| it == tensor),
        "its experts are cut over {} tensor ranks, and the rest over {tensor}, which is not read from this format: load and \
         save it once with Megatron-LM and `--ckpt-format torch_dist`",
        args.expert_tensor.unwrap_or_default()
    );
    let all = tensor * count(|rank| rank.stage) * count(|rank| rank.experts);
    ensure!(ranks.len() as u64 == all, "{} of {all} ranks are there", ranks.len());
    // Sorted: the parts of a tensor come in the order of the tensor ranks. Each stage may hold several pieces of the
    // model (virtual stages): the first piece of every stage comes before the second of any.
    let mut stages: BTreeMap<(usize, u64), Stage> = BTreeMap::new();
    for (rank, name) in &ranks {
        look(dir, name, |archive, root| {
            version(root)?;
            for (piece, model) in models(root)?.into_iter().enumerate() {
                let tensors = tensors(model, archive, &format!("{name}/{FILE}"))?;
                let experts = tensors.iter().filter_map(|(name, _)| Some(name.expert.as_ref()?.0 + 1)).max();
                let stage = stages.entry((piece, rank.stage)).or_default();
                for (name, part) in tensors {
                    let key = match name.expert {
                        Some((expert, below)) => {
                            let number = rank.experts * experts.unwrap_or(0) + expert;
                            format!("{}experts.experts.{number}.{below}", name.stem)
                        }
                        // The ranks of experts have one copy each of all else.
                        None if rank.experts > 0 => continue,
                        None => name.stem,
                    };
                    stage.entry(key).or_default().push(part);
                }
            }
            Ok(())
        })?;
    }
    let mut table = Table::default();
    let mut layers = 0;
    for stage in stages.into_values() {
        let mut here = 0;
        for (key, parts) in stage {
            // A tied model's last stage has a copy of the embedding.
            if args.tied && key == "output_layer.weight" {
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

/// Looks into a rank's file.
fn look<T>(dir: &Path, rank: &str, take: impl FnOnce(&Archive, View<'_>) -> Result<T>) -> Result<T> {
    let path = dir.join(rank).join(FILE);
    let take = || -> Result<T> {
        let open = File::open(&path)?;
        let archive = Archive::open(&open, 0, open.metadata()?.len())?;
        let pickle = read_pickle(&archive, &open)?;
        take(&archive, pickle.root())
    };
    take().with_context(|| format!("cannot use {}", path.display()))
}

/// What the arguments of the training, which are in every file, say of the ranks; not every version has all of them.
struct Args {
    tied: bool,
    stages: Option<u64>,
    experts: Option<u64>,
    expert_tensor: Option<u64>,
}

impl Args {
    fn of(root: View<'_>) -> Self {
        let field = |name: &str| root.get("args").and_then(View::state).and_then(|args| args.get(name));
        let size = |name: &str| field(name).and_then(View::as_u64);
        Self {
            tied: field("untie_embeddings_and_output_weights").and_then(View::as_bool) == Some(false),
            stages: size("pipeline_model_parallel_size"),
            experts: size("expert_model_parallel_size"),
            expert_tensor: size("expert_tensor_parallel_size").filter(|_| size("num_experts").is_some()),
        }
    }

    /// The directories by rank. Of two numbers the second is the stage's; or, if there is only one stage, the experts'.
    fn ranks(&self, names: Vec<(Vec<u64>, String)>) -> Result<BTreeMap<Rank, String>> {
        let one_stage = self.stages == Some(1) && self.experts.is_some_and(|ranks| ranks > 1);
        let rank = |(numbers, name): (Vec<u64>, String)| {
            let (tensor, stage, experts) = match numbers[..] {
                [tensor] => (tensor, 0, 0),
                [tensor, experts] if one_stage => (tensor, 0, experts),
                [tensor, stage] => (tensor, stage, 0),
                [tensor, stage, experts] => (tensor, stage, experts),
                _ => bail!("{name} is not the name of a rank"),
            };
            ensure!(numbers.iter().all(|&number| number < 1 << 16), "{name} is not the name of a rank");
            Ok((Rank { tensor, stage, experts }, name))
        };
        names.into_iter().map(rank).collect()
    }
}

/// The names of the ranks' directories, sorted, and the numbers in them.
fn names(dir: &Path) -> Result<Vec<(Vec<u64>, String)>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let Some(numbers) = name.strip_prefix(RANK) else { continue };
        let numbers = numbers.split('_').map(str::parse).collect::<Result<_, _>>();
        names.push((numbers.with_context(|| format!("{name} is not the name of a rank"))?, name));
    }
    names.sort();
    Ok(names)
}

/// A key in a file, taken apart.
struct Name {
    /// Of a tensor of an expert: what stands before `experts`. Of any other: the key.
    stem: String,
    /// The expert's number in this file, and what of it this is.
    expert: Option<(u64, String)>,
}

impl Name {
    fn read(key: &str) -> Result<Self> {
        let Some((stem, below)) = key.split_once("experts.").filter(|(stem, _)| stem.ends_with("mlp.")) else {
            return Ok(Self { stem: key.to_owned(), expert: None });
        };
        ensure!(
            below != "weight1" && below != "weight2",
            "the weights of experts lie in it as one matrix, turned round (`--moe-use-legacy-grouped-gemm`): load and save it \
             once with Megatron-LM and `--ckpt-format torch_dist`"
        );
        // One module an expert; or one for all, with a weight for each.
        let expert = match below.strip_prefix("local_experts.") {
            Some(rest) => rest.split_once('.').map(|(number, below)| (number, below.to_owned())),
            None => below.rsplit_once(".weight").map(|(linear, number)| (number, format!("{linear}.weight"))),
        };
        let expert = expert.and_then(|(number, below)| Some((u64::from(number.parse::<u16>().ok()?), below)));
        ensure!(expert.is_some(), "which of its experts, and what of it, is not known");
        Ok(Self { stem: stem.to_owned(), expert })
    }
}

/// The tensors of a model in a rank's file.
fn tensors(model: View<'_>, archive: &Archive, file: &str) -> Result<Vec<(Name, Part)>> {
    let mut tensors = Vec::new();
    for (key, value) in model.entries().context("the model is no dictionary")? {
        let key = key.as_str().context("a key that is no string")?;
        // Empty; or of 8-bit arithmetic, which no other format keeps.
        if key.ends_with("_extra_state") {
            continue;
        }
        ensure!(value.entries().is_none(), "`{key}` is a dictionary: it is no checkpoint of Megatron-Core's models");
        let Some(found) = Found::read(value) else { continue };
        ensure!(found.is_contiguous(), "the elements of `{key}` do not lie in a row");
        let (at, len, inside) = found.place(archive).with_context(|| format!("`{key}`"))?;
        ensure!(byte_len(found.dtype, &found.shape) == Some(len), "`{key}` has no shape");
        let name = Name::read(key).with_context(|| format!("`{key}`"))?;
        tensors.push((name, Part { dtype: found.dtype, shape: found.shape, at, inside, file: file.to_owned() }));
    }
    Ok(tensors)
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
            (
                Region { start, size },
                Place { file: part.file.clone(), at: part.at + skip, len, inside: Some(part.inside) },
            )
        })
        .collect();
    RawTensor { dtype, shape, chunks }
}
