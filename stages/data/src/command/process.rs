//! A shell and everything it starts: watched, logged, and ended as a whole.
//!
//! The shell leads a process group of its own. When the run is interrupted its whole [`family`] is asked to end, and made
//! to if it does not; when the shell has ended, what it left running in the group is ended too (what made a group of its
//! own, as a daemon does, is meant to stay); and when flow itself is killed, the [`guard`] kills the family.

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
    family::{self, Family, Mark},
    guard,
    lines::Lines,
    spawn::{Shell, spawn},
};

/// How long a family that was asked to end may take.
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
    let mark = Mark::of(ctx.scratch);
    let marked = [(family::VARIABLE.into(), mark.value().into())];
    let mut guarded = guard::Guarded::expect(&mark, ctx.scratch);
    let spawned = spawn(line, directory, inherited.chain(gpus).chain(env).chain(marked));
    let (shell, streams) = spawned.with_context(|| format!("cannot start sh in {}", directory.display()))?;
    let family = Family::new(shell.id() as i32, mark);
    guarded.began(shell.id(), &family);
    let mut last = Last::default();
    let status = watch(ctx, Running { family, shell, guarded, asked: None, killed: None }, streams, &mut last)?;
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

/// A shell that has not been waited for, so that its number, which is its group's, is nobody else's.
struct Running {
    shell: Shell,
    family: Family,
    guarded: guard::Guarded,
    /// When it was asked to end.
    asked: Option<Instant>,
    /// When it was made to end.
    killed: Option<Instant>,
}

/// How it goes on with a shell.
enum Next {
    /// It runs.
    Runs,
    /// It has ended, and was asked to; what it has started may still take some time.
    Leaves,
    /// It has ended, and nothing more is waited for.
    Over,
}

impl Running {
    fn signal(&mut self, signal: i32) {
        // Before the shell is gone, because then nobody is its child.
        let family = self.family.look();
        self.shell.signal(signal);
        for id in family {
            // SAFETY: a system call.
            unsafe { libc::kill(id, signal) };
        }
    }

    /// Asks or makes it to end, if the run is interrupted, and tells how it goes on.
    fn look(&mut self, cancelled: bool) -> io::Result<Next> {
        // However it was asked: who has ended by itself has ended well.
        let ended = self.shell.has_ended()?;
        match self.asked {
            None if ended => return Ok(Next::Over),
            None if cancelled => {
                self.asked = Some(Instant::now());
                self.signal(libc::SIGTERM);
            }
            Some(_) if ended && self.family.look().is_empty() => return Ok(Next::Over),
            // Looks may be far apart where many end: nobody is given up who was not killed.
            Some(since) if since.elapsed() > GRACE => {
                self.signal(libc::SIGKILL);
                // Who hangs in the kernel does not end even if killed.
                if ended && self.killed.get_or_insert_with(Instant::now).elapsed() > GRACE {
                    return Ok(Next::Over);
                }
            }
            _ => {}
        }
        Ok(if ended { Next::Leaves } else { Next::Runs })
    }

    /// Waits for the shell, after what it has left in its group is made to end. Whether it was asked to end is told too.
    fn end(self) -> io::Result<(ExitStatus, bool)> {
        self.shell.signal(libc::SIGKILL);
        drop(self.guarded);
        Ok((self.shell.wait()?, self.asked.is_some()))
    }
}

/// Follows the shell to its end, and ends it when the run is interrupted.
fn watch(ctx: &Ctx<'_>, running: Running, streams: [OwnedFd; 2], last: &mut Last) -> Result<ExitStatus> {
    let mut streams: Vec<Stream> = streams.into_iter().map(Stream::new).collect();
    let mut running = Some(running);
    let mut ended = None;
    let mut leaves = false;
    let mut pause = Duration::from_millis(1);
    loop {
        match &running {
            // An end that is known wakes nobody again.
            Some(_) if leaves => Stream::wait(&mut streams, None, LOOK)?,
            // Where the shell's end wakes nobody, looks come closer.
            Some(Running { shell, .. }) => {
                let pause = if shell.ended().is_some() { LOOK } else { pause };
                Stream::wait(&mut streams, Some(shell), pause)?;
            }
            None => Stream::wait(&mut streams, None, Duration::ZERO)?,
        }
        pause = (pause * 2).min(LOOK);
        for stream in &mut streams {
            stream.read(|line| {
                last.push(line.clone());
                ctx.log(Level::Output, line);
            });
        }
        streams.retain(|stream| stream.open);
        if let Some((status, asked)) = ended
            && streams.is_empty()
        {
            return if asked { Err(Cancelled.into()) } else { Ok(status) };
        }
        let Some(one) = &mut running else { continue };
        match one.look(ctx.cancel.is_set()).context("cannot wait for sh")? {
            Next::Runs => {}
            Next::Leaves => leaves = true,
            Next::Over => {
                ended = running.take().map(Running::end).transpose().context("cannot wait for sh")?;
                streams.iter_mut().for_each(Stream::read_no_more);
            }
        }
    }
}

/// One of the pipes from the shell.
struct Stream {
    file: std::fs::File,
    lines: Lines,
    readable: bool,
    open: bool,
    /// The bytes that are still read; without a number, all that come.
    left: Option<usize>,
}

impl Stream {
    fn new(fd: OwnedFd) -> Self {
        Self { file: fd.into(), lines: Lines::default(), readable: false, open: true, left: None }
    }

    /// Whoever left the group may hold the pipe for ever, and fill it for ever: what is in it now was written before the
    /// end, and is read; no more.
    fn read_no_more(&mut self) {
        let mut there: libc::c_int = 0;
        // SAFETY: the system call writes one number there.
        unsafe { libc::ioctl(self.file.as_raw_fd(), libc::FIONREAD, &raw mut there) };
        self.left = Some(usize::try_from(there).unwrap_or(0));
    }

    /// Waits until something can be read, the shell has ended, or for so long.
    fn wait(streams: &mut [Self], shell: Option<&Shell>, pause: Duration) -> Result<()> {
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
        Ok(())
    }

    /// Reads what is there, once, and hands on the lines that are whole.
    fn read(&mut self, mut line: impl FnMut(String)) {
        let mut buffer = [0; 16 << 10];
        let wanted = self.left.map_or(buffer.len(), |left| left.min(buffer.len()));
        if !self.readable && wanted > 0 {
            return;
        }
        match self.file.read(&mut buffer[..wanted]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // An error means that nothing more can be read; how the command ended, its status says.
            Ok(0) | Err(_) => {
                self.open = false;
                self.lines.end(&mut line);
            }
            Ok(n) => {
                self.lines.take(&buffer[..n], &mut line);
                self.left = self.left.map(|left| left - n);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, thread};

    use super::*;

    /// Looks may be far apart where many end: the time to give up may be over before anybody was killed.
    #[test]
    fn nobody_is_given_up_who_was_not_killed() {
        let dir = tempfile::tempdir().unwrap();
        let (mark, file) = (Mark::of(dir.path()), dir.path().join("id"));
        let line = format!(
            "setsid sh -c 'trap \"\" TERM; echo $$ > {0}.new; mv {0}.new {0}; while :; do sleep 1; done' & while ! test -e {0}; do sleep 0.02; done",
            file.display()
        );
        let env = std::env::vars_os().chain([(family::VARIABLE.into(), mark.value().into())]);
        let guarded = guard::Guarded::expect(&mark, &dir.path().join("scratch"));
        let (shell, _streams) = spawn(&line, Path::new("/"), env).unwrap();
        let family = Family::new(shell.id() as i32, mark);
        let long_ago = Instant::now().checked_sub(GRACE * 10).unwrap();
        let mut running = Running { family, shell, guarded, asked: Some(long_ago), killed: None };
        while !running.shell.has_ended().unwrap() {
            thread::sleep(Duration::from_millis(10));
        }
        let id: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        let mut looks = 0;
        while !matches!(running.look(true).unwrap(), Next::Over) {
            looks += 1;
            thread::sleep(Duration::from_millis(10));
        }
        // SAFETY: a system call that only asks.
        let there = unsafe { libc::kill(id, 0) } == 0;
        let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        assert!(looks > 0 && (!there || state.contains(") Z ")), "{looks} looks, and {state}");
        running.end().unwrap();
    }
}
