//! Starting a shell without copying this process.
//!
//! `std` forks where something is to be done between fork and exec, and a fork copies the tables of all memory that flow
//! has: with ten thousand stages in it that takes longer than the shell itself. So the child borrows this process's memory
//! until it is the shell (`CLONE_VM | CLONE_VFORK`, as `posix_spawn` does it, which knows no parent-death signal).

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, OsStr, OsString, c_char, c_int, c_void},
    fs::File,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, process::ExitStatusExt},
    },
    path::Path,
    process::ExitStatus,
    ptr,
};

/// A shell that runs, the leader of its own process group. It is killed when the thread that started it ends.
#[derive(Debug)]
pub struct Shell {
    id: libc::pid_t,
    /// Can be read as soon as it has ended; nothing on a kernel before 5.2.
    ended: Option<OwnedFd>,
}

/// Starts `sh -c LINE` in a directory, with `env` for its environment (of two with one name, the later). Returns it, and
/// the ends of its pipes: standard output and standard error.
///
/// # Errors
/// It cannot be started, or something of this cannot be told to it.
pub fn spawn(
    line: &str,
    directory: &Path,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> io::Result<(Shell, [OwnedFd; 2])> {
    let line = CString::new(line)?;
    let directory = CString::new(directory.as_os_str().as_bytes())?;
    let env: BTreeMap<OsString, OsString> = env.into_iter().collect();
    let pair = |(name, value): (&OsString, &OsString)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat());
    let env: Vec<CString> = env.iter().map(pair).collect::<Result<_, _>>()?;
    let pointers = |texts: &[&CStr]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
    };
    let arguments = pointers(&[c"sh", c"-c", &line]);
    let env = pointers(&env.iter().map(CString::as_c_str).collect::<Vec<_>>());

    // All of them are above 2, which `std` has opened before main, and closed by exec.
    let stdin = File::open(OsStr::new("/dev/null"))?;
    let (out, stdout) = io::pipe()?;
    let (err, stderr) = io::pipe()?;
    let mut plan = Plan {
        arguments: arguments.as_ptr(),
        env: env.as_ptr(),
        directory: directory.as_ptr(),
        streams: [stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()],
        parent: std::process::id(),
        error: 0,
    };
    let (id, ended) = begin(&mut plan)?;
    let shell = Shell { id, ended };
    if plan.error != 0 {
        shell.wait()?;
        return Err(io::Error::from_raw_os_error(plan.error));
    }
    Ok((shell, [out.into(), err.into()]))
}

/// All that the child needs, made before it begins: it may not even allocate.
struct Plan {
    arguments: *const *const c_char,
    env: *const *const c_char,
    directory: *const c_char,
    streams: [c_int; 3],
    parent: u32,
    /// Why it could not become a shell.
    error: c_int,
}

/// What the child needs of a stack, in words of 16 bytes: `execvpe` puts a path together on it.
const STACK: usize = 4096;

/// Starts the child, and returns when it is the shell or has given up.
fn begin(plan: &mut Plan) -> io::Result<(libc::pid_t, Option<OwnedFd>)> {
    let mut stack: Vec<u128> = Vec::with_capacity(STACK);
    let mut ended: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: the stack is aligned, big enough and, as the plan, alive until the child has ended or is another program: so
    // long this thread waits (CLONE_VFORK). Meanwhile no signal is handled in the child, see `child`, nor here.
    let id = unsafe {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        let top = stack.as_mut_ptr().add(STACK);
        let id = libc::clone(child, top.cast(), flags, ptr::from_mut(plan).cast(), &raw mut ended);
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
        if id < 0 {
            return Err(error);
        }
        id
    };
    // SAFETY: the kernel made it for us.
    let ended = (ended >= 0).then(|| unsafe { OwnedFd::from_raw_fd(ended) });
    Ok((id, ended))
}

/// Becomes the shell.
extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: it is the plan that `begin` holds, whose thread waits; the calls are plain system calls.
    unsafe {
        let plan = &mut *plan.cast::<Plan>();
        become_shell(plan);
        plan.error = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
        libc::_exit(127)
    }
}

/// Returns if that failed, with the reason in `errno`.
///
/// # Safety
/// Only in the child: the process is changed. The pointers of the plan are those that `spawn` has put there.
unsafe fn become_shell(plan: &Plan) {
    // SAFETY: plain system calls. What of this is shared with the parent is its memory alone, and nothing is written to
    // that but this stack and `errno`.
    unsafe {
        // What flow handles, the child must not handle in flow's memory. What is ignored stays so, but for the signal that
        // `std` ignores.
        for signal in 1..32 {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed();
            if libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) != 0 {
                continue;
            }
            let mut action = action.assume_init();
            let handled = ![libc::SIG_DFL, libc::SIG_IGN].contains(&action.sa_sigaction);
            if handled || signal == libc::SIGPIPE {
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const action, ptr::null_mut());
            }
        }
        if libc::setpgid(0, 0) != 0 || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return;
        }
        // Whoever died before that is not reported any more.
        if libc::getppid() as u32 != plan.parent {
            libc::_exit(127);
        }
        for (stream, file) in (0..).zip(plan.streams) {
            if libc::dup2(file, stream) < 0 {
                return;
            }
        }
        if libc::chdir(plan.directory) != 0 {
            return;
        }
        let mut none = MaybeUninit::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        libc::execvpe(c"sh".as_ptr(), plan.arguments, plan.env);
    }
}

impl Shell {
    /// Its number, which is also its group's.
    pub fn id(&self) -> u32 {
        self.id as u32
    }

    /// Can be read as soon as it has ended, if the kernel has that.
    pub fn ended(&self) -> Option<BorrowedFd<'_>> {
        self.ended.as_ref().map(AsFd::as_fd)
    }

    /// Whether it has ended; it is not waited for.
    ///
    /// # Errors
    /// It cannot be said: somebody else has waited for it, or this process ignores the ends of its children.
    pub fn has_ended(&self) -> io::Result<bool> {
        // SAFETY: `info` is a plain structure that the system call fills.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            if libc::waitid(libc::P_PID, self.id(), &raw mut info, flags) == 0 {
                return Ok(info.si_pid() != 0);
            }
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        }
    }

    /// Sends a signal to its whole group: until it is waited for, the number is nobody else's.
    pub fn signal(&self, signal: c_int) {
        // SAFETY: a system call.
        unsafe { libc::kill(-self.id, signal) };
    }

    /// Waits until it has ended, and lets its number go.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn wait(self) -> io::Result<ExitStatus> {
        let mut status = 0;
        loop {
            // SAFETY: a system call on a child of ours that was not waited for.
            if unsafe { libc::waitpid(self.id, &raw mut status, 0) } == self.id {
                return Ok(ExitStatus::from_raw(status));
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}
