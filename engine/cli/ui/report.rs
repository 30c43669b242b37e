//! What is said once, in the same words on a terminal and in a CI log: a failed node, and the end of a run.

use std::fmt::Write;

use flow_core::How;

use super::{
    Rerun,
    board::Board,
    format::{count, duration, tame},
    paint::Paint,
};

/// A node that failed: name, time, causes, its last log lines, its log, the command that runs just it.
pub fn failure(node: &str, causes: &[String], seconds: f64, log: &[String], rerun: &Rerun, paint: Paint) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{} {} failed after {}", paint.red("error:"), paint.bold(node), duration(seconds));
    for cause in causes {
        let cause = cause.trim_end().lines().map(tame).collect::<Vec<_>>().join("\n    ");
        let _ = writeln!(text, "  {} {cause}", paint.red("caused by:"));
    }
    // Causes quote the end of what a program or a rank printed: nothing is said twice.
    let quoted = |line: &str| causes.iter().any(|cause| cause.lines().skip(1).any(|quoted| quoted.trim() == line));
    let mut rest = log.iter().filter(|line| !quoted(without_rank(line).trim())).peekable();
    if rest.peek().is_some() {
        let _ = writeln!(text, "  {}", paint.cyan("the last lines of its log:"));
        for line in rest {
            let _ = writeln!(text, "    {} {}", paint.dim("|"), tame(line));
        }
    }
    if let Some(path) = rerun.log_path(node) {
        let _ = writeln!(text, "  {} {}", paint.cyan("log:"), path.display());
    }
    let _ = writeln!(text, "  {} to run just this: {}", paint.cyan("hint:"), rerun.only(node));
    text
}

/// `[rank 1] step 3` → `step 3`
fn without_rank(line: &str) -> &str {
    line.strip_prefix("[rank ").and_then(|rest| Some(rest.split_once("] ")?.1)).unwrap_or(line)
}

/// How a run ended, from its last event.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Everything that was asked for is there.
    pub ok: bool,
    /// It was interrupted.
    pub interrupted: bool,
    /// Seconds it took.
    pub seconds: f64,
    /// Seconds that the cache saved.
    pub saved: f64,
}

/// The last lines of a run.
pub fn summary(board: &Board, end: End, rerun: &Rerun, paint: Paint) -> String {
    let head = match end {
        End { interrupted: true, .. } => paint.yellow("interrupted"),
        End { ok: true, .. } => paint.green("done"),
        End { .. } => paint.red("failed"),
    };
    let mut parts = vec![format!("{} ran", count(board.ran() as u64))];
    if board.of(&[How::Resumed]) > 0 {
        parts[0] += &format!(" ({} went on where they were)", count(board.of(&[How::Resumed]) as u64));
    }
    let mut skipped = format!("{} skipped", count(board.skipped() as u64));
    let mut from: Vec<String> = Vec::new();
    for (how, name) in [(How::Shared, "made by another flow"), (How::Remote, "from the team's cache")] {
        if board.of(&[how]) > 0 {
            from.push(format!("{} {name}", count(board.of(&[how]) as u64)));
        }
    }
    if !from.is_empty() {
        skipped += &format!(" ({})", from.join(", "));
    }
    parts.push(skipped);
    let off = board.of(&[How::Off]);
    let rest = board.total.saturating_sub(board.ran() + board.skipped() + off + board.failed.len());
    let not = if end.interrupted { "not done" } else { "not run" };
    for (number, name) in [(off, "off"), (board.failed.len(), "failed"), (rest, not)] {
        if number > 0 {
            parts.push(format!("{} {name}", count(number as u64)));
        }
    }
    let mut text = format!("{head} in {}: {}", duration(end.seconds), parts.join(", "));
    if end.saved >= 1.0 {
        let _ = write!(text, "; the cache saved {}", duration(end.saved));
    }
    text.push('\n');
    if board.failed.len() > 1 {
        const SHOWN: usize = 10;
        let mut names = board.failed.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        if board.failed.len() > SHOWN {
            let _ = write!(names, " and {} more", board.failed.len() - SHOWN);
        }
        let _ = writeln!(text, "{} {names}", paint.red(&format!("{} failed:", count(board.failed.len() as u64))));
    }
    if end.interrupted {
        let _ = writeln!(text, "{} to go on: {}", paint.cyan("hint:"), rerun.whole());
    }
    text
}
