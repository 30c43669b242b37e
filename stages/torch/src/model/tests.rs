//! The model against another implementation's numbers: `tests/golden/training/make_reference.py`.

use std::{fs, path::Path};

use flow_plan::{Documents, ModelConfig, Recompute};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{
    Gradients, Input, Llama, Sight, Spread,
    params::{Layout, Share},
};
use crate::weights;

/// The loss of transformers' LlamaForCausalLM in fp32 and its gradient by every parameter.
#[test]
fn loss_and_gradients_are_those_of_transformers() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/training");
    let reference: Value = serde_json::from_slice(&fs::read(golden.join("reference.json")).unwrap()).unwrap();
    for name in ["untied", "tied"] {
        let config = ModelConfig::read(&golden.join(name)).unwrap();
        let layout = Layout::new(&config, Share::WHOLE);
        let read = |dir: &Path| {
            let flat = Tensor::zeros([layout.total as i64], (Kind::Float, Device::Cpu));
            weights::read_hf(dir, &config, &layout, &flat).unwrap();
            flat
        };
        // Gradients are stored under the parameters' names, and so are read as a model is.
        let folder = tempfile::tempdir().unwrap();
        fs::copy(golden.join(name).join("gradients.safetensors"), folder.path().join("model.safetensors")).unwrap();
        let theirs = read(folder.path());

        let rows: Vec<Vec<i64>> = serde_json::from_value(reference["gradients"][name]["rows"].clone()).unwrap();
        let length = rows[0].len() as i64 - 1;
        let rows_bs = Tensor::from_slice(&rows.concat()).view([-1, length + 1]);
        let (ids_bs, target_bs) = (rows_bs.narrow(1, 0, length), rows_bs.narrow(1, 1, length));
        let tokens = (rows.len() as i64 * length) as f64;

        let flat = read(&golden.join(name));
        for recompute in [Recompute::None, Recompute::Selective, Recompute::Full] {
            let learns = Some(Gradients::new(&layout, Device::Cpu));
            let model =
                Llama::new(&config, &layout, &flat, length as usize, Spread::none(), recompute, learns).unwrap();
            let (tape, _) = model.forward(Input::Tokens(&ids_bs), Sight::default()).unwrap();
            let (nll, d_bsh) = model.loss(&tape, &target_bs, 1.0 / tokens).unwrap();
            assert!(model.backward(tape, d_bsh, &mut |_, _| Ok(())).unwrap().is_none());
            let loss = nll.double_value(&[]) / tokens;
            let expected = reference["gradients"][name]["loss"].as_f64().unwrap();
            assert!((loss - expected).abs() < 1e-5 * expected, "{name}: loss {loss} {expected}");
            for param in &layout.params {
                let part = |flat: &Tensor| flat.narrow(0, param.range.start as i64, param.range.len() as i64);
                let (ours, theirs) = (part(&model.gradients().unwrap().flat), part(&theirs));
                let largest = theirs.abs().max().double_value(&[]);
                assert!(largest > 0.0, "{} has a gradient", param.key);
                let worst = (ours - theirs).abs().max().double_value(&[]) / largest;
                assert!(worst < 1e-5, "{name} {} {:?}: {worst:.1e}", param.key, param.layer);
            }
        }
    }
}

/// With all that Megatron's options do to ends of documents, documents in one row are what they are apart.
#[test]
fn documents_of_a_row_do_not_see_each_other() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/training/untied");
    let config = ModelConfig::read(&golden).unwrap();
    let layout = Layout::new(&config, Share::WHOLE);
    let flat = Tensor::zeros([layout.total as i64], (Kind::Float, Device::Cpu));
    weights::read_hf(&golden, &config, &layout, &flat).unwrap();
    let (eod, length) = (3, 48);
    let documents = Documents { eod, positions: true, attention: true, loss: true };
    // Tokens that are followed by an end, by another document, and an end that follows an end; the last one is a target alone.
    let token = |i: i64| if [9, 23, 24, 40].contains(&i) { eod } else { 5 + i * 7 % 60 };
    let rows: Vec<Vec<i64>> =
        (0..2).map(|row| (0..=length).map(|i| token(if row == 0 { i } else { i + 5 })).collect()).collect();
    let learn = |rows: &[Vec<i64>], learned: bool, recompute| {
        let learns = Some(Gradients::new(&layout, Device::Cpu));
        let longest = rows[0].len() - 1;
        let model = Llama::new(&config, &layout, &flat, longest, Spread::none(), recompute, learns).unwrap();
        let rows_bs = Tensor::from_slice(&rows.concat()).view([rows.len() as i64, -1]);
        let length = longest as i64;
        let (ids_bs, target_bs) = (rows_bs.narrow(1, 0, length), rows_bs.narrow(1, 1, length));
        let inputs: Vec<&[i64]> = rows.iter().map(|row| &row[..longest]).collect();
        let sight = if learned { model.sight(&documents, &inputs) } else { Sight::default() };
        let (tape, _) = model.forward(Input::Tokens(&ids_bs), sight).unwrap();
        let (nll, d_bsh) = model.loss(&tape, &target_bs, 1.0).unwrap();
        model.backward(tape, d_bsh, &mut |_, _| Ok(())).unwrap();
        (nll.double_value(&[]), model.gradients().unwrap().flat.copy())
    };
    // Each document apart: from its first token, up to its end as a target.
    let apart = rows.iter().flat_map(|row| row.split_inclusive(|token| *token == eod));
    let (mut nll, mut gradient) = (0.0, Tensor::zeros_like(&flat));
    for document in apart.filter(|document| document.len() > 1) {
        let (one, d_flat) = learn(&[document.to_vec()], false, Recompute::None);
        nll += one;
        gradient += d_flat;
    }
    for recompute in [Recompute::None, Recompute::Selective, Recompute::Full] {
        let (together, found) = learn(&rows, true, recompute);
        assert!((together - nll).abs() < 1e-5 * nll, "{together} {nll}");
        let worst = (found - &gradient).abs().max().double_value(&[]) / gradient.abs().max().double_value(&[]);
        assert!(worst < 1e-5, "{recompute:?}: {worst:.1e}");
    }
    let (plain, _) = learn(&rows, false, Recompute::None);
    assert!((plain - nll).abs() > 1.0, "they do see each other by default");
}
