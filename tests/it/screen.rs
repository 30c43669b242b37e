//! What a person sees while a run goes on and when it ends.

use crate::support::Sandbox;

#[test]
fn the_hint_to_go_on_is_what_was_typed() {
    let sandbox = Sandbox::with(
        "[params]\nword = \"x\"\n[profile.small]\n\
         [stage.gen]\nkind = \"command\"\nrun = \"echo 1 > {out}/x\"\n\
         [stage.slow]\nkind = \"command\"\nrun = 'echo begun \"${word}\"; sleep 1000'\nneeds = [\"gen\"]\n",
    );
    let args =
        ["run", "p.toml", "slow", "--profile", "small", "--set", "params.word=it's new", "--keep-going", "-j", "3"];
    let run = sandbox.start(&args);
    crate::support::until("it runs", || sandbox.run(&["log", "slow"]).stdout == "begun it's new\n");
    run.signal(libc::SIGINT);
    let output = run.end();
    assert_eq!(output.code, Some(130), "{output}");
    let hint =
        r"hint: to go on: flow run p.toml slow --profile small --set 'params.word=it'\''s new' --keep-going -j 3";
    assert!(output.stderr.lines().any(|line| line == hint), "{output}");
}

#[test]
fn a_run_that_does_not_take_place_has_no_id_and_no_record() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"cat {in.y}\"\n");
    let output = sandbox.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr.starts_with("error: ") && !output.stderr.contains("run 2"), "{output}");
    assert_eq!(sandbox.ok(&["runs"]), "");
    // One that takes place says its own, from the first line on.
    sandbox.pipeline("[stage.a]\nkind = \"command\"\nrun = \"true\"\nin = { y = \"p.toml\" }\n");
    let output = sandbox.run(&["run", "p.toml"]);
    let id = sandbox.ok(&["runs"]).split(' ').next().unwrap().to_owned();
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert!(lines[0].ends_with(&format!(" · run {id}")), "{output}");
    assert!(lines[1].starts_with("warning ") && lines[1].contains("`y`"), "{output}");
}

#[test]
fn what_a_cause_quotes_is_not_said_again_and_the_rest_of_the_log_is() {
    let sandbox =
        Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"for i in $(seq 30); do echo line $i; done; exit 3\"\n");
    let output = sandbox.run(&["run", "p.toml"]);
    for line in 11..=30 {
        let text = format!("line {line}");
        assert_eq!(output.stderr.lines().filter(|said| said.trim() == text).count(), 1, "{text}: {output}");
    }
    assert!(!output.stderr.contains("the last lines of its log"), "{output}");
}

#[test]
fn damage_is_said_before_its_repair_and_once() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"echo 1 > {out}/x; cp {out}/x {out}/y\"\n\
         [stage.b]\nkind = \"command\"\nrun = \"cat {in.x}/x > {out}/z; echo b >> {out}/z\"\nin = { x = \"a\" }\n",
    );
    sandbox.ok(&["run", "p.toml"]);
    let object = |stage, name| {
        let dir = sandbox.ok(&["path", "p.toml", stage]);
        std::fs::canonicalize(format!("{}/{name}", dir.trim_end())).unwrap()
    };
    for object in [object("a", "x"), object("b", "z")] {
        std::fs::remove_file(&object).unwrap();
        std::fs::write(&object, "forged\n").unwrap();
    }
    let text = sandbox.run(&["run", "p.toml"]).stderr;
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what}: {text}"));
    assert!(at("is damaged") < at("started  a"), "{text}");
    assert!(text.rfind("is damaged").unwrap() < at("started  b"), "{text}");
    assert_eq!(text.matches("is damaged").count(), 2, "{text}");
    assert!(!text.contains("moved it away"), "{text}");
}

#[test]
fn an_empty_directory_in_a_result_is_not_dropped_silently() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"mkdir -p {out}/logs/deep {out}/full; echo 1 > {out}/full/x\"\n",
    );
    let output = sandbox.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(0), "{output}");
    let warnings: Vec<&str> = output.stderr.lines().filter(|line| line.starts_with("warning ")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("`logs/deep`") && warnings[0].contains("empty"), "{output}");
}
