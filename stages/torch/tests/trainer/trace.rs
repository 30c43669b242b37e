//! The loss trace is that of another implementation, on any mesh.

use crate::common::{Training, difference, reference};
use serde_json::{Value, json};

/// Twenty steps of transformers with torch.optim.AdamW on the same batches.
#[test]
fn twenty_steps_are_those_of_transformers() {
    for model in ["untied", "tied"] {
        let theirs = reference()["traces"][model].as_array().unwrap().clone();
        let ours = Training::of(model).run();
        for (field, limit) in [("lr", 1e-12), ("loss", 1e-5), ("val_loss", 1e-5), ("grad_norm", 1e-4)] {
            let worst = difference(&ours, &theirs, field);
            eprintln!("{model} {field}: {worst:.1e}");
            assert!(worst < limit, "{model}: {field} differs by {worst:.1e}");
        }
        let last = &ours[19];
        assert_eq!((last["consumed_samples"].as_u64(), last["consumed_tokens"].as_u64()), (Some(160), Some(160 * 64)));
    }
}

#[test]
fn every_mesh_gives_the_trace_of_one_rank() {
    for model in ["untied", "tied"] {
        let one = Training::of(model).run();
        let mut meshes = vec![json!({"data": 2}), json!({"tensor": 2})];
        if model == "untied" {
            meshes.extend([
                json!({"data": 4}),
                json!({"tensor": 2, "sequence": true}),
                json!({"tensor": 2, "data": 2}),
            ]);
        }
        for parallel in meshes {
            let many = Training::of(model).with(&[("parallel", parallel.clone())]).run();
            for field in ["loss", "val_loss", "grad_norm"] {
                let worst = difference(&many, &one, field);
                eprintln!("{model} {parallel} {field}: {worst:.1e}");
                assert!(worst < 1e-5, "{model} on {parallel}: {field} differs by {worst:.1e}");
            }
        }
    }
}

/// How the batch is cut into micro batches, and what is computed again, changes no number.
#[test]
fn accumulation_and_recomputation_change_nothing() {
    let one = Training::of("untied").run();
    let recomputed = Training::of("untied").with(&[("memory", json!({"recompute": "full"}))]);
    assert_eq!(recomputed.run(), one);
    let whole = Training::of("untied").with(&[("micro_batch_size", json!(8))]).run();
    assert!(difference(&whole, &one, "loss") < 1e-5);
}

#[test]
fn bf16_follows_fp32() {
    let fp32 = Training::of("untied").run();
    let bf16 = Training::of("untied").with(&[("precision", json!("bf16")), ("parallel", json!({"data": 2}))]);
    let trace = bf16.run();
    let worst = difference(&trace, &fp32, "loss");
    eprintln!("bf16: {worst:.1e}");
    assert!(worst < 0.02, "{worst}");
    let loss = |line: &Value| line["loss"].as_f64().unwrap();
    assert!(loss(&trace[19]) < 0.6 * loss(&trace[0]));
}
