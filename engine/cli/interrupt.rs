//! Ctrl-C: the first asks the run to stop in order, the second ends the process at once.

use flow_core::Cancel;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// A [`Cancel`] that is set when the process is asked to end.
///
/// # Errors
/// The signals cannot be watched.
pub fn watch() -> std::io::Result<Cancel> {
    let cancel = Cancel::default();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
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
