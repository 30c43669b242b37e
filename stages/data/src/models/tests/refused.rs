//! What is wrong is said by name, most of it before a run.

use std::{fs, path::PathBuf};

use flow_core::{Facts, Known};
use serde_json::{Value as Json, json};

use super::{super::Model, copy_golden};
use crate::{
    hf_to_megatron::HfToMegatron,
    megatron_to_hf::MegatronToHf,
    testing::{golden, run, said},
};

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
        (
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "original_max_position_embeddings": 8192}),
            "RoPE scaling of `yarn`",
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
fn wrong_directories_are_spotted_before_the_run() {
    let known = |path: PathBuf| {
        let facts = crate::facts::of_path(&path).unwrap();
        Known { name: "x".into(), path: Some(path), facts, ..Known::default() }
    };
    let (errors, facts) = said::<HfToMegatron>(json!({"input": "x"}), &[("input", known(golden("hf")))]);
    assert_eq!((errors, facts["vocab_size"].as_u64()), (vec![], Some(512)));
    assert_eq!(facts["plan_notes"], json!(["238144 parameters in 39 tensors, 0.5 MB in bfloat16"]));
    let (errors, _) = said::<HfToMegatron>(json!({"input": "x"}), &[("input", known(golden("megatron_core0.16")))]);
    assert!(errors[0].starts_with("input: ") && errors[0].contains("is a Megatron checkpoint"), "{errors:?}");
    let (errors, _) = said::<HfToMegatron>(json!({"input": "x"}), &[("input", known(golden("")))]);
    assert!(errors[0].contains("no config.json"), "{errors:?}");
    let dir = copy_golden();
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    for (file, word) in [("README.md", "has no *.safetensors"), ("pytorch_model.bin", "pickles")] {
        fs::write(dir.path().join(file), "").unwrap();
        let known = known(dir.path().to_owned());
        let (errors, _) = said::<HfToMegatron>(json!({"input": "x"}), &[("input", known)]);
        assert!(errors[0].contains(word), "{errors:?} should say {word}");
    }

    let both = |input, source| {
        said::<MegatronToHf>(
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
    let (errors, _) = said::<MegatronToHf>(params, &[("input", other), ("source", known(golden("hf")))]);
    assert!(errors[0].contains("512 tokens") && errors[0].contains("8192"), "{errors:?}");
}

#[test]
fn a_file_is_no_model_unless_others_come_with_it() {
    let dir = copy_golden();
    fs::write(dir.path().join("a.txt"), "text").unwrap();
    let told = |names: &[&str]| -> Vec<String> {
        let known = |name: &&str| Known {
            name: (*name).to_owned(),
            path: (!name.is_empty()).then(|| dir.path().join(name)),
            ..Known::default()
        };
        let inputs = [("input".to_owned(), names.iter().map(known).collect())].into();
        let mut check = flow_core::Check::new(dir.path(), &inputs);
        flow_core::Stage::check(&crate::testing::stage::<HfToMegatron>(json!({"input": "x"})), &mut check);
        check.errors.iter().map(ToString::to_string).collect()
    };
    let only = |names: &[&str], says: &str| {
        let told = told(names);
        assert!(matches!(&told[..], [one] if one.contains(says)), "{names:?}: {told:?}");
    };
    only(&["a.txt"], "a.txt is a file, and a Hugging Face model is a directory");
    only(&["a.txt", "model.safetensors"], "no config.json is among");
    only(&["config.json", "a.txt"], "without *.safetensors");
    assert_eq!(told(&["config.json", "model.safetensors", "a.txt"]), [""; 0]);
    // What a stage makes may be anything.
    assert_eq!(told(&["a.txt", ""]), [""; 0]);
    let file = Known { path: Some(dir.path().join("a.txt")), ..Known::default() };
    let (errors, _) = said::<MegatronToHf>(json!({"input": "x", "source": "y"}), &[("source", file)]);
    assert!(errors[0].starts_with("source: ") && errors[0].contains("is a file"), "{errors:?}");
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
