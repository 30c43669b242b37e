//! How fast the cache hashes a big file, beside what `b3sum` does (and the program itself, where it is in PATH: `cargo
//! install b3sum`), and what small commits and a no-op cost.
//!
//! `cargo bench -p flow-cache [-- GIGABYTES [NODES]]`; 1 GB and 10,000 nodes by default. Set TMPDIR to a disk with
//! that much space: the file stays in the page cache, so it is the hashing that is measured and not the disk.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use flow_cache::{Cache, Claim, ClaimOptions};
use flow_core::{KEY_FORMAT, KeyParts};

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let gigabytes = arguments.next().unwrap_or(1);
    let nodes = arguments.next().unwrap_or(10_000);
    let dir = tempfile::tempdir().expect("a temporary directory");
    if gigabytes > 0 {
        hashing(dir.path(), gigabytes << 30);
    }
    small_nodes(dir.path(), nodes);
}

fn hashing(dir: &Path, size: u64) {
    let path = dir.join("big");
    let mut file = File::create(&path).expect("a file");
    let block: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for _ in 0..size >> 20 {
        file.write_all(&block).expect("space");
    }
    drop(file);
    // Best wall time, best CPU time: the second is to be believed when the machine does other things, too.
    let mut best = [[f64::INFINITY; 2]; 2];
    let mut program = [f64::INFINITY; 2];
    for round in 0..7u64 {
        // A time of its own every round: nothing is known of it. Opening and closing the index is part of the price.
        let age = SystemTime::now() - Duration::from_secs(1000 + round);
        File::options().write(true).open(&path).and_then(|file| file.set_modified(age)).expect("a time");
        let ours = || {
            let cache = Cache::open(&dir.join("cache")).expect("a cache");
            cache.digest_path(&path).expect("a digest");
        };
        let b3sum = || {
            blake3::Hasher::new().update_mmap_rayon(&path).expect("a hash").finalize();
        };
        for (best, act) in best.iter_mut().zip([&ours as &dyn Fn(), &b3sum]) {
            let cpu = cpu_time();
            *best = [best[0].min(time(act)), best[1].min(cpu_time() - cpu)];
        }
        let cpu = cpu_time_of_children();
        let began = Instant::now();
        if Command::new("b3sum").arg(&path).stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
            program = [program[0].min(began.elapsed().as_secs_f64()), program[1].min(cpu_time_of_children() - cpu)];
        }
    }
    let size = size as f64 / 1e9;
    for (what, [wall, cpu]) in ["digest_path", "b3sum's way"].into_iter().zip(best) {
        eprintln!("{what:17} {:6.2} GB/s, {:.0} ms CPU a GB", size / wall, 1e3 * cpu / size);
    }
    eprintln!(
        "speed of b3sum's  {:.0}%, by CPU {:.0}%",
        100.0 * best[1][0] / best[0][0],
        100.0 * best[1][1] / best[0][1]
    );
    if program[0].is_finite() {
        let [wall, cpu] = program;
        eprintln!("{:17} {:6.2} GB/s, {:.0} ms CPU a GB", "b3sum itself", size / wall, 1e3 * cpu / size);
        eprintln!("speed of b3sum    {:.0}%, by CPU {:.0}%", 100.0 * wall / best[0][0], 100.0 * cpu / best[0][1]);
    }
    fs::remove_file(path).expect("removed");
}

fn small_nodes(dir: &Path, nodes: u64) {
    let root = dir.join("nodes");
    let inputs: Vec<_> = (0..nodes).map(|n| dir.join(format!("input{n}"))).collect();
    for input in &inputs {
        fs::write(input, input.as_os_str().as_encoded_bytes()).expect("a file");
    }
    let run = |what: &str| {
        let (cpu, mut made) = (cpu_time(), 0);
        let seconds = time(|| {
            let cache = Cache::open(&root).expect("a cache");
            cache.load_memo("bench");
            let options = ClaimOptions::default();
            for input in &inputs {
                let tree = cache.digest_path(input).expect("a digest");
                let parts = KeyParts {
                    format: KEY_FORMAT,
                    kind: "bench".into(),
                    version: 1,
                    params: serde_json::Value::Null,
                    inputs: BTreeMap::from([("input".into(), vec![tree.digest()])]),
                };
                if let Claim::Miss(slot) = cache.claim(&parts.key(), &options).expect("a claim") {
                    made += 1;
                    fs::copy(input, slot.out().join("out")).expect("a copy");
                    slot.commit(&parts, 0.0).expect("a commit");
                }
            }
            cache.save_memo().expect("saved");
        });
        eprintln!(
            "{what}  {made} made, {:.3} ms a node, {:.0} ms CPU in all, {} MB resident at most",
            1e3 * seconds / nodes as f64,
            1e3 * (cpu_time() - cpu),
            peak_memory() >> 20
        );
    };
    run("first run       ");
    run("second run      ");
    std::thread::sleep(Duration::from_millis(2200));
    run("after 2 s       ");
    run("no-op           ");
}

fn time(act: impl FnOnce()) -> f64 {
    let began = Instant::now();
    act();
    began.elapsed().as_secs_f64()
}

fn cpu_time() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result, and the clock always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn cpu_time_of_children() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a valid place for the result; zeroed is valid, should the call fail.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
}
