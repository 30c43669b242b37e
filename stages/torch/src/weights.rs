//! Weights between tensors and files: Megatron's boxes, Hugging Face's names.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use flow_formats::{
    DType,
    safetensors::Index,
    torch_dist::{RankWriter, Reader},
};
use flow_plan::{ModelConfig, Precision};
use tch::{Kind, Tensor, no_grad};

use crate::{
    model::params::{EMBEDDING, FINAL_NORM, LAYER, Layout, OUTPUT, Param, Share, Split},
    optim::Stretch,
};

/// The element type of a precision.
pub fn kind(precision: Precision) -> Kind {
    match precision {
        Precision::Fp32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    }
}

/// As [`kind`], as files name it.
pub fn dtype(precision: Precision) -> DType {
    match precision {
        Precision::Fp32 => DType::F32,
        Precision::Bf16 => DType::Bf16,
    }
}

/// The type of stored elements as libtorch names it.
fn kind_of(dtype: DType) -> Result<Kind> {
    Ok(match dtype {
        DType::F32 => Kind::Float,
        DType::Bf16 => Kind::BFloat16,
        DType::F16 => Kind::Half,
        DType::F64 => Kind::Double,
        other => bail!("weights of type {} cannot be trained", other.torch()),
    })
}

fn dtype_of(kind: Kind) -> Result<DType> {
    Ok(match kind {
        Kind::Float => DType::F32,
        Kind::BFloat16 => DType::Bf16,
        other => bail!("{other:?} is not written"),
    })
}

/// Reads the parameters (under `prefix` + their keys) as far as they lie in `stretches`, converting to their type.
pub fn read(reader: &Reader, prefix: &str, layout: &Layout, stretches: &[Stretch]) -> Result<()> {
    let mut bytes = Vec::new();
    for param in &layout.params {
        let key = format!("{prefix}{}", param.key);
        let info = reader.tensor(&key).with_context(|| format!("the checkpoint has no `{key}`"))?;
        let want = layout.stored_shape(param);
        // Megatron-LM pads the vocabulary; the rows beyond it are never used.
        let rows_may_exceed = matches!(param.key, EMBEDDING | OUTPUT);
        let fits = info.shape.len() == want.len()
            && info
                .shape
                .iter()
                .zip(&want)
                .enumerate()
                .all(|(axis, (has, want))| has == want || (axis == 0 && rows_may_exceed && has > want));
        ensure!(fits, "`{key}` has shape {:?}, and the model's configuration says {want:?}", info.shape);
        let kind = kind_of(info.dtype)?;
        for (piece, stretch) in layout.pieces_in(param, stretches) {
            bytes.resize(piece.range.len() * info.dtype.size() as usize, 0);
            reader.read(&key, &piece.start, &piece.size, &mut bytes)?;
            let read = Tensor::f_from_data_size(&bytes, &[piece.range.len() as i64], kind)?;
            put(&stretch.values, param.range.start + piece.range.start - stretch.at, &read);
        }
    }
    Ok(())
}

/// Writes what lies in `stretches` of every parameter under `prefix` + its key. What several ranks of the tensor axis or
/// of the pipeline hold is written by the first of them.
pub fn write(writer: &mut RankWriter, prefix: &str, layout: &Layout, stretches: &[Stretch]) -> Result<()> {
    let mut bytes = Vec::new();
    let answers =
        |param: &&Param| !layout.is_copy(param) && (param.split != Split::Whole || layout.share.tensor.0 == 0);
    for param in layout.params.iter().filter(answers) {
        for (piece, stretch) in layout.pieces_in(param, stretches) {
            let dtype = dtype_of(stretch.values.kind())?;
            let (at, elements) = (param.range.start + piece.range.start - stretch.at, piece.range.len());
            let part = stretch.values.narrow(0, at as i64, elements as i64).to_device(tch::Device::Cpu).contiguous();
            bytes.resize(elements * dtype.size() as usize, 0);
            part.f_copy_data_u8(&mut bytes, elements)?;
            let key = format!("{prefix}{}", param.key);
            let shape = layout.stored_shape(param);
            writer.tensor(&key, &shape, &piece.start, &piece.size, dtype, &mut bytes.as_slice())?;
        }
    }
    Ok(())
}

/// Reads this rank's share of a Hugging Face directory's safetensors into `flat`, for a model without a pipeline.
pub fn read_hf(dir: &Path, config: &ModelConfig, layout: &Layout, flat: &Tensor) -> Result<()> {
    ensure!(layout.share.pipeline == (0, 1), "a Hugging Face directory is not read by the ranks of a pipeline");
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            files.insert(name.to_owned(), path.clone());
        }
    }
    let index = Index::read(&files).with_context(|| format!("{} has no weights", dir.display()))?;
    let mut open: HashMap<&Path, File> = HashMap::new();
    let mut tensor = |name: &str, shape: &[usize]| -> Result<Tensor> {
        let found = index.tensors.get(name).with_context(|| format!("{} has no `{name}`", dir.display()))?;
        ensure!(
            found.shape.iter().eq(shape.iter().map(|&n| n as u64).collect::<Vec<_>>().iter()),
            "`{name}` has shape {:?}, and config.json says {shape:?}",
            found.shape
        );
        if !open.contains_key(found.file.as_path()) {
            open.insert(&found.file, File::open(&found.file)?);
        }
        let mut bytes = vec![0; found.len as usize];
        open[found.file.as_path()]
            .read_exact_at(&mut bytes, found.at)
            .with_context(|| format!("cannot read `{name}` in {}", found.file.display()))?;
        let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        Ok(Tensor::f_from_data_size(&bytes, &shape, kind_of(found.dtype)?)?)
    };
    let (h, f, d) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (heads, kv) = (config.num_attention_heads, config.num_key_value_heads);
    for param in &layout.params {
        let layer = format!("model.layers.{}", param.layer.unwrap_or_default());
        let mut of_layer = |name: &str, shape: &[usize]| tensor(&format!("{layer}.{name}.weight"), shape);
        let whole = match param.key {
            EMBEDDING => tensor("model.embed_tokens.weight", &param.whole)?,
            OUTPUT => tensor("lm_head.weight", &param.whole)?,
            FINAL_NORM => tensor("model.norm.weight", &param.whole)?,
            key if key == LAYER[0] => {
                // Group after group: the query heads of a key-value head, then the key, then the value.
                let mut groups = |name: &str, heads: usize| -> Result<Tensor> {
                    Ok(of_layer(name, &[heads * d, h])?.view([kv as i64, -1, h as i64]))
                };
                let qkv = [
                    groups("self_attn.q_proj", heads)?,
                    groups("self_attn.k_proj", kv)?,
                    groups("self_attn.v_proj", kv)?,
                ];
                Tensor::cat(&qkv, 1)
            }
            key if key == LAYER[1] => of_layer("self_attn.o_proj", &[h, heads * d])?,
            key if key == LAYER[2] => {
                Tensor::cat(&[of_layer("mlp.gate_proj", &[f, h])?, of_layer("mlp.up_proj", &[f, h])?], 0)
            }
            key if key == LAYER[3] => of_layer("mlp.down_proj", &[h, f])?,
            key if key == LAYER[4] => of_layer("input_layernorm", &[h])?,
            _ => of_layer("post_attention_layernorm", &[h])?,
        };
        put(flat, param.range.start, &part_of(&whole, param.split, layout.share).flatten(0, -1));
    }
    Ok(())
}

/// What a rank has of a whole parameter.
fn part_of(whole: &Tensor, split: Split, share: Share) -> Tensor {
    let (rank, ranks) = share.tensor;
    let part = |x: &Tensor, dim: i64| x.chunk(ranks as i64, dim).swap_remove(rank);
    match split {
        _ if ranks == 1 => whole.shallow_clone(),
        Split::Whole => whole.shallow_clone(),
        Split::Rows => part(whole, 0),
        Split::Columns => part(whole, 1),
        Split::Halves => Tensor::cat(&whole.chunk(2, 0).iter().map(|half| part(half, 0)).collect::<Vec<_>>(), 0),
    }
}

/// Copies `values` into `flat` from element `at` on.
fn put(flat: &Tensor, at: usize, values: &Tensor) {
    no_grad(|| flat.narrow(0, at as i64, values.size()[0]).copy_(values));
}
