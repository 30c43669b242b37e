//! How fast `flow run` is when it has nothing to do, and when it has everything to do: N stages `head -c 64` of one
//! small file, of which min(100, N/5) are a chain. `ninja` on the same graph stands beside it where it is installed.
//!
//! `cargo bench --bench noop -- [N …]`; 1,000 and 10,000 if none is given.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

/// What a process took.
#[derive(Clone, Copy)]
struct Took {
    wall: Duration,
    cpu: Duration,
    /// The most memory it had, in bytes.
    memory: u64,
}

fn main() -> ExitCode {
    let mut sizes: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![1_000, 10_000];
    }
    let ninja =
        Command::new("ninja").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    for n in sizes {
        let dir = tempfile::tempdir().expect("a temporary directory");
        write(dir.path(), n);
        let flow = |args: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
            command.args(args).current_dir(dir.path()).env("FLOW_CACHE_DIR", dir.path().join("cache"));
            measure(command)
        };
        eprintln!("{n} stages");
        let help = best(5, || flow(&["--help"]));
        report("flow --help", help, None);
        let spawn = floor(dir.path(), n.min(500));
        let first = flow(&["run", "p.toml"]);
        report("flow run, first", first, None);
        let per_stage = first.wall.as_secs_f64() * 1e3 / n as f64;
        eprintln!("  {per_stage:.2} ms a stage; {spawn:.2} ms is what `sh -c head` alone takes, one after another");
        let noop = best(7, || flow(&["run", "p.toml"]));
        report("flow run, nothing to do", noop, None);
        report("flow plan", best(3, || flow(&["plan", "p.toml"])), None);
        if ninja {
            let ninja = || {
                let mut command = Command::new("ninja");
                command.current_dir(dir.path());
                measure(command)
            };
            // Its own outputs, so that its first run has everything to do.
            report("ninja, first", ninja(), Some(first));
            report("ninja, nothing to do", best(7, ninja), Some(noop));
        }
    }
    ExitCode::SUCCESS
}

/// The inputs, `p.toml` and `build.ninja`.
fn write(dir: &Path, n: usize) {
    let chain = (n / 5).min(100);
    let mut toml = String::from("[pipeline]\nname = \"many\"\n");
    let mut ninja = String::from("rule head\n  command = head -c 64 $in > $out\n");
    for name in ["in", "out", "nout"] {
        fs::create_dir(dir.join(name)).expect("a directory");
    }
    for i in 0..n {
        let from = if i < chain && i > 0 {
            (format!("out/{}", i - 1), format!("nout/{}", i - 1))
        } else {
            (format!("in/{i}"), format!("in/{i}"))
        };
        fs::write(dir.join(format!("in/{i}")), format!("{i:08}").repeat(16)).expect("a file");
        let _ = write!(
            toml,
            "[stage.s{i}]\nkind = \"command\"\nrun = \"head -c 64 {0} > out/{i}\"\nfiles = [\"{0}\"]\nouts = [\"out/{i}\"]\n",
            from.0
        );
        let _ = writeln!(ninja, "build nout/{i}: head {}", from.1);
    }
    fs::write(dir.join("p.toml"), toml).expect("a file");
    fs::write(dir.join("build.ninja"), ninja).expect("a file");
}

/// Milliseconds that a shell with the stage's command takes.
fn floor(dir: &Path, n: usize) -> f64 {
    let start = Instant::now();
    for i in 0..n {
        let command = format!("head -c 64 in/{i} > nout/floor");
        let status = Command::new("sh").args(["-c", &command]).current_dir(dir).status();
        assert!(status.is_ok_and(|status| status.success()));
    }
    start.elapsed().as_secs_f64() * 1e3 / n as f64
}

fn best(times: usize, mut run: impl FnMut() -> Took) -> Took {
    (0..times).map(|_| run()).min_by_key(|took| took.wall).expect("at least once")
}

#[allow(clippy::zombie_processes, reason = "wait4 reaps it, and tells what it used")]
fn measure(mut command: Command) -> Took {
    let start = Instant::now();
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: `child` is ours and nobody else waits for it; both pointers are to locals of the right types.
    let waited = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, usage.as_mut_ptr()) };
    let wall = start.elapsed();
    assert!(waited > 0 && status == 0, "{command:?} ended with {status}");
    // SAFETY: wait4 succeeded, so it filled it; zeroed is valid as well.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    Took { wall, cpu: time(usage.ru_utime) + time(usage.ru_stime), memory: usage.ru_maxrss as u64 * 1024 }
}

fn report(what: &str, took: Took, flow: Option<Took>) {
    let ratio = flow.map_or_else(String::new, |flow| {
        format!("  flow takes {:.2} times as long", flow.wall.as_secs_f64() / took.wall.as_secs_f64())
    });
    eprintln!(
        "  {what:<24} {:>9.1} ms wall {:>9.1} ms cpu {:>7.1} MB{ratio}",
        took.wall.as_secs_f64() * 1e3,
        took.cpu.as_secs_f64() * 1e3,
        took.memory as f64 / 1e6
    );
}
