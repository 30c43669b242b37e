//! Killed at any step and started again, a run gives the bytes of an undisturbed one.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Child,
    time::{Duration, Instant},
};

use crate::common::{Ended, Training, difference, finish, lines, reference};
use serde_json::{Value, json};

/// Reads rank 0's events until the step is reported.
pub fn wait_for_step(child: &mut Child, step: u64) -> Vec<Value> {
    wait_for(child, |event| event["event"] == "metrics" && event["step"] == step)
}

/// Reads rank 0's events until the checkpoint of a step is on the disk.
pub fn wait_for_checkpoint(child: &mut Child, step: u64) -> Vec<Value> {
    let words = format!("step {step} is saved: ");
    wait_for(child, |event| event["text"].as_str().is_some_and(|text| text.starts_with(&words)))
}

fn wait_for(child: &mut Child, is_it: impl Fn(&Value) -> bool) -> Vec<Value> {
    let mut events = Vec::new();
    for line in BufReader::new(child.stdout.as_mut().unwrap()).lines() {
        events.push(serde_json::from_str(&line.unwrap()).unwrap());
        if events.last().is_some_and(&is_it) {
            return events;
        }
    }
    panic!("it did not come: {events:?}");
}

pub fn signal(child: &Child, signal: i32) {
    // SAFETY: sends a signal to a child that was not waited for yet.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    for (precision, parallel) in [("fp32", json!({"data": 2})), ("bf16", json!({"data": 2, "context": 2}))] {
        let mut optim = reference()["training"]["optim"].clone();
        optim["distributed"] = json!(precision == "bf16");
        let changes = [
            ("precision", json!(precision)),
            ("parallel", parallel),
            ("optim", optim),
            ("checkpoint", json!({"interval": 3})),
        ];
        let undisturbed = Training::of("untied").with(&changes);
        undisturbed.run();
        let disturbed = Training::of("untied").with(&changes);
        // Twice, beyond a checkpoint; once with half a line and half a checkpoint left behind.
        for (step, victim) in [(3, 1), (12, 0)] {
            let mut children = disturbed.start();
            wait_for_checkpoint(&mut children[0], step);
            signal(&children[victim], libc::SIGKILL);
            let ended = finish(children);
            assert!(ended.iter().all(|ended| !ended.status.success()));
            let metrics = disturbed.path("scratch/metrics.jsonl");
            let text = [fs::read(&metrics).unwrap(), b"{\"step\":99".to_vec()].concat();
            fs::write(&metrics, text).unwrap();
            fs::create_dir_all(disturbed.path("scratch/iter_0000018.tmp")).unwrap();
            fs::write(disturbed.path("scratch/iter_0000018.tmp/.metadata"), b"half").unwrap();
        }
        let ended = finish(disturbed.start());
        assert!(ended[0].stdout.contains("going on from"), "{}", ended[0].stdout);
        assert_eq!(disturbed.result(), undisturbed.result(), "{precision}");
    }
}

#[test]
fn the_same_run_twice_gives_the_same_bytes() {
    let [a, b] = [0, 1].map(|_| Training::of("tied").with(&[("parallel", json!({"data": 2}))]));
    a.run();
    b.run();
    assert_eq!(a.result(), b.result());
    assert!(a.result().keys().any(|name| name.ends_with("hf/config.json")));
}

/// Also when a checkpoint is on its way just then.
#[test]
fn a_run_that_is_asked_to_stop_can_go_on() {
    let undisturbed = Training::of("tied").with(&[("parallel", json!({"data": 2}))]);
    undisturbed.run();
    for (interval, number) in [(0, libc::SIGTERM), (1, libc::SIGUSR1)] {
        let changes = [("parallel", json!({"data": 2})), ("checkpoint", json!({"interval": interval}))];
        let disturbed = Training::of("tied").with(&changes);
        let mut children = disturbed.start();
        wait_for_step(&mut children[0], 4);
        // One rank hears of it; all stop.
        signal(&children[1], number);
        for ended in finish(children) {
            assert_eq!(ended.status.code(), Some(75), "{}", ended.stderr);
        }
        assert!(!disturbed.path("out/metrics.jsonl").exists());
        let newest = fs::read_to_string(disturbed.path("scratch/latest_checkpointed_iteration.txt")).unwrap();
        let steps = fs::read_to_string(disturbed.path("scratch/metrics.jsonl")).unwrap().lines().count();
        assert_eq!(newest, steps.to_string(), "no step is done twice");
        disturbed.run();
        assert_eq!(disturbed.result(), undisturbed.result());
    }
}

/// Killed again and again, each time on another mesh, with the optimizer's state shared out or not.
#[test]
fn another_mesh_goes_on_from_a_checkpoint() {
    for precision in ["fp32", "bf16"] {
        let one = Training::of("untied").with(&[("precision", json!(precision))]).run();
        let mut run =
            Training::of("untied").with(&[("precision", json!(precision)), ("checkpoint", json!({"interval": 4}))]);
        for (step, parallel, distributed) in [
            (4, json!({"tensor": 2, "data": 2}), true),
            (8, json!({"pipeline": 3}), false),
            (12, json!({"context": 2, "data": 2}), true),
        ] {
            run.numbers["parallel"] = parallel;
            run.numbers["optim"]["distributed"] = json!(distributed);
            let mut children = run.start();
            wait_for_checkpoint(&mut children[0], step);
            children.iter().for_each(|child| signal(child, libc::SIGKILL));
            finish(children);
        }
        run.numbers["parallel"] = json!({"data": 2});
        run.numbers["checkpoint"] = json!({"interval": 7});
        let ended = finish(run.start());
        assert!(ended[0].stdout.contains("after step 12"), "{}", ended[0].stdout);
        let worst = difference(&run.metrics(), &one, "loss");
        eprintln!("{precision}: {worst:.1e}");
        assert!(worst < if precision == "fp32" { 1e-5 } else { 0.02 }, "{precision}: {worst:.1e}");
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let undisturbed = Training::of("untied");
    undisturbed.run();
    let disturbed = Training::of("untied").with(&[("checkpoint", json!({"interval": 3, "keep": 2}))]);
    let mut children = disturbed.start();
    wait_for_checkpoint(&mut children[0], 9);
    signal(&children[0], libc::SIGKILL);
    finish(children);
    let newest = disturbed.path("scratch/iter_0000009");
    let metadata = fs::read(newest.join(".metadata")).unwrap();
    fs::write(newest.join(".metadata"), &metadata[..metadata.len() / 2]).unwrap();
    // Steps that cannot be gone back to, and what a kill left half-made, must not pass for the newest for ever.
    let beyond = disturbed.path("scratch/iter_0000099");
    fs::create_dir(&beyond).unwrap();
    fs::write(beyond.join("flow_state.json"), "{").unwrap();
    let half = disturbed.path("scratch/iter_0000004.tmp");
    fs::create_dir(&half).unwrap();
    let ended = finish(disturbed.start());
    assert!(ended[0].stdout.contains("passed over"), "{}", ended[0].stdout);
    assert!(ended[0].stdout.contains("after step 6"), "{}", ended[0].stdout);
    assert!(!beyond.exists() && !half.exists());
    assert_eq!(disturbed.result(), undisturbed.result());
}

#[test]
fn a_checkpoint_of_other_parameters_is_not_continued() {
    let mut run = Training::of("untied").with(&[("checkpoint", json!({"interval": 3})), ("max_steps", json!(7))]);
    let mut children = run.start();
    wait_for_checkpoint(&mut children[0], 3);
    signal(&children[0], libc::SIGKILL);
    finish(children);
    run.numbers["seed"] = json!(43);
    let Ended { stdout, .. } = finish(run.start()).remove(0);
    assert!(stdout.contains("other parameters"), "{stdout}");
    assert_eq!(run.metrics().len(), 7);
}

#[test]
fn a_lost_rank_is_named() {
    let mut run = Training::of("untied").with(&[("parallel", json!({"data": 3})), ("global_batch_size", json!(6))]);
    run.env = vec![("FLOW_COLLECTIVE_TIMEOUT", "20")];
    let mut children = run.start();
    wait_for_step(&mut children[0], 3);
    signal(&children[1], libc::SIGKILL);
    let began = Instant::now();
    let ended = finish(children);
    assert!(began.elapsed() < Duration::from_secs(15));
    for rank in [0, 2] {
        let last = ended[rank].stderr.lines().last().unwrap();
        assert_eq!(ended[rank].status.code(), Some(1));
        assert!(last.starts_with(&format!("rank {rank}: ")) && last.contains("rank 1 gives no sign of life"), "{last}");
    }
    assert!(lines(&ended[2].stdout).is_empty(), "only rank 0 speaks");
}

/// It still holds its connections: only its heart tells.
#[test]
fn a_rank_that_hangs_is_noticed() {
    let mut run = Training::of("untied").with(&[("parallel", json!({"data": 2})), ("max_steps", json!(100_000))]);
    run.env = vec![("FLOW_PEER_TIMEOUT", "3")];
    let mut children = run.start();
    wait_for_step(&mut children[0], 3);
    signal(&children[1], libc::SIGSTOP);
    let began = Instant::now();
    let ended = finish(vec![children.remove(0)]).remove(0);
    signal(&children[0], libc::SIGKILL);
    finish(children);
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(ended.status.code(), Some(1));
    let last = ended.stderr.lines().last().unwrap();
    assert!(last.contains("rank 1 has given no sign of life for 3 s"), "{last}");
}
