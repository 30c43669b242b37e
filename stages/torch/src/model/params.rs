//! What parameters a Llama has, which part of each a rank holds, and where that lies in one flat buffer.
//!
//! Names, shapes and the order of rows are Megatron-Core's, so that checkpoints are read and written without arithmetic.

use std::ops::Range;

use flow_plan::ModelConfig;

/// Megatron's keys of what every layer has, stacked there on a first axis. The order of [`super::layer::Layer::weights`].
pub const LAYER: [&str; 6] = [
    "decoder.layers.self_attention.linear_qkv.weight",
    "decoder.layers.self_attention.linear_proj.weight",
    "decoder.layers.mlp.linear_fc1.weight",
    "decoder.layers.mlp.linear_fc2.weight",
    "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
    "decoder.layers.mlp.linear_fc1.layer_norm_weight",
];
pub const EMBEDDING: &str = "embedding.word_embeddings.weight";
pub const OUTPUT: &str = "output_layer.weight";
pub const FINAL_NORM: &str = "decoder.final_layernorm.weight";

/// How a parameter is split over the tensor axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Every rank has all of it.
    Whole,
    /// On rows.
    Rows,
    /// On columns.
    Columns,
    /// The upper and the lower half of the rows, each on rows.
    Halves,
}

/// A parameter as one rank holds it.
#[derive(Clone, Debug)]
pub struct Param {
    /// Megatron's key.
    pub key: &'static str,
    /// Which layer.
    pub layer: Option<usize>,
    /// Shape of the whole, without the layers' axis.
    pub whole: Vec<usize>,
    /// How it is split.
    pub split: Split,
    /// Shape of this rank's part.
    pub shape: Vec<usize>,
    /// Where it lies in the flat buffer, in elements.
    pub range: Range<usize>,
}

/// A box of a stored tensor, and where its elements are in a rank's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Per axis of the stored tensor (with that of the layers).
    pub start: Vec<u64>,
    /// As `start`.
    pub size: Vec<u64>,
    /// Elements within the parameter, contiguous.
    pub range: Range<usize>,
}

/// All parameters: matrices first, norms after them.
#[derive(Clone, Debug)]
pub struct Layout {
    /// In the order of the flat buffer.
    pub params: Vec<Param>,
    /// Elements.
    pub total: usize,
    /// Elements of the matrices: they are split over the tensor axis and decay; the norms after them do neither.
    pub matrices: usize,
    /// How many layers.
    pub layers: usize,
    /// This rank's place on the tensor axis, and its size.
    pub tensor: (usize, usize),
}

impl Layout {
    /// The layout of `config` on rank `tensor.0` of a tensor axis of `tensor.1`, which divides the vocabulary, the
    /// key-value heads and the feed-forward width.
    pub fn new(config: &ModelConfig, tensor: (usize, usize)) -> Self {
        let (h, f, d) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let (heads, kv) = (config.num_attention_heads, config.num_key_value_heads);
        let mut wanted: Vec<(&'static str, Option<usize>, Vec<usize>, Split)> = Vec::new();
        wanted.push((EMBEDDING, None, vec![config.vocab_size, h], Split::Rows));
        for layer in 0..config.num_hidden_layers {
            wanted.push((LAYER[0], Some(layer), vec![(heads + 2 * kv) * d, h], Split::Rows));
            wanted.push((LAYER[1], Some(layer), vec![h, heads * d], Split::Columns));
            wanted.push((LAYER[2], Some(layer), vec![2 * f, h], Split::Halves));
            wanted.push((LAYER[3], Some(layer), vec![h, f], Split::Columns));
        }
        if !config.tie_word_embeddings {
            wanted.push((OUTPUT, None, vec![config.vocab_size, h], Split::Rows));
        }
        let matrices = wanted.len();
        for layer in 0..config.num_hidden_layers {
            wanted.push((LAYER[4], Some(layer), vec![h], Split::Whole));
            wanted.push((LAYER[5], Some(layer), vec![h], Split::Whole));
        }
        wanted.push((FINAL_NORM, None, vec![h], Split::Whole));

        let mut params: Vec<Param> = Vec::with_capacity(wanted.len());
        for (key, layer, whole, split) in wanted {
            let mut shape = whole.clone();
            match split {
                Split::Whole => {}
                Split::Rows | Split::Halves => shape[0] /= tensor.1,
                Split::Columns => shape[1] /= tensor.1,
            }
            let start = params.last().map_or(0, |param| param.range.end);
            let range = start..start + shape.iter().product::<usize>();
            params.push(Param { key, layer, whole, split, shape, range });
        }
        let end = |n: usize| params[..n].last().map_or(0, |param| param.range.end);
        let (total, matrices) = (end(params.len()), end(matrices));
        Self { params, total, matrices, layers: config.num_hidden_layers, tensor }
    }

    /// The place of a parameter in [`Layout::params`].
    pub fn index(&self, key: &str, layer: Option<usize>) -> Option<usize> {
        self.params.iter().position(|param| param.key == key && param.layer == layer)
    }

    /// Shape of the whole parameter as it is stored, with the layers' axis.
    pub fn stored_shape(&self, param: &Param) -> Vec<u64> {
        let layers = param.layer.map(|_| self.layers);
        layers.iter().chain(&param.whole).map(|&n| n as u64).collect()
    }

    /// The boxes of the stored tensor that this rank's part consists of.
    pub fn pieces(&self, param: &Param) -> Vec<Piece> {
        let (rank, size) = self.tensor;
        let elements = param.range.len();
        let boxed = |start: Vec<usize>, size: Vec<usize>, range: Range<usize>| Piece {
            start: param.layer.iter().chain(&start).map(|&n| n as u64).collect(),
            size: param.layer.map(|_| 1).iter().chain(&size).map(|&n| n as u64).collect(),
            range,
        };
        match param.split {
            Split::Whole => vec![boxed(vec![0; param.whole.len()], param.whole.clone(), 0..elements)],
            Split::Rows => vec![boxed(vec![rank * param.shape[0], 0], param.shape.clone(), 0..elements)],
            Split::Columns => vec![boxed(vec![0, rank * param.shape[1]], param.shape.clone(), 0..elements)],
            Split::Halves => {
                let (half, part) = (param.whole[0] / 2, param.whole[0] / 2 / size);
                let size = vec![part, param.whole[1]];
                vec![
                    boxed(vec![rank * part, 0], size.clone(), 0..elements / 2),
                    boxed(vec![half + rank * part, 0], size, elements / 2..elements),
                ]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn config(tie_word_embeddings: bool) -> ModelConfig {
        ModelConfig {
            vocab_size: 32,
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 4,
            max_position_embeddings: 64,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: None,
            tie_word_embeddings,
        }
    }

    #[test]
    fn the_ranks_parts_tile_every_parameter() {
        for (size, tied) in [(1, false), (2, false), (2, true)] {
            let mut seen: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
            for rank in 0..size {
                let layout = Layout::new(&config(tied), (rank, size));
                for param in &layout.params {
                    let shape = layout.stored_shape(param);
                    let cells =
                        seen.entry(param.key).or_insert_with(|| vec![false; shape.iter().product::<u64>() as usize]);
                    if param.split == Split::Whole && rank > 0 {
                        continue;
                    }
                    for piece in layout.pieces(param) {
                        assert_eq!(piece.size.iter().product::<u64>() as usize, piece.range.len());
                        for i in 0..piece.range.len() as u64 {
                            // The cell of the piece's i-th element in the whole, axis by axis from the last.
                            let (mut rest, mut cell, mut stride) = (i, 0, 1);
                            for axis in (0..shape.len()).rev() {
                                cell += (piece.start[axis] + rest % piece.size[axis]) * stride;
                                rest /= piece.size[axis];
                                stride *= shape[axis];
                            }
                            assert!(!std::mem::replace(&mut cells[cell as usize], true), "{} twice", param.key);
                        }
                    }
                }
            }
            assert!(seen.values().flatten().all(|seen| *seen));
            assert_eq!(seen.contains_key(OUTPUT), !tied);
        }
    }

    #[test]
    fn matrices_come_first() {
        let layout = Layout::new(&config(false), (0, 1));
        assert!(layout.params.iter().all(|param| (param.shape.len() == 2) == (param.range.start < layout.matrices)));
        assert_eq!(layout.total - layout.matrices, 5 * 8);
        assert_eq!(layout.params[layout.index(LAYER[2], Some(1)).unwrap()].shape, [24, 8]);
    }
}
