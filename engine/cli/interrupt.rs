//! Signals. Ctrl-C: the first asks the run to stop in order, the second ends the process at once.

use std::sync::OnceLock;

use flow_core::Cancel;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// Hears of it when children end. Whoever starts flow may have told it to ignore that (`trap "" CHLD`), which is inherited;
/// then the kernel forgets them at once, and nobody can wait for one.
pub fn hear_of_children() {
    // SAFETY: a system call, before anything else is done.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// That of [`watch`].
static WATCHED: OnceLock<Cancel> = OnceLock::new();

/// A [`Cancel`] that is set when the process is asked to end; the same each time.
///
/// # Errors
/// The signals cannot be watched.
pub fn watch() -> std::io::Result<Cancel> {
    if let Some(cancel) = WATCHED.get() {
        return Ok(cancel.clone());
    }
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let cancel = WATCHED.get_or_init(Cancel::default).clone();
    let asked = cancel.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            if asked.is_set() {
                // Children die with this process; what is in the cache is whole at any instant.
                std::process::exit(130);
            }
            asked.set();
        }
    })?;
    Ok(cancel)
}
