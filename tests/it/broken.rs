//! What breaks off: a server or a flow that is killed in the middle, a disk that is full. Nothing half is ever seen, the
//! work goes on, and what was begun is gone on with.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use crate::{
    servers::{KEYS, Proxy, Server},
    support::{Output, Sandbox, until},
    team::{ALL, bucketeer, person, shared},
};

/// A server whose files outlive it, and how its team is reached through a port.
type Kind = (fn(&Path) -> Server, fn(u16, &str) -> Sandbox);

const DAV: Kind = (Server::dav, |port, mode| person(&format!("http://127.0.0.1:{port}/"), mode, ""));
const S3: Kind = (Server::s3s, |port, mode| bucketeer(port, mode, KEYS[1]));

/// All is fetched, also what nobody takes from.
const RUN: [&str; 5] = ["run", "p.toml", ALL[0], ALL[1], ALL[2]];

const MIB: usize = 1 << 20;

/// The objects that a person's cache remembers of its team.
fn state(person: &Sandbox) -> PathBuf {
    let mut states = fs::read_dir(person.cache().join("state/team")).unwrap();
    states.next().unwrap().unwrap().path()
}

/// The minute passes in which a team that failed is left alone.
fn forgive(person: &Sandbox) {
    for name in ["down", "down-for-writing"] {
        let _ = fs::remove_file(state(person).join(name));
    }
}

/// The one object of 20 MB in a directory of objects.
fn big(dir: &Path) -> Option<PathBuf> {
    let shards = fs::read_dir(dir.join("objects")).into_iter().flatten().flatten();
    let mut objects = shards.flat_map(|shard| fs::read_dir(shard.path()).into_iter().flatten().flatten());
    objects.find(|object| object.metadata().is_ok_and(|meta| meta.len() == 20_000_000)).map(|object| object.path())
}

fn all_come(person: &Sandbox) {
    let taken = person.json(&ALL);
    assert!(taken.how().values().all(|how| *how == "remote"), "{:?}", taken.how());
    person.ok(&["cache", "verify"]);
}

fn is_object(head: &str) -> bool {
    head.starts_with("GET ") && head.contains("objects/")
}

#[test]
fn a_server_that_is_killed_in_mid_download() {
    for (start, member) in [DAV, S3] {
        let root = tempfile::tempdir().unwrap();
        let mut server = start(root.path());
        member(server.port, "read-write").json(&[]);
        let proxy = Proxy::to(server.port);
        let (bob, carol) = (member(proxy.port, "read"), member(proxy.port, "read"));
        let mut broken = |bob: &Sandbox, args: &[&str]| {
            proxy.hold_answers(is_object, 5 * MIB);
            let run = bob.start(args);
            until("the object is on its way", || proxy.held() > 0);
            server.kill();
            proxy.release();
            let ended = run.end();
            server.back();
            ended
        };
        // Who works goes on without it.
        let run = broken(&bob, &RUN);
        assert!(run.code == Some(0) && run.stderr.contains("is made here"), "{run}");
        assert!(big(&bob.cache()).is_some());
        bob.ok(&["cache", "verify"]);
        // Who wants it is told, sees nothing half, and goes on where it broke off.
        let pull = broken(&carol, &["cache", "pull", "p.toml"]);
        assert_eq!(pull.code, Some(3), "{pull}");
        assert!(big(&carol.cache()).is_none());
        carol.ok(&["cache", "verify"]);
        proxy.heads();
        carol.ok(&["cache", "pull", "p.toml"]);
        let heads = proxy.heads();
        assert!(
            heads.iter().any(|head| is_object(head) && head.to_lowercase().contains("range: bytes=")),
            "{heads:#?}"
        );
        forgive(&carol);
        assert_eq!(carol.json(&[]).ran(), [""; 0]);
        carol.ok(&["cache", "verify"]);
    }
}

#[test]
fn a_server_that_is_killed_in_mid_upload() {
    for (start, member) in [DAV, S3] {
        let root = tempfile::tempdir().unwrap();
        let mut server = start(root.path());
        let proxy = Proxy::to(server.port);
        let alice = member(proxy.port, "read-write");
        proxy.hold_requests(|head| head.starts_with("PUT ") && !head.contains("content-length: 4\r"), 4 * MIB);
        let run = alice.start(&["run", "p.toml"]);
        until("the object is on its way", || proxy.held() > 0);
        server.kill();
        proxy.release();
        let run = run.end();
        assert!(run.code == Some(0), "{run}");
        assert_eq!(run.stderr.matches("cannot push").count(), 1, "{run}");
        server.back();
        forgive(&alice);
        alice.ok(&["run", "p.toml"]);
        assert!(!alice.run(&["cache", "push", "p.toml"]).stderr.contains("error"));
        all_come(&member(server.port, "read"));
    }
}

#[test]
fn a_flow_that_is_killed_in_mid_download() {
    for (start, member) in [DAV, S3] {
        let root = tempfile::tempdir().unwrap();
        let server = start(root.path());
        member(server.port, "read-write").json(&[]);
        let proxy = Proxy::to(server.port);
        let bob = member(proxy.port, "read");
        proxy.hold_answers(is_object, 5 * MIB);
        let run = bob.start(&RUN);
        let part = || {
            let parts = fs::read_dir(bob.cache().join("tmp/team")).into_iter().flatten().flatten();
            parts.filter_map(|part| part.metadata().ok()).map(|meta| meta.len()).max().unwrap_or(0)
        };
        until("some of it is here", || proxy.held() > 0 && part() > 4 * MIB as u64);
        run.signal(libc::SIGKILL);
        run.end();
        proxy.release();
        assert!(big(&bob.cache()).is_none());
        bob.ok(&["cache", "verify"]);
        proxy.heads();
        all_come(&bob);
        let heads = proxy.heads();
        assert!(
            heads.iter().any(|head| is_object(head) && head.to_lowercase().contains("range: bytes=")),
            "{heads:#?}"
        );
    }
}

#[test]
fn a_flow_that_is_killed_in_mid_upload_sends_no_part_twice() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::s3s(root.path());
    let proxy = Proxy::to(server.port);
    let alice = bucketeer(proxy.port, "read-write", KEYS[1]);
    let begun =
        |heads: &[String]| heads.iter().filter(|head| head.contains("POST") && head.contains("?uploads")).count();
    let parts = |heads: &[String]| heads.iter().filter(|head| head.contains("partNumber=")).count();
    let note = || fs::read_dir(state(&alice).join("uploads")).ok()?.flatten().next().map(|note| note.path());
    proxy.hold_requests(|head| head.contains("partNumber=3"), 1000);
    let run = alice.start(&["run", "p.toml"]);
    until("two parts went", || {
        let text = alice
            .cache()
            .join("state/team")
            .exists()
            .then(note)
            .flatten()
            .and_then(|path| fs::read_to_string(path).ok());
        let note: serde_json::Value = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
        note["done"].as_object().is_some_and(|done| done.len() == 2)
    });
    run.signal(libc::SIGKILL);
    run.end();
    // A server that is down meanwhile changes nothing.
    forgive(&alice);
    proxy.release();
    let heads = proxy.heads();
    assert_eq!((begun(&heads), parts(&heads)), (1, 3));
    // Half of it is there for nobody.
    let carol = bucketeer(server.port, "read", KEYS[1]).run(&["cache", "pull", "p.toml"]);
    assert!(carol.code == Some(1) && carol.stderr.contains("0 results fetched"), "{carol}");
    alice.ok(&["run", "p.toml"]);
    let heads = proxy.heads();
    assert_eq!((begun(&heads), parts(&heads)), (0, 1), "{heads:#?}");
    assert_eq!(note(), None);
    all_come(&bucketeer(server.port, "read", KEYS[1]));

    // A store that forgot what was begun gets it anew; an upload that somebody else finished is taken back.
    let (bob, dave) = (bucketeer(proxy.port, "read-write", KEYS[1]), bucketeer(proxy.port, "read-write", KEYS[1]));
    bob.write("flow.toml", &bob.read("flow.toml").replace("team/cache", "team/other"));
    dave.write("flow.toml", &bob.read("flow.toml"));
    proxy.hold_requests(|head| head.contains("partNumber=3"), 1000);
    let run = bob.start(&["run", "p.toml"]);
    until("a part is on its way", || proxy.held() > 0);
    run.signal(libc::SIGKILL);
    run.end();
    proxy.release();
    for entry in
        fs::read_dir(root.path()).unwrap().flatten().chain(fs::read_dir(root.path().join("team")).unwrap().flatten())
    {
        if entry.file_name().to_string_lossy().starts_with(".upload") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    bob.ok(&["run", "p.toml"]);
    all_come(&dave);
}

#[test]
fn half_of_an_object_on_a_web_server_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::dav(root.path());
    let [first, alice, bob, carol] = ["read-write", "read-write", "read", "read"].map(|mode| DAV.1(server.port, mode));
    first.json(&[]);
    let mut halved = 0;
    for part in ["objects", "results"] {
        for shard in fs::read_dir(root.path().join(part)).unwrap().flatten() {
            for file in fs::read_dir(shard.path()).unwrap().flatten() {
                let length = file.metadata().unwrap().len();
                fs::OpenOptions::new().write(true).open(file.path()).unwrap().set_len(length / 2).unwrap();
                halved += 1;
            }
        }
    }
    assert!(halved >= 7, "{halved}");
    let push = first.run(&["cache", "push", "p.toml"]);
    assert!(push.stderr.contains("3 results pushed"), "{push}");
    all_come(&bob);
    assert_eq!(alice.json(&[]).ran(), [""; 0]);
    // Also where the record is good: who takes is told, and a push is a repair.
    for shard in fs::read_dir(root.path().join("objects")).unwrap().flatten() {
        for file in fs::read_dir(shard.path()).unwrap().flatten() {
            let length = file.metadata().unwrap().len();
            fs::OpenOptions::new().write(true).open(file.path()).unwrap().set_len(length / 2).unwrap();
        }
    }
    let run = carol.run(&RUN);
    assert!(run.code == Some(0) && run.stderr.contains("is made here"), "{run}");
    carol.ok(&["cache", "verify"]);
    let push = first.run(&["cache", "push", "p.toml"]);
    assert!(push.stderr.contains("3 results pushed"), "{push}");
    let push = first.run(&["cache", "push", "p.toml"]);
    assert!(push.stderr.contains("0 results pushed"), "{push}");
    all_come(&DAV.1(server.port, "read"));
}

#[test]
fn a_shared_directory_is_kept_tidy_and_its_clock_is_its_own() {
    let (dir, url) = shared();
    let [alice, bob] = ["read-write", "read"].map(|mode| person(&url, mode, ""));
    let made = alice.json(&[]);
    let shards = || fs::read_dir(dir.path().join("results")).unwrap().flatten().map(|shard| shard.path());
    let day = Duration::from_secs(24 * 3600);
    let now = SystemTime::now();
    for shard in shards() {
        for (name, time) in [("old", now - 2 * day), ("young", now - day / 2), ("future", now + 9 * day)] {
            let file = fs::File::create(shard.join(format!(".flow-1-{name}"))).unwrap();
            file.set_modified(time).unwrap();
        }
        for file in fs::read_dir(&shard).unwrap().flatten().filter(|file| file.path().extension().is_some()) {
            let file = fs::File::open(file.path()).unwrap();
            file.set_modified(now + 1000 * day).unwrap();
        }
    }
    all_come(&bob);
    for file in shards().flat_map(|shard| fs::read_dir(shard).unwrap().flatten()) {
        if file.path().extension().is_some() {
            fs::remove_file(file.path()).unwrap();
        }
    }
    alice.ok(&["cache", "push", "p.toml"]);
    for shard in shards() {
        let left = ["old", "young", "future"].map(|name| shard.join(format!(".flow-1-{name}")).exists());
        assert_eq!(left, [false, true, true], "only what was left is removed");
    }
    assert_eq!(bob.json(&[]).digests(), made.digests());
}

/// Runs `flow` with a file system of so many MiB at a directory; `None` where this user may not.
fn with_little_room(person: &Sandbox, at: &Path, mib: usize, script: &str) -> Option<Output> {
    let outside = |words: &str| {
        let mut command = Command::new("unshare");
        person.at_home(command.args(["-rm", "sh", "-ec", words]).arg("sh").arg(env!("CARGO_BIN_EXE_flow")));
        Output::of(command.output().unwrap())
    };
    let mount = format!("mount -t tmpfs -o size={mib}m none {}", at.display());
    if outside(&mount).code != Some(0) {
        eprintln!("not tried: this user may not mount");
        return None;
    }
    Some(outside(&format!("{mount}; {script}")))
}

#[test]
fn a_disk_that_is_full() {
    let (dir, url) = shared();
    let [alice, bob] = ["read-write", "read"].map(|mode| person(&url, mode, ""));
    // There is no room for the team: the work is done, and goes up when there is.
    let Some(full) = with_little_room(&alice, dir.path(), 8, "$1 run p.toml; find . >&2") else { return };
    assert!(full.code == Some(0) && full.stderr.contains("No space left on device"), "{full}");
    assert_eq!(full.stderr.matches("cannot push").count(), 1, "{full}");
    // What found room there is gone with that disk, and so is what was remembered of it.
    fs::remove_dir_all(state(&alice)).unwrap();
    alice.ok(&["cache", "push", "p.toml"]);

    // There is no room here: said with what to do, and nothing is left that takes the room of others.
    fs::create_dir(bob.cache()).unwrap();
    let script =
        "$1 cache pull p.toml || echo $? > code; find $FLOW_CACHE_DIR/objects -type f -size +5M; $1 cache verify >&2";
    let full = with_little_room(&bob, &bob.cache(), 10, script).unwrap();
    assert!(full.code == Some(0) && full.stdout.is_empty(), "{full}");
    assert_eq!(bob.read("code"), "3\n", "{full}");
    assert!(full.stderr.contains("flow cache gc") && full.stderr.contains("FLOW_CACHE_DIR"), "{full}");
    all_come(&bob);
}

#[test]
fn an_interrupt_when_only_uploads_are_left_says_so() {
    let server = Server::moto();
    let proxy = Proxy::to(server.port);
    let alice = bucketeer(proxy.port, "read-write", KEYS[1]);
    proxy.hold_requests(|head| head.starts_with("PUT "), 0);
    let events = alice.outside("events");
    let mut run = alice.flow(&["run", "p.toml", "--json"]).stdout(fs::File::create(&events).unwrap()).spawn().unwrap();
    let said = || fs::read_to_string(&events).unwrap();
    until("all is done but the uploads", || said().contains("on their way to the team's cache"));
    // SAFETY: plain system call on a child that has not been waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(run.id() as i32, libc::SIGINT) }, 0);
    assert_eq!(run.wait().unwrap().code(), Some(0), "{}", said());
    assert!(said().contains("the next run goes on with it"), "{}", said());
    proxy.release();
    alice.ok(&["run", "p.toml"]);
    all_come(&bucketeer(server.port, "read", KEYS[1]));
}
