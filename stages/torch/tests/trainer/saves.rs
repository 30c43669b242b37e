//! Checkpoints are written while training goes on, and it does not show.

use std::fs;

use crate::{
    common::{Training, finish, reference},
    resume::{signal, wait_for_checkpoint, wait_for_step},
};
use serde_json::{Value, json};

/// Two ranks that share out the optimizer's state, in bf16: a checkpoint has weights, fp32 weights and moments of both.
fn of_two_ranks(checkpoint: Value) -> Training {
    let mut optim = reference()["training"]["optim"].clone();
    optim["distributed"] = json!(true);
    let parallel = json!({"data": 2});
    Training::of("untied").with(&[
        ("precision", json!("bf16")),
        ("parallel", parallel),
        ("optim", optim),
        ("checkpoint", checkpoint),
    ])
}

/// A step is done sooner than its checkpoint is on the disk: each waits for the one before.
#[test]
fn saving_after_every_step_changes_no_byte() {
    let without = of_two_ranks(json!({}));
    without.run();
    for background in [true, false] {
        let with = of_two_ranks(json!({"interval": 1, "background": background}));
        let ended = finish(with.start());
        let saved = ended[0].stdout.matches("is saved").count();
        assert_eq!(saved, 19, "{}", ended[0].stdout);
        assert_eq!(with.result(), without.result());
    }
}

/// What is half written when a rank is killed counts for nothing; what was written before is a step as it was, although
/// training had gone on meanwhile.
#[test]
fn killed_while_it_saves_a_run_goes_on_to_the_same_bytes() {
    let undisturbed = of_two_ranks(json!({}));
    undisturbed.run();
    let disturbed = of_two_ranks(json!({"interval": 1}));
    let mut in_the_midst = 0;
    // By the third step the first one's checkpoint is there: the second's waited for it.
    for step in [3, 7, 11, 15] {
        let mut children = disturbed.start();
        let events = wait_for_step(&mut children[0], step);
        let resumed = events.iter().any(|event| event.to_string().contains("going on from"));
        // Saves follow on each other: soon one is on its way.
        while !is_half_written(&disturbed) && children[0].try_wait().unwrap().is_none() {}
        children.iter().for_each(|child| signal(child, libc::SIGKILL));
        finish(children);
        assert_eq!(resumed, step > 3);
        in_the_midst += usize::from(is_half_written(&disturbed));
    }
    assert!(in_the_midst > 0, "a checkpoint was always whole when the run was killed");
    disturbed.run();
    assert_eq!(disturbed.result(), undisturbed.result());
}

fn is_half_written(run: &Training) -> bool {
    let mut entries = fs::read_dir(run.path("scratch")).unwrap();
    entries.any(|entry| entry.unwrap().file_name().to_str().is_some_and(|name| name.ends_with(".tmp")))
}

#[test]
fn what_cannot_be_saved_ends_the_run() {
    let mut run = of_two_ranks(json!({"interval": 3}));
    let steps = run.numbers["max_steps"].clone();
    run.numbers["max_steps"] = json!(100_000);
    // The last file of a save.
    let obstacle = run.path("scratch/latest_checkpointed_iteration.txt.tmp");
    fs::create_dir_all(&obstacle).unwrap();
    let ended = finish(run.start());
    let last = |rank: usize| ended[rank].stderr.lines().last().unwrap_or_default().to_owned();
    assert!(ended.iter().all(|ended| ended.status.code() == Some(1)));
    assert!(last(0).contains("the checkpoint of step 3 is not there: cannot write"), "{}", last(0));
    assert!(last(1).contains("first failed rank 0: the checkpoint of step 3"), "{}", last(1));

    fs::remove_dir(&obstacle).unwrap();
    run.numbers["max_steps"] = steps;
    let undisturbed = of_two_ranks(json!({}));
    undisturbed.run();
    run.run();
    assert_eq!(run.result(), undisturbed.result());
}

/// Every file is held against its digest, each by one of the ranks.
#[test]
fn a_flipped_bit_is_noticed() {
    let undisturbed = of_two_ranks(json!({}));
    undisturbed.run();
    let disturbed = of_two_ranks(json!({"interval": 3, "keep": 2}));
    let mut children = disturbed.start();
    wait_for_checkpoint(&mut children[0], 9);
    children.iter().for_each(|child| signal(child, libc::SIGKILL));
    finish(children);
    let latest = fs::read_to_string(disturbed.path("scratch/latest_checkpointed_iteration.txt")).unwrap();
    let newest = disturbed.path("scratch").join(format!("iter_{:07}", latest.parse::<u64>().unwrap()));
    let names = ["__0_0.distcp", "__1_0.distcp", "common.pt", ".metadata"];
    let state: Value = serde_json::from_slice(&fs::read(newest.join("flow_state.json")).unwrap()).unwrap();
    assert!(names.iter().all(|name| state["files"][name].is_string()), "{state}");
    let path = newest.join("__1_0.distcp");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let ended = finish(disturbed.start());
    assert!(ended[0].stdout.contains("__1_0.distcp is not what was written"), "{}", ended[0].stdout);
    assert!(ended[0].stdout.contains("going on from"), "{}", ended[0].stdout);
    assert!(!ended[0].stdout.contains(&format!("after step {latest}\"")), "{}", ended[0].stdout);
    assert_eq!(disturbed.result(), undisturbed.result());
}
