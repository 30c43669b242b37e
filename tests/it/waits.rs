//! What waits for another flow has nothing meanwhile that others could use, says for what, and can be ended.

use std::{fs, time::Duration};

use crate::support::{Output, Sandbox, until};

/// A stage that says that it began, and goes on when it may.
fn slow(sandbox: &Sandbox, name: &str, more: &str) -> String {
    let (began, go) = (sandbox.outside(&format!("{name}-began")), sandbox.outside("go"));
    format!(
        "[stage.{name}]\nkind = \"command\"\n{more}run = \"echo >> {}; while ! test -e {}; do sleep 0.02; done; echo {name} > {{out}}/x\"\n",
        began.display(),
        go.display()
    )
}

fn began(sandbox: &Sandbox, name: &str) -> bool {
    sandbox.outside(&format!("{name}-began")).exists()
}

fn let_go(sandbox: &Sandbox) {
    fs::write(sandbox.outside("go"), "").unwrap();
}

#[test]
fn a_wait_takes_no_cores_and_no_time_of_the_stage() {
    let sandbox = Sandbox::new();
    let beside = "[stage.beside]\nkind = \"command\"\nresources = { cpus = 2 }\nrun = \"echo b > {out}/x\"\n";
    sandbox.pipeline(&(slow(&sandbox, "one", "resources = { cpus = 2 }\n") + beside));
    sandbox.write("flow.toml", "cpus = 2\njobs = 2\n");
    let first = sandbox.start(&["run", "p.toml", "one"]);
    until("it began", || began(&sandbox, "one"));
    let second = sandbox.start(&["run", "p.toml", "--json", "--set", "stage.one.timeout=300ms"]);
    until("what stands behind it is done", || sandbox.run(&["path", "p.toml", "beside"]).code == Some(0));
    std::thread::sleep(Duration::from_millis(400));
    let_go(&sandbox);
    let (first, second) = (first.end(), second.end());
    assert_eq!((first.code, second.code), (Some(0), Some(0)), "{first}{second}");
    let events = crate::support::Events::of(&second.stdout);
    assert_eq!((events.how()["one"], events.ran()), ("shared", vec!["beside"]), "{second}");
    assert_eq!(events.0.iter().filter(|event| event["event"] == "waiting").count(), 1, "{second}");
}

#[test]
fn a_wait_may_have_an_end() {
    let sandbox = Sandbox::new();
    sandbox.pipeline(&slow(&sandbox, "one", ""));
    let first = sandbox.start(&["run", "p.toml"]);
    until("it began", || began(&sandbox, "one"));
    let second = Output::of(sandbox.flow(&["run", "p.toml"]).env("FLOW_WAIT", "200ms").output().unwrap());
    assert!(second.code == Some(1) && second.stderr.contains("it waited for 200ms"), "{second}");
    assert!(second.stderr.contains("is making the same result"), "{second}");
    let_go(&sandbox);
    assert_eq!(first.end().code, Some(0));
}

#[test]
fn a_gpu_is_one_stages_among_all_flows() {
    let sandbox = Sandbox::new();
    sandbox.pipeline(&(slow(&sandbox, "one", "resources = { gpus = 1 }\n")));
    let other =
        "[stage.two]\nkind = \"command\"\nresources = { gpus = 1 }\nrun = \"echo $CUDA_VISIBLE_DEVICES > {out}/x\"\n";
    sandbox.write("q.toml", other);
    sandbox.write("flow.toml", "gpus = 1\n");
    let first = sandbox.start(&["run", "p.toml"]);
    until("it began", || began(&sandbox, "one"));
    let second = sandbox.start(&["run", "q.toml"]);
    until("the other waits", || sandbox.ok(&["status"]).contains("another flow uses the GPUs"));
    let_go(&sandbox);
    for output in [first.end(), second.end()] {
        assert_eq!(output.code, Some(0), "{output}");
    }
    let path = sandbox.ok(&["path", "q.toml", "two"]);
    assert_eq!(fs::read_to_string(format!("{}/x", path.trim())).unwrap(), "0\n");
}

#[test]
fn a_gc_is_waited_for_and_an_interrupt_ends_that() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"echo a > {out}/x\"\n");
    sandbox.ok(&["run", "p.toml"]);
    // As gc does.
    let gate = fs::File::options().write(true).open(sandbox.cache().join("locks/gate")).unwrap();
    gate.lock().unwrap();
    let waits = |args: &[&str]| {
        let mut flow = sandbox.flow(args);
        flow.env("FLOW_WAIT", "1s");
        Output::of(flow.output().unwrap())
    };
    let plan = waits(&["plan", "p.toml"]);
    assert!(plan.code == Some(3) && plan.stderr.contains("waiting  another flow removes"), "{plan}");
    assert!(plan.stderr.contains("keeps the cache closed for longer than 1s"), "{plan}");
    // Another word, so that what is known of the file as it was does not count.
    sandbox.pipeline("[stage.a]\nkind = \"command\"\nrun = \"echo b > {out}/x\"\n");
    let run = sandbox.start(&["run", "p.toml"]);
    std::thread::sleep(Duration::from_millis(700));
    run.signal(libc::SIGINT);
    let run = run.end();
    assert_eq!(run.code, Some(130), "{run}");
    assert!(run.stderr.contains("waiting  another flow removes"), "{run}");
    drop(gate);
    sandbox.ok(&["run", "p.toml"]);
}

#[test]
fn what_changes_an_input_that_another_stage_made_fails() {
    let stage = |name: &str, from: &str, run: &str| {
        let port = if from.is_empty() { String::new() } else { format!("in = {{ a = \"{from}\" }}\n") };
        format!("[stage.{name}]\nkind = \"command\"\n{port}run = \"{run}\"\n")
    };
    let text = |b: &str| {
        stage("a", "", "echo good > {out}/a")
            + &stage("b", "a", b)
            + &stage("c", "a", "cat {in.a}/a > {out}/c")
            + "needs = [\"b\"]\n"
    };
    let sandbox = Sandbox::with(&text("chmod u+w {in.a}/a; echo evil > {in.a}/a; echo x > {out}/b"));
    let output = sandbox.run(&["run", "p.toml"]);
    assert!(output.code == Some(1) && output.stderr.contains("`a` changed while `b` ran"), "{output}");
    sandbox.pipeline(&text("echo x > {out}/b"));
    let made = sandbox.json(&[]);
    assert_eq!(made.ran(), ["a", "b", "c"], "what was changed is not taken for what it was");
    let path = sandbox.ok(&["path", "p.toml", "c"]);
    assert_eq!(fs::read_to_string(format!("{}/c", path.trim())).unwrap(), "good\n");
    sandbox.ok(&["cache", "verify"]);
}

#[test]
fn who_damaged_its_input_is_tried_again_with_what_it_was() {
    for end in ["cp {in.a}/m {out}/r", "exit 1"] {
        let sandbox = Sandbox::new();
        let tried = sandbox.outside("tried");
        let text = |first: &str| {
            format!(
                "[stage.a]\nkind = \"command\"\nrun = \"echo good > {{out}}/m\"\n\
                 [stage.b]\nkind = \"command\"\nretries = 1\nin = {{ a = \"a\" }}\n\
                 run = \"{first} cp {{in.a}}/m {{out}}/r || ( echo >> {0}; chmod u+w {{in.a}}/m; echo evil > {{in.a}}/m; {end} )\"\n",
                tried.display()
            )
        };
        sandbox.pipeline(&text(&format!("test -e {} &&", tried.display())));
        let made = sandbox.run(&["run", "p.toml"]);
        assert!(made.code == Some(0) && made.stderr.contains("is damaged"), "{made}");
        let path = sandbox.ok(&["path", "p.toml", "b"]);
        assert_eq!(fs::read_to_string(format!("{}/r", path.trim())).unwrap(), "good\n");
        sandbox.ok(&["cache", "verify"]);
        // Who does so each time has no more tries than it has.
        fs::remove_file(&tried).unwrap();
        sandbox.pipeline(&text("false &&"));
        let failed = sandbox.run(&["run", "p.toml"]);
        assert_eq!((failed.code, fs::read_to_string(&tried).unwrap().lines().count()), (Some(1), 2), "{failed}");
        assert!(!failed.stderr.contains("not in the cache"), "{failed}");
    }
}

#[test]
fn what_puts_another_file_into_its_input_fails() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = \"echo 1 > {out}/m\"\n\
         [stage.b]\nkind = \"command\"\nin = { a = \"a\" }\nrun = \"sed -i s/1/999/ {in.a}/m; cp {in.a}/m {out}/r\"\n",
    );
    let output = sandbox.run(&["run", "p.toml"]);
    assert!(output.code == Some(1) && output.stderr.contains("`a` changed while `b` ran"), "{output}");
    assert_eq!(sandbox.run(&["path", "p.toml", "b"]).code, Some(1));
}

#[test]
fn what_the_cache_has_needs_no_gpu() {
    let sandbox = Sandbox::new();
    let quick = "[stage.quick]\nkind = \"command\"\nresources = { gpus = 1 }\nrun = \"echo q > {out}/x\"\n";
    sandbox.write("flow.toml", "gpus = 1\n");
    sandbox.write("q.toml", quick);
    sandbox.ok(&["run", "q.toml"]);
    sandbox.pipeline(&slow(&sandbox, "one", "resources = { gpus = 1 }\n"));
    let first = sandbox.start(&["run", "p.toml"]);
    until("it began", || began(&sandbox, "one"));
    fs::remove_dir_all(sandbox.path(".flow")).ok();
    sandbox.ok(&["run", "q.toml"]);
    let_go(&sandbox);
    assert_eq!(first.end().code, Some(0));
}

/// A stage that makes the file `x` of the project's folder.
fn makes_x(run: &str) -> String {
    format!("[stage.one]\nkind = \"command\"\nouts = [\"x\"]\nrun = \"{run}\"\n")
}

#[test]
fn a_wait_for_a_place_is_one_as_others_are() {
    let sandbox = Sandbox::new();
    let (start, go) = (sandbox.outside("one-began"), sandbox.outside("go"));
    let slow = format!("echo > {}; while ! test -e {}; do sleep 0.02; done; echo p > x", start.display(), go.display());
    sandbox.pipeline(&makes_x(&slow));
    let beside = "[stage.beside]\nkind = \"command\"\nresources = { cpus = 2 }\nrun = \"echo b > {out}/x\"\n";
    sandbox.write(
        "q.toml",
        &(makes_x("echo q > x") + "timeout = \"300ms\"\nretries = 1\nresources = { cpus = 2 }\n" + beside),
    );
    sandbox.write("known.toml", &makes_x("echo known > x"));
    sandbox.write("flow.toml", "cpus = 2\njobs = 2\n");
    sandbox.ok(&["run", "known.toml"]);
    let first = sandbox.start(&["run", "p.toml"]);
    until("it began", || began(&sandbox, "one"));
    // What must be made, and what is there and has no place yet.
    let second = sandbox.start(&["run", "q.toml", "--json"]);
    until("what stands behind it is done", || sandbox.run(&["path", "q.toml", "beside"]).code == Some(0));
    for (file, wait, said) in [
        ("q.toml", "200ms", "it waited for 200ms"),
        ("known.toml", "200ms", "it waited for 200ms"),
        ("known.toml", "0", "it is not to wait (`wait = 0`)"),
    ] {
        let refused = Output::of(
            sandbox
                .flow(&["run", file, "one", "--set", "stage.one.retries=0"])
                .env("FLOW_WAIT", wait)
                .output()
                .unwrap(),
        );
        assert!(refused.code == Some(1) && refused.stderr.contains(said), "{refused}");
        assert!(
            refused.stderr.contains(&format!("another flow is making {}", sandbox.path("x").display())),
            "{refused}"
        );
    }
    let third = {
        let mut flow = sandbox.flow(&["run", "known.toml", "--json"]);
        flow.env("FLOW_WAIT", "1h30m");
        std::thread::spawn(move || Output::of(flow.output().unwrap()))
    };
    std::thread::sleep(Duration::from_millis(400));
    let_go(&sandbox);
    let (first, second, third) = (first.end(), second.end(), third.join().unwrap());
    assert_eq!((first.code, second.code, third.code), (Some(0), Some(0), Some(0)), "{first}{second}{third}");
    let (second, third) = (crate::support::Events::of(&second.stdout), crate::support::Events::of(&third.stdout));
    assert_eq!(second.ran(), ["beside", "one"]);
    assert_eq!(third.how()["one"], "cached");
    let waits = |events: &crate::support::Events| events.0.iter().filter(|event| event["event"] == "waiting").count();
    assert!(waits(&second) == 1 && waits(&third) <= 1, "{:?}{:?}", second.0, third.0);
    let x = fs::read_to_string(sandbox.path("x")).unwrap();
    assert!(x == "q\n" || x == "known\n", "{x}");
}

#[test]
fn a_length_of_a_wait_is_as_any_other() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"echo a > {out}/x\"\n");
    for (wait, taken) in
        [("0", true), ("90", true), ("1h30m", true), ("1h 30 min", true), ("1h30", false), ("-1", false)]
    {
        let output = Output::of(sandbox.flow(&["run", "p.toml"]).env("FLOW_WAIT", wait).output().unwrap());
        assert_eq!(output.code, Some(if taken { 0 } else { 2 }), "{wait}: {output}");
        assert!(taken || output.stderr.contains(&format!("FLOW_WAIT={wait} is no length of time")), "{output}");
        let setting = wait.parse::<i64>().map_or_else(|_| format!("'{wait}'"), |seconds| seconds.to_string());
        sandbox.write("flow.toml", &format!("wait = {setting}\n"));
        let output = sandbox.run(&["run", "p.toml"]);
        assert_eq!(output.code, Some(if taken { 0 } else { 2 }), "{wait}: {output}");
        fs::remove_file(sandbox.path("flow.toml")).unwrap();
    }
}
