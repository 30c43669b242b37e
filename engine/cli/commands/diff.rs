//! `flow diff`: two runs side by side.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use flow_cache::Cache;
use flow_core::{How, Key};
use flow_engine::{History, Measured, NodeRecord, Past, RunInfo, apart, changes};
use serde_json::json;

use super::{
    Done, open_here, runs,
    show::find,
    status::{natural, word},
};
use crate::{
    args, out,
    ui::format::{bytes, clock, duration, value},
};

/// Times that differ by less than this part, or by less than a second, are the same to people.
const NOISE: f64 = 0.1;
/// A value is shown up to so many characters.
const VALUE: usize = 40;

/// What is, or may be, different.
struct Row {
    /// The node; empty for the run itself.
    node: String,
    what: String,
    sides: [String; 2],
    differs: bool,
}

/// Compares two runs.
pub fn diff(args: &args::Diff) -> Done {
    let (_, cache) = open_here()?;
    let history = History::open(&cache);
    let runs = [find(&history, &args.from)?, find(&history, &args.to)?];
    let mut rows = heads(&runs);
    rows.extend(nodes(&cache, &history, &runs, args.all)?);
    rows.retain(|row| args.all || row.differs);
    if args.json {
        let line = |row: &Row| {
            let [from, to] = &row.sides;
            json!({ "node": row.node, "what": row.what, "from": from, "to": to, "differs": row.differs }).to_string()
                + "\n"
        };
        return Ok(out::write(&rows.iter().map(line).collect::<String>())?);
    }
    if rows.is_empty() {
        eprintln!("nothing differs");
    }
    let [from, to] = &runs;
    let mut table = vec![vec![String::new(), String::new(), from.id.clone(), to.id.clone()]];
    table.extend(fold(rows).into_iter().map(|Row { node, what, sides: [from, to], .. }| {
        let [from, to] = apart(&from, &to, VALUE);
        vec![node, what, from, to]
    }));
    Ok(out::write(&out::table(&table, &[]))?)
}

fn row(node: &str, what: &str, sides: [String; 2]) -> Row {
    let differs = sides[0] != sides[1];
    Row { node: node.to_owned(), what: what.to_owned(), sides, differs }
}

/// What there is to say of the runs as a whole.
fn heads(runs: &[RunInfo; 2]) -> Vec<Row> {
    let took = runs.each_ref().map(|run| run.head.finished.map(|finished| finished - run.head.started));
    let texts = |text: fn(&RunInfo) -> String| runs.each_ref().map(text);
    let mut rows = vec![
        row("", "pipeline", texts(|run| run.head.file.display().to_string())),
        row("", "profile", texts(|run| run.head.profile.clone().unwrap_or_default())),
        row("", "set", texts(|run| run.head.set.join(" "))),
        row("", "flow", texts(|run| run.head.version.clone())),
        row("", "machine", texts(super::show::machine)),
        row("", "state", texts(|run| runs::state(run).to_owned())),
        time("", took),
    ];
    let started = texts(|run| clock(run.head.started));
    rows.push(Row { differs: false, ..row("", "started", started) });
    rows
}

/// Seconds beside seconds; where there are none, nothing was run.
fn time(node: &str, seconds: [Option<f64>; 2]) -> Row {
    let differs = match seconds {
        [Some(from), Some(to)] => (from - to).abs() > (NOISE * from.max(to)).max(1.0),
        _ => false,
    };
    Row { differs, ..row(node, "time", seconds.map(|seconds| seconds.map(duration).unwrap_or_default())) }
}

/// What there is to say of each node.
fn nodes(cache: &Cache, history: &History, runs: &[RunInfo; 2], all: bool) -> Result<Vec<Row>> {
    let [from, to] = runs;
    let records = [from.nodes()?, to.nodes()?];
    let mut names: Vec<&String> =
        records.iter().flat_map(BTreeMap::keys).collect::<BTreeSet<_>>().into_iter().collect();
    names.sort_by_cached_key(|node| natural(node));
    let differing = |node: &&&String| {
        let [from, to] = records.each_ref().map(|records| records.get(**node));
        all || from.map(|record| record.digest) != to.map(|record| record.digest)
    };
    let wanted: Vec<&String> = names.iter().filter(differing).copied().collect();
    let mut metrics = Vec::new();
    for (run, records) in runs.iter().zip(&records) {
        let keys: BTreeMap<String, Key> =
            wanted.iter().filter_map(|node| Some(((*node).clone(), records.get(*node)?.key))).collect();
        let mut measured = history.measured(run, keys.clone())?;
        // A command says it in its result alone.
        let of_results = keys.into_iter().filter(|(node, _)| !measured.contains_key(node));
        let of_results: Vec<_> =
            of_results.filter_map(|(node, key)| Some((node, crate::metrics::of_result(cache, &key)?))).collect();
        measured.extend(of_results);
        metrics.push(measured);
    }
    let past = Past::new(cache);
    let mut rows = Vec::new();
    for node in names {
        let pair = records.each_ref().map(|records| records.get(node));
        rows.push(row(node, "how", pair.map(|record| record.map_or("", |r| r.how.map_or("failed", word)).to_owned())));
        let [Some(from), Some(to)] = pair else { continue };
        rows.extend(parts(cache, &past, node, [(&runs[0].id, from), (&runs[1].id, to)])?);
        let ran = |record: &NodeRecord| matches!(record.how, Some(How::Ran | How::Resumed)).then_some(record.seconds);
        rows.push(time(node, [ran(from), ran(to)]));
        let size = |record: &NodeRecord| if record.how == Some(How::Off) { String::new() } else { bytes(record.bytes) };
        rows.push(row(node, "size", [size(from), size(to)]));
        let digest = |record: &NodeRecord| record.digest.map(|digest| digest.short()).unwrap_or_default();
        rows.push(row(node, "result", [digest(from), digest(to)]));
        measured(node, [metrics[0].get(node), metrics[1].get(node)], &mut rows);
    }
    Ok(rows)
}

/// What differs between the keys.
fn parts(cache: &Cache, past: &Past, node: &str, sides: [(&String, &NodeRecord); 2]) -> Result<Vec<Row>> {
    let [from, to] = sides.map(|(_, record)| record.key);
    if from == to {
        return Ok(Vec::new());
    }
    let of = |(run, record): (&String, &NodeRecord)| past.parts(cache, run, node, &record.key);
    let (Some(before), Some(after)) = (of(sides[0])?, of(sides[1])?) else {
        return Ok(vec![row(node, "key", [from.short(), to.short()])]);
    };
    let changes = changes(&before, &after).into_iter();
    Ok(changes
        .map(|change| row(node, &change.what, [change.from.unwrap_or_default(), change.to.unwrap_or_default()]))
        .collect())
}

fn measured(node: &str, sides: [Option<&Measured>; 2], rows: &mut Vec<Row>) {
    let names: BTreeSet<&String> = sides.iter().flatten().flat_map(|side| side.values.keys()).collect();
    if !names.is_empty() {
        rows.push(row(node, "step", sides.map(|side| side.map(|side| side.step.to_string()).unwrap_or_default())));
    }
    for name in names {
        let text = |side: Option<&Measured>| side.and_then(|side| side.values.get(name)).map(|v| value(*v));
        rows.push(row(node, name, sides.map(|side| text(side).unwrap_or_default())));
    }
}

/// Shards of a stage that differ in the same way share a row.
fn fold(rows: Vec<Row>) -> Vec<Row> {
    let stage = |node: &str| node.split_once('[').map_or(node.to_owned(), |(stage, _)| stage.to_owned());
    let mut groups: Vec<(String, Vec<Row>)> = Vec::new();
    for row in rows {
        let stage = stage(&row.node);
        // Inputs of a thousand files are one matter.
        let what = row.what.split('[').next().unwrap_or_default().to_owned();
        let alike = |group: &&mut (String, Vec<Row>)| {
            group.0 == stage && group.1[0].what.split('[').next().unwrap_or_default() == what
        };
        match groups.iter_mut().find(alike).filter(|_| !stage.is_empty()) {
            Some(group) => group.1.push(row),
            None => groups.push((stage, vec![row])),
        }
    }
    let mut folded = Vec::new();
    for (stage, mut rows) in groups {
        let first = rows.remove(0);
        if rows.is_empty() {
            folded.push(first);
        } else if rows.iter().all(|row| row.sides == first.sides) {
            folded.push(Row { node: format!("{stage} x{}", rows.len() + 1), ..first });
        } else {
            let what = first.what.split('[').next().unwrap_or_default().to_owned();
            let count = rows.len() + 1;
            let sides = first.sides.map(|side| if side.is_empty() { side } else { format!("{side}, …") });
            folded.push(Row { node: format!("{stage} x{count}"), what, sides, differs: true });
        }
    }
    folded
}
