//! Starting a node: what its thread is to do, with all that it needs.

use std::{collections::BTreeMap, sync::Arc, thread::Scope, time::Instant};

use anyhow::{Result, anyhow, bail};
use flow_core::Cancel;

use super::{Active, Done, Runner, Todo, Word};
use crate::{
    cluster::{Heard, Item, Shape, executor},
    exec::{Job, Made},
    graph::NodeId,
};

/// What a thread is to do.
enum Task {
    Execute(Box<Job>),
    /// Put a result that is there in its places.
    Place(Made, bool),
}

impl<'a> Runner<'a> {
    pub(super) fn start<'scope>(&mut self, id: NodeId, scope: &'scope Scope<'scope, '_>)
    where
        'a: 'scope,
    {
        let began = Instant::now();
        let cancel = Cancel::default();
        // To put what is there in its places is none of the stage's work.
        let is_work = matches!(self.works.get(&id), Some(Todo::Execute(_)));
        let graph = self.env.project.graph();
        let executor = executor(graph, self.settings, id).filter(|_| is_work);
        // A job sees to its own time: it counts from when it begins.
        let timeout = graph.common(id).timeout.filter(|_| is_work && executor.is_none());
        let deadline = timeout.and_then(|timeout| began.checked_add(timeout));
        self.active.insert(id, Active { began, deadline, cancel: cancel.clone(), timed_out: false });
        if let Some(executor) = executor {
            if let Err(error) = self.send(id, executor, cancel, scope) {
                self.done(Done { id, made: Err(error) });
            }
            return;
        }
        let spawned = self.task(id, cancel).and_then(|task| {
            let (env, sender) = (self.env, self.sender.clone());
            let thread = std::thread::Builder::new().name(self.node(id).to_owned());
            thread.spawn_scoped(scope, move || {
                let made = match task {
                    Task::Execute(job) => env.execute(&job),
                    Task::Place(made, overwrite) => env.place(id, made, overwrite),
                };
                // The runner hears until the last thread is done.
                sender.send(Word::Done(Done { id, made })).ok();
            })?;
            Ok(())
        });
        if let Err(error) = spawned {
            self.done(Done { id, made: Err(error) });
        }
    }

    /// Has a node made elsewhere. What it takes its job finds out by itself.
    fn send<'scope>(&self, id: NodeId, executor: &str, cancel: Cancel, scope: &'scope Scope<'scope, '_>) -> Result<()>
    where
        'a: 'scope,
    {
        let Some(Todo::Execute(work)) = self.works.get(&id) else { bail!("a node without work was started") };
        let graph = self.env.project.graph();
        let (stage, resources) = (graph.stage_of(id), &graph.common(id).resources);
        let job = Job {
            id,
            why: self.explainer.explain(self.node(id), work),
            work: Arc::clone(work),
            inputs: BTreeMap::new(),
            leaves: self.decider.leaves(id),
            taken: Vec::new(),
            threads: resources.cpus.map_or(1, |cpus| cpus as usize).max(1),
            gpus: resources.gpus as usize,
            nodes: resources.machines(),
            hosts: Vec::new(),
            after: None,
            cancel,
            overwrite: self.selection.may_overwrite[id],
        };
        let shape = Shape::new(self.settings, executor, &stage.name, resources);
        let item = Item { job, node: self.node(id).to_owned(), shape, resumable: stage.kind.resumable };
        let sender = self.sender.clone();
        let tell = move |heard| {
            let word = match heard {
                Heard::Began(id) => Word::Began(id),
                Heard::Done(id, made) => Word::Done(Done { id, made }),
                Heard::Left(jobs) => Word::Left(jobs),
            };
            sender.send(word).ok();
        };
        self.cluster.make(item, self.env, &self.settings.executors, self.cancel, scope, tell);
        Ok(())
    }

    /// A node that was sent elsewhere runs there now: what it waited before is none of its time.
    pub(super) fn began(&mut self, id: NodeId) {
        if let Some(active) = self.active.get_mut(&id) {
            active.began = Instant::now();
        }
    }

    fn task(&self, id: NodeId, cancel: Cancel) -> Result<Task> {
        let todo = self.works.get(&id).ok_or_else(|| anyhow!("a node without work was started"))?;
        let overwrite = self.selection.may_overwrite[id];
        let work = match todo {
            Todo::Place(made, _) => return Ok(Task::Place(made.clone(), overwrite)),
            Todo::Execute(work) => Arc::clone(work),
        };
        // Never by what else happens to run: sums over threads may differ in the last bit with their number, and a
        // stage that is run again must give the same bytes.
        let graph = self.env.project.graph();
        let stage = graph.stage_of(id);
        let share = self.settings.cpus as usize / stage.nodes.len().clamp(1, self.settings.jobs);
        let resources = &graph.common(id).resources;
        let threads = resources.cpus.map_or(share, |cpus| cpus as usize).max(1);
        Ok(Task::Execute(Box::new(Job {
            id,
            why: self.explainer.explain(self.node(id), &work),
            work,
            inputs: self.decider.inputs(id)?,
            leaves: self.decider.leaves(id),
            taken: self.decider.taken(id)?,
            threads,
            gpus: resources.gpus as usize,
            nodes: resources.machines(),
            hosts: resources.hosts.clone(),
            after: self.waits.after(id),
            cancel,
            overwrite,
        })))
    }
}
