//! What cannot work is said in one line, and leaves nothing behind.

use std::{fs, process::Command};

use crate::common::{FLOW_TORCH, Training, finish};
use serde_json::{Value, json};

/// The last line of every rank, all of which must fail.
fn refused(changes: &[(&str, Value)]) -> Vec<String> {
    let run = Training::of("untied").with(changes);
    let ended = finish(run.start());
    assert!(run.result().is_empty());
    ended
        .into_iter()
        .map(|ended| {
            assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
            ended.stderr.lines().last().unwrap_or_default().to_owned()
        })
        .collect()
}

#[test]
fn what_this_trainer_cannot_do_is_said() {
    for (changes, words) in [
        (vec![("parallel", json!({"pipeline": 2}))], "3 layers do not divide by 2"),
        (vec![("parallel", json!({"context": 3}))], "seq_length 64 is not a multiple of 2 × context = 6"),
        (vec![("parallel", json!({"tensor": 3}))], "do not divide by 3"),
        (vec![("global_batch_size", json!(7))], "global_batch_size 7 is not a multiple"),
        (vec![("device", json!("cuda"))], "there is no GPU to be had"),
    ] {
        for last in refused(&changes) {
            assert!(last.contains(words), "{last}");
        }
    }
}

/// One rank fails for a reason of its own; the others say whose fault it is.
#[test]
fn the_first_failure_is_told_by_all() {
    let mut run = Training::of("untied").with(&[("parallel", json!({"data": 2}))]);
    run.misled = Some(1);
    for (rank, ended) in finish(run.start()).into_iter().enumerate() {
        assert_eq!(ended.status.code(), Some(1));
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with(&format!("rank {rank}: ")), "{last}");
        assert!(rank == 1 || last.contains("first failed rank 1: "), "{last}");
        assert!(last.contains("nothing_document"), "{last}");
    }
}

#[test]
fn a_token_beyond_the_vocabulary_is_refused() {
    let run = Training::of("untied");
    let path = run.path("model/hf/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["vocab_size"] = json!(128);
    fs::write(&path, config.to_string()).unwrap();
    let ended = finish(run.start()).remove(0);
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("the model's vocabulary has 128"), "{}", ended.stderr);
}

#[test]
fn bad_arguments_and_jobs_are_refused() {
    let run = |arguments: &[&str]| Command::new(FLOW_TORCH).args(arguments).output().unwrap();
    assert_eq!(run(&[]).status.code(), Some(2));
    assert_eq!(run(&["train"]).status.code(), Some(2));
    let missing = run(&["worker", "/nowhere/job.json"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nowhere/job.json"));
    let about: Value = serde_json::from_slice(&run(&["--about"]).stdout).unwrap();
    assert_eq!((about["protocol"].as_u64(), about["libtorch"].as_str()), (Some(2), Some("2.11.0")));
}
