//! The processes of a job: started with torchrun's environment, read line by line, ended together.

use std::{
    collections::VecDeque,
    io::{self, BufRead as _, BufReader, Read},
    net::TcpListener,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread,
};

use anyhow::{Context as _, Result};
use flow_plan::Job;
use tempfile::NamedTempFile;

use crate::container::Inside;

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

/// What is known of a process.
#[derive(Debug, Default)]
pub struct Rank {
    /// How it ended.
    pub status: Option<ExitStatus>,
    /// How many had ended before it.
    pub place: usize,
    /// Its last log lines.
    pub last: VecDeque<String>,
    /// It was still running when all were asked to stop: how it ends then says nothing.
    pub stopped: bool,
    /// What its machine is called, where there are several.
    pub host: Option<Arc<str>>,
    /// Nothing more is known of it: why.
    pub lost: Option<String>,
}

impl Rank {
    /// Remembers a line of its log.
    pub fn remember(&mut self, line: &str) {
        remember(&mut self.last, line);
    }

    /// Whether nothing more comes of it.
    pub fn is_over(&self) -> bool {
        self.status.is_some() || self.lost.is_some()
    }

    /// Whether it ended well.
    pub fn is_well(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }
}

/// Adds a line to the last ones.
pub fn remember(last: &mut VecDeque<String>, line: &str) {
    if last.len() == LAST_LINES {
        last.pop_front();
    }
    last.push_back(line.to_owned());
}

/// All processes of a job, and the file of a job that is nowhere else. None outlives this value.
pub struct Ranks(pub Vec<Rank>, Vec<Child>, Option<NamedTempFile>);

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
        inside: Option<&Inside>,
    ) -> Result<(Self, Receiver<Line>)> {
        Self::spawn(program, job, world_size, threads, gpus, inside, false)
    }

    /// As [`Ranks::start`], for a job that is a conversation with rank 0: its input is a pipe, [`Ranks::stdin`].
    pub fn converse(program: &Path, job: &Job, world_size: usize, threads: usize) -> Result<(Self, Receiver<Line>)> {
        let mut file = tempfile::Builder::new().prefix("flow-").suffix(".json").tempfile()?;
        serde_json::to_writer(&mut file, job)?;
        let (mut ranks, lines) = Self::spawn(program, file.path(), world_size, threads, None, None, true)?;
        ranks.2 = Some(file);
        Ok((ranks, lines))
    }

    /// The input of rank 0 of a conversation; the first time.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.1.first_mut()?.stdin.take()
    }

    fn spawn(
        program: &Path,
        job: &Path,
        world_size: usize,
        threads: usize,
        gpus: Option<&(&str, String)>,
        inside: Option<&Inside>,
        converses: bool,
    ) -> Result<(Self, Receiver<Line>)> {
        // Someone else may take the port in the moment before rank 0 listens; the ranks then say so and end.
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).context("no free port")?.port();
        let (sender, lines) = sync_channel(1024);
        let mut ranks = Self(Vec::with_capacity(world_size), Vec::with_capacity(world_size), None);
        for rank in 0..world_size {
            let mut command = Command::new(program);
            command.arg("worker").arg(job);
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
            if let Some(inside) = inside {
                command = inside.wrap(&command, &format!("rank{rank}"))?;
            }
            let stdin = if converses && rank == 0 { Stdio::piped() } else { Stdio::null() };
            command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
            // A group of its own: an interrupt from the terminal reaches us alone, and we tell the ranks.
            command.process_group(0);
            tie(&mut command, libc::SIGKILL);
            let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
            let pipes = (child.stdout.take(), child.stderr.take());
            ranks.0.push(Rank::default());
            ranks.1.push(child);
            let pass_on = |stream| {
                let sender = sender.clone();
                move |text| sender.send(Line { rank, stream, text }).is_ok()
            };
            read_lines(pipes.0.context("its output is a pipe")?, pass_on(Stream::Stdout))?;
            read_lines(pipes.1.context("its errors are a pipe")?, pass_on(Stream::Stderr))?;
        }
        Ok((ranks, lines))
    }

    /// Looks who has ended.
    pub fn poll(&mut self) -> Result<()> {
        let mut place = self.0.iter().filter(|rank| rank.status.is_some()).count();
        for (rank, child) in self.0.iter_mut().zip(&mut self.1).filter(|(rank, _)| rank.status.is_none()) {
            rank.status = child.try_wait().context("cannot wait for a worker")?;
            rank.place = place;
            place += usize::from(rank.status.is_some());
        }
        Ok(())
    }

    /// Whether all have ended.
    pub fn ended(&self) -> bool {
        self.0.iter().all(|rank| rank.status.is_some())
    }

    /// Sends a signal to those that run, and to the processes that they started.
    pub fn signal(&mut self, signal: i32) {
        for (rank, child) in self.0.iter_mut().zip(&self.1).filter(|(rank, _)| rank.status.is_none()) {
            rank.stopped = true;
            kill_group(child, signal);
        }
    }

    /// Kills what the ranks started and left behind: it may hold the pipes open.
    pub fn kill_leftovers(&self) {
        self.1.iter().for_each(|child| kill_group(child, libc::SIGKILL));
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.kill_leftovers();
        for (_, child) in self.0.iter().zip(&mut self.1).filter(|(rank, _)| rank.status.is_none()) {
            let _ = child.wait();
        }
    }
}

pub fn kill_group(child: &Child, signal: i32) {
    // SAFETY: no memory is involved. The group is the child's own: the kernel gives its number to nobody else while
    // one process of it is left, and an empty group is an error that means that there is nothing to do.
    unsafe { libc::kill(-child.id().cast_signed(), signal) };
}

/// Lets the kernel send this signal to a process when the thread that starts it ends.
pub fn tie(command: &mut Command, signal: i32) {
    let parent = std::process::id();
    // SAFETY: between fork and exec this calls prctl, getppid and _exit alone, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the line above.
            if libc::getppid().cast_unsigned() != parent {
                libc::_exit(1);
            }
            Ok(())
        });
    }
}

/// Gives every line of a pipe to `take`, until it wants no more.
pub fn read_lines(
    pipe: impl Read + Send + 'static,
    mut take: impl FnMut(String) -> bool + Send + 'static,
) -> Result<()> {
    let read = move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while let Ok(1..) = (&mut pipe).take(LONGEST_LINE).read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            line.clear();
            if !take(text) {
                break;
            }
        }
    };
    thread::Builder::new().name("lines".into()).spawn(read).context("cannot start a thread")?;
    Ok(())
}
