//! What parameters a Llama has, which part of each a rank holds, and where that lies in one flat buffer.
//!
//! Names, shapes and the order of rows are Megatron-Core's, so that checkpoints are read and written without arithmetic.

use std::ops::Range;

use flow_plan::ModelConfig;

use crate::optim::Stretch;

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

/// Which share of the model a rank holds: its place on an axis, and the axis's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// On the tensor axis.
    pub tensor: (usize, usize),
    /// On the pipeline axis.
    pub pipeline: (usize, usize),
    /// Matrices and norms are each padded to a multiple of so many elements, so that ranks can share them out evenly.
    pub align: usize,
}

impl Share {
    /// All of it.
    pub const WHOLE: Self = Self { tensor: (0, 1), pipeline: (0, 1), align: 1 };
}

/// The parameters of a rank: matrices first, norms after them.
#[derive(Clone, Debug)]
pub struct Layout {
    /// In the order of the flat buffer: the embedding, matrices layer by layer, the output layer; then norms.
    pub params: Vec<Param>,
    /// Elements, with padding.
    pub total: usize,
    /// Elements of the matrices, with padding: they are split over the tensor axis and decay; the norms after them do
    /// neither.
    pub matrices: usize,
    /// How many layers the whole model has.
    pub layers: usize,
    /// Those that this rank has.
    pub held: Range<usize>,
    /// The tied embedding of a pipeline's last rank, last of the matrices: the first rank's is the one that counts.
    pub copy: Option<Range<usize>>,
    /// What of the model this is.
    pub share: Share,
}

impl Layout {
    /// The layout of `config` on one rank. The tensor axis divides the vocabulary, the key-value heads and the
    /// feed-forward width, the pipeline axis the layers.
    pub fn new(config: &ModelConfig, share: Share) -> Self {
        let (h, f, d) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let (heads, kv) = (config.num_attention_heads, config.num_key_value_heads);
        let (stage, stages) = share.pipeline;
        let (first, last, tied) = (stage == 0, stage + 1 == stages, config.tie_word_embeddings);
        let each = config.num_hidden_layers / stages;
        let held = stage * each..(stage + 1) * each;
        let embedding = vec![config.vocab_size, h];

        let mut matrices: Vec<Wanted> = Vec::new();
        matrices.extend(first.then(|| (EMBEDDING, None, embedding.clone(), Split::Rows)));
        for layer in held.clone() {
            matrices.push((LAYER[0], Some(layer), vec![(heads + 2 * kv) * d, h], Split::Rows));
            matrices.push((LAYER[1], Some(layer), vec![h, heads * d], Split::Columns));
            matrices.push((LAYER[2], Some(layer), vec![2 * f, h], Split::Halves));
            matrices.push((LAYER[3], Some(layer), vec![h, f], Split::Columns));
        }
        matrices.extend((last && !tied).then(|| (OUTPUT, None, embedding.clone(), Split::Rows)));
        let copied = last && tied && !first;
        matrices.extend(copied.then_some((EMBEDDING, None, embedding, Split::Rows)));
        let mut norms: Vec<Wanted> = Vec::new();
        for layer in held.clone() {
            norms.push((LAYER[4], Some(layer), vec![h], Split::Whole));
            norms.push((LAYER[5], Some(layer), vec![h], Split::Whole));
        }
        norms.extend(last.then(|| (FINAL_NORM, None, vec![h], Split::Whole)));

        let mut params = Vec::with_capacity(matrices.len() + norms.len());
        let end = place(matrices, 0, share.tensor.1, &mut params);
        let copy = copied.then(|| params.last().map(|param: &Param| param.range.clone())).flatten();
        let matrices = end.next_multiple_of(share.align);
        let total = place(norms, matrices, share.tensor.1, &mut params).next_multiple_of(share.align);
        Self { params, total, matrices, layers: config.num_hidden_layers, held, copy, share }
    }

    /// The place of a parameter in [`Layout::params`].
    pub fn index(&self, key: &str, layer: Option<usize>) -> Option<usize> {
        self.params.iter().position(|param| param.key == key && param.layer == layer)
    }

    /// Whether another rank of the pipeline answers for this parameter.
    pub fn is_copy(&self, param: &Param) -> bool {
        self.copy.as_ref() == Some(&param.range)
    }

    /// Shape of the whole parameter as it is stored, with the layers' axis.
    pub fn stored_shape(&self, param: &Param) -> Vec<u64> {
        let layers = param.layer.map(|_| self.layers);
        layers.iter().chain(&param.whole).map(|&n| n as u64).collect()
    }

    /// The boxes of the stored tensor that this rank's part consists of.
    pub fn pieces(&self, param: &Param) -> Vec<Piece> {
        let (rank, size) = self.share.tensor;
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

impl Layout {
    /// The boxes of a parameter's stored tensor that lie in `stretches` of the flat buffer, each with its stretch.
    pub fn pieces_in<'a>(&self, param: &Param, stretches: &'a [Stretch]) -> Vec<(Piece, &'a Stretch)> {
        let mut found = Vec::new();
        for piece in self.pieces(param) {
            let begin = param.range.start + piece.range.start;
            for stretch in stretches {
                let end = stretch.at + stretch.values.size()[0] as usize;
                let (from, to) = (stretch.at.max(begin), end.min(begin + piece.range.len()));
                if from < to {
                    let cut = boxes(&piece.size, from - begin..to - begin);
                    found.extend(cut.into_iter().map(|inner| (inner.within(&piece), stretch)));
                }
            }
        }
        found
    }
}

impl Piece {
    /// A box that was cut from `outer` in its own coordinates, in those of the stored tensor.
    fn within(self, outer: &Piece) -> Piece {
        let start = self.start.iter().zip(&outer.start).map(|(inner, outer)| inner + outer).collect();
        let range = outer.range.start + self.range.start..outer.range.start + self.range.end;
        Piece { start, size: self.size, range }
    }
}

/// Cuts a range of the elements of a box of `size`, row after row, into boxes: at most two ends and a middle an axis.
fn boxes(size: &[u64], range: Range<usize>) -> Vec<Piece> {
    let Some((_, rest)) = size.split_first() else { return Vec::new() };
    let inner = rest.iter().product::<u64>() as usize;
    let mut found = Vec::new();
    // A part of one row.
    let mut row = |part: Range<usize>| {
        let at = part.start / inner;
        for piece in boxes(rest, part.start - at * inner..part.end - at * inner) {
            let start = [&[at as u64], &piece.start[..]].concat();
            let size = [&[1], &piece.size[..]].concat();
            found.push(Piece { start, size, range: at * inner + piece.range.start..at * inner + piece.range.end });
        }
    };
    let (first, last) = (range.start.next_multiple_of(inner), range.end / inner * inner);
    if first > last {
        row(range);
        return found;
    }
    if range.start < first {
        row(range.start..first);
    }
    if last < range.end {
        row(last..range.end);
    }
    if first < last {
        let start = [&[(first / inner) as u64], &vec![0; rest.len()][..]].concat();
        let size = [&[((last - first) / inner) as u64], rest].concat();
        found.push(Piece { start, size, range: first..last });
    }
    found
}

/// Key, layer, whole shape, split.
type Wanted = (&'static str, Option<usize>, Vec<usize>, Split);

/// Lays parameters out one after the other from `at` on; returns the end.
fn place(wanted: Vec<Wanted>, mut at: usize, tensor: usize, params: &mut Vec<Param>) -> usize {
    for (key, layer, whole, split) in wanted {
        let mut shape = whole.clone();
        match split {
            Split::Whole => {}
            Split::Rows | Split::Halves => shape[0] /= tensor,
            Split::Columns => shape[1] /= tensor,
        }
        let range = at..at + shape.iter().product::<usize>();
        at = range.end;
        params.push(Param { key, layer, whole, split, shape, range });
    }
    at
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
            eos_token_id: None,
        }
    }

    #[test]
    fn the_ranks_parts_tile_every_parameter() {
        for (tensor, stages, tied) in
            [(1, 1, false), (2, 1, false), (2, 1, true), (1, 2, true), (2, 2, true), (2, 2, false)]
        {
            let mut seen: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
            for (rank, stage) in (0..tensor * stages).map(|i| (i % tensor, i / tensor)) {
                let share = Share { tensor: (rank, tensor), pipeline: (stage, stages), align: 7 };
                let layout = Layout::new(&config(tied), share);
                assert!(layout.total.is_multiple_of(7) && layout.matrices.is_multiple_of(7));
                for param in layout.params.iter().filter(|param| !layout.is_copy(param)) {
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

    /// Every range of a small box, element by element.
    #[test]
    fn a_range_is_cut_into_boxes_that_tile_it() {
        let size = [2u64, 3, 4];
        for from in 0..24 {
            for to in from + 1..=24 {
                let mut seen = [false; 24];
                for piece in boxes(&size, from..to) {
                    let cells = (0..piece.range.len() as u64).map(|i| {
                        let [a, b, c] =
                            [i / (piece.size[1] * piece.size[2]), i / piece.size[2] % piece.size[1], i % piece.size[2]];
                        ((piece.start[0] + a) * 3 + piece.start[1] + b) * 4 + piece.start[2] + c
                    });
                    assert!(cells.clone().map(|cell| cell as usize).eq(piece.range.clone()), "{piece:?}");
                    cells.for_each(|cell| assert!(!std::mem::replace(&mut seen[cell as usize], true)));
                }
                assert!((0..24).all(|i| seen[i] == (from..to).contains(&i)));
            }
        }
    }

    #[test]
    fn matrices_come_first() {
        let layout = Layout::new(&config(false), Share::WHOLE);
        assert!(layout.params.iter().all(|param| (param.shape.len() == 2) == (param.range.start < layout.matrices)));
        assert_eq!(layout.total - layout.matrices, 5 * 8);
        assert_eq!(layout.params[layout.index(LAYER[2], Some(1)).unwrap()].shape, [24, 8]);
    }
}
