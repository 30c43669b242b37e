//! [`Family`]: a table of names, shapes and fields; [`Model`]: what it makes of one `config.json`.

use anyhow::{Context, Result, bail, ensure};
use flow_formats::DType;
use flow_plan::ModelConfig;
use serde_json::{Map, Value as Json};

use super::{families::FAMILIES, layout::Layout};

/// A family of models.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub(super) model_type: &'static str,
    /// What transformers takes where `config.json` is silent: a JSON object.
    pub(super) defaults: &'static str,
    /// Fields that may only be absent, null or this, as Megatron has nothing else: a JSON object. A list may hold
    /// this value any number of times.
    pub(super) only: &'static str,
    /// More fields that are understood, or do not touch the weights' meaning, besides [`COMMON`].
    pub(super) fields: &'static [&'static str],
    /// Tensors that older files have and that carry nothing: buffers that are computed.
    pub(super) ignored: &'static [&'static str],
    /// The fields that hold the number of experts, and the width of one.
    pub(super) experts: Option<(&'static str, &'static str)>,
    /// Megatron's tensors.
    pub(super) rules: &'static [Rule],
    /// The modules of a layer whose (empty) states Megatron wants to see in a checkpoint.
    pub(super) states: &'static [State],
    /// What `run_config.yaml` says of the family.
    pub(super) run_config: &'static [(&'static str, Said)],
    /// Of the layers, every so manieth attends to all positions, the others to a window: Megatron's code has the number. 0:
    /// all layers are alike.
    pub(super) full_every: u64,
    /// How `run_config.yaml` calls a factor that positions are divided by, and what it says if there is none.
    pub(super) linear: (&'static str, Option<&'static str>),
}

/// [`Family::linear`] of most.
pub(super) const INTERPOLATED: (&str, Option<&str>) = ("seq_len_interpolation_factor", None);

/// Fields of every family.
const COMMON: &[&str] = &[
    // The geometry, which is checked where it is read.
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
    // Of training, generation and the file itself.
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "max_length",
    "max_sequence_length",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// A Megatron tensor.
#[derive(Debug)]
pub(super) struct Rule {
    pub key: &'static str,
    pub per: Per,
    /// It is not there in a model whose output layer is its embedding.
    pub untied_only: bool,
    pub join: Join,
}

/// What a tensor stacks on its first axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Per {
    /// Nothing: there is one in the model.
    Model,
    /// The layers on axis 0; `{}` in the sources' names is the layer.
    Layer,
    /// The layers on axis 0, the experts on axis 1; `{e}` in the sources' names is the expert.
    Expert,
}

/// A module whose state is an object of its own for each layer, or for each expert of each layer.
#[derive(Debug)]
pub(super) struct State(pub &'static str, pub Per);

/// A Hugging Face tensor: name and shape.
#[derive(Debug)]
pub(super) struct Source(pub &'static str, pub &'static [Dim]);

/// How Hugging Face's tensors make a Megatron tensor, by rows.
#[derive(Debug)]
pub(super) enum Join {
    /// It is one.
    One(Source),
    /// One below the other, each a chunk of its own as Megatron cuts it: gate and up.
    Stack([Source; 2]),
    /// Query, key and value, interleaved by group: the query heads of a key-value head, its key, its value.
    Qkv([Source; 3]),
}

impl Join {
    pub fn sources(&self) -> &[Source] {
        match self {
            Self::One(source) => std::slice::from_ref(source),
            Self::Stack(sources) => sources,
            Self::Qkv(sources) => sources,
        }
    }
}

/// A length that a model's config gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dim {
    Vocab,
    Hidden,
    Ffn,
    /// Rows of all query heads.
    Query,
    /// Rows of all key (or value) heads.
    KeyValue,
    /// Width of a head.
    Head,
    Experts,
    ExpertFfn,
}

/// A value in `run_config.yaml`.
#[derive(Debug)]
pub(super) enum Said {
    /// Always this.
    Is(&'static str),
    /// What `config.json` has under this name.
    Field(&'static str),
    /// Of this field, the window that looks back so far; nothing if it is null.
    Window(&'static str),
    /// These fields, as a list.
    List([&'static str; 2]),
    /// One divided by the square root of this field.
    InverseRoot(&'static str),
}

/// One model of a family.
#[derive(Debug)]
pub struct Model {
    /// Its family.
    pub family: &'static Family,
    /// Its lengths.
    pub geometry: ModelConfig,
    /// Experts of a layer, and rows of each; 0 in a dense model.
    pub(super) experts: (u64, u64),
    /// What `run_config.yaml` says besides the geometry.
    pub run_config: Vec<(&'static str, String)>,
    /// Its tensors, here and there.
    pub layout: Layout,
}

impl Model {
    /// The model that a `config.json` describes.
    ///
    /// # Errors
    /// The family, or a field, is not known: with its name. Or Megatron cannot express the model: with the reason.
    pub fn of(config: &Json) -> Result<Self> {
        let model_type = config["model_type"].as_str().context("config.json has no `model_type`")?;
        let family = FAMILIES.iter().find(|family| family.model_type == model_type).with_context(|| {
            let known: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
            format!("`model_type` is `{model_type}`, which has no table here; there is one for {}", known.join(", "))
        })?;
        let fields = &family.in_own_words(config.as_object().context("config.json is not an object")?);
        let only = object(family.only);
        let known = |field: &str| COMMON.contains(&field) || family.fields.contains(&field) || only.contains_key(field);
        if let Some(field) = fields.keys().find(|field| !known(field)) {
            bail!(
                "`{field}` in config.json is not known for `{model_type}`: what it means for the weights is not known \
                 either"
            );
        }
        let mut whole = object(family.defaults);
        whole.extend(fields.clone());
        for (field, wanted) in &only {
            let found = whole.get(field).unwrap_or(&Json::Null);
            ensure!(
                allowed(found, wanted),
                "`{field}` in config.json is {found}; of `{model_type}` models, Megatron can express {wanted} alone"
            );
        }
        family.check_layers(&whole)?;
        rope_by_layer(&mut whole)?;
        rope_kind(&whole)?;
        let stretched = linear_rope(&mut whole);
        let whole = Json::Object(whole);
        let geometry = ModelConfig::geometry(&whole)?;
        rope_expressible(&geometry)?;
        let (factor, unstretched) = family.linear;
        ensure!(
            unstretched.is_none() || geometry.rope_scaling.is_none(),
            "RoPE scaling of `llama3` cannot be expressed for `{model_type}`: Megatron has the linear one there"
        );
        let count = |field: &str| {
            let found = whole[field].as_u64().filter(|count| (1..=u64::from(u32::MAX)).contains(count));
            found.with_context(|| format!("`{field}` in config.json is {}, not a count", whole[field]))
        };
        let experts = match family.experts {
            Some((number, width)) => (count(number)?, count(width)?),
            None => (0, 0),
        };
        let said = family.run_config.iter().filter_map(|(field, said)| Some((*field, said.of(&whole)?)));
        let stretched = stretched.or(unstretched.map(str::to_owned));
        let run_config = said.chain(stretched.map(|by| (factor, by))).collect();
        let mut model = Self { family, geometry, experts, run_config, layout: Layout::default() };
        model.layout = Layout::of(&model);
        Ok(model)
    }

    /// The type of the weights, where the config says it.
    #[must_use]
    pub fn dtype(config: &Json) -> Option<DType> {
        ["torch_dtype", "dtype"].iter().find_map(|field| config[*field].as_str()).and_then(DType::from_torch)
    }

    /// A line for `flow plan`: what will be written.
    #[must_use]
    pub fn size_note(&self, dtype: Option<DType>) -> String {
        let parameters: u64 = self.layout.hf.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum();
        let bytes = match dtype {
            Some(dtype) => format!(", {:.1} MB in {}", (parameters * dtype.size()) as f64 / 1e6, dtype.torch()),
            None => String::new(),
        };
        format!("{parameters} parameters in {} tensors{bytes}", self.layout.hf.len())
    }

    pub(super) fn len(&self, dim: Dim) -> u64 {
        let config = &self.geometry;
        let len = match dim {
            Dim::Vocab => config.vocab_size,
            Dim::Hidden => config.hidden_size,
            Dim::Ffn => config.intermediate_size,
            Dim::Query => config.num_attention_heads * config.head_dim,
            Dim::KeyValue => config.num_key_value_heads * config.head_dim,
            Dim::Head => config.head_dim,
            Dim::Experts => return self.experts.0,
            Dim::ExpertFfn => return self.experts.1,
        };
        len as u64
    }

    /// How often a tensor's part stands on the axes before its own: layers, experts.
    pub(super) fn stack(&self, per: Per) -> Vec<u64> {
        let layers = self.geometry.num_hidden_layers as u64;
        match per {
            Per::Model => vec![],
            Per::Layer => vec![layers],
            Per::Expert => vec![layers, self.experts.0],
        }
    }

    /// The keys of the (empty) states that Megatron wants to see.
    pub fn states(&self) -> impl Iterator<Item = String> {
        self.family.states.iter().flat_map(|State(module, per)| {
            let stack = self.stack(*per);
            let shape = stack.iter().map(u64::to_string).collect::<Vec<_>>().join(".");
            let count: u64 = stack.iter().product();
            (0..count).map(move |i| {
                let place = match stack[..] {
                    [_, experts] => format!("{}.{}", i / experts, i % experts),
                    _ => i.to_string(),
                };
                format!("decoder.layers.{module}._extra_state/shard_{place}_{shape}")
            })
        })
    }

    /// Whether a tensor of a Hugging Face model carries nothing.
    #[must_use]
    pub fn ignores(&self, name: &str) -> bool {
        let spelt = |pattern: &str| match pattern.split_once("{}") {
            Some((before, after)) => name
                .strip_prefix(before)
                .and_then(|rest| rest.strip_suffix(after))
                .is_some_and(|layer| !layer.is_empty() && layer.bytes().all(|b| b.is_ascii_digit())),
            None => name == pattern,
        };
        self.family.ignored.iter().any(|pattern| spelt(pattern))
            // A second copy of a tied embedding: loaders take the embedding, whatever it holds.
            || self.geometry.tie_word_embeddings
                && self.family.rules.iter().any(|rule| {
                    rule.untied_only && matches!(&rule.join, Join::One(source) if source.0 == name)
                })
    }
}

impl Family {
    /// The fields as the table calls them: transformers 5 has the number of experts as `num_local_experts` in every family.
    fn in_own_words(&self, fields: &Map<String, Json>) -> Map<String, Json> {
        let mut fields = fields.clone();
        let Some((own, _)) = self.experts.filter(|(own, _)| *own != "num_local_experts") else { return fields };
        if fields.get("num_local_experts").is_some_and(|new| fields.get(own).is_none_or(|old| old == new))
            && let Some(number) = fields.remove("num_local_experts")
        {
            fields.insert(own.to_owned(), number);
        }
        fields
    }

    /// Which layers attend to all positions is what Megatron's code has for the family.
    fn check_layers(&self, config: &Map<String, Json>) -> Result<()> {
        let every = self.full_every;
        if every == 0 {
            return Ok(());
        }
        for field in ["sliding_window_pattern", "_sliding_window_pattern"] {
            let found = config.get(field).filter(|found| !found.is_null());
            ensure!(
                found.is_none_or(|found| found.as_u64() == Some(every)),
                "`{field}` in config.json is {}; of `{}` models, Megatron can express {every} alone",
                config[field],
                self.model_type
            );
        }
        let Some(types) = config.get("layer_types").filter(|types| !types.is_null()) else { return Ok(()) };
        let types = types.as_array().context("`layer_types` in config.json is not a list")?;
        for (number, found) in (1..).zip(types) {
            let wanted = if number % every == 0 { "full_attention" } else { "sliding_attention" };
            ensure!(
                found == wanted,
                "layer {} of `layer_types` in config.json is {found}; of `{}` models, Megatron makes it {wanted}",
                number - 1,
                self.model_type
            );
        }
        Ok(())
    }
}

impl Said {
    fn of(&self, config: &Json) -> Option<String> {
        match self {
            Self::Is(value) => Some((*value).to_owned()),
            Self::Field(field) => Some(config[*field].to_string()),
            Self::Window(field) => config[*field].as_u64().map(|back| format!("[{back}, 0]")),
            Self::List(fields) => Some(format!("[{}]", fields.map(|field| config[field].to_string()).join(", "))),
            Self::InverseRoot(field) => config[*field].as_f64().map(|number| format!("{:?}", 1.0 / number.sqrt())),
        }
    }
}

/// A table's JSON.
fn object(text: &str) -> Map<String, Json> {
    serde_json::from_str(text).expect("the tables hold objects; a test reads each")
}

fn allowed(found: &Json, wanted: &Json) -> bool {
    let same = |value: &Json| value == wanted || wanted.as_f64().is_some_and(|number| value.as_f64() == Some(number));
    found.is_null() || same(found) || found.as_array().is_some_and(|list| list.iter().all(same))
}

/// Where RoPE differs by the kind of a layer, transformers 5 writes a table for each kind; version 4 wrote the base of
/// windowed layers into a field of its own, which is what is read behind this.
fn rope_by_layer(config: &mut Map<String, Json>) -> Result<()> {
    let Some(kinds) = config.get("rope_parameters").filter(|kinds| kinds["full_attention"].is_object()) else {
        return Ok(());
    };
    let (full, local) = (kinds["full_attention"].clone(), kinds["sliding_attention"].clone());
    ensure!(
        local["rope_type"].is_null() || local["rope_type"] == "default",
        "`rope_parameters.sliding_attention` in config.json is {local}: Megatron does not scale it"
    );
    if !local["rope_theta"].is_null() {
        config.insert("rope_local_base_freq".into(), local["rope_theta"].clone());
    }
    if !full["rope_theta"].is_null() {
        config.insert("rope_theta".into(), full["rope_theta"].clone());
    }
    config.insert("rope_parameters".into(), full);
    Ok(())
}

/// The kinds of RoPE scaling that are put into Megatron's words here. Another one, left out, would make another model.
fn rope_kind(config: &Map<String, Json>) -> Result<()> {
    for place in ["rope_parameters", "rope_scaling"] {
        let scaling = config.get(place).unwrap_or(&Json::Null);
        let kind = ["rope_type", "type"].iter().find_map(|field| scaling[*field].as_str()).unwrap_or("default");
        ensure!(
            ["default", "linear", "llama3"].contains(&kind),
            "RoPE scaling of `{kind}` (`{place}` in config.json) is not known here, and Megatron would have to be told of it: \
             `linear` and `llama3` are"
        );
    }
    Ok(())
}

/// Positions divided by a factor (`"rope_type": "linear"`): Megatron has a field of its own for it. Takes it out of the
/// config, for whoever reads the rest of RoPE, and gives the factor as YAML.
fn linear_rope(config: &mut Map<String, Json>) -> Option<String> {
    for place in ["rope_parameters", "rope_scaling"] {
        let Some(scaling) = config.get_mut(place).and_then(Json::as_object_mut) else { continue };
        let linear = ["rope_type", "type"].iter().any(|field| scaling.get(*field).is_some_and(|kind| kind == "linear"));
        let factor = scaling.get("factor").and_then(Json::as_f64).filter(|&factor| linear && factor > 0.0)?;
        scaling.retain(|field, _| field == "rope_theta");
        return Some(format!("{factor:?}"));
    }
    None
}

/// Megatron's code has Llama 3's RoPE scaling with its constants written in; only the factor can be told to it.
fn rope_expressible(config: &ModelConfig) -> Result<()> {
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
