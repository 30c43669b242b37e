//! Every command that looks and does not run.

use std::{fs, process::Command};

use serde_json::Value as Json;

use crate::support::{Output, Sandbox};

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with(
        "[params]\nword = \"one\"\n\
         [stage.a]\nkind = \"command\"\nrun = \"echo ${word}; echo ${word} > {out}/a\"\n\
         [stage.b]\nkind = \"command\"\nrun = \"cat {in.x}/a {in.y} > {out}/b\"\nin = { x = \"a\", y = \"y.txt\" }\n",
    );
    sandbox.write("y.txt", "y\n");
    sandbox
}

fn json_lines(text: &str) -> Vec<Json> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn plan_says_what_run_does() {
    let sandbox = sandbox();
    let plan = |args: &[&str]| {
        let args: Vec<&str> = ["plan", "p.toml", "--json"].into_iter().chain(args.iter().copied()).collect();
        let states = json_lines(&sandbox.ok(&args));
        states.iter().map(|line| line["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(plan(&[]), ["run", "later"]);
    assert!(!fs::exists(sandbox.path("flow.lock")).unwrap());
    sandbox.ok(&["run", "p.toml", "a"]);
    assert_eq!(plan(&[]), ["cached", "run"]);
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!(plan(&[]), ["cached", "cached"]);
    assert_eq!(plan(&["--set", "params.word=two"]), ["run", "later"]);
    let output = sandbox.run(&["plan", "p.toml"]);
    assert!(output.stdout.starts_with("cached  a "), "{output}");
    assert!(output.stderr.starts_with("2 cached"), "{output}");
}

#[test]
fn why_shows_what_changed_from_what_to_what() {
    let sandbox = sandbox();
    sandbox.ok(&["run", "p.toml"]);
    let text = sandbox.ok(&["why", "p.toml", "a", "--set", "params.word=two"]);
    assert!(text.contains("would run") && text.contains("one") && text.contains("two"), "{text}");
    sandbox.write("y.txt", "changed\n");
    let line = &json_lines(&sandbox.ok(&["why", "p.toml", "b", "--json"]))[0];
    let changes: Vec<&str> = line["changes"].as_array().unwrap().iter().map(|c| c["what"].as_str().unwrap()).collect();
    assert_eq!(changes.len(), 1, "{line}");
    assert!(changes[0].contains('y'), "{line}");
    let text = sandbox.ok(&["why", "p.toml", "a"]);
    assert!(text.contains("cached") && text.contains("nothing differs"), "{text}");
}

#[test]
fn path_is_for_scripts() {
    let sandbox = sandbox();
    let output = sandbox.run(&["path", "p.toml", "b"]);
    assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output}");
    assert!(output.stderr.contains("hint: ") && output.stderr.contains("flow run p.toml"), "{output}");
    sandbox.ok(&["run", "p.toml"]);
    let path = sandbox.ok(&["path", "p.toml", "b"]);
    assert_eq!(fs::read_to_string(format!("{}/b", path.trim_end())).unwrap(), "one\ny\n");
    assert!(path.starts_with('/') && path.ends_with('\n') && path.lines().count() == 1, "{path}");
}

#[test]
fn graph_is_drawn_in_three_ways() {
    let sandbox = sandbox();
    assert_eq!(sandbox.ok(&["graph", "p.toml"]), "a  command\nb  command  <- a\n");
    assert!(sandbox.ok(&["graph", "p.toml", "--format", "mermaid"]).contains("s0 --> s1"));
    assert!(sandbox.ok(&["graph", "p.toml", "-f", "dot"]).contains("\"a\" -> \"b\";"));
}

#[test]
fn history_is_told_from_outside() {
    let sandbox = sandbox();
    assert_eq!(sandbox.run(&["status", "p.toml"]).code, Some(1));
    assert_eq!(sandbox.ok(&["runs"]), "");
    sandbox.ok(&["run", "p.toml"]);
    let status = json_lines(&sandbox.ok(&["status", "p.toml", "--json"]));
    let states: Vec<_> =
        status.iter().map(|line| (line["node"].as_str().unwrap(), line["state"].as_str().unwrap())).collect();
    assert_eq!(states, [("a", "ran"), ("b", "ran")]);
    assert!(sandbox.ok(&["status"]).starts_with("ran  a "));

    sandbox.ok(&["run", "p.toml"]);
    let runs = json_lines(&sandbox.ok(&["runs", "--json"]));
    assert_eq!(runs.len(), 2);
    assert_eq!((&runs[0]["skipped"], &runs[1]["ran"]), (&2.into(), &2.into()));
    assert_eq!(runs[0]["state"], "done");
    let status = json_lines(&sandbox.ok(&["status", "p.toml", "--json"]));
    assert!(status.len() == 2 && status.iter().all(|line| line["state"] == "cached"), "{status:?}");

    let first = runs[1]["id"].as_str().unwrap();
    let show = sandbox.ok(&["show", first]);
    assert!(show.contains(first) && show.contains("ran  a"), "{show}");
    assert_eq!(sandbox.run(&["show", "nonsense"]).code, Some(2));

    assert_eq!(sandbox.ok(&["log", "a"]), "one\n");
    assert_eq!(sandbox.ok(&["log", "a", "--run", first, "--follow"]), "one\n");
    let silent = sandbox.run(&["log", "b"]);
    assert!(silent.code == Some(0) && silent.stdout.is_empty() && silent.stderr.contains("wrote nothing"), "{silent}");
    assert_eq!(sandbox.run(&["log", "nonsense"]).code, Some(2));
}

#[test]
fn a_log_is_followed_while_the_stage_runs() {
    let sandbox = Sandbox::new();
    let go = sandbox.outside("go");
    sandbox.pipeline(&format!(
        "[stage.a]\nkind = \"command\"\nrun = \"echo first; while ! test -e {}; do sleep 0.05; done; echo second\"\n",
        go.display()
    ));
    let run = sandbox.start(&["run", "p.toml"]);
    crate::support::until("the log begins", || sandbox.run(&["log", "a"]).stdout == "first\n");
    let follow = sandbox.start(&["log", "a", "-f"]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    fs::write(go, "").unwrap();
    assert_eq!(run.end().code, Some(0));
    let followed = follow.end();
    assert_eq!((followed.code, followed.stdout.as_str()), (Some(0), "first\nsecond\n"), "{followed}");
}

#[test]
fn the_cache_is_counted_checked_and_cleaned() {
    let sandbox = sandbox();
    sandbox.ok(&["run", "p.toml"]);
    let stats = sandbox.ok(&["cache", "stats"]);
    assert!(stats.contains("results") && stats.contains("command"), "{stats}");
    assert_eq!(json_lines(&sandbox.ok(&["cache", "ls", "--json"])).len(), 2);
    assert_eq!(sandbox.ok(&["cache", "ls"]).lines().count(), 2);
    sandbox.ok(&["cache", "verify"]);

    // A damaged object is found, said, and made again.
    let object = fs::canonicalize(format!("{}/b", sandbox.ok(&["path", "p.toml", "b"]).trim_end())).unwrap();
    fs::remove_file(&object).unwrap();
    fs::write(&object, "forged\n").unwrap();
    let output = sandbox.run(&["cache", "verify"]);
    assert_eq!(output.code, Some(3), "{output}");
    assert!(output.stdout.contains("damaged"), "{output}");
    assert_eq!(sandbox.json(&[]).ran(), ["b"]);
    sandbox.ok(&["cache", "verify"]);

    let dry = sandbox.run(&["cache", "gc", "--max-size", "0", "--keep-runs", "0d", "--dry-run"]);
    assert!(dry.code == Some(0) && dry.stderr.contains("would free"), "{dry}");
    assert_eq!(sandbox.json(&[]).ran(), [""; 0]);
    sandbox.ok(&["cache", "gc", "--max-size", "0", "--keep-runs", "0d"]);
    assert_eq!(sandbox.json(&[]).ran(), ["a", "b"]);
}

#[test]
fn init_writes_a_pipeline_that_runs_and_never_overwrites() {
    let sandbox = Sandbox::new();
    let output = sandbox.run(&["init", "new project"]);
    assert_eq!(output.code, Some(0), "{output}");
    assert!(output.stderr.contains("flow run 'new project/pipeline.toml'"), "{output}");
    sandbox.ok(&["check", "new project/pipeline.toml"]);
    sandbox.ok(&["run", "new project/pipeline.toml"]);
    let path = sandbox.ok(&["path", "new project/pipeline.toml", "top"]);
    let top = fs::read_to_string(format!("{}/top.txt", path.trim_end())).unwrap();
    let words: Vec<&str> = top.split_whitespace().collect();
    assert_eq!(words, ["4", "fox", "4", "the", "2", "a"], "{top}");
    let output = sandbox.run(&["init", "new project"]);
    assert_eq!(output.code, Some(2), "{output}");
    // In the current directory, too.
    sandbox.ok(&["init"]);
    sandbox.ok(&["check", "pipeline.toml"]);
    sandbox.write("pipeline.toml", "mine");
    assert_eq!(sandbox.run(&["init"]).code, Some(2));
    assert_eq!(sandbox.read("pipeline.toml"), "mine");
}

#[test]
fn the_pipeline_that_trains_is_sound_and_runs() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["init", "tiny", "--template", "train"]);
    let output = sandbox.run(&["check", "tiny/pipeline.toml"]);
    assert!(output.code == Some(0) && output.stderr.contains("7 stages in 7 nodes, nothing wrong"), "{output}");
    if std::env::var_os("FLOW_TORCH").is_none() {
        eprintln!("not run: FLOW_TORCH names no trainer (`cargo xtask test` builds it)");
        return;
    }
    assert!(!output.stderr.contains("warning"), "{output}");
    sandbox.ok(&["run", "tiny/pipeline.toml"]);
    assert!(
        sandbox.path("tiny/model/model.safetensors").exists() && sandbox.path("tiny/model/tokenizer.json").exists()
    );
    let path = sandbox.ok(&["path", "tiny/pipeline.toml", "eval"]);
    let results = fs::read_dir(path.trim_end()).unwrap().map(|entry| entry.unwrap().path());
    let results: Vec<String> = results.filter_map(|path| fs::read_to_string(path).ok()).collect();
    assert!(results.iter().any(|text| text.contains("perplexity")), "{results:?}");
}

#[test]
fn completions_are_scripts_of_their_shell() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = sandbox.ok(&["completions", shell]);
        assert!(script.contains("FLOW_COMPLETE"), "{shell}");
        sandbox.write(shell, &script);
    }
    let output = Command::new("bash").arg("-n").arg(sandbox.path("bash")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn doctor_says_what_is_there_and_what_is_not() {
    let sandbox = Sandbox::new();
    let output = Output::of(sandbox.flow(&["doctor"]).env("FLOW_TORCH", "/nowhere").output().unwrap());
    assert_eq!(output.code, Some(3), "{output}");
    assert!(output.stdout.contains("ok   flow") && output.stdout.contains("ok   cache"), "{output}");
    assert!(output.stdout.contains("cache_dir by FLOW_CACHE_DIR") && output.stdout.contains(" free of "), "{output}");
    let words: Vec<String> =
        output.stdout.lines().map(|it| it.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert!(words.iter().any(|words| words == "ok locks hold"), "{output}");
    assert!(output.stdout.contains("BAD  trainer") && output.stdout.contains("/nowhere"), "{output}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let sandbox = Sandbox::new();
    let mut shell = Command::new("sh");
    sandbox.at_home(&mut shell);
    let script = format!("set -e; {{ {} completions bash; echo $? >&2; }} | head -n 1", env!("CARGO_BIN_EXE_flow"));
    let output = Output::of(shell.args(["-c", &script]).output().unwrap());
    assert_eq!(output.stderr, "0\n", "{output}");
}

#[test]
fn combinations_that_are_off_are_listed() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nmatrix = { n = [1, 2, 3] }\nwhen = \"${matrix.n} != 2\"\nrun = \"echo ${matrix.n} > {out}/a\"\n\
         [stage.b]\nkind = \"command\"\nrun = \"echo > {out}/b\"\n",
    );
    let why = "when = \"${matrix.n} != 2\" is false";
    let plan = sandbox.run(&["plan", "p.toml"]);
    let line = plan.stdout.lines().find(|line| line.contains("a[n=2]")).unwrap_or_default();
    assert!(line.contains("off") && line.contains(why), "{plan}");
    assert!(plan.stderr.contains("1 off"), "{plan}");
    let states: Vec<_> = json_lines(&sandbox.ok(&["plan", "p.toml", "--json"]))
        .iter()
        .map(|line| format!("{} {}", line["node"].as_str().unwrap(), line["state"].as_str().unwrap()))
        .collect();
    assert_eq!(states, ["a[n=1] run", "a[n=3] run", "a[n=2] off", "b run"]);
    assert!(!sandbox.ok(&["plan", "p.toml", "b"]).contains("a[n=2]"));
    let said = sandbox.ok(&["why", "p.toml", "a"]);
    assert!(said.contains("a[n=2]\n  off: ") && said.contains(why), "{said}");
    let lines = json_lines(&sandbox.ok(&["why", "p.toml", "a", "--json"]));
    assert!(lines.len() == 3 && lines[2]["state"] == "off", "{lines:?}");
    let said = sandbox.run(&["why", "p.toml", "a[n=2]"]);
    assert!(said.code == Some(2) && said.stderr.contains("`a[n=2]` is off") && said.stderr.contains(why), "{said}");
    // Also by a part of its name, as others are named.
    sandbox.pipeline("[stage.a]\nkind = \"command\"\nmatrix = { n = [1, 2], m = [1, 2] }\nwhen = \"${matrix.n} != 2\"\nrun = \"echo > {out}/x; : ${matrix}\"\n");
    let said = sandbox.run(&["run", "p.toml", "a[n=2]"]);
    assert!(said.code == Some(2) && said.stderr.contains("`a[n=2,m=1]` is off"), "{said}");
}

#[test]
fn a_command_that_keeps_its_environment_gives_the_same_bytes_each_time() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"env > {out}/x\"\n");
    let digest = |args: &[&str]| {
        let events = sandbox.json(args);
        assert_eq!(events.ran(), ["a"]);
        events.digests()["a"].to_owned()
    };
    assert_eq!(digest(&[]), digest(&["--force", "a"]));
}

#[test]
fn an_object_that_is_gone_is_said_once() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"echo 1 > {out}/x\"\n");
    sandbox.ok(&["run", "p.toml"]);
    for shard in fs::read_dir(sandbox.cache().join("objects")).unwrap() {
        fs::remove_dir_all(shard.unwrap().path()).unwrap();
    }
    let run = sandbox.run(&["run", "p.toml"]);
    assert!(run.code == Some(0) && run.stderr.matches("is gone").count() == 1, "{run}");
}

#[test]
fn a_command_may_run_once_for_each_thing_that_enters() {
    let stage = |name: &str, more: &str| format!("[stage.{name}]\nkind = \"command\"\n{more}\n");
    let text = stage("made", "matrix = { n = [1, 2, 3] }\nrun = \"echo ${matrix.n} > {out}/x\"")
        + &stage(
            "one",
            "in = { x = \"made\", y = \"made\" }\neach = \"x\"\nrun = \"cat {in.x}/x; cat {in.x}/x {in.y}/* > {out}/x\"",
        )
        + &stage("all", "in = { x = \"one\" }\nrun = \"cat {in.x}/x > {out}/x\"\nexport = \"all\"");
    let sandbox = Sandbox::with(&text);
    assert_eq!(sandbox.json(&[]).how().len(), 7);
    assert_eq!(sandbox.read("all/x"), "1\n1\n2\n3\n2\n1\n2\n3\n3\n1\n2\n3\n");
    // Each is cached by itself.
    let apart = text.replace(", y = \"made\"", "").replace(" {in.y}/*", "");
    sandbox.pipeline(&apart);
    sandbox.ok(&["run", "p.toml"]);
    sandbox.pipeline(&apart.replace("[1, 2, 3]", "[1, 4, 3]"));
    assert_eq!(sandbox.json(&[]).ran(), ["all", "made[n=4]", "one[n=4]"]);
    assert_eq!(sandbox.read("all/x"), "1\n4\n3\n");
    for (wrong, why) in [
        ("each = \"z\"", "there is no input `z`"),
        ("each = \"x\"\nouts = [\"f\"]", "`one` has `outs` and would run 3 times"),
    ] {
        sandbox.pipeline(&text.replace("each = \"x\"", wrong));
        let check = sandbox.run(&["check", "p.toml"]);
        assert!(check.code == Some(2) && check.stderr.contains(why), "{check}");
    }
}

#[test]
fn settings_are_the_projects_wherever_in_it_one_stands() {
    let sandbox = sandbox();
    sandbox.write("flow.toml", "cache_dir = \"mine\"\n[remote]\nurl = \"team\"\n");
    fs::create_dir_all(sandbox.path("team")).unwrap();
    fs::create_dir_all(sandbox.path("sub/deep")).unwrap();
    let flow = |dir: &str, args: &[&str]| {
        let mut command = sandbox.flow(args);
        let output = Output::of(command.env_remove("FLOW_CACHE_DIR").current_dir(sandbox.path(dir)).output().unwrap());
        assert_eq!(output.code, Some(0), "flow {}\n{output}", args.join(" "));
        output
    };
    flow("", &["run", "p.toml"]);
    for dir in ["", "sub", "sub/deep"] {
        assert_eq!(flow(dir, &["runs"]).stdout.lines().count(), 1, "{dir}");
        assert!(flow(dir, &["show"]).stdout.contains("p.toml"), "{dir}");
        assert!(flow(dir, &["cache", "stats"]).stdout.contains("project/mine"), "{dir}");
        assert!(flow(dir, &["doctor"]).stdout.contains("project/team"), "{dir}");
    }
}

#[test]
fn results_of_what_was_set_are_pinned_as_such() {
    let sandbox = sandbox();
    sandbox.ok(&["run", "p.toml", "--set", "params.word=two"]);
    let none = sandbox.run(&["cache", "pin", "p.toml", "a"]);
    assert_eq!(none.code, Some(1), "{none}");
    sandbox.ok(&["cache", "pin", "p.toml", "a", "b", "--set", "params.word=two"]);
    assert_eq!(sandbox.ok(&["cache", "pin"]).lines().count(), 2);
    sandbox.ok(&["cache", "unpin", "p.toml", "a"]);
    assert_eq!(sandbox.ok(&["cache", "pin"]).lines().count(), 1);
}
