//! Where the rows of a Hugging Face model's tensors stand in Megatron's, for each family of models.
//!
//! A family is a table ([`Family`]): names, shapes and how tensors are joined. [`Layout`] is the table written out for
//! one model: which rows of which tensor are which rows of which other. Both directions of conversion follow it, so
//! one is the inverse of the other. No element is computed here.

mod cast;
mod copy;
mod dir;
mod llama;

#[cfg(test)]
pub(crate) mod tests;

use anyhow::{Context, Result, bail, ensure};
use flow_plan::ModelConfig;
use serde_json::Value as Json;

pub use cast::{cast, to_bf16};
pub use copy::{Copying, TILE, Tile, room};
pub use dir::{COMPANIONS, MODEL, ModelDir, wrong_model_dir};

/// The families there are.
const FAMILIES: &[&Family] = &[&llama::LLAMA];

/// A family of models.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in `config.json`.
    model_type: &'static str,
    /// Fields of `config.json` that are understood, or do not touch the weights' meaning.
    fields: &'static [&'static str],
    /// Tensors that older files have and that carry nothing: buffers that are computed.
    ignored: &'static [&'static str],
    /// Megatron's tensors.
    rules: &'static [Rule],
}

/// A Megatron tensor.
#[derive(Debug)]
struct Rule {
    key: &'static str,
    /// It stacks the layers on axis 0, and `{}` in its sources' names is the layer.
    layered: bool,
    /// It is not there in a model whose output layer is its embedding.
    untied_only: bool,
    join: Join,
}

/// A Hugging Face tensor: name and shape.
#[derive(Debug)]
struct Source(&'static str, &'static [Dim]);

/// How Hugging Face's tensors make a Megatron tensor, by rows.
#[derive(Debug)]
enum Join {
    /// It is one.
    One(Source),
    /// One below the other, each a chunk of its own as Megatron cuts it: gate and up.
    Stack([Source; 2]),
    /// Query, key and value, interleaved by group: the query heads of a key-value head, its key, its value.
    Qkv([Source; 3]),
}

/// A length that a model's config gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dim {
    Vocab,
    Hidden,
    Ffn,
    /// Rows of all query heads.
    Query,
    /// Rows of all key (or value) heads.
    KeyValue,
}

impl Dim {
    fn of(self, config: &ModelConfig) -> u64 {
        let len = match self {
            Self::Vocab => config.vocab_size,
            Self::Hidden => config.hidden_size,
            Self::Ffn => config.intermediate_size,
            Self::Query => config.num_attention_heads * config.head_dim,
            Self::KeyValue => config.num_key_value_heads * config.head_dim,
        };
        len as u64
    }
}

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
    pub key: &'static str,
    /// Its shape.
    pub shape: Vec<u64>,
    /// It stacks the layers on axis 0; rows are on axis 1.
    pub layered: bool,
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
}

/// The layout of the model that a `config.json` describes, and its geometry.
///
/// # Errors
/// The family, or a field, is not known: with its name. Or Megatron cannot express the model: with the reason.
pub fn layout(config: &Json) -> Result<(&'static Family, ModelConfig, Layout)> {
    let model_type = config["model_type"].as_str().context("config.json has no `model_type`")?;
    let family = FAMILIES.iter().find(|family| family.model_type == model_type).with_context(|| {
        let known: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
        format!("`model_type` is `{model_type}`, which has no table here; there is one for {}", known.join(", "))
    })?;
    let fields = config.as_object().context("config.json is not an object")?;
    if let Some(field) = fields.keys().find(|field| !family.fields.contains(&field.as_str())) {
        bail!(
            "`{field}` in config.json is not known for `{model_type}`: what it means for the weights is not known either"
        );
    }
    let geometry = ModelConfig::from_json(config)?;
    expressible(&geometry)?;
    Ok((family, geometry.clone(), family.layout(&geometry)))
}

/// Megatron's code has Llama 3's RoPE scaling with its constants written in; only the factor can be told to it.
fn expressible(config: &ModelConfig) -> Result<()> {
    if let Some(scaling) = &config.rope_scaling {
        let found = (scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings);
        ensure!(
            found == (1.0, 4.0, 8192),
            "RoPE scaling with low_freq_factor {}, high_freq_factor {}, original_max_position_embeddings {} cannot be \
             expressed: Megatron has 1, 4 and 8192 written into its code, and keeps the factor alone",
            found.0,
            found.1,
            found.2
        );
    }
    Ok(())
}

impl Family {
    /// Whether a tensor carries nothing.
    #[must_use]
    pub fn ignores(&self, name: &str, config: &ModelConfig) -> bool {
        let spelt = |pattern: &str| match pattern.split_once("{}") {
            Some((before, after)) => name
                .strip_prefix(before)
                .and_then(|rest| rest.strip_suffix(after))
                .is_some_and(|layer| !layer.is_empty() && layer.bytes().all(|b| b.is_ascii_digit())),
            None => name == pattern,
        };
        self.ignored.iter().any(|pattern| spelt(pattern))
            // A second copy of a tied embedding: loaders take the embedding, whatever it holds.
            || config.tie_word_embeddings
                && self.rules.iter().any(|rule| {
                    rule.untied_only && matches!(&rule.join, Join::One(source) if source.0 == name)
                })
    }

    fn layout(&self, config: &ModelConfig) -> Layout {
        let layers = config.num_hidden_layers as u64;
        let mut layout = Layout::default();
        let rules: Vec<&Rule> =
            self.rules.iter().filter(|rule| !(rule.untied_only && config.tie_word_embeddings)).collect();
        for (target, rule) in rules.iter().enumerate() {
            let rows: u64 = rule.join.sources().iter().map(|source| source.1[0].of(config)).sum();
            let width = &rule.join.sources()[0].1[1..];
            let mut shape = vec![rows];
            shape.extend(width.iter().map(|dim| dim.of(config)));
            if rule.layered {
                shape.insert(0, layers);
            }
            let mut made = Target {
                key: rule.key,
                shape,
                layered: rule.layered,
                vocabulary: rule.join.sources()[0].1[0] == Dim::Vocab,
                chunks: Vec::new(),
            };
            for layer in 0..if rule.layered { layers } else { 1 } {
                rule.place(config, target, layer, &mut made, &mut layout);
            }
            layout.megatron.push(made);
        }
        layout.in_model_order();
        layout
    }
}

impl Join {
    fn sources(&self) -> &[Source] {
        match self {
            Self::One(source) => std::slice::from_ref(source),
            Self::Stack(sources) => sources,
            Self::Qkv(sources) => sources,
        }
    }
}

impl Rule {
    /// Writes out one layer (or all of a tensor without layers).
    fn place(&self, config: &ModelConfig, target: usize, layer: u64, made: &mut Target, layout: &mut Layout) {
        let sources = self.join.sources();
        let first = layout.hf.len();
        for Source(name, dims) in sources {
            let shape = dims.iter().map(|dim| dim.of(config)).collect();
            layout.hf.push(Named { name: name.replace("{}", &layer.to_string()), shape });
        }
        let width = sources[0].1[1..].iter().map(|dim| dim.of(config)).product();
        let chunk = |made: &mut Target, row: u64, rows: u64| {
            let (mut offset, mut size) = (vec![0; made.shape.len()], made.shape.clone());
            let axis = usize::from(self.layered);
            if self.layered {
                (offset[0], size[0]) = (layer, 1);
            }
            (offset[axis], size[axis]) = (row, rows);
            made.chunks.push((offset, size));
            made.chunks.len() - 1
        };
        let rows_of = |i: usize| sources[i].1[0].of(config);
        match &self.join {
            Join::One(_) => {
                let chunk = chunk(made, 0, rows_of(0));
                layout.rows.push(Rows { hf: first, hf_row: 0, target, chunk, row: 0, rows: rows_of(0), width });
            }
            Join::Stack(_) => {
                let mut at = 0;
                for i in 0..sources.len() {
                    let chunk = chunk(made, at, rows_of(i));
                    at += rows_of(i);
                    layout.rows.push(Rows { hf: first + i, hf_row: 0, target, chunk, row: 0, rows: rows_of(i), width });
                }
            }
            Join::Qkv(_) => {
                let groups = config.num_key_value_heads as u64;
                let chunk = chunk(made, 0, (0..3).map(rows_of).sum());
                let mut row = 0;
                for group in 0..groups {
                    for i in 0..3 {
                        let rows = rows_of(i) / groups;
                        let hf_row = group * rows;
                        layout.rows.push(Rows { hf: first + i, hf_row, target, chunk, row, rows, width });
                        row += rows;
                    }
                }
            }
        }
    }
}

impl Layout {
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
        order.sort_by_key(|&i| place(&self.hf[i].name));
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
