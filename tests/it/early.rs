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

#[test]
fn a_file_in_the_place_of_an_output_of_a_profile() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"echo 1 > ${to}\"\nouts = [\"${to}\"]\n\
         [params]\nto = \"x\"\n[profile.over.params]\nto = \"mine.txt\"\n[profile.more.params]\nto = \"mine.txt\"\n",
    );
    sandbox.write("mine.txt", "mine");
    let check = sandbox.run(&["check", "p.toml"]);
    assert_eq!(check.code, Some(2), "{check}");
    assert_eq!(check.stderr.matches("mine.txt is not as flow put it there").count(), 1, "{check}");
    assert!(check.stderr.contains("this is with the profiles `over`, `more`"), "{check}");
    sandbox.ok(&["plan", "p.toml"]);
}

#[test]
fn an_export_to_where_nothing_can_be() {
    let sandbox = Sandbox::new();
    std::os::unix::fs::symlink("nowhere", sandbox.path("dangling")).unwrap();
    std::os::unix::fs::symlink("circle", sandbox.path("circle")).unwrap();
    for (export, parts) in [
        ("dangling", ["`dangling` cannot be exported to", "is a link to nowhere, which is not there"]),
        ("dangling/below", ["`dangling/below` cannot be exported to", "is a link to nowhere, which is not there"]),
        ("circle/below", ["`circle/below` cannot be exported to", "/circle: "]),
        ("/proc/nope", ["`/proc/nope` cannot be exported to", "/proc is the kernel's"]),
    ] {
        sandbox
            .pipeline(&format!("[stage.a]\nkind = \"command\"\nrun = \"echo 1 > {{out}}/x\"\nexport = \"{export}\"\n"));
        let said = all_refuse(&sandbox, &parts);
        assert!(said.contains("--> p.toml:6:10"), "{said}");
    }
    // What is not there yet leads nowhere, and then to what is the user's.
    sandbox.write("v/x", "mine");
    for export in ["sub/../v", "./sub/../../v", "../sub/../v"] {
        sandbox
            .pipeline(&format!("[stage.a]\nkind = \"command\"\nrun = \"echo 1 > {{out}}/x\"\nexport = \"{export}\"\n"));
        let said = all_refuse(&sandbox, &["goes into a directory and out of it again"]);
        assert!(said.contains("--> p.toml:6:10"), "{said}");
    }
    assert_eq!(sandbox.read("v/x"), "mine");
    sandbox.pipeline("[stage.a]\nkind = \"command\"\nrun = \"echo 1 > circle/x\"\nouts = [\"circle/x\"]\n");
    all_refuse(&sandbox, &["`circle/x` cannot be an output", "/circle: "]);
}

#[test]
fn inputs_that_have_no_content() {
    let sandbox = Sandbox::new();
    fs::create_dir_all(sandbox.path("holds/deep")).unwrap();
    fs::create_dir(sandbox.path("round")).unwrap();
    std::os::unix::fs::symlink("../round", sandbox.path("round/again")).unwrap();
    for pipe in ["pipe", "holds/deep/pipe"] {
        assert!(std::process::Command::new("mkfifo").arg(sandbox.path(pipe)).status().unwrap().success());
    }
    for (input, part) in [
        ("pipe", "pipe is a pipe: only files and directories have content"),
        ("holds", "holds/deep/pipe is a pipe"),
        ("round", "round/again leads to a directory that it is in"),
    ] {
        sandbox.pipeline(&format!(
            "[stage.a]\nkind = \"command\"\nrun = \"ls > {{out}}/x\"\nfiles = [\"{input}\"]\n\
             [stage.b]\nkind = \"command\"\nrun = \"ls {{in.x}} > {{out}}/x\"\nin = {{ x = \"{input}\" }}\n"
        ));
        let said = all_refuse(&sandbox, &[part, "cannot read the input"]);
        assert!(said.contains("--> p.toml:6:"), "{said}");
    }
}

#[test]
fn a_line_that_no_shell_takes() {
    let sandbox =
        Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"echo \\u0000 > {out}/x\"\nenv = { A = \"\\u0000\" }\n");
    all_refuse(&sandbox, &["--> p.toml:5:7", "zero character", "--> p.toml:6:13", "no variable holds"]);
    let long = "x".repeat(128 << 10);
    sandbox.pipeline(&format!(
        "[stage.a]\nkind = \"command\"\nrun = \"echo {long} > {{out}}/x\"\n\
         [stage.b]\nkind = \"command\"\nrun = \"echo > {{out}}/x\"\nenv = {{ A = \"{long}\" }}\n"
    ));
    all_refuse(&sandbox, &["too long for a shell's line", "put it in a script", "too long for a variable"]);
}

#[test]
fn a_lock_file_that_is_none() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"fetch\"\nurls = [\"http://127.0.0.1:9/x\"]\n");
    sandbox.write("flow.lock", "this is garbage\n");
    let said = all_refuse(&sandbox, &["flow.lock:1:", "restore flow.lock from version control, or remove it"]);
    assert!(!said.contains("write this"), "{said}");
    fs::remove_file(sandbox.path("flow.lock")).unwrap();
    fs::create_dir(sandbox.path("flow.lock")).unwrap();
    all_refuse(&sandbox, &["cannot read", "flow.lock", "restore flow.lock from version control"]);
}

#[test]
fn a_file_where_an_output_needs_a_folder() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"echo 1 > f/x\"\nouts = [\"f/x\"]\n");
    sandbox.write("f", "mine");
    let said = all_refuse(&sandbox, &["`f` is a file, and `f/x` needs a directory there: move it away"]);
    assert!(!said.contains("--force") && said.contains("--> p.toml:6:9"), "{said}");
    assert_eq!(sandbox.read("f"), "mine");
}

#[test]
fn a_file_that_is_read_and_made() {
    let sandbox =
        Sandbox::with("[stage.b]\nkind = \"command\"\nrun = \"echo 1 > r\"\nfiles = [\"r\"]\nouts = [\"r\"]\n");
    let said = all_refuse(&sandbox, &["`r` is both a file that it reads and an output", "--> p.toml:6:10"]);
    assert!(!said.contains("circle"), "{said}");
}

#[test]
fn a_time_without_end() {
    for time in ["\"99999999999999999999d\"", "1e300"] {
        let sandbox =
            Sandbox::with(&format!("[stage.a]\nkind = \"command\"\nrun = \"echo 1 > {{out}}/x\"\ntimeout = {time}\n"));
        all_refuse(&sandbox, &["--> p.toml:6:11", "a number of seconds above 0"]);
    }
}

#[test]
fn shards_that_export_files_of_one_name() {
    let sandbox = Sandbox::new();
    for dir in ["a", "b"] {
        sandbox.write(&format!("{dir}/x.jsonl.gz"), dir);
    }
    let text = |export: &str| {
        format!(
            "[stage.raw]\nkind = \"fetch\"\nurls = [\"{{a,b}}/x.jsonl.gz\"]\nexport = \"raw\"\n\
             [stage.text]\nkind = \"gunzip\"\ninput = \"raw\"\nexport = \"{export}\"\n"
        )
    };
    sandbox.pipeline(&text("text"));
    let said = all_refuse(
        &sandbox,
        &["`raw[0]` and `raw[1]` would both export `x.jsonl.gz` to `raw`", "`raw[1]` makes it of `b/x.jsonl.gz`"],
    );
    assert!(said.contains("`text[0]` and `text[1]` would both export `x.jsonl` to `text`"), "{said}");
    assert!(said.contains("`text[0]` makes it of the result of `raw[0]`"), "{said}");
    assert!(said.contains("--> p.toml:6:10") && said.contains("--> p.toml:10:10"), "{said}");
    assert!(!sandbox.path("raw").exists() && !sandbox.path("text").exists());
}

#[test]
fn a_first_export_onto_a_file_of_the_users() {
    let sandbox = Sandbox::with(
        "[stage.raw]\nkind = \"fetch\"\nurls = [\"in/x.txt.gz\"]\nexport = \"raw\"\n\
         [stage.text]\nkind = \"gunzip\"\ninput = \"raw\"\nexport = \"text\"\n",
    );
    sandbox.write("in/x.txt.gz", "");
    let gzip = std::process::Command::new("sh")
        .args(["-c", "printf hello | gzip > in/x.txt.gz"])
        .current_dir(sandbox.path(""))
        .status();
    assert!(gzip.unwrap().success());
    sandbox.write("text/x.txt", "mine");
    sandbox.write("raw/x.txt.gz", "mine");
    let said =
        all_refuse(&sandbox, &["raw/x.txt.gz is not as flow put it there", "text/x.txt is not as flow put it there"]);
    assert!(said.contains("--> p.toml:6:10") && said.contains("--> p.toml:10:10"), "{said}");
    assert_eq!((sandbox.read("text/x.txt"), sandbox.read("raw/x.txt.gz")), ("mine".into(), "mine".into()));
    sandbox.ok(&["run", "p.toml", "--force", "raw", "--force", "text"]);
    assert_eq!(sandbox.read("text/x.txt"), "hello");
    // What flow has put there is its own.
    sandbox.ok(&["cache", "gc", "--max-size", "0", "--keep-runs", "0s"]);
    sandbox.ok(&["run", "p.toml"]);
}

#[test]
fn everything_that_is_wrong_is_said_at_once_and_so_is_what_may_surprise() {
    let sandbox = Sandbox::with(
        "[stage.nowhere]\nkind = \"command\"\nrun = \"echo 1 > {out}/x\"\nexport = \"/proc/nope\"\n\
         [stage.lost]\nkind = \"command\"\nrun = \"ls round > {out}/x\"\nfiles = [\"round\"]\n\
         [stage.made]\nkind = \"command\"\nrun = \"echo 1 > made\"\nouts = [\"made\"]\n\
         [stage.big]\nkind = \"command\"\nrun = \"true\"\nresources = { gpus = 4000 }\n",
    );
    sandbox.write("made", "mine");
    fs::create_dir(sandbox.path("round")).unwrap();
    std::os::unix::fs::symlink("../round", sandbox.path("round/again")).unwrap();
    let check = sandbox.run(&["check", "p.toml"]);
    assert_eq!(check.code, Some(2), "{check}");
    for part in [
        "`/proc/nope` cannot be exported to",
        "round/again leads",
        "made is not as flow put it there",
        "takes 4000 GPUs",
    ] {
        assert!(check.stderr.contains(part), "{part}\n{check}");
    }
    assert_eq!(check.stderr.matches("/proc/nope").count(), 2, "the line and the error, once\n{check}");
}
