//! Many threads and processes on one cache.

use std::{
    fs,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use flow_cache::{Claim, ClaimOptions};
use flow_core::{Cancel, Cancelled};

use crate::kit::{again, assert_tidy, cache, fill, miss, options, parts, patient};

#[test]
fn eight_threads_make_each_result_once() {
    let (_dir, cache) = cache();
    let (made, waited) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            // Half of them as if they were processes of their own.
            let cache = if thread % 2 == 0 { cache.clone() } else { again(&cache) };
            let (made, waited) = (&made, &waited);
            scope.spawn(move || {
                for n in 0..25 {
                    match cache.claim(&parts(n).key(), &patient()).unwrap() {
                        Claim::Hit(outcome) => {
                            assert_eq!(outcome.tree.entries().len(), 2);
                            waited.fetch_add(usize::from(outcome.waited), Ordering::Relaxed);
                        }
                        Claim::Miss(slot) => {
                            made.fetch_add(1, Ordering::Relaxed);
                            fill(slot.out(), &[("n", &n.to_le_bytes()), ("same", b"same")]);
                            std::thread::sleep(Duration::from_millis(3));
                            slot.commit(&parts(n), 0.0).unwrap();
                        }
                    }
                }
            });
        }
    });
    assert_eq!(made.into_inner(), 25);
    assert!(waited.into_inner() > 0);
    assert_tidy(&cache);
    assert!(cache.verify(&|_, _| ()).unwrap().is_good());
}

#[test]
fn who_waits_is_told_once_for_whom_and_may_give_up() {
    let (_dir, cache) = cache();
    let slot = miss(&cache, &parts(1), &options(false));
    let cancel = Cancel::default();
    let told = Mutex::new(Vec::new());
    let waiting = |reason: &str| told.lock().unwrap().push(reason.to_owned());
    let options = ClaimOptions { cancel: &cancel, waiting: &waiting, ..options(false) };
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            cancel.set();
        });
        let error = again(&cache).claim(&parts(1).key(), &options).unwrap_err();
        assert!(error.downcast_ref::<Cancelled>().is_some(), "{error:#}");
    });
    assert!(began.elapsed() < Duration::from_secs(5));
    let told = told.into_inner().unwrap();
    assert_eq!(told.len(), 1);
    assert!(told[0].contains(&format!("process {} on ", std::process::id())), "{told:?}");
    drop(slot);
}

#[test]
fn after_a_failure_the_next_in_line_makes_it() {
    let (_dir, cache) = cache();
    let slot = miss(&cache, &parts(1), &options(false));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let slot = miss(&again(&cache), &parts(1), &patient());
            slot.commit(&parts(1), 0.0).unwrap();
        });
        std::thread::sleep(Duration::from_millis(30));
        drop(slot);
        waiter.join().unwrap();
    });
    assert!(cache.lookup(&parts(1).key()).unwrap().is_some());
}

#[test]
fn two_that_are_forced_do_it_once_if_one_waits() {
    let (_dir, cache) = cache();
    let force = ClaimOptions { ignore_hit: true, ..patient() };
    let slot = miss(&cache, &parts(1), &force);
    std::thread::scope(|scope| {
        let other = again(&cache);
        let waiter = scope.spawn(move || match other.claim(&parts(1).key(), &force).unwrap() {
            Claim::Hit(outcome) => outcome.waited,
            Claim::Miss(_) => false,
        });
        std::thread::sleep(Duration::from_millis(50));
        slot.commit(&parts(1), 0.0).unwrap();
        assert!(waiter.join().unwrap());
    });
}

#[test]
fn one_view_is_made_by_many() {
    let (_dir, cache) = cache();
    let slot = miss(&cache, &parts(1), &options(false));
    fill(slot.out(), &[("a/b", b"1"), ("c", b"2")]);
    let tree = slot.commit(&parts(1), 0.0).unwrap().tree;
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let view = again(&cache).view(&tree).unwrap();
                assert_eq!(fs::read(view.join("a/b")).unwrap(), b"1");
                assert_eq!(fs::read(view.join("c")).unwrap(), b"2");
            });
        }
    });
    assert_tidy(&cache);
}
