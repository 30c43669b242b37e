//! There and back, over random models and every cutting: not a byte changes. And what is wrong is said by name.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Result;
use flow_core::{Cancel, Check, Ctx, Digest, Entry, Event, Facts, Input, Known, Stage, Tree};
use flow_formats::{
    DType,
    safetensors::{self, Index},
    torch_dist::{self, Finish, RankWriter, Reader},
};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::{hf_to_megatron::HfToMegatron, megatron_to_hf::MegatronToHf};

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/megatron_ckpt/untied_v512").join(name)
}

fn walk(dir: &Path, below: &Path, entries: &mut Vec<Entry>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, below, entries);
        } else {
            let name = path.strip_prefix(below).unwrap().to_str().unwrap().to_owned();
            let bytes = fs::read(&path).unwrap();
            entries.push(Entry { name, digest: Digest::of(&bytes), size: bytes.len() as u64, executable: false });
        }
    }
}

pub(crate) fn tree(dir: &Path) -> Tree {
    let mut entries = Vec::new();
    walk(dir, dir, &mut entries);
    Tree::new(entries).unwrap()
}

/// Runs a stage on directories: port → directory. Gives its output and the progress it reported last.
pub(crate) fn run<S: Stage>(params: Json, ports: &[(&str, &Path)]) -> Result<(tempfile::TempDir, u64)> {
    let stage: S = serde_json::from_value(params)?;
    let input = |path: &Path| Input { name: "input".into(), path: path.to_owned(), tree: Arc::new(tree(path)) };
    let inputs: BTreeMap<_, _> = ports.iter().map(|&(port, path)| (port.to_owned(), vec![input(path)])).collect();
    let (out, scratch) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let done = std::sync::Mutex::new((0, 0));
    let sink = |event: Event| {
        if let Event::Progress { done: now, total, .. } = event {
            *done.lock().unwrap() = (now, total.unwrap_or(0));
        }
    };
    stage.run(&Ctx {
        node: "node",
        inputs: &inputs,
        out: out.path(),
        scratch: scratch.path(),
        project: Path::new("/"),
        pinned: None,
        before: None,
        remarks: &std::sync::Mutex::default(),
        threads: 3,
        gpus: &[],
        network: &flow_core::Network::default(),
        sink: &sink,
        cancel: &Cancel::default(),
    })?;
    let (done, total) = *done.lock().unwrap();
    assert_eq!(done, total);
    Ok((out, total))
}

pub(crate) fn check<S: Stage>(params: Json, inputs: &[(&str, Known)]) -> (Vec<String>, Facts) {
    let stage: S = serde_json::from_value(params).unwrap();
    let inputs = inputs.iter().map(|(port, known)| ((*port).to_owned(), vec![known.clone()])).collect();
    let mut check = Check {
        project: Path::new("/"),
        inputs: &inputs,
        facts: Facts::new(),
        files: Vec::new(),
        about_to_run: None,
        result_path: None,
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    stage.check(&mut check);
    let errors =
        check.errors.iter().map(|error| format!("{}: {error}", error.field.as_deref().unwrap_or(""))).collect();
    (errors, check.facts)
}

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
        wide in any::<bool>(),
        shard in 200u64..20_000,
        (tp, pp) in (prop::sample::select(vec![1u64, 2, 4]), 1u64..4),
        padding in 0u64..3,
    ) {
        let dtype = if wide { DType::F32 } else { DType::Bf16 };
        let source = tempfile::tempdir().unwrap();
        write_model(source.path(), &config, dtype, shard);
        let want = tensors(source.path());

        let (megatron, bytes) = run::<HfToMegatron>(json!({"input": "x"}), &[("input", source.path())]).unwrap();
        prop_assert_eq!(bytes, want.values().map(|tensor| tensor.2.len() as u64).sum::<u64>());
        let ports = |from| [("input", from), ("source", source.path())];
        let params = json!({"input": "x", "source": "y", "max_shard_size": shard});
        let (back, _) = run::<MegatronToHf>(params.clone(), &ports(megatron.path())).unwrap();
        prop_assert_eq!(&tensors(back.path()), &want);
        for file in tree(source.path()).entries() {
            prop_assert_eq!(fs::read(back.path().join(&file.name)).unwrap(), fs::read(source.path().join(&file.name)).unwrap());
        }

        let cut = recut(megatron.path(), &config, tp, pp, padding * 4);
        let (back, _) = run::<MegatronToHf>(params, &ports(cut.path())).unwrap();
        prop_assert_eq!(&tensors(back.path()), &want);

        // Cast on demand, and back to the source's own type.
        let params = json!({"input": "x", "source": "y", "dtype": "fp32"});
        let (as_fp32, _) = run::<MegatronToHf>(params, &ports(cut.path())).unwrap();
        let (megatron, _) = run::<HfToMegatron>(json!({"input": "x"}), &[("input", as_fp32.path())]).unwrap();
        let (back, _) = run::<MegatronToHf>(json!({"input": "x", "source": "y"}), &ports(megatron.path())).unwrap();
        prop_assert_eq!(&tensors(back.path()), &want);
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
    for package in ["megatron_core0.16", "megatron_core0.20dev"] {
        let ports = [("input", golden(package)), ("source", golden("hf"))];
        let ports = ports.each_ref().map(|(port, path)| (*port, path.as_path()));
        let (out, _) = run::<MegatronToHf>(json!({"input": "x", "source": "y"}), &ports).unwrap();
        // Every file of the directory, model.safetensors too, which the Python library wrote.
        assert_eq!(tree(out.path()), tree(&golden("hf")));
    }
}

/// `tests/golden/torch_dcp`: the same model under its own names, from two processes, with an optimizer beside it.
#[test]
fn what_torch_itself_distributed_is_exported_too() {
    let dcp = golden("../../torch_dcp/hf_named");
    let (out, _) =
        run::<MegatronToHf>(json!({"input": "x", "source": "y"}), &[("input", &dcp), ("source", &golden("hf"))])
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
    let (out, _) = run::<HfToMegatron>(json!({"input": "x"}), &[("input", &golden("hf"))]).unwrap();
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
    let (again, _) = run::<HfToMegatron>(json!({"input": "x"}), &[("input", &golden("hf"))]).unwrap();
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
fn what_is_not_known_is_refused_by_name() {
    let config: Json = serde_json::from_slice(&fs::read(golden("hf/config.json")).unwrap()).unwrap();
    for (field, value, word) in [
        ("sliding_window", json!(4096), "sliding_window"),
        ("attention_bias", json!(true), "attention_bias"),
        ("model_type", json!("mamba"), "mamba"),
        ("vocab_size", json!(500), "model.embed_tokens.weight"),
        ("num_hidden_layers", json!(3), "model.layers.3."),
        ("num_hidden_layers", json!(5), "model.layers.4."),
        (
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
            "low_freq_factor 2",
        ),
    ] {
        let dir = copy_golden();
        let mut bad = config.clone();
        bad[field] = value;
        fs::write(dir.path().join("config.json"), bad.to_string()).unwrap();
        let error = run::<HfToMegatron>(json!({"input": "x"}), &[("input", dir.path())]).unwrap_err();
        assert!(format!("{error:#}").contains(word), "{error:#} should say {word}");
    }
}

#[test]
fn what_megatron_cannot_express_of_gemma_is_refused() {
    let config = json!({ "model_type": "gemma3_text", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 4 });
    let said = |field: &str, value: Json| {
        let mut config = config.clone();
        config[field] = value;
        Model::of(&config).map(|model| model.run_config).map_err(|error| error.to_string())
    };
    for (field, value, word) in [
        ("attn_logit_softcapping", json!(50.0), "Megatron can express null alone"),
        ("tie_word_embeddings", json!(false), "Megatron can express true alone"),
        ("hidden_activation", json!("silu"), "hidden_activation"),
        ("sliding_window_pattern", json!(4), "can express 6 alone"),
        ("layer_types", json!(["sliding_attention", "full_attention"]), "layer 1 of `layer_types`"),
        (
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
            "`llama3` cannot be expressed",
        ),
        (
            "rope_parameters",
            json!({"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}}),
            "does not scale it",
        ),
    ] {
        let error = said(field, value).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
    // As transformers 5 spells it: a table for each kind of layer.
    let new = json!({ "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 20000.0 } });
    let said = said("rope_parameters", new).unwrap();
    for (field, value) in [("rotary_base", "[20000.0, 500000.0]"), ("rope_scaling_factor", "8.0")] {
        assert!(said.contains(&(field, value.to_owned())), "{said:?}");
    }
}

#[test]
fn a_tied_model_has_one_embedding_and_its_copy_is_left_out() {
    let dir = copy_golden();
    let mut config: Json = serde_json::from_slice(&fs::read(dir.path().join("config.json")).unwrap()).unwrap();
    config["tie_word_embeddings"] = json!(true);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let (out, _) = run::<HfToMegatron>(json!({"input": "x"}), &[("input", dir.path())]).unwrap();
    let reader = Reader::open(&out.path().join("iter_0000000")).unwrap();
    assert!(reader.tensor("output_layer.weight").is_none());
    let ports = [("input", out.path()), ("source", dir.path())];
    let (back, _) = run::<MegatronToHf>(json!({"input": "x", "source": "y"}), &ports).unwrap();
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

#[test]
fn wrong_directories_are_spotted_before_the_run() {
    let known = |path: PathBuf| {
        let facts = crate::facts::of_path(&path).unwrap();
        Known { name: "x".into(), path: Some(path), facts, ..Known::default() }
    };
    let (errors, facts) = check::<HfToMegatron>(json!({"input": "x"}), &[("input", known(golden("hf")))]);
    assert_eq!((errors, facts["vocab_size"].as_u64()), (vec![], Some(512)));
    assert_eq!(facts["plan_notes"], json!(["238144 parameters in 39 tensors, 0.5 MB in bfloat16"]));
    let (errors, _) = check::<HfToMegatron>(json!({"input": "x"}), &[("input", known(golden("megatron_core0.16")))]);
    assert!(errors[0].starts_with("input: ") && errors[0].contains("is a Megatron checkpoint"), "{errors:?}");
    let (errors, _) = check::<HfToMegatron>(json!({"input": "x"}), &[("input", known(golden("")))]);
    assert!(errors[0].contains("no config.json"), "{errors:?}");

    let both = |input, source| {
        check::<MegatronToHf>(
            json!({"input": "x", "source": "y"}),
            &[("input", known(input)), ("source", known(source))],
        )
    };
    let (errors, facts) = both(golden("megatron_core0.16"), golden("hf"));
    assert_eq!((errors, facts["vocab_size"].as_u64()), (vec![], Some(512)));
    let (errors, _) = both(golden("hf"), golden("megatron_core0.16"));
    assert!(errors.iter().any(|error| error.starts_with("input: ")), "{errors:?}");
    assert!(errors.iter().any(|error| error.starts_with("source: ")), "{errors:?}");
    let facts = Facts::from([("vocab_size".into(), json!(8192))]);
    let other = Known { name: "x".into(), facts, ..Known::default() };
    let params = json!({"input": "x", "source": "y"});
    let (errors, _) = check::<MegatronToHf>(params, &[("input", other), ("source", known(golden("hf")))]);
    assert!(errors[0].contains("512 tokens") && errors[0].contains("8192"), "{errors:?}");
}

#[test]
fn sizes_of_files_are_read_as_people_write_them() {
    let size = |value: Json| {
        serde_json::from_value::<MegatronToHf>(json!({"input": "x", "source": "y", "max_shard_size": value}))
            .map(|stage| serde_json::to_value(stage).unwrap()["max_shard_size"].as_u64().unwrap())
    };
    for (text, bytes) in [(json!("5GB"), 5_000_000_000), (json!("512 MiB"), 512 << 20), (json!(7), 7), (json!("9"), 9)]
    {
        assert_eq!(size(text).unwrap(), bytes);
    }
    for bad in [json!("5 parsecs"), json!(0), json!(-1), json!("GB"), json!("99999999999GB")] {
        assert!(size(bad.clone()).is_err(), "{bad}");
    }
}
