//! What a person asks of jobs: which there are, and that they end. From the cache's files, so that it works from
//! anywhere that sees the cache.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::Result;
use flow_cache::Cache;
use flow_core::{Cancel, Event};

use super::{
    scheduler::{Answer, Seen, scheduler},
    settings::{Executor, Executors},
    spec::{Jobs, Maker, Submitted},
    stream::{Line, Tail, Word},
    track::mark,
};

/// A job that is not done.
#[derive(Clone, Debug)]
pub struct Job {
    /// The executor.
    pub executor: String,
    /// Its id there.
    pub id: String,
    /// Who submitted it.
    pub user: String,
    /// The run that did.
    pub run: String,
    /// The pipeline file.
    pub pipeline: PathBuf,
    /// What of its nodes is not done.
    pub nodes: Vec<String>,
    /// When it was submitted, in seconds since 1970.
    pub submitted: f64,
    /// How it is; nothing if the scheduler does not say.
    pub state: Option<String>,
    /// What its nodes say, line by line.
    pub stream: PathBuf,
    makers: Vec<(flow_core::Key, Maker)>,
}

/// The jobs of a cache that are not done, as far as their schedulers say.
///
/// `ask`: they are asked. Without that, all that were submitted and have not said their last word.
#[must_use]
pub fn jobs(cache: &Cache, executors: &Executors, ask: bool) -> Vec<Job> {
    let files = Jobs::of(cache);
    let mut jobs: Vec<Job> = files.batches().iter().flat_map(|batch| of_batch(&files, batch)).collect();
    if ask {
        let mut ids: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for job in &jobs {
            ids.entry(job.executor.clone()).or_default().push(job.id.clone());
        }
        for (executor, ids) in ids {
            let Ok(named) = Executor::named(&executor, executors) else { continue };
            let wanted: Vec<&str> = ids.iter().map(String::as_str).collect();
            let Ok(Answer { seen: answer, complete }) = scheduler(named, &Cancel::default()).look(&wanted) else {
                continue;
            };
            jobs.retain_mut(|job| {
                if job.executor != executor {
                    return true;
                }
                job.state = match answer.get(&job.id) {
                    Some(Seen::Pending(reason)) => Some(format!("waits ({reason})")),
                    Some(Seen::Stuck(reason)) => Some(format!("will never start ({reason})")),
                    Some(Seen::Running(on)) if on.is_empty() => Some("runs".into()),
                    Some(Seen::Running(on)) => Some(format!("runs on {on}")),
                    // It is over, and did not say so.
                    Some(Seen::Ended(_)) => return false,
                    None => return !complete,
                };
                true
            });
        }
    }
    jobs
}

fn of_batch(files: &Jobs, batch: &str) -> Vec<Job> {
    let Some(Submitted { executor, user, ids }) = files.submitted(batch) else { return Vec::new() };
    // Of what others submitted the files that say more are not ours to read.
    let Ok(spec) = files.spec(batch) else { return Vec::new() };
    let tasks = spec.tasks.into_iter().zip(ids).enumerate();
    let job = |(at, (nodes, id)): (usize, (Vec<super::spec::Task>, String))| {
        let stream = files.batch(batch).join(format!("{at}.jsonl"));
        let ended = ended(&stream);
        let open: Vec<_> = nodes.into_iter().filter(|task| !ended.contains(&task.node)).collect();
        let maker = |task: &super::spec::Task| (task.key, Maker { batch: batch.to_owned(), task: at, part: task.part });
        let is_maker = |(key, maker): &(flow_core::Key, Maker)| files.maker(key).as_ref() == Some(maker);
        let makers: Vec<_> = open.iter().map(maker).filter(is_maker).collect();
        (!makers.is_empty()).then(|| Job {
            executor: executor.clone(),
            id,
            user: user.clone(),
            run: spec.run.clone(),
            pipeline: spec.pipeline.clone(),
            nodes: open.into_iter().map(|task| task.node).collect(),
            submitted: spec.time,
            state: None,
            stream,
            makers,
        })
    };
    tasks.filter_map(job).collect()
}

/// The nodes of which a job has said its last word.
fn ended(stream: &std::path::Path) -> Vec<String> {
    let (mut tail, mut ended) = (Tail::new(stream.to_owned()), Vec::new());
    loop {
        let (lines, more) = tail.read();
        ended.extend(lines.into_iter().filter_map(|line| match line {
            Line::Word(Word::Ended { node, .. }) => Some(node),
            _ => None,
        }));
        if !more {
            return ended;
        }
    }
}

/// What a job of a cluster says of its nodes, from where it was read before.
#[derive(Debug)]
pub struct Told(Tail);

impl Told {
    /// Of a job.
    #[must_use]
    pub fn of(job: &Job) -> Self {
        Self(Tail::new(job.stream.clone()))
    }

    /// What is new.
    pub fn read(&mut self) -> Vec<Event> {
        let events = |line| match line {
            Line::Event(record) => Some(record.event),
            Line::Word(_) => None,
        };
        let mut told = Vec::new();
        loop {
            let (lines, more) = self.0.read();
            told.extend(lines.into_iter().filter_map(events));
            if !more {
                return told;
            }
        }
    }
}

/// Ends jobs that a run left: executor and id.
///
/// # Errors
/// A scheduler does not answer.
pub fn end(executors: &Executors, jobs: &[(String, String)]) -> Result<()> {
    let mut by_executor: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (executor, id) in jobs {
        by_executor.entry(executor).or_default().push(id);
    }
    for (executor, ids) in by_executor {
        scheduler(Executor::named(executor, executors)?, &Cancel::default()).cancel(&ids)?;
    }
    Ok(())
}

/// Ends jobs. What they have done is kept, and goes on with the next run.
///
/// # Errors
/// A scheduler does not answer, or there is no such executor any more.
pub fn cancel(cache: &Cache, executors: &Executors, jobs: &[Job]) -> Result<()> {
    let files = Jobs::of(cache);
    // A run that waits for them is not to take that for an accident.
    for (_, maker) in jobs.iter().flat_map(|job| &job.makers) {
        fs::write(mark(&files.batch(&maker.batch), maker), "").ok();
    }
    let ids: Vec<_> = jobs.iter().map(|job| (job.executor.clone(), job.id.clone())).collect();
    end(executors, &ids)?;
    jobs.iter().flat_map(|job| &job.makers).for_each(|(key, maker)| files.forget(key, maker));
    Ok(())
}
