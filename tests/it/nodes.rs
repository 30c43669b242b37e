//! Training on several machines: hosts by name over a real `sshd`, both of which are this machine.
//!
//! Needs `flow-torch`: left out, with a word, where FLOW_TORCH names none. OpenSSH's server is the system's, or `sshd.sh` unpacks one as root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use crate::{
    engines::{engines, worker_image},
    servers::directory,
    support::{Events, Sandbox, until},
};

/// OpenSSH's server, and where libraries are that it may lack here: the system's, or what `sshd.sh` unpacked.
fn sshd() -> &'static (PathBuf, PathBuf) {
    static PLACE: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    PLACE.get_or_init(|| {
        let system = Path::new("/usr/sbin/sshd");
        if system.is_file() {
            return (system.to_owned(), PathBuf::new());
        }
        let place = directory().join("sshd");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/sshd.sh");
        let output = crate::support::Output::of(Command::new("sh").arg(script).arg(&place).output().unwrap());
        assert_eq!(output.code, Some(0), "there is no sshd (it needs root and Debian's packages)\n{output}");
        (place.join("usr/sbin/sshd"), place.join("usr/lib/x86_64-linux-gnu"))
    })
}

/// A server on the loopback with a key of its own, and a client's file that knows two names for it.
struct Server {
    sshd: Child,
    config: PathBuf,
}

impl Server {
    fn start(sandbox: &Sandbox) -> Self {
        let dir = sandbox.outside("ssh");
        fs::create_dir(&dir).unwrap();
        let at = |name: &str| dir.join(name).display().to_string();
        for key in ["host", "user"] {
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &at(key)]).status();
            assert!(made.unwrap().success());
        }
        fs::copy(at("user.pub"), at("authorized")).unwrap();
        // As root it wants this directory; the machine may not have started one yet.
        let _ = fs::create_dir("/run/sshd");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
             UsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nMaxStartups 100\n",
            at("host"),
            at("authorized")
        );
        fs::write(at("sshd_config"), server).unwrap();
        let client = format!(
            "Host alpha beta\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {}\n  IdentitiesOnly yes\n  \
             StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n\
             Host nowhere\n  HostName 127.0.0.1\n  Port 1\n",
            at("user")
        );
        fs::write(at("config"), client).unwrap();
        let (program, libraries) = sshd();
        let mut sshd = Command::new(program);
        sshd.env("LD_LIBRARY_PATH", libraries);
        sshd.args(["-D", "-e", "-f", &at("sshd_config")]).stdin(Stdio::null()).stderr(Stdio::null());
        let server = Self { sshd: sshd.spawn().unwrap(), config: dir.join("config") };
        until("sshd listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

fn is_possible() -> bool {
    let has = std::env::var_os("FLOW_TORCH").is_some();
    if !has {
        eprintln!("left out: FLOW_TORCH names no trainer (`cargo xtask test` builds it)");
    }
    has
}

/// The training of the shipped pipeline, small.
const TRAIN: &str = "run pipelines/ja_wiki.toml train --profile mini --json --set params.shards={0..1} \
    --set stage.train.seq_length=64 --set stage.train.micro_batch_size=2 --set stage.train.global_batch_size=8 \
    --set stage.train.max_steps=12 --set stage.train.sched.warmup_steps=2 --set stage.train.val_interval=4 \
    --set stage.train.checkpoint.interval=3";

/// `flow` with these hosts, reached by the server's client file.
fn flow(sandbox: &Sandbox, server: &Server, hosts: &str) -> Command {
    let mut command = sandbox.flow(&TRAIN.split_whitespace().collect::<Vec<_>>());
    command.args(["--set", &format!("stage.train.resources={{hosts={hosts},cpus=1}}")]);
    command.env("FLOW_SSH", format!("ssh -F {}", server.config.display())).env("FLOW_PEER_TIMEOUT", "5");
    command
}

/// The digest of the training without hosts.
fn expected() -> &'static str {
    static DIGEST: OnceLock<String> = OnceLock::new();
    DIGEST.get_or_init(|| {
        let sandbox = Sandbox::shipped();
        let mut command = sandbox.flow(&TRAIN.split_whitespace().collect::<Vec<_>>());
        command.args(["--set", "stage.train.resources={cpus=2}"]);
        let output = crate::support::Output::of(command.output().unwrap());
        assert_eq!(output.code, Some(0), "{output}");
        Events::of(&output.stdout).digests()["train"].to_owned()
    })
}

/// Processes whose command line or environment has this text, which is in the paths of one sandbox alone.
fn processes(text: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let has = |pid: &i32| {
        let lines = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&lines).replace('\0', " ");
        line.contains("worker") && line.contains(text)
    };
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(has).collect()
}

fn ranks(sandbox: &Sandbox) -> Vec<i32> {
    let cache = sandbox.cache().display().to_string();
    let variable = |pid: &i32| fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let is_rank =
        |pid: &i32| variable(pid).split(|byte| *byte == 0).any(|variable| variable.starts_with(b"LOCAL_RANK="));
    processes(&cache).into_iter().filter(is_rank).collect()
}

fn has_checkpoint(sandbox: &Sandbox) -> bool {
    let scratch = fs::read_dir(sandbox.cache().join("scratch")).into_iter().flatten().flatten();
    scratch.filter(|entry| entry.path().join("job.json").is_file()).any(|entry| {
        fs::read_dir(entry.path()).into_iter().flatten().flatten().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with("iter_") && !name.ends_with(".tmp")
        })
    })
}

#[test]
fn hosts_are_reached_by_ssh_and_give_the_same_bytes() {
    if !is_possible() {
        return;
    }
    let sandbox = Sandbox::shipped();
    let server = Server::start(&sandbox);
    let output = crate::support::Output::of(flow(&sandbox, &server, "['alpha','beta']").output().unwrap());
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(Events::of(&output.stdout).digests()["train"], expected());
    assert!(output.stdout.contains("1 of 2 ranks, cores"), "{output}");
    assert!(processes(&sandbox.cache().display().to_string()).is_empty(), "nothing is left");
    // One log a rank, and one of all.
    let log = |more: &[&str]| sandbox.ok(&[&["log", "train"], more].concat());
    let of_rank = |text: &str, rank: &str| text.lines().filter(|line| line.starts_with(rank)).count();
    let all = log(&[]);
    for (rank, host, label) in [("0", "alpha", "[rank 0 on alpha] "), ("1", "beta", "[rank 1 on beta] ")] {
        let own = log(&["--rank", rank]);
        assert!(own.lines().count() > 0 && of_rank(&own, label) == own.lines().count(), "{host}: {own}");
        assert_eq!(of_rank(&own, label), of_rank(&all, label), "{own}{all}");
    }
    let none = sandbox.run(&["log", "train", "--rank", "2"]);
    assert!(none.code == Some(2) && none.stderr.contains("has no log of a rank 2"), "{none}");
}

#[test]
fn each_machine_has_its_container_and_they_give_the_same_bytes() {
    if !is_possible() {
        return;
    }
    let sandbox = Sandbox::shipped();
    let server = Server::start(&sandbox);
    let bin = engines().join("bin");
    let image = worker_image(&sandbox, Path::new(&std::env::var_os("FLOW_TORCH").unwrap()));
    let file = sandbox.outside("worker.sif");
    let done = |command: &mut Command| assert!(command.status().unwrap().success());
    done(Command::new(bin.join("apptainer")).args(["-q", "build"]).args([&file, &image]));
    let tar = sandbox.outside("image.tar");
    done(Command::new("tar").arg("-C").arg(&image).arg("-cf").arg(&tar).arg("."));
    let name = format!("localhost/worker:{}", std::process::id());
    done(Command::new(bin.join("podman")).arg("import").arg(&tar).arg(&name).stdout(Stdio::null()));
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    for (engine, image) in [("apptainer", file.display().to_string()), ("podman", format!("docker://{name}"))] {
        let begin = || {
            let mut command = flow(&sandbox, &server, "['alpha','beta']");
            command.args(["--set", &format!("stage.train.container=\"{image}\"")]);
            command.env("FLOW_CONTAINER", engine).env("DOCKER_HOST", "unix:///nowhere").env("PATH", &path);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        };
        // flow is killed: what runs in the containers sees its orders end.
        let mut child = begin();
        until("the ranks are there", || ranks(&sandbox).len() == 2);
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
        for rank in ranks(&sandbox) {
            assert_ne!(namespace(&rank.to_string()), namespace("self"), "{engine}: it is inside");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        until("all died with flow", || processes(&sandbox.cache().display().to_string()).is_empty());
        let output = crate::support::Output::of(begin().wait_with_output().unwrap());
        assert_eq!(output.code, Some(0), "{engine}: {output}");
        assert_eq!(Events::of(&output.stdout).digests()["train"], expected(), "{engine}");
        assert!(output.stdout.contains("1 of 2 ranks, cores"), "{engine}: {output}");
        until("nothing is left", || processes(&sandbox.cache().display().to_string()).is_empty());
    }
    done(Command::new(bin.join("podman")).args(["image", "rm", &name]).stdout(Stdio::null()));
}

#[test]
fn whoever_dies_nothing_is_left_and_the_next_run_goes_on() {
    if !is_possible() {
        return;
    }
    let sandbox = Sandbox::shipped();
    let server = Server::start(&sandbox);
    let begin = || {
        let child = flow(&sandbox, &server, "['alpha','beta']").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        until("a checkpoint is there", || has_checkpoint(&sandbox));
        child.unwrap()
    };
    // flow itself: its agents see their input end.
    let mut child = begin();
    assert_eq!(ranks(&sandbox).len(), 2);
    child.kill().unwrap();
    child.wait().unwrap();
    until("all died with flow", || processes(&sandbox.cache().display().to_string()).is_empty());
    // A rank: it is named, with its machine.
    let child = begin();
    until("the ranks are there", || ranks(&sandbox).len() == 2);
    let victim = ranks(&sandbox).into_iter().max().unwrap();
    let environment = fs::read(format!("/proc/{victim}/environ")).unwrap();
    let rank = if environment.split(|byte| *byte == 0).any(|variable| variable == b"RANK=0") { 0 } else { 1 };
    // SAFETY: plain system call on a process of this test's.
    assert_eq!(unsafe { libc::kill(victim, libc::SIGKILL) }, 0);
    let output = crate::support::Output::of(child.wait_with_output().unwrap());
    assert_eq!(output.code, Some(1), "{output}");
    let named = format!("rank {rank} of 2 on {} was killed by signal 9", ["alpha", "beta"][rank]);
    assert!(output.stdout.contains(&named), "{named}\n{output}");
    until("all ended with it", || processes(&sandbox.cache().display().to_string()).is_empty());
    // And so it goes on, to the bytes of a run that nobody disturbed.
    let output = crate::support::Output::of(flow(&sandbox, &server, "['beta','alpha']").output().unwrap());
    assert_eq!(output.code, Some(0), "{output}");
    let events = Events::of(&output.stdout);
    assert_eq!((events.how()["train"], events.digests()["train"]), ("resumed", expected()));
}

#[test]
fn a_host_that_is_not_there_is_named_and_the_others_end() {
    if !is_possible() {
        return;
    }
    let sandbox = Sandbox::shipped();
    let server = Server::start(&sandbox);
    let output = crate::support::Output::of(flow(&sandbox, &server, "['alpha','nowhere']").output().unwrap());
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stdout.contains("no ranks began on nowhere: ssh failed with exit status 255"), "{output}");
    assert!(output.stdout.contains("Connection refused"), "{output}");
    assert!(processes(&sandbox.cache().display().to_string()).is_empty(), "nothing is left");
}
