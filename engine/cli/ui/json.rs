//! The view for programs: every event as one line of JSON on stdout.

use std::{
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use flow_core::{Event, Record, Sink};

use crate::out;

/// The view for programs. The first thing that could not be written is left for the end: the run matters more than who
/// watches it.
pub struct Json<'a>(pub &'a OnceLock<anyhow::Error>);

impl Sink for Json<'_> {
    fn emit(&self, event: Event) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        if let Ok(line) = serde_json::to_string(&Record { time, event })
            && let Err(error) = out::line(line)
        {
            let _ = self.0.set(error);
        }
    }
}
