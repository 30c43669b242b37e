//! What it costs that nothing is to be done: a pipeline of N stages, each of one small file in and out, run again.
//!
//! `cargo bench -p flow-engine [-- N]`; 10,000 by default. A chain of 100 is among them. Every run is its own process.

#[path = "../tests/kinds/mod.rs"]
mod kinds;

use std::{path::Path, time::Instant};

use flow_cache::Cache;
use flow_core::Cancel;
use flow_engine::{LoadOptions, Project, RunOptions, Settings};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [command, dir] = arguments.as_slice()
        && command == "run"
    {
        return once(Path::new(dir));
    }
    let count = arguments.first().map_or(10_000, |count| count.parse().expect("a number of stages"));
    let dir = tempfile::tempdir().expect("a temporary directory");
    write(dir.path(), count);
    for name in ["first", "no-op", "no-op", "no-op"] {
        // What is younger than the clock can tell is read again; a person is slower than that.
        std::thread::sleep(std::time::Duration::from_millis(2500));
        let me = std::env::current_exe().expect("this program");
        eprint!("{count} stages, {name}: ");
        let status = std::process::Command::new(me).arg("run").arg(dir.path()).status().expect("a run");
        assert!(status.success());
    }
}

fn write(dir: &Path, count: usize) {
    let chain = 100.min(count / 5);
    let mut text = String::new();
    std::fs::create_dir(dir.join("in")).expect("a directory");
    for i in 0..count {
        let input = if i < count - chain {
            std::fs::write(dir.join(format!("in/{i}")), format!("file {i}")).expect("a file");
            format!("in/{i}")
        } else {
            format!("made/{}", if i == count - chain { 0 } else { i - 1 })
        };
        text +=
            &format!("[stage.s{i}]\nkind = 'cat'\ntext = '{i}'\nkeep = 64\ninput = ['{input}']\nouts = ['made/{i}']\n");
    }
    std::fs::write(dir.join("pipe.toml"), text).expect("a pipeline");
}

fn once(dir: &Path) {
    let began = Instant::now();
    let project = Project::load(&dir.join("pipe.toml"), kinds::KINDS, &LoadOptions::default()).expect("a pipeline");
    let loaded = began.elapsed();
    let cache = Cache::open(&dir.join("cache")).expect("a cache");
    let settings = Settings {
        remote: None,
        trust: flow_cache::Trust::default(),
        cache_dir: cache.root().to_owned(),
        jobs: 2,
        cpus: 2,
        gpus: 0,
        nodes: 1,
        gpu_names: Vec::new(),
        wait: None,
        memory: u64::MAX,
        network: flow_core::Network::default(),
        container_engine: None,
        executor: "local".into(),
        executors: flow_engine::Executors::new(),
        sources: Vec::new(),
    };
    let summary = flow_engine::run(&project, &cache, &settings, &RunOptions::default(), &|_| {}, &Cancel::default())
        .expect("a run");
    assert!(summary.ok);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default().trim().to_owned();
    eprintln!("{} ran, load {loaded:.1?}, all {:.1?}, peak memory {peak}", summary.ran, began.elapsed());
}
