//! Exactly what must run, runs.

use std::{fs, time::Duration};

use crate::support::Sandbox;

const STAGES: usize = 60;
const CHAIN: usize = STAGES / 5;
const LEAVES: usize = STAGES - CHAIN;

/// `LEAVES` stages by themselves, and a chain of `CHAIN` after the first of them; each takes the first 64 bytes of one
/// file into another.
fn many() -> Sandbox {
    let sandbox = Sandbox::new();
    let mut text = String::new();
    let mut stage = |name: &str, from: &str| {
        text += &format!(
            "[stage.{name}]\nkind = \"command\"\nrun = \"head -c 64 {from} > out/{name}.txt\"\n\
             files = [\"{from}\"]\nouts = [\"out/{name}.txt\"]\n"
        );
    };
    for i in 0..LEAVES {
        sandbox.write(&format!("in/{i}.txt"), &content(i));
        stage(&format!("leaf{i}"), &format!("in/{i}.txt"));
    }
    for i in 0..CHAIN {
        let from = if i == 0 { "out/leaf0.txt".to_owned() } else { format!("out/chain{}.txt", i - 1) };
        stage(&format!("chain{i}"), &from);
    }
    fs::create_dir(sandbox.path("out")).unwrap();
    sandbox.pipeline(&text);
    sandbox
}

/// More than 64 bytes.
fn content(i: usize) -> String {
    format!("{i:08}").repeat(10)
}

#[test]
fn eight_scenarios_run_exactly_what_must() {
    let sandbox = many();
    let ran = || sandbox.json(&[]).ran().len();
    let all = || {
        let names =
            (0..LEAVES).map(|i| format!("out/leaf{i}.txt")).chain((0..CHAIN).map(|i| format!("out/chain{i}.txt")));
        names.map(|name| sandbox.read(&name)).collect::<Vec<_>>()
    };
    assert_eq!(ran(), STAGES, "the first time");
    let first = all();
    assert_eq!(first[3], content(3)[..64]);
    assert_eq!(first[STAGES - 1], content(0)[..64]);
    assert_eq!(ran(), 0, "nothing changed");

    sandbox.write("in/3.txt", &content(1003));
    assert_eq!(sandbox.json(&[]).ran(), ["leaf3"], "one leaf changed");
    assert_eq!(sandbox.read("out/leaf3.txt"), content(1003)[..64]);

    std::thread::sleep(Duration::from_millis(20));
    sandbox.write("in/4.txt", &content(4));
    assert_eq!(ran(), 0, "touched only");

    sandbox.write("in/0.txt", &(content(0) + "more"));
    assert_eq!(sandbox.json(&[]).ran(), ["leaf0"], "changed, but the same output");

    sandbox.write("in/0.txt", &content(98));
    assert_eq!(ran(), 1 + CHAIN, "what the chain begins with changed");
    assert_eq!(sandbox.read(&format!("out/chain{}.txt", CHAIN - 1)), content(98)[..64]);

    sandbox.write("in/0.txt", &content(0));
    sandbox.write("in/3.txt", &content(3));
    assert_eq!(ran(), 0, "reverted");
    assert_eq!(all(), first, "and what was put in place is the old");

    fs::remove_dir_all(sandbox.path("out")).unwrap();
    assert_eq!(ran(), 0, "all outputs deleted");
    assert_eq!(all(), first, "and put back in place");
}

#[test]
fn comments_order_and_what_no_stage_sees_run_nothing() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"echo a > {out}/a\"\n\
         [stage.b]\nkind = \"command\"\nrun = \"cat {in.x}/a > {out}/b\"\nin = { x = \"a\" }\n",
    );
    assert_eq!(sandbox.json(&[]).ran(), ["a", "b"]);
    sandbox.pipeline(
        "# a comment\n[stage.b]\nin = { x = \"a\" }\nrun = \"cat {in.x}/a > {out}/b\"\nkind = \"command\"\n\n\
         [stage.a]\nrun = \"echo a > {out}/a\"\nkind = \"command\"\n",
    );
    assert_eq!(sandbox.json(&[]).ran(), [""; 0]);
    // A stage by another name is the same work.
    sandbox.pipeline("[stage.other]\nkind = \"command\"\nrun = \"echo a > {out}/a\"\n");
    assert_eq!(sandbox.json(&[]).ran(), [""; 0]);
}

#[test]
fn selections_run_what_they_say() {
    let text = "\
[stage.a]
kind = \"command\"
run = \"echo a > {out}/a\"
[stage.b]
kind = \"command\"
run = \"cat {in.x}/a > {out}/b\"
in = { x = \"a\" }
[stage.c]
kind = \"command\"
run = \"cat {in.x}/b > {out}/c\"
in = { x = \"b\" }
[stage.other]
kind = \"command\"
run = \"echo other > {out}/o\"
";
    let sandbox = Sandbox::with(text);
    assert_eq!(sandbox.json(&["b"]).ran(), ["a", "b"], "a stage and what it needs");
    assert_eq!(sandbox.json(&[]).ran(), ["c", "other"]);
    assert_eq!(sandbox.json(&["--only", "b", "--force", "b"]).ran(), ["b"]);
    assert_eq!(sandbox.json(&["--from", "b"]).ran(), ["b", "c"]);
    assert_eq!(sandbox.json(&["--force", "a"]).ran(), ["a"], "the same bytes stop the wave");
}

#[test]
fn what_is_selected_alone_needs_its_inputs() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"echo a > {out}/a\"\n\
         [stage.b]\nkind = \"command\"\nrun = \"cat {in.x}/a > {out}/b\"\nin = { x = \"a\" }\n",
    );
    let output = sandbox.run(&["run", "p.toml", "--only", "b"]);
    assert_ne!(output.code, Some(0), "{output}");
    assert!(output.stderr.contains('a'), "{output}");
    sandbox.ok(&["run", "p.toml", "a"]);
    assert_eq!(sandbox.json(&["--only", "b"]).ran(), ["b"]);
}
