//! The view on a terminal: what is finished scrolls away above, what is going on is redrawn below, one line a node.

use std::{
    collections::HashMap,
    io::Write as _,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use flow_core::{Event, Level, Sink};
use terminal_size::{Height, Width, terminal_size_of};

use super::{
    Header, Rerun,
    board::{Board, Running},
    format::{amount, count, fit, moving, rate, tame, width},
    paint::Paint,
    report::{End, failure, summary},
};

/// Time between two redraws at least.
const FRAME: Duration = Duration::from_millis(80);
/// Nodes shown at most; fewer on a low terminal.
const LINES: usize = 28;
/// A node's warnings beyond these are in its log alone.
const WARNINGS: usize = 5;

/// The view on a terminal.
pub struct Tty<'a> {
    shared: Arc<Shared>,
    rerun: &'a Rerun,
    paint: Paint,
    painter: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

struct State {
    header: Header,
    board: Board,
    started: Instant,
    changed: bool,
    over: bool,
    warned: HashMap<String, usize>,
    // What scrolls away, not written yet.
    above: String,
    // The widths of the lines that stand below, to take them away again.
    below: Vec<usize>,
}

impl State {
    fn new() -> Self {
        Self {
            header: Header::default(),
            board: Board::default(),
            started: Instant::now(),
            changed: false,
            over: false,
            warned: HashMap::new(),
            above: String::new(),
            below: Vec::new(),
        }
    }
}

impl<'a> Tty<'a> {
    /// A view on the terminal at stderr.
    pub fn new(rerun: &'a Rerun, paint: Paint) -> Self {
        let shared = Arc::new(Shared { state: Mutex::new(State::new()), ended: Condvar::new() });
        let painter = {
            let shared = Arc::clone(&shared);
            // Without a painter the events still end in the summary.
            std::thread::Builder::new().name("screen".into()).spawn(move || shared.paint_until_over(paint)).ok()
        };
        Self { shared, rerun, paint, painter }
    }
}

impl Drop for Tty<'_> {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.ended.notify_all();
        if let Some(painter) = self.painter.take() {
            let _ = painter.join();
        }
        // What stands below goes, what was said stays.
        let text = self.shared.lock().compose(&[], size().0);
        write(&text);
    }
}

impl Sink for Tty<'_> {
    fn emit(&self, event: Event) {
        let begins = matches!(event, Event::Started { .. } | Event::Waiting { .. });
        let mut state = self.shared.lock();
        let mut text = state.tell(&event, self.rerun, self.paint);
        state.board.apply(&event, Instant::now());
        state.changed = true;
        if let Event::RunFinished { ok, interrupted, seconds, saved, .. } = event {
            let end = End { ok, interrupted, seconds, saved };
            text = summary(&state.board, end, self.rerun, self.paint);
        }
        let text = state.header.before(text, begins, self.rerun, self.paint);
        state.above.push_str(&text);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paint_until_over(&self, paint: Paint) {
        let mut drawn = Instant::now();
        let mut state = self.lock();
        while !state.over {
            // Clocks and rates move without events.
            if state.changed || (drawn.elapsed() > Duration::from_millis(500) && !state.board.all_running().is_empty())
            {
                state.changed = false;
                let (columns, rows) = size();
                let lines = frame(&state.board, state.started, Instant::now(), columns, rows, paint);
                let text = state.compose(&lines, columns);
                // A slow terminal must not hold up who emits.
                drop(state);
                write(&text);
                state = self.lock();
                drawn = Instant::now();
                if state.over {
                    return;
                }
            }
            state = self.ended.wait_timeout(state, FRAME).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    /// What of an event stays on the screen.
    fn tell(&mut self, event: &Event, rerun: &Rerun, paint: Paint) -> String {
        match event {
            Event::RunStarted { .. } => {
                self.header.keep(event, paint);
                String::new()
            }
            Event::Failed { node, causes, seconds, log, retry_after: None } => {
                failure(node, causes, *seconds, log, rerun, paint)
            }
            Event::Log { node, level, text, .. } if *level >= Level::Warning => {
                let warned = self.warned.entry(node.clone()).or_default();
                *warned += 1;
                if *warned > WARNINGS {
                    return String::new();
                }
                let head = if *level == Level::Error { paint.red("error:") } else { paint.yellow("warning:") };
                let more = if *warned == WARNINGS { " (what follows is in its log)" } else { "" };
                // What the engine itself says is about no node.
                let node = if node.is_empty() { String::new() } else { format!("{}: ", paint.bold(node)) };
                format!("{head} {node}{}{more}\n", tame(text))
            }
            _ => String::new(),
        }
    }

    /// What takes away the lines below, writes what scrolls away, and draws `lines` below: one text, so that nothing
    /// flickers.
    fn compose(&mut self, lines: &[String], columns: usize) -> String {
        let mut text = String::new();
        // A terminal that became narrower has broken the old lines into more rows.
        let rows: usize = self.below.iter().map(|width| 1 + width.saturating_sub(1) / columns.max(1)).sum();
        if rows > 0 {
            text.push_str(&format!("\x1b[{rows}A\r"));
        }
        // What only moves is painted over and not taken away first, or it would flicker. What stays may be wider than
        // the terminal, and needs clear ground.
        if rows > 0 && !self.above.is_empty() {
            text.push_str("\x1b[J");
        }
        text.push_str(&std::mem::take(&mut self.above));
        for line in lines {
            text.push_str(line);
            text.push_str("\x1b[K\n");
        }
        if rows > 0 {
            text.push_str("\x1b[J");
        }
        self.below = lines.iter().map(|line| width(&bare(line))).collect();
        text
    }
}

fn write(text: &str) {
    // Nobody can be told that the terminal is gone.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    terminal_size_of(std::io::stderr())
        .map_or((80, 24), |(Width(columns), Height(rows))| (usize::from(columns).max(20), usize::from(rows).max(4)))
}

/// A line without colour.
fn bare(line: &str) -> String {
    let mut text = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            chars.by_ref().find(char::is_ascii_alphabetic);
        } else {
            text.push(c);
        }
    }
    text
}

/// The lines below: one a running node as far as there is room, and one that counts the rest.
fn frame(board: &Board, started: Instant, now: Instant, columns: usize, rows: usize, paint: Paint) -> Vec<String> {
    if board.total == 0 {
        return Vec::new();
    }
    let running = board.all_running();
    let room = LINES.min(rows.saturating_sub(4)).max(1);
    let shown = if running.len() <= room { running.len() } else { room - 1 };
    let names = running[..shown].iter().map(|running| width(&running.node)).max().unwrap_or(0);
    let names = names.clamp(4, 32.min(columns / 3));
    let mut lines: Vec<String> =
        running[..shown].iter().map(|running| node_line(running, names, now, columns, paint)).collect();
    if shown < running.len() {
        lines.push(paint.dim(&fit(&format!("+{} more running", count((running.len() - shown) as u64)), columns - 1)));
    }
    let mut parts = vec![format!("{}/{} done", count(board.settled() as u64), count(board.total as u64))];
    for (number, name) in [
        (board.skipped(), "skipped"),
        (running.len(), "running"),
        (board.failed.len(), "failed"),
        (board.blocked, "not run"),
    ] {
        if number > 0 {
            parts.push(format!("{} {name}", count(number as u64)));
        }
    }
    parts.push(moving(now.duration_since(started).as_secs_f64().floor()));
    lines.push(paint.bold(&fit(&parts.join(" · "), columns - 1)));
    lines
}

/// `tokens[2]  ━━━━━──────  45%  3.2 MB/7.1 MB · 1.0 MB/s · 4 s left · loss 3.2`
fn node_line(running: &Running, names: usize, now: Instant, columns: usize, paint: Paint) -> String {
    const BAR: usize = 16;
    let name = fit(&running.node, names);
    let mut line = format!("{}{}", paint.bold(&name), " ".repeat(names - width(&name)));
    let mut used = names;
    if let Some(reason) = &running.waiting {
        let text = fit(&format!("  waits: {}", tame(reason)), (columns - 1).saturating_sub(used));
        return line + &paint.yellow(&text);
    }
    if let Some(fraction) = running.meter.fraction() {
        let full = (fraction * BAR as f64) as usize;
        line += &format!("  {}{}", paint.cyan(&"━".repeat(full)), paint.dim(&"─".repeat(BAR - full)));
        line += &format!(" {:>3.0}%", (fraction * 100.0).floor());
        used += 2 + BAR + 5;
    }
    let mut parts = Vec::new();
    if let Some((done, total, unit)) = running.meter.amount() {
        parts.push(amount(done, total, unit));
        parts.extend(running.meter.eta(now).map(|eta| format!("{} left", moving(eta))));
        parts.extend(running.metrics_text());
        parts.extend(running.meter.rate().map(|per_second| rate(per_second, unit)));
    } else {
        parts.push(moving(now.duration_since(running.since).as_secs_f64().floor()));
        parts.extend(running.metrics_text());
    }
    parts.extend(running.note.as_deref().map(tame));
    line + &fit(&format!("  {}", parts.join(" · ")), (columns - 1).saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use flow_core::{Key, Unit};

    use super::*;

    fn board(running: usize, total: usize, now: Instant) -> Board {
        let mut board = Board::default();
        board.total = total;
        for i in 0..running {
            let node = format!("tokens[{i}]");
            board.apply(&Event::Started { node: node.clone(), key: Key([0; 32]), why: String::new() }, now);
            let (done, total, unit) = (i as u64 * 10, Some(running as u64 * 10), Unit::Documents);
            board.apply(&Event::Progress { node, done, total, unit, note: Some("日本語".repeat(99)) }, now);
        }
        board
    }

    #[test]
    fn two_hundred_running_of_ten_thousand_fit_the_screen() {
        let now = Instant::now();
        let board = board(200, 10_000, now);
        for (columns, rows) in [(80, 24), (20, 4), (300, 100), (33, 12)] {
            let lines = frame(&board, now, now, columns, rows, Paint::none());
            assert!(lines.len() < rows, "{rows}: {}", lines.len());
            for line in &lines {
                assert!(width(line) < columns, "{columns}: {line}");
            }
        }
        let lines = frame(&board, now, now, 80, 24, Paint::none());
        assert_eq!(lines[lines.len() - 2], "+181 more running");
        assert_eq!(lines[lines.len() - 1], "0/10,000 done · 200 running · 0 s");
    }

    #[test]
    fn a_node_is_one_line() {
        let now = Instant::now();
        let mut board = board(1, 3, now);
        let later = now + Duration::from_secs(2);
        let (node, total, unit) = ("tokens[0]".to_owned(), Some(10), Unit::Documents);
        board.apply(&Event::Progress { node, done: 5, total, unit, note: None }, later);
        let lines = frame(&board, now, later, 80, 24, Paint::none());
        let line = "tokens[0]  ━━━━━━━━────────  50%  5/10 documents · 2 s left · 2.5 documents/s";
        assert_eq!(lines, [line, "0/3 done · 1 running · 2 s"]);
    }

    #[test]
    fn old_lines_are_taken_away_even_when_the_terminal_became_narrower() {
        let mut state = State { above: "said\n".into(), ..State::new() };
        let painted = format!("said\n{}\x1b[K\ny\x1b[K\n", "x".repeat(30));
        assert_eq!(state.compose(&["x".repeat(30), "y".into()], 80), painted);
        assert_eq!(state.compose(&[], 80), "\x1b[2A\r\x1b[J");
        state.below = vec![30, 1];
        assert_eq!(state.compose(&["z".into()], 10), "\x1b[4A\rz\x1b[K\n\x1b[J");
    }

    #[test]
    fn colour_takes_no_columns() {
        assert_eq!(bare("\x1b[1;31merror:\x1b[0m x\x1b[2A"), "error: x");
    }
}
