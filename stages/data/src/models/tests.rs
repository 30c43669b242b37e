//! There and back, over random models and every cutting: not a byte changes.

mod damaged;
mod published;
mod refused;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use flow_formats::{
    DType,
    safetensors::{self, Index},
    torch_dist::{self, Finish, RankWriter, Reader},
};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::{
    hf_to_megatron::HfToMegatron,
    megatron_to_hf::MegatronToHf,
    testing::{golden, run, tree},
};

fn files(dir: &Path) -> BTreeMap<String, PathBuf> {
    tree(dir).entries().iter().map(|entry| (entry.name.clone(), dir.join(&entry.name))).collect()
}

fn tensors(dir: &Path) -> BTreeMap<String, (DType, Vec<u64>, Vec<u8>)> {
    let index = Index::read(&files(dir)).unwrap();
    let read = |tensor: &safetensors::Tensor| {
        fs::read(&tensor.file).unwrap()[tensor.at as usize..][..tensor.len as usize].to_vec()
    };
    index
        .tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), (tensor.dtype, tensor.shape.clone(), read(tensor))))
        .collect()
}

/// A model whose every element is different noise.
fn write_model(dir: &Path, config: &Json, dtype: DType, max_shard_size: u64) {
    let layout = Model::of(config).unwrap().layout;
    let named: Vec<_> = layout.hf.iter().map(|named| (named.name.clone(), dtype, named.shape.clone())).collect();
    let plan = safetensors::plan(&named, max_shard_size).unwrap();
    for shard in &plan.shards {
        let mut bytes = shard.header.clone();
        for (name, _, len) in &shard.tensors {
            let mut noise = vec![0; *len as usize];
            blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut noise);
            // Exponents below the highest: no NaN, whose payload a cast would not keep.
            let width = dtype.size() as usize;
            noise.chunks_exact_mut(width).for_each(|element| element[width - 1] &= 0xbf);
            bytes.extend(noise);
        }
        fs::write(dir.join(&shard.name), bytes).unwrap();
    }
    if let Some(index) = &plan.index {
        fs::write(dir.join(safetensors::INDEX), index).unwrap();
    }
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// The same checkpoint, cut for `tp` tensor ranks and `pp` pipeline ranks, with `padding` more rows of vocabulary.
fn recut(from: &Path, config: &Json, tp: u64, pp: u64, padding: u64) -> tempfile::TempDir {
    let Model { geometry, layout, .. } = Model::of(config).unwrap();
    let reader = Reader::open(&torch_dist::newest(from).unwrap().1).unwrap();
    let root = tempfile::tempdir().unwrap();
    let dir = torch_dist::begin(root.path(), 3).unwrap();
    let layers = geometry.num_hidden_layers as u64;
    let mut writers: Vec<_> = (0..tp * pp).map(|rank| RankWriter::create(&dir, rank as usize).unwrap()).collect();
    for target in &layout.megatron {
        let dtype = reader.tensor(&target.key).unwrap().dtype;
        let mut shape = target.shape.clone();
        if target.vocabulary {
            shape[0] += padding;
        }
        let axis = target.axis;
        let (stack, own) = shape.split_at(axis);
        // Norms and the router are on every rank.
        let whole = target.key.contains("norm") || target.key.contains("router");
        let by_columns = target.key.ends_with("linear_proj.weight") || target.key.ends_with("linear_fc2.weight");
        let halves = if target.key.ends_with("fc1.weight") { 2 } else { 1 };
        for part in 0..stack.iter().product() {
            for rank in 0..if whole { 1 } else { tp } {
                for half in 0..halves {
                    let place = match stack {
                        [_, experts] => vec![part / experts, part % experts],
                        stack => vec![part; stack.len()],
                    };
                    let layer = place.first().copied().unwrap_or(0);
                    let mut start = [place, vec![0; own.len()]].concat();
                    let mut size = [vec![1; axis], own.to_vec()].concat();
                    let cut = if by_columns { axis + 1 } else { axis };
                    if !whole {
                        size[cut] /= halves * tp;
                        start[cut] = half * shape[cut] / halves + rank * size[cut];
                    }
                    // What is there without padding, and zeros behind it.
                    let mut real = size.clone();
                    real[0] = real[0].min(target.shape[0].saturating_sub(start[0]));
                    let width = dtype.size();
                    let mut bytes = vec![0; (real.iter().product::<u64>() * width) as usize];
                    if !bytes.is_empty() {
                        reader.read(&target.key, &start, &real, &mut bytes).unwrap();
                    }
                    bytes.resize((size.iter().product::<u64>() * width) as usize, 0);
                    let writer = &mut writers[(layer % pp * tp + rank) as usize];
                    writer.tensor(&target.key, &shape, &start, &size, dtype, &mut &bytes[..]).unwrap();
                }
            }
        }
    }
    let state = [1u8, 2, 3, 4];
    let key = "optimizer.state.exp_avg.decoder.final_layernorm.weight";
    writers[0].tensor(key, &[1], &[0], &[1], DType::F32, &mut &state[..]).unwrap();
    writers[0].extra_states(layers).unwrap();
    let entries = writers.into_iter().flat_map(|writer| writer.finish().unwrap()).collect();
    torch_dist::finish(root.path(), 3, entries, &Finish::default()).unwrap();
    root
}

/// What a family's config has beside the geometry.
fn family_fields() -> impl Strategy<Value = Json> {
    prop::sample::select(vec![
        json!({ "model_type": "llama" }),
        json!({ "model_type": "llama", "mlp_bias": false, "rope_scaling": { "type": "linear", "factor": 2.0 } }),
        json!({ "model_type": "mistral", "sliding_window": null }),
        json!({ "model_type": "qwen2", "use_sliding_window": false, "layer_types": ["full_attention"] }),
        json!({ "model_type": "qwen3", "attention_bias": false }),
        json!({ "model_type": "gemma2", "layer_types": ["sliding_attention", "full_attention"] }),
        json!({ "model_type": "gemma3_text", "rope_scaling": { "rope_type": "linear", "factor": 8.0 },
            "sliding_window_pattern": 6 }),
        json!({ "model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2 }),
        json!({ "model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 8, "norm_topk_prob": true,
            "mlp_only_layers": [], "decoder_sparse_step": 1 }),
        json!({ "model_type": "qwen3_moe", "num_local_experts": 3, "moe_intermediate_size": 8, "norm_topk_prob": true }),
    ])
}

fn any_config() -> impl Strategy<Value = Json> {
    let lengths = (1u64..4, 1u64..4, 1u64..3, 1u64..4, 1u64..4, 1u64..30);
    (family_fields(), lengths, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(mut config, (layers, groups, per_group, half_dim, ffn, vocab), tied, scaled, new_spelling)| {
            // Everything a multiple of 4 where Megatron would split it over up to 4 ranks.
            let (groups, heads) = (4 * groups, 4 * groups * per_group);
            for (field, value) in [
                ("vocab_size", 4 * vocab),
                ("hidden_size", 12),
                ("intermediate_size", 4 * ffn),
                ("num_hidden_layers", layers),
                ("num_attention_heads", heads),
                ("num_key_value_heads", groups),
                ("head_dim", 2 * half_dim),
            ] {
                config[field] = json!(value);
            }
            let gemma = config["model_type"].as_str().is_some_and(|name| name.starts_with("gemma"));
            config["tie_word_embeddings"] = json!(tied || gemma);
            let rope = if new_spelling { "rope_parameters" } else { "rope_scaling" };
            if scaled && config["rope_scaling"].is_null() {
                config[rope] = json!({ "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
            }
            config
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn there_and_back_is_identity_however_it_is_cut(
        config in any_config(),
        dtype in prop::sample::select(vec![DType::Bf16, DType::F16, DType::F32]),
        shard in 200u64..20_000,
        (tp, pp) in (prop::sample::select(vec![1u64, 2, 4]), 1u64..4),
        padding in 0u64..3,
    ) {
        let source = tempfile::tempdir().unwrap();
        write_model(source.path(), &config, dtype, shard);
        let want = tensors(source.path());

        let megatron = run::<HfToMegatron>(json!({"input": "x"}), &[("input", source.path())]).unwrap();
        prop_assert_eq!(megatron.bytes(), want.values().map(|tensor| tensor.2.len() as u64).sum::<u64>());
        let ports = |from| [("input", from), ("source", source.path())];
        let params = json!({"input": "x", "source": "y", "max_shard_size": shard});
        let back = run::<MegatronToHf>(params.clone(), &ports(megatron.path())).unwrap();
        prop_assert_eq!(&tensors(back.path()), &want);
        for file in tree(source.path()).entries() {
            prop_assert_eq!(fs::read(back.path().join(&file.name)).unwrap(), fs::read(source.path().join(&file.name)).unwrap());
        }

        let cut = recut(megatron.path(), &config, tp, pp, padding * 4);
        let back = run::<MegatronToHf>(params, &ports(cut.path())).unwrap();
        prop_assert_eq!(&tensors(back.path()), &want);

        // Cast on demand, and back to the source's own type.
        let params = json!({"input": "x", "source": "y", "dtype": "fp32"});
        let as_fp32 = run::<MegatronToHf>(params, &ports(cut.path())).unwrap();
        let megatron = run::<HfToMegatron>(json!({"input": "x"}), &[("input", as_fp32.path())]).unwrap();
        let back = run::<MegatronToHf>(json!({"input": "x", "source": "y"}), &ports(megatron.path())).unwrap();
        prop_assert_eq!(&tensors(back.path()), &want);

        // It does not matter on which way they are rounded.
        for dtype in ["bf16", "fp16", "fp32"] {
            let rounded = run::<HfToMegatron>(json!({"input": "x", "dtype": dtype}), &[("input", source.path())]).unwrap();
            let params = json!({"input": "x", "source": "y", "dtype": dtype});
            let from_rounded = [("input", rounded.path()), ("source", source.path())];
            let first = run::<MegatronToHf>(params.clone(), &from_rounded).unwrap();
            let last = run::<MegatronToHf>(params, &ports(cut.path())).unwrap();
            prop_assert_eq!(&tensors(first.path()), &tensors(last.path()));
        }
    }

    #[test]
    fn a_layout_has_every_row_of_both_sides_once(config in any_config()) {
        let layout = Model::of(&config).unwrap().layout;
        let mut hf: Vec<_> = layout.hf.iter().map(|named| vec![0u8; named.shape[0] as usize]).collect();
        let mut chunks: BTreeMap<_, Vec<u8>> = BTreeMap::new();
        for rows in &layout.rows {
            let size = &layout.megatron[rows.target].chunks[rows.chunk].1;
            let axis = layout.megatron[rows.target].axis;
            let chunk = chunks.entry((rows.target, rows.chunk)).or_insert_with(|| vec![0; size[axis] as usize]);
            hf[rows.hf][rows.hf_row as usize..][..rows.rows as usize].iter_mut().for_each(|seen| *seen += 1);
            chunk[rows.row as usize..][..rows.rows as usize].iter_mut().for_each(|seen| *seen += 1);
        }
        prop_assert!(hf.iter().flatten().chain(chunks.values().flatten()).all(|&seen| seen == 1));
        prop_assert_eq!(chunks.len(), layout.megatron.iter().map(|target| target.chunks.len()).sum::<usize>());
    }
}

#[test]
fn what_megatron_wrote_is_exported_byte_for_byte() {
    for package in ["megatron_core0.16", "megatron_core0.16_tp2_pp2", "megatron_core0.20dev"] {
        let ports = [("input", golden(package)), ("source", golden("hf"))];
        let ports = ports.each_ref().map(|(port, path)| (*port, path.as_path()));
        let out = run::<MegatronToHf>(json!({"input": "x", "source": "y"}), &ports).unwrap();
        // Every file of the directory, model.safetensors too, which the Python library wrote.
        assert_eq!(tree(out.path()), tree(&golden("hf")));
    }
}

/// `tests/golden/torch_dcp`: the same model under its own names, from two processes, with an optimizer beside it.
#[test]
fn what_torch_itself_distributed_is_exported_too() {
    let dcp = golden("../../torch_dcp/hf_named");
    let out = run::<MegatronToHf>(json!({"input": "x", "source": "y"}), &[("input", &dcp), ("source", &golden("hf"))])
        .unwrap();
    assert_eq!(tree(out.path()), tree(&golden("hf")));

    let reader = Reader::open(&dcp).unwrap();
    let config: Json = serde_json::from_slice(&fs::read(golden("hf/config.json")).unwrap()).unwrap();
    let refused = |change: &dyn Fn(&mut Json)| {
        let mut config = config.clone();
        change(&mut config);
        let model = Model::of(&config).unwrap();
        let layout = model.layout_in(&reader).unwrap();
        model.check_in(&reader, &layout).map_err(|error| error.to_string())
    };
    assert_eq!(refused(&|_| ()), Ok(()));
    let tied = |config: &mut Json| config["tie_word_embeddings"] = true.into();
    assert_eq!(refused(&tied), Ok(()), "a copy of a tied embedding, as modules have it");
    let few = refused(&|config| config["num_hidden_layers"] = 3.into()).unwrap_err();
    assert!(few.contains("model.model.layers.3."), "{few}");
    let more = refused(&|config| config["num_hidden_layers"] = 5.into()).unwrap_err();
    assert!(more.contains("no tensor `model.model.layers.4.input_layernorm.weight`"), "{more}");

    let root = tempfile::tempdir().unwrap();
    let mut writer = RankWriter::create(&torch_dist::begin(root.path(), 0).unwrap(), 0).unwrap();
    writer.tensor("tok_embeddings.weight", &[1], &[0], &[1], DType::U8, &mut &[1][..]).unwrap();
    torch_dist::finish(root.path(), 0, writer.finish().unwrap(), &Finish::default()).unwrap();
    let error =
        run::<MegatronToHf>(json!({"input": "x", "source": "y"}), &[("input", root.path()), ("source", &golden("hf"))]);
    let error = format!("{:#}", error.unwrap_err());
    assert!(error.contains("neither Megatron's nor Hugging Face's: it has `tok_embeddings.weight`"), "{error}");
}

#[test]
fn what_is_imported_is_what_megatron_bridge_imports() {
    let out = run::<HfToMegatron>(json!({"input": "x"}), &[("input", &golden("hf"))]).unwrap();
    let ours = Reader::open(&torch_dist::newest(out.path()).unwrap().1).unwrap();
    let theirs = Reader::open(&golden("megatron_core0.16/iter_0000000")).unwrap();
    assert!(ours.tensors().keys().eq(theirs.tensors().keys()));
    assert!(ours.objects().eq(theirs.objects()));
    for (key, tensor) in theirs.tensors() {
        let mine = ours.tensor(key).unwrap();
        assert_eq!((mine.dtype, &mine.shape), (tensor.dtype, &tensor.shape), "{key}");
        let cut = |tensor: &torch_dist::TensorInfo| -> Vec<_> {
            tensor.chunks.iter().map(|chunk| (chunk.offset().to_vec(), chunk.size().to_vec())).collect()
        };
        assert_eq!(cut(mine), cut(tensor), "{key}");
        let read = |reader: &Reader| {
            let mut bytes = vec![0; (tensor.shape.iter().product::<u64>() * tensor.dtype.size()) as usize];
            reader.read(key, &vec![0; tensor.shape.len()], &tensor.shape, &mut bytes).unwrap();
            bytes
        };
        assert_eq!(read(&ours), read(&theirs), "{key}");
    }
    for (name, of) in
        [("hf/config.json", "hf/config.json"), ("iter_0000000/tokenizer/tokenizer.json", "hf/tokenizer.json")]
    {
        assert_eq!(fs::read(out.path().join(name)).unwrap(), fs::read(golden(of)).unwrap());
    }
    assert!(!out.path().join("iter_0000000/tokenizer/config.json").exists());
    let again = run::<HfToMegatron>(json!({"input": "x"}), &[("input", &golden("hf"))]).unwrap();
    assert_eq!(tree(out.path()), tree(again.path()));
}

fn copy_golden() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in tree(&golden("hf")).entries() {
        fs::copy(golden("hf").join(&entry.name), dir.path().join(&entry.name)).unwrap();
    }
    dir
}

#[test]
fn a_tied_model_has_one_embedding_and_its_copy_is_left_out() {
    let dir = copy_golden();
    let mut config: Json = serde_json::from_slice(&fs::read(dir.path().join("config.json")).unwrap()).unwrap();
    config["tie_word_embeddings"] = json!(true);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let out = run::<HfToMegatron>(json!({"input": "x"}), &[("input", dir.path())]).unwrap();
    let reader = Reader::open(&out.path().join("iter_0000000")).unwrap();
    assert!(reader.tensor("output_layer.weight").is_none());
    let ports = [("input", out.path()), ("source", dir.path())];
    let back = run::<MegatronToHf>(json!({"input": "x", "source": "y"}), &ports).unwrap();
    assert!(!tensors(back.path()).contains_key("lm_head.weight"));

    // An untied checkpoint under a tied config, and the other way round.
    let untied = golden("megatron_core0.16");
    let error =
        run::<MegatronToHf>(json!({"input": "x", "source": "y"}), &[("input", &untied), ("source", dir.path())]);
    assert!(format!("{:#}", error.unwrap_err()).contains("output_layer.weight"));
    let error =
        run::<MegatronToHf>(json!({"input": "x", "source": "y"}), &[("input", out.path()), ("source", &golden("hf"))]);
    assert!(format!("{:#}", error.unwrap_err()).contains("output_layer.weight"));
}
