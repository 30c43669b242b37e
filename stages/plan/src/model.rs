//! [`ModelConfig`]: the geometry of a decoder, as Hugging Face's `config.json` says it. What is trained here is a Llama.

mod run_config;

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

/// The geometry of a Llama-shaped model. Read from `config.json` by `flow_plan` in both spellings of RoPE
/// (`rope_theta` + `rope_scaling`, and `rope_parameters`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// RoPE's base.
    pub rope_theta: f64,
    /// RoPE's llama3 scaling, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// The output layer is the embedding.
    pub tie_word_embeddings: bool,
    /// The token that ends a text, where the config names one and not several.
    #[serde(default)]
    pub eos_token_id: Option<i64>,
}

/// RoPE's llama3 scaling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    /// Wave lengths beyond the low-frequency bound are stretched by this.
    pub factor: f64,
    /// 1.0 in Llama 3.
    pub low_freq_factor: f64,
    /// 4.0 in Llama 3.
    pub high_freq_factor: f64,
    /// 8192 in Llama 3.
    pub original_max_position_embeddings: usize,
}

impl ModelConfig {
    /// Floating-point operations a token of forward and backward: six a weight that is multiplied with (the output layer is,
    /// the embedding is not), and those of causal attention over sequences of `seq_length`.
    #[must_use]
    pub fn flops_per_token(&self, seq_length: usize) -> f64 {
        let [h, f, v, layers] =
            [self.hidden_size, self.intermediate_size, self.vocab_size, self.num_hidden_layers].map(|n| n as f64);
        let (heads, groups) = (self.num_attention_heads as f64, self.num_key_value_heads as f64);
        let width = heads * self.head_dim as f64;
        let dense = layers * h * (2.0 * width + 2.0 * groups * self.head_dim as f64 + 3.0 * f) + v * h;
        6.0 * dense + 6.0 * layers * width * seq_length as f64
    }

    /// Reads `config.json`: `path` is the file, a Hugging Face directory, or a Megatron checkpoint that keeps it under
    /// `hf/`.
    ///
    /// # Errors
    /// There is none, or as [`ModelConfig::from_json`].
    pub fn read(path: &Path) -> Result<Self> {
        let places = [path.join("config.json"), path.join("hf/config.json")];
        let file = match places.iter().find(|place| place.is_file()) {
            Some(place) => place,
            None if path.is_dir() => bail!("{} has neither config.json nor hf/config.json", path.display()),
            None => path,
        };
        let read = || -> Result<Self> { Self::from_json(&serde_json::from_slice(&fs::read(file)?)?) };
        read().with_context(|| format!("cannot use {}", file.display()))
    }

    /// Reads the object in `config.json`, in the spelling of transformers 4 (`rope_theta`, `rope_scaling`) or 5
    /// (`rope_parameters`).
    ///
    /// # Errors
    /// It is not a Llama, or one with a part that the model code here does not have: with the field and the reason.
    pub fn from_json(config: &Json) -> Result<Self> {
        ensure!(config.is_object(), "the model's config is not an object");
        if let Some(model_type) = text(config, "model_type")? {
            ensure!(model_type == "llama", "`model_type` is `{model_type}`; only `llama` is supported");
        }
        // What the model code does not have: these must be absent, null, or this.
        for (field, plain) in [
            ("hidden_act", json!("silu")),
            ("attention_bias", json!(false)),
            ("mlp_bias", json!(false)),
            ("pretraining_tp", json!(1)),
            ("partial_rotary_factor", json!(1.0)),
            ("quantization_config", Json::Null),
        ] {
            let value = &config[field];
            let same = *value == plain || value.as_f64().is_some_and(|number| plain.as_f64() == Some(number));
            ensure!(value.is_null() || same, "`{field}` is {value}; only {plain} is supported");
        }
        Self::geometry(config)
    }

    /// Reads what any decoder's `config.json` says in the same words, whatever its `model_type`. What else the model
    /// has is not looked at.
    ///
    /// # Errors
    /// A field is missing, or makes no sense: with its name.
    pub fn geometry(config: &Json) -> Result<Self> {
        let hidden_size = size(config, "hidden_size")?;
        let num_attention_heads = size(config, "num_attention_heads")?;
        ensure!(num_attention_heads > 0, "`num_attention_heads` is 0");
        let num_key_value_heads = optional_size(config, "num_key_value_heads")?.unwrap_or(num_attention_heads);
        let head_dim = match optional_size(config, "head_dim")? {
            Some(head_dim) => head_dim,
            None => {
                ensure!(
                    hidden_size.is_multiple_of(num_attention_heads),
                    "`hidden_size` {hidden_size} is not a multiple of `num_attention_heads` {num_attention_heads}, and there is no `head_dim`"
                );
                hidden_size / num_attention_heads
            }
        };
        let (rope_theta, rope_scaling) = rope(config)?;
        let this = Self {
            vocab_size: size(config, "vocab_size")?,
            hidden_size,
            intermediate_size: size(config, "intermediate_size")?,
            num_hidden_layers: size(config, "num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings: optional_size(config, "max_position_embeddings")?.unwrap_or(2048),
            rms_norm_eps: number(config, "rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            tie_word_embeddings: match &config["tie_word_embeddings"] {
                Json::Null => false,
                Json::Bool(tied) => *tied,
                other => bail!("`tie_word_embeddings` is {other}, not true or false"),
            },
            eos_token_id: config["eos_token_id"].as_i64(),
        };
        this.check()?;
        Ok(this)
    }

    fn check(&self) -> Result<()> {
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            ensure!(value > 0, "`{field}` is 0");
            ensure!(u32::try_from(value).is_ok(), "`{field}` is {value}, which no model has");
        }
        ensure!(
            self.num_attention_heads.is_multiple_of(self.num_key_value_heads),
            "`num_attention_heads` {} is not a multiple of `num_key_value_heads` {}",
            self.num_attention_heads,
            self.num_key_value_heads
        );
        ensure!(self.head_dim.is_multiple_of(2), "`head_dim` {} is odd: RoPE turns pairs", self.head_dim);
        ensure!(self.rope_theta > 0.0 && self.rms_norm_eps >= 0.0, "`rope_theta` or `rms_norm_eps` is negative");
        Ok(())
    }
}

fn optional_size(config: &Json, field: &str) -> Result<Option<usize>> {
    match &config[field] {
        Json::Null => Ok(None),
        value => {
            let number = value.as_u64().with_context(|| format!("`{field}` is {value}, not a count"))?;
            Ok(Some(usize::try_from(number)?))
        }
    }
}

fn size(config: &Json, field: &str) -> Result<usize> {
    optional_size(config, field)?.with_context(|| format!("`{field}` is missing"))
}

fn number(config: &Json, field: &str) -> Result<Option<f64>> {
    match &config[field] {
        Json::Null => Ok(None),
        value => Ok(Some(value.as_f64().with_context(|| format!("`{field}` is {value}, not a number"))?)),
    }
}

fn text<'a>(config: &'a Json, field: &str) -> Result<Option<&'a str>> {
    match &config[field] {
        Json::Null => Ok(None),
        value => Ok(Some(value.as_str().with_context(|| format!("`{field}` is {value}, not a string"))?)),
    }
}

const ROPE_FIELDS: [&str; 7] = [
    "factor",
    "high_freq_factor",
    "low_freq_factor",
    "original_max_position_embeddings",
    "rope_theta",
    "rope_type",
    "type",
];

/// RoPE in either spelling. Where both are there, the newer one counts, as in transformers 5.
fn rope(config: &Json) -> Result<(f64, Option<RopeScaling>)> {
    let new = &config["rope_parameters"];
    let (scaling, place) =
        if new.is_object() { (new, "rope_parameters") } else { (&config["rope_scaling"], "rope_scaling") };
    let theta = match number(scaling, "rope_theta")? {
        Some(theta) => theta,
        None => number(config, "rope_theta")?.unwrap_or(10_000.0),
    };
    let Some(fields) = scaling.as_object() else {
        ensure!(scaling.is_null(), "`{place}` is {scaling}, not an object");
        return Ok((theta, None));
    };
    if let Some(field) = fields.keys().find(|field| !ROPE_FIELDS.contains(&field.as_str())) {
        bail!("`{place}.{field}` is not known");
    }
    // `type` is what the first versions called it.
    let kind = match text(scaling, "rope_type")? {
        Some(kind) => kind,
        None => text(scaling, "type")?.unwrap_or("default"),
    };
    match kind {
        "default" => Ok((theta, None)),
        "llama3" => {
            let need = |field: &str| number(scaling, field)?.with_context(|| format!("`{place}.{field}` is missing"));
            let scaling = RopeScaling {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_position_embeddings: size(scaling, "original_max_position_embeddings")
                    .with_context(|| format!("`{place}`"))?,
            };
            ensure!(
                scaling.factor > 0.0 && scaling.high_freq_factor > scaling.low_freq_factor,
                "`{place}`: factor {} and frequencies {} to {} make no sense",
                scaling.factor,
                scaling.low_freq_factor,
                scaling.high_freq_factor
            );
            Ok((theta, Some(scaling)))
        }
        other => bail!("`{place}.rope_type` is `{other}`; `default` and `llama3` are supported"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/megatron_ckpt/untied_v512").join(name)
    }

    #[test]
    fn both_spellings_say_the_same() {
        let old = ModelConfig::read(&golden("hf")).unwrap();
        let new = ModelConfig::read(&golden("config.transformers5.json")).unwrap();
        assert_eq!(old, new);
        assert_eq!((old.vocab_size, old.head_dim, old.num_key_value_heads, old.rope_theta), (512, 16, 2, 500_000.0));
        let scaling = old.rope_scaling.unwrap();
        assert_eq!((scaling.factor, scaling.original_max_position_embeddings), (8.0, 8192));
        assert!(!old.tie_word_embeddings);
    }

    #[test]
    fn what_is_not_there_is_what_transformers_assumes() {
        let config = json!({
            "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 1, "num_attention_heads": 2, "rope_scaling": null
        });
        let read = ModelConfig::from_json(&config).unwrap();
        assert_eq!((read.num_key_value_heads, read.head_dim, read.max_position_embeddings), (2, 8, 2048));
        assert_eq!((read.rope_theta, read.rms_norm_eps, read.rope_scaling), (10_000.0, 1e-6, None));
    }

    #[test]
    fn what_cannot_be_computed_is_refused_by_name() {
        let good: Json = serde_json::from_slice(&fs::read(golden("hf/config.json")).unwrap()).unwrap();
        for (field, value) in [
            ("model_type", json!("qwen2")),
            ("hidden_act", json!("gelu")),
            ("attention_bias", json!(true)),
            ("mlp_bias", json!(true)),
            ("quantization_config", json!({"bits": 4})),
            ("num_key_value_heads", json!(3)),
            ("head_dim", json!(15)),
            ("vocab_size", json!("many")),
            ("num_hidden_layers", json!(0)),
            ("hidden_size", Json::Null),
            ("tie_word_embeddings", json!(1)),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
            ("rope_scaling", json!({"rope_type": "llama3", "factor": 4.0})),
            ("rope_scaling", json!(8.0)),
            ("rope_parameters", json!({"rope_type": "default", "partial_rotary_factor": 0.5})),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            let error = format!("{:#}", ModelConfig::from_json(&bad).unwrap_err());
            assert!(error.contains(field), "{error} should name {field}");
        }
    }
}
