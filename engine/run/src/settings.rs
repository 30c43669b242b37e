//! [`Settings`]: what a person, a project and an environment say of the machine: where the cache is, what there is to use.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use flow_cache::Trust;
use flow_core::{Diagnostic, Network, Value, read};
use serde::Deserialize;

use crate::{
    cluster::{self, ExecutorFile, Executors, LOCAL},
    common,
    network_settings::{self, Mirrors, OneOrMore},
    remote_settings::{RemoteFile, RemoteSettings},
    syntax,
};

/// The settings file of a project, in the pipeline's folder or the nearest one above that has it.
pub const SETTINGS_FILE: &str = "flow.toml";

/// Settings of this machine, user, project and environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cache directory.
    pub cache_dir: PathBuf,
    /// How many nodes run at a time, at most.
    pub jobs: usize,
    /// Cores to use.
    pub cpus: u32,
    /// GPUs to use.
    pub gpus: u32,
    /// What programs call them: what `CUDA_VISIBLE_DEVICES` names, in its order; nothing: they are numbered from 0.
    pub gpu_names: Vec<String>,
    /// Bytes of memory to use.
    pub memory: u64,
    /// Machines to use: those of the allocation of Slurm's that flow runs in, else this one.
    pub nodes: u32,
    /// How long to wait for another flow that makes the same result or outs, or uses the GPUs; nothing: as long as it lives.
    pub wait: Option<Duration>,
    /// The team's cache.
    pub remote: Option<RemoteSettings>,
    /// Whose results are believed, from there and from archives.
    pub trust: Trust,
    /// How files are taken from the network.
    pub network: Network,
    /// Where stages run that do not say: `local`, or the name of an executor.
    pub executor: String,
    /// What is said of executors, by name.
    pub executors: Executors,
    /// What runs containers, whatever a pipeline says.
    pub container_engine: Option<String>,
    /// The files that were read, the strongest last.
    pub sources: Vec<PathBuf>,
}

/// What a settings file may hold.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    cache_dir: Option<String>,
    #[serde(default)]
    jobs: Option<usize>,
    #[serde(default)]
    cpus: Option<u32>,
    #[serde(default)]
    gpus: Option<u32>,
    #[serde(default, deserialize_with = "optional_bytes")]
    memory: Option<u64>,
    #[serde(default, deserialize_with = "common::duration_or_none")]
    wait: Option<Duration>,
    #[serde(default)]
    connections: Option<usize>,
    #[serde(default)]
    mirrors: Mirrors,
    #[serde(default)]
    container_engine: Option<String>,
    #[serde(default)]
    remote: RemoteFile,
    #[serde(default)]
    executor: Option<String>,
    #[serde(default)]
    slurm: ExecutorFile,
    #[serde(default)]
    executors: Executors,
}

pub(crate) fn optional_bytes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    common::bytes(deserializer).map(Some)
}

/// What an environment variable holds.
type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Settings {
    /// Reads the user's file (`flow/config.toml` under `$XDG_CONFIG_HOME` or `~/.config`), the project's
    /// ([`SETTINGS_FILE`]) and the environment (`FLOW_CACHE_DIR`, `FLOW_JOBS`, `FLOW_CPUS`, `FLOW_GPUS`, `FLOW_MEMORY`,
    /// `FLOW_WAIT`, `FLOW_CONNECTIONS`, `FLOW_CONTAINER`, `FLOW_EXECUTOR`, `FLOW_REMOTE`, `FLOW_REMOTE_MODE`): later wins. What nobody says, the machine says.
    ///
    /// # Errors
    /// A file or variable cannot be understood: all of them, with their places.
    pub fn load(project: &Path, env: Env<'_>) -> Result<Self, Vec<Diagnostic>> {
        let home = env("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let directory = |variable: &str, below: &str| {
            let named = env(variable).filter(|path| Path::new(path).is_absolute()).map(PathBuf::from);
            named.or_else(|| home.as_ref().map(|home| home.join(below)))
        };
        // Also of `.`: the folders above it, and what a setting's path is relative to.
        let project =
            &project.canonicalize().or_else(|_| std::path::absolute(project)).unwrap_or_else(|_| project.into());
        let user = directory("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("flow/config.toml"));
        let projects = project.ancestors().map(|dir| dir.join(SETTINGS_FILE)).find(|path| path.is_file());

        let mut errors = Vec::new();
        let mut merged = File::default();
        let mut sources = Vec::new();
        for path in [user.filter(|path| path.is_file()), projects].into_iter().flatten() {
            match syntax::read(&path).and_then(|value| File::read(&path, &value)) {
                Ok(file) => merged.lay_over(file, path.parent().unwrap_or(project), home.as_deref()),
                Err(wrong) => errors.extend(wrong),
            }
            sources.push(path);
        }
        merged.lay_over(from_env(env, &mut errors), project, home.as_deref());
        let trust = merged.remote.trust();
        let remote = merged.remote.settings().unwrap_or_else(|error| {
            errors.push(error);
            None
        });

        let cache =
            merged.cache_dir.map(PathBuf::from).or_else(|| Some(directory("XDG_CACHE_HOME", ".cache")?.join("flow")));
        if cache.is_none() {
            errors.push(Diagnostic::new("there is no place for the cache").hint("set FLOW_CACHE_DIR, or HOME"));
        }
        match cache {
            Some(cache_dir) if errors.is_empty() => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                let visible = visible_gpus(env);
                let gpus = merged.gpus.unwrap_or_else(|| count_gpus(env));
                let cpus = merged.cpus.unwrap_or_else(|| u32::try_from(cores).unwrap_or(u32::MAX)).max(1);
                Ok(Self {
                    cache_dir,
                    jobs: merged.jobs.unwrap_or(cpus as usize).max(1),
                    cpus,
                    // No program sees more than the variable shows, whatever a file says.
                    gpus: visible.as_ref().map_or(gpus, |names| gpus.min(names.len() as u32)),
                    gpu_names: visible.unwrap_or_default(),
                    memory: merged.memory.unwrap_or_else(machine_memory),
                    nodes: env("SLURM_JOB_NUM_NODES").and_then(|nodes| nodes.parse().ok()).unwrap_or(1).max(1),
                    wait: merged.wait,
                    remote,
                    trust,
                    network: Network {
                        mirrors: merged.mirrors.into_iter().map(|(start, OneOrMore(to))| (start, to)).collect(),
                        connections: merged.connections.unwrap_or(Network::default().connections).max(1),
                    },
                    executor: merged.executor.unwrap_or_else(|| LOCAL.to_owned()),
                    executors: merged.executors,
                    container_engine: merged.container_engine,
                    sources,
                })
            }
            _ => Err(errors),
        }
    }
}

impl File {
    /// What a file says.
    fn read(path: &Path, value: &Value) -> Result<Self, Vec<Diagnostic>> {
        let read = read::<Self>(value);
        let mut errors = read.errors;
        // What was made up in place of something wrong is not the user's.
        let remote = read.value.as_ref().filter(|_| !read.made_up.iter().any(|key| key == "remote"));
        if let Some(Err(wrong)) = remote.map(|file| file.remote.check(path, value)) {
            errors.extend(wrong);
        }
        if let Some(file) = read.value.as_ref().filter(|_| !read.made_up.iter().any(|key| key == "mirrors")) {
            errors.extend(network_settings::check(&file.mirrors, value));
        }
        if let Some(file) = &read.value {
            errors.extend(cluster::check(&file.executors, &file.slurm, value));
        }
        match read.value {
            Some(file) if errors.is_empty() => Ok(file),
            _ => Err(errors),
        }
    }

    /// Takes what `over` says; its paths are relative to `dir`.
    fn lay_over(&mut self, over: File, dir: &Path, home: Option<&Path>) {
        let absolute = |path: String| match (path.strip_prefix("~/"), home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => dir.join(path),
        };
        let cache_dir = over.cache_dir.map(|path| absolute(path).to_string_lossy().into_owned());
        self.cache_dir = cache_dir.or(self.cache_dir.take());
        self.jobs = over.jobs.or(self.jobs);
        self.cpus = over.cpus.or(self.cpus);
        self.gpus = over.gpus.or(self.gpus);
        self.memory = over.memory.or(self.memory);
        self.wait = over.wait.or(self.wait);
        self.connections = over.connections.or(self.connections);
        self.mirrors.extend(over.mirrors);
        self.container_engine = over.container_engine.or(self.container_engine.take());
        self.remote.lay_over(over.remote, &absolute);
        self.executor = over.executor.or(self.executor.take());
        for (name, table) in over.executors.into_iter().chain([(cluster::SLURM.to_owned(), over.slurm)]) {
            self.executors.entry(name).or_default().lay_over(table);
        }
    }
}

fn from_env(env: Env<'_>, errors: &mut Vec<Diagnostic>) -> File {
    let mut given = |variable: &str, what: &str, parse: fn(&str) -> Option<u64>| {
        let text = env(variable).filter(|text| !text.is_empty())?;
        let number = parse(text.trim());
        if number.is_none() {
            errors.push(Diagnostic::new(format!("{variable}={text} is no {what}")));
        }
        number
    };
    let wait = given("FLOW_WAIT", "length of time, such as 90, 30m or 1h30m (0: nothing is waited for)", |text| {
        text.parse().map_or_else(|_| common::millis_of(text), |s: u64| s.checked_mul(1000))
    });
    let memory = given("FLOW_MEMORY", "number of bytes, such as 16GiB", common::bytes_of);
    let mut number = |variable: &str, parse| given(variable, "number", parse);
    let small = |text: &str| text.parse::<u32>().ok().map(u64::from);
    File {
        jobs: number("FLOW_JOBS", small).map(|n| n as usize),
        cpus: number("FLOW_CPUS", small).map(|n| n as u32),
        gpus: number("FLOW_GPUS", small).map(|n| n as u32),
        memory,
        wait: wait.map(Duration::from_millis),
        connections: number("FLOW_CONNECTIONS", small).map(|n| n as usize),
        mirrors: Mirrors::new(),
        container_engine: env("FLOW_CONTAINER").filter(|name| !name.is_empty()),
        cache_dir: env("FLOW_CACHE_DIR").filter(|path| !path.is_empty()).map(|path| {
            // A variable's path is relative to where the person stands, not to the project.
            std::path::absolute(&path).map_or(path, |path| path.to_string_lossy().into_owned())
        }),
        remote: RemoteFile::from_env(env),
        executor: env("FLOW_EXECUTOR").filter(|name| !name.is_empty()),
        slurm: ExecutorFile::default(),
        executors: Executors::new(),
    }
}

/// What `CUDA_VISIBLE_DEVICES` shows, if it is set: up to the first that is none, as CUDA reads it.
fn visible_gpus(env: Env<'_>) -> Option<Vec<String>> {
    let visible = env("CUDA_VISIBLE_DEVICES")?;
    let names = visible.split(',').map(str::trim).take_while(|name| !name.is_empty() && *name != "-1");
    Some(names.map(str::to_owned).collect())
}

/// GPUs that a program would see: what `CUDA_VISIBLE_DEVICES` leaves, else NVIDIA's device files.
fn count_gpus(env: Env<'_>) -> u32 {
    if let Some(visible) = visible_gpus(env) {
        return visible.len() as u32;
    }
    let is_gpu = |name: &str| name.strip_prefix("nvidia").is_some_and(|n| n.parse::<u32>().is_ok());
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_str().is_some_and(is_gpu)).count() as u32
}

/// The machine's memory in bytes, or the control group's limit if that is less.
fn machine_memory() -> u64 {
    let total = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    total.map_or(u64::MAX, |kib| kib.saturating_mul(1024)).min(limit.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashMap, fs};

    fn load(project: &Path, vars: &[(&str, &str)]) -> Result<Settings, Vec<Diagnostic>> {
        let vars: HashMap<_, _> = vars.iter().copied().collect();
        Settings::load(project, &|name| vars.get(name).map(|value| (*value).to_owned()))
    }

    #[test]
    fn environment_wins_over_project_over_user() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        let project = dir.path().join("project/pipelines");
        fs::create_dir_all(home.join(".config/flow")).unwrap();
        fs::create_dir_all(&project).unwrap();
        let home_text = home.to_str().unwrap();
        let plain = load(&project, &[("HOME", home_text), ("CUDA_VISIBLE_DEVICES", "0,3,-1,4")]).unwrap();
        assert_eq!(plain.cache_dir, home.join(".cache/flow"));
        assert_eq!((plain.gpus, plain.jobs), (2, plain.cpus as usize));
        assert_eq!(plain.gpu_names, ["0", "3"]);
        let shown = load(&project, &[("HOME", home_text), ("FLOW_GPUS", "8"), ("CUDA_VISIBLE_DEVICES", "GPU-a, 2")]);
        assert_eq!(shown.map(|shown| (shown.gpus, shown.gpu_names)), Ok((2, vec!["GPU-a".into(), "2".into()])));
        assert!(plain.memory > 1 << 20);

        fs::write(home.join(".config/flow/config.toml"), "cache_dir = '~/c'\njobs = 3\nmemory = '2GiB'").unwrap();
        let user = load(&project, &[("HOME", home_text)]).unwrap();
        assert_eq!((user.cache_dir, user.jobs, user.memory), (home.join("c"), 3, 2 << 30));

        let file = dir.path().join("project/flow.toml");
        fs::write(&file, "cache_dir = 'cache'\ngpus = 4").unwrap();
        let both = load(&project, &[("HOME", home_text), ("FLOW_JOBS", "9")]).unwrap();
        assert_eq!((both.cache_dir, both.jobs, both.gpus), (dir.path().join("project/cache"), 9, 4));
        assert_eq!(both.sources.last(), Some(&file));
        assert_eq!(load(&project, &[("FLOW_CACHE_DIR", "/x")]).unwrap().cache_dir, Path::new("/x"));

        let mirrors = "[mirrors]\n'https://a' = 'http://b'\n'https://c/' = ['http://d/', 'https://e/']";
        fs::write(home.join(".config/flow/config.toml"), mirrors).unwrap();
        fs::write(&file, "connections = 2\n[mirrors]\n'https://c/' = 'http://f/'\n'https://a' = []").unwrap();
        let Settings { network, .. } = load(&project, &[("HOME", home_text)]).unwrap();
        assert_eq!((network.connections, network.mirrors_of("https://a/x").len()), (2, 0));
        assert_eq!(network.mirrors_of("https://c/x"), ["http://f/x"]);
        fs::write(&file, "[mirrors]\n'https://a' = 'b'\nc = ['http://d']").unwrap();
        let errors = load(&project, &[("HOME", home_text)]).unwrap_err();
        let lines: Vec<_> = errors.iter().map(|e| e.span.as_ref().map(|span| span.line_column().0)).collect();
        assert_eq!(lines, [Some(2), Some(3)], "{errors:?}");

        fs::write(&file, "cache_dri = 'cache'\njobs = -1\n[remote]\nmode = 'wr'").unwrap();
        let errors = load(&project, &[("FLOW_JOBS", "many"), ("HOME", home_text)]).unwrap_err();
        let lines: Vec<_> = errors.iter().map(|e| e.span.as_ref().map(|span| span.line_column().0)).collect();
        assert_eq!(lines, [Some(1), Some(2), Some(4), None], "{errors:?}");
        assert_eq!(errors[0].hints, ["did you mean `cache_dir`?"]);
    }
}
