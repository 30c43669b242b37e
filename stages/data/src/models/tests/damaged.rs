//! A byte that changed since a checkpoint was written never becomes a weight.

use std::fs;

use proptest::prelude::*;
use serde_json::json;

use crate::{
    megatron_to_hf::MegatronToHf,
    testing::{golden, run, tree},
};

/// In each of the formats that have checksums; torch's own loaders look at none of them.
const CHECKPOINTS: [&str; 4] =
    ["megatron_core0.16", "megatron_core0.16_tp2_pp2", "megatron_core0.20dev", "../../torch_dcp/hf_named"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_flipped_bit_is_an_error_or_nothing(
        which in 0..CHECKPOINTS.len(),
        file in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let (original, copy) = (golden(CHECKPOINTS[which]), tempfile::tempdir().unwrap());
        for entry in tree(&original).entries() {
            let to = copy.path().join(&entry.name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(original.join(&entry.name), to).unwrap();
        }
        let records: Vec<_> = tree(&original).entries().iter().map(|entry| entry.name.clone()).filter(|name| name.ends_with(".distcp")).collect();
        let path = copy.path().join(file.get(&records));
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(&path, bytes).unwrap();
        let ports = [("input", copy.path()), ("source", &golden("hf"))];
        if let Ok(out) = run::<MegatronToHf>(json!({"input": "x", "source": "y"}), &ports) {
            prop_assert_eq!(tree(out.path()), tree(&golden("hf")), "byte {} of {}", at, path.display());
        }
    }
}
