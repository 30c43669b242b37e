//! Agents: the ranks of two machines, both of which are this one.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use flow_plan::agent::{Order, Ready, Said};
use serde_json::json;

use crate::common::{FLOW_TORCH, Training, finish};

/// Four ranks, those that share a layer on one machine; each machine has two of them.
fn of_four_ranks() -> Training {
    Training::of("untied")
        .with(&[("parallel", json!({"tensor": 2, "data": 2})), ("checkpoint", json!({"interval": 3}))])
}

fn agent(run: &Training, node: usize, flags: &[&str]) -> Child {
    let mut command = Command::new(FLOW_TORCH);
    command.arg("worker").args(flags).args(["--nnodes", "2", "--node-rank", &node.to_string()]);
    command.arg(run.path("job.json")).env_remove("OMP_NUM_THREADS").env("FLOW_PEER_TIMEOUT", "5");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// As any launcher would start them.
fn by_hand(run: &Training) -> Vec<Child> {
    run.write_job();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = format!("127.0.0.1:{port}");
    [1, 0].map(|node| agent(run, node, &["--rdzv", &place])).into_iter().rev().collect()
}

/// The processes of which that is the parent, by the rank that their environment says, living ones alone.
fn ranks_of(agent: u32) -> Vec<(usize, i32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let is_its = fields.get(1).is_some_and(|parent| *parent == agent.to_string()) && fields[0] != "Z";
        let environment = fs::read_to_string(entry.path().join("environ")).unwrap_or_default();
        let rank = environment.split('\0').find_map(|variable| variable.strip_prefix("RANK=")?.parse().ok());
        if let Some(rank) = rank.filter(|_| is_its) {
            found.push((rank, pid));
        }
    }
    found.sort_unstable();
    found
}

fn kill(pid: i32) {
    // SAFETY: sends a signal to a process that a test started.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn two_machines_give_the_bytes_of_one() {
    let one = of_four_ranks();
    one.run();
    let two = of_four_ranks();
    let ended = finish(by_hand(&two));
    assert!(ended.iter().all(|ended| ended.status.success()), "{}{}", ended[0].stderr, ended[1].stderr);
    assert_eq!(one.result(), two.result());
    // Each line says whose it is; where they met and what each may use is said once.
    assert!(ended[0].stdout.lines().all(|line| line.starts_with("[rank 0] {")), "{}", ended[0].stdout);
    let said = |node: usize| ended[node].stderr.lines().filter(|line| line.contains("of 4 ranks")).count();
    assert_eq!([said(0), said(1)], [1, 1], "{}", ended[1].stderr);
    assert!(ended[1].stderr.contains(": 2 of 4 ranks, cores ") && ended[1].stderr.contains(" over lo"));
    assert!(two.path("index").is_dir() && two.path("index.1").is_dir(), "each machine maps files of its own");
}

#[test]
fn a_rank_that_is_killed_is_named_and_all_end() {
    let mut run = of_four_ranks();
    run.numbers["max_steps"] = json!(100_000);
    let agents = by_hand(&run);
    wait_until("no checkpoint came", || run.path("scratch/iter_0000003").is_dir());
    let (first, second) = (ranks_of(agents[0].id()), ranks_of(agents[1].id()));
    assert_eq!([&first, &second].map(|ranks| ranks.iter().map(|rank| rank.0).collect::<Vec<_>>()), [[0, 1], [2, 3]]);
    kill(second[1].1);
    let ended = finish(agents);
    assert_eq!(ended[1].status.code(), Some(128 + 9), "{}", ended[1].stderr);
    let last = ended[1].stderr.lines().last().unwrap();
    assert!(last.contains("rank 3 was the first") && last.contains("signal: 9"), "{last}");
    assert_eq!(ended[0].status.code(), Some(1), "{}", ended[0].stderr);
    assert!([first, second].concat().iter().all(|(_, pid)| !lives(*pid)));
}

#[test]
fn asked_to_stop_they_keep_what_they_have() {
    let mut run = of_four_ranks();
    run.numbers["max_steps"] = json!(100_000);
    let agents = by_hand(&run);
    wait_until("no checkpoint came", || run.path("scratch/iter_0000003").is_dir());
    // SAFETY: sends a signal to a child that was not waited for yet.
    unsafe { libc::kill(agents[1].id().cast_signed(), libc::SIGTERM) };
    let ended = finish(agents);
    assert_eq!([&ended[0], &ended[1]].map(|ended| ended.status.code()), [Some(75); 2], "{}", ended[0].stderr);
}

#[test]
fn who_is_tied_does_what_it_is_told_and_ends_with_who_told_it() {
    let mut run = of_four_ranks();
    run.numbers["max_steps"] = json!(100_000);
    run.write_job();
    let mut agents = [0, 1].map(|node| agent(&run, node, &["--tied"]));
    let mut said = agents.each_mut().map(|agent| BufReader::new(agent.stdout.take().unwrap()).lines());
    let mut ready = said.each_mut().map(|said| match Said::parse(&said.next().unwrap().unwrap()) {
        Some(Said::Ready(ready)) => ready,
        other => panic!("{other:?}"),
    });
    let port = ready[0].port.take().unwrap();
    assert!(matches!(&ready[1], Ready { node: 1, port: None, .. }));
    for agent in &mut agents {
        let order = Order::Meet("127.0.0.1".into(), port).line();
        agent.stdin.as_mut().unwrap().write_all(order.as_bytes()).unwrap();
    }
    wait_until("no checkpoint came", || run.path("scratch/iter_0000003").is_dir());
    let ranks = [ranks_of(agents[0].id()), ranks_of(agents[1].id())].concat();
    assert_eq!(ranks.len(), 4);
    // One whose input ends, one that is itself killed.
    drop(agents[0].stdin.take());
    agents[1].kill().unwrap();
    wait_until("ranks outlive their agents", || ranks.iter().all(|(_, pid)| !lives(*pid)));
    let ended = said[0].by_ref().map_while(Result::ok).filter_map(|line| Said::parse(&line));
    assert_eq!(ended.filter(|said| matches!(said, Said::Ended { .. })).count(), 2);
    assert!(finish(agents.into()).remove(0).status.success(), "it said how they ended");
}

#[test]
fn what_it_is_told_wrongly_is_said() {
    let run = of_four_ranks();
    run.write_job();
    let error = |flags: &[&str]| {
        let output = Command::new(FLOW_TORCH).arg("worker").args(flags).arg(run.path("job.json")).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(error(&["--nnodes", "2", "--rdzv", "a:1"]).contains("--node-rank is missing"));
    assert!(error(&["--nnodes", "2", "--node-rank", "2", "--rdzv", "a:1"]).contains("they count from 0"));
    assert!(error(&["--nnodes", "2", "--node-rank", "0"]).contains("--rdzv is missing"));
    assert!(error(&["--nnodes", "2", "--node-rank", "0", "--rdzv", "a"]).contains("write HOST:PORT"));
    let odd = error(&["--nnodes", "3", "--node-rank", "1", "--rdzv", "127.0.0.1:1"]);
    assert!(odd.contains("the job has 4 ranks, and 3 machines with 1 each have 3"), "{odd}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = format!("127.0.0.1:{}", taken.local_addr().unwrap().port());
    let busy = error(&["--nnodes", "2", "--node-rank", "0", "--rdzv", &place]);
    assert!(busy.contains("cannot open its store on port") && busy.contains("in use"), "{busy}");
}
