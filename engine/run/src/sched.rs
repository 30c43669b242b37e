//! [`Sched`]: which node may do what now. A pure state machine: no clock, no thread, no file.
//!
//! The life of a node: it is *waiting* until all that it needs is done, then *open*: whoever drives the scheduler looks
//! whether its result is there ([`Sched::hit`] → *done*) or must be made ([`Sched::must_run`] → *queued*), and may ask
//! somebody else first ([`Sched::send_away`] → *away* → [`Sched::come_back`] → *open*). From the
//! queue it is *running* when the pools have room ([`Sched::start`]), then *done*, or *resting* before another try, or
//! *failed*, which *blocks* all that needs it. Nodes that nobody asked for are *unwanted* from the beginning.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
};

/// What a node takes of the pools while it runs. Every node also takes one job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Cores.
    pub cpus: u32,
    /// GPUs.
    pub gpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// It runs elsewhere: it takes nothing of the pools, no job either.
    pub elsewhere: bool,
}

/// What there is to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pools {
    /// Nodes at a time.
    pub jobs: u32,
    /// Cores.
    pub cpus: u32,
    /// GPUs.
    pub gpus: u32,
    /// Bytes of memory.
    pub memory: u64,
}

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody asked for it.
    Unwanted,
    /// Something that it needs is not done.
    Waiting,
    /// To be looked at: hit or miss.
    Open,
    /// Somebody outside is asked for it, who takes nothing of the pools.
    Away,
    /// To be run when there is room.
    Queued,
    /// Running.
    Running,
    /// Tried again later: it failed, or another flow has what it takes.
    Resting,
    /// Its result is there.
    Done,
    /// Failed for good.
    Failed,
    /// Something that it needs failed.
    Blocked,
}

/// The scheduler of one run.
#[derive(Debug)]
pub struct Sched<'a> {
    dependents: Vec<&'a [usize]>,
    requests: Vec<Request>,
    states: Vec<State>,
    /// How many of a node's dependencies are not done.
    missing: Vec<u32>,
    open: BinaryHeap<Reverse<usize>>,
    queue: BTreeSet<usize>,
    /// Those of the queue that take nothing of the pools.
    outside: BTreeSet<usize>,
    free: Pools,
    /// Nodes that wait for a node beyond what the graph says.
    followers: HashMap<usize, Vec<usize>>,
    /// The dependents know already that the node is done.
    told: Vec<bool>,
    /// The node runs, and what it was decided by is no more ([`Sched::untell`]).
    again: Vec<bool>,
    /// Nodes that run, rest or are away, and whose input failed since when it was made again: node → what failed.
    doomed: HashMap<usize, usize>,
    /// Nodes that are blocked, and by what, since the last [`Sched::take_blocked`].
    blocked: Vec<(usize, usize)>,
    /// The node is only put in its places, and takes a job and nothing else.
    light: Vec<bool>,
    /// The node waits for another flow: that there is no room for it yet keeps nobody.
    polite: Vec<bool>,
    running: usize,
    resting: usize,
    away: usize,
    stopped: bool,
}

impl<'a> Sched<'a> {
    /// A scheduler of nodes that are given as (dependencies, dependents, request), each after what it needs. What a
    /// wanted node needs and nobody wants is not waited for. A request that can never be met is the caller's to refuse.
    pub fn new(
        nodes: impl Iterator<Item = (&'a [usize], &'a [usize], Request)>,
        wanted: &[bool],
        pools: Pools,
    ) -> Self {
        let mut sched = Self {
            dependents: Vec::with_capacity(wanted.len()),
            requests: Vec::with_capacity(wanted.len()),
            states: Vec::with_capacity(wanted.len()),
            missing: Vec::with_capacity(wanted.len()),
            open: BinaryHeap::new(),
            queue: BTreeSet::new(),
            outside: BTreeSet::new(),
            free: pools,
            followers: HashMap::new(),
            told: vec![false; wanted.len()],
            again: vec![false; wanted.len()],
            doomed: HashMap::new(),
            blocked: Vec::new(),
            light: vec![false; wanted.len()],
            polite: vec![false; wanted.len()],
            running: 0,
            resting: 0,
            away: 0,
            stopped: false,
        };
        for (id, (dependencies, dependents, request)) in nodes.enumerate() {
            sched.dependents.push(dependents);
            sched.requests.push(request);
            let missing = dependencies.iter().filter(|from| wanted[**from]).count();
            sched.missing.push(u32::try_from(missing).expect("a node has fewer than 2^32 dependencies"));
            sched.states.push(if wanted[id] { State::Waiting } else { State::Unwanted });
            if wanted[id] && missing == 0 {
                sched.open(id);
            }
        }
        sched
    }

    /// Where a node is in its life.
    pub fn state(&self, id: usize) -> State {
        self.states[id]
    }

    /// How many nodes run.
    pub fn running(&self) -> usize {
        self.running
    }

    /// How many nodes are queued.
    pub fn queued(&self) -> usize {
        self.queue.len() + self.outside.len()
    }

    /// Who waits for whom beyond what the graph says, sorted.
    pub fn following(&self) -> Vec<(usize, usize)> {
        let pairs = self.followers.iter().flat_map(|(of, followers)| followers.iter().map(|id| (*id, *of)));
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort_unstable();
        pairs
    }

    /// Whether no further node is started.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// No further node is started.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Nothing runs and nothing more will.
    pub fn is_over(&self) -> bool {
        let waits = self.resting > 0 || self.away > 0;
        let may_start = !self.stopped && (waits || self.queued() > 0 || !self.open.is_empty());
        self.running == 0 && !may_start
    }

    /// A node that is open: it must be answered with [`Sched::hit`], [`Sched::must_run`] or [`Sched::failed`].
    pub fn next_open(&mut self) -> Option<usize> {
        if self.stopped {
            return None;
        }
        // What was open may have to wait again.
        while let Some(Reverse(id)) = self.open.pop() {
            if self.states[id] == State::Open {
                return Some(id);
            }
        }
        None
    }

    /// The result of an open node is there.
    pub fn hit(&mut self, id: usize) {
        self.expect(id, State::Open);
        self.done(id);
    }

    /// The result of an open node is there, and must be put in its places: that takes a job and nothing else.
    pub fn must_place(&mut self, id: usize) {
        self.expect(id, State::Open);
        (self.light[id], self.polite[id]) = (true, false);
        self.enqueue(id);
    }

    /// An open node cannot be answered before these are done, which are on their way: then it is open again.
    pub fn follow(&mut self, id: usize, leaders: &[usize]) {
        self.expect(id, State::Open);
        self.states[id] = State::Waiting;
        self.missing[id] = u32::try_from(leaders.len()).expect("a node has fewer than 2^32 leaders");
        leaders.iter().for_each(|&leader| self.followers.entry(leader).or_default().push(id));
    }

    /// Somebody outside is asked for an open node: what it is, or its files.
    pub fn send_away(&mut self, id: usize) {
        self.expect(id, State::Open);
        self.states[id] = State::Away;
        self.away += 1;
    }

    /// There is an answer about a node: it is open again.
    pub fn come_back(&mut self, id: usize) {
        self.expect(id, State::Away);
        self.away -= 1;
        self.look_again(id);
    }

    /// How many nodes somebody outside is asked for.
    pub fn away(&self) -> usize {
        self.away
    }

    /// The result of a node that was done is not there after all, and is needed: it is open again.
    pub fn reopen(&mut self, id: usize) {
        self.expect(id, State::Done);
        self.open(id);
    }

    /// A node that was done is another one now. What was decided by it, and by that, is looked at again once it is done
    /// again: what is done or queued waits as in the beginning, what runs does so when it ends. Returns them all, sorted.
    pub fn untell(&mut self, id: usize) -> Vec<usize> {
        let (mut stack, mut decided) = (vec![id], BTreeSet::new());
        while let Some(at) = stack.pop() {
            if !std::mem::take(&mut self.told[at]) {
                continue;
            }
            for &next in self.dependents[at] {
                self.missing[next] += 1;
                match self.states[next] {
                    State::Open | State::Done => self.states[next] = State::Waiting,
                    State::Queued => {
                        self.queue.remove(&next);
                        self.outside.remove(&next);
                        self.states[next] = State::Waiting;
                    }
                    State::Running | State::Resting => self.again[next] = true,
                    State::Waiting | State::Away => {}
                    State::Unwanted | State::Failed | State::Blocked => continue,
                }
                decided.insert(next);
                stack.push(next);
            }
        }
        decided.into_iter().collect()
    }

    /// The result of an open node must be made.
    pub fn must_run(&mut self, id: usize) {
        self.expect(id, State::Open);
        (self.light[id], self.polite[id]) = (false, false);
        self.enqueue(id);
    }

    fn enqueue(&mut self, id: usize) {
        self.states[id] = State::Queued;
        let queue = if self.request(id).elsewhere { &mut self.outside } else { &mut self.queue };
        queue.insert(id);
    }

    /// The next queued node that there is room for; it is running now.
    ///
    /// In order; one that does not fit lets later ones pass only if they take nothing of what it lacks, so that a big
    /// node is not starved by small ones.
    pub fn start(&mut self) -> Option<usize> {
        if self.stopped {
            return None;
        }
        if let Some(id) = self.outside.pop_first() {
            self.states[id] = State::Running;
            self.running += 1;
            return Some(id);
        }
        if self.free.jobs == 0 {
            return None;
        }
        let mut kept = Request::default();
        let mut found = None;
        for &id in &self.queue {
            let want = self.request(id);
            let (cpus, gpus, memory) =
                (want.cpus > self.free.cpus, want.gpus > self.free.gpus, want.memory > self.free.memory);
            let passes = |wanted: bool, kept: bool| !(wanted && kept);
            if !(cpus || gpus || memory)
                && passes(want.cpus > 0, kept.cpus > 0)
                && passes(want.gpus > 0, kept.gpus > 0)
                && passes(want.memory > 0, kept.memory > 0)
            {
                found = Some(id);
                break;
            }
            if self.polite[id] {
                continue;
            }
            kept.cpus |= u32::from(cpus);
            kept.gpus |= u32::from(gpus);
            kept.memory |= u64::from(memory);
        }
        let id = found?;
        self.queue.remove(&id);
        let want = self.request(id);
        self.free.jobs -= 1;
        self.free.cpus -= want.cpus;
        self.free.gpus -= want.gpus;
        self.free.memory -= want.memory;
        self.states[id] = State::Running;
        self.running += 1;
        Some(id)
    }

    /// A running node is done; or to be looked at again, if what it was decided by is no more.
    pub fn finished(&mut self, id: usize) {
        self.release(id);
        if std::mem::take(&mut self.again[id]) { self.look_again(id) } else { self.done(id) }
    }

    /// Whether what a running or resting node takes is another one since it began: it is looked at again when it ends.
    pub fn is_outdated(&self, id: usize) -> bool {
        self.again[id]
    }

    /// A running node will be tried again: [`Sched::wake`].
    pub fn rest(&mut self, id: usize) {
        self.release(id);
        self.states[id] = State::Resting;
        self.resting += 1;
    }

    /// As [`Sched::rest`], because another flow makes it or has what it takes: whoever is behind it may pass.
    pub fn wait(&mut self, id: usize) {
        self.rest(id);
        self.polite[id] = true;
    }

    /// A resting node is only to be put in its places from now on.
    pub fn lighten(&mut self, id: usize) {
        self.expect(id, State::Resting);
        self.light[id] = true;
    }

    /// What a resting node takes is not as it was: it is looked at again when it has rested.
    pub fn outdate(&mut self, id: usize) {
        self.expect(id, State::Resting);
        self.again[id] = true;
    }

    /// A resting node may be tried again.
    pub fn wake(&mut self, id: usize) {
        self.expect(id, State::Resting);
        self.resting -= 1;
        if std::mem::take(&mut self.again[id]) {
            return self.look_again(id);
        }
        self.enqueue(id);
    }

    /// An open, running or resting node failed for good. What cannot run because of it is blocked.
    pub fn failed(&mut self, id: usize) {
        match self.states[id] {
            State::Running => self.release(id),
            State::Resting => self.resting -= 1,
            _ => self.expect(id, State::Open),
        }
        self.doomed.remove(&id);
        self.states[id] = State::Failed;
        self.block_all_after(id, id);
    }

    /// The nodes that cannot run because of others that failed, each with the one, since this was last asked.
    pub fn take_blocked(&mut self) -> Vec<(usize, usize)> {
        let mut blocked = std::mem::take(&mut self.blocked);
        blocked.sort_unstable();
        blocked
    }

    /// What needs a node that is never done is blocked, because of one that failed; what of it runs or is away, once it
    /// comes back.
    fn block_all_after(&mut self, id: usize, failed: usize) {
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            // Dependents that were told before know the result, and may do without its files.
            let dependents = if self.told[id] { &[][..] } else { self.dependents[id] };
            for next in dependents.iter().copied().chain(self.followers.remove(&id).unwrap_or_default()) {
                match self.states[next] {
                    State::Waiting => {
                        self.states[next] = State::Blocked;
                        self.blocked.push((next, failed));
                        stack.push(next);
                    }
                    State::Running | State::Resting | State::Away => drop(self.doomed.entry(next).or_insert(failed)),
                    _ => {}
                }
            }
        }
    }

    fn expect(&self, id: usize, state: State) {
        assert_eq!(self.states[id], state, "node {id} is not where the scheduler's driver thinks");
    }

    fn request(&self, id: usize) -> Request {
        if self.light[id] { Request::default() } else { self.requests[id] }
    }

    /// It is open, unless what it needs is not done any more or will never be.
    fn look_again(&mut self, id: usize) {
        if let Some(failed) = self.doomed.remove(&id) {
            self.states[id] = State::Blocked;
            self.blocked.push((id, failed));
            self.block_all_after(id, failed);
        } else if self.missing[id] > 0 {
            self.states[id] = State::Waiting;
        } else {
            self.open(id);
        }
    }

    fn open(&mut self, id: usize) {
        self.states[id] = State::Open;
        self.open.push(Reverse(id));
    }

    fn release(&mut self, id: usize) {
        self.expect(id, State::Running);
        let had = self.request(id);
        self.running -= 1;
        if had.elsewhere {
            return;
        }
        self.free.jobs += 1;
        self.free.cpus += had.cpus;
        self.free.gpus += had.gpus;
        self.free.memory += had.memory;
    }

    fn done(&mut self, id: usize) {
        self.states[id] = State::Done;
        let dependents = if std::mem::replace(&mut self.told[id], true) { &[][..] } else { self.dependents[id] };
        for next in dependents.iter().copied().chain(self.followers.remove(&id).unwrap_or_default()) {
            self.missing[next] -= 1;
            if self.missing[next] == 0 && self.states[next] == State::Waiting {
                self.open(next);
            }
        }
    }
}

#[cfg(test)]
mod tests;
