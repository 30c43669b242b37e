//! How processes are started, watched and ended, with a shell script in the place of the worker. What a real worker
//! does is tested with the real one.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use flow_core::{Cancel, Cancelled, Ctx, Event};
use flow_plan::{Device, EvalJob, Job, Precision, Serving};
use tempfile::TempDir;

use super::{Launch, PROTOCOL, about};

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/worker.sh")
}

struct Run {
    result: Result<()>,
    events: Vec<Event>,
    scratch: TempDir,
    took: Duration,
}

impl Run {
    fn log(&self) -> Vec<String> {
        let text = |event: &'_ Event| if let Event::Log { text, .. } = event { Some(text.clone()) } else { None };
        self.events.iter().filter_map(text).collect()
    }

    fn error(&self) -> String {
        format!("{:#}", self.result.as_ref().unwrap_err())
    }
}

/// Runs the script as a node of this name. `cancel_on`: the run is interrupted when every rank has logged this.
fn run(node: &str, world_size: usize, cancel_on: Option<&str>) -> Run {
    let scratch = tempfile::tempdir().unwrap();
    let job = Job::Eval(EvalJob {
        node: node.into(),
        serving: Serving {
            model: "m".into(),
            max_length: 1,
            batch_size: 1,
            device: Device::Cpu,
            precision: Precision::Fp32,
            threads: 1,
            tensor: 1,
        },
        requests: "q".into(),
        answers: "a".into(),
    });
    let events = Mutex::new(Vec::new());
    let cancel = Cancel::default();
    let sink = |event: Event| {
        let mut events = events.lock().unwrap();
        events.push(event);
        let said = |word| events.iter().filter(|e| matches!(e, Event::Log { text, .. } if text.contains(word))).count();
        if cancel_on.is_some_and(|word| said(word) == world_size) {
            cancel.set();
        }
    };
    let inputs = BTreeMap::new();
    let ctx = Ctx {
        node,
        inputs: &inputs,
        out: scratch.path(),
        scratch: scratch.path(),
        project: scratch.path(),
        pinned: None,
        before: None,
        remarks: &std::sync::Mutex::default(),
        threads: 2,
        nodes: 1,
        hosts: &[],
        gpus: &[],
        container_engine: None,
        network: &flow_core::Network::default(),
        sink: &sink,
        cancel: &cancel,
        whole: &|_| (),
    };
    let program = script();
    let start = Instant::now();
    let launch =
        Launch { program: &program, job: &job, world_size, threads: 3, grace: Duration::from_secs(20), inside: None };
    let result = launch.run(&ctx);
    let took = start.elapsed();
    Run { result, events: events.into_inner().unwrap(), scratch, took }
}

/// Whether a process with this id runs (and is no zombie).
fn lives(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn ranks_get_torchruns_environment_and_one_of_them_reports() {
    let run = run("good", 2, None);
    run.result.as_ref().unwrap();
    // Each rank has a log, whether it says something or not.
    let (begins, mut log): (Vec<_>, Vec<_>) = run.log().into_iter().partition(|line| line.ends_with("] one of 2"));
    assert_eq!(begins, ["[rank 0] one of 2", "[rank 1] one of 2"]);
    let of = |rank: usize| {
        run.events.iter().filter(move |event| matches!(event, Event::Log { rank: Some(of), .. } if *of == rank))
    };
    assert_eq!((of(0).count(), of(1).count()), (2, 2));
    log.sort_unstable();
    for (rank, line) in log.iter().enumerate() {
        assert!(line.starts_with(&format!("[rank {rank}] rank {rank} of 2 on {rank} at 127.0.0.1:")), "{line}");
        assert!(line.ends_with(" with 3 threads"), "{line}");
    }
    assert_eq!(log.len(), 2);
    let progress: Vec<_> = run.events.iter().filter(|event| matches!(event, Event::Progress { .. })).collect();
    assert!(matches!(progress[..], [Event::Progress { node, done: 0, total: Some(2), .. }] if node == "good"));
}

#[test]
fn garbage_is_a_line_of_the_log_and_never_too_long() {
    let run = run("garbage", 1, None);
    assert!(run.error().contains("the worker failed with exit status 3"), "{}", run.error());
    let log = run.log();
    assert_eq!(log[0], r#"{"event":"progress","node":"#);
    assert!(log[1].contains("not text"));
    assert!(log.iter().all(|line| line.len() <= 64 << 10));
    assert_eq!(log[2..].iter().map(String::len).sum::<usize>(), 300_000);
}

#[test]
fn the_rank_that_was_killed_is_named_not_those_that_fail_on_it() {
    let run = run("killed", 4, None);
    let error = run.error();
    assert!(error.starts_with("rank 1 of 4 was killed by signal 9 (SIGKILL)"), "{error}");
    assert!(error.contains("about to die") && !error.contains("connection reset"), "{error}");
    assert!(run.log().iter().any(|line| line == "[rank 0] connection reset by peer"));
}

#[test]
fn those_that_do_not_end_are_ended_with_their_children() {
    let run = run("hangs", 2, None);
    assert!(run.error().starts_with("rank 0 of 2 failed with exit status 4"), "{}", run.error());
    assert!(run.took < Duration::from_secs(15), "{:?}", run.took);
    for rank in 0..2 {
        let pid = fs::read_to_string(run.scratch.path().join(format!("sleeper.{rank}"))).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while lives(&pid) {
            assert!(Instant::now() < deadline, "the child {pid} of rank {rank} still runs");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn an_interrupted_run_lets_the_ranks_save() {
    let run = run("saves", 2, Some("ready"));
    assert_eq!(run.result.as_ref().unwrap_err().downcast_ref(), Some(&Cancelled));
    assert!(run.took < Duration::from_secs(15), "{:?}", run.took);
    for rank in 0..2 {
        assert!(run.scratch.path().join(format!("saved.{rank}")).is_file());
    }
}

#[test]
fn what_a_rank_leaves_behind_does_not_keep_us() {
    let run = run("leaves", 1, None);
    run.result.as_ref().unwrap();
    assert!(run.took < Duration::from_secs(10), "{:?}", run.took);
}

#[test]
fn a_worker_says_what_it_is() {
    assert_eq!(about(&script()).unwrap().protocol, PROTOCOL);
    let error = format!("{:#}", about(Path::new("/bin/true")).unwrap_err());
    assert!(error.contains("did not answer with what a worker is"), "{error}");
    let error = format!("{:#}", about(Path::new("/nonexistent/flow-torch")).unwrap_err());
    assert!(error.contains("cannot start /nonexistent/flow-torch"), "{error}");
}
