//! `megatron-to-hf`: a Megatron-Core checkpoint as a Hugging Face model.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use flow_core::{Check, Ctx, Diagnostic, Level, Port, Ref, Stage};
use flow_formats::{
    DType,
    safetensors::{self, Index, Plan},
    torch_dist::{self, Reader},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{
    facts,
    models::{self, Copying, Dtype, Layout, Model, ModelDir, Tile, Work},
    size::Size,
};

/// `kind = "megatron-to-hf"`: the newest iteration of a checkpoint, however it is cut, as
/// `model*.safetensors` (with its index when there are several), beside the source's `config.json`,
/// `generation_config.json` and tokenizer files as they are.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MegatronToHf {
    /// The checkpoint: what `train` or `hf-to-megatron` wrote; or a path to what Megatron-LM, Megatron-Bridge, NeMo (also a
    /// `.nemo`) or `torch.distributed.checkpoint` wrote.
    #[serde(skip_serializing)]
    input: Ref,
    /// The Hugging Face model that it began as: config, tokenizer and types of elements come from here.
    #[serde(skip_serializing)]
    source: Ref,
    /// Bytes of tensors in one file: `"5GB"`, `"512MiB"`, or a number.
    #[serde(default = "shard_size")]
    max_shard_size: Size,
    /// Every tensor is rounded to this type; without it each keeps the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dtype: Option<Dtype>,
}

/// transformers' own.
fn shard_size() -> Size {
    Size(5_000_000_000)
}

impl Stage for MegatronToHf {
    const KIND: &'static str = "megatron-to-hf";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Converts a Megatron-Core checkpoint to a Hugging Face model";
    const RESUMABLE: bool = true;

    fn ports(&self) -> Vec<Port> {
        // Whoever names the type asks the source's weights for nothing.
        let read = if self.dtype.is_some() { models::COMPANIONS } else { models::MODEL };
        vec![Port::one("input", &self.input), Port::all("source", std::slice::from_ref(&self.source)).only(read)]
    }

    fn check(&self, check: &mut Check<'_>) {
        check.files.push("config.json".to_owned());
        let sources = check.input("source").to_vec();
        for error in models::wrong_model(&sources) {
            check.error("source", error);
        }
        let facts = facts::of_port(check, "source");
        if let Some(config) = facts.get("model_config") {
            let dtype = self.dtype.map(Dtype::of).or_else(|| Model::dtype(config));
            match Model::of(config) {
                Ok(model) => check.provide("plan_notes", vec![model.size_note(dtype)]),
                Err(error) => check.error("source", crate::diagnostic(&error)),
            }
            check.warnings.extend(self.surprises(config));
        }
        let trained = check.fact("input", "vocab_size").and_then(Json::as_u64);
        if let (Some(trained), Some(exported)) = (trained, facts.get("vocab_size").and_then(Json::as_u64))
            && trained != exported
        {
            let error = Diagnostic::new(format!(
                "the model of `source` has {exported} tokens, and the one of `input` {trained}"
            ));
            check.error("source", error.hint("name the model that the training began with"));
        }
        for path in check.input("input").to_vec().into_iter().filter_map(|known| known.path) {
            if let Err(error) = torch_dist::newest(&path) {
                let error = crate::diagnostic(&error);
                check.error(
                    "input",
                    if path.is_dir() { error.hint("name a directory with iter_*/.metadata") } else { error },
                );
            }
        }
        check.facts.extend(facts);
    }

    fn left(&self, scratch: &Path) -> Option<String> {
        Some(Work::left(scratch))
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let source = ModelDir::new(ctx.input("source"))?;
        let config = source.config()?;
        let model = Model::of(&config).context("the source cannot be a model's description")?;
        let (iteration, dir) = torch_dist::newest(&ctx.one("input")?.path)?;
        let reader = Reader::open(&dir)?;
        let layout = model.layout_in(&reader)?;
        model.check_in(&reader, &layout)?;
        ctx.log(Level::Info, format!("iteration {iteration} of {}", ctx.one("input")?.name));
        let types = self.types(&source, &config, &reader, &layout)?;
        let tensors: Vec<_> = layout
            .hf
            .iter()
            .zip(&types)
            .map(|(named, &dtype)| (named.name.clone(), dtype, named.shape.clone()))
            .collect();
        let plan = safetensors::plan(&tensors, self.max_shard_size.0)?;
        let work = Work::begin(ctx.scratch)?;
        let files = Files::open(&work, &plan, source.companions())?;
        export(ctx, &work, &reader, &layout, &types, &files, &plan)?;
        reader.check_rest()?;
        source.copy_companions(work.dir())?;
        work.deliver(ctx.out)
    }
}

impl MegatronToHf {
    /// `config.json` goes along as it is: what of it may surprise whoever loads the export.
    fn surprises(&self, config: &Json) -> Vec<Diagnostic> {
        let mut surprises = Vec::new();
        if let (Some(dtype), Some(named)) = (self.dtype.map(Dtype::of), Model::dtype(config))
            && dtype != named
        {
            let (dtype, named) = (dtype.torch(), named.torch());
            let text =
                format!("the weights will be {dtype}, and config.json says {named}, which loaders turn them into");
            surprises.push(
                Diagnostic::new(text).field("dtype").hint(format!("write {dtype} into the export's config.json")),
            );
        }
        if config["architectures"].as_array().is_none_or(Vec::is_empty) {
            let text = "config.json has no `architectures`, without which vLLM loads no model";
            let hint = "transformers' `save_pretrained` writes it: `[\"LlamaForCausalLM\"]` for a `llama`";
            surprises.push(Diagnostic::new(text).field("source").hint(hint));
        }
        surprises
    }

    /// The type of each of the layout's tensors in the export.
    fn types(&self, source: &ModelDir, config: &Json, reader: &Reader, layout: &Layout) -> Result<Vec<DType>> {
        if let Some(dtype) = self.dtype {
            return Ok(vec![dtype.of(); layout.hf.len()]);
        }
        let has_weights = source.files.keys().any(|name| name.ends_with(".safetensors"));
        let index = if has_weights { Index::read(&source.files)? } else { Index::default() };
        let named = Model::dtype(config);
        let mut types = vec![named; layout.hf.len()];
        for rows in &layout.rows {
            let target = &layout.megatron[rows.target];
            let own = reader.tensor(&target.key).map(|tensor| tensor.dtype);
            let source = index.tensors.get(&layout.hf[rows.hf].name).map(|tensor| tensor.dtype);
            types[rows.hf] = source.or(named).or(own);
        }
        types.into_iter().collect::<Option<_>>().context("a tensor has no type")
    }
}

/// A box of a Megatron tensor, and where its bytes go.
struct Piece<'a> {
    key: &'a str,
    from: DType,
    to: DType,
    start: Vec<u64>,
    size: Vec<u64>,
    file: usize,
    at: u64,
}

impl Tile for Piece<'_> {
    fn bytes(&self) -> u64 {
        self.size.iter().product::<u64>() * self.to.size()
    }
}

/// The files to be written: in which of them a tensor lies, and where.
struct Files<'a> {
    open: Vec<Arc<File>>,
    places: BTreeMap<&'a str, (usize, u64)>,
    /// Those that an interrupted run completed.
    whole: Vec<bool>,
}

impl<'a> Files<'a> {
    /// `companions`: bytes of what will lie beside them.
    fn open(work: &Work, plan: &'a Plan, companions: u64) -> Result<Self> {
        let mut files = Self { open: Vec::new(), places: BTreeMap::new(), whole: Vec::new() };
        let whole = work.whole(work.dir());
        for (i, shard) in plan.shards.iter().enumerate() {
            let is_whole = whole.contains(&shard.name);
            let path = work.dir().join(&shard.name);
            let file = File::options().write(true).create(true).truncate(!is_whole).open(&path);
            let file = file.with_context(|| format!("cannot make {}", path.display()))?;
            files.open.push(Arc::new(file));
            files.places.extend(shard.tensors.iter().map(|(name, at, _)| (name.as_str(), (i, *at))));
            files.whole.push(is_whole);
        }
        let all = plan.shards.iter().map(|shard| shard.len).sum::<u64>() + companions;
        models::room(work.dir(), all.saturating_sub(work.has(work.dir())))?;
        for (shard, file) in plan.shards.iter().zip(&files.open) {
            file.set_len(shard.len)
                .and_then(|()| file.write_all_at(&shard.header, 0))
                .with_context(|| format!("cannot write {}", shard.name))?;
        }
        Ok(files)
    }
}

fn export(
    ctx: &Ctx<'_>,
    work: &Work,
    reader: &Reader,
    layout: &Layout,
    types: &[DType],
    files: &Files<'_>,
    plan: &Plan,
) -> Result<()> {
    let mut tiles = Vec::new();
    for rows in &layout.rows {
        let target = &layout.megatron[rows.target];
        let (offset, size) = &target.chunks[rows.chunk];
        let axis = target.axis;
        let from = reader.tensor(&target.key).context("checked before")?.dtype;
        let to = types[rows.hf];
        let (file, at) = files.places[layout.hf[rows.hf].name.as_str()];
        let row = rows.width * to.size();
        let step = (models::TILE / (rows.width * from.size().max(to.size()))).max(1);
        let mut done = 0;
        while done < rows.rows {
            let n = step.min(rows.rows - done);
            let (mut start, mut size) = (offset.clone(), size.clone());
            start[axis] += rows.row + done;
            size[axis] = n;
            let at = at + (rows.hf_row + done) * row;
            tiles.push(Piece { key: &target.key, from, to, start, size, file, at });
            done += n;
        }
    }
    let total = tiles.iter().map(Tile::bytes).sum();
    tiles.retain(|tile| !files.whole[tile.file]);
    tiles.sort_by_key(|tile| (tile.file, tile.at));
    let copying = Copying::new(ctx, total);
    copying.had(total - tiles.iter().map(Tile::bytes).sum::<u64>());
    // File by file: while one gets to the disk, the next is written.
    work.syncing(ctx, |syncing| {
        for tiles in tiles.chunk_by(|a, b| a.file == b.file) {
            let (file, name) = (&files.open[tiles[0].file], &plan.shards[tiles[0].file].name);
            copying.run(tiles, |tile, (read, write): &mut (Vec<u8>, Vec<u8>)| {
                let elements = tile.size.iter().product::<u64>();
                read.resize((elements * tile.from.size()) as usize, 0);
                reader.read(tile.key, &tile.start, &tile.size, read)?;
                let bytes = if tile.from == tile.to {
                    read
                } else {
                    write.resize((elements * tile.to.size()) as usize, 0);
                    models::cast(read, tile.from, write, tile.to).with_context(|| format!("`{}`", tile.key))?;
                    write
                };
                models::write(file, bytes, tile.at).with_context(|| format!("cannot write {name}"))
            })?;
            syncing.completed(work.dir(), name.clone(), Arc::clone(file))?;
        }
        Ok(())
    })?;
    if let Some(index) = &plan.index {
        fs::write(work.dir().join(safetensors::INDEX), index)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::stage;

    #[test]
    fn what_may_surprise_loaders_of_an_export_is_said() {
        let surprises = |params: Json, config: Json| {
            let found = stage::<MegatronToHf>(params).surprises(&config);
            found.iter().map(|it| it.message.clone()).collect::<Vec<_>>()
        };
        let plain = json!({ "input": "x", "source": "y" });
        let half = json!({ "input": "x", "source": "y", "dtype": "fp16" });
        let config = json!({ "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16" });
        assert_eq!(surprises(plain.clone(), config.clone()), Vec::<String>::new());
        assert_eq!(
            surprises(half, config),
            ["the weights will be float16, and config.json says bfloat16, which loaders turn them into"]
        );
        for nameless in [json!({}), json!({ "architectures": [] })] {
            assert_eq!(
                surprises(plain.clone(), nameless),
                ["config.json has no `architectures`, without which vLLM loads no model"]
            );
        }
    }
}
