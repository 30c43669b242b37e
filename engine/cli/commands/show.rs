//! `flow show`

use std::{fmt::Write, fs::File, io::BufReader};

use anyhow::Result;
use flow_cache::Cache;
use flow_core::{Diagnostic, Event, How, did_you_mean, masked_json};
use flow_engine::{History, Measured, NodeRecord, Past, RunInfo};

use super::{Done, open_here, runs, status};
use crate::{
    args,
    failure::{Failure, unknown},
    out,
    report::evaluation,
    ui::format::{bytes, clock, count, duration, fit, tame, value},
};

/// A value of a key is shown up to so many columns.
const VALUE: usize = 100;
/// So many files of a result are named.
const FILES: usize = 10;
/// So many lines of the log of what failed are shown.
const LINES: usize = 20;

/// Shows a run, or one stage of it.
pub fn show(args: &args::Show) -> Done {
    let (_, cache) = open_here()?;
    let history = History::open(&cache);
    let run = find(&history, &args.run)?;
    if let Some(stage) = &args.stage {
        let nodes = select(&run, stage)?;
        if args.json {
            return Ok(out::write(&status::json(&run, &|node| nodes.iter().any(|(known, _)| known == node))?)?);
        }
        return Ok(out::write(&details(&cache, &history, &run, &nodes)?)?);
    }
    if args.json {
        return Ok(out::write(&status::json(&run, &|_| true)?)?);
    }
    let (table, to_go) = status::table(&run)?;
    let to_go = if to_go.is_empty() { to_go } else { format!("{to_go}\n") };
    let text = [head(&run), "\n".to_owned(), table, to_go, metrics(&cache, &run)?, failures(&run, &|_| true)?].concat();
    Ok(out::write(&text)?)
}

/// The run that `id` names.
pub fn find(history: &History, id: &str) -> Result<RunInfo, Failure> {
    history.find(id).map_err(unknown)
}

fn head(run: &RunInfo) -> String {
    let head = &run.head;
    let mut rows = vec![
        ["run", &run.id].map(str::to_owned),
        ["state", runs::state(run)].map(str::to_owned),
        ["pipeline".into(), format!("{} ({})", head.pipeline, head.file.display())],
        ["started".into(), clock(head.started)],
        ["machine".into(), format!("{}, process {}", machine(run), head.pid)],
        ["flow".into(), head.version.clone()],
        ["records".into(), run.dir.display().to_string()],
    ];
    rows.extend(head.profile.iter().map(|profile| ["profile".into(), profile.clone()]));
    rows.extend(head.set.iter().map(|set| ["set".into(), set.clone()]));
    if let Some(finished) = head.finished {
        let saved =
            if head.saved >= 1.0 { format!("; the cache saved {}", duration(head.saved)) } else { String::new() };
        rows.push(["took".into(), format!("{}{saved}", duration(finished - head.started))]);
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    out::table(&rows, &[])
}

/// The machine of a run: `node7, 8 cores, 2 GPUs, 64 GB`.
pub fn machine(run: &RunInfo) -> String {
    let (cpus, gpus, memory) = run.head.machine;
    match cpus {
        // A record of before that was noted.
        0 => run.head.host.clone(),
        _ => format!("{}, {cpus} cores, {gpus} GPUs, {}", run.head.host, bytes(memory)),
    }
}

/// What was measured, a line a node.
fn metrics(cache: &Cache, run: &RunInfo) -> Result<String> {
    let mut metrics = run.metrics()?;
    for (node, record) in run.nodes()? {
        // A command says it in its result alone.
        if matches!(record.how, Some(How::Ran | How::Resumed)) && !metrics.contains_key(&node) {
            metrics.extend(crate::metrics::of_result(cache, &record.key).map(|measured| (node, measured)));
        }
    }
    let lines = metrics.iter().map(|(node, measured)| vec![node.clone(), measured_text(measured)]);
    let table = out::table(&lines.collect::<Vec<_>>(), &[]);
    Ok(if table.is_empty() { table } else { format!("\n{table}") })
}

fn measured_text(measured: &Measured) -> String {
    let values = measured.values.iter().map(|(name, of)| format!("{name} {}", value(*of)));
    format!("step {} · {}", measured.step, values.collect::<Vec<_>>().join(" · "))
}

/// What failed, with its causes and its last lines.
fn failures(run: &RunInfo, wanted: &dyn Fn(&str) -> bool) -> Result<String> {
    let mut text = String::new();
    for record in run.events()? {
        let Event::Failed { node, causes, log, retry_after: None, .. } = record.event else { continue };
        if !wanted(&node) {
            continue;
        }
        let _ = writeln!(text, "\n{node} failed");
        for cause in &causes {
            let _ = writeln!(text, "  caused by: {}", cause.lines().map(tame).collect::<Vec<_>>().join("\n    "));
        }
        let quoted = causes.iter().any(|cause| log.last().is_some_and(|last| cause.ends_with(last.as_str())));
        for line in log.iter().rev().take(LINES).rev().filter(|_| !quoted) {
            let _ = writeln!(text, "    | {}", tame(line));
        }
        let _ = writeln!(text, "  log: {}", run.log_path(&node).display());
    }
    Ok(text)
}

/// The nodes of a run that a name means.
fn select(run: &RunInfo, name: &str) -> Result<Vec<(String, NodeRecord)>, Failure> {
    let all = run.nodes()?;
    let is_it = run.chooser(name);
    let mut nodes: Vec<_> = all.iter().filter(|(node, _)| is_it(node)).map(|(a, b)| (a.clone(), b.clone())).collect();
    if nodes.is_empty() {
        let wrong = Diagnostic::new(format!("run {} did not come to a stage `{name}`", run.id));
        let stages = run.stages();
        let near = did_you_mean(name, stages.iter().map(|stage| stage.name.as_str())).filter(|near| *near != name);
        return Err(match near {
            Some(near) => wrong.hint(format!("did you mean `{near}`?")),
            None => wrong,
        }
        .into());
    }
    nodes.sort_by_cached_key(|(node, _)| status::natural(node));
    Ok(nodes)
}

/// Everything about some nodes.
fn details(cache: &Cache, history: &History, run: &RunInfo, nodes: &[(String, NodeRecord)]) -> Result<String> {
    let keys = nodes.iter().map(|(node, record)| (node.clone(), record.key)).collect();
    let measured = history.measured(run, keys)?;
    let (mut text, past) = (String::new(), Past::new(cache));
    for (node, record) in nodes {
        let how = record.how.map_or(if record.failed { "failed" } else { "without a result" }, status::word);
        let _ = writeln!(text, "{node}\n  {how} in {}", duration(record.seconds));
        let _ = writeln!(text, "  key {}", record.key);
        if let Some(measured) = measured.get(node) {
            let _ = writeln!(text, "  {}", measured_text(measured));
        }
        if let Some(parts) = past.parts(cache, &run.id, node, &record.key)? {
            let _ = writeln!(text, "  kind {} version {}", parts.kind, parts.version);
            for (name, value) in masked_json(&parts.params).as_object().into_iter().flatten() {
                let _ = writeln!(text, "    {name} = {}", fit(&value.to_string(), VALUE));
            }
            for (port, digests) in &parts.inputs {
                let digests: Vec<String> = digests.iter().map(flow_core::Digest::short).collect();
                let _ = writeln!(text, "    input {port}: {}", fit(&digests.join(", "), VALUE));
            }
        }
        if let Some(result) = cache.record(&record.key)? {
            let made = format!("made {} on {} by flow {}", clock(result.created), result.host, result.version);
            let _ = writeln!(text, "  {made}, in {}", duration(result.cost));
            let files = result.tree.entries();
            for entry in files.iter().take(FILES) {
                let _ = writeln!(text, "    {}  {}", entry.name, bytes(entry.size));
            }
            if files.len() > FILES {
                let _ = writeln!(text, "    and {} more", count((files.len() - FILES) as u64));
            }
            let open = |name: &str| File::open(cache.entry_path(result.tree.get(name)?)).ok().map(BufReader::new);
            if let Some(evaluation) = evaluation::read(&open) {
                let _ = writeln!(text, "{}", evaluation.table().trim_end());
            }
        }
        let log = run.log_path(node);
        if log.is_file() && !record.failed {
            let _ = writeln!(text, "  log: {}", log.display());
        }
    }
    let failed = |node: &str| nodes.iter().any(|(known, record)| known == node && record.failed);
    Ok(text + &failures(run, &failed)?)
}
