//! Results outside of the cache: what flow may overwrite and what it may not, whatever happens in between.

use std::{fs, path::Path};

use crate::support::{Output, Sandbox, until};

/// One stage that makes `made/x` out of `in`, and fails when `in` says so.
const ONE: &str = "[stage.a]\nkind = \"command\"\nrun = \"cat in > made/x; ! grep -q fail in\"\nfiles = [\"in\"]\nouts = [\"made/x\"]\n";

fn one() -> Sandbox {
    let sandbox = Sandbox::with(ONE);
    sandbox.write("in", "1");
    sandbox
}

#[track_caller]
fn refused(output: &Output, paths: &[&str]) {
    assert_eq!(output.code, Some(2), "{output}");
    for path in paths {
        assert!(output.stderr.contains(&format!("{path} is not as flow put it there")), "{path}\n{output}");
    }
    assert!(output.stderr.contains("--force"), "{output}");
}

/// Everything below a directory that flow hides there.
fn hidden(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".flow-")).collect()
}

#[test]
fn a_file_of_the_users_is_never_overwritten_unasked() {
    let sandbox = one();
    sandbox.write("made/x", "mine");
    // Before the first run, and nothing runs.
    refused(&sandbox.run(&["run", "p.toml"]), &["made/x"]);
    assert_eq!(sandbox.read("made/x"), "mine");
    sandbox.ok(&["run", "p.toml", "--force", "a"]);
    assert_eq!(sandbox.read("made/x"), "1");
    // An edit of what flow made, on a hit.
    sandbox.write("made/x", "edited");
    refused(&sandbox.run(&["run", "p.toml"]), &["made/x"]);
    assert_eq!(sandbox.read("made/x"), "edited");
    // And when it would be made anew.
    sandbox.write("in", "2");
    refused(&sandbox.run(&["run", "p.toml"]), &["made/x"]);
    assert_eq!(sandbox.read("made/x"), "edited");
    // Without the edit nobody is asked: it is flow's.
    sandbox.write("made/x", "1");
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!(sandbox.read("made/x"), "2");
}

#[test]
fn all_files_in_the_way_are_said_at_once_and_first() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"echo a > made/a; echo ran >> ../ran\"\nouts = [\"made/a\"]\n\
         [stage.b]\nkind = \"command\"\nrun = \"cat {in.a} > made/b\"\nin = { a = \"made/a\" }\nouts = [\"made/b\"]\n\
         [stage.c]\nkind = \"command\"\nrun = \"echo c > made/c\"\nouts = [\"made/c\"]\n",
    );
    sandbox.ok(&["run", "p.toml", "c"]);
    for name in ["a", "b", "c"] {
        sandbox.write(&format!("made/{name}"), "mine");
    }
    let output = sandbox.run(&["run", "p.toml"]);
    refused(&output, &["made/a", "made/b", "made/c"]);
    assert_eq!(sandbox.lines("ran").len(), 0, "nothing ran");
    for name in ["a", "b", "c"] {
        assert_eq!(sandbox.read(&format!("made/{name}")), "mine");
    }
}

#[test]
fn what_is_right_already_becomes_flows() {
    let sandbox = one();
    sandbox.ok(&["run", "p.toml"]);
    // As in a fresh clone whose owner keeps the file in the repository: nothing is noted, the content is right.
    fs::remove_dir_all(sandbox.path(".flow")).unwrap();
    assert_eq!(sandbox.json(&[]).ran(), [""; 0]);
    // A stranger's file is not flow's because the cache happens to know its bytes.
    sandbox.pipeline(&ONE.replace("made/x", "made/y"));
    sandbox.write("made/y", "1");
    sandbox.write("in", "2");
    refused(&sandbox.run(&["run", "p.toml"]), &["made/y"]);
    sandbox.pipeline(ONE);
    sandbox.write("in", "1");
    // From now on it is known, also when the cache forgets.
    sandbox.ok(&["cache", "gc", "--max-size", "0", "--keep-runs", "0d"]);
    sandbox.write("in", "2");
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!(sandbox.read("made/x"), "2");
    // Another cache does not make it a stranger.
    sandbox.write("in", "3");
    let elsewhere = sandbox.outside("other cache");
    assert!(sandbox.flow(&["run", "p.toml"]).env("FLOW_CACHE_DIR", elsewhere).status().unwrap().success());
    assert_eq!(sandbox.read("made/x"), "3");
}

#[test]
fn a_command_that_fails_leaves_what_was_there() {
    let sandbox = one();
    sandbox.ok(&["run", "p.toml"]);
    sandbox.write("in", "fail");
    assert_eq!(sandbox.run(&["run", "p.toml"]).code, Some(1));
    assert_eq!(sandbox.read("made/x"), "1");
    assert_eq!(hidden(&sandbox.path("made")), [""; 0]);
    // Also a file of the user's that they allowed to go.
    sandbox.write("made/x", "mine");
    assert_eq!(sandbox.run(&["run", "p.toml", "--force", "a"]).code, Some(1));
    assert_eq!(sandbox.read("made/x"), "mine");
    fs::remove_file(sandbox.path("made/x")).unwrap();
    assert_eq!(sandbox.run(&["run", "p.toml"]).code, Some(1));
    assert!(!sandbox.path("made/x").exists(), "half of a result is none");
    sandbox.write("in", "2");
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!(sandbox.read("made/x"), "2");
}

#[test]
fn killed_while_it_makes_an_out_the_next_run_puts_back_or_goes_on() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"cat in > made/x; while test -e ../wait; do echo > ../waits; sleep 0.05; done; ! grep -q fail in\"\n\
         files = [\"in\"]\nouts = [\"made/x\"]\n",
    );
    sandbox.write("in", "1");
    sandbox.ok(&["run", "p.toml"]);
    let kill = |text: &str| {
        sandbox.write("in", text);
        fs::write(sandbox.outside("wait"), "").unwrap();
        let _ = fs::remove_file(sandbox.outside("waits"));
        let run = sandbox.start(&["run", "p.toml"]);
        until("the command waits", || sandbox.outside("waits").exists());
        run.signal(libc::SIGKILL);
        drop(run);
        fs::remove_file(sandbox.outside("wait")).unwrap();
        assert_eq!(sandbox.read("made/x"), text);
    };
    // Killed, and then it fails: the old one is back.
    kill("fail");
    assert_eq!(sandbox.run(&["run", "p.toml"]).code, Some(1));
    assert_eq!(sandbox.read("made/x"), "1");
    // Killed, and then the input is what it was: a hit puts it back. What was left is kept.
    kill("2");
    sandbox.write("in", "1");
    let output = sandbox.run(&["run", "p.toml"]);
    assert_eq!((output.code, sandbox.read("made/x").as_str()), (Some(0), "1"), "{output}");
    assert!(output.stderr.contains("flow was killed while"), "{output}");
    let left = hidden(&sandbox.path("made"));
    assert_eq!(left.len(), 1);
    assert_eq!(sandbox.read(&format!("made/{}", left[0])), "2");
    // Killed, and then it goes on.
    kill("3");
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!(sandbox.read("made/x"), "3");
    assert_eq!(hidden(&sandbox.path("made")).len(), 1);
}

#[test]
fn two_flows_that_make_one_out_take_turns() {
    let sandbox = Sandbox::with(
        "[params]\nword = \"\"\n[stage.a]\nkind = \"command\"\n\
         run = \"for i in 1 2 3 4 5; do echo ${word} >> made/x; sleep 0.02; done\"\nouts = [\"made/x\"]\n",
    );
    let words = ["one", "two", "three"];
    let set = |word: &str| format!("params.word={word}");
    let runs: Vec<_> = words.iter().map(|word| sandbox.start(&["run", "p.toml", "--set", &set(word)])).collect();
    for run in runs {
        let output = run.end();
        assert_eq!(output.code, Some(0), "{output}");
    }
    for word in words {
        let events = sandbox.json(&["--set", &set(word)]);
        assert_eq!(events.ran(), [""; 0]);
        assert_eq!(sandbox.read("made/x"), format!("{word}\n").repeat(5));
    }
    assert_eq!(hidden(&sandbox.path("made")), [""; 0]);
}

#[test]
fn an_out_may_be_a_directory() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"mkdir -p made/d/e; for i in $(cat in); do echo $i > made/d/e/$i; done; echo top > made/d/top\"\n\
         files = [\"in\"]\nouts = [\"made/d/\"]\n\
         [stage.one]\nkind = \"command\"\nrun = \"cat {in.x} > {out}/it\"\nin = { x = \"made/d/e/1\" }\n\
         [stage.all]\nkind = \"command\"\nrun = \"ls made/d/e > {out}/list\"\nfiles = [\"made/d\"]\n",
    );
    sandbox.write("in", "1 2 3");
    assert_eq!(sandbox.json(&[]).ran(), ["a", "all", "one"]);
    assert_eq!(sandbox.json(&[]).ran(), [""; 0]);
    let all = || {
        let path = sandbox.ok(&["path", "p.toml", "all"]);
        fs::read_to_string(format!("{}/list", path.trim_end())).unwrap()
    };
    assert_eq!(all(), "1\n2\n3\n");
    // Less than before: what was flow's is gone, and who reads one file of it that is the same does not run.
    sandbox.write("in", "1 2");
    assert_eq!(sandbox.json(&[]).ran(), ["a", "all"]);
    assert_eq!(all(), "1\n2\n");
    assert!(!sandbox.path("made/d/e/3").exists());
    // Another result from the cache: what it lacks goes, what it has comes, and a file of the user's stays.
    sandbox.write("made/d/e/mine", "mine");
    sandbox.write("in", "1 2 3");
    assert_eq!(sandbox.json(&[]).ran(), [""; 0]);
    assert_eq!(sandbox.read("made/d/e/3"), "3\n");
    sandbox.write("in", "1 2");
    assert_eq!(sandbox.json(&[]).ran(), [""; 0]);
    assert!(!sandbox.path("made/d/e/3").exists());
    assert_eq!(sandbox.read("made/d/e/mine"), "mine");
    // But it is in the way when the command makes the directory anew.
    sandbox.write("in", "4");
    refused(&sandbox.run(&["run", "p.toml"]), &["made/d/e/mine"]);
    fs::remove_file(sandbox.path("made/d/e/mine")).unwrap();
    assert_eq!(sandbox.run(&["run", "p.toml"]).code, Some(1), "`one` wants made/d/e/1");
    fs::remove_dir_all(sandbox.path("made")).unwrap();
    sandbox.write("in", "1 2");
    assert_eq!(sandbox.json(&[]).ran(), [""; 0]);
    assert_eq!((sandbox.read("made/d/e/2"), sandbox.read("made/d/top")), ("2\n".into(), "top\n".into()));
}

#[test]
fn an_empty_directory_is_no_result() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"mkdir -p made\"\nouts = [\"made\"]\n");
    let output = sandbox.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stderr.contains("left the directory `made` of `outs` empty"), "{output}");
}

#[test]
fn places_that_cannot_be_are_said_before_anything_runs() {
    let sandbox = Sandbox::new();
    std::os::unix::fs::symlink(sandbox.outside(""), sandbox.path("link")).unwrap();
    fs::create_dir(sandbox.path("dir")).unwrap();
    std::os::unix::fs::symlink("dir", sandbox.path("alias")).unwrap();
    sandbox.write("plain", "");
    sandbox.write("more.toml", "[stage.more]\nkind = \"command\"\nrun = \"true\"\n");
    sandbox.write("flow.toml", "");
    let check = |stages: &[&str]| {
        let head = "include = [\"more.toml\"]\n[pipeline]\nname = \"p\"\n".to_owned();
        let stage = |(i, text): (usize, &&str)| format!("[stage.s{i}]\nkind = \"command\"\nrun = \"true\"\n{text}\n");
        sandbox.write("p.toml", &(head + &stages.iter().enumerate().map(stage).collect::<String>()));
        let output = sandbox.run(&["check", "p.toml"]);
        assert_eq!(sandbox.run(&["run", "p.toml"]).code, output.code);
        output
    };
    for (text, why) in [
        ("outs = [\"p.toml\"]", "is what the pipeline is read from"),
        ("outs = [\"more.toml\"]", "is what the pipeline is read from"),
        ("outs = [\"flow.lock\"]", "flow.lock"),
        ("outs = [\"flow.toml\"]", "flow.toml"),
        ("outs = [\".flow/x\"]", ".flow is flow's own"),
        ("outs = [\"../x\"]", "inside the project's folder"),
        ("outs = [\"/tmp/x\"]", "inside the project's folder"),
        ("outs = [\"link/x\"]", "leads out of the project's folder"),
        ("outs = [\"x\", \"./x\"]", "`x` is an output of `s0` and of `s0`"),
        ("outs = [\"x\", \"x/y\"]", "`x/y` of `s0` is inside of `x`"),
        ("outs = [\"x\"]\nexport = \"x\"", "`x` is an output of `s0` and the export of `s0`"),
        ("outs = [\"x/y\"]\nexport = \"x\"", "is inside of `x`, the export of `s0`"),
        ("outs = [\"x\"]\nfiles = [\"x\"]", "`x` is both a file that it reads and an output"),
        ("outs = [\"x\"]\nfiles = [\"x/y\"]", "`x/y` is both a file that it reads and an output"),
        ("export = \"\"", "`export` is empty"),
        ("export = \".\"", "it is the project's folder"),
        ("export = \"..\"", "the project's folder is inside of it"),
        ("export = \"plain\"", "plain is a file"),
        ("export = \"plain/x\"", "plain is a file"),
        ("export = \".flow\"", ".flow is flow's own"),
    ] {
        let output = check(&[text]);
        assert_eq!(output.code, Some(2), "{text}\n{output}");
        assert!(output.stderr.contains(why), "{text}\n{output}");
    }
    for (texts, why) in [
        (["outs = [\"x\"]", "outs = [\"x\"]"], "`x` is an output of `s0` and of `s1`"),
        (["outs = [\"dir/x\"]", "outs = [\"alias/x\"]"], "is an output of `s0` and of `s1`"),
        (["export = \"r\"", "export = \"./r/.\""], "the export of `s0` and the export of `s1`"),
        (["export = \"r\"", "export = \"r/deep/er\""], "is inside of `r`, the export of `s0`"),
        (["export = \"r/deep\"", "export = \"r\""], "`r/deep` of `s0` is inside of `r`, the export of `s1`"),
    ] {
        let output = check(&texts);
        assert_eq!(output.code, Some(2), "{texts:?}\n{output}");
        assert!(output.stderr.contains(why), "{texts:?}\n{output}");
    }
    for text in ["export = \"../r\"", "export = \"dir\"", "outs = [\"a/x\", \"ab\"]"] {
        let output = sandbox_check(&sandbox, text);
        assert_eq!(output.code, Some(0), "{text}\n{output}");
    }
}

fn sandbox_check(sandbox: &Sandbox, text: &str) -> Output {
    sandbox.pipeline(&format!("[stage.s]\nkind = \"command\"\nrun = \"true\"\n{text}\n"));
    sandbox.run(&["check", "p.toml"])
}

#[test]
fn an_edited_export_is_said_before_the_stage_runs_again() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"cat in > {out}/x; echo ran >> ../../../ran\"\nfiles = [\"in\"]\nexport = \"results\"\n",
    );
    sandbox.write("in", "1");
    sandbox.ok(&["run", "p.toml"]);
    sandbox.write("results/x", "edited");
    sandbox.write("results/note", "mine");
    refused(&sandbox.run(&["run", "p.toml"]), &["results/x"]);
    sandbox.write("in", "2");
    refused(&sandbox.run(&["run", "p.toml"]), &["results/x"]);
    sandbox.ok(&["run", "p.toml", "--force", "a"]);
    assert_eq!((sandbox.read("results/x"), sandbox.read("results/note")), ("2".into(), "mine".into()));
}

#[test]
fn odd_things_in_the_places_are_the_users_and_stay() {
    use std::os::unix::fs::symlink;
    type Put = fn(&Sandbox);
    type Stays = fn(&Sandbox) -> bool;
    let odd: [(&str, Put, Stays); 5] = [
        ("a link", |s| symlink(s.outside("precious"), s.path("made/x")).unwrap(), |s| s.lines("precious") == ["mine"]),
        ("a link to nothing", |s| symlink("gone", s.path("made/x")).unwrap(), |s| s.path("made/x").is_symlink()),
        ("a directory", |s| s.write("made/x/y", "mine"), |s| s.read("made/x/y") == "mine"),
        (
            "a file where a directory has to be",
            |s| {
                fs::remove_dir(s.path("made")).unwrap();
                s.write("made", "mine");
            },
            |s| s.read("made") == "mine",
        ),
        (
            "a name that is no text",
            |s| {
                use std::os::unix::ffi::OsStrExt as _;
                fs::create_dir(s.path("made/x")).unwrap();
                fs::write(s.path("made/x").join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
            },
            |s| fs::read_dir(s.path("made/x")).unwrap().count() == 1,
        ),
    ];
    for (what, put, stays) in odd {
        let sandbox = one();
        fs::write(sandbox.outside("precious"), "mine\n").unwrap();
        fs::create_dir(sandbox.path("made")).unwrap();
        put(&sandbox);
        let output = sandbox.run(&["run", "p.toml"]);
        assert_eq!(output.code, Some(2), "{what}\n{output}");
        let said = ["is not as flow put it there", "`made` is a file, and `made/x` needs a directory there"];
        assert!(said.iter().any(|said| output.stderr.contains(said)) && stays(&sandbox), "{what}\n{output}");
    }
    // An empty directory is nobody's.
    let sandbox = one();
    fs::create_dir_all(sandbox.path("made/x")).unwrap();
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!(sandbox.read("made/x"), "1");
}

#[test]
fn what_flow_knows_survives_moves_links_and_torn_notes() {
    let sandbox = one();
    sandbox.ok(&["run", "p.toml"]);
    // A second name of the file keeps its content; the mode is no content.
    fs::hard_link(sandbox.path("made/x"), sandbox.path("kept")).unwrap();
    let mut mode = fs::metadata(sandbox.path("made/x")).unwrap().permissions();
    mode.set_readonly(true);
    fs::set_permissions(sandbox.path("made/x"), mode).unwrap();
    sandbox.write("in", "2");
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!((sandbox.read("made/x"), sandbox.read("kept")), ("2".into(), "1".into()));
    // The folder elsewhere, without the cache.
    let moved = sandbox.outside("moved");
    fs::rename(sandbox.path(""), &moved).unwrap();
    fs::remove_dir_all(sandbox.cache()).unwrap();
    fs::write(moved.join("in"), "3").unwrap();
    assert!(sandbox.flow(&["run", "p.toml"]).current_dir(&moved).status().unwrap().success());
    fs::rename(&moved, sandbox.path("")).unwrap();
    assert_eq!(sandbox.read("made/x"), "3");
    // Notes that a dying process tore: what the cache has anyway is nothing to lose.
    for page in fs::read_dir(sandbox.path(".flow/places")).unwrap() {
        fs::write(page.unwrap().path(), "{\"pla").unwrap();
    }
    sandbox.write("in", "4");
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!(sandbox.read("made/x"), "4");
}

#[test]
fn killed_at_every_step_of_placing_nothing_is_lost_and_nothing_asked() {
    for fault in ["commit:objects", "commit:recorded", "restore:written"] {
        let sandbox = one();
        sandbox.ok(&["run", "p.toml"]);
        sandbox.write("in", "2");
        sandbox.ok(&["run", "p.toml"]);
        let words = if fault.starts_with("restore") { ["1", "1"] } else { ["3", "3"] };
        sandbox.write("in", words[0]);
        let output = Output::of(sandbox.flow(&["run", "p.toml"]).env("FLOW_FAULT", fault).output().unwrap());
        assert_eq!(output.code, None, "{fault}: it was killed\n{output}");
        sandbox.write("in", "2");
        sandbox.ok(&["run", "p.toml"]);
        assert_eq!(sandbox.read("made/x"), "2", "{fault}");
        sandbox.write("in", words[1]);
        sandbox.ok(&["run", "p.toml"]);
        assert_eq!(sandbox.read("made/x"), words[1], "{fault}");
    }
}

#[test]
fn the_cache_is_no_place_for_results() {
    for place in ["outs = [\"store\"]", "export = \"store/objects\""] {
        let sandbox = Sandbox::with(&format!("[stage.a]\nkind = \"command\"\nrun = \"true\"\n{place}\n"));
        for force in [&[][..], &["--force", "a"]] {
            let mut flow = sandbox.flow(&[&["run", "p.toml"], force].concat());
            let output = Output::of(flow.env("FLOW_CACHE_DIR", sandbox.path("store")).output().unwrap());
            assert_eq!(output.code, Some(2), "{output}");
            assert!(output.stderr.contains("would cover the cache"), "{output}");
        }
    }
}

/// `use` reads what `mk` put into the project's folder, by its place.
const TAKES: &str = "[params]\nv = \"one\"\nk = 1\n\
    [stage.mk]\nkind = \"command\"\nrun = \"mkdir -p gen; echo ${v} > gen/y\"\nouts = [\"gen/y\"]\n\
    [stage.use]\nkind = \"command\"\nrun = \"cat gen/y > used; echo ${k} >> used; test ! -e ../spoil || echo x > gen/y\"\n\
    files = [\"gen/y\"]\nouts = [\"used\"]\n";

#[test]
fn who_takes_an_out_from_its_place_reads_what_its_key_says() {
    let sandbox = Sandbox::with(TAKES);
    sandbox.ok(&["run", "p.toml", "--set", "params.v=two"]);
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!((sandbox.read("gen/y"), sandbox.read("used")), ("one\n".to_owned(), "one\n1\n".to_owned()));
    let two = |k: &'static str| ["p.toml", "--only", "use", "--set", "params.v=two", "--set", k];
    let flow = |command: &str, k| sandbox.run(&[&[command], &two(k)[..]].concat());
    assert_eq!(flow("plan", "params.k=2").code, Some(0));
    let only = flow("run", "params.k=2");
    assert_eq!(only.code, Some(0), "{only}");
    assert_eq!((sandbox.read("gen/y"), sandbox.read("used")), ("two\n".to_owned(), "two\n2\n".to_owned()));
    // It is not there at all.
    fs::remove_file(sandbox.path("gen/y")).unwrap();
    assert_eq!(flow("run", "params.k=3").code, Some(0));
    assert_eq!(sandbox.read("used"), "two\n3\n");
    // What is the user's stays, and nothing is made of it; both say so before anything begins.
    sandbox.write("gen/y", "mine");
    for command in ["plan", "run"] {
        let refused = flow(command, "params.k=4");
        assert!(refused.code == Some(2) && refused.stderr.contains("`gen/y` is not what `mk` made"), "{refused}");
    }
    assert_eq!((sandbox.read("gen/y"), sandbox.read("used")), ("mine".to_owned(), "two\n3\n".to_owned()));
    // As the paths are, it is looked at again in the end.
    fs::remove_file(sandbox.path("gen/y")).unwrap();
    fs::write(sandbox.outside("spoil"), "").unwrap();
    let changed = flow("run", "params.k=4");
    assert!(changed.code == Some(1) && changed.stderr.contains("`gen/y` changed while `use` ran"), "{changed}");
}
