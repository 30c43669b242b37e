//! The same seed is the same model; a model that cannot be is refused before the run.

use flow_core::Known;

use super::*;
use crate::testing::{golden, run, said, tree};

fn small() -> Json {
    json!({"vocab_size": 600, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2})
}

#[test]
fn a_seed_is_a_model() {
    let make = |seed: u64, dtype: &str| {
        let params = json!({"config": small(), "seed": seed, "dtype": dtype, "tokenizer": "t"});
        run::<InitModel>(params, &[("tokenizer", &golden("hf"))]).unwrap()
    };
    let out = make(1, "bf16");
    assert_eq!(tree(out.path()), tree(make(1, "bf16").path()));
    assert_ne!(tree(out.path()), tree(make(2, "bf16").path()));
    // Guards what models were made with: a change here needs VERSION raised.
    assert_eq!(
        tree(out.path()).digest().to_string(),
        "c32960e7ab22b4c8f7b28ab3d41cf6fc074d0747984b08be769c45541943c8fb"
    );

    let config: Json = crate::facts::read_json(&out.path().join("config.json")).unwrap();
    assert_eq!((&config["torch_dtype"], &config["model_type"]), (&json!("bfloat16"), &json!("llama")));
    assert!(out.path().join("tokenizer.json").is_file());
    let tensors = safetensors::read_header(&out.path().join("model.safetensors")).unwrap();
    assert_eq!(tensors.len(), 2 * 9 + 3);
    let bytes = fs::read(out.path().join("model.safetensors")).unwrap();
    let of = |name: &str| &bytes[tensors[name].at as usize..][..tensors[name].len as usize];
    assert!(of("model.layers.1.input_layernorm.weight").chunks(2).all(|one| one == [0x80, 0x3f]));
    let values: Vec<f64> = of("model.embed_tokens.weight")
        .chunks_exact(2)
        .map(|two| f64::from(f32::from_bits(u32::from(u16::from_le_bytes([two[0], two[1]])) << 16)))
        .collect();
    let variance = values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64;
    assert!((variance.sqrt() - 0.02).abs() < 0.0004, "{}", variance.sqrt());

    let dtype = |params: Json| {
        let out = run::<InitModel>(params, &[]).unwrap();
        safetensors::read_header(&out.path().join("model.safetensors")).unwrap()["lm_head.weight"].dtype
    };
    assert_eq!(dtype(json!({"config": small(), "dtype": "fp32"})), DType::F32);
    let mut named = small();
    named["torch_dtype"] = json!("float32");
    assert_eq!(dtype(json!({"config": named.clone()})), DType::F32);
    assert_eq!(dtype(json!({"config": named, "dtype": "bf16"})), DType::Bf16);
    assert_eq!(dtype(json!({"config": small()})), DType::Bf16);
}

#[test]
fn a_config_is_a_table_or_a_file_and_the_key_sees_what_it_says() {
    let key = |params: Json| serde_json::to_value(serde_json::from_value::<InitModel>(params).unwrap()).unwrap();
    let table = key(json!({"config": small()}));
    assert_eq!((&table["config"]["hidden_size"], &table["config"]["hidden_act"]), (&json!(32), &json!("silu")));
    assert_eq!(key(json!({"config": "config.json", "tokenizer": "t"})), json!({"seed": 0}));

    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden("hf/config.json"), dir.path().join("config.json")).unwrap();
    let out = run::<InitModel>(json!({"config": "x"}), &[("config", dir.path())]).unwrap();
    let tensors = safetensors::read_header(&out.path().join("model.safetensors")).unwrap();
    let want = safetensors::read_header(&golden("hf/model.safetensors")).unwrap();
    let shapes = |tensors: &std::collections::BTreeMap<String, safetensors::Tensor>| -> Vec<_> {
        tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect()
    };
    assert_eq!(shapes(&tensors), shapes(&want));
}

#[test]
fn what_cannot_be_is_said_before_the_run() {
    let tokens = |count: u64| Known {
        name: "t".into(),
        path: None,
        facts: [("tokenizer_vocab".to_owned(), json!(count))].into(),
        ..Known::default()
    };
    let params = json!({"config": small(), "tokenizer": "t"});
    let (errors, facts) = said::<InitModel>(params.clone(), &[("tokenizer", tokens(600))]);
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!((facts["vocab_size"].as_u64(), facts["tokenizer_vocab"].as_u64()), (Some(600), Some(600)));
    assert_eq!(facts["max_position_embeddings"].as_u64(), Some(2048));
    assert_eq!(facts["model_config"]["num_hidden_layers"], 2);
    let (errors, _) = said::<InitModel>(params, &[("tokenizer", tokens(601))]);
    assert!(errors[0].starts_with("config: ") && errors[0].contains("vocab_size = 601"), "{errors:?}");

    let mut without = small();
    without.as_object_mut().unwrap().remove("hidden_size");
    let (errors, _) = said::<InitModel>(json!({"config": without}), &[]);
    assert!(errors[0].contains("`hidden_size` is missing"), "{errors:?}");
    let mut wrong = small();
    wrong["hiden_size"] = json!(1);
    let (errors, _) = said::<InitModel>(json!({"config": wrong}), &[]);
    assert!(errors[0].contains("hiden_size"), "{errors:?}");
    let mut half = small();
    half["torch_dtype"] = json!("float16");
    let (errors, _) = said::<InitModel>(json!({"config": half}), &[]);
    assert!(errors[0].contains("float16"), "{errors:?}");
    let dir = tempfile::tempdir().unwrap();
    let other_name = dir.path().join("tiny.json");
    fs::copy(golden("hf/config.json"), &other_name).unwrap();
    let named = Known { name: "x".into(), path: Some(other_name), ..Known::default() };
    let (errors, facts) = said::<InitModel>(json!({"config": "x"}), &[("config", named)]);
    assert_eq!((errors, facts["vocab_size"].as_u64()), (vec![], Some(512)));
    let bad = Known { name: "x".into(), path: Some(golden("hf/tokenizer.json")), ..Known::default() };
    let (errors, _) = said::<InitModel>(json!({"config": "x"}), &[("config", bad)]);
    assert!(errors[0].starts_with("config: "), "{errors:?}");
}
