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
    let untied = [
        json!({"data": 2}),
        json!({"tensor": 2}),
        json!({"tensor": 2, "sequence": true}),
        json!({"context": 2}),
        json!({"pipeline": 3}),
        json!({"data": 4}),
        json!({"tensor": 2, "data": 2}),
        json!({"tensor": 2, "context": 2, "sequence": true}),
        json!({"context": 2, "data": 2}),
        json!({"context": 4}),
    ];
    let tied = [json!({"tensor": 2}), json!({"pipeline": 3}), json!({"context": 2})];
    check("untied", &untied, &[]);
    check("tied", &tied, &[]);
}

/// The golden models have three layers: two of them make pipelines of two ranks.
#[test]
fn pipelines_of_two_go_with_every_other_axis() {
    let meshes = [
        json!({"pipeline": 2}),
        json!({"pipeline": 2, "data": 2}),
        json!({"pipeline": 2, "tensor": 2, "sequence": true}),
        json!({"pipeline": 2, "context": 2}),
    ];
    check("untied", &meshes, &[("layers", json!(2))]);
    check("tied", &meshes[1..3], &[("layers", json!(2))]);
}

/// Every axis together, as on one machine of eight GPUs.
#[test]
fn eight_ranks_give_the_trace_of_one() {
    let mut optim = reference()["training"]["optim"].clone();
    optim["distributed"] = json!(true);
    let meshes = [
        json!({"data": 8}),
        json!({"tensor": 2, "context": 2, "data": 2, "sequence": true}),
        json!({"pipeline": 2, "tensor": 2, "data": 2, "sequence": true}),
        json!({"pipeline": 2, "context": 4}),
    ];
    let changes = [("micro_batch_size", json!(1)), ("layers", json!(2)), ("optim", optim)];
    check("untied", &meshes, &changes);
}

/// What ends of documents do is the same on every mesh. The token that stands for them is the data's most frequent one.
#[test]
fn ends_of_documents_are_seen_on_every_mesh() {
    let options = ["reset_position_ids", "reset_attention_mask", "eod_mask_loss"].map(|field| (field, json!(true)));
    let changes = [&options[..], &[("eod_token_id", json!(44)), ("layers", json!(2))]].concat();
    let meshes = [
        json!({"data": 2}),
        json!({"tensor": 2, "sequence": true}),
        json!({"context": 2}),
        json!({"pipeline": 2, "context": 2}),
    ];
    check("untied", &meshes, &changes);
    // Positions alone: where documents do not see each other, RoPE makes nothing of where they begin.
    let plain = Training::of("untied").with(&changes[3..]).run();
    for option in &changes[..3] {
        let one = Training::of("untied").with(&changes[3..]).with(std::slice::from_ref(option)).run();
        assert!(difference(&one, &plain, "loss") > 1e-4, "{} does something", option.0);
    }
}

/// Shared out or not, the optimizer's state gives the same bits.
#[test]
fn the_distributed_optimizer_changes_nothing() {
    for precision in ["fp32", "bf16"] {
        for parallel in [json!({"data": 4}), json!({"data": 2, "context": 2}), json!({"tensor": 2, "data": 2})] {
            let mut optim = reference()["training"]["optim"].clone();
            let changes = [("parallel", parallel.clone()), ("precision", json!(precision))];
            let plain = Training::of("untied").with(&changes).run();
            optim["distributed"] = json!(true);
            let shared = Training::of("untied").with(&changes).with(&[("optim", optim)]).run();
            assert_eq!(shared, plain, "{precision} {parallel}");
        }
    }
}

fn check(model: &str, meshes: &[Value], changes: &[(&str, Value)]) {
    let one = Training::of(model).with(changes).run();
    for parallel in meshes {
        let many = Training::of(model).with(changes).with(&[("parallel", parallel.clone())]).run();
        for field in ["loss", "val_loss", "grad_norm"] {
            let worst = difference(&many, &one, field);
            eprintln!("{model} {parallel} {field}: {worst:.1e}");
            assert!(worst < 1e-5, "{model} on {parallel}: {field} differs by {worst:.1e}");
        }
    }
}

/// How the batch is cut into micro batches, and what is computed again, changes no number.
#[test]
fn accumulation_and_recomputation_change_nothing() {
    let one = Training::of("untied").run();
    for recompute in ["selective", "full"] {
        let again = Training::of("untied").with(&[("memory", json!({"recompute": recompute}))]);
        assert_eq!(again.run(), one, "{recompute}");
    }
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
