//! `config = { … }` or `config = "path"`.

use std::{borrow::Cow, fmt};

use flow_core::Ref;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value as Json, json};

/// What a `config.json` holds.
#[derive(Clone, Debug)]
pub(super) enum Config {
    /// Written in the pipeline, completed with what a Llama's config always says.
    Table(Json),
    /// In a file, or in a stage's result.
    Path(Ref),
}

impl Config {
    pub(super) fn path(&self) -> Option<&Ref> {
        match self {
            Self::Path(path) => Some(path),
            Self::Table(_) => None,
        }
    }

    /// The key sees the file's content, not its name.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.path().is_some()
    }
}

impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Table(table) => table.serialize(serializer),
            Self::Path(path) => path.serialize(serializer),
        }
    }
}

impl JsonSchema for Config {
    fn schema_name() -> Cow<'static, str> {
        "Config".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["object", "string"] })
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Config;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table such as { vocab_size = 8192, hidden_size = 128, … }, or the path of a config.json")
            }
            fn visit_str<E>(self, text: &str) -> Result<Config, E> {
                Ok(Config::Path(Ref::new(text)))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Config, A::Error> {
                let table = Map::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Config::Table(complete(table)))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// What is left out is what a Llama has; what has no usual value is asked for by the check.
fn complete(mut table: Map<String, Json>) -> Json {
    let defaults = json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": null,
        "eos_token_id": null,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 2048,
        "mlp_bias": false,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": null,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": false,
        "use_cache": true,
    });
    for (field, value) in defaults.as_object().into_iter().flatten() {
        table.entry(field.clone()).or_insert_with(|| value.clone());
    }
    Json::Object(table)
}
