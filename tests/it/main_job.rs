//! The shipped pipeline from end to end, on real text with the real trainer: undisturbed, killed anywhere, two at once.
//!
//! Needs `flow-torch`: run where FLOW_TORCH names it (`cargo xtask test` does), and left out, with a word, elsewhere.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use crate::support::{Events, Running, Sandbox, until};

/// The mini profile, made smaller still: the same stages, the same two ranks.
const SMALL: [&str; 22] = [
    "pipelines/ja_wiki.toml",
    "--profile",
    "mini",
    "--json",
    "--set",
    "params.shards={0..1}",
    "--set",
    "stage.train.seq_length=64",
    "--set",
    "stage.train.micro_batch_size=2",
    "--set",
    "stage.train.global_batch_size=8",
    "--set",
    "stage.train.max_steps=12",
    "--set",
    "stage.train.sched.warmup_steps=2",
    "--set",
    "stage.train.val_interval=4",
    "--set",
    "stage.train.checkpoint.interval=3",
    "--set",
    "stage.eval.limit=2",
];

fn has_trainer() -> bool {
    let has = std::env::var_os("FLOW_TORCH").is_some();
    if !has {
        eprintln!("left out: FLOW_TORCH names no trainer (`cargo xtask test` builds it)");
    }
    has
}

fn arguments(command: &'static str) -> Vec<&'static str> {
    [command].into_iter().chain(SMALL).collect()
}

fn run(sandbox: &Sandbox) -> Events {
    Events::of(&sandbox.ok(&arguments("run")))
}

/// Node → digest of an undisturbed run.
fn undisturbed() -> BTreeMap<String, String> {
    let events = run(&Sandbox::shipped());
    events.digests().into_iter().map(|(node, digest)| (node.to_owned(), digest.to_owned())).collect()
}

fn same(events: &Events, expected: &BTreeMap<String, String>) {
    let digests: BTreeMap<String, String> =
        events.digests().into_iter().map(|(node, digest)| (node.to_owned(), digest.to_owned())).collect();
    assert_eq!(&digests, expected);
}

/// The processes that `flow` started.
fn children(flow: &Running) -> Vec<i32> {
    let parent = flow.id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // After the name in parentheses: state, parent.
        let fields = stat.rsplit(") ").next().unwrap_or_default();
        if fields.split(' ').nth(1) == Some(&parent) {
            found.push(pid);
        }
    }
    found
}

/// Whether the training in progress has a whole checkpoint.
fn has_checkpoint(sandbox: &Sandbox) -> bool {
    fn find(dir: &Path, depth: usize) -> bool {
        fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name.starts_with("iter_") && !name.ends_with(".tmp")) || (depth > 0 && find(&entry.path(), depth - 1))
        })
    }
    // Where ranks were told what to do: a conversion has checkpoints on the way, too.
    let scratch = fs::read_dir(sandbox.cache().join("scratch")).into_iter().flatten().flatten();
    scratch.filter(|entry| entry.path().join("job.json").is_file()).any(|entry| find(&entry.path(), 2))
}

#[test]
fn the_whole_pipeline_runs_is_skipped_and_survives_kill_9() {
    if !has_trainer() {
        return;
    }
    let sandbox = Sandbox::shipped();
    let first = run(&sandbox);
    assert!(first.how().values().all(|how| *how == "ran"), "{:?}", first.how());
    let expected: BTreeMap<String, String> =
        first.digests().into_iter().map(|(node, digest)| (node.to_owned(), digest.to_owned())).collect();
    let exported = sandbox.path("results/ja-mini/model.safetensors");
    let weights = fs::read(&exported).unwrap();
    let again = run(&sandbox);
    assert!(again.how().values().all(|how| *how == "cached"), "{:?}", again.how());

    flow_killed(&expected, &weights);
    another_mesh(&sandbox);
    rank_killed(&expected);
    rank_killed_with_retries(&expected);
    two_at_once(&expected);
}

/// `flow` dies in the middle of training; the next run goes on from the last checkpoint to the same bytes.
fn flow_killed(expected: &BTreeMap<String, String>, weights: &[u8]) {
    let sandbox = Sandbox::shipped();
    let flow = sandbox.start(&arguments("run"));
    until("a checkpoint is there", || has_checkpoint(&sandbox));
    let ranks = children(&flow);
    assert_eq!(ranks.len(), 2, "one process a rank");
    flow.signal(libc::SIGKILL);
    flow.end();
    until("the ranks died with it", || ranks.iter().all(|pid| !fs::exists(format!("/proc/{pid}")).unwrap()));
    sandbox.ok(&["cache", "verify"]);
    let resumed = run(&sandbox);
    assert_eq!(resumed.how()["train"], "resumed");
    same(&resumed, expected);
    assert_eq!(fs::read(sandbox.path("results/ja-mini/model.safetensors")).unwrap(), weights);
}

/// Stopped on two data-parallel ranks, a training goes on with two that share each layer, and other micro batches.
fn another_mesh(undisturbed: &Sandbox) {
    let sandbox = Sandbox::shipped();
    let flow = sandbox.start(&arguments("run"));
    until("a checkpoint is there", || has_checkpoint(&sandbox));
    flow.signal(libc::SIGKILL);
    flow.end();
    let mesh = "stage.train.parallel={tensor=2,data=1,sequence=true}";
    let other = ["--set", mesh, "--set", "stage.train.micro_batch_size=4"];
    let resumed = Events::of(&sandbox.ok(&[&arguments("run")[..], &other].concat()));
    assert_eq!(resumed.how()["train"], "resumed");
    let (ours, theirs) = (losses(&sandbox), losses(undisturbed));
    assert!(ours.len() == theirs.len() && !ours.is_empty());
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() < 1e-5 * theirs, "{ours} {theirs}");
    }
}

/// The losses of the training, step by step.
fn losses(sandbox: &Sandbox) -> Vec<f64> {
    let [file, profile, mini, ..] = SMALL;
    let settings: Vec<&str> = SMALL.iter().copied().skip_while(|word| *word != "--set").collect();
    let path = sandbox.ok(&[&["path", file, "train", profile, mini][..], &settings].concat());
    let lines = fs::read_to_string(Path::new(path.trim()).join("metrics.jsonl")).unwrap();
    let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap();
    lines.lines().map(line).collect()
}

/// With `retries` the run itself goes on from the last checkpoint.
fn rank_killed_with_retries(expected: &BTreeMap<String, String>) {
    let sandbox = Sandbox::shipped();
    let flow = sandbox.start(&[&arguments("run")[..], &["--set", "stage.train.retries=1"]].concat());
    until("a checkpoint is there", || has_checkpoint(&sandbox));
    let victim = *children(&flow).last().unwrap();
    // SAFETY: plain system call on a grandchild that its parent has not been able to wait for yet.
    assert_eq!(unsafe { libc::kill(victim, libc::SIGKILL) }, 0);
    let output = flow.end();
    assert_eq!(output.code, Some(0), "{output}");
    let events = Events::of(&output.stdout);
    assert!(output.stdout.contains("rank "), "{output}");
    assert_eq!(events.how()["train"], "resumed");
    same(&events, expected);
}

/// One rank dies: said, with its last words; the next run goes on.
fn rank_killed(expected: &BTreeMap<String, String>) {
    let sandbox = Sandbox::shipped();
    let flow = sandbox.start(&arguments("run"));
    until("a checkpoint is there", || has_checkpoint(&sandbox));
    let victim = *children(&flow).last().unwrap();
    // SAFETY: plain system call on a grandchild that its parent has not been able to wait for yet.
    assert_eq!(unsafe { libc::kill(victim, libc::SIGKILL) }, 0);
    let output = flow.end();
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stdout.contains("rank "), "{output}");
    assert!(output.stdout.contains("signal 9") || output.stdout.contains("SIGKILL"), "{output}");
    let resumed = run(&sandbox);
    assert_eq!(resumed.how()["train"], "resumed");
    same(&resumed, expected);
}

/// Two runs on one cache: each node is made once.
fn two_at_once(expected: &BTreeMap<String, String>) {
    let sandbox = Sandbox::shipped();
    let both = [sandbox.start(&arguments("run")), sandbox.start(&arguments("run"))];
    let mut made: BTreeMap<String, usize> = BTreeMap::new();
    for output in both.into_iter().map(Running::end) {
        assert_eq!(output.code, Some(0), "{output}");
        let events = Events::of(&output.stdout);
        for node in events.ran() {
            *made.entry(node.to_owned()).or_default() += 1;
        }
        same(&events, expected);
    }
    assert!(made.values().all(|times| *times == 1), "{made:?}");
    assert_eq!(made.len(), expected.len());
}

#[test]
fn killed_again_and_again_at_any_moment_it_still_ends_right() {
    if !has_trainer() {
        return;
    }
    let expected = undisturbed();
    let sandbox = Sandbox::shipped();
    // Ever longer, with odd steps, so that the kill falls into every stage.
    for round in 1..=12u64 {
        let flow = sandbox.start(&arguments("run"));
        std::thread::sleep(Duration::from_millis(round * 173 % 1511 + round * 40));
        flow.signal(libc::SIGKILL);
        flow.end();
    }
    sandbox.ok(&["cache", "verify"]);
    same(&run(&sandbox), &expected);
}

#[test]
fn a_model_too_small_for_the_tokenizer_is_said_before_anything_runs() {
    let sandbox = Sandbox::shipped();
    let config = sandbox.path("examples/ja_wiki_mini/config.json");
    let text = fs::read_to_string(&config).unwrap().replace("\"vocab_size\": 8192", "\"vocab_size\": 4096");
    fs::write(config, text).unwrap();
    let output = sandbox.run(&arguments("run"));
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr.contains("4096") && output.stderr.contains("8192"), "{output}");
    assert!(output.stderr.contains("ja_wiki.toml:"), "{output}");
    assert!(!output.stdout.contains("\"started\""), "{output}");
}
