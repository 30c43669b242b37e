//! The head's thread: gathers nodes into batches, submits them, hears how they are, and tells the runner what came of them.

mod room;
mod submit;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::Scope,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use flow_core::{Cancel, Cancelled, Event, Level};
use room::{AGAIN, Room};

use super::{
    adopt::{Known, Others},
    item::Item,
    scheduler::Scheduler,
    settings::{Executor, Executors},
    spec::{Jobs, Maker},
    track::{Fate, Track},
};
use crate::{
    exec::{Env, Made, Tried},
    graph::NodeId,
    kept::keep,
};

/// How often the thread looks at what its jobs say.
const TURN: Duration = Duration::from_millis(200);
/// Nodes that come within this time of each other are submitted together.
const GATHER: Duration = Duration::from_millis(300);
/// Batches that nobody came back to for so long are removed.
const STALE: Duration = Duration::from_secs(14 * 86_400);

enum Order {
    Make(Box<Item>),
    /// No more begins: what waits is taken back.
    Stop,
}

/// What the runner hears.
pub(crate) enum Heard {
    /// A node began, in a job.
    Began(NodeId),
    /// What came of it.
    Done(NodeId, Result<Tried>),
    /// The run was interrupted, and these jobs go on: executor and id.
    Left(Vec<(String, String)>),
}

/// The runner's hold of the thread, which begins with the first node.
#[derive(Default)]
pub(crate) struct Cluster(OnceLock<Sender<Order>>);

impl Cluster {
    /// Has a node made.
    pub fn make<'scope, 'a: 'scope>(
        &self,
        item: Item,
        env: &'a Env<'a>,
        executors: &'a Executors,
        cancel: &'a Cancel,
        scope: &'scope Scope<'scope, '_>,
        tell: impl Fn(Heard) + Send + 'scope,
    ) {
        let orders = self.0.get_or_init(|| {
            let (sender, receiver) = channel();
            scope.spawn(move || {
                Dispatch {
                    env,
                    executors,
                    cancel,
                    tell: Box::new(tell),
                    orders: receiver,
                    jobs: Jobs::of(env.cache),
                    schedulers: HashMap::new(),
                    queue: Vec::new(),
                    track: Track::default(),
                    others: Others::default(),
                    room: Room::default(),
                    left: false,
                    batches: 0,
                    flow: std::env::current_exe().ok(),
                }
                .go();
            });
            sender
        });
        orders.send(Order::Make(Box::new(item))).ok();
    }

    /// A node failed, and nothing more is to begin.
    pub fn stop(&self) {
        self.0.get().map(|orders| orders.send(Order::Stop));
    }

    /// There is nothing more to make.
    pub fn end(&mut self) {
        self.0.take();
    }
}

/// A node on its way to the scheduler.
pub(super) struct Queued {
    pub item: Arc<Item>,
    /// Which try it is.
    pub part: u32,
    /// Not before.
    pub at: Instant,
    /// Somebody else may have submitted it by then.
    pub look: bool,
}

struct Dispatch<'a, 'scope> {
    env: &'a Env<'a>,
    executors: &'a Executors,
    cancel: &'a Cancel,
    tell: Box<dyn Fn(Heard) + Send + 'scope>,
    orders: Receiver<Order>,
    jobs: Jobs,
    schedulers: HashMap<String, Box<dyn Scheduler>>,
    queue: Vec<Queued>,
    track: Track,
    others: Others,
    room: Room,
    /// The run was interrupted: nothing is looked after any more.
    left: bool,
    batches: usize,
    /// This program, as it was called when the run began: it may be replaced.
    flow: Option<PathBuf>,
}

impl Dispatch<'_, '_> {
    fn go(mut self) {
        self.jobs.sweep(STALE);
        // A disk that is full says so where something must be written.
        self.env.cache.stay().ok();
        loop {
            let idle = self.queue.is_empty() && self.track.is_empty();
            let order = match idle {
                true => self.orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => self.orders.recv_timeout(TURN),
            };
            match order {
                Ok(order) => {
                    self.take(order);
                    while let Ok(order) = self.orders.try_recv() {
                        self.take(order);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) if idle => return,
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TURN),
            }
            if self.cancel.is_set() && !self.left {
                self.leave();
            }
            self.submit();
            self.look();
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Make(item) if self.left => (self.tell)(Heard::Done(item.job.id, Err(Cancelled.into()))),
            Order::Make(item) => self.begin(Arc::new(*item), 1),
            Order::Stop => {
                for queued in std::mem::take(&mut self.queue) {
                    (self.tell)(Heard::Done(queued.item.job.id, Err(Cancelled.into())));
                }
                for (executor, ids, items) in self.track.take_pending() {
                    self.end(&executor, &ids);
                    for (item, maker) in items {
                        self.forget(&item, &maker);
                        (self.tell)(Heard::Done(item.job.id, Err(Cancelled.into())));
                    }
                }
            }
        }
    }

    /// Takes up the job that makes a node already, or has one submitted.
    fn begin(&mut self, item: Arc<Item>, part: u32) {
        let known = match self.scheduler(&item.shape.executor) {
            Some(scheduler) => {
                let known = self.others.find(&item, &self.jobs, &*scheduler);
                if let Known::Job(found) = &known {
                    let (id, name) = (&found.id, scheduler.name());
                    self.say(&item.node, format!("job {id} of {name} makes it already ({})", found.who));
                }
                self.schedulers.insert(item.shape.executor.clone(), scheduler);
                known
            }
            None => Known::Nobody,
        };
        match known {
            Known::Job(found) => self.track.adopt(item, &self.jobs, found),
            Known::Soon => self.queue.push(Queued { item, part, at: Instant::now() + AGAIN, look: true }),
            Known::Nobody => self.queue.push(Queued { item, part, at: Instant::now(), look: false }),
        }
    }

    /// An executor's scheduler, which is given back.
    fn scheduler(&mut self, executor: &str) -> Option<Box<dyn Scheduler>> {
        match self.schedulers.remove(executor) {
            Some(scheduler) => Some(scheduler),
            // What is wrong with it was said before anything ran.
            None => {
                Executor::named(executor, self.executors).ok().map(|executor| super::scheduler(executor, self.cancel))
            }
        }
    }

    fn say(&self, node: &str, reason: String) {
        self.env.sink.emit(Event::Waiting { node: node.to_owned(), reason });
    }

    fn log(&self, node: &str, level: Level, text: String) {
        self.env.sink.emit(Event::log(node, level, text));
    }

    /// Looks how what was submitted is.
    fn look(&mut self) {
        for (executor, ids) in self.track.to_ask() {
            let Some(scheduler) = self.scheduler(&executor) else { continue };
            if self.track.is_time(&executor, scheduler.poll()) {
                let wanted: Vec<&str> = ids.iter().map(String::as_str).collect();
                let answer = scheduler.look(&wanted);
                if let Some((level, text)) = self.track.answered(&executor, scheduler.name(), answer) {
                    self.log("", level, text);
                }
                self.track.take_news().into_iter().for_each(|(node, news)| self.say(&node, news));
            }
            self.schedulers.insert(executor, scheduler);
        }
        for (item, event) in self.track.read() {
            if let Event::Started { .. } = event {
                (self.tell)(Heard::Began(item.job.id));
                if let Some(run) = self.env.record.and_then(crate::record::Recorder::dir) {
                    keep(&run, &item.node, &item.job.work, &item.job.leaves, &self.env.listed);
                }
            }
            self.env.sink.emit(event);
        }
        let cache = self.env.cache;
        let mut stuck_jobs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (item, maker, fate) in self.track.settle(cache) {
            self.forget(&item, &maker);
            match fate {
                Fate::Made(outcome, how) => {
                    let tried = self.env.take_in(&item.job, Made { outcome, how });
                    (self.tell)(Heard::Done(item.job.id, tried));
                }
                Fate::Failed(error, stuck) => {
                    stuck_jobs.entry(item.shape.executor.clone()).or_default().extend(stuck);
                    (self.tell)(Heard::Done(item.job.id, Err(error)));
                }
                Fate::Again(why) if maker.part <= item.shape.requeue() => {
                    self.log(&item.node, Level::Info, format!("{why}: it goes on in another job"));
                    // Another run that waited for the same one may have submitted that already.
                    self.begin(item, maker.part + 1);
                }
                // Whether another run submitted it too often is none of this one's business.
                Fate::Over => self.begin(item, 1),
                Fate::Again(why) => {
                    let error = anyhow!("{why}").context(format!(
                        "it was submitted {} times, which is enough (`requeue` in the settings)",
                        maker.part
                    ));
                    (self.tell)(Heard::Done(item.job.id, Err(error)));
                }
            }
        }
        for (executor, ids) in stuck_jobs.into_iter().filter(|(_, ids)| !ids.is_empty()) {
            self.end(&executor, &ids.into_iter().collect::<Vec<_>>());
        }
        self.track.take_over().iter().for_each(|batch| self.jobs.remove(batch));
    }

    fn forget(&self, item: &Item, maker: &Maker) {
        self.jobs.forget(&item.job.work.run_parts().key(), maker);
    }

    fn end(&mut self, executor: &str, ids: &[String]) {
        let Some(scheduler) = self.scheduler(executor) else { return };
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        if let Err(error) = scheduler.cancel(&ids) {
            let text = format!("cannot cancel {} of {}: {error:#}", ids.join(", "), scheduler.name());
            self.log("", Level::Warning, text);
        }
        self.schedulers.insert(executor.to_owned(), scheduler);
    }

    /// The run was interrupted: the jobs go on, until somebody says otherwise.
    fn leave(&mut self) {
        self.left = true;
        let mut jobs = Vec::new();
        let all = self.track.take_all();
        for (executor, ids, _) in &all {
            jobs.extend(ids.iter().map(|id| (executor.clone(), id.clone())));
        }
        (self.tell)(Heard::Left(jobs));
        let submitted = all.into_iter().flat_map(|(.., items)| items).map(|(item, _)| item);
        let queued = std::mem::take(&mut self.queue).into_iter().map(|queued| queued.item);
        for item in submitted.chain(queued) {
            (self.tell)(Heard::Done(item.job.id, Err(Cancelled.into())));
        }
    }
}
