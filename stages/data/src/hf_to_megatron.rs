//! `hf-to-megatron`: a Hugging Face model as a Megatron-Core checkpoint.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use flow_core::{Check, Ctx, Port, Ref, Stage};
use flow_formats::{
    DType,
    safetensors::{Index, Tensor},
    torch_dist::{self, Finish, RankWriter, Slot},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    facts,
    models::{self, Copying, Dtype, Model, ModelDir, Tile, Work},
};

/// `kind = "hf-to-megatron"`: writes
///
/// - `iter_0000000/`: the checkpoint that `megatron.core.dist_checkpointing.load` and Megatron-Bridge take, with
///   `tokenizer/` as Bridge keeps it
/// - `latest_checkpointed_iteration.txt`, `latest_train_state.pt`
/// - `hf/`: `config.json`, `generation_config.json` and the tokenizer's files as they were: what describes the model
///   to whoever trains or exports it
///
/// Types of elements stay as they are, unless `dtype` names one; else bytes are moved and never computed with.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HfToMegatron {
    /// The model: a stage or a directory.
    #[serde(skip_serializing)]
    input: Ref,
    /// Every tensor is rounded to this type, to nearest and ties to even; without it each keeps its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dtype: Option<Dtype>,
}

impl Stage for HfToMegatron {
    const KIND: &'static str = "hf-to-megatron";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "Converts a Hugging Face model to a Megatron-Core checkpoint";
    const RESUMABLE: bool = true;

    fn ports(&self) -> Vec<Port> {
        vec![Port::all("input", std::slice::from_ref(&self.input)).only(models::MODEL)]
    }

    fn check(&self, check: &mut Check<'_>) {
        check.files.push(torch_dist::LATEST.to_owned());
        let known = check.input("input").to_vec();
        let wrong = Some(models::wrong_model(&known)).filter(|wrong| !wrong.is_empty());
        for error in wrong.unwrap_or_else(|| models::without_weights(&known)) {
            check.error("input", error);
        }
        let facts = facts::of_port(check, "input");
        if let Some(config) = facts.get("model_config") {
            match Model::of(config) {
                Ok(model) => {
                    let dtype = self.dtype.map(Dtype::of).or_else(|| Model::dtype(config));
                    check.provide("plan_notes", vec![model.size_note(dtype)]);
                }
                Err(error) => check.error("input", crate::diagnostic(&error)),
            }
        }
        check.facts.extend(facts);
    }

    fn left(&self, scratch: &Path) -> Option<String> {
        Some(Work::left(scratch))
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let source = ModelDir::new(ctx.input("input"))?;
        let config = source.config()?;
        let model = Model::of(&config).context("the model cannot be converted")?;
        let tensors = Index::read(&source.files)?.tensors;
        check_tensors(&tensors, &model, self.dtype)?;
        self.convert(ctx, &source, &model, &tensors)
    }
}

/// Every tensor of the layout is there in its shape, and there is no other; one Megatron tensor has one type, its parts'
/// or the one that was asked for.
fn check_tensors(tensors: &BTreeMap<String, Tensor>, model: &Model, dtype: Option<Dtype>) -> Result<()> {
    let layout = &model.layout;
    for wanted in &layout.hf {
        let tensor = tensors.get(&wanted.name).with_context(|| format!("the model has no tensor `{}`", wanted.name))?;
        ensure!(
            tensor.shape == wanted.shape,
            "`{}` has shape {:?}, and config.json makes it {:?}",
            wanted.name,
            tensor.shape,
            wanted.shape
        );
    }
    let known: std::collections::HashSet<&str> = layout.hf.iter().map(|named| named.name.as_str()).collect();
    for name in tensors.keys() {
        ensure!(
            known.contains(name.as_str()) || model.ignores(name),
            "tensor `{name}` is not known: a model of this type and config does not have it"
        );
    }
    for rows in layout.rows.chunk_by(|a, b| a.target == b.target && dtype.is_none()) {
        let dtype = |i: usize| tensors[&layout.hf[rows[i].hf].name].dtype;
        if let Some(other) = (1..rows.len()).find(|&i| dtype(i) != dtype(0)) {
            let name = |i: usize| &layout.hf[rows[i].hf].name;
            anyhow::bail!(
                "`{}` is {} and `{}` is {}: they are one tensor in Megatron, whose type `dtype` chooses",
                name(0),
                dtype(0).torch(),
                name(other),
                dtype(other).torch()
            );
        }
    }
    Ok(())
}

/// Bytes to be moved: from a file to a chunk's place.
struct Move<'a> {
    from: &'a PathBuf,
    from_at: u64,
    from_type: DType,
    slot: usize,
    to_at: u64,
    to_type: DType,
    elements: u64,
}

impl Tile for Move<'_> {
    fn bytes(&self) -> u64 {
        self.elements * self.to_type.size()
    }
}

impl HfToMegatron {
    fn convert(
        &self,
        ctx: &Ctx<'_>,
        source: &ModelDir,
        model: &Model,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let (layout, asked) = (&model.layout, self.dtype.map(Dtype::of));
        let work = Work::begin(ctx.scratch)?;
        let (root, dir) = (work.dir(), torch_dist::staging(work.dir(), 0));
        // A run that was killed at its very end had given the iteration its name.
        let named = torch_dist::iteration_dir(root, 0);
        if named.is_dir() {
            fs::rename(&named, &dir).with_context(|| format!("cannot rename {}", named.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mut writer = RankWriter::resume(&dir, 0, work.whole(&dir))?;

        // Plan first: every chunk gets its place, and every run of rows becomes tiles.
        let mut slots: Vec<Slot> = Vec::new();
        let mut tiles: Vec<Move<'_>> = Vec::new();
        let mut had = 0;
        for rows in layout.rows.chunk_by(|a, b| (a.target, a.chunk) == (b.target, b.chunk)) {
            let target = &layout.megatron[rows[0].target];
            let (offset, size) = &target.chunks[rows[0].chunk];
            let to_type = asked.unwrap_or(tensors[&layout.hf[rows[0].hf].name].dtype);
            let slot = writer.reserve(&target.key, &target.shape, offset, size, to_type)?;
            let mut at = slot.at;
            for run in rows {
                let tensor = &tensors[&layout.hf[run.hf].name];
                let (from_type, slot_at) = (tensor.dtype, slots.len());
                let most = models::TILE / from_type.size().max(to_type.size());
                let mut from_at = tensor.at + run.hf_row * run.width * from_type.size();
                let mut left = run.rows * run.width;
                if slot.whole {
                    had += left * to_type.size();
                    (at, left) = (at + left * to_type.size(), 0);
                }
                while left > 0 {
                    let elements = left.min(most);
                    tiles.push(Move {
                        from: &tensor.file,
                        from_at,
                        from_type,
                        slot: slot_at,
                        to_at: at,
                        to_type,
                        elements,
                    });
                    (from_at, at) = (from_at + elements * from_type.size(), at + elements * to_type.size());
                    left -= elements;
                }
            }
            ensure!(at == slot.at + slot.len, "the table of `{}` leaves a part of it out", target.key);
            slots.push(slot);
        }
        writer.empty_states(model.states())?;
        models::room(root, (writer.bytes() + 2 * source.companions()).saturating_sub(work.has(&dir)))?;

        let mut files: BTreeMap<&PathBuf, Arc<File>> = BTreeMap::new();
        for tensor in tensors.values() {
            if !files.contains_key(&tensor.file) {
                let file =
                    File::open(&tensor.file).with_context(|| format!("cannot open {}", tensor.file.display()))?;
                files.insert(&tensor.file, Arc::new(file));
            }
        }
        let copying = Copying::new(ctx, had + tiles.iter().map(Tile::bytes).sum::<u64>());
        copying.had(had);
        let mut sums: Vec<_> = slots.iter().map(|_| crc32fast::Hasher::new()).collect();
        slots.iter().filter(|slot| slot.whole).try_for_each(|slot| writer.seal(slot.clone(), 0))?;
        // File by file: while one gets to the disk, the next is written.
        work.syncing(ctx, |syncing| {
            for tiles in tiles.chunk_by(|a, b| slots[a.slot].name == slots[b.slot].name) {
                let parts = copying.run(tiles, |tile, (read, write): &mut (Vec<u8>, Vec<u8>)| {
                    read.resize((tile.elements * tile.from_type.size()) as usize, 0);
                    files[tile.from]
                        .read_exact_at(read, tile.from_at)
                        .with_context(|| format!("cannot read {} at byte {}", tile.from.display(), tile.from_at))?;
                    let bytes = if tile.from_type == tile.to_type {
                        read
                    } else {
                        write.resize(tile.bytes() as usize, 0);
                        models::cast(read, tile.from_type, write, tile.to_type)
                            .with_context(|| format!("cannot use {}", tile.from.display()))?;
                        write
                    };
                    models::write(&slots[tile.slot].file, bytes, tile.to_at).context("cannot write the checkpoint")?;
                    let mut sum = crc32fast::Hasher::new();
                    sum.update(bytes);
                    Ok(sum)
                })?;
                for (tile, part) in tiles.iter().zip(&parts) {
                    sums[tile.slot].combine(part);
                }
                let (first, last) = (&tiles[0], &tiles[tiles.len() - 1]);
                for i in first.slot..=last.slot {
                    writer.seal(slots[i].clone(), sums[i].clone().finalize())?;
                }
                let Slot { name, file, .. } = slots[first.slot].clone();
                syncing.completed(&dir, name, file)?;
            }
            Ok(())
        })?;
        let dtype = asked.unwrap_or(tensors[&layout.hf[0].name].dtype);
        source.copy_companions(&root.join("hf"))?;
        source.copy_tokenizer(&dir.join("tokenizer"))?;
        let more = Finish {
            run_config: model.geometry.run_config_with(
                dtype,
                model.geometry.max_position_embeddings,
                &model.run_config,
            ),
            ..Finish::default()
        };
        torch_dist::finish(root, 0, writer.finish()?, &more)?;
        work.deliver(ctx.out)
    }
}
