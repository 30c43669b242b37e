//! The view for programs: every event as one line of JSON on stdout.

use std::time::{SystemTime, UNIX_EPOCH};

use flow_core::{Event, Record, Sink};

use crate::out;

/// The view for programs.
pub struct Json;

impl Sink for Json {
    fn emit(&self, event: Event) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        if let Ok(line) = serde_json::to_string(&Record { time, event }) {
            // The run matters more than who watches it.
            let _ = out::line(line);
        }
    }
}
