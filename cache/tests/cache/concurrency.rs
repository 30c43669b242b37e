//! Many threads and processes on one cache.

use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use flow_cache::{Claim, ClaimOptions};

use crate::kit::{again, assert_tidy, cache, fill, miss, options, parts, patiently};

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
                    match patiently(&cache, &parts(n), &options(false)) {
                        (Claim::Busy(_), _) => unreachable!("that was waited for"),
                        (Claim::Hit(outcome), has_waited) => {
                            assert_eq!(outcome.tree.entries().len(), 2);
                            waited.fetch_add(usize::from(has_waited), Ordering::Relaxed);
                        }
                        (Claim::Miss(slot), _) => {
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
fn who_is_refused_is_told_by_whom() {
    let (_dir, cache) = cache();
    let slot = miss(&cache, &parts(1), &options(false));
    let Claim::Busy(busy) = again(&cache).claim(&parts(1).key(), &options(false)).unwrap() else { panic!("no wait") };
    assert!(busy.holder.contains(&format!("process {} on ", std::process::id())), "{busy:?}");
    drop(slot);
    drop(miss(&again(&cache), &parts(1), &ClaimOptions { after: Some(&busy), ..options(false) }));
}

#[test]
fn after_a_failure_the_next_in_line_makes_it() {
    let (_dir, cache) = cache();
    let slot = miss(&cache, &parts(1), &options(false));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let (Claim::Miss(slot), true) = patiently(&again(&cache), &parts(1), &options(false)) else {
                panic!("it is not made")
            };
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
    let force = ClaimOptions { ignore_hit: true, ..options(false) };
    let slot = miss(&cache, &parts(1), &force);
    std::thread::scope(|scope| {
        let other = again(&cache);
        let waiter = scope.spawn(move || matches!(patiently(&other, &parts(1), &force), (Claim::Hit(_), true)));
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
