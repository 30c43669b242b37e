//! `init-model`: a model with random weights, to pre-train from scratch or to try a pipeline.

mod config;
mod normal;

use std::{collections::HashMap, fs, fs::File, os::unix::fs::FileExt};

use anyhow::{Context, Result, bail, ensure};
use flow_core::{Check, Ctx, Diagnostic, Port, Ref, Stage};
use flow_formats::{DType, safetensors};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::{
    facts,
    models::{self, Copying, Model, ModelDir, Tile},
};
use config::Config;
use normal::Normal;

/// `kind = "init-model"`: a Hugging Face directory. Matrices are drawn from a normal distribution with mean 0 and
/// standard deviation `initializer_range` (0.02 if the config does not say), norms are 1, as transformers does. The
/// numbers depend on the seed and on the tensor's name alone ([`normal`]): the same on every machine.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InitModel {
    /// The model's geometry: a table, or the path of a `config.json`.
    #[serde(skip_serializing_if = "Config::is_elsewhere")]
    config: Config,
    /// Of the random numbers.
    #[serde(default)]
    seed: u64,
    /// The type of the weights; what the config says (`torch_dtype`) if it is not given, else bf16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dtype: Option<Dtype>,
    /// A stage or directory whose tokenizer files come along.
    #[serde(default, skip_serializing)]
    tokenizer: Option<Ref>,
}

/// The types there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Dtype {
    Fp32,
    Bf16,
}

impl Stage for InitModel {
    const KIND: &'static str = "init-model";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Makes a Hugging Face model with random weights";

    fn ports(&self) -> Vec<Port> {
        let config = self.config.path().map(|path| Port::one("config", path));
        let tokenizer = self
            .tokenizer
            .as_ref()
            .map(|name| Port::all("tokenizer", std::slice::from_ref(name)).only(models::COMPANIONS));
        config.into_iter().chain(tokenizer).collect()
    }

    fn check(&self, check: &mut Check<'_>) {
        let mut tokens = facts::of_port(check, "tokenizer");
        tokens.retain(|name, _| name == "tokenizer_vocab" || name == "max_token_id");
        check.facts.extend(tokens.clone());
        let config = match self.known_config(check) {
            None => return, // a stage's result that is not there yet
            Some(Ok(config)) => config,
            Some(Err(error)) => return check.error("config", crate::diagnostic(&error)),
        };
        match model(&config).and_then(|model| self.dtype(&config).map(|_| model)) {
            Err(error) => check.error("config", crate::diagnostic(&error)),
            Ok(Model { geometry, .. }) => {
                let count = |name| tokens.get(name).and_then(Json::as_u64);
                // Ids count, not their number: an id of 8192 needs a row 8192.
                let needed = count("max_token_id").map(|id| id + 1).max(count("tokenizer_vocab"));
                if let Some(needed) = needed.filter(|&needed| needed > geometry.vocab_size as u64) {
                    let message = format!(
                        "the tokenizer needs {needed} tokens, and the model's vocab_size is {}",
                        geometry.vocab_size
                    );
                    check
                        .error("config", Diagnostic::new(message).hint(format!("set `vocab_size = {needed}` or more")));
                }
                check.provide("vocab_size", geometry.vocab_size);
                check.provide("max_position_embeddings", geometry.max_position_embeddings);
                check.provide("model_config", config);
            }
        }
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let config = match &self.config {
            Config::Table(table) => table.clone(),
            Config::Path(_) => {
                let input = ctx.one("config")?;
                let path = input.file("config.json").or_else(|| match input.files().as_slice() {
                    [(_, only)] => Some(only.clone()),
                    _ => None,
                });
                facts::read_json(&path.with_context(|| format!("{} has no config.json", input.name))?)?
            }
        };
        let layout = model(&config).context("the model cannot be made")?.layout;
        let deviation = match &config["initializer_range"] {
            Json::Null => 0.02,
            value => value.as_f64().with_context(|| format!("`initializer_range` is {value}, not a number"))?,
        };
        ensure!((0.0..=1.0).contains(&deviation), "`initializer_range` is {deviation}; it is between 0 and 1");
        let dtype = self.dtype(&config)?;
        write_text(ctx, "config.json", &with_dtype(config, dtype))?;
        let dir = ModelDir::new(ctx.input("tokenizer"))?;
        dir.copy_tokenizer(ctx.out)?;
        let config: Json = facts::read_json(&ctx.out.join("config.json"))?;
        write_text(ctx, "generation_config.json", &generation(&config))?;

        let tensors: Vec<_> = layout.hf.iter().map(|named| (named.name.clone(), dtype, named.shape.clone())).collect();
        let shapes: HashMap<&str, &[u64]> =
            layout.hf.iter().map(|named| (named.name.as_str(), named.shape.as_slice())).collect();
        let plan = safetensors::plan(&tensors, 5_000_000_000)?;
        models::room(ctx.out, plan.shards.iter().map(|shard| shard.len).sum())?;
        let mut tiles = Vec::new();
        let mut files = Vec::new();
        for shard in &plan.shards {
            let path = ctx.out.join(&shard.name);
            let file = File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
            file.set_len(shard.len)?;
            file.write_all_at(&shard.header, 0)?;
            for (name, at, len) in &shard.tensors {
                let source = match shapes[name.as_str()] {
                    [_] => Weights::Ones,
                    _ => Weights::Normal(Normal::new(self.seed, name, deviation)),
                };
                for from in (0..*len).step_by(models::TILE as usize) {
                    let len = models::TILE.min(len - from);
                    tiles.push(Fill {
                        source,
                        dtype,
                        from: from / dtype.size(),
                        file: files.len(),
                        at: at + from,
                        len,
                    });
                }
            }
            files.push(file);
        }
        let total = tiles.iter().map(Tile::bytes).sum();
        Copying::new(ctx, total).run(&tiles, |tile, buffer: &mut Vec<u8>| {
            buffer.clear();
            tile.fill(buffer);
            files[tile.file].write_all_at(buffer, tile.at).context("cannot write the weights")
        })?;
        if let Some(index) = &plan.index {
            fs::write(ctx.out.join(safetensors::INDEX), index)?;
        }
        Ok(())
    }
}

/// What is made is a Llama: of other families' tensors it is not known here which begin as ones and which as zeros.
fn model(config: &Json) -> Result<Model> {
    flow_plan::ModelConfig::from_json(config)?;
    Model::of(config)
}

impl InitModel {
    fn dtype(&self, config: &Json) -> Result<DType> {
        match self.dtype {
            Some(Dtype::Fp32) => return Ok(DType::F32),
            Some(Dtype::Bf16) => return Ok(DType::Bf16),
            None => {}
        }
        let Some((field, named)) =
            ["torch_dtype", "dtype"].iter().find_map(|field| Some((field, config[*field].as_str()?)))
        else {
            return Ok(DType::Bf16);
        };
        match DType::from_torch(named) {
            Some(dtype @ (DType::F32 | DType::Bf16)) => Ok(dtype),
            _ => bail!(
                "`{field}` is `{named}`: weights are made in float32 or bfloat16 (`dtype = \"bf16\"` overrides it)"
            ),
        }
    }

    /// What is known of the config before the run.
    fn known_config(&self, check: &Check<'_>) -> Option<Result<Json>> {
        if let Config::Table(table) = &self.config {
            return Some(Ok(table.clone()));
        }
        if let Some(config) = check.fact("config", "model_config") {
            return Some(Ok(config.clone()));
        }
        let path = check.input("config").iter().find_map(|known| known.path.clone())?;
        Some(facts::read_json(&if path.is_dir() { path.join("config.json") } else { path }))
    }
}

fn write_text(ctx: &Ctx<'_>, name: &str, value: &Json) -> Result<()> {
    let path = ctx.out.join(name);
    let mut text = serde_json::to_string_pretty(&sorted(value))?;
    text.push('\n');
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// With keys in order: whether JSON maps keep the file's order depends on how serde_json was built.
fn sorted(value: &Json) -> Json {
    match value {
        Json::Object(map) => {
            let ordered: std::collections::BTreeMap<_, _> = map.iter().collect();
            Json::Object(ordered.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect())
        }
        other => other.clone(),
    }
}

/// The config with what loaders look for: the class and the type of the weights.
fn with_dtype(mut config: Json, dtype: DType) -> Json {
    config["torch_dtype"] = dtype.torch().into();
    if let Some(map) = config.as_object_mut() {
        map.remove("dtype");
        map.entry("architectures").or_insert_with(|| json!(["LlamaForCausalLM"]));
    }
    config
}

fn generation(config: &Json) -> Json {
    let mut generation = json!({});
    for field in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        if !config[field].is_null() {
            generation[field] = config[field].clone();
        }
    }
    generation
}

#[derive(Clone, Copy)]
enum Weights {
    Ones,
    Normal(Normal),
}

/// A run of elements of a tensor.
struct Fill {
    source: Weights,
    dtype: DType,
    /// The first element.
    from: u64,
    file: usize,
    at: u64,
    len: u64,
}

impl Tile for Fill {
    fn bytes(&self) -> u64 {
        self.len
    }
}

impl Fill {
    fn fill(&self, out: &mut Vec<u8>) {
        let mut put = |value: f32| match self.dtype {
            DType::Bf16 => out.extend(models::to_bf16(value).to_le_bytes()),
            _ => out.extend(value.to_le_bytes()),
        };
        let elements = self.len / self.dtype.size();
        match self.source {
            Weights::Ones => (0..elements).for_each(|_| put(1.0)),
            Weights::Normal(normal) => normal.run(self.from, elements, put),
        }
    }
}

#[cfg(test)]
mod tests;
