//! Other spellings of a Megatron model's keys, in the one that the rest of the house reads.
//!
//! NeMo puts `module.` or `model.` before every key; non-homogeneous models have a key for each layer
//! (`decoder.layers.3.mlp.…`); some writers keep the two halves of fc1 apart (`…linear_fc1.weight_w`, `…weight_v`);
//! older ones say `decoder.final_norm`. All of these are the same boxes of the same stacked tensors, under other
//! coordinates: so only coordinates are changed, and no byte.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::metadata::RawTensor;

/// How a key is spelt, once it is taken apart.
struct Spelling {
    key: String,
    layer: Option<u64>,
    /// Which half of fc1.
    half: Option<u64>,
}

fn spelling(key: &str) -> Spelling {
    let own = Spelling { key: key.to_owned(), layer: None, half: None };
    let mut rest = key;
    while let Some(inner) = rest.strip_prefix("module.").or_else(|| rest.strip_prefix("model.")) {
        rest = inner;
    }
    if !["embedding.", "decoder.", "output_layer."].iter().any(|part| rest.starts_with(part)) {
        return own; // optimizer state and everything else keeps its name
    }
    let mut spelling = Spelling { key: rest.replace("decoder.final_norm.", "decoder.final_layernorm."), ..own };
    let layered = spelling.key.strip_prefix("decoder.layers.").and_then(|tail| {
        let (number, tail) = tail.split_once('.')?;
        Some((u64::from(number.parse::<u32>().ok()?), format!("decoder.layers.{tail}")))
    });
    if let Some((layer, key)) = layered {
        (spelling.layer, spelling.key) = (Some(layer), key);
    }
    for (end, half) in [(".linear_fc1.weight_w", 0), (".linear_fc1.weight_v", 1)] {
        if let Some(stem) = spelling.key.strip_suffix(end) {
            (spelling.half, spelling.key) = (Some(half), format!("{stem}.linear_fc1.weight"));
            break;
        }
    }
    spelling
}

/// Puts every tensor under its canonical key; parts that belong together become one tensor.
///
/// # Errors
/// Parts of one tensor do not fit together, or a tensor is there in two spellings.
pub(super) fn canonical(raw: BTreeMap<String, RawTensor>) -> Result<BTreeMap<String, RawTensor>> {
    let mut parts: BTreeMap<String, Vec<(String, Spelling, RawTensor)>> = BTreeMap::new();
    for (key, tensor) in raw {
        let spelling = spelling(&key);
        parts.entry(spelling.key.clone()).or_default().push((key, spelling, tensor));
    }
    let mut tensors = BTreeMap::new();
    for (key, group) in parts {
        let tensor = assemble(group).with_context(|| format!("the parts of `{key}`"))?;
        tensors.insert(key, tensor);
    }
    name_norms(&mut tensors);
    Ok(tensors)
}

/// Transformer Engine's layers keep a norm with the linear layer behind it, except in front of experts; Megatron's own
/// layers keep it apart, and their checkpoints say either. Here it is as in Transformer Engine's.
fn name_norms<T>(tensors: &mut BTreeMap<String, T>) {
    let experts = tensors.contains_key("decoder.layers.mlp.router.weight");
    let apart = "decoder.layers.pre_mlp_layernorm.weight";
    let inside = "decoder.layers.mlp.linear_fc1.layer_norm_weight";
    let mlp = if experts { (inside, apart) } else { (apart, inside) };
    for (from, to) in
        [mlp, ("decoder.layers.input_layernorm.weight", "decoder.layers.self_attention.linear_qkv.layer_norm_weight")]
    {
        if !tensors.contains_key(to)
            && let Some(tensor) = tensors.remove(from)
        {
            tensors.insert(to.to_owned(), tensor);
        }
    }
}

fn assemble(mut group: Vec<(String, Spelling, RawTensor)>) -> Result<RawTensor> {
    let (layered, halved) = (group[0].1.layer.is_some(), group[0].1.half.is_some());
    if group.len() == 1 && !layered && !halved {
        return Ok(group.remove(0).2);
    }
    let first = &group[0];
    let (first_key, dtype, shape) = (first.0.clone(), first.2.dtype, first.2.shape.clone());
    let layers = group.iter().filter_map(|(_, spelling, _)| spelling.layer).max().map(|last| last + 1);
    let per_layer = if halved { 2 } else { 1 };
    let mut whole = shape.clone();
    // fc1 is [2F, h], or [L, 2F, h] when it is stacked already: the rows are the axis before the last.
    let rows = shape.len().saturating_sub(2);
    if halved {
        ensure!(shape.len() >= 2, "`{first_key}` has shape {shape:?}");
        whole[rows] *= 2;
    }
    if let Some(layers) = layers {
        whole.insert(0, layers);
    }
    ensure!(
        group.len() as u64 == layers.unwrap_or(1) * per_layer,
        "{} of {} are there, or one is there in two spellings",
        group.len(),
        layers.unwrap_or(1) * per_layer
    );
    let mut chunks = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for (key, spelling, tensor) in group {
        ensure!(
            spelling.layer.is_some() == layered && spelling.half.is_some() == halved,
            "`{first_key}` and `{key}` are spelt differently"
        );
        ensure!(seen.insert((spelling.layer, spelling.half)), "`{key}` is there in two spellings");
        ensure!(
            tensor.dtype == dtype && tensor.shape == shape,
            "`{first_key}` is {} {shape:?} and `{key}` is {} {:?}",
            dtype.torch(),
            tensor.dtype.torch(),
            tensor.shape
        );
        for (mut region, place) in tensor.chunks {
            if let Some(half) = spelling.half {
                region.start[rows] += half * shape[rows];
            }
            if let Some(layer) = spelling.layer {
                region.start.insert(0, layer);
                region.size.insert(0, 1);
            }
            chunks.push((region, place));
        }
    }
    Ok(RawTensor { dtype, shape: whole, chunks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_has_one_name_in_a_dense_model_and_one_before_experts() {
        let named = |keys: &[&str]| {
            let mut tensors = keys.iter().map(|key| (format!("decoder.layers.{key}"), ())).collect();
            name_norms(&mut tensors);
            tensors.into_keys().map(|key| key["decoder.layers.".len()..].to_owned()).collect::<Vec<_>>()
        };
        let dense = ["mlp.linear_fc1.layer_norm_weight", "self_attention.linear_qkv.layer_norm_weight"];
        assert_eq!(named(&["input_layernorm.weight", "pre_mlp_layernorm.weight"]), dense);
        assert_eq!(named(&dense), dense);
        let experts = ["mlp.router.weight", "pre_mlp_layernorm.weight"];
        assert_eq!(named(&["mlp.router.weight", "mlp.linear_fc1.layer_norm_weight"]), experts);
        assert_eq!(named(&experts), experts);
    }

    #[test]
    fn every_spelling_of_a_key() {
        for (key, want, layer, half) in [
            ("decoder.layers.mlp.linear_fc2.weight", "decoder.layers.mlp.linear_fc2.weight", None, None),
            ("module.decoder.layers.7.mlp.linear_fc2.weight", "decoder.layers.mlp.linear_fc2.weight", Some(7), None),
            ("model.module.embedding.word_embeddings.weight", "embedding.word_embeddings.weight", None, None),
            ("decoder.final_norm.weight", "decoder.final_layernorm.weight", None, None),
            ("decoder.layers.0.mlp.linear_fc1.weight_v", "decoder.layers.mlp.linear_fc1.weight", Some(0), Some(1)),
            ("decoder.layers.mlp.linear_fc1.weight_w", "decoder.layers.mlp.linear_fc1.weight", None, Some(0)),
            ("optimizer.state.exp_avg.decoder.layers.0.x", "optimizer.state.exp_avg.decoder.layers.0.x", None, None),
            ("model.something", "model.something", None, None),
        ] {
            let got = spelling(key);
            assert_eq!((got.key.as_str(), got.layer, got.half), (want, layer, half), "{key}");
        }
    }
}
