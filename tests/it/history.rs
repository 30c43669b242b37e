//! What is told of runs that were and of runs that go on, from another terminal.

use std::fs;

use crate::support::{Sandbox, until};

const PIPELINE: &str = "\
[stage.gen]
kind = \"command\"
run = \"echo made; echo 1 > {out}/x\"
[stage.train]
kind = \"command\"
run = \"cat {in.x}/x > {out}/y\"
in = { x = \"gen\" }
";

#[test]
fn names_that_are_nothing_are_usage_with_a_hint() {
    let sandbox = Sandbox::with(PIPELINE);
    let output = sandbox.run(&["show", "last"]);
    assert!(output.code == Some(2) && output.stderr.contains("no runs yet"), "{output}");
    sandbox.ok(&["run", "p.toml"]);
    for (args, said) in [
        (["show", "nope"], "`flow runs` lists them"),
        (["show", "last-1"], "not so many runs"),
        (["log", "trian"], "did you mean `train`?"),
        (["log", "zzzzzz"], "what ran: gen, train"),
        (["status", "q.toml"], "did you mean `p.toml`?"),
    ] {
        let output = sandbox.run(&args);
        assert_eq!((output.code, output.stdout.as_str()), (Some(2), ""), "{output}");
        assert!(output.stderr.contains(said), "{args:?}: {output}");
    }
    let id = sandbox.ok(&["runs"]).split(' ').next().unwrap().to_owned();
    let output = sandbox.run(&["show", &id.replace('-', "_")]);
    assert!(output.code == Some(2) && output.stderr.contains(&format!("did you mean `{id}`?")), "{output}");
    // A part of the id is enough, if it is only one's.
    assert!(sandbox.ok(&["show", &id[..18]]).contains(&id));
    sandbox.ok(&["run", "p.toml"]);
    let output = sandbox.run(&["show", "20"]);
    assert!(output.code == Some(2) && output.stderr.contains("2 runs begin with `20`"), "{output}");
    assert!(sandbox.ok(&["show", "last-1"]).contains(&id));
}

#[test]
fn a_run_that_goes_on_that_is_interrupted_and_that_is_killed() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"echo begun; sleep 1000\"\n");
    for (signal, state) in [(libc::SIGINT, "interrupted"), (libc::SIGKILL, "killed")] {
        let run = sandbox.start(&["run", "p.toml"]);
        until("it runs", || sandbox.run(&["status", "p.toml"]).stdout.starts_with("running  a "));
        assert!(sandbox.ok(&["runs", "-n", "1"]).contains(" running "));
        run.signal(signal);
        run.end();
        let status = sandbox.run(&["status", "p.toml"]);
        assert!(status.stdout.starts_with(&format!("{state}  a")), "{status}");
        assert!(status.stderr.contains(&format!(" · {state}")), "{status}");
        assert!(sandbox.ok(&["show"]).contains(&format!("state     {state}\n")));
    }
}

#[test]
fn a_run_of_another_machine_is_known_by_its_heart() {
    let sandbox = Sandbox::with(PIPELINE);
    sandbox.ok(&["run", "p.toml"]);
    // As such a run looks from here: unfinished, its lock not to be seen.
    let dir = fs::read_dir(sandbox.cache().join("runs")).unwrap().next().unwrap().unwrap().path();
    let head = fs::read_to_string(dir.join("run.json")).unwrap();
    let mut head: serde_json::Value = serde_json::from_str(&head).unwrap();
    (head["finished"], head["host"]) = (serde_json::Value::Null, "elsewhere".into());
    fs::write(dir.join("run.json"), head.to_string()).unwrap();
    let lock = fs::File::options().write(true).open(dir.join("alive.lock")).unwrap();
    for (age, state) in [(20, "running"), (3600, "killed")] {
        lock.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
        assert!(sandbox.ok(&["runs"]).contains(&format!(" {state} ")), "{state}");
    }
}
