//! [`Launch`]: runs a job on all its ranks until all are done, or one fails and the others are ended.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::ExitStatus,
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use flow_core::{Cancelled, Ctx, Event, Level};
use flow_plan::Job;

use super::ranks::{Line, Rank, Ranks, Stream};

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
}

impl Launch<'_> {
    /// Runs it. Events go to the node's sink, lines of the log too.
    ///
    /// # Errors
    /// A rank failed: the error says which, how, and its last lines. [`Cancelled`] when the run was interrupted.
    pub fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        ctx.go_on()?;
        ensure!(ctx.nodes == 1, "{} machines, and ranks are started on this one alone", ctx.nodes);
        let job = ctx.scratch.join("job.json");
        fs::write(&job, serde_json::to_vec_pretty(self.job)?)
            .with_context(|| format!("cannot write {}", job.display()))?;
        let (mut ranks, lines) =
            Ranks::start(self.program, &job, self.world_size, self.threads, ctx.gpu_variable().as_ref())?;
        let mut failed: Option<Instant> = None;
        let mut kill_at: Option<Instant> = None;
        let mut interrupted = false;
        while !ranks.ended() {
            match lines.recv_timeout(POLL) {
                Ok(line) => {
                    self.take(line, &mut ranks.0, ctx);
                    // What is there already, but not for ever: a rank that never stops talking must not keep us here.
                    lines.try_iter().take(1000).for_each(|line| self.take(line, &mut ranks.0, ctx));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL),
            }
            ranks.poll()?;
            let now = Instant::now();
            if failed.is_none() && ranks.0.iter().any(|rank| rank.status.is_some_and(|status| !status.success())) {
                failed = Some(now);
            }
            if kill_at.is_none() && ctx.cancel.is_set() {
                interrupted = true;
                ranks.signal(libc::SIGTERM);
                kill_at = Some(now + self.grace);
            } else if kill_at.is_none() && failed.is_some_and(|at| now > at + SETTLE) {
                ranks.signal(libc::SIGTERM);
                // Ranks that stop because someone outside asked them to are writing a checkpoint.
                let asked = ranks.0.iter().any(|rank| code(rank) == Some(INTERRUPTED));
                kill_at = Some(now + if asked { self.grace } else { END });
            }
            if kill_at.is_some_and(|at| now > at) {
                ranks.signal(libc::SIGKILL);
            }
        }
        ranks.kill_leftovers();
        // The pipes close now; the last lines are on their way.
        while let Ok(line) = lines.recv_timeout(END) {
            self.take(line, &mut ranks.0, ctx);
        }
        verdict(&ranks.0, interrupted)
    }

    fn take(&self, line: Line, ranks: &mut [Rank], ctx: &Ctx<'_>) {
        let Line { rank, stream, text } = line;
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
        ranks[rank].remember(&text);
        ctx.log(level, if self.world_size == 1 { text } else { format!("[rank {rank}] {text}") });
    }
}

/// How it went when all have ended: the error names the rank that is to blame, and its last lines.
pub fn verdict(ranks: &[Rank], interrupted: bool) -> Result<()> {
    let failed = || ranks.iter().enumerate().filter(|(_, rank)| !rank.status.is_some_and(|s| s.success()));
    if failed().next().is_none() {
        return Ok(());
    }
    if interrupted {
        return Err(Cancelled.into());
    }
    // The one to name: killed before one that exits because of it, and neither if we stopped it ourselves.
    let order = |rank: &Rank| {
        (rank.stopped, rank.status.is_some_and(|s| s.signal().is_none()), code(rank) == Some(INTERRUPTED))
    };
    let Some((number, rank)) = failed().min_by_key(|(_, rank)| order(rank)) else { return Ok(()) };
    let lines = rank.last.iter().map(|line| format!("\n  {line}")).collect::<String>();
    let lines = if lines.is_empty() { "it wrote nothing".to_owned() } else { format!("its last lines:{lines}") };
    let who = if ranks.len() == 1 { "the worker".to_owned() } else { format!("rank {number} of {}", ranks.len()) };
    Err(anyhow!(lines).context(format!("{who} {}", rank.status.map_or_else(String::new, ending))))
}

fn code(rank: &Rank) -> Option<i32> {
    rank.status.and_then(|status| status.code())
}

/// How a process ended, in words.
fn ending(status: ExitStatus) -> String {
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
