//! Other spellings of a Megatron model's keys, in the one that the rest of the house reads.
//!
//! NeMo puts `module.` or `model.` before every key; non-homogeneous models have a key for each layer
//! (`decoder.layers.3.mlp.…`), and where shards stand alone each expert has one, too (`…experts.experts.7.linear_fc2.weight`);
//! some writers keep the two halves of fc1 apart (`…linear_fc1.weight_w`, `…weight_v`); older ones say `decoder.final_norm`. All of these are the same boxes of the same stacked tensors, under other
//! coordinates: so only coordinates are changed, and no byte.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::metadata::RawTensor;

/// How a key is spelt, once it is taken apart.
struct Spelling {
    key: String,
    /// The numbers in it, outermost first: the layer, or the layer and the expert.
    stack: Vec<u64>,
    /// Which half of fc1.
    half: Option<u64>,
}

fn spelling(key: &str) -> Spelling {
    let own = Spelling { key: key.to_owned(), stack: vec![], half: None };
    let mut rest = key;
    while let Some(inner) = rest.strip_prefix("module.").or_else(|| rest.strip_prefix("model.")) {
        rest = inner;
    }
    if !["embedding.", "decoder.", "output_layer."].iter().any(|part| rest.starts_with(part)) {
        return own; // optimizer state and everything else keeps its name
    }
    let mut spelling = Spelling { key: rest.replace("decoder.final_norm.", "decoder.final_layernorm."), ..own };
    for stem in ["decoder.layers.", "decoder.layers.mlp.experts.experts."] {
        let Some((number, tail)) = spelling.key.strip_prefix(stem).and_then(|tail| tail.split_once('.')) else { break };
        let Ok(number) = number.parse::<u32>() else { break };
        spelling.stack.push(number.into());
        spelling.key = format!("{stem}{tail}");
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
    let (axes, halved) = (group[0].1.stack.len(), group[0].1.half.is_some());
    if group.len() == 1 && axes == 0 && !halved {
        return Ok(group.remove(0).2);
    }
    let first = &group[0];
    let (first_key, dtype, shape) = (first.0.clone(), first.2.dtype, first.2.shape.clone());
    for (key, spelling, tensor) in &group {
        ensure!(
            spelling.stack.len() == axes && spelling.half.is_some() == halved,
            "`{first_key}` and `{key}` are spelt differently"
        );
        ensure!(
            tensor.dtype == dtype && tensor.shape == shape,
            "`{first_key}` is {} {shape:?} and `{key}` is {} {:?}",
            dtype.torch(),
            tensor.dtype.torch(),
            tensor.shape
        );
    }
    let lengths: Vec<u64> =
        (0..axes).filter_map(|axis| group.iter().map(|part| part.1.stack[axis] + 1).max()).collect();
    let expected = lengths.iter().fold(if halved { 2 } else { 1 }, |count: u64, &len| count.saturating_mul(len));
    ensure!(
        group.len() as u64 == expected,
        "{} of {expected} are there, or one is there in two spellings",
        group.len()
    );
    // fc1 is [2F, h], or [L, 2F, h] when it is stacked already: the rows are the axis before the last.
    let rows = shape.len().saturating_sub(2);
    let mut whole = shape.clone();
    if halved {
        ensure!(shape.len() >= 2, "`{first_key}` has shape {shape:?}");
        whole[rows] = whole[rows].checked_mul(2).context("too large")?;
    }
    whole.splice(0..0, lengths);
    let mut chunks = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for (key, Spelling { stack, half, .. }, tensor) in group {
        for (mut region, place) in tensor.chunks {
            if let Some(half) = half {
                region.start[rows] += half * shape[rows];
            }
            region.start.splice(0..0, stack.iter().copied());
            region.size.splice(0..0, stack.iter().map(|_| 1));
            chunks.push((region, place));
        }
        ensure!(seen.insert((stack, half)), "`{key}` is there in two spellings");
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
        for (key, want, stack, half) in [
            ("decoder.layers.mlp.linear_fc2.weight", "decoder.layers.mlp.linear_fc2.weight", &[][..], None),
            ("module.decoder.layers.7.mlp.linear_fc2.weight", "decoder.layers.mlp.linear_fc2.weight", &[7], None),
            ("model.module.embedding.word_embeddings.weight", "embedding.word_embeddings.weight", &[], None),
            ("decoder.final_norm.weight", "decoder.final_layernorm.weight", &[], None),
            ("decoder.layers.0.mlp.linear_fc1.weight_v", "decoder.layers.mlp.linear_fc1.weight", &[0], Some(1)),
            ("decoder.layers.mlp.linear_fc1.weight_w", "decoder.layers.mlp.linear_fc1.weight", &[], Some(0)),
            (
                "decoder.layers.3.mlp.experts.experts.12.linear_fc1.weight_w",
                "decoder.layers.mlp.experts.experts.linear_fc1.weight",
                &[3, 12],
                Some(0),
            ),
            (
                "decoder.layers.3.mlp.experts.experts.linear_fc2.weight",
                "decoder.layers.mlp.experts.experts.linear_fc2.weight",
                &[3],
                None,
            ),
            ("optimizer.state.exp_avg.decoder.layers.0.x", "optimizer.state.exp_avg.decoder.layers.0.x", &[], None),
            ("model.something", "model.something", &[], None),
        ] {
            let got = spelling(key);
            assert_eq!((got.key.as_str(), &got.stack[..], got.half), (want, stack, half), "{key}");
        }
    }
}
