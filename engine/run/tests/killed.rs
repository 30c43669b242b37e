//! A run that is killed loses nothing: it is seen to be dead, nothing half-made is used, and the next run goes on.

mod kinds;

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use flow_core::{Cancel, Event, How};
use flow_engine::{History, LoadOptions, Project, RunOptions};
use kinds::{KINDS, Lab};

const DIR: &str = "FLOW_TEST_KILLED_DIR";

/// Not a test by itself: the process that is killed.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let dir = Path::new(&dir);
    let project = Project::load(&dir.join("p/pipe.toml"), KINDS, &LoadOptions::default()).unwrap();
    let cache = flow_cache::Cache::open(&dir.join("cache")).unwrap();
    let settings = flow_engine::Settings {
        remote: None,
        trust: flow_cache::Trust::default(),
        cache_dir: dir.join("cache"),
        jobs: 2,
        cpus: 2,
        gpus: 0,
        nodes: 1,
        gpu_names: Vec::new(),
        memory: 1 << 30,
        wait: None,
        sources: Vec::new(),
        network: flow_core::Network::default(),
        executor: "local".into(),
        executors: flow_engine::Executors::new(),
        container_engine: None,
    };
    flow_engine::run(&project, &cache, &settings, &RunOptions::default(), &|_| {}, &Cancel::default()).unwrap();
}

fn wait_for(what: &str, there: impl Fn() -> bool) {
    let began = Instant::now();
    while !there() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_killed_run_is_known_to_be_dead_and_is_continued() {
    let pipe = |pause: f64| {
        format!(
            "[stage.before]\nkind='cat'\ntext='b'\n[stage.s]\nkind='steps'\nneeds=['before']\npause={pause}\n\
             [stage.after]\nkind='cat'\ninput=['s', 'before']\n"
        )
    };
    let lab = Lab::new(&pipe(60.0));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child"])
        .env(DIR, lab.dir.path())
        .spawn()
        .unwrap();
    let scratch = lab.cache.root().join("scratch");
    let stepped = || {
        let slots = std::fs::read_dir(&scratch).into_iter().flatten().flatten();
        slots.into_iter().any(|slot| std::fs::read(slot.path().join("steps")).is_ok_and(|steps| !steps.is_empty()))
    };
    wait_for("the stage makes its first step", stepped);
    let history = History::open(&lab.cache);
    assert!(history.find("last").unwrap().alive, "seen from another process while it goes on");
    child.kill().unwrap();
    child.wait().unwrap();

    let run = history.find("last").unwrap();
    assert!(!run.alive && run.head.finished.is_none());
    let nodes = run.nodes().unwrap();
    assert_eq!((nodes["before"].how, nodes["s"].how), (Some(How::Ran), None));

    lab.write("pipe.toml", &pipe(0.0));
    let (summary, ran) = lab.run_with(&RunOptions::default());
    assert_eq!((ran, summary.skipped), (vec!["s".to_owned()], 1), "what was done stays done");
    assert_eq!(lab.failures()[0].1, ["stopped after step 2"]);
    assert_eq!(lab.run(), "after s");
    let resumed = |event: &Event| matches!(event, Event::Finished { node, how: How::Resumed, .. } if node == "s");
    assert!(lab.events.lock().unwrap().iter().any(resumed));
    assert_eq!(lab.result("after"), "...b");
}
