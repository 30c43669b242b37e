//! What runs is exactly what must: the promises of keys, early cutoff, pins, placement.

mod kinds;

use flow_core::{Event, How};
use flow_engine::{History, LockFile, RunError, RunOptions};
use kinds::{Lab, there};

/// Six leaves of one file each, and a chain of three over the first; every stage puts its file into the project.
fn chain() -> Lab {
    let mut text = String::new();
    for i in 0..6 {
        text += &format!("[stage.leaf{i}]\nkind = 'cat'\ninput = ['in/{i}']\nkeep = 4\nouts = ['made/{i}']\n");
    }
    for i in 0..3 {
        let before = if i == 0 { "made/0".into() } else { format!("made/c{}", i - 1) };
        text += &format!("[stage.chain{i}]\nkind = 'cat'\ninput = ['{before}']\nouts = ['made/c{i}']\n");
    }
    let lab = Lab::new(&text);
    (0..6).for_each(|i| lab.write(&format!("in/{i}"), &format!("{i}aaa tail")));
    lab
}

#[test]
fn commands_really_executed_in_eight_scenarios() {
    let lab = chain();
    assert_eq!(lab.run().split(' ').count(), 9, "full");
    assert_eq!(lab.run(), "", "no-op");
    lab.write("in/3", "3bbb tail");
    assert_eq!(lab.run(), "leaf3", "one leaf changed");
    assert_eq!(lab.read("made/3"), "3bbb");
    lab.write("in/4", "4aaa tail");
    assert_eq!(lab.run(), "", "touched only");
    lab.write("in/0", "0aaa other tail");
    assert_eq!(lab.run(), "leaf0", "changed but same output: the chain is cut off");
    lab.write("in/0", "0ccc tail");
    assert_eq!(lab.run(), "chain0 chain1 chain2 leaf0", "head of the chain changed");
    assert_eq!(lab.read("made/c2"), "0ccc");
    lab.write("in/0", "0aaa tail");
    assert_eq!(lab.run(), "", "reverted");
    assert_eq!(lab.read("made/c2"), "0aaa", "the outputs are put back as they were");
    std::fs::remove_dir_all(lab.path("made")).unwrap();
    assert_eq!(lab.run(), "", "outputs deleted");
    assert_eq!(lab.read("made/5"), "5aaa");
}

#[test]
fn comments_order_names_and_knobs_are_no_part_of_a_key_and_parameters_are() {
    let lab = Lab::new("[stage.a]\nkind = 'cat'\ntext = 'x'\nkeep = 9\n[stage.b]\nkind = 'cat'\ninput = ['a']\n");
    assert_eq!(lab.run(), "a b");
    lab.write(
        "pipe.toml",
        "# new\n[params]\nt = 'x'\n[stage.b]\ninput = ['renamed']\nkind = 'cat'\nretries = 3\n\
        [stage.renamed]\nkeep = 9\ntext = '${t}'\nsleep = 0.001\nkind = 'cat'\nresources = { cpus = 2 }\n",
    );
    assert_eq!(lab.run(), "");
    lab.write("pipe.toml", "[stage.a]\nkind = 'cat'\ntext = 'y'\nkeep = 9\n[stage.b]\nkind = 'cat'\ninput = ['a']\n");
    assert_eq!(lab.planned(), ["a: run (params.text: \"x\" → \"y\")", "b: after 1"]);
    assert_eq!(lab.run(), "a b");
}

#[test]
fn one_more_shard_costs_one_more_of_each() {
    let pipe = |last: usize| {
        format!(
            "[params]\nshards = '{{0..{last}}}'\n[stage.raw]\nkind = 'get'\nurls = ['http://x/s${{shards}}']\n\
             [stage.text]\nkind = 'map'\ninput = ['raw']\n[stage.tokens]\nkind = 'map'\ninput = ['text']\ntext = 't'\n\
             [stage.all]\nkind = 'cat'\ninput = ['tokens']\n"
        )
    };
    let lab = Lab::new(&pipe(1));
    (0..3).for_each(|i| lab.write(&format!("server/s{i}"), &format!("shard {i};")));
    assert_eq!(lab.run(), "all raw[0] raw[1] text[0] text[1] tokens[0] tokens[1]");
    assert_eq!(lab.result("all"), "tshard 0;tshard 1;");
    lab.write("pipe.toml", &pipe(2));
    assert_eq!(lab.run(), "all raw[2] text[2] tokens[2]");
    assert_eq!(lab.result("tokens[2]"), "tshard 2;");
    assert_eq!(lab.run(), "");
}

#[test]
fn a_url_is_pinned_once_and_held_to_it() {
    let lab = Lab::new("[stage.raw]\nkind = 'get'\nurls = ['http://x/a', 'http://x/b']\n");
    lab.write("server/a", "1");
    lab.write("server/b", "2");
    assert_eq!(lab.run(), "raw[0] raw[1]");
    let lock = lab.read("flow.lock");
    assert_eq!(LockFile::read(&lab.path("")).unwrap().pins.len(), 2);

    // The server gives something else: nobody asks it, because the lock file says what is wanted and it is there.
    lab.write("server/a", "changed");
    assert_eq!(lab.run(), "");
    // A colleague with the lock file and an empty cache asks, and is told.
    let other = flow_cache::Cache::open(&lab.dir.path().join("cache2")).unwrap();
    let project = lab.load().unwrap();
    let events = std::sync::Mutex::new(Vec::new());
    let sink = |event: Event| events.lock().unwrap().push(event);
    let options = RunOptions { keep_going: true, ..RunOptions::default() };
    let summary = flow_engine::run(&project, &other, &lab.settings(), &options, &sink, &lab.cancel).unwrap();
    assert_eq!((summary.ran, summary.failed), (1, 1));
    let text = format!("{:?}", events.lock().unwrap());
    assert!(text.contains("flow lock --update"), "{text}");
    assert_eq!(lab.read("flow.lock"), lock);
    // The server repents: what was fetched wrongly is not in the way.
    lab.write("server/a", "1");
    let summary = flow_engine::run(&project, &other, &lab.settings(), &options, &sink, &lab.cancel).unwrap();
    assert_eq!((summary.ran, summary.ok), (1, true));

    lab.write("server/a", "changed");
    let update = RunOptions { update_pins: true, targets: vec!["raw[0]".into()], ..RunOptions::default() };
    assert_eq!(lab.run_with(&update).1, ["raw[0]"]);
    assert_ne!(lab.read("flow.lock"), lock);
    assert_eq!(lab.result("raw[0]"), "changed");
    assert_eq!(lab.run(), "");
    // Lost with the cache there: what was fetched is pinned again.
    let lock = lab.read("flow.lock");
    std::fs::remove_file(lab.path("flow.lock")).unwrap();
    assert_eq!(lab.run(), "");
    assert_eq!(lab.read("flow.lock"), lock);
}

#[test]
fn force_only_from_and_targets() {
    let lab = Lab::new(
        "[stage.a]\nkind='cat'\ntext='a'\n[stage.b]\nkind='cat'\ninput=['a']\n[stage.c]\nkind='cat'\ninput=['b']\ntext='c'\n\
         [stage.d]\nkind='cat'\ntext='d'\n",
    );
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let only = RunOptions { only: names(&["b"]), ..RunOptions::default() };
    let Err(RunError::Pipeline(errors)) = lab.try_run(&only) else { panic!("`a` is not there") };
    assert!(errors[0].message.contains("`a` has no result"), "{errors:?}");
    let targets = RunOptions { targets: names(&["b"]), ..RunOptions::default() };
    assert_eq!(lab.run_with(&targets).1, ["a", "b"]);
    assert_eq!(lab.run(), "c d");
    let force = RunOptions { force: names(&["b"]), ..RunOptions::default() };
    assert_eq!(lab.run_with(&force).1, ["b"], "same bytes: the wave stops");
    let from = RunOptions { from: Some("b".into()), ..RunOptions::default() };
    assert_eq!(lab.run_with(&from).1, ["b", "c"]);
    let both = RunOptions { only: names(&["b"]), force: names(&["b"]), ..RunOptions::default() };
    let (summary, ran) = lab.run_with(&both);
    assert_eq!((ran, summary.skipped), (names(&["b"]), 1));
    let unknown = RunOptions { only: names(&["e", "f"]), ..RunOptions::default() };
    assert!(matches!(lab.try_run(&unknown), Err(RunError::Pipeline(errors)) if errors.len() == 2));
}

#[test]
fn uncached_stages_run_always_and_pass_their_content_on() {
    let lab = Lab::new(
        "[stage.a]\nkind='cat'\ninput=['in']\nkeep=1\ncache=false\n[stage.b]\nkind='cat'\ninput=['a']\n\
         [stage.off]\nkind='cat'\nwhen=false\n[stage.after]\nkind='cat'\ninput=['off']\n\
         [stage.both]\nkind='cat'\ntext='x'\ninput=['off', 'b']\nneeds=['off']\n",
    );
    lab.write("in", "12");
    assert_eq!(lab.run(), "a b both");
    assert_eq!(lab.run(), "a");
    assert_eq!(lab.planned()[..2], ["a: run (cache = false)", "b: after 1"]);
    lab.write("in", "22");
    assert_eq!(lab.run(), "a b both");
    assert!(lab.planned().contains(&"after: off".to_owned()));
}

#[test]
fn exports_are_kept_and_never_overwrite_what_is_not_ours() {
    let lab = Lab::new("[stage.a]\nkind='cat'\ntext='1'\nouts=['x/one', 'two']\nexport='../result'\n");
    assert_eq!(lab.run(), "a");
    let result = |name: &str| lab.path("../result").join(name);
    assert_eq!(std::fs::read_to_string(result("x/one")).unwrap(), "1");
    std::fs::remove_file(result("two")).unwrap();
    assert_eq!(lab.run(), "");
    assert!(there(&result("two")), "put back");

    // Another result: flow's own file is replaced, one that it no longer makes is removed.
    lab.write("pipe.toml", "[stage.a]\nkind='cat'\ntext='2'\nouts=['x/one']\nexport='../result'\n");
    assert_eq!(lab.run(), "a");
    assert_eq!(std::fs::read_to_string(result("x/one")).unwrap(), "2");
    assert!(!there(&result("two")));

    std::fs::write(result("x/one"), "mine").unwrap();
    let Err(RunError::Pipeline(errors)) = lab.try_run(&RunOptions::default()) else { panic!("it is in the way") };
    assert!(lab.take_ran().is_empty() && errors.len() == 1);
    assert!(errors[0].message.contains("--force a"), "{errors:?}");
    assert_eq!(std::fs::read_to_string(result("x/one")).unwrap(), "mine");
    let force = RunOptions { force: vec!["a".into()], ..RunOptions::default() };
    assert!(lab.run_with(&force).0.ok);
    assert_eq!(std::fs::read_to_string(result("x/one")).unwrap(), "2");
}

#[test]
fn an_interrupted_stage_goes_on_where_it_was() {
    let lab = Lab::new("[stage.s]\nkind='steps'\n");
    for step in 1..3 {
        let (summary, _) = lab.run_with(&RunOptions::default());
        assert_eq!(summary.failed, 1);
        assert_eq!(lab.failures()[0].1, [format!("stopped after step {step}")]);
    }
    assert_eq!(lab.planned(), ["s: run (failed last time), resumes"]);
    assert_eq!(lab.run(), "s");
    let events = lab.events.lock().unwrap();
    assert!(events.iter().any(|event| matches!(event, Event::Finished { how: How::Resumed, .. })));
    drop(events);
    assert_eq!(lab.result("s"), "...");
}

#[test]
fn runs_leave_records_and_a_no_op_run_only_a_small_one() {
    let lab = chain();
    lab.run();
    lab.run();
    lab.run();
    let history = History::open(&lab.cache);
    let runs = history.list().unwrap().collect::<Vec<_>>();
    assert_eq!(runs.len(), 3);
    let first = runs.iter().find(|run| run.head.ran == 9).unwrap();
    let log = std::fs::read_to_string(first.log_path("leaf2")).unwrap();
    assert_eq!(log, "this is leaf2\n");
    assert!(first.events().unwrap().len() >= 20 && first.head.ok == Some(true) && !first.alive);
    for run in runs.iter().filter(|run| run.id != first.id) {
        assert_eq!(run.head.same_nodes_as.as_ref(), Some(&first.id));
        assert_eq!(std::fs::read_dir(&run.dir).unwrap().count(), 1);
        let nodes = run.nodes().unwrap();
        assert_eq!(nodes.len(), 9);
        assert_eq!(nodes["leaf1"].how, Some(How::Cached));
        assert_eq!(nodes["leaf1"].key, first.nodes().unwrap()["leaf1"].key);
    }
    assert_eq!(history.find(&first.id).unwrap().id, first.id);
    assert!(history.find("1999").is_err());

    // Everything from the cache, but with other keys than last time: that is told.
    lab.write("in/1", "1zzz");
    lab.run();
    lab.write("in/1", "1aaa tail");
    lab.run();
    let runs = history.list().unwrap().collect::<Vec<_>>();
    let reverted = runs.iter().find(|run| run.head.ran == 0 && run.head.same_nodes_as.is_none()).unwrap();
    assert_eq!(reverted.nodes().unwrap()["leaf1"].key, first.nodes().unwrap()["leaf1"].key);
}

#[test]
fn why_is_the_difference_of_two_keys() {
    let lab = Lab::new("[stage.a]\nkind='cat'\ninput=['in']\ntext='x'\n[stage.b]\nkind='cat'\ninput=['a']\n");
    lab.write("in", "1");
    lab.run();
    lab.write("in", "2");
    lab.write("pipe.toml", "[stage.a]\nkind='cat'\ninput=['in']\nkeep=5\n[stage.b]\nkind='cat'\ninput=['a']\n");
    let project = lab.load().unwrap();
    let why = flow_engine::why(&project, &lab.cache, "a", None).unwrap();
    let what: Vec<_> = why[0].changes.iter().map(|change| change.what.as_str()).collect();
    assert_eq!(what, ["params.keep", "params.text", "input input"]);
    assert_eq!(why[0].changes[1].from.as_deref(), Some("\"x\""));
    assert!(why[0].comparable && why[0].key.is_some());
    let why = flow_engine::why(&project, &lab.cache, "b", None).unwrap();
    assert!(why[0].key.is_none() && why[0].previous.is_some() && !why[0].comparable);
    lab.run();
    let first = History::open(&lab.cache).list().unwrap().last().unwrap();
    let why = flow_engine::why(&project, &lab.cache, "b", Some(&first.id)).unwrap();
    assert_eq!(why[0].changes.len(), 1);
    assert!(flow_engine::why(&project, &lab.cache, "b", Some("nope")).is_err());
}

#[test]
fn two_nodes_with_one_key_run_once_whatever_happens() {
    let lab = Lab::new(
        "[stage.a]\nkind='cat'\ntext='x'\n[stage.b]\nkind='cat'\ntext='x'\n[stage.c]\nkind='cat'\ninput=['a', 'b']\n\
         [stage.d]\nkind='cat'\ntext='x'\ncache=false\n",
    );
    for jobs in [1, 4] {
        let force = RunOptions { force: vec!["a".into(), "b".into()], ..RunOptions::default() };
        let project = lab.load().unwrap();
        let settings = flow_engine::Settings { jobs, ..lab.settings() };
        let events = std::sync::Mutex::new(Vec::new());
        let sink = |event: Event| events.lock().unwrap().push(event);
        let cache = flow_cache::Cache::open(lab.cache.root()).unwrap();
        lab.take_ran();
        let summary = flow_engine::run(&project, &cache, &settings, &force, &sink, &lab.cancel).unwrap();
        assert!(summary.ok);
        let ran = lab.take_ran();
        assert_eq!(ran.iter().filter(|node| *node != "c").count(), 1, "{ran:?}");
        let text = format!("{:?}", events.lock().unwrap());
        assert!(text.contains("`a` is making the same result"), "{text}");
        assert!(!text.contains("another flow"), "{text}");
    }
    // If it fails, it fails for all.
    lab.write("bad", "");
    lab.write(
        "pipe.toml",
        "[stage.a]\nkind='cat'\ntext='y'\nfail_while='bad'\n[stage.b]\nkind='cat'\ntext='y'\nfail_while='bad'\n",
    );
    let (summary, ran) = lab.run_with(&RunOptions { keep_going: true, ..RunOptions::default() });
    assert_eq!((summary.failed, summary.blocked, ran.len()), (1, 1, 1));
}
