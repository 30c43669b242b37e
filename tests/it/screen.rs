//! What a person sees while a run goes on and when it ends.

use crate::{
    support::{Output, Sandbox},
    terminal::Terminal,
};

#[test]
fn the_hint_to_go_on_is_what_was_typed() {
    let sandbox = Sandbox::with(
        "[params]\nword = \"x\"\n[profile.small]\n\
         [stage.gen]\nkind = \"command\"\nrun = \"echo 1 > {out}/x\"\n\
         [stage.slow]\nkind = \"command\"\nrun = 'echo begun \"${word}\"; sleep 1000'\nneeds = [\"gen\"]\n",
    );
    let args =
        ["run", "p.toml", "slow", "--profile", "small", "--set", "params.word=it's new", "--keep-going", "-j", "3"];
    let run = sandbox.start(&args);
    crate::support::until("it runs", || sandbox.run(&["log", "slow"]).stdout == "begun it's new\n");
    run.signal(libc::SIGINT);
    let output = run.end();
    assert_eq!(output.code, Some(130), "{output}");
    let hint =
        r"hint: to go on: flow run p.toml slow --profile small --set 'params.word=it'\''s new' --keep-going -j 3";
    assert!(output.stderr.lines().any(|line| line == hint), "{output}");
}

#[test]
fn a_run_that_does_not_take_place_has_no_id_and_no_record() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"cat {in.y}\"\n");
    let output = sandbox.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr.starts_with("error: ") && !output.stderr.contains("run 2"), "{output}");
    assert_eq!(sandbox.ok(&["runs"]), "");
    // One that takes place says its own, from the first line on.
    sandbox.pipeline("[stage.a]\nkind = \"command\"\nrun = \"true\"\nin = { y = \"p.toml\" }\n");
    let output = sandbox.run(&["run", "p.toml"]);
    let id = sandbox.ok(&["runs"]).split(' ').next().unwrap().to_owned();
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert!(lines[0].ends_with(&format!(" · run {id}")), "{output}");
    assert!(lines[1].starts_with("warning ") && lines[1].contains("`y`"), "{output}");
}

#[test]
fn what_a_cause_quotes_is_not_said_again_and_the_rest_of_the_log_is() {
    let sandbox =
        Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"for i in $(seq 30); do echo line $i; done; exit 3\"\n");
    let output = sandbox.run(&["run", "p.toml"]);
    for line in 11..=30 {
        let text = format!("line {line}");
        assert_eq!(output.stderr.lines().filter(|said| said.trim() == text).count(), 1, "{text}: {output}");
    }
    assert!(!output.stderr.contains("the last lines of its log"), "{output}");
}

#[test]
fn damage_is_said_before_its_repair_and_once() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"echo 1 > {out}/x; cp {out}/x {out}/y\"\n\
         [stage.b]\nkind = \"command\"\nrun = \"cat {in.x}/x > {out}/z; echo b >> {out}/z\"\nin = { x = \"a\" }\n",
    );
    sandbox.ok(&["run", "p.toml"]);
    let object = |stage, name| {
        let dir = sandbox.ok(&["path", "p.toml", stage]);
        std::fs::canonicalize(format!("{}/{name}", dir.trim_end())).unwrap()
    };
    for object in [object("a", "x"), object("b", "z")] {
        std::fs::remove_file(&object).unwrap();
        std::fs::write(&object, "forged\n").unwrap();
    }
    let text = sandbox.run(&["run", "p.toml"]).stderr;
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what}: {text}"));
    assert!(at("is damaged") < at("started  a"), "{text}");
    assert!(text.rfind("is damaged").unwrap() < at("started  b"), "{text}");
    assert_eq!(text.matches("is damaged").count(), 2, "{text}");
    assert!(!text.contains("moved it away"), "{text}");
}

#[test]
fn an_empty_directory_in_a_result_is_not_dropped_silently() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"mkdir -p {out}/logs/deep {out}/full; echo 1 > {out}/full/x\"\n",
    );
    let output = sandbox.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(0), "{output}");
    let warnings: Vec<&str> = output.stderr.lines().filter(|line| line.starts_with("warning ")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("`logs/deep`") && warnings[0].contains("empty"), "{output}");
}

#[test]
fn a_terminal_shows_what_runs_and_in_the_end_only_what_is_to_stay() {
    let sandbox = Sandbox::new();
    let go = sandbox.outside("go");
    let text: String = (0..60)
        .map(|i| {
            format!(
                "[stage.s{i:02}]\nkind = \"command\"\nrun = \"while ! test -e {}; do sleep 0.05; done; : {i}\"\n",
                go.display()
            )
        })
        .collect();
    sandbox.pipeline(&text);
    let mut flow = sandbox.flow(&["run", "p.toml", "--jobs", "60"]);
    flow.env("FLOW_CPUS", "60");
    let mut terminal = Terminal::start(flow, (80, 24));
    let folded = |lines: &[String]| lines.iter().any(|line| line.ends_with(" more running"));
    terminal
        .until("all of them run", |lines| lines.last().is_some_and(|line| line.starts_with("0/60 done · 60 running")));
    let lines = terminal.lines();
    assert!(folded(&lines) && lines.len() <= 24, "{lines:#?}");
    assert!(lines[0].starts_with("p.toml · 60 nodes · flow "), "{lines:#?}");
    // Narrow, low, wide: what stands there is one picture, never the rest of an older one.
    for size in [(30, 10), (120, 40), (24, 5), (80, 24)] {
        terminal.resize(size);
        let now = |lines: &[String]| {
            let counts = lines.iter().filter(|line| line.contains("60 running")).count();
            lines.len() <= usize::from(size.1)
                && counts == 1
                && lines.last().is_some_and(|line| line.contains("60 running"))
        };
        terminal.until(&format!("the view at {size:?}"), now);
    }
    std::fs::write(&go, "").unwrap();
    assert!(terminal.end().success());
    let lines = terminal.lines();
    assert!(lines.last().unwrap().starts_with("done in ") && lines.last().unwrap().ends_with("60 ran, 0 skipped"));
    assert!(!lines.iter().any(|line| line.contains("running")), "{lines:#?}");
    assert!(!terminal.cursor_is_hidden());
}

#[test]
fn a_terminal_holds_ten_thousand_nodes_of_which_two_hundred_run() {
    let sandbox = Sandbox::with(
        "[stage.first]\nkind = \"command\"\nmatrix = { n = \"{1..200}\" }\nrun = \"echo ${matrix.n}; exec sleep 1000\"\n\
         [stage.then]\nkind = \"command\"\nmatrix = { n = \"{1..9800}\" }\nrun = \": ${matrix.n}\"\nneeds = [\"first\"]\n",
    );
    let mut flow = sandbox.flow(&["run", "p.toml", "--jobs", "200"]);
    flow.env("FLOW_CPUS", "200");
    let mut terminal = Terminal::start(flow, (100, 30));
    let all_run = |lines: &[String]| lines.last().is_some_and(|line| line.starts_with("0/10,000 done · 200 running"));
    terminal.until("two hundred run", all_run);
    for size in [(60, 12), (100, 30)] {
        terminal.resize(size);
        terminal.until("the view", |lines| all_run(lines) && lines.len() <= usize::from(size.1));
    }
    let folded = |lines: &[String]| lines.iter().any(|line| line.ends_with(" more running"));
    terminal.until("what there is no room for is counted", folded);
    terminal.type_("\x03");
    assert_eq!(terminal.end().code(), Some(130));
    let lines = terminal.lines();
    assert!(lines.iter().any(|line| line.starts_with("interrupted in ")), "{lines:#?}");
    assert!(lines.len() <= 30 && !terminal.cursor_is_hidden(), "{lines:#?}");
    assert_painted_seldom(&sandbox, &terminal);
}

/// At most twenty times a second.
fn assert_painted_seldom(sandbox: &Sandbox, terminal: &Terminal) {
    let runs = sandbox.ok(&["runs", "--json"]);
    let run: serde_json::Value = serde_json::from_str(runs.lines().next().unwrap()).unwrap();
    let seconds = run["finished"].as_f64().unwrap() - run["started"].as_f64().unwrap();
    assert!(terminal.writes() as f64 <= 20.0 * seconds + 10.0, "{} in {seconds} s", terminal.writes());
}

#[test]
fn a_terminal_is_not_painted_more_often_than_an_eye_sees() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\n\
         run = \"for i in $(seq 200); do echo $i; sleep 0.01; done\"\n",
    );
    let mut terminal = Terminal::start(sandbox.flow(&["run", "p.toml"]), (80, 24));
    assert!(terminal.end().success());
    assert_painted_seldom(&sandbox, &terminal);
    // Nothing is cleared before it is painted over.
    assert!(!terminal.written().contains("\x1b[2J"), "{:?}", terminal.written());
}

#[test]
fn ctrl_c_stops_what_does_not_want_to_with_all_that_it_started() {
    let sandbox = Sandbox::new();
    let (ids, kept) = (sandbox.outside("ids"), sandbox.outside("kept"));
    // It ignores the request to end, and so does what it started; what was asked kindly can tidy up.
    sandbox.pipeline(&format!(
        "[stage.stubborn]\nkind = \"command\"\nrun = '''\ntrap '' TERM INT\n\
         (trap '' TERM INT; echo $(exec sh -c 'echo $PPID') >> {ids}; sleep 1000) &\necho $$ >> {ids}; sleep 1000; sleep 1000\n'''\n\
         [stage.kind]\nkind = \"command\"\nrun = '''\ntrap 'echo tidy > {kept}; exit 1' TERM\necho $$ >> {ids}\nwhile :; do sleep 0.05; done\n'''\n",
        ids = ids.display(),
        kept = kept.display()
    ));
    let mut terminal = Terminal::start(sandbox.flow(&["run", "p.toml", "--jobs", "4"]), (100, 24));
    crate::support::until("all of them run", || sandbox.lines("ids").len() == 3);
    let began = std::time::Instant::now();
    terminal.type_("\x03");
    let status = terminal.end();
    let took = began.elapsed();
    assert_eq!(status.code(), Some(130));
    assert!(sandbox.lines("kept") == ["tidy"], "it was not asked before it was killed");
    for id in sandbox.lines("ids") {
        // SAFETY: signal 0 only asks whether there is such a process.
        crate::support::until("they are gone", || unsafe { libc::kill(id.parse().unwrap(), 0) } != 0);
    }
    let lines = terminal.lines();
    assert!(lines.iter().any(|line| line.starts_with("interrupted in ")), "{lines:#?}");
    assert!(lines.last().unwrap().starts_with("hint: to go on: flow run p.toml --jobs 4"), "{lines:#?}");
    assert!(!terminal.cursor_is_hidden());
    eprintln!("interrupted after {took:?}");
}

#[test]
fn ctrl_c_twice_ends_at_once() {
    let sandbox = Sandbox::new();
    let ids = sandbox.outside("ids");
    sandbox.pipeline(&format!(
        "[stage.a]\nkind = \"command\"\nrun = '''\ntrap '' TERM INT\necho $$ > {}\nwhile :; do sleep 0.05; done\n'''\n",
        ids.display()
    ));
    let run = sandbox.start(&["run", "p.toml"]);
    crate::support::until("it runs", || sandbox.lines("ids").len() == 1);
    run.signal(libc::SIGINT);
    // Before it is ended it has noted that it was asked to.
    crate::support::until("it is noted", || sandbox.ok(&["runs", "--json"]).contains("\"interrupted\":true"));
    run.signal(libc::SIGTERM);
    assert_eq!(run.end().code, Some(130));
    let id = sandbox.lines("ids")[0].parse().unwrap();
    // SAFETY: signal 0 only asks whether there is such a process.
    crate::support::until("it is gone", || unsafe { libc::kill(id, 0) } != 0);
    // Nobody could write how it ended: it is known all the same.
    assert!(sandbox.ok(&["runs"]).contains(" interrupted "));
    assert!(sandbox.ok(&["status"]).starts_with("interrupted  a"));
}

fn is_there(shell: &str) -> bool {
    let is_there = std::process::Command::new(shell).arg("--version").output().is_ok();
    if !is_there {
        eprintln!("left out: there is no {shell} here");
    }
    is_there
}

#[test]
fn shells_complete_the_stages_and_profiles_of_the_pipeline_on_the_line() {
    let sandbox = Sandbox::with(
        "[profile.mini]\n[profile.full]\n\
         [stage.train]\nkind = \"command\"\nrun = \"true\"\n[stage.tokens]\nkind = \"command\"\nrun = \"true\"\n",
    );
    sandbox.write("comp.bash", &sandbox.ok(&["completions", "bash"]));
    let bin = std::path::Path::new(env!("CARGO_BIN_EXE_flow")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let complete = |words: &[&str]| {
        let list = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        let script = format!(
            "source comp.bash; COMP_WORDS=({list}); COMP_CWORD={}; COMP_LINE='{}'; COMP_POINT=${{#COMP_LINE}}; \
             f=$(complete -p flow | sed 's/.*-F \\([^ ]*\\).*/\\1/'); $f flow '{}' ''; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.len() - 1,
            words.join(" "),
            words.last().unwrap()
        );
        let mut bash = std::process::Command::new("bash");
        sandbox.at_home(&mut bash);
        let output = Output::of(bash.env("PATH", &path).args(["--norc", "-c", &script]).output().unwrap());
        let mut found: Vec<String> = output.stdout.split_whitespace().map(str::to_owned).collect();
        found.sort();
        assert_eq!(output.stderr, "", "{output}");
        found
    };
    assert_eq!(complete(&["flow", "run", "p.toml", "--only", "t"]), ["tokens", "train"]);
    assert_eq!(complete(&["flow", "why", "p.toml", "tr"]), ["train"]);
    assert_eq!(complete(&["flow", "plan", "p.toml", "--profile", ""]), ["full", "mini"]);
    for command in ["push", "pull", "export out.zst", "pin", "unpin"] {
        let words: Vec<&str> = ["flow", "cache"].into_iter().chain(command.split(' ')).chain(["p.toml"]).collect();
        assert_eq!(complete(&[&words[..], &["tr"]].concat()), ["train"], "{command}");
        if command != "unpin" {
            assert_eq!(complete(&[&words[..], &["-p", ""]].concat()), ["full", "mini"], "{command}");
        }
    }
    assert_eq!(complete(&["flow", "comp"]), ["completions"]);
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!(complete(&["flow", "log", "tok"]), ["tokens"]);
    let id = sandbox.ok(&["runs"]).split(' ').next().unwrap().to_owned();
    assert!(complete(&["flow", "show", ""]).contains(&id));
    // In a terminal of its own, as it is typed; a machine without the shell leaves this out.
    sandbox.write("comp.zsh", &sandbox.ok(&["completions", "zsh"]));
    let mut zsh = std::process::Command::new("zsh");
    sandbox.at_home(&mut zsh);
    if is_there("zsh") {
        let mut terminal = Terminal::start(
            {
                zsh.env("PATH", &path).env("PS1", "> ").args(["-f", "-i"]);
                zsh
            },
            (100, 24),
        );
        terminal.type_("autoload -U compinit; compinit -u; source comp.zsh; echo rea''dy\n");
        terminal.until("zsh is ready", |lines| lines.iter().any(|line| line == "ready"));
        terminal.type_("flow run p.toml --only tok\t");
        terminal.until("a stage", |lines| lines.iter().any(|line| line.contains("flow run p.toml --only tokens")));
        terminal.type_("--profile mi\t");
        terminal.until("a profile", |lines| lines.iter().any(|line| line.ends_with("--only tokens --profile mini")));
    }
    sandbox.write("comp.fish", &sandbox.ok(&["completions", "fish"]));
    if is_there("fish") {
        let complete = |line: &str| {
            let mut fish = std::process::Command::new("fish");
            sandbox.at_home(&mut fish);
            let script = format!("source comp.fish; complete -C '{line}'");
            let output = Output::of(fish.env("PATH", &path).args(["--no-config", "-c", &script]).output().unwrap());
            assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""), "{output}");
            let words = output.stdout.lines().filter_map(|line| line.split('\t').next());
            let mut words: Vec<String> = words.map(str::to_owned).collect();
            words.sort();
            words
        };
        assert_eq!(complete("flow run p.toml --only t"), ["tokens", "train"]);
        assert_eq!(complete("flow plan p.toml --profile "), ["full", "mini"]);
        assert!(complete("flow show ").contains(&id));
    }
    // A file that is none breaks no line.
    sandbox.write("p.toml", "[[[");
    assert_eq!(complete(&["flow", "run", "p.toml", "--only", "t"]), [""; 0]);
}

/// How far an evaluation is has a total from the first prompt on, and the time that is left.
#[test]
fn the_way_of_an_evaluation_is_seen() {
    if std::env::var_os("FLOW_TORCH").is_none() {
        eprintln!("left out: FLOW_TORCH names no trainer (`cargo xtask test` builds it)");
        return;
    }
    let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ja_wiki_mini");
    let place = |name: &str| example.join(name).display().to_string();
    let sandbox = Sandbox::with(&format!(
        "[stage.tiny]\nkind = \"init-model\"\nconfig = \"{}\"\ntokenizer = \"{}\"\n\
         [stage.eval]\nkind = \"eval\"\nmodel = \"tiny\"\ntasks = [\"long.toml\"]\nbatch_size = 2\n",
        place("config.json"),
        place("tokenizer")
    ));
    let task =
        "task = \"long\"\nkind = \"generate\"\ndata = \"long.jsonl\"\ntext = \"q\"\nuntil = []\nmax_new_tokens = 400\n";
    sandbox.write("long.toml", task);
    sandbox.write("long.jsonl", &"{\"q\": \"x\"}\n".repeat(12));
    let mut terminal = Terminal::start(sandbox.flow(&["run", "p.toml"]), (140, 24));
    terminal.until("what is left is said", |lines| {
        let parts = ["eval", "%", "/4,8", " tokens", " left", "asks tiny"];
        lines.iter().any(|line| parts.iter().all(|part| line.contains(part)))
    });
    assert_eq!(terminal.end().code(), Some(0));
    let run = sandbox.ok(&["runs"]).split(' ').next().unwrap().to_owned();
    let events = std::fs::read_to_string(sandbox.cache().join("runs").join(run).join("events.jsonl")).unwrap();
    assert!(events.contains("\"done\":12,\"total\":12,\"unit\":\"documents\""), "prompts are counted: {events}");
}
