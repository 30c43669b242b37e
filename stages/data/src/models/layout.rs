//! [`Layout`]: a family's table written out for one model.

use super::family::{Dim, Join, Model, Rule, Source};

/// A tensor of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name or key.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
}

/// A Megatron tensor of a layout, cut into chunks as Megatron does without parallelism.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its key.
    pub key: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// The axis of its rows: before it, layers and experts are stacked.
    pub axis: usize,
    /// Its rows are tokens: Megatron may have more of them, as padding.
    pub vocabulary: bool,
    /// Its chunks: offset and size.
    pub chunks: Vec<(Vec<u64>, Vec<u64>)>,
}

/// Rows that stand in both models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The Hugging Face tensor: index into [`Layout::hf`].
    pub hf: usize,
    /// The first row in it.
    pub hf_row: u64,
    /// The Megatron tensor: index into [`Layout::megatron`].
    pub target: usize,
    /// Which of its chunks holds all of these rows.
    pub chunk: usize,
    /// The first row in that chunk.
    pub row: u64,
    /// How many rows.
    pub rows: u64,
    /// Elements of one row.
    pub width: u64,
}

/// A family's table for one model.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Hugging Face's tensors, in the order of the model.
    pub hf: Vec<Named>,
    /// Megatron's.
    pub megatron: Vec<Target>,
    /// Every row of every tensor, once: sorted by Megatron tensor, chunk, row.
    pub rows: Vec<Rows>,
    /// What stands before Hugging Face's names in a checkpoint that has these for keys.
    pub(super) prefix: Option<String>,
}

impl Layout {
    pub(super) fn of(model: &Model) -> Self {
        let mut layout = Self::default();
        let tied = model.geometry.tie_word_embeddings;
        for rule in model.family.rules.iter().filter(|rule| !(rule.untied_only && tied)) {
            let sources = rule.join.sources();
            let stack = model.stack(rule.per);
            let axis = stack.len();
            let mut shape = stack.clone();
            shape.push(sources.iter().map(|source| model.len(source.1[0])).sum());
            shape.extend(sources[0].1[1..].iter().map(|&dim| model.len(dim)));
            let vocabulary = sources[0].1[0] == Dim::Vocab;
            layout.megatron.push(Target { key: rule.key.to_owned(), shape, axis, vocabulary, chunks: Vec::new() });
            for part in 0..stack.iter().product() {
                let place = match stack[..] {
                    [] => vec![],
                    [_, experts] => vec![part / experts, part % experts],
                    _ => vec![part],
                };
                layout.place(model, rule, &place);
            }
        }
        layout.in_model_order();
        layout
    }

    /// Writes out one part of the rule's tensor, the last of [`Layout::megatron`]: that of one layer, of one expert, or
    /// all of it.
    fn place(&mut self, model: &Model, rule: &Rule, place: &[u64]) {
        let sources = rule.join.sources();
        let first = self.hf.len();
        for Source(name, dims) in sources {
            let mut name = (*name).to_owned();
            for (number, hole) in place.iter().zip(["{}", "{e}"]) {
                name = name.replace(hole, &number.to_string());
            }
            self.hf.push(Named { name, shape: dims.iter().map(|&dim| model.len(dim)).collect() });
        }
        let target = self.megatron.len() - 1;
        let made = &mut self.megatron[target];
        let width = sources[0].1[1..].iter().map(|&dim| model.len(dim)).product();
        let mut chunk = |row: u64, rows: u64| {
            let (mut offset, mut size) = (vec![0; made.shape.len()], made.shape.clone());
            offset[..place.len()].copy_from_slice(place);
            size[..place.len()].fill(1);
            (offset[place.len()], size[place.len()]) = (row, rows);
            made.chunks.push((offset, size));
            made.chunks.len() - 1
        };
        let rows_of = |i: usize| model.len(sources[i].1[0]);
        match &rule.join {
            Join::One(_) => {
                let chunk = chunk(0, rows_of(0));
                self.rows.push(Rows { hf: first, hf_row: 0, target, chunk, row: 0, rows: rows_of(0), width });
            }
            Join::Stack(_) => {
                let mut at = 0;
                for i in 0..sources.len() {
                    let chunk = chunk(at, rows_of(i));
                    at += rows_of(i);
                    self.rows.push(Rows { hf: first + i, hf_row: 0, target, chunk, row: 0, rows: rows_of(i), width });
                }
            }
            Join::Qkv(_) => {
                let groups = model.geometry.num_key_value_heads as u64;
                let chunk = chunk(0, (0..3).map(rows_of).sum());
                let mut row = 0;
                for group in 0..groups {
                    for i in 0..3 {
                        let rows = rows_of(i) / groups;
                        let hf_row = group * rows;
                        self.rows.push(Rows { hf: first + i, hf_row, target, chunk, row, rows, width });
                        row += rows;
                    }
                }
            }
        }
    }

    /// Sorts Hugging Face's tensors as a model lists them: the embedding, layer by layer, the rest. The table goes by
    /// Megatron's tensors, each with all layers.
    fn in_model_order(&mut self) {
        let place = |name: &str| {
            let layer = name.split('.').find_map(|part| part.parse::<u64>().ok());
            let group = match layer {
                _ if name.contains("embed_tokens") => 0,
                Some(_) => 1,
                None => 2,
            };
            (group, layer)
        };
        let mut order: Vec<usize> = (0..self.hf.len()).collect();
        order.sort_by_cached_key(|&i| place(&self.hf[i].name));
        let mut new = vec![0; order.len()];
        for (to, &from) in order.iter().enumerate() {
            new[from] = to;
        }
        self.hf = order.iter().map(|&i| self.hf[i].clone()).collect();
        for rows in &mut self.rows {
            rows.hf = new[rows.hf];
        }
    }
}
