//! A terminal: a real pty with `flow` in it, and a screen that shows what a person would see.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use crate::support::until;

/// A program in a terminal. Killed when dropped.
pub struct Terminal {
    child: Child,
    master: File,
    seen: Arc<Mutex<Seen>>,
    reader: Option<JoinHandle<()>>,
}

/// What came out.
struct Seen {
    screen: vt100::Parser,
    bytes: Vec<u8>,
    /// How many times something was written.
    writes: usize,
}

impl Terminal {
    pub fn start(mut command: Command, (columns, rows): (u16, u16)) -> Self {
        let (mut master, mut slave) = (-1, -1);
        let mut size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the two numbers and the size are ours; the call opens two files, which become ours.
        let (master, slave) = unsafe {
            let null = std::ptr::null_mut();
            assert_eq!(libc::openpty(&raw mut master, &raw mut slave, null, std::ptr::null(), &raw mut size), 0);
            (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
        };
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        command.env("TERM", "xterm").env_remove("NO_COLOR");
        // SAFETY: plain system calls between fork and exec: the terminal becomes the child's own.
        unsafe {
            command.pre_exec(|| {
                let owned = libc::setsid() >= 0 && libc::ioctl(0, libc::TIOCSCTTY, 0) == 0;
                if owned { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            });
        }
        let child = command.spawn().unwrap();
        // The child alone has the other end from here on, so that reading ends when it does.
        drop(command);
        let master = File::from(master);
        let screen = vt100::Parser::new(rows, columns, 0);
        let seen = Arc::new(Mutex::new(Seen { screen, bytes: Vec::new(), writes: 0 }));
        let reader = std::thread::spawn({
            let (mut master, seen) = (master.try_clone().unwrap(), Arc::clone(&seen));
            move || {
                let mut buffer = [0; 1 << 16];
                // On Linux the end of a pty is an error.
                while let Ok(read @ 1..) = master.read(&mut buffer) {
                    let mut seen = seen.lock().unwrap();
                    seen.screen.process(&buffer[..read]);
                    seen.bytes.extend_from_slice(&buffer[..read]);
                    seen.writes += 1;
                }
            }
        });
        Self { child, master, seen, reader: Some(reader) }
    }

    /// The lines on the screen, without what is empty at the end.
    pub fn lines(&self) -> Vec<String> {
        let text = self.seen.lock().unwrap().screen.screen().contents();
        text.trim_end().lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// Everything that was written, with its escapes.
    pub fn written(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap().bytes).into_owned()
    }

    pub fn writes(&self) -> usize {
        self.seen.lock().unwrap().writes
    }

    pub fn cursor_is_hidden(&self) -> bool {
        self.seen.lock().unwrap().screen.screen().hide_cursor()
    }

    /// Whether what is typed is seen and comes line by line, as a shell leaves a terminal.
    pub fn is_plain(&self) -> bool {
        // SAFETY: the file is open, and the call fills the structure or fails.
        unsafe {
            let mut modes = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(self.master.as_raw_fd(), &raw mut modes), 0);
            modes.c_lflag & (libc::ECHO | libc::ICANON | libc::ISIG) == libc::ECHO | libc::ICANON | libc::ISIG
        }
    }

    /// Waits until the screen shows something.
    pub fn until(&self, what: &str, shows: impl Fn(&[String]) -> bool) {
        until(what, || shows(&self.lines()));
    }

    pub fn resize(&self, (columns, rows): (u16, u16)) {
        self.seen.lock().unwrap().screen.screen_mut().set_size(rows, columns);
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the file is open, and the size is ours.
        assert_eq!(unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }, 0);
    }

    /// Types something: `\x03` is Ctrl-C.
    pub fn type_(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for the end.
    pub fn end(&mut self) -> ExitStatus {
        let status = self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
