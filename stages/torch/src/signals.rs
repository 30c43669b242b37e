//! SIGTERM, SIGINT and SIGUSR1 (Slurm's warning) ask a run to stop at the end of its step.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

/// From now on the signals are only noted.
pub fn listen() -> Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1] {
        let handler = note as extern "C" fn(libc::c_int);
        // SAFETY: the handler only stores to an atomic.
        let before = unsafe { libc::signal(signal, handler as libc::sighandler_t) };
        ensure!(before != libc::SIG_ERR, "cannot listen to signal {signal}");
    }
    Ok(())
}

/// Whether one came.
pub fn asked_to_stop() -> bool {
    STOP.load(Ordering::Relaxed)
}
