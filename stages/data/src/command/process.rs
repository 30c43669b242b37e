//! A shell and everything it starts: watched, logged, and ended as a whole.
//!
//! The shell leads a process group of its own. When the run is interrupted the group is asked to end, and made to if
//! it does not; when the shell has ended, what it left running is ended too; and when flow itself is killed, the
//! [`guard`] kills the group.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::Path,
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use flow_core::{Cancelled, Ctx, Level, SECRETS};

use super::{
    guard,
    lines::Lines,
    spawn::{Shell, spawn},
};

/// How long a group that was asked to end may take.
const GRACE: Duration = Duration::from_millis(1200);

/// The longest time between two looks at whether to stop.
const LOOK: Duration = Duration::from_millis(20);

/// Runs a line in a shell until it ends.
///
/// # Errors
/// It could not be started or did not end well: with its last lines. [`Cancelled`] when the run is interrupted.
pub fn run(ctx: &Ctx<'_>, line: &str, directory: &Path, env: &BTreeMap<String, String>) -> Result<()> {
    // Only flow itself opens the team's cache with them.
    let inherited = std::env::vars_os().filter(|(name, _)| !SECRETS.iter().any(|secret| name == secret));
    let gpus = ctx.gpu_variable().map(|(name, value)| (name.into(), value.into()));
    let env = env.iter().map(|(name, value)| (name.into(), value.into()));
    let spawned = spawn(line, directory, inherited.chain(gpus).chain(env));
    let (shell, streams) = spawned.with_context(|| format!("cannot start sh in {}", directory.display()))?;
    let guarded = guard::Guarded::new(shell.id());
    let mut last = Last::default();
    let status = watch(ctx, shell, streams, guarded, &mut last)?;
    if status.success() {
        return Ok(());
    }
    let what = match (status.code(), status.signal()) {
        (Some(127), _) => "exit status 127: a program was not found".to_owned(),
        (Some(126), _) => "exit status 126: a program cannot be executed".to_owned(),
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(libc::SIGKILL)) => "killed by signal 9: by someone, or by the kernel for want of memory".to_owned(),
        (None, signal) => format!("killed by signal {}", signal.unwrap_or_default()),
    };
    if last.0.is_empty() {
        bail!("the command failed: {what}; it printed nothing");
    }
    bail!("the command failed: {what}; its last lines:\n{}", last.0.join("\n"))
}

/// The last lines that came.
#[derive(Default)]
struct Last(Vec<String>);

impl Last {
    const KEPT: usize = 20;

    fn push(&mut self, line: String) {
        if self.0.len() == Self::KEPT {
            self.0.remove(0);
        }
        self.0.push(line);
    }
}

/// Follows the shell to its end, and ends it when the run is interrupted.
fn watch(
    ctx: &Ctx<'_>,
    shell: Shell,
    streams: [OwnedFd; 2],
    guarded: guard::Guarded,
    last: &mut Last,
) -> Result<ExitStatus> {
    let mut streams: Vec<Stream> = streams.into_iter().map(Stream::new).collect();
    let mut running = Some((shell, guarded));
    let mut asked: Option<Instant> = None;
    let mut status = None;
    let mut pause = Duration::from_millis(1);
    loop {
        let came = match &running {
            // Where the shell's end wakes nobody, looks come closer.
            Some((shell, _)) => {
                let pause = if shell.ended().is_some() { LOOK } else { pause };
                Stream::wait(&mut streams, Some(shell), pause)?
            }
            None => Stream::wait(&mut streams, None, Duration::ZERO)?,
        };
        pause = (pause * 2).min(LOOK);
        for stream in &mut streams {
            stream.read(|line| {
                last.push(line.clone());
                ctx.log(Level::Output, line);
            });
        }
        streams.retain(|stream| stream.open);
        if let Some(status) = status
            // Who left the group may hold the pipes for ever; what was written before is read.
            && (streams.is_empty() || !came)
        {
            return if asked.is_some() { Err(Cancelled.into()) } else { Ok(status) };
        }
        if let Some((shell, guarded)) = running.take_if(|(shell, _)| shell.has_ended()) {
            // What it has left. Until it is waited for, its number, which is the group's, is nobody else's.
            shell.signal(libc::SIGKILL);
            drop(guarded);
            status = Some(shell.wait().context("cannot wait for sh")?);
        }
        let Some((shell, _)) = &running else { continue };
        match asked {
            None if ctx.cancel.is_set() => {
                shell.signal(libc::SIGTERM);
                asked = Some(Instant::now());
            }
            Some(since) if since.elapsed() > GRACE => shell.signal(libc::SIGKILL),
            _ => {}
        }
    }
}

/// One of the pipes from the shell.
struct Stream {
    file: std::fs::File,
    lines: Lines,
    readable: bool,
    open: bool,
}

impl Stream {
    fn new(fd: OwnedFd) -> Self {
        Self { file: fd.into(), lines: Lines::default(), readable: false, open: true }
    }

    /// Waits until something can be read, the shell has ended, or for so long; tells whether something can be read.
    fn wait(streams: &mut [Self], shell: Option<&Shell>, pause: Duration) -> Result<bool> {
        let ask = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let files = streams.iter().map(|stream| stream.file.as_raw_fd());
        let ended = shell.and_then(Shell::ended).map(|ended| ended.as_raw_fd());
        let mut fds: Vec<libc::pollfd> = files.chain(ended).map(ask).collect();
        // SAFETY: the array is as long as it is said to be, and its files are open.
        let n = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, pause.as_millis() as i32) };
        if n < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error).context("cannot wait for the output of sh");
            }
        }
        for (stream, fd) in streams.iter_mut().zip(&fds) {
            stream.readable = n > 0 && fd.revents != 0;
        }
        Ok(streams.iter().any(|stream| stream.readable))
    }

    /// Reads what is there, once, and hands on the lines that are whole.
    fn read(&mut self, mut line: impl FnMut(String)) {
        if !self.readable {
            return;
        }
        let mut buffer = [0; 16 << 10];
        match self.file.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // An error means that nothing more can be read; how the command ended, its status says.
            Ok(0) | Err(_) => {
                self.open = false;
                self.lines.end(&mut line);
            }
            Ok(n) => self.lines.take(&buffer[..n], &mut line),
        }
    }
}
