//! Groups of real processes over the loopback: each test starts this binary again, once a rank.

use std::{
    env,
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use flow_dist::{Group, Reduce, Store, autograd};
use tch::{Device, Kind, Tensor};

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `body` in `size` processes, as the test named `test`, and gives what each said.
fn in_ranks(test: &str, size: usize, body: impl Fn(&Store, usize)) -> Vec<Output> {
    if let Ok(rank) = env::var("TEST_RANK") {
        let rank: usize = rank.parse().unwrap();
        let port = env::var("TEST_PORT").unwrap().parse().unwrap();
        let store = Store::open("127.0.0.1", port, rank == 0, size, PATIENCE).unwrap();
        body(&store, rank);
        // The one who serves the store leaves last.
        store.add("left", 1).unwrap();
        let start = Instant::now();
        while rank == 0 && store.add("left", 0).unwrap() < size as i64 && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(5));
        }
        std::process::exit(0);
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let children: Vec<Child> = (0..size)
        .map(|rank| {
            Command::new(env::current_exe().unwrap())
                .args(["--exact", test, "--nocapture", "--test-threads=1"])
                .env("TEST_RANK", rank.to_string())
                .env("TEST_PORT", port.to_string())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

fn all_succeed(outputs: &[Output]) {
    for (rank, output) in outputs.iter().enumerate() {
        assert!(output.status.success(), "rank {rank}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn numbers(x: &Tensor) -> Vec<f64> {
    Vec::try_from(x.to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

#[test]
fn collectives_do_what_their_names_say() {
    all_succeed(&in_ranks("collectives_do_what_their_names_say", 3, |store, rank| {
        let group = Group::open(store, "127.0.0.1", "world", rank, 3, PATIENCE).unwrap();
        let r = rank as f64;
        for kind in [Kind::Float, Kind::BFloat16] {
            let x = Tensor::from_slice(&[r, 10.0 * r, -r]).to_kind(kind);
            let reduced = |how| {
                let x = x.copy();
                group.all_reduce(&x, how).unwrap();
                numbers(&x)
            };
            assert_eq!(reduced(Reduce::Sum), [3.0, 30.0, -3.0]);
            assert_eq!(reduced(Reduce::Avg), [1.0, 10.0, -1.0]);
            assert_eq!(reduced(Reduce::Max), [2.0, 20.0, 0.0]);
        }
        let x = Tensor::full([2, 2], r, (Kind::Float, Device::Cpu));
        assert_eq!(
            numbers(&group.all_gather(&x, 1).unwrap()),
            [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
        );
        let x = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]) * (r + 1.0);
        assert_eq!(numbers(&group.reduce_scatter(&x, 1).unwrap()), [6.0 * r, 6.0 * (r + 3.0)]);
        assert!(group.reduce_scatter(&x, 0).unwrap_err().root_cause().to_string().contains("does not split"));
        // A view that is not contiguous is reduced where it lies.
        let base = Tensor::full([2, 2], r, (Kind::Float, Device::Cpu));
        group.all_reduce(&base.select(1, 0), Reduce::Sum).unwrap();
        assert_eq!(numbers(&base), [3.0, r, 3.0, r]);
        group.broadcast(&x, 2).unwrap();
        assert_eq!(numbers(&x)[5], 15.0);
        group.barrier().unwrap();
        // Two groups at once, as the axes of a mesh are: {0, 1} and {2}.
        let small = match rank {
            2 => Group::open(store, "127.0.0.1", "tp/1", 0, 1, PATIENCE).unwrap(),
            _ => Group::open(store, "127.0.0.1", "tp/0", rank, 2, PATIENCE).unwrap(),
        };
        let x = Tensor::from_slice(&[r + 1.0]);
        small.all_reduce(&x, Reduce::Sum).unwrap();
        assert_eq!(numbers(&x), [3.0]);
    }));
}

#[test]
fn gradients_cross_ranks() {
    all_succeed(&in_ranks("gradients_cross_ranks", 2, |store, rank| {
        let group = Group::open(store, "127.0.0.1", "tp", rank, 2, PATIENCE).unwrap();
        let r = rank as f64;
        // y = Σ_ranks (r + 1)·x: both ranks see y = 3x, and dy/dx = 3 on each.
        let x = Tensor::from_slice(&[2.0, 5.0]).set_requires_grad(true);
        let y = autograd::reduce_from(&group, &(autograd::copy_to(&group, &x).unwrap() * (r + 1.0))).unwrap();
        assert_eq!(numbers(&y), [6.0, 15.0]);
        let g = autograd::gradients(&y, &Tensor::from_slice(&[1.0, 10.0]), &[x.shallow_clone()]).unwrap();
        assert_eq!(numbers(g[0].as_ref().unwrap()), [3.0, 30.0]);
        // Along the sequence: each holds one of two rows; the gathered whole is weighted by rank and scattered again.
        let x = (Tensor::from_slice(&[1.0, 2.0]).view([1, 2]) * (r + 1.0)).set_requires_grad(true);
        let whole = autograd::gather_to(&group, &x, 0).unwrap();
        assert_eq!(whole.size(), [2, 2]);
        let y = autograd::reduce_scatter_from(&group, &(whole * (r + 1.0)), 0).unwrap();
        assert_eq!(numbers(&y), [3.0 * (r + 1.0), 6.0 * (r + 1.0)]);
        let unused = Tensor::from_slice(&[0.0]).set_requires_grad(true);
        let g = autograd::gradients(&y, &y.ones_like(), &[x.shallow_clone(), unused]).unwrap();
        assert_eq!(numbers(g[0].as_ref().unwrap()), [3.0, 3.0]);
        assert!(g[1].is_none());
    }));
}

#[test]
fn one_rank_is_a_group_too() {
    let group = Group::solo();
    let x = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
    let y = autograd::reduce_from(&group, &autograd::copy_to(&group, &x).unwrap()).unwrap();
    group.all_reduce(&y.detach(), Reduce::Avg).unwrap();
    assert_eq!(numbers(&group.all_gather(&y, 0).unwrap()), [1.0, 2.0]);
}

#[test]
fn a_dead_rank_is_an_error_at_once() {
    let outputs = in_ranks("a_dead_rank_is_an_error_at_once", 2, |store, rank| {
        let group = Group::open(store, "127.0.0.1", "world", rank, 2, PATIENCE).unwrap();
        group.barrier().unwrap();
        if rank == 1 {
            std::process::abort();
        }
        let start = Instant::now();
        let error = group.all_reduce(&Tensor::from_slice(&[1.0]), Reduce::Sum).unwrap_err();
        assert!(error.to_string().starts_with("all-reduce over the 2 ranks of `world` failed"), "{error:#}");
        assert!(start.elapsed() < Duration::from_secs(10));
        std::process::exit(0);
    });
    assert!(outputs[0].status.success(), "{}", String::from_utf8_lossy(&outputs[0].stderr));
    assert!(!outputs[1].status.success());
}

#[test]
fn a_late_rank_is_an_error_in_time() {
    let outputs = in_ranks("a_late_rank_is_an_error_in_time", 2, |store, rank| {
        let group = Group::open(store, "127.0.0.1", "world", rank, 2, Duration::from_secs(1)).unwrap();
        if rank == 1 {
            store.get("rank 0 gave up", PATIENCE).unwrap();
            std::process::exit(0);
        }
        let start = Instant::now();
        assert!(group.all_reduce(&Tensor::from_slice(&[1.0]), Reduce::Sum).is_err());
        assert!(start.elapsed() < Duration::from_secs(20));
        store.set("rank 0 gave up", b"").unwrap();
        thread::sleep(Duration::from_millis(200));
        std::process::exit(0);
    });
    all_succeed(&outputs);
}

#[test]
fn the_store_keeps_counts_and_waits() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let store = Store::open("127.0.0.1", port, true, 1, PATIENCE).unwrap();
    assert!(!store.has("key").unwrap());
    store.set("key", b"a\0b").unwrap();
    assert_eq!(store.get("key", PATIENCE).unwrap(), b"a\0b");
    assert_eq!((store.add("n", 2).unwrap(), store.add("n", -5).unwrap()), (2, -3));
    let start = Instant::now();
    assert!(store.get("never", Duration::from_millis(100)).is_err());
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(store.set("no\0key", b"").is_err());
    assert!(Store::open("127.0.0.1", port, true, 1, PATIENCE).unwrap_err().to_string().contains(&port.to_string()));
}
