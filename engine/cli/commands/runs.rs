//! `flow runs`

use flow_engine::{History, RunInfo};
use serde_json::json;

use super::{Done, nodes::tally, open_here};
use crate::{
    args, out,
    ui::format::{clock, duration},
};

/// Lists the runs.
pub fn runs(args: &args::Runs) -> Done {
    let (_, cache) = open_here()?;
    let runs: Vec<RunInfo> = History::open(&cache).list()?.take(args.number).collect();
    if args.json {
        let lines: String = runs.iter().map(|run| json_line(run) + "\n").collect();
        return Ok(out::write(&lines)?);
    }
    if runs.is_empty() {
        eprintln!("no runs in {}", cache.root().display());
    }
    let rows: Vec<Vec<String>> = runs.iter().map(row).collect();
    Ok(out::write(&out::table(&rows, &[3]))?)
}

fn row(run: &RunInfo) -> Vec<String> {
    let head = &run.head;
    let profile = head.profile.as_ref().map_or_else(String::new, |profile| format!(" ({profile})"));
    let counted = tally(&[(head.ran, "ran"), (head.skipped, "skipped"), (head.failed, "failed")]);
    vec![
        run.id.clone(),
        clock(head.started),
        state(run).to_owned(),
        head.finished.map(|finished| duration(finished - head.started)).unwrap_or_default(),
        format!("{}{profile}", head.pipeline),
        if head.finished.is_some() { counted } else { String::new() },
    ]
}

/// How a run stands, in a word.
pub fn state(run: &RunInfo) -> &'static str {
    match run.head {
        _ if run.alive => "running",
        _ if run.head.interrupted => "interrupted",
        _ if run.head.finished.is_none() => "killed",
        _ if run.head.ok == Some(true) => "done",
        _ => "failed",
    }
}

/// A run as JSON.
fn json_line(run: &RunInfo) -> String {
    let mut line = serde_json::to_value(&run.head).unwrap_or_default();
    line["state"] = json!(state(run));
    line["dir"] = json!(run.dir);
    line.to_string()
}
