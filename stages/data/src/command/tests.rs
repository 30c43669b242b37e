//! Real shells, and what is left when they end.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::*;
use crate::testing::{Stand, expand, stage};

fn command(params: serde_json::Value) -> Command {
    stage(params)
}

#[test]
fn inputs_go_in_and_what_is_in_out_comes_out() {
    let mut stand = Stand::new();
    stand.write("a dir/x.txt", "from x");
    let (directory, file) = (stand.place("a dir"), stand.write("it's.txt", "from its"));
    stand.input("in.model", &directory).input("in.text", &file);
    let run = "cat {in.model}/x.txt {in.text} > {out}/both; echo \"$WORD\" to stderr >&2; pwd";
    let params = json!({"run": run, "in": {"model": "m", "text": ["t"]}, "env": {"WORD": "said"}});
    stand.run(&command(params.clone())).unwrap();
    assert_eq!(stand.out("both"), b"from xfrom its");
    assert!(stand.log().contains(&"said to stderr".to_owned()), "{:?}", stand.log());
    assert!(stand.log().iter().any(|line| line.ends_with("scratch/work")), "{:?}", stand.log());
    let key = serde_json::to_value(command(params)).unwrap();
    assert_eq!(key, json!({"run": run, "in": ["model", "text"], "env": {"WORD": "said"}}));
}

#[test]
fn only_declared_files_are_there_and_they_are_copies() {
    let mut stand = Stand::new();
    let script = stand.write("project/tools/score.sh", "cat data/a.txt; ls tools; echo changed > data/a.txt");
    let data = stand.write("project/data/a.txt", "content\n");
    stand.write("project/tools/other.sh", "");
    stand.input_called("files", "./tools/score.sh", &script).input_called("files", "data", data.parent().unwrap());
    let params = json!({"run": "sh tools/score.sh > {out}/log", "files": ["./tools/score.sh", "data"]});
    stand.run(&command(params)).unwrap();
    assert_eq!(stand.out("log"), b"content\nscore.sh\n");
    assert_eq!(fs::read(&data).unwrap(), b"content\n");
}

#[test]
fn outs_are_made_in_the_project_and_taken_from_there() {
    let stand = Stand::new();
    stand.write("project/plot.gp", "plot");
    let params = json!({"run": "cp plot.gp figures/loss.svg", "outs": ["./figures/loss.svg"]});
    let plot = command(params);
    assert_eq!(plot.outs(), ["figures/loss.svg"]);
    stand.run(&plot).unwrap();
    assert_eq!(stand.out("figures/loss.svg"), b"plot");
    assert_eq!(fs::read(stand.place("project/figures/loss.svg")).unwrap(), b"plot");

    let nothing = command(json!({"run": "rm figures/loss.svg", "outs": ["figures/loss.svg"]}));
    stand.again();
    assert!(stand.error(&nothing).contains("did not make `figures/loss.svg`"), "{}", stand.error(&nothing));
}

#[test]
fn a_failure_says_how_it_ended_and_the_last_lines() {
    let stand = Stand::new();
    let error = |run: &str| stand.error(&command(json!({ "run": run })));
    let text = error("for i in $(seq 1 100); do echo line $i; done; exit 3");
    assert!(text.contains("exit status 3; its last lines:\nline 81\n") && text.ends_with("line 100"), "{text}");
    assert!(error("exit 1").contains("exit status 1; it printed nothing"));
    assert!(error("no-such-program-here").contains("127: a program was not found"));
    assert!(error("kill -KILL $$").contains("signal 9"));
    assert!(error(": {out}").contains("wrote nothing into {out}"));
    stand.run(&command(json!({"run": "true"}))).unwrap();
}

/// Whether the process whose number a command wrote to `file` is gone within a few seconds.
fn is_gone(file: &Path) -> bool {
    let id: i32 = fs::read_to_string(file).unwrap().trim().parse().unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let state = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // A process that nobody has waited for yet is gone as well.
        if state.is_empty() || state.contains(") Z ") {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}

#[test]
fn nothing_is_left_running() {
    let stand = Stand::new();
    let started = Instant::now();
    let run = "sleep 100 & echo $! > {out}/left";
    stand.run(&command(json!({ "run": run }))).unwrap();
    assert!(is_gone(&stand.place("out/left")));
    // One that left the group and holds the pipes is not waited for.
    stand.again();
    stand.run(&command(json!({"run": "setsid sleep 3 & echo done > {out}/x; echo last words"}))).unwrap();
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(stand.log().contains(&"last words".to_owned()));
}

#[test]
fn who_left_the_group_and_writes_for_ever_is_not_waited_for() {
    let stand = Stand::new();
    let (writers, stop) = (stand.place("writers"), stand.place("stop"));
    fs::write(&writers, "").unwrap();
    let (writers, stop) = (writers.display(), stop.display());
    // More of them than one reader can follow; they end when the test lets them, or is gone.
    let writer = format!(
        "setsid sh -c 'yes & one=$!; yes & two=$!; echo . >> {writers}; while test -e {writers} && ! test -e {stop}; do sleep 0.1; done; kill $one $two'"
    );
    let run = format!(
        "for i in 1 2 3 4; do {writer} & done; while test $(wc -l < {writers}) -lt 4; do sleep 0.05; done; echo done > {{out}}/x"
    );
    stand.run(&command(json!({ "run": run }))).unwrap();
    fs::write(stand.place("stop"), "").unwrap();
}

#[test]
fn an_interrupt_ends_also_who_left_the_group() {
    let stand = Stand::new();
    let cancel = stand.cancel.clone();
    let places = ["timeout", "session", "daemon", "clean"].map(|name| stand.place(&format!("out/{name}")));
    let all = places.clone();
    let canceller = thread::spawn(move || {
        while all.iter().any(|place| fs::read_to_string(place).unwrap_or_default().is_empty()) {
            thread::sleep(Duration::from_millis(5));
        }
        cancel.set();
    });
    // One in a group of its own; one in a session of its own that does not hear; one that has lost its parent; one that
    // has lost its environment.
    let run = "timeout 1000 sh -c 'echo $$ > {out}/timeout; exec sleep 100' &
        setsid sh -c 'trap \"\" TERM; echo $$ > {out}/session; while :; do sleep 1; done' &
        (setsid sh -c 'echo $$ > {out}/daemon; exec sleep 100' &)
        env -i setsid sh -c 'echo $$ > {out}/clean; exec sleep 100' &
        wait";
    let error = stand.run(&command(json!({ "run": run }))).unwrap_err();
    canceller.join().unwrap();
    assert!(error.downcast_ref::<flow_core::Cancelled>().is_some(), "{error:#}");
    for place in places {
        assert!(is_gone(&place), "{}", place.display());
    }
}

#[test]
fn what_an_earlier_run_left_is_not_of_the_family() {
    let stand = Stand::new();
    let started = Instant::now();
    stand.run(&command(json!({"run": "setsid sh -c 'echo $$ > {out}/daemon; exec sleep 20' & while ! test -s {out}/daemon; do sleep 0.02; done; env | grep FLOW_COMMAND > {out}/mark"}))).unwrap();
    let (daemon, mark) = (stand.out("daemon"), stand.out("mark"));
    stand.again();
    let cancel = stand.cancel.clone();
    let place = stand.place("out/mark");
    let canceller = thread::spawn(move || {
        while fs::read_to_string(&place).unwrap_or_default().is_empty() {
            thread::sleep(Duration::from_millis(5));
        }
        cancel.set();
    });
    // Not in the tick of the clock in which the other began.
    thread::sleep(Duration::from_millis(30));
    stand.run(&command(json!({"run": "env | grep FLOW_COMMAND > {out}/mark; sleep 100"}))).unwrap_err();
    canceller.join().unwrap();
    assert_eq!(stand.out("mark"), mark);
    let id: i32 = String::from_utf8(daemon).unwrap().trim().parse().unwrap();
    let state = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    assert!(state.contains(") S ") || started.elapsed() > Duration::from_secs(20), "{state}");
    // SAFETY: a system call.
    unsafe { libc::kill(id, libc::SIGKILL) };
}

#[test]
fn an_interrupt_ends_the_whole_group() {
    let stand = Stand::new();
    let cancel = stand.cancel.clone();
    let place = stand.place("out/child");
    let canceller = thread::spawn(move || {
        while fs::read_to_string(&place).unwrap_or_default().is_empty() {
            thread::sleep(Duration::from_millis(5));
        }
        cancel.set();
    });
    let started = Instant::now();
    let run = "trap 'echo ended; exit 1' TERM; sleep 100 & echo $! > {out}/child; wait";
    let error = stand.run(&command(json!({ "run": run }))).unwrap_err();
    canceller.join().unwrap();
    assert!(error.downcast_ref::<flow_core::Cancelled>().is_some(), "{error:#}");
    assert!(started.elapsed() < Duration::from_secs(4), "it was asked, and did not have to be killed");
    assert!(stand.log().contains(&"ended".to_owned()), "{:?}", stand.log());
    assert!(is_gone(&stand.place("out/child")));
}

#[test]
fn when_flow_is_killed_the_guard_ends_what_runs() {
    if let Some(directory) = std::env::var_os("FLOW_TEST_GUARD") {
        // The part of flow, in a process of its own that is killed from outside.
        let mut stand = Stand::new();
        fs::remove_dir_all(stand.place("out")).unwrap();
        std::os::unix::fs::symlink(directory, stand.place("out")).unwrap();
        stand.inputs.clear();
        let run = "(setsid sh -c 'echo $$ > {out}/daemon; exec sleep 100' &)
            while ! test -s {out}/daemon; do sleep 0.05; done
            sleep 100 & echo $! > {out}/child.new; mv {out}/child.new {out}/child; wait";
        let _ = stand.run(&command(json!({ "run": run })));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut flow = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "command::tests::when_flow_is_killed_the_guard_ends_what_runs"])
        .env("FLOW_TEST_GUARD", directory.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let child = directory.path().join("child");
    let end = Instant::now() + Duration::from_secs(20);
    while !child.exists() && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
    }
    flow.kill().unwrap();
    flow.wait().unwrap();
    assert!(is_gone(&child), "a grandchild goes on without flow");
    assert!(is_gone(&directory.path().join("daemon")), "one in a session of its own goes on without flow");
}

#[test]
fn what_cannot_work_is_said_before_the_run() {
    let check = |params: serde_json::Value| Stand::new().check(&command(params)).0;
    let errors = check(json!({"run": "cat {in.modle}", "in": {"model": "m"}}));
    assert_eq!((errors[0].field.as_deref(), errors[0].hints[0].as_str()), (Some("run"), "did you mean `{in.model}`?"));
    let errors = check(json!({"run": "cat {in.x} {oot}"}));
    assert!(errors[0].message.contains("`{oot}`"), "{errors:?}");
    let errors = check(json!({"run": "true", "files": ["/etc/passwd", "../x", "./ok/"]}));
    let fields: Vec<_> = errors.iter().map(|error| error.field.as_deref().unwrap()).collect();
    assert_eq!(fields, ["files.0", "files.1"]);
    assert_eq!(check(json!({"run": "true", "env": {"A=B": "x"}}))[0].field.as_deref(), Some("env"));
    let errors = check(
        json!({"run": "true", "env": {"HF_TOKEN": "hf_x", "KEYS": "1"}, "files": ["data", "data/a.txt", "data2"]}),
    );
    let fields: Vec<_> = errors.iter().map(|error| error.field.as_deref().unwrap()).collect();
    assert_eq!(fields, ["files.1", "env.HF_TOKEN"]);
    assert!(!format!("{errors:?}").contains("hf_x"));
    assert!(expand::<Command>(json!({"run": "true", "in": {"a": []}})).is_err());
    let ports: Vec<_> = command(json!({"run": "{in.a}", "in": {"a": "b"}, "files": ["f"]})).ports();
    assert_eq!(ports.iter().map(|port| port.name.as_str()).collect::<Vec<_>>(), ["in.a", "files"]);
}
