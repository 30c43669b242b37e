//! Intermediates: what is freed, what is not, and what is made again when.

use std::fs;

use crate::support::{Output, Sandbox};

/// `raw` and `text` are intermediates of `end`; `raw` is also taken by `side`. Each notes that it ran.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    let ran = sandbox.outside("ran").to_str().unwrap().to_owned();
    let stage = |name: &str, run: &str, more: &str| {
        format!("[stage.{name}]\nkind = \"command\"\nrun = \"echo {name} >> {ran}; {run}\"\n{more}\n")
    };
    let taking = |from: &str| format!("in = {{ x = \"{from}\" }}");
    sandbox.pipeline(
        &[
            "[params]\nside = \"1\"\nend = \"1\"\nfail = \"no\"\n".to_owned(),
            stage("raw", "cat in > {out}/raw", "files = [\"in\"]\ntemp = true"),
            stage("text", "(cat {in.x}/raw; echo text) > {out}/text", &(taking("raw") + "\ntemp = true")),
            stage("side", "wc -c < {in.x}/raw > {out}/side; : ${side}", &taking("raw")),
            stage(
                "end",
                "wc -l < {in.x}/text > {out}/end; : ${end}; ! test -e ${fail}",
                &(taking("text") + "\nretries = 1"),
            ),
        ]
        .concat(),
    );
    sandbox.write("in", "some raw bytes\n");
    sandbox
}

/// The stages that ran since the last question, sorted.
fn ran(sandbox: &Sandbox) -> String {
    let mut lines = sandbox.lines("ran");
    let _ = fs::remove_file(sandbox.outside("ran"));
    lines.sort();
    lines.join(" ")
}

/// How many objects the cache has.
fn objects(sandbox: &Sandbox) -> usize {
    let shards = fs::read_dir(sandbox.cache().join("objects")).unwrap();
    shards.map(|shard| fs::read_dir(shard.unwrap().path()).unwrap().count()).sum()
}

#[test]
fn intermediates_are_freed_and_made_again_only_for_who_needs_them() {
    let sandbox = sandbox();
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!((ran(&sandbox).as_str(), objects(&sandbox)), ("end raw side text", 2));
    sandbox.ok(&["cache", "verify"]);
    // Nothing is needed: they count as skipped.
    let events = sandbox.json(&[]);
    assert_eq!((ran(&sandbox).as_str(), events.how().len()), ("", 4));
    assert!(events.how().values().all(|how| *how == "cached"), "{:?}", events.how());
    assert_eq!(events.end()["skipped"], 4);
    let states = |args: &[&str]| {
        let args = [&["plan", "p.toml", "--json"], args].concat();
        let plan = sandbox.ok(&args);
        let states = plan.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        states.map(|line| line["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(states(&[]), "cached cached cached cached");
    // `side` needs `raw`, and neither `text` nor `end` is touched.
    let side = ["--set", "params.side=2"];
    assert_eq!(states(&side), "run cached run cached");
    sandbox.ok(&[&["run", "p.toml"], &side[..]].concat());
    assert_eq!((ran(&sandbox).as_str(), objects(&sandbox)), ("raw side", 2));
    // `end` needs `text`, which needs `raw`.
    let end = ["--set", "params.end=2"];
    assert_eq!(states(&end), "run run cached run");
    let events = sandbox.json(&end);
    assert_eq!(events.how()["side"], "cached");
    assert_eq!((ran(&sandbox).as_str(), objects(&sandbox)), ("end raw text", 2));
    // The content is what counts, as ever.
    sandbox.write("in", "more raw bytes\n");
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!(ran(&sandbox), "end raw side text");
    sandbox.ok(&["cache", "verify"]);
}

#[test]
fn what_is_asked_for_by_name_stays() {
    let sandbox = sandbox();
    sandbox.ok(&["run", "p.toml"]);
    ran(&sandbox);
    let output = sandbox.run(&["path", "p.toml", "raw"]);
    assert_eq!(output.code, Some(1), "{output}");
    sandbox.ok(&["run", "p.toml", "raw"]);
    assert_eq!(ran(&sandbox), "raw");
    let path = sandbox.ok(&["path", "p.toml", "raw"]);
    assert_eq!(fs::read_to_string(format!("{}/raw", path.trim_end())).unwrap(), "some raw bytes\n");
    // The next whole run frees it.
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!((ran(&sandbox).as_str(), objects(&sandbox)), ("", 2));
    // With `--only` nothing is made again that was not named.
    let only = ["run", "p.toml", "--only", "side"];
    sandbox.ok(&only);
    let changed = sandbox.run(&[&only[..], &["--set", "params.side=2"]].concat());
    assert_eq!(changed.code, Some(2), "{changed}");
    assert!(changed.stderr.contains("`raw` has no result in the cache"), "{changed}");
    assert_eq!(ran(&sandbox), "");
    sandbox.ok(&[&only[..], &["--only", "raw", "--set", "params.side=2"]].concat());
    assert_eq!(ran(&sandbox), "raw side");
}

#[test]
fn nothing_is_freed_that_is_still_needed() {
    let sandbox = sandbox();
    let fail = sandbox.outside("fail");
    fs::write(&fail, "").unwrap();
    let set = format!("params.fail={}", fail.display());
    assert_eq!(sandbox.run(&["run", "p.toml", "--keep-going", "--set", &set]).code, Some(1));
    assert_eq!(ran(&sandbox), "end end raw side text", "tried again, with what it takes still there");
    // `raw` went when `text` and `side` were done, `text` waits for `end`.
    assert_eq!(objects(&sandbox), 2);
    fs::remove_file(fail).unwrap();
    sandbox.ok(&["run", "p.toml", "--set", &set]);
    assert_eq!((ran(&sandbox).as_str(), objects(&sandbox)), ("end", 2));
}

#[test]
fn what_another_result_has_too_is_not_freed() {
    let sandbox = sandbox();
    sandbox.pipeline(
        "[stage.a]\nkind = \"command\"\nrun = \"echo same > {out}/a\"\ntemp = true\n\
         [stage.b]\nkind = \"command\"\nrun = \"cat {in.a}/a > {out}/b\"\nin = { a = \"a\" }\n\
         [stage.twin]\nkind = \"command\"\nrun = \"echo same > {out}/a\"\n\
         [stage.last]\nkind = \"command\"\nrun = \"cat {in.a}/a > {out}/last\"\nin = { a = \"twin\" }\nneeds = [\"b\"]\n",
    );
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!(objects(&sandbox), 1);
    sandbox.ok(&["cache", "verify"]);
    for stage in ["b", "twin", "last"] {
        sandbox.ok(&["path", "p.toml", stage]);
    }
}

#[test]
fn killed_while_it_frees_and_collected_in_between() {
    for fault in ["free:record", "free:recorded", "free:recorded@2"] {
        let sandbox = sandbox();
        let output = Output::of(sandbox.flow(&["run", "p.toml"]).env("FLOW_FAULT", fault).output().unwrap());
        assert_eq!(output.code, None, "{fault}: it was killed\n{output}");
        let before = ran(&sandbox);
        sandbox.ok(&["run", "p.toml"]);
        sandbox.ok(&["cache", "verify"]);
        let both = format!("{before} {}", ran(&sandbox));
        // `end` and `side` may have been killed with it.
        for stage in ["raw", "text"] {
            assert_eq!(both.split(' ').filter(|ran| *ran == stage).count(), 1, "{fault}: {both}");
        }
        sandbox.ok(&["cache", "gc", "--max-age", "30d"]);
        assert_eq!(objects(&sandbox), 2, "{fault}");
        sandbox.ok(&["run", "p.toml"]);
        assert_eq!(ran(&sandbox), "", "{fault}");
    }
}

#[test]
fn a_result_that_goes_cannot_be_put_anywhere() {
    let sandbox = sandbox();
    for (field, value) in [("outs", "[\"x\"]"), ("export", "\"x\"")] {
        sandbox.pipeline(&format!("[stage.a]\nkind = \"command\"\nrun = \"true\"\ntemp = true\n{field} = {value}\n"));
        let output = sandbox.run(&["check", "p.toml"]);
        assert_eq!(output.code, Some(2), "{output}");
        assert!(output.stderr.contains(&format!("`a` is `temp` and has `{field}`")), "{output}");
    }
}

/// What rests before it is tried again, and whose input is another one by then, is not made of the one under the key of the
/// other.
#[test]
fn what_is_tried_again_is_made_of_what_its_key_says() {
    let sandbox = Sandbox::new();
    let place = |name: &str| sandbox.outside(name).to_str().unwrap().to_owned();
    let (value, flaky) = (place("value"), place("flaky"));
    sandbox.pipeline(&format!(
        "[params]\nn = 1\nk = 1\n\
         [stage.dice]\nkind = \"command\"\ntemp = true\nrun = \"sleep 0.4; cat {value} > {{out}}/x; (echo own; cat {value}) > {{out}}/y\"\n\
         [stage.cnt]\nkind = \"command\"\nin = {{ x = \"dice\" }}\nrun = \"cat {{in.x}}/x > {{out}}/x\"\n\
         [stage.left]\nkind = \"command\"\nin = {{ x = \"dice\" }}\nrun = \"(echo of; cat {{in.x}}/x) > {{out}}/x; : ${{n}}\"\n\
         [stage.res]\nkind = \"command\"\nin = {{ x = \"cnt\" }}\nretries = 1\nexport = \"res\"\n\
         run = \"if rm {flaky}; then exit 1; fi; echo ${{k}} `cat {{in.x}}/x` > {{out}}/x\"\n"
    ));
    let run = |now: &str, n: &str, k: &str| {
        fs::write(sandbox.outside("value"), now).unwrap();
        let (n, k) = (format!("params.n={n}"), format!("params.k={k}"));
        sandbox.ok(&["run", "p.toml", "--set", &n, "--set", &k]);
        sandbox.read("res/x")
    };
    assert_eq!(run("two", "1", "2"), "2 two\n");
    assert_eq!(run("one", "2", "1"), "1 one\n");
    fs::write(sandbox.outside("flaky"), "").unwrap();
    // `cnt` is known by `one`; `left` has `dice` made again, which gives `two` while `res` rests.
    assert_eq!(run("two", "3", "2"), "2 two\n");
    run("one", "4", "1");
    assert_eq!(run("one", "4", "2"), "2 one\n");
}

/// Three that make the same under one key, and give other bytes each time.
#[test]
fn who_has_the_same_key_is_made_again_with_it() {
    let sandbox = Sandbox::new();
    let mut text = "[params]\nn = 1\n".to_owned();
    for (name, more) in [("a", ""), ("b", "needs = [\"a\"]\n"), ("c", "needs = [\"b\"]\n")] {
        let word = if name == "c" { "${n}" } else { name };
        text += &format!(
            "[stage.{name}]\nkind = \"command\"\ntemp = true\n{more}run = \"head -c 8 /dev/urandom > {{out}}/x\"\n\
             [stage.t{name}]\nkind = \"command\"\nin = {{ x = \"{name}\" }}\nrun = \"cat {{in.x}}/x > {{out}}/x; : {word}\"\n"
        );
    }
    sandbox.pipeline(&text);
    sandbox.ok(&["run", "p.toml"]);
    sandbox.ok(&["run", "p.toml", "--set", "params.n=2"]);
    let made = |stage: &str| {
        let path = sandbox.ok(&["path", "p.toml", stage, "--set", "params.n=2"]);
        fs::read(std::path::Path::new(path.trim()).join("x")).unwrap()
    };
    assert!(made("ta") == made("tb") && made("tb") == made("tc"));
}

#[test]
fn why_says_of_what_was_freed_what_a_run_would_do() {
    let sandbox = sandbox();
    sandbox.ok(&["run", "p.toml"]);
    let why = sandbox.ok(&["why", "p.toml", "raw"]);
    assert!(why.contains("nobody needs them") && !why.contains("would run"), "{why}");
}
