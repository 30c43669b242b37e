//! What a person reads: the plain view, a failure, the summary; and what a program reads.

use crate::support::{Events, Sandbox};

/// Times, sizes of time, ids and the sandbox's paths replaced, so that text can be compared.
fn still(text: &str, sandbox: &Sandbox) -> String {
    let text = text.replace(&sandbox.cache().display().to_string(), "CACHE");
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        for i in 0..words.len() {
            let is_number = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_digit() || c == '.');
            let unit = words.get(i + 1).map_or("", |unit| unit.trim_end_matches([':', ',', ';']));
            if is_number(&words[i]) && ["ms", "s"].contains(&unit) {
                words[i] = "N".into();
                words[i + 1] = words[i + 1].replacen("ms", "s", 1);
            }
        }
        let line = words.join(" ");
        // The log's path holds the run's id.
        lines.push(match (line.find("CACHE/runs/"), line.find("/logs/")) {
            (Some(start), Some(end)) => format!("{}CACHE/runs/ID{}", &line[..start], &line[end..]),
            _ => line,
        });
    }
    lines.join("\n") + "\n"
}

const PIPELINE: &str = "\
[stage.a]
kind = \"command\"
run = \"echo a > {out}/a\"
[stage.b]
kind = \"command\"
run = \"echo said; cat {in.x}/a; echo wrong >&2; exit 3\"
in = { x = \"a\" }
[stage.c]
kind = \"command\"
run = \"cat {in.x}/b\"
in = { x = \"b\" }
";

#[test]
fn the_plain_view_of_a_failure() {
    let sandbox = Sandbox::with(PIPELINE);
    let output = sandbox.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert_eq!(output.stdout, "");
    let text = still(&output.stderr, &sandbox);
    let version = env!("CARGO_PKG_VERSION");
    assert!(text.starts_with(&format!("p.toml · 3 nodes · flow {version} · run 2")), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].starts_with("started  a"), "{text}");
    assert_eq!(lines[2], "done     a · N s · 2 B", "{text}");
    assert!(lines[3].starts_with("started  b"), "{text}");
    assert_eq!(lines[4], "error: b failed after N s", "{text}");
    assert!(lines[5].starts_with("  caused by: ") && lines[5].contains("exit status 3"), "{text}");
    // What it printed to its two streams may come in either order.
    let mut log = lines[6..9].to_vec();
    log.sort_unstable();
    assert_eq!(log, ["    a", "    said", "    wrong"], "{text}");
    assert_eq!(
        lines[9..],
        [
            "  log: CACHE/runs/ID/logs/b.log",
            "  hint: to run just this: flow run p.toml --only b",
            "not run  c · b failed",
            "failed in N s: 1 ran, 0 skipped, 1 failed, 1 not run"
        ],
        "{text}"
    );
}

#[test]
fn the_plain_view_of_a_run_and_of_one_that_has_nothing_to_do() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"echo a > {out}/a\"\n\
         [stage.b]\nkind = \"command\"\nrun = \"cat {in.x}/a > {out}/b\"\nin = { x = \"a\" }\n",
    );
    sandbox.ok(&["run", "p.toml", "a"]);
    let text = still(&sandbox.run(&["run", "p.toml"]).stderr, &sandbox);
    let lines: Vec<&str> = text.lines().skip(1).collect();
    assert_eq!(lines[0], "skipped  a", "{text}");
    assert!(lines[1].starts_with("started  b"), "{text}");
    assert_eq!(lines[2..], ["done     b · N s · 2 B", "done in N s: 1 ran, 1 skipped"], "{text}");
    let text = still(&sandbox.run(&["run", "p.toml"]).stderr, &sandbox);
    let lines: Vec<&str> = text.lines().skip(1).collect();
    assert_eq!(lines, ["skipped  a, b", "done in N s: 0 ran, 2 skipped"], "{text}");
}

#[test]
fn the_command_in_the_hint_keeps_profile_and_settings() {
    let sandbox = Sandbox::with("[profile.x]\n[stage.a]\nkind = \"command\"\nrun = \"exit 1\"\n");
    let output = sandbox.run(&["run", "p.toml", "--profile", "x", "--set", "params.a b=it's"]);
    assert_eq!(output.code, Some(2), "{output}");
    let output = sandbox.run(&["run", "p.toml", "--profile", "x", "--set", "stage.a.run=exit 2"]);
    assert_eq!(output.code, Some(1), "{output}");
    let hint = "flow run p.toml --profile x --set 'stage.a.run=exit 2' --only a";
    assert!(output.stderr.contains(hint), "{output}");
}

#[test]
fn no_escapes_reach_a_pipe_and_a_log_cannot_send_any() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"printf '\\\\033[2J\\\\n'; exit 1\"\n");
    let output = sandbox.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(!output.stderr.contains('\x1b'), "{output:?}");
    assert!(output.stderr.contains("?[2J"), "{output}");
}

#[test]
fn json_is_events_on_stdout_and_nothing_else() {
    let sandbox = Sandbox::with(PIPELINE);
    let output = sandbox.run(&["run", "p.toml", "--json"]);
    assert_eq!((output.code, output.stderr.as_str()), (Some(1), ""));
    let events = Events::of(&output.stdout);
    let kinds: Vec<&str> = events.0.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], *kinds.last().unwrap()), ("run_started", "run_finished"));
    for kind in ["started", "finished", "failed", "blocked", "log"] {
        assert!(kinds.contains(&kind), "{kind}: {kinds:?}");
    }
    assert!(events.0.iter().all(|event| event["time"].as_f64().unwrap() > 1.7e9));
    let end = events.end();
    assert_eq!((&end["ok"], &end["ran"], &end["failed"]), (&false.into(), &1.into(), &1.into()));
}

#[test]
fn keep_going_runs_what_does_not_depend_on_the_failure() {
    let sandbox = Sandbox::with(&format!("{PIPELINE}[stage.d]\nkind = \"command\"\nrun = \"sleep 0.3; true\"\n"));
    let output = sandbox.run(&["run", "p.toml", "--json", "--keep-going", "--jobs", "1"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert_eq!(Events::of(&output.stdout).ran(), ["a", "d"]);
}
