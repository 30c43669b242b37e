//! What cannot work is said before it starts: place, reason, fix, exit code 2, and nothing was run.

use crate::support::Sandbox;

/// What `flow check` and `flow run` say, which must be the same, with exit code 2 and no stage run.
fn refused(sandbox: &Sandbox) -> String {
    let check = sandbox.run(&["check", "p.toml"]);
    let run = sandbox.run(&["run", "p.toml", "--json"]);
    assert_eq!((check.code, run.code), (Some(2), Some(2)), "{check}\n{run}");
    assert!(!run.stdout.contains("\"started\""), "{run}");
    assert_eq!(check.stderr, run.stderr);
    check.stderr
}

#[test]
fn an_unknown_key_is_shown_with_the_nearest() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"true\"\nflies = []\n");
    let text = refused(&sandbox);
    for part in ["error: ", "flies", "--> p.toml:6:1", "6 | flies = []", "| ^^^^^", "hint: did you mean `files`?"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn every_error_is_said_at_once() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"comand\"\nrun = \"true\"\n\
         [stage.b]\nkind = \"command\"\nrun = 3\n\
         [stage.c]\nkind = \"command\"\nrun = \"true\"\nin = { x = \"no_such_thing\" }\n",
    );
    let text = refused(&sandbox);
    assert_eq!(text.matches("error: ").count(), 3, "{text}");
    for place in ["p.toml:4:8", "p.toml:8:7", "p.toml:12:12"] {
        assert!(text.contains(place), "{place}\n{text}");
    }
    assert!(text.contains("`command`"), "{text}");
}

#[test]
fn toml_that_does_not_parse_has_its_place() {
    let text = refused(&Sandbox::with("[stage.a\n"));
    assert!(text.contains("--> p.toml:3:"), "{text}");
}

#[test]
fn a_cycle_names_its_stages() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"true\"\nin = { x = \"b\" }\n\
         [stage.b]\nkind = \"command\"\nrun = \"true\"\nin = { x = \"a\" }\n",
    );
    let text = refused(&sandbox);
    assert!(text.contains("a → b → a") && text.contains("--> p.toml:6:12"), "{text}");
}

#[test]
fn a_missing_file_has_its_place() {
    let sandbox =
        Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"true\"\nfiles = [\"here.txt\", \"gone.txt\"]\n");
    sandbox.write("here.txt", "");
    let text = refused(&sandbox);
    assert!(text.contains("gone.txt") && text.contains("p.toml:6:22") && !text.contains("6:10"), "{text}");
}

#[test]
fn a_pipeline_that_is_not_there() {
    let sandbox = Sandbox::new();
    let text = refused(&sandbox);
    assert!(text.contains("p.toml"), "{text}");
}

#[test]
fn an_unknown_profile_and_a_wrong_set() {
    let sandbox = Sandbox::with("[profile.mini]\nparams.n = 1\n[params]\nn = 2\n");
    let output = sandbox.run(&["run", "p.toml", "--profile", "mino"]);
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr.contains("`mini`"), "{output}");
    let output = sandbox.run(&["run", "p.toml", "--set", "nonsense"]);
    assert_eq!(output.code, Some(2), "{output}");
}

#[test]
fn an_unknown_stage_is_told_with_the_nearest() {
    let sandbox = Sandbox::with("[stage.tokens]\nkind = \"command\"\nrun = \"true\"\n");
    for args in [["run", "p.toml", "tokns"], ["why", "p.toml", "tokns"], ["path", "p.toml", "tokns"]] {
        let output = sandbox.run(&args);
        assert_eq!(output.code, Some(2), "{output}");
        assert!(output.stderr.contains("`tokens`"), "{output}");
    }
}

#[test]
fn usage_is_explained_with_code_2() {
    let sandbox = Sandbox::new();
    for args in [&["rnu"][..], &["run"], &["run", "p.toml", "--jobs", "0"], &["graph", "p.toml", "--format", "svgg"]] {
        let output = sandbox.run(args);
        assert_eq!(output.code, Some(2), "{output}");
        assert!(output.stderr.contains("error"), "{output}");
    }
}

#[test]
fn a_cache_that_cannot_be_used_is_code_3() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"true > {out}/a\"\n");
    std::fs::write(sandbox.outside("file"), "").unwrap();
    let output =
        sandbox.flow(&["run", "p.toml"]).env("FLOW_CACHE_DIR", sandbox.outside("file/cache")).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("file/cache"), "{output:?}");
}
