//! What a run would refuse, or meet with surprise, is said by `flow check` and `flow plan` too, before anything runs.

use std::fs;

use crate::support::{Output, Sandbox};

/// `check`, `plan` and `run` say the same, and refuse.
#[track_caller]
fn all_refuse(sandbox: &Sandbox, parts: &[&str]) -> String {
    let [check, plan, run] = ["check", "plan", "run"].map(|command| sandbox.run(&[command, "p.toml"]));
    for output in [&check, &plan, &run] {
        assert_eq!(output.code, Some(2), "{output}");
        assert_eq!(output.stderr, run.stderr);
    }
    for part in parts {
        assert!(run.stderr.contains(part), "{part}\n{run}");
    }
    run.stderr
}

/// `check` and `plan` go well, and say this.
#[track_caller]
fn both_warn(sandbox: &Sandbox, parts: &[&str]) {
    for output in ["check", "plan"].map(|command| sandbox.run(&[command, "p.toml"])) {
        assert_eq!(output.code, Some(0), "{output}");
        for part in parts {
            assert!(output.stderr.contains(part), "{part}\n{output}");
        }
    }
}

fn quiet(output: &Output) -> bool {
    !output.stderr.contains("warning")
}

#[test]
fn a_file_in_the_place_of_an_output() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"cat in > made/x\"\nfiles = [\"in\"]\nouts = [\"made/x\"]\n\
         [stage.b]\nkind = \"command\"\nrun = \"cat {in.x} > made/y/z; echo > made/u\"\nin = { x = \"made/x\" }\nouts = [\"made/u\", \"made/y\"]\n",
    );
    sandbox.write("in", "1");
    sandbox.write("made/x", "mine");
    sandbox.write("made/y", "mine too");
    let said = all_refuse(&sandbox, &["made/x is not as flow put it there", "made/y is not", "--force b"]);
    assert!(said.contains("--> p.toml:7:9") && said.contains("--> p.toml:12:19"), "{said}");
    assert!(!sandbox.path(".flow").exists(), "who looks leaves nothing behind");
    fs::remove_file(sandbox.path("made/x")).unwrap();
    fs::remove_file(sandbox.path("made/y")).unwrap();
    sandbox.ok(&["run", "p.toml", "a"]);
    for command in ["check", "plan"] {
        assert!(quiet(&sandbox.run(&[command, "p.toml"])));
    }
    // A result that is there and whose file was edited.
    sandbox.write("made/x", "edited");
    all_refuse(&sandbox, &["made/x is not as flow put it there"]);
    // Of a fresh clone, whose owner keeps the result in the repository: it is right, whoever put it there.
    sandbox.write("made/x", "1");
    fs::remove_dir_all(sandbox.path(".flow")).unwrap();
    for command in ["check", "plan"] {
        assert!(quiet(&sandbox.run(&[command, "p.toml"])));
    }
    sandbox.write("made/x", "mine");
    let forced = sandbox.run(&["plan", "p.toml", "--force", "a"]);
    assert_eq!(forced.code, Some(0), "{forced}");
}

#[test]
fn a_folder_that_an_export_shares() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"echo 1 > {out}/x\"\nexport = \"results\"\n\
         [stage.b]\nkind = \"command\"\nrun = \"echo 1 > {out}/x\"\nexport = \"file\"\n",
    );
    sandbox.write("file", "mine");
    sandbox.write("results/notes", "mine");
    let said = all_refuse(&sandbox, &["`file` cannot be exported to", "is a file"]);
    assert!(said.contains("--> p.toml:10:10"), "at the export itself\n{said}");
    sandbox.pipeline("[stage.a]\nkind = \"command\"\nrun = \"echo 1 > {out}/x\"\nexport = \"results\"\n");
    both_warn(&sandbox, &["`a` exports to `results`, which holds a file that flow did not put there", "p.toml:6:10"]);
    let run = sandbox.run(&["run", "p.toml"]);
    assert!(run.code == Some(0) && run.stderr.contains("that flow did not put there"), "{run}");
    assert_eq!((sandbox.read("results/notes"), sandbox.read("results/x")), ("mine".into(), "1\n".into()));
    // Once the result is there, its names are known: nothing is left to warn of.
    for command in ["check", "plan"] {
        assert!(quiet(&sandbox.run(&[command, "p.toml"])));
    }
    // A clash of names that are known is refused before anything runs.
    fs::remove_dir_all(sandbox.path(".flow")).unwrap();
    sandbox.write("results/x", "mine");
    all_refuse(&sandbox, &["results/x is not as flow put it there"]);
    assert_eq!(sandbox.read("results/x"), "mine");
}

#[test]
fn what_a_run_puts_somewhere_is_no_input_from_there() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"echo 1 > {out}/x\"\nexport = \"results/a\"\n\
         [stage.b]\nkind = \"command\"\nrun = \"ls {in.all} {in.one} {in.same} > {out}/l\"\nin = { all = \"results\", one = \"results/a/x\", same = \"./results/a\" }\n",
    );
    fs::create_dir(sandbox.path("results")).unwrap();
    let said = all_refuse(
        &sandbox,
        &[
            "`results` holds `results/a`, the export of stage `a`",
            "`results/a/x` is in `results/a`, the export of stage `a`",
            "`./results/a` is the export of stage `a`",
            "name the stage `a` as the input",
        ],
    );
    assert!(said.contains("--> p.toml:10:14"), "{said}");
}

#[test]
fn a_place_at_home() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"cat {in.x} > {out}/x\"\nin = { x = \"~/x\" }\nexport = \"~/results\"\n",
    );
    fs::write(sandbox.outside("home/x"), "from home").unwrap();
    sandbox.ok(&["check", "p.toml"]);
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!(fs::read_to_string(sandbox.outside("home/results/x")).unwrap(), "from home");
    assert!(!sandbox.path("~").exists());
    let output = Output::of(sandbox.flow(&["check", "p.toml"]).env_remove("HOME").output().unwrap());
    assert!(output.code == Some(2) && output.stderr.contains("nobody says what `~` is"), "{output}");
    sandbox.pipeline("[stage.a]\nkind = \"command\"\nrun = \"echo > {out}/x\"\nexport = \"~nobody/results\"\n");
    let said = all_refuse(&sandbox, &["`~nobody/results` cannot be exported to"]);
    assert!(said.contains("--> p.toml:6:10"), "{said}");
}

#[test]
fn what_this_machine_lacks() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"echo > {out}/x\"\nresources = { gpus = 99, memory = \"1KiB\" }\n",
    );
    both_warn(&sandbox, &["stage `a` takes 99 GPUs, and there are", "--> p.toml:6:22", "FLOW_GPUS"]);
    let run = sandbox.run(&["run", "p.toml"]);
    assert!(run.code == Some(2) && run.stderr.contains("error: stage `a` takes 99 GPUs"), "{run}");
}

#[test]
fn settings_that_cannot_be_read() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"echo > {out}/x\"\n");
    sandbox.write("flow.toml", "jobs = \"many\"\ncache = 1\n");
    all_refuse(&sandbox, &["`jobs`: expected an integer", "flow.toml:1:8", "unknown key `cache`", "flow.toml:2:1"]);
    let doctor = sandbox.run(&["doctor"]);
    assert_eq!(doctor.code, Some(2), "{doctor}");
}
