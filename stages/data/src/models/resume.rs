//! A conversion that was interrupted goes on with the files that are whole, and writes the others again.

use std::{fs, path::Path};

use flow_core::Stage;
use serde_json::json;

use crate::{
    hf_to_megatron::HfToMegatron,
    megatron_to_hf::MegatronToHf,
    testing::{Stand, golden, stage},
};

/// Puts a file of a complete result into the scratch directory, with its last byte changed.
fn left_behind(stand: &Stand, name: &str, to: &str, mark: Option<u64>) -> Vec<u8> {
    let mut bytes = stand.out(name);
    *bytes.last_mut().unwrap() ^= 1;
    stand.write(&format!("scratch/files/{to}"), &bytes);
    if let Some(len) = mark {
        let name = Path::new(to).file_name().unwrap().to_str().unwrap();
        stand.write(&format!("scratch/whole/{name}"), len.to_string());
    }
    bytes
}

#[test]
fn shards_that_are_whole_stay_and_others_are_written_again() {
    let mut stand = Stand::new();
    stand.input("input", &golden("megatron_core0.16")).input("source", &golden("hf"));
    let stage: MegatronToHf = stage(json!({ "input": "a", "source": "b", "max_shard_size": 100_000 }));
    stand.run(&stage).unwrap();
    let name = |i| format!("model-{i:05}-of-00006.safetensors");
    let (first, len) = (stand.out(&name(1)), |i| stand.out(&name(i)).len() as u64);
    let all: Vec<_> = stand.outs().iter().map(|name| (name.clone(), stand.out(name))).collect();
    let done = stand.progress();

    let kept = left_behind(&stand, &name(1), &name(1), Some(first.len() as u64));
    left_behind(&stand, &name(2), &name(2), None);
    left_behind(&stand, &name(3), &name(3), Some(len(3) - 1));
    assert_eq!(stage.left(&stand.place("scratch")).unwrap(), "behind 2 files that are whole");
    stand.again();
    stand.run(&stage).unwrap();
    assert_eq!(stand.progress(), done);
    assert!(kept != first && stand.out(&name(1)) == kept, "what is whole is not written again");
    for (name, bytes) in &all[..] {
        assert!(stand.out(name) == *bytes || stand.out(name) == kept, "{name}");
    }
}

#[test]
fn a_checkpoint_goes_on_too_and_also_at_its_very_end() {
    for dir in ["iter_0000000.tmp", "iter_0000000"] {
        let mut stand = Stand::new();
        stand.input("input", &golden("hf"));
        let stage: HfToMegatron = stage(json!({ "input": "a" }));
        stand.run(&stage).unwrap();
        let name = "iter_0000000/__0_0.distcp";
        let (whole, all) = (stand.out(name), stand.outs());
        let kept = left_behind(&stand, name, &format!("{dir}/__0_0.distcp"), Some(whole.len() as u64));
        stand.again();
        stand.run(&stage).unwrap();
        assert_eq!(stand.outs(), all);
        assert!(kept != whole && stand.out(name) == kept, "{dir}");
        assert_eq!(fs::read_dir(stand.place("scratch")).unwrap().count(), 0);

        left_behind(&stand, name, &format!("{dir}/__0_0.distcp"), None);
        stand.again();
        stand.run(&stage).unwrap();
        assert!(stand.out(name) == whole, "{dir}");
    }
}
