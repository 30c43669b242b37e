//! `flow inspect` and `flow diff-weights`: whether a person can trust a conversion.

use std::{fs, io::Write, path::Path};

use serde_json::{Map, json};

use crate::support::{Sandbox, copy, until};

#[test]
fn a_conversion_is_checked_from_outside() {
    let sandbox = Sandbox::with(
        "[stage.megatron]\nkind = \"hf-to-megatron\"\ninput = \"hf\"\nexport = \"megatron\"\n\
         [stage.half]\nkind = \"megatron-to-hf\"\ninput = \"megatron\"\nsource = \"hf\"\ndtype = \"fp16\"\nexport = \"half\"\n",
    );
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/megatron_ckpt/untied_v512");
    copy(&golden.join("hf"), &sandbox.path("hf"));
    sandbox.ok(&["run", "p.toml"]);

    let text = sandbox.ok(&["inspect", "megatron"]);
    assert!(text.contains("Megatron (torch_dist), iteration 0") && text.contains("238144"), "{text}");
    assert!(text.contains("decoder.layers.mlp.linear_fc1.weight") && text.contains("[4, 320, 64]"), "{text}");
    let line: serde_json::Value = serde_json::from_str(&sandbox.ok(&["inspect", "hf", "--json"])).unwrap();
    assert_eq!((&line["model_type"], line["tensors"].as_array().unwrap().len()), (&"llama".into(), 39));

    let text = sandbox.ok(&["diff-weights", "hf", "megatron"]);
    assert!(text.contains("39 equal, 0 different, 0 missing"), "{text}");
    sandbox.ok(&["diff-weights", "megatron/iter_0000000", "hf/model.safetensors", "--json"]);

    let output = sandbox.run(&["diff-weights", "half", "megatron"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stdout.contains("float16, bfloat16") && output.stderr.contains("tensors differ"), "{output}");
    sandbox.ok(&["diff-weights", "half", "megatron", "--tolerance", "1e-3"]);

    fs::write(sandbox.path("hf/model.safetensors"), "cut off").unwrap();
    let output = sandbox.run(&["inspect", "hf"]);
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr.contains("model.safetensors"), "{output}");
}

/// A Llama of 55 MB, its weights a hole in a file.
fn hollow(dir: &Path) {
    let (hidden, ffn, layers, vocab) = (1024, 2048, 3, 1000);
    fs::create_dir(dir).unwrap();
    let config = json!({ "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": vocab, "torch_dtype": "bfloat16" });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut tensors =
        vec![("model.embed_tokens".to_owned(), vec![vocab, hidden]), ("model.norm".to_owned(), vec![hidden])];
    tensors.push(("lm_head".to_owned(), vec![vocab, hidden]));
    for layer in 0..layers {
        let mut put =
            |name: &str, shape: &[u64]| tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        for name in ["q", "k", "v", "o"] {
            put(&format!("self_attn.{name}_proj"), &[hidden, hidden]);
        }
        put("mlp.gate_proj", &[ffn, hidden]);
        put("mlp.up_proj", &[ffn, hidden]);
        put("mlp.down_proj", &[hidden, ffn]);
        put("input_layernorm", &[hidden]);
        put("post_attention_layernorm", &[hidden]);
    }
    let (mut header, mut at) = (Map::new(), 0);
    for (name, shape) in tensors {
        let end = at + 2 * shape.iter().product::<u64>();
        header.insert(format!("{name}.weight"), json!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = fs::File::create(dir.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(8 + header.len() as u64 + at).unwrap();
}

#[test]
fn an_export_that_is_killed_goes_on_behind_the_files_that_are_whole() {
    let sandbox = Sandbox::with(
        "[stage.megatron]\nkind = \"hf-to-megatron\"\ninput = \"hf\"\n\
         [stage.back]\nkind = \"megatron-to-hf\"\ninput = \"megatron\"\nsource = \"hf\"\nmax_shard_size = \"2MB\"\n\
         export = \"back\"\n",
    );
    hollow(&sandbox.path("hf"));
    sandbox.ok(&["run", "p.toml", "megatron"]);
    let marks = || {
        let scratch = fs::read_dir(sandbox.cache().join("scratch")).into_iter().flatten().flatten();
        scratch.flat_map(|key| fs::read_dir(key.path().join("whole")).into_iter().flatten().flatten()).count()
    };
    let run = sandbox.start(&["run", "p.toml"]);
    until("a file is whole", || marks() > 0);
    run.signal(libc::SIGKILL);
    run.end();
    let plan = sandbox.ok(&["plan", "p.toml"]);
    assert!(marks() == 0 || plan.contains("that") && plan.contains("whole"), "{plan}");
    sandbox.ok(&["run", "p.toml"]);
    let text = sandbox.ok(&["diff-weights", "hf", "back"]);
    assert!(text.contains("30 equal, 0 different, 0 missing"), "{text}");
    sandbox.ok(&["cache", "verify"]);
}
