//! The words that a person reads: what was meant, what changed, what nobody else should see.

use std::fs;

use crate::support::{Running, Sandbox, until};

#[test]
fn keys_that_every_stage_has_are_meant_too() {
    let sandbox = Sandbox::new();
    for (typed, meant) in [
        ("retrys", "retries"),
        ("timout", "timeout"),
        ("resource", "resources"),
        ("exports", "export"),
        ("need", "needs"),
        ("wen", "when"),
        ("matrx", "matrix"),
        ("tmp", "temp"),
        ("cahce", "cache"),
        ("flies", "files"),
    ] {
        sandbox.pipeline(&format!("[stage.a]\nkind = \"command\"\nrun = \"true\"\n{typed} = 1\n"));
        let said = sandbox.run(&["check", "p.toml"]);
        assert!(said.stderr.contains(&format!("did you mean `{meant}`?")), "{typed}: {said}");
    }
    sandbox.pipeline("[stage.a]\nkind = \"command\"\nrun = \"true\"\n");
    let said = sandbox.run(&["run", "p.toml", "--set", "stage.a.retrys=1"]);
    assert!(said.code == Some(2) && said.stderr.contains("did you mean `retries`?"), "{said}");
    let said = sandbox.run(&["run", "p.toml", "--set", "stage.a.zzzzzzz=1"]);
    assert!(said.stderr.contains("known keys: ") && said.stderr.contains("; of every stage: kind, "), "{said}");
}

#[test]
fn what_changed_is_seen_in_a_long_line() {
    let long =
        "echo a long beginning that goes on and on so that the line of the stage is long and differs late ".repeat(2);
    let pipeline = |end: &str| format!("[stage.a]\nkind = \"command\"\nrun = \"{long}{end} > {{out}}/x\"\n");
    let sandbox = Sandbox::with(&pipeline("ONE"));
    sandbox.ok(&["run", "p.toml"]);
    sandbox.pipeline(&pipeline("TWO"));
    let both = |text: &str| {
        let line = text.lines().find(|line| line.contains("ONE")).unwrap_or_else(|| panic!("{text}"));
        assert!(line.contains("TWO") && !line.contains("->"), "{text}");
    };
    both(&sandbox.ok(&["plan", "p.toml"]));
    both(&sandbox.ok(&["why", "p.toml", "a"]));
    both(&sandbox.run(&["run", "p.toml"]).stderr);
    both(&sandbox.ok(&["diff"]));
}

#[test]
fn a_secret_is_refused_and_not_shown() {
    let sandbox = Sandbox::new();
    let digits = "0123456789abcdef0123456789abcdef0123";
    for text in [
        "env = { API_KEY = \"sk-PLANTED\" }\nrun = \"true\"".to_owned(),
        format!("env = {{ X = \"ghp_{digits}PLANTED\" }}\nrun = \"true\""),
        "run = \"curl -H 'Authorization: Bearer ghp_PLANTED' x\"".into(),
        "run = \"curl http://me:PLANTED@x/\"".into(),
        "run = \"login ${password}\"".into(),
        "run = 3 # http://me:PLANTED@x/".into(),
    ] {
        sandbox.pipeline(&format!("[params]\npassword = \"PLANTED\"\n[stage.a]\nkind = \"command\"\n{text}\n"));
        for args in [&["check", "p.toml"][..], &["run", "p.toml"], &["plan", "p.toml"], &["why", "p.toml", "a"]] {
            let said = sandbox.run(args);
            assert!(!said.stderr.contains("PLANTED") && !said.stdout.contains("PLANTED"), "{args:?} {text}: {said}");
            if args[0] != "why" {
                assert!(said.code == Some(2) && said.stderr.contains("--> p.toml:"), "{args:?} {text}: {said}");
            }
        }
    }
    let said = sandbox.run(&["run", "p.toml", "--set", "stage.a.run=true", "--set", "stage.a.env.API_KEY=PLANTED"]);
    assert!(said.code == Some(2) && !said.stderr.contains("PLANTED"), "{said}");
    // What names the secret and does not hold it is no secret.
    sandbox.pipeline(
        "[params]\npassword = \"$PW\"\neos_token = \"</s>\"\ntoken = \"\"\n[stage.a]\nkind = \"command\"\n\
         run = \"echo ${password} '${eos_token}' ${token} \\\"Bearer $TOKEN\\\" https://me:$PW@x/ > {out}/x\"\n",
    );
    sandbox.ok(&["run", "p.toml"]);
}

#[test]
fn a_log_that_is_followed_is_of_the_run_that_has_the_stage() {
    let sandbox = Sandbox::new();
    let (go, end) = (sandbox.outside("go"), sandbox.outside("end"));
    let wait = |path: &std::path::Path| format!("while ! test -e {}; do sleep 0.05; done", path.display());
    sandbox.pipeline(&format!(
        "[stage.tr]\nkind = \"command\"\nrun = \"echo first; {}; echo second\"\n\
         [stage.then]\nkind = \"command\"\nneeds = [\"tr\"]\nrun = \"echo then; {}\"\n",
        wait(&go),
        wait(&end)
    ));
    sandbox.write("q.toml", &format!("[stage.other]\nkind = \"command\"\nrun = \"echo other; {}\"\n", wait(&end)));
    let run = sandbox.start(&["run", "p.toml"]);
    until("the log begins", || sandbox.run(&["log", "tr"]).stdout == "first\n");
    let other = sandbox.start(&["run", "q.toml"]);
    until("another runs", || sandbox.run(&["log", "other"]).stdout == "other\n");
    let follow = |stage: &str| sandbox.start(&["log", stage, "-f"]);
    let (tr, then) = (follow("tr"), follow("then"));
    fs::write(go, "").unwrap();
    assert_eq!(tr.end().stdout, "first\nsecond\n");
    until("the next stage runs", || sandbox.run(&["log", "then"]).stdout == "then\n");
    fs::write(end, "").unwrap();
    assert_eq!(then.end().stdout, "then\n");
    [run, other].map(Running::end).iter().for_each(|end| assert_eq!(end.code, Some(0), "{end}"));
}

#[test]
fn a_log_that_is_followed_is_of_the_run_that_is_not_done_with_it() {
    let sandbox = Sandbox::new();
    let go = sandbox.outside("go");
    let wait = format!("while ! test -e {}; do sleep 0.05; done", go.display());
    let stage =
        |name: &str, run: &str, more: &str| format!("[stage.{name}]\nkind = \"command\"\n{more}run = \"{run}\"\n");
    sandbox.pipeline(&stage("one", &format!("echo before; {wait}; echo after"), ""));
    sandbox.write(
        "q.toml",
        &(stage("one", "echo quick", "") + &stage("two", &format!("echo two; {wait}"), "needs = [\"one\"]\n")),
    );
    let older = sandbox.start(&["run", "p.toml"]);
    until("the older one runs it", || sandbox.run(&["log", "one"]).stdout == "before\n");
    let newer = sandbox.start(&["run", "q.toml"]);
    until("the newer one is done with it", || sandbox.run(&["log", "two"]).stdout == "two\n");
    let follow = sandbox.start(&["log", "one", "-f"]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    fs::write(go, "").unwrap();
    assert_eq!(follow.end().stdout, "before\nafter\n");
    [older, newer].map(Running::end).iter().for_each(|end| assert_eq!(end.code, Some(0), "{end}"));
}

#[test]
fn the_last_run_of_each_profile_stays() {
    let sandbox = Sandbox::with("[profile.other]\n[stage.a]\nkind = \"command\"\nrun = \"echo > {out}/x\"\n");
    sandbox.ok(&["run", "p.toml"]);
    for _ in 0..2 {
        sandbox.ok(&["run", "p.toml", "--profile", "other"]);
        sandbox.ok(&["run", "p.toml"]);
    }
    let said = sandbox.run(&["cache", "gc", "--keep-runs", "0d"]);
    assert!(said.stderr.contains("removed 2 runs; the last of each pipeline and profile stays"), "{said}");
    assert_eq!(sandbox.ok(&["runs"]).lines().count(), 3);
}

#[test]
fn small_words_are_true() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"echo > {out}/x\"\n\
         [stage.b]\nkind = \"command\"\nin = { a = \"a\" }\nrun = \"echo > {out}/x\"\n\
         [stage.c]\nkind = \"command\"\nwhen = false\nrun = \"echo > {out}/x\"\n",
    );
    let said = sandbox.run(&["check", "p.toml"]);
    assert!(said.code == Some(0) && said.stderr.ends_with("nothing wrong, 1 warning\n"), "{said}");
    let said = sandbox.run(&["path", "p.toml", "c"]);
    assert!(said.code == Some(1) && said.stderr.contains("`c` is off") && !said.stderr.contains("flow run"), "{said}");
    let said = sandbox.run(&["cache", "unpin", "nofile.toml"]);
    assert!(said.code == Some(2) && said.stderr.contains("there is no file `nofile.toml`"), "{said}");
    sandbox.ok(&["run", "p.toml"]);
    sandbox.ok(&["cache", "pin", "p.toml"]);
    fs::remove_file(sandbox.path("p.toml")).unwrap();
    let said = sandbox.run(&["cache", "unpin", "p.toml"]);
    assert!(said.code == Some(0) && said.stderr.contains("unpinned 2 results"), "{said}");
}

#[test]
fn what_is_not_tried_again_has_failed_and_all_nodes_are_counted() {
    let sandbox = Sandbox::new();
    let (once, go) = (sandbox.outside("once"), sandbox.outside("go"));
    sandbox.pipeline(&format!(
        "[stage.flaky]\nkind = \"command\"\nretries = 30\nrun = \"echo x >> {once}; exit 1\"\n\
         [stage.child]\nkind = \"command\"\nneeds = [\"flaky\"]\nrun = \"true\"\n\
         [stage.bad]\nkind = \"command\"\nrun = \"while ! test -e {go}; do sleep 0.05; done; exit 2\"\n\
         [stage.slow]\nkind = \"command\"\nneeds = [\"bad\"]\nrun = \"true\"\n",
        once = once.display(),
        go = go.display()
    ));
    let run = sandbox.start(&["run", "p.toml", "--jobs", "4"]);
    until("it waits for its next try", || sandbox.run(&["status"]).stdout.contains("retry"));
    fs::write(go, "").unwrap();
    let said = run.end();
    assert!(said.code == Some(1) && said.stderr.contains(": 0 ran, 0 skipped, 2 failed, 2 not run"), "{said}");
    let status = sandbox.ok(&["status"]);
    for row in ["failed   bad", "failed   flaky", "not run  child", "not run  slow"] {
        assert!(status.contains(row), "{row}: {status}");
    }
    assert!(sandbox.ok(&["runs"]).contains("2 failed"));
    let show = sandbox.ok(&["show"]);
    assert!(show.contains("flaky failed") && show.contains("exit status 1"), "{show}");
    // Of those that did not begin as another failed, too.
    sandbox
        .pipeline("[stage.a]\nkind = \"command\"\nrun = \"exit 1\"\n[stage.b]\nkind = \"command\"\nrun = \"true\"\n");
    let said = sandbox.run(&["run", "p.toml", "--jobs", "1"]);
    assert!(said.stderr.contains(": 0 ran, 0 skipped, 1 failed, 1 not run"), "{said}");
    // A time that is over is no interruption.
    sandbox.pipeline("[stage.a]\nkind = \"command\"\ntimeout = \"0.3s\"\nrun = \"sleep 1000\"\n");
    let said = sandbox.run(&["run", "p.toml"]);
    assert!(said.stderr.contains("it took longer than 300ms") && !said.stderr.contains("interrupted"), "{said}");
}

#[test]
fn runs_that_nobody_needs_go_with_the_rest() {
    let sandbox = Sandbox::with("[params]\nn = 0\n[stage.a]\nkind = \"command\"\nrun = \"echo ${n} > {out}/x\"\n");
    sandbox.write("q.toml", "[stage.b]\nkind = \"command\"\nrun = \"echo > {out}/x\"\n");
    sandbox.ok(&["run", "q.toml"]);
    sandbox.ok(&["run", "p.toml", "--set", "params.n=1"]);
    for _ in 0..3 {
        sandbox.ok(&["run", "p.toml"]);
    }
    assert_eq!(sandbox.run(&["run", "p.toml", "--set", "stage.a.run=exit 1"]).code, Some(1));
    let runs = || sandbox.ok(&["runs"]).lines().map(|line| line[..24].trim().to_owned()).collect::<Vec<_>>();
    let before = runs();
    assert_eq!(before.len(), 6);
    let gc = |args: &[&str]| sandbox.run(&[&["cache", "gc"], args].concat());
    let said = gc(&["--keep-runs", "30d"]);
    assert!(said.code == Some(0) && !said.stderr.contains("remove"), "{said}");
    let said = gc(&["--keep-runs", "0d", "--dry-run"]);
    assert!(said.stderr.contains("would remove 2 runs"), "{said}");
    assert_eq!(runs(), before);
    // The results are there: who made them stays, and the last of each pipeline.
    let said = gc(&["--keep-runs", "0d"]);
    assert!(said.stderr.contains("removed 2 runs"), "{said}");
    assert_eq!(runs(), [0, 3, 4, 5].map(|nth: usize| before[nth].clone()));
    assert!(sandbox.json(&[]).ran().is_empty());
    // A pinned result stays, and what is said of who made the others is what they were.
    sandbox.ok(&["cache", "pin", "p.toml"]);
    let said = gc(&["--max-age", "0s", "--keep-runs", "0d", "--dry-run"]);
    assert!(said.stdout.contains("b of q") && said.stdout.contains("a of p"), "{said}");
    assert!(said.stdout.contains("not used for 0 seconds") || said.stdout.contains(" second"), "{said}");
    gc(&["--max-age", "0s", "--keep-runs", "0d"]);
    let left = runs();
    assert!(left.len() == 3 && left[1..] == [before[3].clone(), before[5].clone()], "{left:?} {before:?}");
    assert!(sandbox.json(&[]).ran().is_empty());
}

#[test]
fn what_is_laid_over_a_matrix_may_leave_an_exclusion_idle() {
    let sandbox = Sandbox::with(
        "[params]\nseeds = [1, 2]\n[profile.small.params]\nseeds = [1]\n[stage.a]\nkind = \"command\"\n\
         matrix = { lr = [1, 2], seed = \"${seeds}\", exclude = [{ lr = 1, seed = 2 }] }\nrun = \"echo ${matrix.lr} > {out}/x\"\n",
    );
    let said = sandbox.run(&["check", "p.toml", "-p", "small"]);
    assert!(said.code == Some(0) && said.stderr.contains("warning: `exclude` names no combination"), "{said}");
    let said = sandbox.run(&["run", "p.toml", "--set", "params.seeds=[1]"]);
    assert!(said.code == Some(0) && said.stderr.contains("`exclude` names no combination"), "{said}");
    // As the file is written it is an error, and hides no other of its stage.
    sandbox.pipeline(
        "[stage.a]\nkind = \"command\"\nmatrix = { lr = [1, 2], exclude = [{ lr = 3 }] }\nrun = \"echo ${matrix.q}\"\n\
         [stage.b]\nkind = \"command\"\nmatrix = { lr = [1, 2], exclude = [{ lr = 3 }] }\nrun = \"echo {in.zz}\"\n",
    );
    let said = sandbox.run(&["check", "p.toml"]);
    assert!(said.code == Some(2) && said.stderr.matches("`exclude` names no combination").count() == 2, "{said}");
    assert!(said.stderr.contains("there is no `q`") && said.stderr.contains("`{in.zz}`"), "{said}");
}

#[test]
fn variables_that_set_nothing_are_told() {
    let sandbox =
        Sandbox::with("[params]\nsteps = 1\n[stage.a]\nkind = \"command\"\nrun = \"echo ${steps} > {out}/x\"\n");
    for command in ["check", "plan", "run"] {
        let mut flow = sandbox.flow(&[command, "p.toml"]);
        let said = crate::support::Output::of(flow.env("FLOW_PARAM_STEP", "3").output().unwrap());
        let told = "`FLOW_PARAM_STEP` is set, and the pipeline has no such parameter";
        assert!(said.code == Some(0) && said.stderr.contains(told), "{command}: {said}");
        assert!(said.stderr.contains("did you mean `FLOW_PARAM_STEPS`?"), "{command}: {said}");
    }
}

#[test]
fn nothing_is_told_of_a_run_that_cannot_be() {
    let sandbox = Sandbox::with(
        "[stage.d]\nkind = \"command\"\nrun = \"echo > {out}/d\"\nresources = { memory = \"900TB\" }\n\
         [stage.d2]\nkind = \"command\"\nrun = \"echo > {out}/d\"\n",
    );
    let said = sandbox.run(&["run", "p.toml"]);
    assert!(said.code == Some(2) && !said.stderr.contains("waiting"), "{said}");
    assert_eq!(sandbox.ok(&["runs"]), "");
    sandbox.pipeline(
        "[stage.d]\nkind = \"command\"\nrun = \"sleep 0.2; echo > {out}/d\"\n\
         [stage.d2]\nkind = \"command\"\nrun = \"sleep 0.2; echo > {out}/d\"\n",
    );
    let said = sandbox.run(&["run", "p.toml"]);
    assert!(said.code == Some(0) && said.stderr.contains("waiting  d2 · `d` is making the same result"), "{said}");
}

#[test]
fn who_runs_alone_does_not_wait_for_what_only_comes_before() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"echo > {out}/x\"\n\
         [stage.b]\nkind = \"command\"\nin = { a = \"a\" }\nrun = \"cp {in.a}/x {out}/x\"\n\
         [stage.c]\nkind = \"command\"\nneeds = [\"b\"]\nrun = \"echo c > {out}/x\"\n\
         [stage.d]\nkind = \"command\"\nin = { c = \"c\" }\nrun = \"cp {in.c}/x {out}/x\"\n",
    );
    let planned = sandbox.ok(&["plan", "p.toml", "--only", "c"]);
    assert!(planned.starts_with("run  c") && planned.lines().count() == 1, "{planned}");
    assert_eq!(sandbox.json(&["--only", "c"]).ran(), ["c"]);
    assert_eq!(sandbox.json(&["--only", "d"]).ran(), ["d"]);
    let said = sandbox.run(&["run", "p.toml", "--only", "b"]);
    assert!(said.code == Some(2) && said.stderr.contains("`a` has no result"), "{said}");
    // What runs and is asked for comes in order all the same.
    let ran = sandbox.json(&["--only", "c", "--only", "b", "--only", "a", "--force", "c"]);
    let order = |node: &str| ran.0.iter().position(|event| event["event"] == "finished" && event["node"] == node);
    assert!(order("b") < order("c"), "{:?}", ran.0);
}

#[test]
fn what_a_failed_stage_was_made_of_is_known() {
    let sandbox = Sandbox::with(
        "[params]\nlr = 1\n[stage.a]\nkind = \"command\"\nin = { d = \"d\" }\nrun = \"cat {in.d}/*; echo ${lr}; exit 3\"\n",
    );
    for name in ["one", "two", "three"] {
        sandbox.write(&format!("d/{name}"), "x");
    }
    for lr in ["params.lr=1", "params.lr=2"] {
        assert_eq!(sandbox.run(&["run", "p.toml", "--set", lr]).code, Some(1));
    }
    let text = sandbox.ok(&["why", "p.toml", "a", "--set", "params.lr=2", "--run", "last-1"]);
    assert!(text.contains("echo 1; exit") && text.contains("echo 2; exit"), "{text}");
    let text = sandbox.ok(&["diff"]);
    assert!(text.contains("params.run") && text.contains("echo 1;") && text.contains("echo 2;"), "{text}");
    let text = sandbox.ok(&["plan", "p.toml", "--set", "params.lr=3"]);
    assert!(text.contains("echo 2;") && text.contains("echo 3;"), "{text}");
    let text = sandbox.ok(&["show", "last", "a"]);
    for said in
        ["failed in ", "kind command version ", "run = ", "input in.d: ", "a failed", "exit status 3", "  log: "]
    {
        assert!(text.contains(said), "{said}: {text}");
    }
    // Which files of a directory changed.
    sandbox.write("d/one", "y");
    sandbox.write("d/four", "x");
    fs::remove_file(sandbox.path("d/three")).unwrap();
    let text = sandbox.ok(&["why", "p.toml", "a", "--set", "params.lr=2"]);
    assert!(text.contains("`d` changed: `four` is new, `one` is another, `three` is gone"), "{text}");
}

#[test]
fn one_of_many_urls_has_its_own_place() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"fetch\"\nurls = [\n  \"p.toml\",\n  \"data/{1..2}.gz\",\n  \"more/{1..3}.gz\",\n]\n",
    );
    sandbox.write("data/1.gz", "");
    sandbox.write("data/2.gz", "");
    let said = sandbox.run(&["check", "p.toml"]);
    assert!(said.code == Some(2) && said.stderr.contains("--> p.toml:8:3"), "{said}");
    assert!(!said.stderr.contains("p.toml:6:") && !said.stderr.contains("p.toml:7:"), "{said}");
}
