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
