//! A run is made of one version of everything, also where what is made again gives other bytes.

use std::{collections::BTreeSet, fs};

use crate::{
    lazy::{Team, planned},
    support::{Events, Sandbox},
};

/// What `dice` gives is another thing each time; `left` and `right` take it, and `join` has a line of each.
fn dice(more: &str) -> String {
    let text = r#"
[params]
n = 1
m = 1
[stage.seed]
kind = "command"
run = "echo seed > {out}/x"
[stage.dice]
kind = "command"
in = { x = "seed" }
run = "(cat {in.x}/x; head -c 8 /dev/urandom | od -An -tx1) > {out}/x"
MORE
[stage.left]
kind = "command"
in = { x = "dice" }
run = "(cat {in.x}/x; echo left ${n}) > {out}/x"
[stage.right]
kind = "command"
in = { x = "dice" }
run = "(cat {in.x}/x; echo right ${m}) > {out}/x"
export = "right"
[stage.join]
kind = "command"
in = { l = "left", r = "right" }
run = "sed -n 2p {in.l}/x > {out}/l; sed -n 2p {in.r}/x > {out}/r"
export = "join"
"#;
    text.replace("MORE", more)
}

#[track_caller]
fn is_of_one_throw(sandbox: &Sandbox) {
    assert_eq!(sandbox.read("join/l"), sandbox.read("join/r"));
    assert!(sandbox.read("right/x").contains(&sandbox.read("join/r")));
    sandbox.ok(&["cache", "verify"]);
}

#[test]
fn a_run_is_made_of_one_version_of_what_is_made_again() {
    let team = Team::new(&dice(""));
    let bob = team.person("read");
    bob.ok(&["run", "p.toml"]);
    let first = bob.read("join/l");
    // The team lost its bytes.
    let lost: Vec<_> =
        team.objects().into_iter().filter(|it| fs::read_to_string(it).unwrap() == format!("seed\n{first}")).collect();
    assert_eq!(lost.len(), 1);
    fs::remove_file(&lost[0]).unwrap();
    let left = ["--set", "params.n=2"];
    let made = bob.run(&[&["run", "p.toml", "--json"], &left[..]].concat());
    assert!(made.code == Some(0) && made.stdout.contains("decided again"), "{made}");
    is_of_one_throw(&bob);
    assert_ne!(bob.read("join/l"), first);
    assert_eq!(bob.json(&left).ran(), [""; 0]);
}

#[test]
fn what_the_team_has_since_is_not_mixed_with_what_is_known_here() {
    let team = Team::new(&dice(""));
    let bob = team.person("read");
    bob.ok(&["run", "p.toml"]);
    // Somebody else threw again, and gave it to the team.
    fs::rename(team.dir.path().join("results"), bob.outside("before")).unwrap();
    fs::create_dir(team.dir.path().join("results")).unwrap();
    team.person("read-write").ok(&["run", "p.toml"]);
    let left = ["--set", "params.n=2"];
    assert_eq!(planned(&bob, &left), "seed team:yes, dice run, left run, right cached, join later");
    let path = bob.run(&["path", "p.toml", "dice"]);
    assert!(path.code == Some(1) && path.stderr.contains("the files of `dice` are not here"), "{path}");
    assert!(path.stderr.contains("flow run p.toml dice"), "{path}");
    bob.json(&left);
    is_of_one_throw(&bob);
    assert_eq!(bob.json(&left).ran(), [""; 0]);
}

#[test]
fn a_temp_stage_that_gives_other_bytes_is_not_mixed() {
    let sandbox = Sandbox::with(&dice("temp = true\n"));
    sandbox.ok(&["run", "p.toml"]);
    let first = sandbox.read("join/l");
    let left = ["run", "p.toml", "--json", "--set", "params.n=2"];
    let made = sandbox.run(&left);
    assert!(made.code == Some(0) && made.stdout.contains("decided again"), "{made}");
    let events = Events::of(&made.stdout);
    assert!(["dice", "left", "right", "join"].iter().all(|node| events.how()[node] == "ran"), "{made}");
    assert_eq!((&events.end()["ran"], &events.end()["skipped"]), (&4.into(), &1.into()), "{made}");
    is_of_one_throw(&sandbox);
    assert_ne!(sandbox.read("join/l"), first);
    assert_eq!(Events::of(&sandbox.ok(&left)).ran(), [""; 0]);
}

#[test]
fn what_was_done_with_an_input_that_failed_when_it_was_made_again_does_not_count() {
    let sandbox = Sandbox::new();
    let (flag, failed) = (sandbox.outside("flag"), sandbox.outside("failed"));
    let (flag, failed) = (flag.display(), failed.display());
    // `mid` fails the second time, `right` runs meanwhile, and `other` is there from before.
    sandbox.pipeline(&format!(
        "[params]\nn = 1\nk = 1\n\
         [stage.dice]\nkind = \"command\"\ntemp = true\nrun = \"(echo dice; head -c 8 /dev/urandom) > {{out}}/x\"\n\
         [stage.left]\nkind = \"command\"\nin = {{ x = \"dice\" }}\nrun = \"tail -c 8 {{in.x}}/x > {{out}}/x; : ${{n}}\"\n\
         [stage.mid]\nkind = \"command\"\nin = {{ x = \"dice\" }}\n\
         run = \"if test -e {flag}; then touch {failed}; exit 1; fi; tail -c 8 {{in.x}}/x > {{out}}/x\"\n\
         [stage.right]\nkind = \"command\"\nin = {{ x = \"mid\" }}\nexport = \"right\"\n\
         run = \"while test -e {flag} && ! test -e {failed}; do sleep 0.05; done; sleep 0.3; tail -c 8 {{in.x}}/x > {{out}}/x; : ${{k}}\"\n\
         [stage.end]\nkind = \"command\"\nin = {{ x = \"right\" }}\nrun = \"tail -c 8 {{in.x}}/x > {{out}}/x\"\n\
         [stage.other]\nkind = \"command\"\nin = {{ x = \"mid\" }}\nexport = \"other\"\nrun = \"tail -c 8 {{in.x}}/x > {{out}}/x\"\n"
    ));
    sandbox.write("flow.toml", "cpus = 4\njobs = 4\n");
    sandbox.ok(&["run", "p.toml"]);
    fs::write(sandbox.outside("flag"), "").unwrap();
    let sets = ["--set", "params.n=2", "--set", "params.k=2"];
    let made = sandbox.run(&[&["run", "p.toml", "--keep-going", "--json"], &sets[..]].concat());
    let events = Events::of(&made.stdout);
    let blocked = events.0.iter().filter(|event| event["event"] == "blocked");
    let blocked: BTreeSet<&str> = blocked.map(|event| event["node"].as_str().unwrap()).collect();
    assert_eq!((made.code, blocked), (Some(1), BTreeSet::from(["end", "other", "right"])), "{made}");
    assert_eq!((&events.end()["ran"], &events.end()["skipped"]), (&2.into(), &0.into()), "{made}");
    for name in ["right", "other"] {
        assert!(made.stdout.contains(&format!("what is in `{name}` was made by `{name}` of what its")), "{made}");
    }
    let status = sandbox.ok(&["status"]);
    let line = status.lines().find(|line| line.contains("right")).unwrap_or_default();
    assert!(line.contains("not run") && line.contains("mid failed"), "{status}");
    fs::remove_file(sandbox.outside("flag")).unwrap();
    sandbox.ok(&[&["run", "p.toml"], &sets[..]].concat());
    assert_eq!(fs::read(sandbox.path("right/x")).unwrap(), fs::read(sandbox.path("other/x")).unwrap());
}
