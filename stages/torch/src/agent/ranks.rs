//! The processes of an agent: started with torchrun's environment, read line by line, ended with all that they started.

use std::{
    env,
    io::{self, BufRead as _, BufReader, Read, Write},
    mem,
    net::TcpListener,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use flow_dist::LISTENS;
use flow_plan::agent::Said;

use super::cpus::Cpus;

/// A longer line is cut in pieces: a rank must not be able to fill our memory.
const LONGEST_LINE: u64 = 64 << 10;

/// So long the last lines of ranks that have ended may be on their way.
const WORDS: Duration = Duration::from_secs(5);

/// What the ranks of a machine are told.
pub struct Start<'a> {
    pub job: &'a Path,
    /// Which machine this is.
    pub node: usize,
    /// How many ranks it has.
    pub local: usize,
    pub world_size: usize,
    pub threads: usize,
    /// Where rank 0 serves the store.
    pub meet: (String, u16),
    /// By which interface that is reached.
    pub interface: Option<String>,
}

/// The processes, none of which outlives this value or the thread that started them.
pub struct Ranks {
    first: usize,
    ranks: Vec<Rank>,
    readers: Vec<JoinHandle<()>>,
}

struct Rank {
    child: Child,
    status: Option<ExitStatus>,
    /// It was still running when all were asked to stop: how it ends then says nothing.
    stopped: bool,
    /// How many had ended before.
    place: usize,
}

impl Ranks {
    /// Starts them, each on its share of the cores. `listener`: rank 0 serves the store there.
    pub fn start(start: &Start<'_>, cpus: &[Cpus], listener: Option<&TcpListener>) -> Result<Self> {
        let program = env::current_exe().context("this program's file is not known")?;
        let first = start.node * start.local;
        let mut ranks = Self { first, ranks: Vec::new(), readers: Vec::new() };
        for (local, cpus) in cpus.iter().enumerate() {
            let listener = listener.filter(|_| local == 0).map(std::os::fd::AsRawFd::as_raw_fd);
            let mut command = start.command(&program, local);
            command.envs(listener.map(|number| (LISTENS, number.to_string())));
            let (parent, set) = (std::process::id(), cpus.set());
            // SAFETY: between fork and exec this calls prctl, getppid, sched_setaffinity, fcntl and _exit alone, which are
            // async-signal-safe; the set is a copy of its own.
            unsafe {
                command.pre_exec(move || {
                    if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                        return Err(io::Error::last_os_error());
                    }
                    // The parent may have died before the line above.
                    if libc::getppid().cast_unsigned() != parent {
                        libc::_exit(1);
                    }
                    if let Some(set) = &set {
                        // Where it computes is no reason not to.
                        libc::sched_setaffinity(0, mem::size_of_val(set), set);
                    }
                    if let Some(listener) = listener {
                        libc::fcntl(listener, libc::F_SETFD, 0);
                    }
                    Ok(())
                });
            }
            let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
            let pipes = (child.stdout.take(), child.stderr.take());
            ranks.ranks.push(Rank { child, status: None, stopped: false, place: 0 });
            let rank = first + local;
            ranks.readers.push(pass_on(rank, pipes.0.context("its output is a pipe")?, io::stdout()));
            ranks.readers.push(pass_on(rank, pipes.1.context("its errors are a pipe")?, io::stderr()));
        }
        Ok(ranks)
    }

    /// Looks who has ended, and tells it if `aloud`; whether all have.
    pub fn poll(&mut self, aloud: bool) -> Result<bool> {
        let mut ended = self.ranks.iter().filter(|rank| rank.status.is_some()).count();
        for (rank, number) in self.ranks.iter_mut().zip(self.first..).filter(|(rank, _)| rank.status.is_none()) {
            rank.status = rank.child.try_wait().context("cannot wait for a rank")?;
            let Some(status) = rank.status else { continue };
            rank.place = ended;
            ended += 1;
            if aloud {
                say(&mut io::stdout(), &Said::Ended { rank: number, status });
            }
        }
        Ok(ended == self.ranks.len())
    }

    /// Whether one has ended otherwise than well.
    pub fn failed(&self) -> bool {
        self.ranks.iter().any(|rank| rank.status.is_some_and(|status| !status.success()))
    }

    /// Whether one was asked to stop, and kept what it has.
    pub fn interrupted(&self) -> bool {
        self.ranks.iter().any(|rank| rank.status.is_some_and(|status| code(status) == crate::INTERRUPTED))
    }

    /// Sends a signal to those that run, and to the processes that they started.
    pub fn signal(&mut self, signal: i32) {
        for rank in self.ranks.iter_mut().filter(|rank| rank.status.is_none()) {
            rank.stopped = true;
            kill_group(&rank.child, signal);
        }
    }

    /// The rank that failed first, and how it ended: one that was killed before one that ends because of it, and neither
    /// if it was stopped here.
    pub fn to_blame(&self) -> Option<(usize, ExitStatus)> {
        let failed = self.ranks.iter().zip(self.first..).filter_map(|(rank, number)| {
            let status = rank.status.filter(|status| !status.success())?;
            let order = (rank.stopped, status.signal().is_none(), code(status) == crate::INTERRUPTED, rank.place);
            Some((order, number, status))
        });
        failed.min_by_key(|(order, ..)| *order).map(|(_, number, status)| (number, status))
    }

    /// When all have ended: ends what they left behind, and passes on their last lines.
    pub fn finish(&mut self) {
        self.ranks.iter().for_each(|rank| kill_group(&rank.child, libc::SIGKILL));
        let until = Instant::now() + WORDS;
        while self.readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            kill_group(&rank.child, libc::SIGKILL);
            let _ = rank.child.wait();
        }
    }
}

impl Start<'_> {
    /// One rank's process: torchrun's environment, and what flow sets where it starts ranks itself.
    fn command(&self, program: &Path, local: usize) -> Command {
        let mut command = Command::new(program);
        command.arg("worker").arg(self.job).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let numbers = [
            ("RANK", self.node * self.local + local),
            ("LOCAL_RANK", local),
            ("WORLD_SIZE", self.world_size),
            ("LOCAL_WORLD_SIZE", self.local),
            ("GROUP_RANK", self.node),
            ("OMP_NUM_THREADS", self.threads),
            ("MKL_NUM_THREADS", self.threads),
            ("RAYON_NUM_THREADS", self.threads),
        ];
        command.envs(numbers.map(|(name, number)| (name, number.to_string())));
        command.env("MASTER_ADDR", &self.meet.0).env("MASTER_PORT", self.meet.1.to_string());
        let mut unless_set = |name: &str, value: &std::ffi::OsStr| {
            if env::var_os(name).is_none() {
                command.env(name, value);
            }
        };
        if env::var_os("GOMP_SPINCOUNT").is_none() {
            unless_set("OMP_WAIT_POLICY", "passive".as_ref());
        }
        if let Some(interface) = &self.interface {
            unless_set("GLOO_SOCKET_IFNAME", interface.as_ref());
            // NCCL takes a name for the beginning of one, without this.
            unless_set("NCCL_SOCKET_IFNAME", format!("={interface}").as_ref());
        }
        // One a machine: a file that a machine has mapped is not to be replaced by another machine.
        let index = if self.node == 0 { "index".to_owned() } else { format!("index.{}", self.node) };
        unless_set("FLOW_INDEX_DIR", self.job.with_file_name(index).as_ref());
        // A group of its own: it is ended with all that it started.
        command.process_group(0);
        command
    }
}

/// How a process ended, as a shell says it.
pub fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}

/// Writes a line, whole or not at all as far as others see.
pub fn say(out: &mut dyn Write, said: &Said) {
    // Whoever does not listen any more will end this process too; there is nobody to tell.
    let _ = out.write_all(format!("{}\n", said.line()).as_bytes()).and_then(|()| out.flush());
}

fn pass_on(rank: usize, pipe: impl Read + Send + 'static, mut out: impl Write + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while let Ok(1..) = (&mut pipe).take(LONGEST_LINE).read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            line.clear();
            Said::pieces(rank, &text).for_each(|piece| say(&mut out, &piece));
        }
    })
}

fn kill_group(child: &Child, signal: i32) {
    // SAFETY: no memory is involved. The group is the child's own: the kernel gives its number to nobody else while
    // one process of it is left, and an empty group is an error that means that there is nothing to do.
    unsafe { libc::kill(-child.id().cast_signed(), signal) };
}
