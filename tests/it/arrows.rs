//! The arrows of the house point one way.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value as Json;

/// What each crate may take from the workspace. What is not named here may take nothing.
const MAY_USE: &[(&str, &[&str])] = &[
    ("flow-core", &[]),
    ("flow-cache", &["flow-core"]),
    ("flow-engine", &["flow-core", "flow-cache"]),
    ("flow-formats", &["flow-core"]),
    ("flow-plan", &["flow-core", "flow-formats"]),
    ("flow-data", &["flow-core", "flow-formats", "flow-plan"]),
    ("flow", &["flow-core", "flow-cache", "flow-engine", "flow-data"]),
    ("flow-dist", &["flow-core"]),
    ("flow-torch", &["flow-core", "flow-formats", "flow-plan", "flow-dist"]),
    ("xtask", &[]),
];

/// The crates that may see tensors.
const TENSORS: &[&str] = &["flow-dist", "flow-torch"];

#[test]
fn crates_take_only_from_below() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Json = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let may_use: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let names: BTreeSet<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    assert_eq!(names, may_use.keys().copied().collect(), "every crate has its line here");
    for package in packages {
        let name = package["name"].as_str().unwrap();
        // Tests of a crate may not reach up either: dependencies of every kind are looked at.
        for dependency in package["dependencies"].as_array().unwrap() {
            let takes = dependency["name"].as_str().unwrap();
            if names.contains(takes) {
                assert!(may_use[name].contains(&takes), "{name} may not use {takes}");
            }
            if ["tch", "torch-sys"].contains(&takes) {
                assert!(TENSORS.contains(&name), "{name} may not use {takes}");
            }
        }
    }
}
