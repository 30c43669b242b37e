//! Many flows at once on one cache, killed at random, with gc beside them.
//!
//! `FLOW_TEST_LOAD=10` makes ten times as many kills and four times as many flows:
//! `FLOW_TEST_LOAD=10 cargo test --test it load::`.

use std::{fs, time::Duration};

use crate::support::{Output, Running, Sandbox, until};

/// How much harder than in a hurry.
fn load() -> u64 {
    std::env::var("FLOW_TEST_LOAD").ok().and_then(|load| load.parse().ok()).unwrap_or(1)
}

/// A chain and a fan of stages; each writes down outside that it really ran.
fn work(stages: usize, sleep: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    let log = sandbox.outside("ran").display().to_string();
    let mut text = String::new();
    for i in 0..stages {
        let (from, input) = match i {
            0 => ("/dev/null".to_owned(), String::new()),
            // Three of a chain, then three that fan out of it, and again.
            _ => {
                ("{in.x}/f".to_owned(), format!("in = {{ x = \"s{}\" }}\n", if i % 6 < 3 { i - 1 } else { i - i % 6 }))
            }
        };
        text += &format!(
            "[stage.s{i}]\nkind = \"command\"\n{input}\
             run = \"echo {i} >> {log}; (cat {from}; echo {i}) > {{out}}/f; sleep {sleep}; cp {{out}}/f {{out}}/g\"\n"
        );
    }
    sandbox.pipeline(&text);
    sandbox
}

/// What ran, each as often as it did.
fn ran(sandbox: &Sandbox) -> Vec<usize> {
    let mut ran: Vec<usize> = sandbox.lines("ran").iter().map(|line| line.parse().unwrap()).collect();
    ran.sort_unstable();
    ran
}

fn assert_done(output: &Output) {
    assert_eq!(output.code, Some(0), "{output}");
    assert!(!output.stderr.contains("error"), "{output}");
}

#[test]
fn a_dozen_at_once_do_the_work_once() {
    let sandbox = work(12, "0.02");
    let flows = if load() > 1 { 50 } else { 12 };
    let all: Vec<Running> = (0..flows).map(|_| sandbox.start(&["run", "p.toml", "--jobs", "3"])).collect();
    all.into_iter().for_each(|running| assert_done(&running.end()));
    assert_eq!(ran(&sandbox), (0..12).collect::<Vec<_>>());
    sandbox.ok(&["cache", "verify"]);
    assert_eq!(sandbox.json(&[]).ran(), [""; 0]);
}

#[test]
fn killed_twenty_times_it_ends_as_if_it_had_not_been() {
    let undisturbed = work(10, "0");
    let wanted: Vec<String> = undisturbed.json(&[]).digests().into_values().map(str::to_owned).collect();
    let sandbox = work(10, "0.01");
    let mut killed = 0;
    for round in 0..20 * load() {
        let pair = [sandbox.start(&["run", "p.toml"]), sandbox.start(&["run", "p.toml"])];
        // Spread over all of a run, without a generator of chance.
        std::thread::sleep(Duration::from_micros(3000 + round * 7919 % 60_000));
        pair.iter().for_each(|running| running.signal(libc::SIGKILL));
        killed += pair.into_iter().map(Running::end).filter(|output| output.code.is_none()).count();
        let verified = sandbox.run(&["cache", "verify"]);
        assert_eq!(verified.code, Some(0), "round {round}: {verified}");
        if round % 7 == 6 {
            // Begin anew, so that later rounds have something to lose.
            fs::remove_dir_all(sandbox.cache().join("results")).unwrap();
        }
    }
    assert!(killed > 10 * load() as usize, "only {killed} were killed in time: the test tests nothing");
    let end = sandbox.json(&[]);
    let digests: Vec<String> = end.digests().into_values().map(str::to_owned).collect();
    assert_eq!(digests.len(), wanted.len());
    assert_eq!(result(&sandbox), result(&undisturbed));
    sandbox.ok(&["cache", "verify"]);
}

fn result(sandbox: &Sandbox) -> String {
    fs::read_to_string(format!("{}/g", sandbox.ok(&["path", "p.toml", "s9"]).trim())).unwrap()
}

#[test]
fn gc_beside_running_flows_takes_nothing_of_theirs() {
    let sandbox = work(12, "0.03");
    let flows: Vec<Running> = (0..4).map(|_| sandbox.start(&["run", "p.toml", "--jobs", "1"])).collect();
    let mut rounds = 0;
    until("the last stage ran", || {
        let gc = sandbox.run(&["cache", "gc", "--max-size", "0", "--keep-runs", "0d"]);
        assert_eq!(gc.code, Some(0), "{gc}");
        rounds += 1;
        ran(&sandbox).contains(&11)
    });
    flows.into_iter().for_each(|running| assert_done(&running.end()));
    assert_eq!(ran(&sandbox), (0..12).collect::<Vec<_>>(), "after {rounds} rounds of gc");
    sandbox.ok(&["cache", "verify"]);
}

#[test]
fn gc_keeps_what_the_last_runs_used_and_what_is_pinned() {
    let sandbox = Sandbox::new();
    let pipeline = |text: &str| {
        let stage =
            |name: &str, text: &str| format!("[stage.{name}]\nkind = \"command\"\nrun = \"echo {text} > {{out}}/x\"\n");
        sandbox.pipeline(&(stage("a", text) + &stage("b", "always")));
    };
    pipeline("first");
    sandbox.ok(&["run", "p.toml"]);
    let output = sandbox.run(&["cache", "pin", "p.toml", "a"]);
    assert!(output.code == Some(0) && output.stderr.contains("pinned 1 result"), "{output}");
    pipeline("second");
    sandbox.ok(&["run", "p.toml"]);
    pipeline("third");
    sandbox.ok(&["run", "p.toml"]);
    // A run in which nothing changed uses what the one before used.
    sandbox.ok(&["run", "p.toml"]);

    let dry = sandbox.run(&["cache", "gc", "--max", "0", "--dry-run"]);
    assert!(dry.stdout.contains("command") && dry.stdout.lines().count() == 2, "{dry}");
    let output = sandbox.run(&["cache", "gc", "--max", "0"]);
    assert!(output.stderr.contains("1 pinned, 2 used by the last runs"), "{output}");
    assert!(output.stderr.contains("more than was asked for"), "{output}");
    assert_eq!(sandbox.json(&[]).ran(), [""; 0]);
    pipeline("first");
    assert_eq!(sandbox.json(&[]).ran(), [""; 0], "it was pinned");
    pipeline("second");
    assert_eq!(sandbox.json(&[]).ran(), ["a"], "it was neither");

    assert!(sandbox.ok(&["cache", "pin"]).contains("p.toml"));
    assert!(sandbox.run(&["cache", "unpin", "p.toml"]).stderr.contains("unpinned 1 result"));
    sandbox.ok(&["cache", "gc", "--older", "0d", "--keep-runs", "0d"]);
    pipeline("first");
    assert_eq!(sandbox.json(&[]).ran(), ["a", "b"]);
    assert_eq!(sandbox.run(&["cache", "pin", "p.toml", "c"]).code, Some(2));
    pipeline("fourth");
    assert_eq!(sandbox.run(&["cache", "pin", "p.toml", "a"]).code, Some(1), "there is nothing to pin yet");
}
