//! What others wrap around the same bytes: Megatron-LM's older files, NeMo's archives and directories.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;

use super::{super::*, golden, read};
use crate::{
    DType,
    pickle::{Encoder, Value},
    zip::{Data, frame},
};

fn legacy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/megatron_legacy").join(name)
}

/// `tests/golden/megatron_legacy`: every element is its own place in its tensor.
#[test]
fn ranks_of_the_older_format_are_one_table() {
    let layer: &[(&str, &[u64])] = &[
        ("decoder.final_layernorm.weight", &[4]),
        ("decoder.layers.self_attention.linear_proj.weight", &[2, 4, 8]),
        ("decoder.layers.self_attention.linear_qkv.bias", &[2, 16]),
        ("decoder.layers.self_attention.linear_qkv.layer_norm_weight", &[2, 4]),
        ("decoder.layers.self_attention.linear_qkv.weight", &[2, 16, 4]),
        ("embedding.word_embeddings.weight", &[8, 4]),
        ("output_layer.weight", &[8, 4]),
    ];
    let dense: &[(&str, &[u64])] = &[
        ("decoder.layers.mlp.linear_fc1.layer_norm_weight", &[2, 4]),
        ("decoder.layers.mlp.linear_fc1.weight", &[2, 12, 4]),
        ("decoder.layers.mlp.linear_fc2.weight", &[2, 4, 6]),
    ];
    let experts: &[(&str, &[u64])] = &[
        ("decoder.layers.mlp.experts.experts.linear_fc1.weight", &[2, 4, 12, 4]),
        ("decoder.layers.mlp.experts.experts.linear_fc2.weight", &[2, 4, 4, 6]),
        ("decoder.layers.mlp.router.weight", &[2, 4, 4]),
        ("decoder.layers.pre_mlp_layernorm.weight", &[2, 4]),
    ];
    for (name, mlp) in [("tp2_pp2", dense), ("tp2_ep2", experts), ("pp2_ep2", experts)] {
        let (iteration, dir) = newest(&legacy(name)).unwrap();
        assert_eq!(iteration, 5);
        let reader = Reader::open(&dir).unwrap();
        let shapes: BTreeMap<&str, &[u64]> =
            reader.tensors().iter().map(|(key, tensor)| (key.as_str(), tensor.shape.as_slice())).collect();
        assert_eq!(shapes, layer.iter().chain(mlp).copied().collect(), "{name}");
        for (key, shape) in shapes {
            let bytes = read(&reader, key, &vec![0; shape.len()], shape);
            let found: Vec<f32> = bytes.as_chunks().0.iter().map(|&element| f32::from_le_bytes(element)).collect();
            let want: Vec<f32> = (0..shape.iter().product()).map(|i: u64| i as f32).collect();
            assert_eq!(found, want, "{name} {key}");
        }
    }
}

#[test]
fn experts_that_are_kept_otherwise_are_refused() {
    let model = |key: &'static str| {
        let model = Value::dict([(key, payload::tensor(DType::F32, &[1], 0))]);
        let root = Value::dict([("checkpoint_version", Value::Float(3.0)), ("model", model)]);
        torch_save("model_optim_rng", &root, &[vec![0; 4]])
    };
    let mut args = Encoder::new();
    args.dict().mark().str("args").new_object("argparse", "Namespace").dict().mark();
    args.str("num_experts").int(8).str("expert_tensor_parallel_size").int(2).pairs().build().pairs();
    let args = args.finish();
    for (file, word) in [
        (model("decoder.layers.0.mlp.experts.weight1"), "--moe-use-legacy-grouped-gemm"),
        (model("decoder.layers.0.mlp.experts.local_experts.x.linear_fc1.weight"), "which of its experts"),
        (
            frame("model_optim_rng", &[("data.pkl", Data::Bytes(&args))]).before,
            "cut over 2 tensor ranks, and the rest over 1",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mp_rank_00")).unwrap();
        fs::write(dir.path().join("mp_rank_00/model_optim_rng.pt"), file).unwrap();
        let error = format!("{:#}", Reader::open(dir.path()).unwrap_err());
        assert!(error.contains(word), "{error} should say {word}");
    }
}

#[test]
fn a_rank_that_is_missing_or_damaged_is_named() {
    let dir = legacy("tp2_pp2/iter_0000005");
    let copy = tempfile::tempdir().unwrap();
    let to = copy.path().join("iter_0000005");
    for rank in ["mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000"] {
        fs::create_dir_all(to.join(rank)).unwrap();
        let file = format!("{rank}/model_optim_rng.pt");
        fs::copy(dir.join(&file), to.join(&file)).unwrap();
    }
    let error = || format!("{:#}", Reader::open(&to).unwrap_err());
    assert!(error().contains("3 of 4 ranks"), "{}", error());
    let damaged = to.join("mp_rank_01_001");
    fs::create_dir_all(&damaged).unwrap();
    fs::write(damaged.join("model_optim_rng.pt"), "no archive, and longer than its end record").unwrap();
    assert!(error().contains("mp_rank_01_001/model_optim_rng.pt"), "{}", error());
    let old = Value::dict([("checkpoint_version", Value::Float(2.0)), ("model", Value::dict([]))]);
    fs::write(to.join("mp_rank_00_000/model_optim_rng.pt"), torch_save("model_optim_rng", &old, &[])).unwrap();
    assert!(error().contains("`checkpoint_version` is 2.0"), "{}", error());
}

proptest! {
    /// The first rank's file, damaged or cut off.
    #[test]
    fn a_damaged_rank_is_an_error_or_has_its_size(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let golden = legacy("tp2_pp2/iter_0000005");
        let copy = tempfile::tempdir().unwrap();
        for rank in ["mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001"] {
            fs::create_dir(copy.path().join(rank)).unwrap();
            let file = format!("{rank}/model_optim_rng.pt");
            let mut bytes = fs::read(golden.join(&file)).unwrap();
            if rank == "mp_rank_00_000" {
                for (at, byte) in &changes {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
                bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
            }
            fs::write(copy.path().join(file), bytes).unwrap();
        }
        let Ok(reader) = Reader::open(copy.path()) else { return Ok(()) };
        for (key, tensor) in reader.tensors() {
            let mut out = vec![0; (tensor.shape.iter().product::<u64>() * tensor.dtype.size()) as usize];
            let _ = reader.read(key, &vec![0; tensor.shape.len()], &tensor.shape, &mut out);
        }
    }

    /// A `.nemo`'s table of members, damaged or cut off.
    #[test]
    fn a_damaged_archive_is_an_error_or_reads_inside(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.nemo");
        let mut bytes = Vec::new();
        nemo(&mut bytes, &golden("megatron_core0.16/iter_0000000"), "./model_weights/", &[METADATA, "common.pt"]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
        fs::write(&path, bytes).unwrap();
        let _ = newest(&path).map(|(_, path)| Reader::open(&path).map(|reader| reader.common()));
    }
}

/// An archive as NeMo 1 makes one, with these files of an iteration.
fn nemo(to: &mut Vec<u8>, iteration: &Path, below: &str, files: &[&str]) {
    let mut archive = tar::Builder::new(to);
    let mut put = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        // As Python's tarfile does it; the crate's own way would leave out the `./`.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, bytes).unwrap();
    };
    put("./model_config.yaml", b"encoder_seq_length: 128\n");
    for file in files {
        put(&format!("{below}{file}"), &fs::read(iteration.join(file)).unwrap());
    }
    put("./tokenizer.model", &[7; 600]);
    archive.finish().unwrap();
}

#[test]
fn an_archive_of_nemo_is_read_in_place() {
    let theirs = golden("megatron_core0.16/iter_0000000");
    let files = [METADATA, "__0_0.distcp", "__0_1.distcp", "common.pt", "metadata.json"];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.nemo");
    let mut bytes = Vec::new();
    nemo(&mut bytes, &theirs, "./model_weights/", &files);
    fs::write(&path, &bytes).unwrap();
    assert_eq!(newest(&path).unwrap(), (0, path.clone()));
    assert_eq!(newest(dir.path()).unwrap(), (0, path.clone()), "a stage that fetched it has it in a directory");
    let (ours, theirs_) = (Reader::open(&path).unwrap(), Reader::open(&theirs).unwrap());
    assert_eq!(ours.tensors().len(), 9);
    for (key, tensor) in theirs_.tensors() {
        let start = vec![0; tensor.shape.len()];
        assert_eq!(read(&ours, key, &start, &tensor.shape), read(&theirs_, key, &start, &tensor.shape), "{key}");
    }
    let version =
        |reader: &Reader| reader.common().unwrap().unwrap().root().get("checkpoint_version").unwrap().as_float();
    assert_eq!(version(&ours), version(&theirs_));
    assert!(ours.object("decoder.layers.mlp.linear_fc1._extra_state/shard_0_4").is_ok());

    let error = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        format!("{:#}", newest(&path).and_then(|(_, path)| Reader::open(&path)).unwrap_err())
    };
    assert!(error(&bytes[..bytes.len() / 2]).contains("cut off"), "{}", error(&bytes[..bytes.len() / 2]));
    let packed = zstd::encode_all(&bytes[..], 1).unwrap();
    assert!(error(&packed).contains("kind = \"gunzip\""), "{}", error(&packed));
    assert!(error(b"<html>").contains("no tar archive"), "{}", error(b"<html>"));
    for (file, word) in [
        ("model_weights/model.decoder.layers/.zarray", "zarr"),
        ("model_weights.ckpt", "one pickle"),
        ("x", "has no .metadata"),
    ] {
        let (mut bytes, name) = (Vec::new(), Path::new(file).file_name().unwrap().to_str().unwrap());
        let iteration = tempfile::tempdir().unwrap();
        fs::write(iteration.path().join(name), "{}").unwrap();
        nemo(&mut bytes, iteration.path(), &format!("./{}", file.strip_suffix(name).unwrap()), &[name]);
        assert!(error(&bytes).contains(word), "{}", error(&bytes));
    }
    let mut bytes = Vec::new();
    nemo(&mut bytes, &theirs, "./model_weights/", &[METADATA, "__0_0.distcp"]);
    assert!(error(&bytes).contains("has no __0_1.distcp"), "{}", error(&bytes));
}

/// NeMo 2 puts the only iteration into `weights`.
#[test]
fn weights_beside_a_context_are_found() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("context")).unwrap();
    fs::create_dir_all(root.path().join("weights")).unwrap();
    fs::copy(golden("megatron_core0.16/iter_0000000/.metadata"), root.path().join("weights/.metadata")).unwrap();
    assert_eq!(newest(root.path()).unwrap(), (0, root.path().join("weights")));
}
