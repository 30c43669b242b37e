//! What is told of runs that were and of runs that go on, from another terminal.

use std::fs;

use crate::support::{Output, Sandbox, until};

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

fn json_lines(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// raw (a node a file) → gen → train, a file of its own into the last.
fn chain() -> Sandbox {
    let sandbox = Sandbox::with(
        "[params]\nlr = 1\n\
         [stage.raw]\nkind = \"fetch\"\nurls = [\"d/{0..2}.txt\"]\n\
         [stage.gen]\nkind = \"command\"\nin = { r = \"raw\" }\n\
         run = \"for i in {in.r}; do cat $i/*; done > {out}/x; echo ${lr} >> {out}/x\"\n\
         [stage.train]\nkind = \"command\"\nin = { x = \"gen\" }\nfiles = [\"y.txt\"]\n\
         run = \"cat {in.x}/x y.txt > {out}/y\"\n",
    );
    for i in 0..3 {
        sandbox.write(&format!("d/{i}.txt"), &format!("{i}\n"));
    }
    sandbox.write("y.txt", "y\n");
    sandbox
}

#[test]
fn why_follows_a_change_to_the_file_or_parameter_that_it_comes_from() {
    let sandbox = chain();
    sandbox.ok(&["run", "p.toml"]);
    sandbox.write("d/1.txt", "changed\n");
    sandbox.write("y.txt", "changed\n");
    // Before: the key of the last is not known yet, what it waits for and why is.
    let text = sandbox.ok(&["why", "p.toml", "train"]);
    for said in ["its key is known when", "raw[1] would run", "`d/1.txt` changed"] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(!text.contains("raw[0]"), "{text}");
    let text = sandbox.ok(&["why", "p.toml", "train", "--set", "params.lr=2", "--run", "last"]);
    assert!(text.contains("raw[1] would run"), "{text}");
    sandbox.write("d/1.txt", "1\n");
    let text = sandbox.ok(&["why", "p.toml", "train", "--set", "params.lr=2"]);
    assert!(text.contains("gen would run") && text.contains("echo 1 >>") && text.contains("echo 2 >>"), "{text}");
    // After, against the run before.
    sandbox.write("d/1.txt", "changed\n");
    sandbox.ok(&["run", "p.toml"]);
    let text = sandbox.ok(&["why", "p.toml", "train", "--run", "last-1"]);
    let lines: Vec<&str> = text.lines().collect();
    let line =
        |what: &str| lines.iter().position(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {text}"));
    assert!(lines[line("input files: ")].contains("`y.txt` changed"), "{text}");
    assert!(line("the result of gen") < line("the result of raw[1]"), "{text}");
    assert!(line("the result of raw[1]") < line("`d/1.txt` changed"), "{text}");
    // What it was made of, for scripts.
    let why = &json_lines(&sandbox.ok(&["why", "p.toml", "train", "--run", "last-1", "--json"]))[0];
    let change = why["changes"].as_array().unwrap().iter().find(|change| change["what"] == "input in.x").unwrap();
    let up = &change["cause"]["changes"][0]["cause"];
    assert_eq!((&up["node"], &up["changes"][0]["cause"]["path"]), (&"raw[1]".into(), &"d/1.txt".into()), "{why}");
    // Many shards that are as they were share a line.
    let text = sandbox.ok(&["why", "p.toml", "raw"]);
    assert!(text.starts_with("raw[0] to raw[2]\n  3 cached"), "{text}");
    let output = sandbox.run(&["why", "p.toml", "train", "--run", "nope"]);
    assert!(output.code == Some(2) && output.stderr.contains("there is no run `nope`"), "{output}");
}

#[test]
fn a_stage_that_gives_other_bytes_under_its_old_key_is_told_so() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"date +%N > {out}/x\"\n\
         [stage.b]\nkind = \"command\"\nrun = \"cat {in.x}/x > {out}/y\"\nin = { x = \"a\" }\n",
    );
    sandbox.ok(&["run", "p.toml"]);
    sandbox.ok(&["run", "p.toml", "--force", "a"]);
    let text = sandbox.ok(&["why", "p.toml", "b", "--run", "last-1"]);
    assert!(text.contains("the result of a: it ran again, and gave other bytes under the same key"), "{text}");
}

#[test]
fn a_plan_knows_times_downloads_and_what_was_left() {
    let sandbox = chain();
    let plan = |args: &[&str]| {
        let args: Vec<&str> = ["plan", "p.toml", "--json"].into_iter().chain(args.iter().copied()).collect();
        json_lines(&sandbox.ok(&args))
    };
    assert!(plan(&[]).iter().all(|line| line["expected"].is_null()), "nothing ran before");
    sandbox.ok(&["run", "p.toml"]);
    sandbox.ok(&["run", "p.toml", "--set", "params.lr=2"]);
    let lines = plan(&["--set", "params.lr=3"]);
    let gen_line = lines.iter().find(|line| line["node"] == "gen").unwrap();
    assert_eq!((&gen_line["state"], &gen_line["expected_of"]), (&"run".into(), &2.into()), "{gen_line}");
    assert!(gen_line["expected"].as_f64().unwrap() > 0.0);
    let output = sandbox.run(&["plan", "p.toml", "--set", "params.lr=3"]);
    assert!(output.stdout.contains("(of 2 runs)") && output.stderr.contains(" of work"), "{output}");
    // A shard that is new is expected to take what the others took.
    sandbox.write("d/1.txt", "changed\n");
    let raw = plan(&[]).into_iter().find(|line| line["node"] == "raw[1]").unwrap();
    assert_eq!((&raw["state"], raw["expected_of"].as_u64() >= Some(1)), (&"run".into(), true), "{raw}");
}

#[test]
fn what_two_runs_differ_in_stands_side_by_side() {
    let sandbox = chain();
    sandbox.ok(&["run", "p.toml"]);
    let output = sandbox.run(&["diff", "last", "last"]);
    assert!(output.code == Some(0) && output.stderr.contains("nothing differs"), "{output}");
    sandbox.write("y.txt", "changed\n");
    sandbox.ok(&["run", "p.toml", "--set", "params.lr=2"]);
    let text = sandbox.ok(&["diff"]);
    let row = |what: &str| text.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {text}"));
    assert!(row("set").ends_with("params.lr=2"), "{text}");
    assert!(row("params.run").starts_with("gen ") && row("input files").starts_with("train "), "{text}");
    assert!(row("how").starts_with("raw x3") && row("how").contains("cached"), "{text}");
    assert!(!text.contains("machine"), "{text}");
    assert!(sandbox.ok(&["diff", "--all"]).contains("machine"));
    let lines = json_lines(&sandbox.ok(&["diff", "last-1", "last", "--json"]));
    let change = lines.iter().find(|line| line["what"] == "params.run").unwrap();
    assert!(change["from"].as_str().unwrap().contains("echo 1 >>"), "{change}");
    assert!(change["to"].as_str().unwrap().contains("echo 2 >>"), "{change}");
    assert_eq!(sandbox.run(&["diff", "last-7"]).code, Some(2));
}

#[test]
fn a_stage_of_a_run_is_shown_with_all_that_is_known_of_it() {
    let sandbox = chain();
    sandbox.ok(&["run", "p.toml"]);
    let text = sandbox.ok(&["show", "last", "gen"]);
    for said in ["ran in ", "kind command version ", "run = ", "input in.r: ", "    x  "] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(sandbox.ok(&["show"]).contains(" cores, "), "{text}");
    let output = sandbox.run(&["show", "last", "gne"]);
    assert!(output.code == Some(2) && output.stderr.contains("did you mean `gen`?"), "{output}");
    // A failure is told with its causes and its log, also of a run that is long over.
    let failed = sandbox.run(&["run", "p.toml", "--set", "stage.train.run=echo oops; exit 4"]);
    assert_eq!(failed.code, Some(1), "{failed}");
    sandbox.ok(&["run", "p.toml"]);
    let text = sandbox.ok(&["show", "last-1"]);
    assert!(text.contains("train failed") && text.contains("exit status 4") && text.contains("oops"), "{text}");
    assert!(text.contains("set       stage.train.run=echo oops; exit 4"), "{text}");
}

#[test]
fn a_followed_log_ends_with_its_stage_and_not_with_the_run() {
    let sandbox = Sandbox::new();
    let go = sandbox.outside("go");
    sandbox.pipeline(&format!(
        "[stage.a]\nkind = \"command\"\nrun = \"echo first; while ! test -e {}; do sleep 0.05; done; echo second\"\n\
         [stage.b]\nkind = \"command\"\nrun = \"sleep 1000\"\nneeds = [\"a\"]\n",
        go.display()
    ));
    let run = sandbox.start(&["run", "p.toml"]);
    until("the log begins", || sandbox.run(&["log", "a"]).stdout == "first\n");
    let status = sandbox.run(&["status"]);
    assert!(status.stderr.trim_end().ends_with("running · 1 node to go"), "{status}");
    assert!(sandbox.ok(&["show"]).contains("1 node to go\n"));
    let follow = sandbox.start(&["log", "a", "-f"]);
    fs::write(go, "").unwrap();
    let followed = follow.end();
    assert_eq!((followed.code, followed.stdout.as_str()), (Some(0), "first\nsecond\n"), "{followed}");
    assert!(sandbox.ok(&["runs"]).contains(" running "));
    drop(run);
}

#[test]
fn a_matrix_has_a_log_a_combination() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nmatrix = { s = [1, 2] }\nrun = \"echo line ${matrix.s}; echo > {out}/r\"\n",
    );
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!(sandbox.ok(&["log", "a"]), "==> a[s=1] <==\nline 1\n==> a[s=2] <==\nline 2\n");
    assert_eq!(sandbox.ok(&["log", "a[s=2]"]), "line 2\n");
}

#[test]
fn the_files_are_the_truth_of_history() {
    let sandbox = chain();
    sandbox.ok(&["run", "p.toml"]);
    let told = || ["runs", "status", "show"].map(|command| sandbox.ok(&[command]));
    let before = told();
    // Whatever is kept beside the files of the runs is lost, and the directory may only be read.
    fs::remove_dir_all(sandbox.cache().join("state")).unwrap();
    fs::create_dir(sandbox.cache().join("runs/not-a-run")).unwrap();
    fs::write(sandbox.cache().join("runs/neither"), "x").unwrap();
    assert_eq!(told(), before);
}

#[test]
fn a_run_in_which_a_stage_was_off_hides_none_before_it() {
    let sandbox = Sandbox::with(
        "[params]\non = true\nn = 1\n[stage.a]\nkind = \"command\"\nwhen = \"${on}\"\nrun = \"echo ${n} > {out}/x\"\n\
         [stage.new]\nkind = \"command\"\nwhen = \"${n} > 2\"\nrun = \"echo > {out}/x\"\n",
    );
    sandbox.ok(&["run", "p.toml"]);
    sandbox.ok(&["run", "p.toml", "--set", "params.on=false"]);
    let why = sandbox.ok(&["why", "p.toml", "a", "--set", "params.n=2"]);
    assert!(why.contains("echo 1") && why.contains("echo 2") && !why.contains("000000"), "{why}");
    let plan = sandbox.ok(&["plan", "p.toml", "--set", "params.n=3"]);
    assert!(plan.contains("never ran before") && plan.contains("echo 1"), "{plan}");
}

#[test]
fn variables_are_part_of_what_a_run_is_and_of_how_it_is_repeated() {
    let sandbox = Sandbox::with(
        "[params]\nn = 1\n[stage.a]\nkind = \"command\"\nrun = \"test ${n} != 8 && echo ${n} > {out}/x\"\n",
    );
    sandbox.ok(&["run", "p.toml"]);
    let with = |n: &str| Output::of(sandbox.flow(&["run", "p.toml"]).env("FLOW_PARAM_N", n).output().unwrap());
    let failed = with("8");
    assert!(failed.stderr.contains("FLOW_PARAM_N=8 flow run p.toml --only a"), "{failed}");
    assert_eq!(with("9").code, Some(0));
    let diff = sandbox.ok(&["diff", "last-2", "last"]);
    assert!(diff.contains("FLOW_PARAM_N=9"), "{diff}");
    assert_eq!(with("9").code, Some(0));
    assert!(sandbox.ok(&["show"]).contains("FLOW_PARAM_N=9"), "also of a run in which nothing was to do");
}

#[test]
fn what_a_command_measures_is_compared() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nfiles = [\"m\"]\nrun = \"cp m {out}/metrics.jsonl\"\n");
    let measured = |loss: &str| format!("{{\"step\": 1, \"loss\": 9}}\n{{\"step\": 2, \"loss\": {loss}}}\n");
    sandbox.write("m", &measured("1.5"));
    sandbox.ok(&["run", "p.toml"]);
    assert!(sandbox.ok(&["show"]).contains("step 2 · loss 1.5"));
    sandbox.write("m", &measured("2.5"));
    sandbox.ok(&["run", "p.toml"]);
    let diff = sandbox.ok(&["diff", "last-1", "last"]);
    let row = diff.lines().find(|line| line.split_whitespace().nth(1) == Some("loss")).unwrap_or_default();
    assert!(row.contains("1.5") && row.contains("2.5"), "{diff}");
}
