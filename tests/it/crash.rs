//! Killed at any instant; two at once; interrupted.

use std::{fs, os::unix::process::CommandExt as _, time::Instant};

use crate::support::{Output, Sandbox, until};

/// `slow` says that it began, then waits until a file outside lets it go on, which no key sees.
fn slow() -> Sandbox {
    let sandbox = Sandbox::new();
    let (began, go) = (sandbox.outside("began"), sandbox.outside("go"));
    sandbox.pipeline(&format!(
        "[stage.first]\nkind = \"command\"\nrun = \"echo one > {{out}}/x\"\n\
         [stage.slow]\nkind = \"command\"\nin = {{ x = \"first\" }}\n\
         run = \"echo $$ >> {began}; echo half > {{out}}/y; while ! test -e {go}; do sleep 0.05; done; \
         cat {{in.x}}/x > {{out}}/y\"\n\
         [stage.last]\nkind = \"command\"\nrun = \"cat {{in.x}}/y > {{out}}/z\"\nin = {{ x = \"slow\" }}\n",
        began = began.display(),
        go = go.display(),
    ));
    sandbox
}

fn result(sandbox: &Sandbox) -> String {
    let dir = sandbox.ok(&["path", "p.toml", "last"]);
    fs::read_to_string(format!("{}/z", dir.trim())).unwrap()
}

#[test]
fn killed_in_the_middle_it_goes_on_where_it_was() {
    let sandbox = slow();
    let running = sandbox.start(&["run", "p.toml"]);
    until("the stage began", || sandbox.lines("began").len() == 1);
    running.signal(libc::SIGKILL);
    assert_eq!(running.end().code, None);
    let child = format!("/proc/{}", sandbox.lines("began")[0]);
    until("the stage's process died with flow", || !fs::exists(&child).unwrap());
    // Nothing half-written is taken for a result, and what was done stays done.
    assert_eq!(sandbox.run(&["path", "p.toml", "slow"]).code, Some(1));
    sandbox.ok(&["cache", "verify"]);
    let states = sandbox.ok(&["status", "p.toml"]);
    assert!(states.contains("killed"), "{states}");

    fs::write(sandbox.outside("go"), "").unwrap();
    let resumed = sandbox.json(&[]);
    assert_eq!(resumed.ran(), ["last", "slow"]);
    assert_eq!(result(&sandbox), "one\n");
    sandbox.ok(&["cache", "verify"]);

    let undisturbed = slow();
    fs::write(undisturbed.outside("go"), "").unwrap();
    assert_eq!(undisturbed.json(&[]).digests(), resumed.digests());
}

#[test]
fn two_at_once_do_the_work_once() {
    let sandbox = slow();
    let mut both = vec![sandbox.start(&["run", "p.toml", "--json"])];
    until("the stage began", || sandbox.lines("began").len() == 1);
    both.push(sandbox.start(&["run", "p.toml"]));
    // The second must say that it waits, and for what.
    let waits = || sandbox.ok(&["status"]).contains("waiting");
    until("the second waits", waits);
    fs::write(sandbox.outside("go"), "").unwrap();
    for output in both.into_iter().map(super::support::Running::end) {
        assert_eq!(output.code, Some(0), "{output}");
    }
    assert_eq!(sandbox.lines("began").len(), 1);
    assert_eq!(result(&sandbox), "one\n");
}

#[test]
fn whoever_waits_takes_over_when_the_other_is_killed() {
    let sandbox = slow();
    let first = sandbox.start(&["run", "p.toml"]);
    until("the stage began", || sandbox.lines("began").len() == 1);
    let second = sandbox.start(&["run", "p.toml"]);
    until("the second waits", || sandbox.ok(&["status"]).contains("waiting"));
    first.signal(libc::SIGKILL);
    until("the second took over", || sandbox.lines("began").len() == 2);
    fs::write(sandbox.outside("go"), "").unwrap();
    let output = second.end();
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(result(&sandbox), "one\n");
}

/// What a killed flow left is ended beside it, and the next run's commands look like that: they have the same mark.
#[test]
fn killed_and_run_again_at_once_only_the_first_run_s_processes_end() {
    for round in 0..6 {
        let sandbox = Sandbox::new();
        let (began, go) = (sandbox.outside("began"), sandbox.outside("go"));
        sandbox.pipeline(&format!(
            "[stage.s]\nkind = \"command\"\nrun = \"n=100; test -e {go} && n=0.3; \
             (setsid sh -c 'echo $$ >> {began}; exec sleep '$n &); \
             timeout 100 sh -c 'echo $$ >> {began}; exec sleep '$n; echo x > {{out}}/x\"\n",
            began = began.display(),
            go = go.display(),
        ));
        let first = sandbox.start(&["run", "p.toml"]);
        until("the stage began", || sandbox.lines("began").len() == 2);
        fs::write(&go, "").unwrap();
        first.signal(libc::SIGKILL);
        let second = sandbox.run(&["run", "p.toml"]);
        assert_eq!(first.end().code, None);
        assert_eq!(second.code, Some(0), "round {round}: {second}");
        let began = sandbox.lines("began");
        assert_eq!(began.len(), 4, "round {round}: {second}");
        for child in began {
            until("all of them are gone", || {
                let state = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
                state.is_empty() || state.contains(") Z ")
            });
        }
        let guards = sandbox.cache().join("scratch/guards");
        until("the guards are gone", || fs::read_dir(&guards).unwrap().next().is_none());
    }
}

#[test]
fn an_interrupt_stops_in_order_and_is_code_130() {
    let sandbox = slow();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let before = sandbox.lines("began").len();
        let running = sandbox.start(&["run", "p.toml"]);
        until("the stage began", || sandbox.lines("began").len() > before);
        let start = Instant::now();
        running.signal(signal);
        let output = running.end();
        assert_eq!(output.code, Some(130), "{output}");
        assert!(start.elapsed().as_secs_f64() < 2.0, "{:?}", start.elapsed());
        assert!(output.stderr.contains("interrupted") && output.stderr.contains("flow run p.toml"), "{output}");
        let child = format!("/proc/{}", sandbox.lines("began").last().unwrap());
        until("the stage's process is gone", || !fs::exists(&child).unwrap());
    }
    fs::write(sandbox.outside("go"), "").unwrap();
    assert_eq!(sandbox.json(&[]).ran(), ["last", "slow"]);
}

#[test]
fn the_second_interrupt_ends_at_once() {
    let sandbox = Sandbox::new();
    let began = sandbox.outside("began");
    sandbox.pipeline(&format!(
        "[stage.deaf]\nkind = \"command\"\nrun = \"trap '' INT TERM; echo $$ >> {}; while :; do sleep 0.05; done\"\n",
        began.display()
    ));
    let running = sandbox.start(&["run", "p.toml"]);
    until("the stage began", || sandbox.lines("began").len() == 1);
    running.signal(libc::SIGINT);
    std::thread::sleep(std::time::Duration::from_millis(100));
    let start = Instant::now();
    running.signal(libc::SIGINT);
    assert_eq!(running.end().code, Some(130));
    assert!(start.elapsed().as_secs_f64() < 1.0, "{:?}", start.elapsed());
    let child = format!("/proc/{}", sandbox.lines("began")[0]);
    until("the stage's process died with flow", || !fs::exists(&child).unwrap());
}

#[test]
fn started_by_one_who_ignores_the_ends_of_children() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"sh -c 'exit 0' && echo 1 > {out}/x\"\n");
    let mut flow = sandbox.flow(&["run", "p.toml"]);
    // SAFETY: a plain system call in the child, between fork and exec; what is ignored stays so.
    unsafe {
        flow.pre_exec(|| {
            libc::signal(libc::SIGCHLD, libc::SIG_IGN);
            Ok(())
        });
    }
    let mut flow = flow.spawn().unwrap();
    until("flow ended", || flow.try_wait().unwrap().is_some());
    assert_eq!(flow.wait().unwrap().code(), Some(0));
}

#[test]
fn where_no_threads_can_be_had_that_is_said() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"echo 1 > {out}/x\"\n");
    let mut shell = std::process::Command::new("sh");
    sandbox.at_home(&mut shell);
    // One stack alone has no place in so little, and all else has; a limit of processes would not hold for root, and
    // many small stacks would take what is needed to say so.
    shell.env("RUST_MIN_STACK", "8589934592");
    shell.args(["-c", "ulimit -v 4000000; exec \"$0\" run p.toml", env!("CARGO_BIN_EXE_flow")]);
    let output = Output::of(shell.output().unwrap());
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr.contains("cannot start threads") && output.stderr.contains("ulimit -u"), "{output}");
}

#[test]
fn who_takes_no_core_waits_for_none() {
    let sandbox = Sandbox::new();
    let (a, b) = (sandbox.outside("a"), sandbox.outside("b"));
    let stage = |name: &str, mine: &std::path::Path, other: &std::path::Path| {
        let (mine, other) = (mine.display(), other.display());
        format!(
            "[stage.{name}]\nkind = \"command\"\nresources = {{ cpus = 0 }}\ntimeout = \"60s\"\n\
             run = \"touch {mine}; while ! test -e {other}; do sleep 0.05; done; echo 1 > {{out}}/x\"\n"
        )
    };
    sandbox.pipeline(&[stage("a", &a, &b), stage("b", &b, &a)].concat());
    let output = sandbox.flow(&["run", "p.toml", "--jobs", "2"]).env("FLOW_CPUS", "1").output().unwrap();
    let output = Output::of(output);
    assert_eq!(output.code, Some(0), "{output}");
}

#[test]
fn an_interrupt_ends_a_hundred_that_do_not_hear() {
    const MANY: usize = 120;
    let sandbox = Sandbox::new();
    let (began, many) = (sandbox.outside("began"), (1..=MANY).map(|n| n.to_string()).collect::<Vec<_>>().join(", "));
    sandbox.pipeline(&format!(
        "[stage.deaf]\nkind = \"command\"\nmatrix = {{ n = [{many}] }}\n\
         run = \"trap '' TERM; setsid sh -c 'echo $$ >> {0}; while :; do sleep 1; done' & echo $$ >> {0}; while :; do sleep 1; done; : ${{matrix.n}}\"\n",
        began.display()
    ));
    sandbox.write("flow.toml", &format!("cpus = {MANY}\njobs = {MANY}\n"));
    let running = sandbox.start(&["run", "p.toml"]);
    until("all stages began", || sandbox.lines("began").len() == 2 * MANY);
    let start = Instant::now();
    running.signal(libc::SIGINT);
    let output = running.end();
    eprintln!("interrupted after {:?}", start.elapsed());
    assert_eq!(output.code, Some(130), "{output}");
    for child in sandbox.lines("began") {
        // Its parent may still have to hear of its end.
        until("all of them are gone", || {
            let state = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        });
    }
}
