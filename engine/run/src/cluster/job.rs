//! The other side: what runs in a job, on a machine of the cluster.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use flow_cache::{Cache, Unusable};
use flow_core::{Cancel, Cancelled, Diagnostic, Event, How, Kind, Sink as _, hidden};

use super::{
    spec::{Spec, Task, read_spec},
    stream::{Ending, Word, Writer},
    track::lag,
};
use crate::{
    decide::{Decider, Decision, Work},
    exec::{Env, Job, Tried},
    frozen,
    graph::NodeId,
    load::LoadOptions,
    place::Placer,
    project::Project,
    record::host,
    select::{RunOptions, Selection},
    settings::Settings,
};

/// How often a job looks at its clock.
const LOOK: Duration = Duration::from_millis(200);
/// How often it tries again what another flow has.
const TRY: Duration = Duration::from_secs(1);

/// What asks a job to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Its time is nearly over: the scheduler says so, or the clock.
    pub limit: Cancel,
    /// Somebody wants it to.
    pub asked: Cancel,
}

/// What runs now, for the one who looks at the clock.
#[derive(Default)]
struct Now {
    cancel: Cancel,
    deadline: Option<Instant>,
}

/// Makes the nodes of a task of the batch in `dir`; whether all of them are there. What becomes of each it says in the
/// task's file, where the head reads it.
///
/// # Errors
/// The batch cannot be read, or nothing can be said.
pub fn run_job(
    dir: &Path,
    task: usize,
    kinds: &'static [Kind],
    env: Vec<(String, String)>,
    stop: &Stop,
) -> Result<bool> {
    let mut spec = read_spec(dir)?;
    let tasks = spec.tasks.get(task).cloned().with_context(|| format!("{} has no task {task}", dir.display()))?;
    let writer = Writer::open(&dir.join(format!("{task}.jsonl")))?;
    writer.say(Word::Began { host: host() });
    frozen::set(std::mem::take(&mut spec.sources));
    let began = Instant::now();
    let (now, over) = (Mutex::new(Now::default()), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| watch(&spec, stop, &writer, &now, began, &over));
        let worker = Worker::open(&spec, kinds, env);
        let mut whole = true;
        for task in tasks {
            let end = match &worker {
                _ if stop.asked.is_set() || stop.limit.is_set() => Ending::Untouched,
                Ok(worker) => ending(worker.make(&task, &writer, &now), stop),
                Err(error) => failed(error),
            };
            whole &= matches!(end, Ending::Made(_));
            writer.say(Word::Ended { node: task.node, end });
        }
        over.store(true, Ordering::Relaxed);
        Ok(whole)
    })
}

/// Passes on to what runs that its time is over.
fn watch(spec: &Spec, stop: &Stop, writer: &Writer, now: &Mutex<Now>, began: Instant, over: &AtomicBool) {
    // The scheduler's warning may not come: some have none.
    let limit = spec.limit.map(|limit| limit.saturating_sub(spec.margin));
    while !over.load(Ordering::Relaxed) {
        if limit.is_some_and(|limit| began.elapsed() >= limit) {
            stop.limit.set();
        }
        let now = now.lock().unwrap_or_else(PoisonError::into_inner);
        let late = now.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if late || stop.limit.is_set() || stop.asked.is_set() {
            now.cancel.set();
        }
        drop(now);
        writer.sync();
        thread::sleep(LOOK);
    }
}

/// A scheduler that ends a job signals all of its processes: what a stage started may end of it before this one hears.
const HEAR: Duration = Duration::from_millis(500);

fn ending(made: Result<How>, stop: &Stop) -> Ending {
    if made.is_err() {
        let began = Instant::now();
        while !(stop.asked.is_set() || stop.limit.is_set()) && began.elapsed() < HEAR {
            thread::sleep(HEAR / 50);
        }
    }
    match made {
        Ok(how) => Ending::Made(how),
        Err(_) if stop.asked.is_set() => Ending::Stopped,
        Err(_) if stop.limit.is_set() => Ending::Limit,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> Ending {
    // Of a time that is over it was told; how the stage was stopped then says nothing.
    let said = error.chain().filter(|cause| !cause.is::<Cancelled>());
    let causes = said.map(|cause| hidden(cause.to_string())).collect();
    Ending::Failed { causes, unusable: error.downcast_ref::<Unusable>().is_some() }
}

/// What all nodes of a task share.
struct Worker {
    project: Project,
    cache: Cache,
    settings: Settings,
}

impl Worker {
    fn open(spec: &Spec, kinds: &'static [Kind], env: Vec<(String, String)>) -> Result<Self> {
        ensure!(
            spec.version == env!("CARGO_PKG_VERSION"),
            "the job was submitted by flow {}, and {} here is {}",
            spec.version,
            std::env::current_exe().map_or_else(|_| "flow".into(), |path| path.display().to_string()),
            env!("CARGO_PKG_VERSION")
        );
        let all =
            |errors: Vec<Diagnostic>| anyhow!(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
        let dir = spec.pipeline.parent().context("a pipeline file is in a folder")?;
        let settings = Settings::load(dir, &|name| std::env::var(name).ok()).map_err(all)?;
        let options = LoadOptions { profile: spec.profile.clone(), set: spec.set.clone(), env };
        let project = Project::load(&spec.pipeline, kinds, &options).map_err(all)?;
        Ok(Self { project, cache: Cache::open(&spec.cache)?, settings })
    }

    /// Makes a node, or finds it made.
    fn make(&self, task: &Task, writer: &Writer, now: &Mutex<Now>) -> Result<How> {
        let graph = self.project.graph();
        let all =
            |errors: Vec<Diagnostic>| anyhow!(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
        let id = graph.select(&task.node).map_err(|error| anyhow!("{error}"))?;
        let id = *id.first().with_context(|| format!("`{}` is not in the pipeline", task.node))?;
        let mut options = RunOptions { only: vec![task.node.clone()], ..RunOptions::default() };
        options.force.extend(task.force.then(|| task.node.clone()));
        let selection = Selection::new(graph, &options).map_err(all)?;
        let mut decider = Decider::new(&self.project, &self.cache, &selection).map_err(all)?;
        for before in (0..graph.nodes.len()).filter(|&before| selection.wanted[before] && before != id) {
            self.take(&mut decider, before, now)?;
        }
        let work = match decider.decide(id)? {
            Decision::Hit(..) => return Ok(How::Shared),
            Decision::Run(work) | Decision::Absent(_, work) => work,
            Decision::Off => bail!("`{}` is off", task.node),
        };
        ensure!(
            work.run_parts().key() == task.key,
            "what `{}` takes changed since its job was submitted: run again",
            task.node
        );
        self.execute(id, *work, &decider, task, writer, now)
    }

    /// What another node gave: it is in the cache, or the head would not have submitted this one. But what this machine knows of
    /// a network's disk may be older.
    fn take(&self, decider: &mut Decider<'_>, id: NodeId, now: &Mutex<Now>) -> Result<()> {
        let (began, lag) = (Instant::now(), lag(self.cache.root()));
        let outcome = loop {
            let work = match decider.decide(id)? {
                Decision::Off => return Ok(()),
                Decision::Hit(outcome, _) | Decision::Absent(outcome, _) => break outcome,
                Decision::Run(work) => work,
            };
            // A stage that is never taken from the cache has a record all the same.
            if let Some(outcome) = self.cache.lookup(&work.key)? {
                break outcome;
            }
            let stopped = now.lock().unwrap_or_else(PoisonError::into_inner).cancel.is_set();
            if stopped || began.elapsed() >= lag {
                let node = &self.project.graph().nodes[id].name;
                bail!("the result of `{node}` is not in the cache {} any more", self.cache.root().display());
            }
            thread::sleep(TRY);
        };
        decider.set(id, outcome.key, outcome.tree);
        Ok(())
    }

    fn execute(
        &self,
        id: NodeId,
        work: Work,
        decider: &Decider<'_>,
        task: &Task,
        writer: &Writer,
        now: &Mutex<Now>,
    ) -> Result<How> {
        let common = self.project.graph().common(id);
        let gpus = self.gpus(common.resources.gpus as usize)?;
        let placer = Placer::new(&self.project, &self.cache, writer);
        let env = Env {
            project: &self.project,
            cache: &self.cache,
            sink: writer,
            record: None,
            placer: &placer,
            pushes: None,
            network: &self.settings.network,
            container_engine: self.settings.container_engine.as_deref(),
            listed: Mutex::default(),
            sources: BTreeMap::new(),
            allocated: true,
            gpus,
        };
        let cancel = Cancel::default();
        let deadline = common.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        *now.lock().unwrap_or_else(PoisonError::into_inner) = Now { cancel: cancel.clone(), deadline };
        let mut job = Job {
            id,
            work: work.into(),
            why: task.why.clone(),
            inputs: decider.inputs(id)?,
            leaves: decider.leaves(id),
            taken: decider.taken(id)?,
            threads: task.threads,
            gpus: env.gpus.len(),
            nodes: common.resources.machines(),
            hosts: common.resources.hosts.clone(),
            after: None,
            cancel: cancel.clone(),
            overwrite: task.overwrite,
        };
        let (mut unplaced, mut said) = (None, false);
        loop {
            let tried = match unplaced.take() {
                Some(made) => env.place(id, made, task.overwrite),
                None => env.execute(&job),
            };
            let wait = match tried {
                Ok(Tried::Made(made)) => return Ok(made.how),
                Ok(Tried::Busy(wait)) => {
                    job.after.clone_from(&wait.after);
                    wait
                }
                Ok(Tried::Unplaced(made, wait)) => {
                    unplaced = Some(made);
                    wait
                }
                Err(error) => {
                    let late = deadline.filter(|deadline| Instant::now() >= *deadline).and(common.timeout);
                    return Err(match late {
                        Some(timeout) => error.context(format!("it took longer than {timeout:?}")),
                        None => error,
                    });
                }
            };
            if !std::mem::replace(&mut said, true) {
                writer.emit(Event::Waiting { node: task.node.clone(), reason: wait.reason });
            }
            if cancel.is_set() {
                return Err(Cancelled.into());
            }
            thread::sleep(TRY);
        }
    }

    /// The GPUs of this machine that are the job's: what its scheduler shows it.
    fn gpus(&self, wanted: usize) -> Result<Vec<String>> {
        let shown = &self.settings.gpu_names;
        if shown.is_empty() {
            return Ok((0..wanted).map(|gpu| gpu.to_string()).collect());
        }
        ensure!(
            shown.len() >= wanted,
            "it takes {wanted} GPUs, and the job was given {} ({})",
            shown.len(),
            shown.join(",")
        );
        Ok(shown[..wanted].to_vec())
    }
}
