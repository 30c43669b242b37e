//! `flow inspect` and `flow diff-weights`: whether a person can trust a conversion.

use std::{fs, path::Path};

use crate::support::{Sandbox, copy};

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
