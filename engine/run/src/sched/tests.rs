//! Graphs, pools, and everything that may become of a node.

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

fn next(sched: &mut Sched<'_>, id: usize) {
    assert_eq!(sched.next_open(), Some(id));
}

fn hits(sched: &mut Sched<'_>, id: usize) {
    next(sched, id);
    sched.hit(id);
}

fn starts(sched: &mut Sched<'_>, id: usize) {
    next(sched, id);
    sched.must_run(id);
    assert_eq!(sched.start(), Some(id));
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
    hits(&mut sched, 0);
    starts(&mut sched, 1);
    sched.failed(1);
    assert_eq!(sched.take_blocked(), [(2, 1)]);
    assert_eq!((sched.state(2), sched.state(3)), (State::Blocked, State::Open));
    assert!(!sched.is_over());
    sched.stop();
    assert!(sched.is_over() && sched.next_open().is_none());
}

#[test]
fn a_big_node_is_not_starved_and_others_use_what_it_does_not_need() {
    let mut shape = Shape::new(vec![vec![]; 5]);
    shape.requests[0] = Request { cpus: 1, gpus: 1, memory: 0, elsewhere: false };
    shape.requests[1] = Request { cpus: 1, gpus: 2, memory: 0, elsewhere: false };
    shape.requests[2] = Request { cpus: 1, gpus: 1, memory: 0, elsewhere: false };
    shape.requests[4] = Request { cpus: 4, gpus: 0, memory: 0, elsewhere: false };
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
            *request = Request { cpus, gpus, memory, elsewhere: false };
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
fn gpus_are_counted_and_come_back() {
    let mut shape = Shape::new(vec![vec![]; 4]);
    let wants = [1, 2, 1, 3];
    shape.requests.iter_mut().zip(wants).for_each(|(request, gpus)| request.gpus = gpus);
    let mut sched = shape.sched(&[true; 4], Pools { gpus: 4, ..POOLS });
    open_all(&mut sched);
    assert_eq!([sched.start(), sched.start(), sched.start(), sched.start()], [Some(0), Some(1), Some(2), None]);
    sched.finished(1);
    sched.rest(0);
    assert_eq!(sched.start(), Some(3));
    sched.wake(0);
    assert_eq!(sched.start(), None);
    sched.finished(2);
    assert_eq!(sched.start(), Some(0));
}

#[test]
fn a_result_that_is_needed_again_is_made_before_those_that_need_it() {
    // 0 → 1 → {2, 3}
    let shape = Shape::new(vec![vec![], vec![0], vec![1], vec![1]]);
    let mut sched = shape.sched(&[true; 4], POOLS);
    for id in [0, 1, 2] {
        hits(&mut sched, id);
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
    starts(&mut sched, 1);
    sched.failed(1);
    assert_eq!(sched.take_blocked(), [(3, 1)], "2 has what it needs");
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

#[test]
fn what_was_decided_by_what_is_no_more_waits_and_is_decided_again() {
    // 0 → 1, 2, 3, 4; 1 and 2 → 5; 3 → 6
    let shape = Shape::new(vec![vec![], vec![0], vec![0], vec![0], vec![0], vec![1, 2], vec![3]]);
    let mut sched = shape.sched(&[true; 7], POOLS);
    hits(&mut sched, 0);
    hits(&mut sched, 1);
    next(&mut sched, 2);
    sched.must_place(2);
    assert_eq!(sched.start(), Some(2));
    next(&mut sched, 3);
    sched.send_away(3);
    next(&mut sched, 4);
    // 4 needs 0 after all, which is made again and is another one.
    sched.reopen(0);
    sched.follow(4, &[0]);
    starts(&mut sched, 0);
    assert_eq!(sched.untell(0), [1, 2, 3, 4, 5]);
    assert_eq!(sched.untell(0), [0; 0], "nobody was told since");
    sched.come_back(3);
    assert_eq!((sched.state(1), sched.state(3), sched.next_open()), (State::Waiting, State::Waiting, None));
    sched.finished(0);
    [1, 3, 4].into_iter().for_each(|id| hits(&mut sched, id));
    hits(&mut sched, 6);
    assert_eq!((sched.next_open(), sched.state(2)), (None, State::Running));
    // What ran meanwhile is looked at when it ends, and takes what it takes then.
    sched.finished(2);
    starts(&mut sched, 2);
    sched.finished(2);
    hits(&mut sched, 5);
    assert!(sched.is_over());
}

#[test]
fn what_runs_on_what_was_made_again_and_failed_is_blocked_when_it_ends() {
    // 0 → 1 → {2, 3} → 4, and 5 needs 0; 6 follows 2.
    let shape = Shape::new(vec![vec![], vec![0], vec![1], vec![1], vec![2, 3], vec![0], vec![]]);
    let mut sched = shape.sched(&[true; 7], POOLS);
    hits(&mut sched, 0);
    hits(&mut sched, 1);
    starts(&mut sched, 2);
    next(&mut sched, 3);
    sched.send_away(3);
    next(&mut sched, 5);
    // 5 needs the files of 0, which is made again and is another one.
    sched.reopen(0);
    sched.follow(5, &[0]);
    starts(&mut sched, 0);
    assert_eq!(sched.untell(0), [1, 2, 3, 5]);
    sched.finished(0);
    next(&mut sched, 1);
    sched.failed(1);
    assert_eq!((sched.take_blocked(), sched.state(2), sched.state(3)), (vec![], State::Running, State::Away));
    hits(&mut sched, 5);
    next(&mut sched, 6);
    sched.follow(6, &[2]);
    sched.come_back(3);
    assert_eq!(sched.take_blocked(), [(3, 1), (4, 1)]);
    sched.finished(2);
    assert_eq!(sched.take_blocked(), [(2, 1), (6, 1)]);
    assert!(sched.is_over());
}

#[test]
fn what_runs_elsewhere_takes_nothing_of_the_pools() {
    let mut shape = Shape::new(vec![Vec::new(); 40]);
    for request in &mut shape.requests[4..] {
        *request = Request { cpus: 1000, gpus: 1000, memory: 1 << 60, elsewhere: true };
    }
    let mut sched = shape.sched(&[true; 40], POOLS);
    while let Some(id) = sched.next_open() {
        sched.must_run(id);
    }
    let running: Vec<usize> = std::iter::from_fn(|| sched.start()).collect();
    assert_eq!(running.iter().filter(|id| **id >= 4).count(), 36, "{running:?}");
    let here: Vec<usize> = running.iter().copied().filter(|id| *id < 4).collect();
    assert!(!here.is_empty());
    // Elsewhere it ends, and gives nothing back; put in its places it takes a job as others do.
    sched.rest(4);
    sched.lighten(4);
    sched.wake(4);
    let full = sched.start();
    assert_eq!(full.is_some(), here.len() < POOLS.jobs as usize, "{here:?}");
    for id in running.into_iter().filter(|id| *id != 4).chain(full) {
        sched.finished(id);
    }
    if full.is_none() {
        assert_eq!(sched.start(), Some(4));
        sched.finished(4);
    }
    assert!(sched.is_over());
}
