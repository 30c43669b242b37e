//! Named points where a test may kill the process or make the disk full. Nothing of it is in a release build.
//!
//! `FLOW_FAULT=point` kills the process (SIGKILL: no destructor runs) the first time it comes there, `point@3` the
//! third time, and `point=enospc` or `point@3=enospc` makes that step fail as on a full disk instead.

use std::io;

#[cfg(any(test, debug_assertions))]
pub(crate) fn fault(point: &str) -> io::Result<()> {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    };
    struct Plan {
        point: String,
        at: u32,
        enospc: bool,
        seen: AtomicU32,
    }
    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    let plan = PLAN.get_or_init(|| {
        let text = std::env::var("FLOW_FAULT").ok()?;
        let (text, what) = text.split_once('=').unwrap_or((&text, ""));
        let (name, at) = text.split_once('@').unwrap_or((text, "1"));
        Some(Plan { point: name.into(), at: at.parse().ok()?, enospc: what == "enospc", seen: AtomicU32::new(0) })
    });
    let Some(plan) = plan else { return Ok(()) };
    if plan.point != point || plan.seen.fetch_add(1, Ordering::Relaxed) + 1 != plan.at {
        return Ok(());
    }
    if plan.enospc {
        return Err(io::Error::from(io::ErrorKind::StorageFull));
    }
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort()
}

#[cfg(not(any(test, debug_assertions)))]
#[inline(always)]
pub(crate) fn fault(_: &str) -> io::Result<()> {
    Ok(())
}
