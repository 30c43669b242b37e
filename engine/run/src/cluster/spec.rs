//! What a job is told, and where: `jobs/<batch>/` of the cache.
//!
//! ```text
//! jobs/<batch>/spec.json        what its tasks are to make, and the pipeline as it was
//! jobs/<batch>/job.sh           what the scheduler starts
//! jobs/<batch>/submitted.json   the ids of its tasks
//! jobs/<batch>/<task>.jsonl     what a task says of itself (see `stream`)
//! jobs/<batch>/<task>.log       what its shell printed
//! jobs/keys/<key>.json          which task makes a key
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flow_cache::Cache;
use flow_core::{Digest, Key};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{looks::Look, project::Project, record::write_atomic};

/// The variable that tells a job which task it is, where the scheduler has none of its own.
pub const TASK: &str = "FLOW_TASK";
/// The script of a batch.
pub const SCRIPT: &str = "job.sh";
const SPEC: &str = "spec.json";
const SUBMITTED: &str = "submitted.json";
/// Of what these files hold.
const FORMAT: u32 = 1;

/// `spec.json`: what the tasks of a batch are to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// [`FORMAT`]
    pub format: u32,
    /// flow's version.
    pub version: String,
    /// The executor that it was given to.
    pub executor: String,
    /// The run that it was submitted by.
    pub run: String,
    /// Who submitted it, and where.
    pub user: String,
    /// When, in seconds since 1970.
    pub time: f64,
    /// The pipeline file, absolute.
    pub pipeline: PathBuf,
    /// The profile.
    pub profile: Option<String>,
    /// `--set`
    pub set: Vec<String>,
    /// The cache.
    pub cache: PathBuf,
    /// The files that the pipeline was read from, as they were then: who edits them while a job waits changes the next run.
    pub sources: BTreeMap<PathBuf, String>,
    /// The time limit of each task, if it is known.
    pub limit: Option<Duration>,
    /// So long before it a task stops by itself.
    pub margin: Duration,
    /// By task: its nodes, which run one after the other.
    pub tasks: Vec<Vec<Task>>,
}

/// A node of a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The node.
    pub node: String,
    /// The key that it runs under.
    pub key: Key,
    /// Why it runs, for people.
    pub why: String,
    /// Threads.
    pub threads: usize,
    /// A result that is there already does not count.
    pub force: bool,
    /// Files of the user's may be overwritten.
    pub overwrite: bool,
    /// Which try it is, from 1: jobs that stopped at their limit are followed by others.
    pub part: u32,
}

/// `submitted.json`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Submitted {
    /// The executor.
    pub executor: String,
    /// Who submitted it.
    pub user: String,
    /// The ids of its tasks.
    pub ids: Vec<String>,
}

/// Which task makes a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    /// The batch.
    pub batch: String,
    /// The task in it.
    pub task: usize,
    /// Which try it is.
    pub part: u32,
}

/// The directories of jobs.
#[derive(Clone, Debug)]
pub struct Jobs(PathBuf);

impl Jobs {
    /// Those of a cache.
    pub fn of(cache: &Cache) -> Self {
        Self(cache.root().join("jobs"))
    }

    /// Where a batch is.
    pub fn batch(&self, batch: &str) -> PathBuf {
        self.0.join(batch)
    }

    /// The batches that there are.
    pub fn batches(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name != "keys").collect();
        names.sort_unstable();
        names
    }

    /// Writes a batch down, before it is submitted.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn write(&self, batch: &str, spec: &Spec, script: &str) -> Result<PathBuf> {
        let dir = self.batch(batch);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let path = dir.join(SPEC);
        // What was set on the command line is its owner's.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.as_mut().map_err(|error| anyhow::anyhow!("cannot write {}: {error}", path.display()))?;
        file.write_all(&serde_json::to_vec(spec)?).with_context(|| format!("cannot write {}", path.display()))?;
        file.sync_all()?;
        write_atomic(&dir.join(SCRIPT), script.as_bytes())?;
        Ok(dir)
    }

    /// Notes that a batch was submitted.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn set_submitted(&self, batch: &str, submitted: &Submitted) -> Result<()> {
        write_atomic(&self.batch(batch).join(SUBMITTED), &serde_json::to_vec(submitted)?)
    }

    /// What is known of a batch that was submitted; nothing if it is not known that it was.
    pub fn submitted(&self, batch: &str) -> Option<Submitted> {
        read(&self.batch(batch).join(SUBMITTED)).ok()
    }

    /// What a batch is to make.
    ///
    /// # Errors
    /// It is not there, not ours to read, or of another format.
    pub fn spec(&self, batch: &str) -> Result<Spec> {
        read_spec(&self.batch(batch))
    }

    /// Notes who makes a key, unless another does; whether that is this one now. `force`: whoever does.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn claim(&self, key: &Key, maker: &Maker, force: bool) -> Result<bool> {
        let keys = self.0.join("keys");
        fs::create_dir_all(&keys).with_context(|| format!("cannot make {}", keys.display()))?;
        let (path, own) = (self.key(key), keys.join(format!("{}-{}.tmp", maker.batch, maker.task)));
        let write = || -> io::Result<bool> {
            fs::write(&own, serde_json::to_vec(maker)?)?;
            if force {
                return fs::rename(&own, &path).map(|()| true);
            }
            // Whole or not at all, and only where there is none.
            let linked = fs::hard_link(&own, &path);
            fs::remove_file(&own)?;
            match linked {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                linked => linked.map(|()| true),
            }
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// For how long it has been noted who makes a key.
    pub fn claimed_for(&self, key: &Key) -> Option<Duration> {
        age(&self.key(key))
    }

    fn key(&self, key: &Key) -> PathBuf {
        self.0.join("keys").join(format!("{key}.json"))
    }

    /// Who makes a key.
    pub fn maker(&self, key: &Key) -> Option<Maker> {
        read(&self.key(key)).ok()
    }

    /// A key is made, or will not be by this one.
    pub fn forget(&self, key: &Key, maker: &Maker) {
        if self.maker(key).as_ref() == Some(maker) {
            fs::remove_file(self.key(key)).ok();
        }
    }

    /// A batch is nobody's any more.
    pub fn remove(&self, batch: &str) {
        fs::remove_dir_all(self.batch(batch)).ok();
    }

    /// Removes batches that nobody came back to.
    pub fn sweep(&self, older: Duration) {
        let keys = fs::read_dir(self.0.join("keys")).into_iter().flatten().flatten();
        let made: BTreeSet<String> = keys.filter_map(|key| Some(read::<Maker>(&key.path()).ok()?.batch)).collect();
        for batch in self.batches().into_iter().filter(|batch| !made.contains(batch)) {
            let dir = self.batch(&batch);
            let is_old = |path: &Path| age(path).is_some_and(|age| age > older);
            let mut files = fs::read_dir(&dir).into_iter().flatten().flatten();
            if is_old(&dir) && files.all(|file| is_old(&file.path())) {
                self.remove(&batch);
            }
        }
    }
}

/// For how long a file is as it is.
fn age(path: &Path) -> Option<Duration> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()?.elapsed().ok()
}

/// What the batch in this directory is to make.
///
/// # Errors
/// It cannot be read, or is of another format.
pub fn read_spec(dir: &Path) -> Result<Spec> {
    let spec: Spec = read(&dir.join(SPEC))?;
    ensure!(spec.format == FORMAT, "{} is of format {}, and this flow reads {FORMAT}", dir.display(), spec.format);
    Ok(spec)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not what flow writes there", path.display()))
}

impl Spec {
    /// Of tasks of a project, which was read from these `sources`.
    pub fn new(
        project: &Project,
        cache: &Cache,
        sources: BTreeMap<PathBuf, String>,
        run: String,
        executor: &str,
        time: f64,
    ) -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            executor: executor.to_owned(),
            run,
            user: user(),
            time,
            pipeline: project.absolute_file(),
            profile: project.profile().map(str::to_owned),
            set: project.set().to_vec(),
            cache: cache.root().to_owned(),
            sources,
            limit: None,
            margin: Duration::ZERO,
            tasks: Vec::new(),
        }
    }
}

/// The files that a project was read from, as they were: jobs begin when they may have been edited.
///
/// # Errors
/// One of them was edited already, since it was read.
pub fn sources(project: &Project) -> Result<BTreeMap<PathBuf, String>> {
    let mut sources = BTreeMap::new();
    for look in project.looks() {
        let Look::Read(path, digest) = look else { continue };
        let path = std::path::absolute(path)?;
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(Digest::of(text.as_bytes()) == *digest, "{} changed while the run began: run again", path.display());
        sources.insert(path, text);
    }
    Ok(sources)
}

/// Who runs this.
pub fn user() -> String {
    let named = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    named.filter(|name| !name.is_empty()).unwrap_or_else(|| rustix::process::getuid().as_raw().to_string())
}

/// What the scheduler starts for a task: this program, after the site's own lines.
pub fn script(flow: &Path, dir: &Path, setup: Option<&str>) -> String {
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    let setup = setup.map_or_else(String::new, |lines| format!("{}\n", lines.trim_end()));
    format!(
        "#!/bin/sh\n{setup}exec {} job {} \"${{FLOW_TASK:-${{SLURM_ARRAY_TASK_ID:-0}}}}\"\n",
        quoted(flow),
        quoted(dir)
    )
}
