//! Submitting: what waits is gathered into batches of jobs that want the same.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context as _, Result, anyhow};
use flow_core::Level;

use super::{Dispatch, GATHER, Heard, Queued, TURN};
use crate::{
    cluster::{
        item::Item,
        scheduler::{Batch, Refused, Scheduler},
        shape::Shape,
        spec::{Jobs, Maker, Spec, Submitted, Task as TaskSpec, script, user},
        track::FEW,
    },
    record::now,
    run_id::new_id,
};

impl Dispatch<'_, '_> {
    /// Submits what has waited for others to come with it.
    pub(super) fn submit(&mut self) {
        let now = Instant::now();
        let newest = self.queue.iter().map(|queued| queued.at).filter(|at| *at <= now).max();
        let oldest = self.queue.iter().map(|queued| queued.at).min();
        let gathered = newest.is_some_and(|newest| now - newest >= GATHER)
            || oldest.is_some_and(|oldest| now.saturating_duration_since(oldest) >= 4 * GATHER);
        if !gathered {
            return;
        }
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.queue).into_iter().partition(|it| it.at <= now);
        self.queue = later;
        let (look, due): (Vec<_>, Vec<_>) = due.into_iter().partition(|it| it.look);
        look.into_iter().for_each(|Queued { item, part, .. }| self.begin(item, part));
        let mut shapes: Vec<(Shape, Vec<Queued>)> = Vec::new();
        for queued in due {
            match shapes.iter_mut().find(|(shape, _)| *shape == queued.item.shape) {
                Some((_, same)) => same.push(queued),
                None => shapes.push((queued.item.shape.clone(), vec![queued])),
            }
        }
        for (shape, mut nodes) in shapes {
            let Some(scheduler) = self.scheduler(&shape.executor) else {
                let gone = || anyhow!("there is no executor `{}`", shape.executor);
                nodes.iter().for_each(|node| (self.tell)(Heard::Done(node.item.job.id, Err(gone()))));
                continue;
            };
            let mut until = self.room.closed(&shape.executor, now);
            while !nodes.is_empty() && until.is_none() && !self.cancel.is_set() {
                let most = self.room.most(&shape.executor, scheduler.most_tasks().max(1)) * shape.together();
                let rest = nodes.split_off(most.min(nodes.len()));
                let back;
                (back, until) = self.submit_batch(std::mem::replace(&mut nodes, rest), &shape, &*scheduler);
                // Those first that came first.
                nodes.splice(0..0, back);
            }
            let at = until.unwrap_or(now);
            self.queue.extend(nodes.into_iter().map(|queued| Queued { at, ..queued }));
            self.schedulers.insert(shape.executor.clone(), scheduler);
        }
    }

    /// Submits a batch. Gives back what was not taken and is to be tried again, and when, if it has to be waited for.
    fn submit_batch(
        &mut self,
        nodes: Vec<Queued>,
        shape: &Shape,
        scheduler: &dyn Scheduler,
    ) -> (Vec<Queued>, Option<Instant>) {
        self.batches += 1;
        let id = format!("{}{:x}", new_id(now()), self.batches);
        let maker = |task: usize, part: u32| Maker { batch: id.clone(), task, part };
        // Who is noted first makes it; the others wait for that.
        let mut won: Vec<Queued> = Vec::with_capacity(nodes.len());
        let mut trouble = None;
        for queued in nodes {
            let (key, maker) =
                (queued.item.job.work.run_parts().key(), maker(won.len() / shape.together(), queued.part));
            let claimed = match &trouble {
                None if !self.cancel.is_set() => self.jobs.claim(&key, &maker, queued.item.is_forced()),
                _ => Ok(false),
            };
            match claimed {
                Ok(true) => won.push(queued),
                Ok(false) => self.queue.push(Queued { at: Instant::now() + TURN, look: true, ..queued }),
                Err(error) => {
                    trouble = Some(error);
                    won.push(queued);
                }
            }
        }
        let mut nodes = won;
        if nodes.is_empty() {
            return (Vec::new(), None);
        }
        let tasks: Vec<Vec<&Queued>> = nodes.chunks(shape.together()).map(|nodes| nodes.iter().collect()).collect();
        let count = tasks.len();
        let written = match trouble {
            Some(error) => Err(error),
            None => self.write(&id, shape, &tasks),
        };
        let project = self.env.project.dir();
        let submitted = written.map_err(Refused::Never).and_then(|dir| {
            let batch = Batch { id: &id, dir: &dir, project, tasks: count, shape };
            match scheduler.submit(&batch) {
                // It may have heard us all the same.
                Err(Refused::Later(error)) => scheduler.find(&id, count).ok().flatten().ok_or(Refused::Later(error)),
                done => done,
            }
        });
        let submitted = submitted.and_then(|ids| {
            let submitted = Submitted { executor: shape.executor.clone(), user: user(), ids };
            if let Err(error) = self.jobs.set_submitted(&id, &submitted) {
                // Nobody would know of them.
                scheduler.cancel(&submitted.ids.iter().map(String::as_str).collect::<Vec<_>>()).ok();
                return Err(Refused::Never(error));
            }
            Ok(submitted.ids)
        });
        let together = shape.together();
        let forget = |jobs: &Jobs, nodes: &[Queued], first: usize| {
            for (at, queued) in nodes.iter().enumerate() {
                jobs.forget(&queued.item.job.work.run_parts().key(), &maker((first + at) / together, queued.part));
            }
        };
        match submitted {
            Ok(ids) => {
                // Where each task is submitted for itself there may have been room for some of them.
                let rest = nodes.split_off((ids.len() * together).min(nodes.len()));
                forget(&self.jobs, &rest, ids.len() * together);
                self.room.took(&shape.executor, ids.len());
                self.say_submitted(&ids, &nodes, shape, scheduler);
                for (at, queued) in nodes.into_iter().enumerate() {
                    let maker = maker(at / together, queued.part);
                    self.track.add(queued.item, maker, &self.jobs, &ids[at / together]);
                }
                if rest.is_empty() {
                    return (rest, None);
                }
                // Of one more there was none.
                let refusal = self.room.lacked(&shape.executor, 1, Instant::now());
                if refusal.is_news {
                    let text = format!("{} has no room for more jobs just now: {} wait", scheduler.name(), rest.len());
                    self.log("", Level::Warning, text);
                }
                (rest, refusal.until)
            }
            Err(refused) => {
                // A run that is stopped while it submits does not know whether it did: who comes next looks.
                if !self.cancel.is_set() {
                    forget(&self.jobs, &nodes, 0);
                    self.jobs.remove(&id);
                }
                self.refused(refused, nodes, (count, &shape.executor), scheduler)
            }
        }
    }

    /// What becomes of nodes whose batch of `count` tasks an executor's scheduler does not take: as [`Dispatch::submit_batch`] has it.
    fn refused(
        &mut self,
        refused: Refused,
        nodes: Vec<Queued>,
        (count, executor): (usize, &str),
        scheduler: &dyn Scheduler,
    ) -> (Vec<Queued>, Option<Instant>) {
        let (name, now) = (scheduler.name(), Instant::now());
        let (refusal, text) = match refused {
            Refused::Never(error) => {
                let text = format!("{error:#}");
                for queued in nodes {
                    let error = anyhow!(text.clone()).context(format!("{name} does not take its job"));
                    (self.tell)(Heard::Done(queued.item.job.id, Err(error)));
                }
                return (Vec::new(), None);
            }
            Refused::Room(error) => {
                let text = format!("{name} has no room for {count} more jobs, and is given fewer at a time: {error:#}");
                (self.room.lacked(executor, count, now), text)
            }
            Refused::Later(error) => {
                let text = format!("{name} cannot be given jobs now, and is tried again: {error:#}");
                (self.room.away(executor, now), text)
            }
        };
        if refusal.is_news {
            self.log("", Level::Warning, text);
        }
        (nodes, refusal.until)
    }

    fn write(&self, id: &str, shape: &Shape, tasks: &[Vec<&Queued>]) -> Result<PathBuf> {
        let run = self.env.record.map(crate::record::Recorder::id).unwrap_or_default();
        let sources = self.env.sources.clone();
        let mut spec = Spec::new(self.env.project, self.env.cache, sources, run, &shape.executor, now());
        (spec.limit, spec.margin) = (shape.time, shape.margin());
        let task = |queued: &&Queued| {
            let Item { job, node, .. } = &*queued.item;
            TaskSpec {
                node: node.clone(),
                key: job.work.run_parts().key(),
                why: job.why.clone(),
                threads: job.threads,
                force: queued.item.is_forced(),
                overwrite: job.overwrite,
                part: queued.part,
            }
        };
        spec.tasks = tasks.iter().map(|nodes| nodes.iter().map(task).collect()).collect();
        let flow = self.flow.as_deref().context("cannot find out where this program is")?;
        self.jobs.write(id, &spec, &script(flow, &self.jobs.batch(id), shape.options.setup.as_deref()))
    }

    fn say_submitted(&self, ids: &[String], nodes: &[Queued], shape: &Shape, scheduler: &dyn Scheduler) {
        let (Some(first), Some(last)) = (ids.first(), ids.last()) else { return };
        if nodes.len() > FEW {
            let (stage, name, count, jobs) = (&shape.stage, scheduler.name(), nodes.len(), ids.len());
            let text = format!("`{stage}`: {count} nodes wait for {name} in {jobs} jobs, {first} to {last}");
            return self.log("", Level::Info, text);
        }
        for (at, queued) in nodes.iter().enumerate() {
            let (node, part) = (&queued.item.node, queued.part);
            let text = format!("submitted to {} as job {}", scheduler.name(), ids[at / shape.together()]);
            match part {
                1 => self.say(node, text),
                _ => {
                    self.log(node, Level::Info, format!("{text}, part {part}"));
                    self.say(node, format!("{text}, part {part}"));
                }
            }
        }
    }
}
