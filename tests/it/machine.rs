//! What a run takes of its machine and what that lacks: GPUs, the worker program, a cache and a stdout that can be written.

use std::{fs, path::Path, process::Stdio};

use crate::support::{Output, Sandbox, copy, until};

#[test]
fn stages_at_once_have_gpus_of_their_own() {
    let mut text = String::new();
    for (i, gpus) in [2, 1, 1].into_iter().enumerate() {
        // Each waits until all three have begun, so that they overlap.
        text += &format!(
            "[stage.s{i}]\nkind = \"command\"\nresources = {{ gpus = {gpus} }}\nenv = {{ OUT = \"{}\" }}\n\
             run = \"echo $CUDA_VISIBLE_DEVICES > $OUT/{i}; while test $(ls $OUT | wc -l) -lt 3; do sleep 0.02; done\"\n",
            "OUTSIDE"
        );
    }
    text += "[stage.none]\nkind = \"command\"\nrun = \"printenv CUDA_VISIBLE_DEVICES > {out}/it || echo unset > {out}/it\"\n";
    for (visible, all) in [(None, ["0", "1", "2", "3"]), (Some("7,GPU-x,3,1"), ["1", "3", "7", "GPU-x"])] {
        let sandbox = Sandbox::new();
        let seen = sandbox.outside("seen");
        fs::create_dir(&seen).unwrap();
        sandbox.pipeline(&text.replace("OUTSIDE", seen.to_str().unwrap()));
        let mut flow = sandbox.flow(&["run", "p.toml", "--jobs", "4"]);
        flow.env("FLOW_GPUS", "4").env("FLOW_CPUS", "4").env_remove("CUDA_VISIBLE_DEVICES");
        if let Some(visible) = visible {
            flow.env("CUDA_VISIBLE_DEVICES", visible);
        }
        let output = Output::of(flow.output().unwrap());
        assert_eq!(output.code, Some(0), "{output}");
        let read = |i: usize| fs::read_to_string(seen.join(i.to_string())).unwrap().trim().to_owned();
        let mut had: Vec<String> =
            (0..3).flat_map(|i| read(i).split(',').map(str::to_owned).collect::<Vec<_>>()).collect();
        had.sort();
        assert_eq!(had, all);
        assert_eq!(read(0).split(',').count(), 2);
        let none = sandbox.ok(&["path", "p.toml", "none"]);
        let none = fs::read_to_string(format!("{}/it", none.trim_end())).unwrap();
        assert_eq!(none.trim_end(), visible.unwrap_or("unset"), "who asks for none is told nothing");
    }
}

#[test]
fn an_unusable_worker_is_said_before_anything_runs() {
    let sandbox = Sandbox::with(
        "[stage.first]\nkind = \"command\"\nrun = \"echo ran >> ../../../../ran; echo '{\\\"text\\\": \\\"x\\\"}' > {out}/d.jsonl\"\n\
         [stage.eval]\nkind = \"eval\"\nmodel = \"model\"\ntasks = [\"perplexity\"]\ndata = \"first\"\n",
    );
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/megatron_ckpt/untied_v512/hf");
    copy(&golden, &sandbox.path("model"));
    let script = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = sandbox.outside(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let about = "{\"version\":\"0.0.9\",\"libtorch\":\"2\",\"protocol\":1}";
    for (worker, why) in [
        ("/nope".to_owned(), "not a file"),
        ("/bin/true".to_owned(), "did not answer with what a worker is"),
        (script("old", &format!("echo '{about}'")), "is version 0.0.9"),
        // What holds its pipes open does not hold us.
        (script("hangs", "setsid sleep 30 & echo nothing"), "did not answer with what a worker is"),
    ] {
        let flow =
            |command: &str| Output::of(sandbox.flow(&[command, "p.toml"]).env("FLOW_TORCH", &worker).output().unwrap());
        let run = flow("run");
        assert_eq!(run.code, Some(2), "{worker}\n{run}");
        assert!(run.stderr.contains("error: ") && run.stderr.contains(why), "{worker}\n{run}");
        assert!(run.stderr.contains("cargo xtask build") && run.stderr.contains("FLOW_TORCH"), "{run}");
        for command in ["plan", "check"] {
            let output = flow(command);
            assert_eq!(output.code, Some(0), "{output}");
            assert!(output.stderr.contains("warning: ") && output.stderr.contains(why), "{output}");
        }
    }
    // One that says nothing is not waited for by who wants to stop.
    let silent = script("silent", &format!("touch {}; exec sleep 1000", sandbox.path("asked").display()));
    let mut flow = sandbox.flow(&["run", "p.toml"]);
    let mut child = flow.env("FLOW_TORCH", silent).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the worker is asked", || sandbox.path("asked").exists());
    // SAFETY: plain system call on a child that has not been waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(sandbox.lines("ran").len(), 0);
    let first = Output::of(sandbox.flow(&["run", "p.toml", "first"]).env("FLOW_TORCH", "/nope").output().unwrap());
    assert_eq!(first.code, Some(0), "nobody asks for the worker: {first}");
}

#[test]
fn a_cache_that_fails_meanwhile_ends_with_3_and_says_what_to_do() {
    let text = "[stage.a]\nkind = \"command\"\nrun = \"echo a > {out}/a\"\n\
                [stage.b]\nkind = \"command\"\nretries = 3\nrun = \"cat {in.a}/a > {out}/b; exit 7\"\nin = { a = \"a\" }\n\
                [stage.c]\nkind = \"command\"\nrun = \"echo c > {out}/c\"\nneeds = [\"b\"]\n";
    let full = |fault: &str| {
        let sandbox = Sandbox::with(text);
        let output =
            Output::of(sandbox.flow(&["run", "p.toml", "--keep-going"]).env("FLOW_FAULT", fault).output().unwrap());
        assert_eq!(output.code, Some(3), "{fault}\n{output}");
        for part in
            ["no space is left for the cache", sandbox.cache().to_str().unwrap(), "flow cache gc", "FLOW_CACHE_DIR"]
        {
            assert!(output.stderr.contains(part), "{fault}: {part}\n{output}");
        }
    };
    full("commit:record=enospc");
    full("hold:note=enospc");
    // The command says that it failed; that the disk is full is found out.
    full("probe=enospc");
    let sandbox = Sandbox::with(text);
    sandbox.ok(&["run", "p.toml", "a"]);
    fs::remove_dir_all(sandbox.cache().join("scratch")).unwrap();
    fs::write(sandbox.cache().join("locks/x"), "").unwrap();
    let spoiled = sandbox.cache().join("scratch");
    std::os::unix::fs::symlink("/proc/nowhere", &spoiled).unwrap();
    let output = sandbox.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(3), "{output}");
    assert!(output.stderr.contains(sandbox.cache().to_str().unwrap()), "{output}");
}

#[test]
fn events_that_cannot_be_written_are_told() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"echo 1 > x\"\nouts = [\"x\"]\n");
    let to = |device: &str, args: &[&str]| {
        let full = fs::OpenOptions::new().write(true).open(device).unwrap();
        Output::of(sandbox.flow(args).stdout(full).output().unwrap())
    };
    let output = to("/dev/full", &["run", "p.toml", "--json"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stderr.contains("cannot write to stdout"), "{output}");
    assert_eq!(sandbox.read("x"), "1\n", "the run matters more");
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!(to("/dev/full", &["run", "p.toml", "--json"]).code, Some(1), "nor are those of a run that does nothing");
    assert_eq!(to("/dev/full", &["plan", "p.toml"]).code, Some(1));
    assert_eq!(to("/dev/null", &["run", "p.toml", "--json"]).code, Some(0));
    // A reader that went away is none to tell.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Output::of(sandbox.flow(&["run", "p.toml", "--json"]).stdout(writer).output().unwrap());
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
}
