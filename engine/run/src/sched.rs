//! [`Sched`]: which node may do what now. A pure state machine: no clock, no thread, no file.
//!
//! The life of a node: it is *waiting* until all that it needs is done, then *open*: whoever drives the scheduler looks
//! whether its result is there ([`Sched::hit`] → *done*) or must be made ([`Sched::must_run`] → *queued*). From the
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
    /// To be run when there is room.
    Queued,
    /// Running.
    Running,
    /// Failed, and tried again later.
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
    free: Pools,
    /// The GPUs of each running node, by number.
    gpus: Vec<Vec<u32>>,
    /// GPUs that were given back, and the first that nobody had yet.
    returned: BTreeSet<u32>,
    untouched: u32,
    /// Nodes that wait for a node beyond what the graph says.
    followers: HashMap<usize, Vec<usize>>,
    /// The dependents know already that the node is done.
    told: Vec<bool>,
    running: usize,
    resting: usize,
    stopped: bool,
}

impl<'a> Sched<'a> {
    /// A scheduler of nodes that are given as (dependencies, dependents, request), each after what it needs. All that a
    /// wanted node needs is wanted. A request that can never be met is the caller's to refuse.
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
            free: pools,
            gpus: vec![Vec::new(); wanted.len()],
            returned: BTreeSet::new(),
            untouched: 0,
            followers: HashMap::new(),
            told: vec![false; wanted.len()],
            running: 0,
            resting: 0,
            stopped: false,
        };
        for (id, (dependencies, dependents, request)) in nodes.enumerate() {
            sched.dependents.push(dependents);
            sched.requests.push(request);
            sched.missing.push(u32::try_from(dependencies.len()).expect("a node has fewer than 2^32 dependencies"));
            sched.states.push(if wanted[id] { State::Waiting } else { State::Unwanted });
            if wanted[id] && dependencies.is_empty() {
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
        self.queue.len()
    }

    /// No further node is started.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Nothing runs and nothing more will.
    pub fn is_over(&self) -> bool {
        let may_start = !self.stopped && (self.resting > 0 || !self.queue.is_empty() || !self.open.is_empty());
        self.running == 0 && !may_start
    }

    /// A node that is open: it must be answered with [`Sched::hit`], [`Sched::must_run`] or [`Sched::failed`].
    pub fn next_open(&mut self) -> Option<usize> {
        if self.stopped {
            return None;
        }
        self.open.pop().map(|Reverse(id)| id)
    }

    /// The result of an open node is there.
    pub fn hit(&mut self, id: usize) {
        self.expect(id, State::Open);
        self.done(id);
    }

    /// The result of an open node is there, and must be put in its places: that takes a job and nothing else.
    pub fn must_place(&mut self, id: usize) {
        self.requests[id] = Request::default();
        self.must_run(id);
    }

    /// An open node cannot be answered before these are done, which are on their way: then it is open again.
    pub fn follow(&mut self, id: usize, leaders: &[usize]) {
        self.expect(id, State::Open);
        self.states[id] = State::Waiting;
        self.missing[id] = u32::try_from(leaders.len()).expect("a node has fewer than 2^32 leaders");
        leaders.iter().for_each(|&leader| self.followers.entry(leader).or_default().push(id));
    }

    /// The result of a node that was done is not there after all, and is needed: it is open again.
    pub fn reopen(&mut self, id: usize) {
        self.expect(id, State::Done);
        self.open(id);
    }

    /// The GPUs of a running node, by number.
    pub fn gpus(&self, id: usize) -> &[u32] {
        &self.gpus[id]
    }

    /// The result of an open node must be made.
    pub fn must_run(&mut self, id: usize) {
        self.expect(id, State::Open);
        self.states[id] = State::Queued;
        self.queue.insert(id);
    }

    /// The next queued node that there is room for; it is running now.
    ///
    /// In order; one that does not fit lets later ones pass only if they take nothing of what it lacks, so that a big
    /// node is not starved by small ones.
    pub fn start(&mut self) -> Option<usize> {
        if self.stopped || self.free.jobs == 0 {
            return None;
        }
        let mut kept = Request::default();
        let mut found = None;
        for &id in &self.queue {
            let want = self.requests[id];
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
            kept.cpus |= u32::from(cpus);
            kept.gpus |= u32::from(gpus);
            kept.memory |= u64::from(memory);
        }
        let id = found?;
        self.queue.remove(&id);
        let want = self.requests[id];
        self.free.jobs -= 1;
        self.free.cpus -= want.cpus;
        self.free.gpus -= want.gpus;
        self.free.memory -= want.memory;
        for _ in 0..want.gpus {
            let gpu = self.returned.pop_first().unwrap_or_else(|| {
                self.untouched += 1;
                self.untouched - 1
            });
            self.gpus[id].push(gpu);
        }
        self.states[id] = State::Running;
        self.running += 1;
        Some(id)
    }

    /// A running node is done.
    pub fn finished(&mut self, id: usize) {
        self.release(id);
        self.done(id);
    }

    /// A running node failed and will be tried again: [`Sched::wake`].
    pub fn rest(&mut self, id: usize) {
        self.release(id);
        self.states[id] = State::Resting;
        self.resting += 1;
    }

    /// A resting node may be tried again.
    pub fn wake(&mut self, id: usize) {
        self.expect(id, State::Resting);
        self.resting -= 1;
        self.states[id] = State::Queued;
        self.queue.insert(id);
    }

    /// An open, running or resting node failed for good. Returns those that cannot run because of it, sorted.
    pub fn failed(&mut self, id: usize) -> Vec<usize> {
        match self.states[id] {
            State::Running => self.release(id),
            State::Resting => self.resting -= 1,
            _ => self.expect(id, State::Open),
        }
        self.states[id] = State::Failed;
        let mut blocked = Vec::new();
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            // Dependents that were told before know the result, and may do without its files.
            let dependents = if self.told[id] { &[][..] } else { self.dependents[id] };
            for next in dependents.iter().copied().chain(self.followers.remove(&id).unwrap_or_default()) {
                if self.states[next] == State::Waiting {
                    self.states[next] = State::Blocked;
                    blocked.push(next);
                    stack.push(next);
                }
            }
        }
        blocked.sort_unstable();
        blocked
    }

    fn expect(&self, id: usize, state: State) {
        assert_eq!(self.states[id], state, "node {id} is not where the scheduler's driver thinks");
    }

    fn open(&mut self, id: usize) {
        self.states[id] = State::Open;
        self.open.push(Reverse(id));
    }

    fn release(&mut self, id: usize) {
        self.expect(id, State::Running);
        let had = self.requests[id];
        self.free.jobs += 1;
        self.free.cpus += had.cpus;
        self.free.gpus += had.gpus;
        self.free.memory += had.memory;
        self.returned.extend(self.gpus[id].drain(..));
        self.running -= 1;
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
mod tests {
    use super::*;

    /// Edges of a test: dependencies and dependents of each node.
    struct Shape {
        dependencies: Vec<Vec<usize>>,
        dependents: Vec<Vec<usize>>,
        requests: Vec<Request>,
    }

    impl Shape {
        fn new(dependencies: Vec<Vec<usize>>) -> Self {
            let mut dependents = vec![Vec::new(); dependencies.len()];
            for (id, from) in dependencies.iter().enumerate() {
                from.iter().for_each(|&from| dependents[from].push(id));
            }
            let requests = vec![Request { cpus: 1, ..Request::default() }; dependencies.len()];
            Self { dependencies, dependents, requests }
        }

        fn sched(&self, wanted: &[bool], pools: Pools) -> Sched<'_> {
            let nodes = (0..self.requests.len())
                .map(|id| (self.dependencies[id].as_slice(), self.dependents[id].as_slice(), self.requests[id]));
            Sched::new(nodes, wanted, pools)
        }
    }

    const POOLS: Pools = Pools { jobs: 4, cpus: 4, gpus: 2, memory: 100 };

    fn open_all(sched: &mut Sched<'_>) {
        while let Some(id) = sched.next_open() {
            sched.must_run(id);
        }
    }

    #[test]
    fn a_hit_opens_the_next_and_a_failure_blocks_the_rest() {
        let shape = Shape::new(vec![vec![], vec![0], vec![1], vec![]]);
        let mut sched = shape.sched(&[true; 4], POOLS);
        assert_eq!(sched.next_open(), Some(0));
        sched.hit(0);
        assert_eq!(sched.next_open(), Some(1));
        sched.must_run(1);
        assert_eq!(sched.start(), Some(1));
        assert_eq!(sched.failed(1), [2]);
        assert_eq!((sched.state(2), sched.state(3)), (State::Blocked, State::Open));
        assert!(!sched.is_over());
        sched.stop();
        assert!(sched.is_over() && sched.next_open().is_none());
    }

    #[test]
    fn a_big_node_is_not_starved_and_others_use_what_it_does_not_need() {
        let mut shape = Shape::new(vec![vec![]; 5]);
        shape.requests[0] = Request { cpus: 1, gpus: 1, memory: 0 };
        shape.requests[1] = Request { cpus: 1, gpus: 2, memory: 0 };
        shape.requests[2] = Request { cpus: 1, gpus: 1, memory: 0 };
        shape.requests[4] = Request { cpus: 4, gpus: 0, memory: 0 };
        let mut sched = shape.sched(&[true; 5], POOLS);
        open_all(&mut sched);
        assert_eq!(sched.start(), Some(0));
        // 1 lacks a GPU, so 2 may not take the last one; 3 needs none; 4 waits for all cores.
        assert_eq!(sched.start(), Some(3));
        assert_eq!(sched.start(), None);
        sched.finished(0);
        assert_eq!(sched.start(), Some(1));
        sched.rest(1);
        assert_eq!(sched.start(), Some(2));
        sched.wake(1);
        assert_eq!(sched.start(), None);
        sched.finished(2);
        assert_eq!(sched.start(), Some(1));
        sched.finished(1);
        assert_eq!(sched.start(), None);
        sched.finished(3);
        assert_eq!(sched.start(), Some(4), "all cores");
        sched.finished(4);
        assert!(sched.is_over());
    }

    /// A small generator of numbers: the tests are the same every time.
    struct Lcg(u64);
    impl Lcg {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % n
        }
    }

    #[test]
    fn random_graphs_run_in_order_within_the_pools_and_to_the_end() {
        for seed in 0..300 {
            let mut random = Lcg(seed);
            let count = 1 + random.below(40) as usize;
            let dependencies =
                (0..count).map(|id| (0..id).filter(|_| random.below(8) == 0).collect::<Vec<_>>()).collect::<Vec<_>>();
            let mut shape = Shape::new(dependencies);
            for request in &mut shape.requests {
                let (cpus, gpus, memory) = (1 + random.below(4) as u32, random.below(3) as u32, random.below(101));
                *request = Request { cpus, gpus, memory };
            }
            let mut sched = shape.sched(&vec![true; count], POOLS);
            let mut running: Vec<usize> = Vec::new();
            let (mut started, mut failed) = (vec![0; count], vec![false; count]);
            let mut follows = vec![Vec::new(); count];
            while !sched.is_over() {
                while let Some(id) = sched.next_open() {
                    assert!(shape.dependencies[id].iter().all(|&from| sched.state(from) == State::Done));
                    let on_its_way =
                        |&other: &usize| other != id && matches!(sched.state(other), State::Queued | State::Running);
                    let leaders: Vec<usize> = (0..count).filter(on_its_way).take(2).collect();
                    match random.below(4) {
                        0 => sched.hit(id),
                        1 if !leaders.is_empty() && follows[id].is_empty() => {
                            sched.follow(id, &leaders);
                            follows[id] = leaders;
                        }
                        _ => sched.must_run(id),
                    }
                }
                while let Some(id) = sched.start() {
                    started[id] += 1;
                    running.push(id);
                }
                let sum = |of: fn(&Request) -> u64| running.iter().map(|&id| of(&shape.requests[id])).sum::<u64>();
                assert!(running.len() <= 4 && sum(|r| u64::from(r.gpus)) <= 2 && sum(|r| r.memory) <= 100);
                assert!(sum(|r| u64::from(r.cpus)) <= 4);
                let mut gpus: Vec<u32> = running.iter().flat_map(|&id| sched.gpus(id)).copied().collect();
                gpus.sort_unstable();
                gpus.dedup();
                assert_eq!(gpus.len() as u64, sum(|r| u64::from(r.gpus)), "each GPU is one node's");
                assert!(gpus.iter().all(|gpu| *gpu < POOLS.gpus));
                let Some(at) = (!running.is_empty()).then(|| random.below(running.len() as u64) as usize) else {
                    continue;
                };
                let id = running.swap_remove(at);
                match random.below(10) {
                    0 => {
                        failed[id] = true;
                        sched.failed(id);
                    }
                    1 => {
                        sched.rest(id);
                        sched.wake(id);
                        started[id] -= 1;
                    }
                    _ => sched.finished(id),
                }
            }
            let mut doomed = vec![false; count];
            // Leaders may come after who follows them.
            for _ in 0..count {
                for id in 0..count {
                    let needs = shape.dependencies[id].iter().chain(&follows[id]);
                    doomed[id] |= needs.copied().any(|from| failed[from] || doomed[from]);
                }
            }
            for id in 0..count {
                let expected = if doomed[id] {
                    State::Blocked
                } else if failed[id] {
                    State::Failed
                } else {
                    State::Done
                };
                assert_eq!((sched.state(id), started[id] <= 1), (expected, true), "seed {seed}, node {id}");
            }
        }
    }

    #[test]
    fn gpus_are_handed_out_by_number_and_come_back() {
        let mut shape = Shape::new(vec![vec![]; 4]);
        let wants = [1, 2, 1, 3];
        shape.requests.iter_mut().zip(wants).for_each(|(request, gpus)| request.gpus = gpus);
        let mut sched = shape.sched(&[true; 4], Pools { gpus: 4, ..POOLS });
        open_all(&mut sched);
        assert_eq!([sched.start(), sched.start(), sched.start(), sched.start()], [Some(0), Some(1), Some(2), None]);
        assert_eq!((sched.gpus(0), sched.gpus(1), sched.gpus(2)), (&[0][..], &[1, 2][..], &[3][..]));
        sched.finished(1);
        sched.rest(0);
        assert_eq!((sched.start(), sched.gpus(3)), (Some(3), &[0, 1, 2][..]));
        sched.wake(0);
        assert_eq!(sched.start(), None);
        sched.finished(2);
        assert_eq!((sched.start(), sched.gpus(0)), (Some(0), &[3][..]));
    }

    #[test]
    fn a_result_that_is_needed_again_is_made_before_those_that_need_it() {
        // 0 → 1 → {2, 3}
        let shape = Shape::new(vec![vec![], vec![0], vec![1], vec![1]]);
        let mut sched = shape.sched(&[true; 4], POOLS);
        for id in [0, 1, 2] {
            assert_eq!(sched.next_open(), Some(id));
            sched.hit(id);
        }
        // 3 needs the files of 1, which needs those of 0.
        assert_eq!(sched.next_open(), Some(3));
        sched.reopen(1);
        sched.follow(3, &[1]);
        assert_eq!(sched.next_open(), Some(1));
        sched.reopen(0);
        sched.follow(1, &[0]);
        assert_eq!(sched.next_open(), Some(0));
        sched.must_run(0);
        assert_eq!((sched.next_open(), sched.start()), (None, Some(0)));
        sched.finished(0);
        assert_eq!(sched.next_open(), Some(1));
        sched.must_run(1);
        assert_eq!(sched.start(), Some(1));
        assert_eq!(sched.failed(1), [3], "2 has what it needs");
        assert_eq!((sched.state(2), sched.is_over()), (State::Done, true));
    }

    #[test]
    fn unwanted_nodes_never_open() {
        let shape = Shape::new(vec![vec![], vec![0], vec![]]);
        let mut sched = shape.sched(&[true, false, false], POOLS);
        open_all(&mut sched);
        assert_eq!(sched.start(), Some(0));
        sched.finished(0);
        assert!(sched.is_over());
        assert_eq!(sched.state(1), State::Unwanted);
    }
}
