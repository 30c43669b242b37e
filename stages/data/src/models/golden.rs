//! What Megatron-Bridge made of a tiny model of each family (`tests/golden/megatron_families`): the tables say the same.

use std::{collections::BTreeMap, fs, path::Path};

use flow_formats::{
    DType, safetensors,
    torch_dist::{self, Reader},
};
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use super::Model;
use crate::{
    hf_to_megatron::HfToMegatron,
    megatron_to_hf::MegatronToHf,
    testing::{run, tree},
};

/// The weights of a tensor of this name, as `make_families.py` has them.
fn bits(name: &str, len: usize) -> Vec<u8> {
    let mut noise: Vec<u8> = (0..len.div_ceil(32)).flat_map(|i| Sha256::digest(format!("{name}/{i}"))).collect();
    noise.truncate(len);
    noise.iter_mut().skip(1).step_by(2).for_each(|byte| *byte &= 0xbf);
    noise
}

fn families() -> BTreeMap<String, Json> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/megatron_families/families.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn numbers(list: &Json) -> Vec<u64> {
    list.as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
}

/// On a CPU, Megatron's experts have a norm that is named as before a dense layer.
fn key(theirs: &str, experts: bool) -> &str {
    match theirs {
        "decoder.layers.mlp.linear_fc1.layer_norm_weight" if experts => "decoder.layers.pre_mlp_layernorm.weight",
        other => other,
    }
}

#[test]
fn every_family_is_what_megatron_bridge_makes_of_it() {
    for (name, golden) in families() {
        let dir = tempfile::tempdir().unwrap();
        let hf = golden["hf"].as_object().unwrap();
        let named: Vec<_> = hf.iter().map(|(name, shape)| (name.clone(), DType::Bf16, numbers(shape))).collect();
        for shard in safetensors::plan(&named, 20_000).unwrap().shards {
            let mut bytes = shard.header;
            shard.tensors.iter().for_each(|(name, _, len)| bytes.extend(bits(name, *len as usize)));
            fs::write(dir.path().join(shard.name), bytes).unwrap();
        }
        fs::write(dir.path().join("config.json"), golden["config"].to_string()).unwrap();

        let out = run::<HfToMegatron>(json!({"input": "x"}), &[("input", dir.path())])
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let ours = Reader::open(&torch_dist::newest(out.path()).unwrap().1).unwrap();
        let theirs = golden["tensors"].as_object().unwrap();
        assert_eq!(ours.tensors().len(), theirs.len(), "{name}");
        let experts = theirs.contains_key("decoder.layers.mlp.router.weight");
        for (their_key, want) in theirs {
            let key = key(their_key, experts);
            let tensor = ours.tensor(key).unwrap_or_else(|| panic!("{name} has no {key}"));
            assert_eq!(tensor.shape, numbers(&want["shape"]), "{name} {key}");
            let cut: Vec<_> = tensor.chunks.iter().map(|chunk| json!([chunk.offset(), chunk.size()])).collect();
            assert_eq!(json!(cut), want["chunks"], "{name} {key}");
            let mut bytes = vec![0; (tensor.shape.iter().product::<u64>() * tensor.dtype.size()) as usize];
            ours.read(key, &vec![0; tensor.shape.len()], &tensor.shape, &mut bytes).unwrap();
            let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(digest, want["sha256"], "{name} {key}");
        }
        assert_eq!(json!(ours.objects().collect::<Vec<_>>()), golden["objects"], "{name}");
        run_config(&name, &golden, out.path());

        let ports = [("input", out.path()), ("source", dir.path())];
        let params = json!({"input": "x", "source": "y", "max_shard_size": 20_000});
        let back = run::<MegatronToHf>(params, &ports).unwrap();
        let weights = |dir: &Path| -> BTreeMap<_, _> {
            let names = tree(dir).entries().iter().map(|entry| entry.name.clone()).collect::<Vec<_>>();
            let files = names.iter().filter(|name| name.ends_with(".safetensors")).map(|name| dir.join(name));
            let headers = files.flat_map(|file| safetensors::read_header(&file).unwrap());
            headers
                .map(|(name, it)| (name, fs::read(it.file).unwrap()[it.at as usize..][..it.len as usize].to_vec()))
                .collect()
        };
        assert_eq!(weights(back.path()), weights(dir.path()), "{name}");
    }
}

/// The fields that we write are there, and what they say is what Megatron-Bridge says.
fn run_config(name: &str, golden: &Json, out: &Path) {
    let text = fs::read_to_string(out.join("iter_0000000/run_config.yaml")).unwrap();
    let ours: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split_once(": ").filter(|l| !l.0.starts_with(' ')))
        .collect();
    for (field, want) in golden["run_config"].as_object().unwrap() {
        // Without any scaling nobody reads it.
        if field == "rope_scaling_factor" && name == "gemma2" {
            continue;
        }
        if let Some(function) = want["_target_"].as_str() {
            assert!(
                text.contains(&format!("  {field}:\n    _call_: false\n    _target_: {function}\n")),
                "{name}: {field}"
            );
            continue;
        }
        let want = match want {
            Json::Array(list) => format!("[{}]", list.iter().map(Json::to_string).collect::<Vec<_>>().join(", ")),
            Json::String(text) => text.clone(),
            other => other.to_string(),
        };
        let Some(&said) = ours.get(field.as_str()) else { continue };
        let same = said == want || matches!((said.parse::<f64>(), want.parse::<f64>()), (Ok(a), Ok(b)) if a == b);
        assert!(same, "{name}: {field} is {said}, and Megatron-Bridge says {want}");
    }
    for (field, plain) in [("window_size", Json::Null), ("qk_layernorm", json!(false)), ("num_moe_experts", Json::Null)]
    {
        let said = golden["run_config"][field] != plain;
        assert_eq!(ours.contains_key(field), said, "{name}: {field}");
    }
}

/// Mixtral has no bridge there: its experts stand as Qwen's do, under the names that transformers gives them.
#[test]
fn mixtral_is_laid_out_as_other_experts_are() {
    let golden = families().remove("qwen3_moe").unwrap();
    let mut config = golden["config"].as_object().unwrap().clone();
    config.retain(|field, _| {
        !["num_experts", "moe_intermediate_size", "norm_topk_prob", "mlp_only_layers", "decoder_sparse_step"]
            .contains(&field.as_str())
            && !field.starts_with("use_sliding")
            && field != "attention_bias"
    });
    config.extend([("model_type".into(), "mixtral".into()), ("num_local_experts".into(), 4.into())]);
    config.insert("intermediate_size".into(), 24.into());
    let (mixtral, qwen) = (Model::of(&Json::Object(config)).unwrap(), Model::of(&golden["config"]).unwrap());
    let states: Vec<_> = qwen.states().collect();
    let norm = |key: &str| key.ends_with("q_layernorm.weight") || key.ends_with("k_layernorm.weight");
    let theirs: Vec<_> = qwen.layout.megatron.into_iter().filter(|target| !norm(&target.key)).collect();
    assert_eq!(mixtral.layout.megatron, theirs);
    assert_eq!(states, mixtral.states().collect::<Vec<_>>());
}
