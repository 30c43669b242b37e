//! The processes of a job: started with torchrun's environment, read line by line, ended together.

use std::{
    collections::VecDeque,
    io::{self, BufRead as _, BufReader, Read},
    net::TcpListener,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use anyhow::{Context as _, Result};
use flow_plan::Job;
use tempfile::NamedTempFile;

/// A longer line is cut in pieces: a worker must not be able to fill our memory.
const LONGEST_LINE: u64 = 64 << 10;

/// So many last lines of a rank are shown when it fails.
const LAST_LINES: usize = 12;

/// Which pipe a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// For the engine.
    Stdout,
    /// For people.
    Stderr,
}

/// A line of a rank.
#[derive(Debug)]
pub struct Line {
    /// The rank.
    pub rank: usize,
    /// Which pipe.
    pub stream: Stream,
    /// Without its end.
    pub text: String,
}

/// A process.
pub struct Rank {
    child: Child,
    /// How it ended.
    pub status: Option<ExitStatus>,
    /// Its last log lines.
    pub last: VecDeque<String>,
    /// It was still running when all were asked to stop: how it ends then says nothing.
    pub stopped: bool,
}

impl Rank {
    /// Remembers a line of its log.
    pub fn remember(&mut self, line: &str) {
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
    }
}

/// All processes of a job, and the file of a job that is nowhere else. None outlives this value.
pub struct Ranks(pub Vec<Rank>, Option<NamedTempFile>);

impl Ranks {
    /// Starts `world_size` processes `PROGRAM worker JOB`, which see the `gpus` of their node: LOCAL_RANK counts in them. Their lines come through the receiver, which ends when all
    /// pipes are closed.
    ///
    /// Must be called on a thread that lives as long as they do: the kernel kills them when it ends, so that a flow
    /// that is killed leaves nobody behind.
    pub fn start(
        program: &Path,
        job: &Path,
        world_size: usize,
        threads: usize,
        gpus: Option<&(&str, String)>,
    ) -> Result<(Self, Receiver<Line>)> {
        Self::spawn(program, job, world_size, threads, gpus, false)
    }

    /// As [`Ranks::start`], for a job that is a conversation with rank 0: its input is a pipe, [`Ranks::stdin`].
    pub fn converse(program: &Path, job: &Job, world_size: usize, threads: usize) -> Result<(Self, Receiver<Line>)> {
        let mut file = tempfile::Builder::new().prefix("flow-").suffix(".json").tempfile()?;
        serde_json::to_writer(&mut file, job)?;
        let (mut ranks, lines) = Self::spawn(program, file.path(), world_size, threads, None, true)?;
        ranks.1 = Some(file);
        Ok((ranks, lines))
    }

    /// The input of rank 0 of a conversation; the first time.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.0.first_mut()?.child.stdin.take()
    }

    fn spawn(
        program: &Path,
        job: &Path,
        world_size: usize,
        threads: usize,
        gpus: Option<&(&str, String)>,
        converses: bool,
    ) -> Result<(Self, Receiver<Line>)> {
        // Someone else may take the port in the moment before rank 0 listens; the ranks then say so and end.
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).context("no free port")?.port();
        let (sender, lines) = sync_channel(1024);
        let mut ranks = Self(Vec::with_capacity(world_size), None);
        for rank in 0..world_size {
            let mut command = Command::new(program);
            let stdin = if converses && rank == 0 { Stdio::piped() } else { Stdio::null() };
            command.arg("worker").arg(job).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
            for (name, value) in [("RANK", rank), ("LOCAL_RANK", rank)] {
                command.env(name, value.to_string());
            }
            // Only flow itself opens the team's cache with them.
            for name in flow_core::SECRETS {
                command.env_remove(name);
            }
            command.envs(gpus.map(|(name, value)| (*name, value)));
            for name in ["WORLD_SIZE", "LOCAL_WORLD_SIZE"] {
                command.env(name, world_size.to_string());
            }
            for name in ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"] {
                command.env(name, threads.to_string());
            }
            // A thread that spins while it waits takes the core from the rank that it waits for, wherever there are
            // fewer cores than threads. Who knows better says so.
            if std::env::var_os("OMP_WAIT_POLICY").is_none() && std::env::var_os("GOMP_SPINCOUNT").is_none() {
                command.env("OMP_WAIT_POLICY", "passive");
            }
            // Where the order of the samples is made once, for all ranks; a user's own directory serves other trainings too.
            if std::env::var_os("FLOW_INDEX_DIR").is_none() {
                command.env("FLOW_INDEX_DIR", job.with_file_name("index"));
            }
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
            // A group of its own: an interrupt from the terminal reaches us alone, and we tell the ranks.
            command.process_group(0);
            let parent = std::process::id();
            // SAFETY: between fork and exec this calls prctl, getppid and _exit alone, which are async-signal-safe.
            unsafe {
                command.pre_exec(move || {
                    if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                        return Err(io::Error::last_os_error());
                    }
                    // The parent may have died before the line above.
                    if libc::getppid().cast_unsigned() != parent {
                        libc::_exit(1);
                    }
                    Ok(())
                });
            }
            let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
            let pipes = (child.stdout.take(), child.stderr.take());
            ranks.0.push(Rank { child, status: None, last: VecDeque::new(), stopped: false });
            read_lines(rank, Stream::Stdout, pipes.0.context("its output is a pipe")?, sender.clone())?;
            read_lines(rank, Stream::Stderr, pipes.1.context("its errors are a pipe")?, sender.clone())?;
        }
        Ok((ranks, lines))
    }

    /// Looks who has ended.
    pub fn poll(&mut self) -> Result<()> {
        for rank in self.0.iter_mut().filter(|rank| rank.status.is_none()) {
            rank.status = rank.child.try_wait().context("cannot wait for a worker")?;
        }
        Ok(())
    }

    /// Whether all have ended.
    pub fn ended(&self) -> bool {
        self.0.iter().all(|rank| rank.status.is_some())
    }

    /// Sends a signal to those that run, and to the processes that they started.
    pub fn signal(&mut self, signal: i32) {
        for rank in self.0.iter_mut().filter(|rank| rank.status.is_none()) {
            rank.stopped = true;
            kill_group(&rank.child, signal);
        }
    }

    /// Kills what the ranks started and left behind: it may hold the pipes open.
    pub fn kill_leftovers(&self) {
        self.0.iter().for_each(|rank| kill_group(&rank.child, libc::SIGKILL));
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.kill_leftovers();
        for rank in self.0.iter_mut().filter(|rank| rank.status.is_none()) {
            let _ = rank.child.wait();
        }
    }
}

pub fn kill_group(child: &Child, signal: i32) {
    // SAFETY: no memory is involved. The group is the child's own: the kernel gives its number to nobody else while
    // one process of it is left, and an empty group is an error that means that there is nothing to do.
    unsafe { libc::kill(-child.id().cast_signed(), signal) };
}

fn read_lines(rank: usize, stream: Stream, pipe: impl Read + Send + 'static, sender: SyncSender<Line>) -> Result<()> {
    let read = move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while let Ok(1..) = (&mut pipe).take(LONGEST_LINE).read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            line.clear();
            if sender.send(Line { rank, stream, text }).is_err() {
                break;
            }
        }
    };
    thread::Builder::new().name(format!("rank {rank}")).spawn(read).context("cannot start a thread")?;
    Ok(())
}
