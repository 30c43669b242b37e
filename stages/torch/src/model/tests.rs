//! The model against another implementation's numbers: `tests/golden/training/make_reference.py`.

use std::{fs, path::Path};

use flow_plan::{ModelConfig, Recompute};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{
    Gradients, Input, Llama, Spread,
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
            let (tape, _) = model.forward(Input::Tokens(&ids_bs)).unwrap();
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
