//! What cannot work is said before anything runs, all at once, in its place; what fails says why.

mod kinds;

use std::time::{Duration, Instant};

use flow_core::Event;
use flow_engine::{Checked, LoadOptions, Obstacles, Project, RunError, RunOptions, check_profiles};
use kinds::{KINDS, Lab};

#[test]
fn every_error_of_a_file_at_once_with_its_place() {
    let lab = Lab::new(
        "[stage.raw]\nkind = 'cta'\n\
         [stage.text]\nkind = 'cat'\ninput = ['rwa', 'raw', 'no/such.file']\n\
         [stage.tokens]\nkind = 'cat'\ntxet = 'x'\n\
         [stage.more]\nkind = 'cat'\nkeep = 'many'\nneeds = ['tokns']\n\
         [stage.last]\nkind = 'cat'\nouts = ['../up']\nretries = -1\n\
         [stage.urls]\nkind = 'get'\nurls = ['a', '{0..']\n",
    );
    assert_eq!(
        lab.errors(),
        [
            "2:8 there is no stage kind `cta` | did you mean `cat`?",
            "5:10 `rwa` is neither a stage nor a file or directory | did you mean the stage `raw`?",
            &format!(
                "5:24 `no/such.file` is neither a stage nor a file or directory | paths are relative to {}",
                lab.path("").components().as_path().display()
            ),
            "8:1 unknown key `txet` | did you mean `text`?",
            "11:8 `keep`: expected an integer from 0 to 9223372036854775807, found the text \"many\" | ",
            "12:10 there is no stage `tokns` | did you mean `tokens`?",
            "15:9 `../up` cannot be an output | outputs are files and directories inside the project's folder, named relative to it",
            "16:11 `retries`: expected an integer from 0 to 4294967295, found -1 | ",
            "19:8 the `{` of `{0..` is never closed: write `\\{` to mean it | ",
        ]
    );
    lab.write(
        "pipe.toml",
        "[stage.a]\nkind = 'cat'\nouts = ['../up', 'x']\nneeds = ['b']\n[stage.c]\nkind = 'cat'\nouts = ['x']\n",
    );
    let errors = lab.errors();
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(errors[0].starts_with("3:9 `../up` cannot be an output"), "{errors:?}");
    assert!(errors[1].starts_with("4:10 there is no stage `b`"), "{errors:?}");
    assert!(errors[2].starts_with("7:9 `x` is an output of `a` and of `c`"), "{errors:?}");
}

#[test]
fn what_one_reference_stands_for_is_one_error() {
    let lab = Lab::new("[stage.a]\nkind = 'cat'\ninput = ['d_{0..999}.txt', 'd_{3..4}.txt', 'd_{0,1}.txt']\n");
    lab.write("d_1.txt", "");
    let errors = lab.errors();
    assert_eq!(errors.len(), 3, "{errors:?}");
    let said =
        "3:10 `d_0.txt`, `d_2.txt`, `d_3.txt` and 996 more are neither stages nor files or directories | paths are";
    assert!(errors[0].starts_with(said), "{errors:?}");
    assert!(errors[1].starts_with("3:28 `d_3.txt` and `d_4.txt` are neither"), "{errors:?}");
    assert!(errors[2].starts_with("3:44 `d_0.txt` is neither a stage nor"), "{errors:?}");
    lab.write("pipe.toml", "[stage.a]\nkind = 'cat'\ninput = ['x_{0..9}']\n");
    (0..10).for_each(|nth| lab.write(&format!("x_{nth}.a"), ""));
    let errors = lab.errors();
    assert_eq!(errors.len(), 3, "{errors:?}");
}

#[test]
fn what_was_probably_meant_is_named() {
    let lab = Lab::new(
        "[stage.train]\nkind = 'cat'\n[stage.b]\nkind = 'cat'\ninput = ['a.tx', 'sub/prefx', './sub/a.tx']\n\
         [stage.trian]\ntext = 'x'\n",
    );
    lab.write("a.txt", "");
    lab.write("sub/prefix.a", "");
    lab.write("sub/a.txt", "");
    let errors = lab.errors();
    for (error, hint) in errors.iter().zip(["`a.txt`?", "`sub/prefix`?", "`./sub/a.txt`?", "the stage `train`?"]) {
        assert!(error.contains(&format!("did you mean {hint}")), "{hint}: {errors:?}");
    }
    assert_eq!(errors.len(), 4, "{errors:?}");
}

#[test]
fn no_error_follows_from_another() {
    let lab = Lab::new("[stage.a]\nkind = 'cat'\nexport = { too = 'x' }\n");
    let errors = lab.errors();
    assert!(errors.iter().all(|error| !error.contains("is empty")) && errors.len() == 2, "{errors:?}");
    // A profile in which there is one stage more lists one more.
    lab.write(
        "pipe.toml",
        "[stage.a]\nkind = 'cat'\ninput = ['nowhere']\n[profile.p.stage.more]\nkind = 'cat'\ninput = ['lost']\n",
    );
    let (pipeline, options) = (lab.path("pipe.toml"), LoadOptions::default());
    let load = |options: &LoadOptions| Project::load(&pipeline, KINDS, options).map(drop).unwrap_err();
    let said = load(&options);
    let met = |_: &Project, _: &Checked| Ok::<_, RunError>(Obstacles::default());
    let (found, _) = check_profiles(&pipeline, KINDS, &options, &said, met).unwrap();
    assert!(matches!(&found[..], [one] if one.message.contains("`lost`")), "{found:?}");
}

#[test]
fn what_runs_alone_is_among_what_is_asked_for() {
    let lab = Lab::new("[stage.a]\nkind='cat'\n[stage.b]\nkind='cat'\ninput=['a']\n[stage.c]\nkind='cat'\n");
    let asked = |only: &str| RunOptions { targets: vec!["b".into()], only: vec![only.into()], ..RunOptions::default() };
    let Err(RunError::Pipeline(errors)) = lab.try_run(&asked("c")) else { panic!("nothing would run") };
    assert!(matches!(&errors[..], [one] if one.message == "`c` is not among what `b` needs"), "{errors:?}");
    assert_eq!(lab.run_with(&asked("a")).1, ["a"]);
}

#[test]
fn circles_are_named_in_full() {
    let lab = Lab::new(
        "[stage.a]\nkind = 'cat'\ninput = ['c']\n[stage.b]\nkind = 'cat'\ninput = ['a']\n\
         [stage.c]\nkind = 'cat'\ninput = ['b']\n[stage.d]\nkind = 'cat'\ninput = ['made']\nouts = ['made']\n\
         [stage.e]\nkind = 'cat'\nneeds = ['a']\n",
    );
    let errors = lab.errors();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0].starts_with("3:10 stages need each other in a circle: a → b → c → a"), "{errors:?}");
    assert!(errors[1].starts_with("12:10 `made` is both a file that it reads and an output"), "{errors:?}");
}

#[test]
fn shards_must_agree_and_files_of_stages_must_be_named() {
    let lab = Lab::new(
        "[stage.a]\nkind = 'get'\nurls = ['{1..3}']\n[stage.b]\nkind = 'get'\nurls = ['{1..2}']\n\
         [stage.c]\nkind = 'map'\ninput = ['a']\npair = ['b']\n\
         [stage.d]\nkind = 'map'\ninput = ['a']\nouts = ['x']\n\
         [stage.e]\nkind = 'cat'\ninput = ['a[3]']\n",
    );
    let errors = lab.errors();
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(errors[0].starts_with("10:8 `input` has 3 inputs and `pair` has 2"), "{errors:?}");
    assert!(errors[1].contains("would run 3 times"), "{errors:?}");
    assert!(errors[2].starts_with("17:9 there is no `a[3]`"), "{errors:?}");

    lab.write("pipe.toml", "[stage.a]\nkind = 'cat'\nouts = ['made/a']\n[stage.b]\nkind = 'cat'\ninput = ['made']\n");
    lab.write("made/other", "");
    assert!(lab.errors()[0].starts_with("6:10 `made` holds `made/a`, which stage `a` makes"));
}

#[test]
fn a_prefix_is_several_files_and_all_must_be_there() {
    let lab = Lab::new("[stage.x]\nkind = 'cat'\ninput = ['data/x']\n");
    lab.write("data/x.a", "1");
    assert!(lab.errors()[0].starts_with("3:10 `data/x.b` is missing"));
    lab.write("data/x.b", "2");
    assert_eq!(lab.run(), "x");
    assert_eq!(lab.result("x"), "12");
    lab.write("data/unrelated", "3");
    assert_eq!(lab.run(), "");
    lab.write("data/x.b", "3");
    assert_eq!(lab.run(), "x");
}

#[test]
fn stages_complain_with_facts_of_others_before_anything_runs_but_not_when_all_is_there() {
    let pipe = "[stage.a]\nkind = 'cat'\ntext = 'abc'\n[stage.b]\nkind = 'cat'\ninput = ['a']\nmax = 5\ntext = '1'\n";
    let lab = Lab::new(&pipe.replace('5', "3"));
    assert_eq!(lab.errors(), ["7:7 4 bytes are more than 3 | "]);
    let Err(RunError::Pipeline(errors)) = lab.try_run(&RunOptions::default()) else { panic!("it cannot work") };
    assert_eq!(errors.len(), 1);
    assert!(lab.take_ran().is_empty(), "nothing ran");
    lab.write("pipe.toml", pipe);
    assert_eq!(lab.run(), "a b");
    // The limit is no part of the key: all is there, and nobody asks.
    lab.write("pipe.toml", &pipe.replace('5', "3"));
    assert_eq!(lab.run(), "");
}

#[test]
fn what_the_machine_does_not_have_is_said_before_anything_runs() {
    let lab = Lab::new(
        "[stage.a]\nkind='cat'\n[stage.b]\nkind='cat'\ninput=['a']\nresources={gpus=2, memory='1TiB', cpus=5}\n",
    );
    let Err(RunError::Pipeline(errors)) = lab.try_run(&RunOptions::default()) else { panic!("there are no GPUs") };
    assert!(errors[0].message.contains("takes 5 cores, and there are 4"), "{errors:?}");
    assert!(errors[1].message.contains("takes 2 GPUs, and there are 0"), "{errors:?}");
    assert_eq!((errors.len(), lab.take_ran().len()), (3, 0));
}

#[test]
fn several_machines_are_for_who_has_them_and_can_use_them() {
    let said = |resources: &str, kind: &str| {
        let lab = Lab::new(&format!("[stage.a]\nkind='{kind}'\nresources={{ {resources} }}\n"));
        match lab.try_run(&RunOptions::default()) {
            Ok(_) => String::new(),
            Err(RunError::Pipeline(errors)) => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            Err(error) => panic!("{error:?}"),
        }
    };
    let error = said("nodes = 2", "cat");
    assert!(error.contains("stage `a` is a `cat`, which runs on one machine") && error.contains("3:"), "{error}");
    assert!(said("hosts = ['h']", "cat").contains("remove `hosts`"));
    let error = said("nodes = 2", "spread");
    assert!(error.contains("takes 2 nodes, and flow has one machine") && error.contains("hosts = ["), "{error}");
    let error = said("nodes = 3, hosts = ['h', 'i']", "spread");
    assert!(error.contains("takes 3 nodes and names 2 hosts"), "{error}");
    // What they have is not counted: this machine has no GPU.
    assert_eq!(said("gpus = 8, cpus = 999, hosts = ['h', 'i']", "spread"), "");
}

#[test]
fn a_failure_says_its_causes_and_log_and_blocks_what_needs_it() {
    let lab = Lab::new(
        "[stage.a]\nkind='cat'\nfail_while='bad'\n[stage.b]\nkind='cat'\ninput=['a']\n[stage.c]\nkind='cat'\ntext='c'\n\
         [stage.d]\nkind='panics'\n",
    );
    lab.write("bad", "");
    let (summary, ran) = lab.run_with(&RunOptions { keep_going: true, ..RunOptions::default() });
    assert_eq!(ran, ["a", "c"]);
    assert_eq!((summary.ok, summary.failed, summary.blocked, summary.ran), (false, 2, 1, 1));
    let mut failures = lab.failures();
    failures.sort();
    assert_eq!(failures[0], ("a".into(), vec!["cannot concatenate".into(), "bad is there".into()]));
    assert!(failures[1].1[0].contains("panicked") && failures[1].1[1] == "on purpose", "{failures:?}");
    let events = lab.events.lock().unwrap();
    assert!(events.iter().any(|event| matches!(event, Event::Blocked { node, by } if node == "b" && by == "a")));
    let log = |event: &Event| matches!(event, Event::Failed { node, log, .. } if node == "a" && log == &["this is a"]);
    assert!(events.iter().any(log), "{events:?}");
    drop(events);
    std::fs::remove_file(lab.path("bad")).unwrap();
    let (summary, ran) = lab.run_with(&RunOptions { keep_going: true, ..RunOptions::default() });
    assert_eq!((ran, summary.skipped), (vec!["a".to_owned(), "b".to_owned()], 1));
}

#[test]
fn a_failed_node_is_tried_again_and_a_slow_one_is_stopped() {
    let lab = Lab::new(
        "[stage.a]\nkind='cat'\nfail_while='bad'\nretries=3\n\
         [stage.b]\nkind='cat'\ntext='b'\nsleep=60\ntimeout=1\n",
    );
    lab.write("bad", "");
    let bad = lab.path("bad");
    let remover = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        std::fs::remove_file(bad).unwrap();
    });
    let began = Instant::now();
    let (summary, ran) = lab.run_with(&RunOptions { keep_going: true, ..RunOptions::default() });
    remover.join().unwrap();
    assert_eq!(ran, ["a", "a", "b"]);
    assert_eq!((summary.ran, summary.failed), (1, 1));
    assert!(began.elapsed() < Duration::from_secs(20));
    let failures = lab.failures();
    assert!(failures.iter().any(|(node, causes)| node == "b" && causes[0] == "it took longer than 1s"), "{failures:?}");
    let events = lab.events.lock().unwrap();
    assert!(events.iter().any(|event| matches!(event, Event::Failed { retry_after: Some(_), .. })));
}

#[test]
fn an_interrupt_stops_what_runs_and_starts_nothing() {
    let lab = Lab::new("[stage.a]\nkind='cat'\nsleep=60\n[stage.b]\nkind='cat'\ninput=['a']\n");
    let cancel = lab.cancel.clone();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        cancel.set();
    });
    let began = Instant::now();
    let (summary, ran) = lab.run_with(&RunOptions::default());
    killer.join().unwrap();
    assert_eq!(ran, ["a"]);
    assert_eq!((summary.interrupted, summary.ok, summary.failed), (true, false, 0));
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(lab.failures().is_empty());
}

#[test]
fn an_input_that_changes_under_a_stage_spoils_no_key() {
    let lab = Lab::new("[stage.a]\nkind='cat'\ninput=['in']\nspoil='in'\n");
    lab.write("in", "good");
    let (summary, _) = lab.run_with(&RunOptions::default());
    assert_eq!(summary.failed, 1);
    assert!(lab.failures()[0].1[0].contains("`in` changed while `a` ran"), "{:?}", lab.failures());
    lab.write("in", "good");
    assert_eq!(lab.planned(), ["a: run (failed last time)"], "nothing was kept under the key of `good`");
}

#[test]
fn what_is_decided_again_and_must_run_is_asked_what_cannot_work() {
    let pipeline = |n: u32, max: u32| {
        format!(
            "[stage.dice]\nkind='cat'\ntext='a'\ntemp=true\nunkeyed='{n}'\n\
             [stage.left]\nkind='cat'\ninput=['dice']\ntext='{n}'\n\
             [stage.mid]\nkind='cat'\ninput=['dice']\ntext='m'\nmax={max}\n"
        )
    };
    let lab = Lab::new(&pipeline(1, 10));
    lab.run();
    // `mid` is there, whatever it says of its numbers now, until `dice` gives other bytes.
    lab.write("pipe.toml", &pipeline(2, 0));
    let (summary, ran) = lab.run_with(&RunOptions { keep_going: true, ..RunOptions::default() });
    assert_eq!((ran, summary.failed), (vec!["dice".to_owned(), "left".to_owned()], 1));
    let failures = lab.failures();
    assert!(failures[0].0 == "mid" && failures[0].1[0].contains("2 bytes are more than 0"), "{failures:?}");
}

#[test]
fn a_profile_and_set_reach_the_stages() {
    let lab = Lab::new("[params]\nt = 'x'\n[stage.a]\nkind='cat'\ntext='${t}'\n[profile.mini]\nparams.t = 'mini'\n");
    let load = |profile: Option<&str>, set: &[&str]| {
        let options = LoadOptions {
            profile: profile.map(str::to_owned),
            set: set.iter().map(|set| (*set).to_owned()).collect(),
            env: Vec::new(),
        };
        let project = Project::load(&lab.path("pipe.toml"), KINDS, &options).unwrap();
        project.graph().nodes[0].action.params()["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(load(None, &[]), "x");
    assert_eq!(load(Some("mini"), &[]), "mini");
    assert_eq!(load(Some("mini"), &["stage.a.text=set"]), "set");
}
