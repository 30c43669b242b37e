//! [`Launch`]: runs a job on all its ranks until all are done, or one fails and the others are ended.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::ExitStatus,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use flow_core::{Cancelled, Ctx, Event, Level};
use flow_plan::Job;

use crate::{
    command::{family::Mark, guard::Guarded, orphans},
    container::Inside,
};

use super::{
    agents::Agents,
    ranks::{Line, Rank, Ranks, Stream},
};

/// The exit status of a worker that was asked to stop and left what it needs to go on.
const INTERRUPTED: i32 = 75;

const POLL: Duration = Duration::from_millis(20);

/// When one rank dies, others fail on it at once. So long the first one's death may take to be seen.
const SETTLE: Duration = Duration::from_millis(300);

/// How long the others have to end after one failed: they have nothing to save that can be trusted.
const END: Duration = Duration::from_secs(5);

/// A job and how to run it.
pub struct Launch<'a> {
    /// The worker program.
    pub program: &'a Path,
    /// What every rank is told.
    pub job: &'a Job,
    /// The number of ranks.
    pub world_size: usize,
    /// Threads of each rank.
    pub threads: usize,
    /// How long the ranks have, when the run is interrupted, to write a checkpoint.
    pub grace: Duration,
    /// The container that they run in.
    pub inside: Option<&'a Inside>,
}

impl Launch<'_> {
    /// Runs it. Events go to the node's sink, lines of the log too.
    ///
    /// # Errors
    /// A rank failed: the error says which, how, and its last lines. [`Cancelled`] when the run was interrupted.
    pub fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        ctx.go_on()?;
        let job = ctx.scratch.join("job.json");
        fs::write(&job, serde_json::to_vec_pretty(self.job)?)
            .with_context(|| format!("cannot write {}", job.display()))?;
        if ctx.nodes > 1 || !ctx.hosts.is_empty() {
            return self.watch(&mut Agents::start(self, &job, ctx)?, ctx);
        }
        // When flow is killed, the kernel ends the ranks; but of what a container's own server has started it knows nothing.
        let _guarded = match self.inside {
            Some(_) => {
                orphans::wait(ctx)?;
                Some(Guarded::expect(&Mark::of(ctx.scratch), ctx.scratch))
            }
            None => None,
        };
        let (world_size, gpus) = (self.world_size, ctx.gpu_variable());
        let (ranks, lines) = Ranks::start(self.program, &job, world_size, self.threads, gpus.as_ref(), self.inside)?;
        let done = self.watch(&mut Here { ranks, lines }, ctx);
        if let Some(inside) = self.inside.filter(|_| done.is_err()) {
            inside.end();
        }
        done
    }

    fn watch(&self, crew: &mut dyn Crew, ctx: &Ctx<'_>) -> Result<()> {
        let mut failed: Option<Instant> = None;
        let mut kill_at: Option<Instant> = None;
        let mut interrupted = false;
        // A rank that says nothing has a log all the same: that it was there.
        let mut silent: Vec<usize> = if self.world_size > 1 { (0..self.world_size).collect() } else { Vec::new() };
        while !crew.ranks().iter().all(Rank::is_over) {
            match crew.hear(POLL) {
                Ok(heard) => {
                    self.take(heard, crew, ctx);
                    // What is there already, but not for ever: a rank that never stops talking must not keep us here.
                    for _ in 0..1000 {
                        let Ok(heard) = crew.hear(Duration::ZERO) else { break };
                        self.take(heard, crew, ctx);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL),
            }
            crew.poll()?;
            silent.retain(|&rank| {
                let begins = ctx.hosts.is_empty() && ctx.nodes == 1 || crew.ranks()[rank].host.is_some();
                if begins {
                    self.log(Level::Info, format!("one of {}", self.world_size), rank, crew, ctx);
                }
                !begins
            });
            let now = Instant::now();
            if failed.is_none() && crew.ranks().iter().any(|rank| rank.is_over() && !rank.is_well()) {
                failed = Some(now);
            }
            if kill_at.is_none() && ctx.cancel.is_set() {
                interrupted = true;
                crew.signal(libc::SIGTERM);
                kill_at = Some(now + self.grace);
            } else if kill_at.is_none() && failed.is_some_and(|at| now > at + SETTLE) {
                crew.signal(libc::SIGTERM);
                // Ranks that stop because someone outside asked them to are writing a checkpoint.
                let asked = crew.ranks().iter().any(|rank| code(rank) == Some(INTERRUPTED));
                kill_at = Some(now + if asked { self.grace } else { END });
            }
            if kill_at.is_some_and(|at| now > at) {
                crew.signal(libc::SIGKILL);
            }
        }
        crew.kill_leftovers();
        // The pipes close now; the last lines are on their way.
        while let Ok(heard) = crew.hear(END) {
            self.take(heard, crew, ctx);
        }
        verdict(crew.ranks(), interrupted)
    }

    fn take(&self, heard: Heard, crew: &mut dyn Crew, ctx: &Ctx<'_>) {
        let Line { rank, stream, text } = match heard {
            Heard::Line(line) => line,
            Heard::Machine(text) => return ctx.log(Level::Info, text),
        };
        let event = (stream == Stream::Stdout).then(|| serde_json::from_str::<Event>(&text).ok()).flatten();
        let node = || ctx.node.to_owned();
        let (level, text) = match event {
            // All ranks count the same: one of them is enough.
            Some(Event::Progress { done, total, unit, note, .. }) => {
                if rank == 0 {
                    ctx.sink.emit(Event::Progress { node: node(), done, total, unit, note });
                }
                return;
            }
            Some(Event::Metrics { step, values, .. }) => {
                if rank == 0 {
                    ctx.sink.emit(Event::Metrics { node: node(), step, values });
                }
                return;
            }
            Some(Event::Log { level, text, .. }) => (level, text),
            Some(_) | None => (Level::Output, text),
        };
        if let Some(of) = crew.ranks().get_mut(rank) {
            of.remember(&text);
            self.log(level, text, rank, crew, ctx);
        }
    }

    /// Writes a line of a rank to the node's log, with whose it is.
    fn log(&self, level: Level, text: String, rank: usize, crew: &mut dyn Crew, ctx: &Ctx<'_>) {
        let text = match &crew.ranks()[rank].host {
            Some(host) => format!("[rank {rank} on {host}] {text}"),
            None if self.world_size == 1 => text,
            None => format!("[rank {rank}] {text}"),
        };
        let rank = (self.world_size > 1).then_some(rank);
        ctx.sink.emit(Event::Log { node: ctx.node.to_owned(), level, text, rank });
    }
}

/// The ranks of a job, wherever they run.
pub trait Crew {
    /// What is known of them.
    fn ranks(&mut self) -> &mut [Rank];
    /// What one of them says next, if it comes soon.
    fn hear(&mut self, patience: Duration) -> Result<Heard, RecvTimeoutError>;
    /// Looks who has ended.
    fn poll(&mut self) -> Result<()>;
    /// Sends a signal to those that run, and to the processes that they started.
    fn signal(&mut self, signal: i32);
    /// Kills what ranks that have ended left behind.
    fn kill_leftovers(&mut self);
}

/// What is heard of a crew.
pub enum Heard {
    /// A line of a rank.
    Line(Line),
    /// Of what starts them on another machine.
    Machine(String),
}

/// All on this machine.
struct Here {
    ranks: Ranks,
    lines: Receiver<Line>,
}

impl Crew for Here {
    fn ranks(&mut self) -> &mut [Rank] {
        &mut self.ranks.0
    }
    fn hear(&mut self, patience: Duration) -> Result<Heard, RecvTimeoutError> {
        self.lines.recv_timeout(patience).map(Heard::Line)
    }
    fn poll(&mut self) -> Result<()> {
        self.ranks.poll()
    }
    fn signal(&mut self, signal: i32) {
        self.ranks.signal(signal);
    }
    fn kill_leftovers(&mut self) {
        self.ranks.kill_leftovers();
    }
}

/// How it went when all have ended: the error names the rank that is to blame, and its last lines.
pub fn verdict(ranks: &[Rank], interrupted: bool) -> Result<()> {
    let failed = || ranks.iter().enumerate().filter(|(_, rank)| !rank.is_well());
    if failed().next().is_none() {
        return Ok(());
    }
    if interrupted {
        return Err(Cancelled.into());
    }
    // The one to name: killed before one that exits because of it, and neither if we stopped it ourselves.
    let order = |rank: &Rank| {
        let ended_itself = rank.status.is_some_and(|status| status.signal().is_none());
        (rank.stopped, ended_itself, code(rank) == Some(INTERRUPTED), rank.place)
    };
    let Some((number, rank)) = failed().min_by_key(|(_, rank)| order(rank)) else { return Ok(()) };
    let lines = rank.last.iter().map(|line| format!("\n  {line}")).collect::<String>();
    let lines = if lines.is_empty() { "it wrote nothing".to_owned() } else { format!("its last lines:{lines}") };
    let who = if ranks.len() == 1 { "the worker".to_owned() } else { format!("rank {number} of {}", ranks.len()) };
    let who = rank.host.iter().fold(who, |who, host| format!("{who} on {host}"));
    if let Some(lost) = &rank.lost {
        let words = if rank.last.is_empty() { String::new() } else { format!("; rank {number}: {lines}") };
        return Err(anyhow!("{lost}{words}"));
    }
    Err(anyhow!(lines).context(format!("{who} {}", rank.status.map_or_else(String::new, ending))))
}

fn code(rank: &Rank) -> Option<i32> {
    rank.status.and_then(|status| status.code())
}

/// How a process ended, in words.
pub fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(INTERRUPTED), _) => {
            "was asked to stop from outside and kept what it has: run again, and it goes on from there".into()
        }
        (Some(code), _) => format!("failed with exit status {code}"),
        (None, Some(libc::SIGKILL)) => {
            "was killed by signal 9 (SIGKILL): by someone, or by the kernel because memory ran out".into()
        }
        (None, Some(signal)) => format!("was killed by signal {signal}{}", signal_name(signal)),
        (None, None) => status.to_string(),
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGSEGV => " (SIGSEGV)",
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGBUS => " (SIGBUS)",
        libc::SIGILL => " (SIGILL)",
        libc::SIGFPE => " (SIGFPE)",
        libc::SIGTERM => " (SIGTERM)",
        libc::SIGINT => " (SIGINT)",
        _ => "",
    }
}
