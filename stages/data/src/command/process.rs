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
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use flow_core::{Cancelled, Ctx, Level, SECRETS};

use super::{guard, lines::Lines};

/// How long a group that was asked to end may take.
const GRACE: Duration = Duration::from_millis(1200);

/// The longest time between two looks at whether to stop.
const LOOK: Duration = Duration::from_millis(20);

/// Runs a line in a shell until it ends.
///
/// # Errors
/// It could not be started or did not end well: with its last lines. [`Cancelled`] when the run is interrupted.
pub fn run(ctx: &Ctx<'_>, line: &str, directory: &Path, env: &BTreeMap<String, String>) -> Result<()> {
    let mut command = Command::new("sh");
    // Only flow itself opens the team's cache with them.
    SECRETS.iter().for_each(|name| {
        command.env_remove(name);
    });
    command.arg("-c").arg(line).current_dir(directory).envs(ctx.gpu_variable()).envs(env).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let parent = std::process::id();
    // SAFETY: between fork and exec only prctl and getppid are called, which are plain system calls.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // Whoever died before that is not reported any more.
            if libc::getppid() as u32 == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
        });
    }
    let mut child = command.spawn().with_context(|| format!("cannot start sh in {}", directory.display()))?;
    let guarded = guard::Guarded::new(child.id());
    let mut last = Last::default();
    let status = watch(ctx, &mut child, guarded, &mut last)?;
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
fn watch(ctx: &Ctx<'_>, child: &mut Child, guarded: guard::Guarded, last: &mut Last) -> Result<ExitStatus> {
    let fds = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
    let mut streams: Vec<Stream> = fds.into_iter().flatten().map(Stream::new).collect();
    let mut guarded = Some(guarded);
    let mut asked: Option<Instant> = None;
    let mut status = None;
    let mut pause = Duration::from_millis(1);
    loop {
        // Also the pause between two looks, when the streams are closed and the shell goes on.
        let came = Stream::wait(&mut streams, if status.is_some() { Duration::ZERO } else { pause })?;
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
        if status.is_none() && has_ended(child) {
            // Until the shell is waited for, its number, which is the group's, is nobody else's.
            signal(child, libc::SIGKILL);
            drop(guarded.take());
            status = Some(child.wait().context("cannot wait for sh")?);
        }
        match asked {
            None if ctx.cancel.is_set() && status.is_none() => {
                signal(child, libc::SIGTERM);
                asked = Some(Instant::now());
            }
            Some(since) if since.elapsed() > GRACE && status.is_none() => signal(child, libc::SIGKILL),
            _ => {}
        }
    }
}

/// Whether a child has ended; it is not waited for.
fn has_ended(child: &Child) -> bool {
    // SAFETY: `info` is a plain structure that the system call fills.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        libc::waitid(libc::P_PID, child.id(), &raw mut info, flags) == 0 && info.si_pid() != 0
    }
}

/// Sends a signal to the whole group.
fn signal(child: &Child, signal: i32) {
    // SAFETY: a system call. The group's number is the child's, and the child was not waited for.
    unsafe { libc::kill(-(child.id() as i32), signal) };
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

    /// Waits until something can be read, or for so long; tells whether something can.
    fn wait(streams: &mut [Self], pause: Duration) -> Result<bool> {
        let ask = |stream: &Self| libc::pollfd { fd: stream.file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut fds: Vec<libc::pollfd> = streams.iter().map(ask).collect();
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
        Ok(n > 0)
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
