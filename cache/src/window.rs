//! A stretch of a file as memory, safely.
//!
//! Mapping a file saves the copy, a sixth of the time that hashing takes when the file is in the page cache. What it
//! costs is the danger: when the file is truncated meanwhile, or the disk fails, looking at the memory is no error
//! but a SIGBUS that ends the process. So a handler puts zeros under a window that is lost, and whoever looked learns
//! it when he closes the window. He then reads in the ordinary way, which tells what is wrong.

use std::{
    fs::File,
    io, mem,
    os::fd::AsRawFd as _,
    ptr, slice,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// An open window, for the handler to find. Only atomics: a signal handler may not wait.
struct Place {
    /// Address of the first byte; 0 when free, 1 while it is being taken.
    start: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
}

/// Enough for what is hashed at once on any machine; who finds none free reads.
static PLACES: [Place; 64] =
    [const { Place { start: AtomicUsize::new(0), len: AtomicUsize::new(0), lost: AtomicBool::new(false) } }; 64];

/// Some bytes of a file, mapped read-only.
pub(crate) struct Window {
    start: *mut libc::c_void,
    len: usize,
    place: &'static Place,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only read.
unsafe impl Send for Window {}
// SAFETY: as above; the window's own fields never change.
unsafe impl Sync for Window {}

impl Window {
    /// Maps `len` bytes at `offset`, a multiple of the page size. `None` when that cannot be done, or not safely.
    pub fn open(file: &File, offset: u64, len: u64) -> Option<Self> {
        if !guard() {
            return None;
        }
        let (len, offset) = (usize::try_from(len).ok()?, libc::off_t::try_from(offset).ok()?);
        let take = |place: &&Place| place.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let place = PLACES.iter().find(take)?;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), offset) };
        if start == libc::MAP_FAILED {
            place.start.store(0, Ordering::Release);
            return None;
        }
        place.lost.store(false, Ordering::Release);
        place.len.store(len, Ordering::Release);
        place.start.store(start as usize, Ordering::Release);
        Some(Self { start, len, place })
    }

    /// The bytes from `at` on, brought into memory at once.
    ///
    /// # Errors
    /// The file does not have them any more, or the disk fails.
    pub fn bytes(&self, at: usize, len: usize) -> io::Result<&[u8]> {
        assert!(at <= self.len && len <= self.len - at, "within the window");
        // SAFETY: the range was just checked.
        let start = unsafe { self.start.cast::<u8>().add(at) };
        // Unknown to Linux before 5.14, where the pages come in one by one.
        // SAFETY: the range is the mapping's own.
        if unsafe { libc::madvise(start.cast(), len, libc::MADV_POPULATE_READ) } != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINVAL) {
                return Err(error);
            }
        }
        // SAFETY: the mapping is readable and lives as long as `self`. Its bytes may change while they are read if
        // somebody writes to the file: who looks only computes on them, and what he finds is thrown away when the
        // file's times show that it changed.
        Ok(unsafe { slice::from_raw_parts(start, len) })
    }

    /// Closes it. Whether all that was seen was the file's.
    pub fn close(self) -> bool {
        !self.place.lost.load(Ordering::Acquire)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping's own, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.start, self.len) };
        self.place.start.store(0, Ordering::Release);
    }
}

/// Who handled SIGBUS before: Rust's runtime, which tells a stack overflow by it on some systems.
static OLD: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler, once. Whether it is there.
fn guard() -> bool {
    static GUARD: OnceLock<bool> = OnceLock::new();
    *GUARD.get_or_init(|| {
        // SAFETY: both structures are valid for the call; `on_bus_error` does only what a signal handler may. The old
        // handler is known before the new one can be called.
        unsafe {
            let mut old: libc::sigaction = mem::zeroed();
            if libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut old) != 0 {
                return false;
            }
            let _ = OLD.set(old);
            let mut new: libc::sigaction = mem::zeroed();
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
            new.sa_sigaction = handler as libc::sighandler_t;
            new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            libc::sigaction(libc::SIGBUS, &raw const new, ptr::null_mut()) == 0
        }
    })
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `info`. `mmap` is a plain system call; with MAP_FIXED it replaces the window's
    // own pages and nothing else. The old handler is called as it asked to be.
    unsafe {
        let at = (*info).si_addr() as usize;
        for place in &PLACES {
            let (start, len) = (place.start.load(Ordering::Acquire), place.len.load(Ordering::Acquire));
            if start > 1 && (start..start + len).contains(&at) {
                place.lost.store(true, Ordering::Release);
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                if libc::mmap(start as *mut libc::c_void, len, libc::PROT_READ, flags, -1, 0) != libc::MAP_FAILED {
                    return;
                }
            }
        }
        match OLD.get() {
            Some(old) if old.sa_sigaction != libc::SIG_DFL && old.sa_sigaction != libc::SIG_IGN => {
                if old.sa_flags & libc::SA_SIGINFO != 0 {
                    let old: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                        mem::transmute(old.sa_sigaction);
                    old(signal, info, context);
                } else {
                    let old: extern "C" fn(libc::c_int) = mem::transmute(old.sa_sigaction);
                    old(signal);
                }
            }
            _ => {
                // Returning repeats the fault, now with its usual end.
                libc::signal(libc::SIGBUS, libc::SIG_DFL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const LEN: usize = 1 << 20;

    fn sum(bytes: &[u8]) -> u64 {
        bytes.iter().map(|byte| u64::from(*byte)).sum()
    }

    #[test]
    fn a_window_that_is_lost_is_told_and_no_signal() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; LEN]).unwrap();
        let open = || Window::open(&file, 0, LEN as u64).unwrap();
        let window = open();
        assert_eq!(sum(window.bytes(0, LEN).unwrap()), 7 * LEN as u64);
        assert!(window.close());

        let (window, other) = (open(), open());
        let bytes = window.bytes(0, LEN).unwrap();
        file.set_len(100).unwrap();
        // From several threads at once.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!(sum(bytes) <= 700));
            }
        });
        assert!(!window.close());
        other.bytes(LEN / 2, 4096).unwrap_err();
        assert!(other.close(), "nobody looked");
        // And it works again afterwards.
        file.set_len(LEN as u64).unwrap();
        let window = open();
        assert_eq!(sum(window.bytes(0, LEN).unwrap()), 700);
        assert!(window.close());
    }

    #[test]
    fn there_are_only_so_many() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 4096]).unwrap();
        for _ in 0..2 {
            let windows: Vec<_> = (0..PLACES.len() + 1).map_while(|_| Window::open(&file, 0, 4096)).collect();
            // Other tests may have some.
            assert!(windows.len() <= PLACES.len() && windows.len() > PLACES.len() / 2);
        }
    }
}
