//! The view for logs and CI: one line a change of state, progress now and then, no escapes but colour, nothing redrawn.

use std::{
    collections::HashMap,
    io::Write as _,
    sync::Mutex,
    time::{Duration, Instant},
};

use flow_core::{Event, How, Level, Sink};

use super::{
    Header, Rerun,
    board::Board,
    format::{WHY, amount, bytes, count, duration, fit, moving, rate, tame},
    paint::Paint,
    report::{End, failure, summary},
};

/// Progress of a node is said at most this often.
const PROGRESS: Duration = Duration::from_secs(30);
/// A node's warnings beyond these are in its log alone.
const WARNINGS: usize = 20;
/// Hits are named up to this many in a row, and counted beyond.
const NAMED: usize = 4;

/// The plain view.
pub struct Plain<'a> {
    paint: Paint,
    rerun: &'a Rerun,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    header: Header,
    board: Board,
    said: HashMap<String, Instant>,
    warned: HashMap<String, usize>,
    hits: Vec<String>,
    more_hits: usize,
}

impl<'a> Plain<'a> {
    /// A plain view on stderr.
    pub fn new(rerun: &'a Rerun, paint: Paint) -> Self {
        Self { paint, rerun, state: Mutex::default() }
    }
}

impl Sink for Plain<'_> {
    fn emit(&self, event: Event) {
        let text = {
            let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let text = state.tell(&event, Instant::now(), self.rerun, self.paint);
            let text = if text.is_empty() { text } else { state.tell_hits(self.paint, &event) + &text };
            state.header.before(text, false, self.rerun, self.paint)
        };
        // Nobody can be told that stderr is gone.
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}

impl State {
    /// The lines that an event is worth; empty for most.
    fn tell(&mut self, event: &Event, now: Instant, rerun: &Rerun, paint: Paint) -> String {
        self.board.apply(event, now);
        match event {
            Event::RunStarted { .. } => {
                self.header.keep(event, paint);
                String::new()
            }
            Event::Waiting { node, reason } => line(&paint.yellow("waiting "), node, reason),
            Event::Started { node, why, .. } => {
                self.said.insert(node.clone(), now);
                line(&paint.cyan("started "), node, &fit(why, WHY))
            }
            Event::Progress { node, .. } | Event::Metrics { node, .. } => self.tell_progress(node, now, paint),
            Event::Log { node, level, text, .. } if *level >= Level::Warning => {
                self.tell_warning(node, *level, text, paint)
            }
            Event::Log { .. } => String::new(),
            Event::Finished { node, how, seconds, bytes: size, .. } => {
                self.said.remove(node);
                let result = format!("{} · {}", duration(*seconds), bytes(*size));
                match how {
                    How::Ran => line(&paint.green("done    "), node, &result),
                    How::Resumed => line(&paint.green("done    "), node, &format!("{result} · went on where it was")),
                    How::Shared => line(&paint.green("done    "), node, &format!("{result} · made by another flow")),
                    How::Remote => line(&paint.green("fetched "), node, &format!("{result} · from the team's cache")),
                    How::Cached | How::Off => {
                        if *how == How::Cached && self.hits.len() < NAMED {
                            self.hits.push(node.clone());
                        } else if *how == How::Cached {
                            self.more_hits += 1;
                        }
                        String::new()
                    }
                }
            }
            Event::Failed { node, causes, seconds, retry_after: Some(wait), .. } => {
                let cause = causes.first().map_or("", String::as_str);
                let text = format!("failed after {}, again in {}: {cause}", duration(*seconds), duration(*wait));
                line(&paint.yellow("retry   "), node, &text)
            }
            Event::Failed { node, causes, seconds, log, retry_after: None } => {
                failure(node, causes, *seconds, log, rerun, paint)
            }
            Event::Blocked { node, by } => line(&paint.yellow("not run "), node, &format!("{by} failed")),
            Event::RunFinished { ok, interrupted, seconds, saved, .. } => {
                let end = End { ok: *ok, interrupted: *interrupted, seconds: *seconds, saved: *saved };
                summary(&self.board, end, rerun, paint)
            }
        }
    }

    fn tell_progress(&mut self, node: &str, now: Instant, paint: Paint) -> String {
        let Some(said) = self.said.get_mut(node) else { return String::new() };
        if now.duration_since(*said) < PROGRESS {
            return String::new();
        }
        *said = now;
        let Some(running) = self.board.running(node) else { return String::new() };
        let mut parts = Vec::new();
        if let Some((done, total, unit)) = running.meter.amount() {
            parts.push(amount(done, total, unit));
            parts.extend(running.meter.rate().map(|per_second| rate(per_second, unit)));
        }
        parts.extend(running.metrics_text());
        parts.extend(running.meter.eta(now).map(|eta| format!("{} left", moving(eta))));
        parts.extend(running.note.clone());
        let percent = running.meter.fraction().map_or_else(String::new, |f| format!("{:.0}%", f * 100.0));
        line(&paint.cyan(&format!("{percent:<8}")), node, &parts.join(" · "))
    }

    fn tell_warning(&mut self, node: &str, level: Level, text: &str, paint: Paint) -> String {
        let warned = self.warned.entry(node.to_owned()).or_default();
        *warned += 1;
        if *warned > WARNINGS {
            return String::new();
        }
        let head = if level == Level::Error { paint.red("error   ") } else { paint.yellow("warning ") };
        let more = if *warned == WARNINGS { " (what follows is in its log)" } else { "" };
        line(&head, node, &format!("{text}{more}"))
    }

    /// The hits since the last line, in one; at the end of the run the summary counts them if nothing else was said.
    fn tell_hits(&mut self, paint: Paint, event: &Event) -> String {
        let (hits, more) = (std::mem::take(&mut self.hits), std::mem::take(&mut self.more_hits));
        if hits.is_empty() || (matches!(event, Event::RunFinished { .. }) && more > 0 && self.board.ran() == 0) {
            return String::new();
        }
        let more = if more > 0 { format!(" and {} more", count(more as u64)) } else { String::new() };
        format!("{} {}{more}\n", paint.dim("skipped "), hits.join(", "))
    }
}

fn line(head: &str, node: &str, text: &str) -> String {
    let text = text.trim_end().lines().map(tame).collect::<Vec<_>>().join(" ");
    let between = if text.is_empty() || node.is_empty() { "" } else { " · " };
    format!("{head} {node}{between}{text}\n")
}
