//! `flow plan`

use std::mem::ManuallyDrop;

use flow_core::{Diagnostic, Facts, Key};
use flow_engine::{Checked, Graph, Need, Planned, Project, Settings, Verdict};
use rayon::prelude::*;
use serde::Serialize;

use super::{
    Done, draw_warnings, load_and_open,
    nodes::{Row, table, tally},
};
use crate::{
    args,
    failure::draw_all,
    out,
    ui::{
        diagnostic::Severity,
        format::{WHY, bytes, clock, duration, fit, plural},
    },
};

/// So many lines are made by one thread.
const TOGETHER: usize = 512;

/// Says what would run and why.
pub fn plan(args: &args::Plan) -> Done {
    let (project, settings, cache) = load_and_open(&args.pipeline)?;
    let options = args.selection.options();
    // The process ends with it: to take a large one apart takes longer than to show it.
    let plan = ManuallyDrop::new(flow_engine::plan(&project, &cache, &options)?);
    draw_warnings(&cache);
    let (checked, errors) = check(&project, &settings, &plan.nodes);
    let obstacles = flow_engine::obstacles(&project, &cache, &settings, &options, &plan, &checked)?;
    let errors = [errors, obstacles.errors].concat();
    if !errors.is_empty() {
        return Err(errors.into());
    }
    draw_all(&[checked.warnings, obstacles.warnings].concat(), Severity::Warning);
    let facts = ManuallyDrop::new(checked.facts);
    let graph = project.graph();
    // Nodes stand in the order of running, the shards of a stage together.
    let wanted: Vec<&Planned> =
        plan.nodes.iter().filter(|planned| !matches!(planned.verdict, Verdict::Unselected)).collect();
    // Behind those of their stage that are on stand the combinations that are off.
    let last = |nth: usize| {
        let stage = graph.nodes[wanted[nth].node].stage;
        wanted
            .get(nth + 1)
            .is_none_or(|next| graph.nodes[next.node].stage != stage)
            .then(|| &graph.stages[stage].off_some)
    };
    let off = |nth: usize| last(nth).into_iter().flatten();
    if args.json {
        let lines = wanted.iter().enumerate().flat_map(|(nth, planned)| {
            let off = off(nth).map(|(node, why)| Line { why: Some(why), ..Line::new(node, state(&Verdict::Off)) });
            let puts_back = obstacles.put_back.contains(&planned.node);
            std::iter::once(Line { puts_back, ..Line::of(graph, planned) }).chain(off)
        });
        return Ok(out::write(&lines.map(|line| line.json() + "\n").collect::<String>())?);
    }
    let stage = |nth: usize| graph.nodes[wanted[nth].node].stage;
    let rows = wanted
        .par_iter()
        .enumerate()
        .with_min_len(TOGETHER)
        .flat_map_iter(|(nth, planned)| {
            let first = nth == 0 || stage(nth - 1) != stage(nth);
            let notes = if first { notes(&facts, planned) } else { Vec::new() };
            let off = off(nth).map(|(node, why)| {
                let state = state(&Verdict::Off).to_owned();
                Row { state, node: node.clone(), note: why.clone(), ..Row::default() }
            });
            let mut row = Row { below: notes, ..row(graph, planned) };
            if obstacles.put_back.contains(&planned.node) {
                row.note = "what is missing of it outside of the cache is put back".into();
            }
            std::iter::once(row).chain(off)
        })
        .collect();
    out::write(&table(rows))?;
    eprintln!("{}", summary(&plan.nodes, (0..wanted.len()).flat_map(off).count()));
    Ok(())
}

/// What the stages say before a run, where something would run: as `flow run` asks them.
fn check(project: &Project, settings: &Settings, nodes: &[Planned]) -> (Checked, Vec<Diagnostic>) {
    let works = nodes.iter().any(|planned| matches!(planned.verdict, Verdict::Run { .. } | Verdict::After { .. }));
    if works { project.look(Some(settings)) } else { Default::default() }
}

/// The lines for people that a stage provides about its node, as the fact `plan_notes`: arithmetic, memory.
fn notes(facts: &[Facts], planned: &Planned) -> Vec<String> {
    let lines = facts.get(planned.node).and_then(|facts| facts.get("plan_notes")).and_then(|lines| lines.as_array());
    lines.into_iter().flatten().filter_map(|line| line.as_str().map(str::to_owned)).collect()
}

/// A line of the table.
pub fn row(graph: &Graph, planned: &Planned) -> Row {
    let node = graph.nodes[planned.node].name.clone();
    let row = Row { state: state(&planned.verdict).to_owned(), node, ..Row::default() };
    match &planned.verdict {
        Verdict::Off => {
            Row { note: graph.stages[graph.nodes[planned.node].stage].off.clone().unwrap_or_default(), ..row }
        }
        Verdict::Unselected => row,
        Verdict::Cached { cost, here: false, .. } => {
            Row { seconds: Some(*cost), note: "its files are not here, and nobody needs them".into(), ..row }
        }
        Verdict::Cached { bytes: size, cost, .. } => Row { seconds: Some(*cost), bytes: Some(*size), ..row },
        Verdict::Team { bytes: size, cost, by, time, fetch, need, .. } => Row {
            seconds: Some(*cost),
            bytes: Some(*size),
            note: given(by, *time),
            fetch: Some((*fetch, *need)),
            ..row
        },
        Verdict::Run { why, left, expected, download, .. } => {
            let mut parts = vec![fit(why, WHY)];
            parts.extend(left.as_ref().map(|left| {
                let what = left.note.clone().unwrap_or_else(|| "from what was left".into());
                format!("goes on {what} ({})", bytes(left.bytes))
            }));
            parts.extend(download.map(|download| {
                format!("downloads {}", download.bytes.map_or_else(|| "an unknown size".into(), bytes))
            }));
            parts.extend(expected.map(|of| format!("about {} (of {})", duration(of.seconds), plural(of.runs, "run"))));
            Row { note: parts.join(" · "), ..row }
        }
        Verdict::After { upstream, runs } => {
            let runs = if *runs { "runs " } else { "" };
            Row { note: format!("{runs}after {}", names(graph, upstream)), ..row }
        }
    }
}

/// Who gave a result to the team, and when.
pub fn given(by: &str, time: f64) -> String {
    format!("by {by}, {}", clock(time))
}

/// A verdict in a word.
pub fn state(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Off => "off",
        Verdict::Unselected => "unselected",
        Verdict::Cached { .. } => "cached",
        Verdict::Team { .. } => "team",
        Verdict::Run { left: Some(_), .. } => "resume",
        Verdict::Run { .. } => "run",
        Verdict::After { .. } => "later",
    }
}

/// The stages of nodes, the first few.
fn names(graph: &Graph, nodes: &[usize]) -> String {
    const SHOWN: usize = 4;
    let mut stages: Vec<&str> = nodes.iter().map(|node| graph.stages[graph.nodes[*node].stage].name.as_str()).collect();
    stages.dedup();
    let more = stages.len().saturating_sub(SHOWN);
    stages.truncate(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", stages.join(", "))
}

/// `off`: how many combinations are off where others are not.
fn summary(nodes: &[Planned], off: usize) -> String {
    let number = |word: &str| nodes.iter().filter(|planned| state(&planned.verdict) == word).count();
    let sure = nodes.iter().filter(|planned| matches!(planned.verdict, Verdict::After { runs: true, .. })).count();
    let mut parts = vec![tally(&[
        (number("run"), "to run"),
        (number("resume"), "to resume"),
        (sure, "to run after them"),
        (number("later") - sure, "after them (cached if these give what they gave)"),
        (number("cached"), "cached"),
        (number("team"), "in the team's cache"),
        (number("off") + off, "off"),
    ])];
    let (mut time, mut known, mut size, mut unknown, mut saved) = (0.0, 0, 0, 0, 0.0);
    let (mut fetch, mut perhaps) = (0, 0);
    for planned in nodes {
        match &planned.verdict {
            Verdict::Cached { cost, .. } => saved += cost,
            Verdict::Team { cost, fetch: size, need, .. } => {
                saved += cost;
                match need {
                    Need::No => {}
                    Need::Perhaps => perhaps += size,
                    Need::Yes => fetch += size,
                }
            }
            Verdict::Run { expected, download, .. } => {
                if let Some(expected) = expected {
                    (time, known) = (time + expected.seconds, known + 1);
                }
                match download.map(|download| download.bytes) {
                    Some(Some(bytes)) => size += bytes,
                    Some(None) => unknown += 1,
                    None => {}
                }
            }
            _ => {}
        }
    }
    if known > 0 {
        let all = number("run") + number("resume");
        let of = if known < all { format!(" for {known} of {all}") } else { String::new() };
        parts.push(format!("about {} of work{of}", duration(time)));
    }
    if size > 0 || unknown > 0 {
        let more = if unknown > 0 { format!("{} of unknown size", plural(unknown, "file")) } else { String::new() };
        let size = if size > 0 { bytes(size) } else { String::new() };
        let and = if size.is_empty() || more.is_empty() { "" } else { " and " };
        parts.push(format!("downloads {size}{and}{more}"));
    }
    if fetch > 0 || perhaps > 0 {
        let more = if perhaps > 0 { format!(", and perhaps {} more", bytes(perhaps)) } else { String::new() };
        parts.push(format!("fetches {} from the team{more}", bytes(fetch)));
    }
    if saved >= 1.0 {
        parts.push(format!("the cache saves {}", duration(saved)));
    }
    parts.join("; ")
}

/// A line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    node: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a Key>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    /// Seconds that it took in the mean …
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<f64>,
    /// … of so many runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_of: Option<usize>,
    /// What an interrupted run left: bytes, and what the stage says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    goes_on: Option<&'a str>,
    /// Whether it takes something from outside, and how much if that is known.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    downloads: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    download: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// Seconds that the cached result took.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<f64>,
    /// Who gave it to the team …
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<&'a str>,
    /// … when, in seconds since 1970 …
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<f64>,
    /// … how many bytes come if its files are fetched …
    #[serde(skip_serializing_if = "Option::is_none")]
    fetch: Option<u64>,
    /// … and whether they are: `yes`, `no`, `perhaps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    need: Option<&'static str>,
    /// Something of it is missing outside of the cache, and is put there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    puts_back: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    after: Vec<&'a str>,
    /// It runs then, whatever these give.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    runs: bool,
}

impl<'a> Line<'a> {
    fn new(node: &'a str, state: &'static str) -> Self {
        Self {
            node,
            state,
            key: None,
            why: None,
            expected: None,
            expected_of: None,
            left: None,
            goes_on: None,
            downloads: false,
            download: None,
            bytes: None,
            cost: None,
            by: None,
            time: None,
            fetch: None,
            need: None,
            puts_back: false,
            after: Vec::new(),
            runs: false,
        }
    }

    fn of(graph: &'a Graph, planned: &'a Planned) -> Self {
        let node = &graph.nodes[planned.node];
        let mut line = Self::new(&node.name, state(&planned.verdict));
        match &planned.verdict {
            Verdict::Off => line.why = graph.stages[node.stage].off.as_deref(),
            Verdict::Unselected => {}
            Verdict::Cached { key, bytes, cost, .. } => {
                (line.key, line.bytes, line.cost) = (Some(key), Some(*bytes), Some(*cost));
            }
            Verdict::Team { key, bytes, cost, by, time, fetch, need } => {
                (line.key, line.bytes, line.cost) = (Some(key), Some(*bytes), Some(*cost));
                (line.by, line.time, line.fetch) = (Some(by.as_str()), Some(*time), Some(*fetch));
                line.need = Some(match need {
                    Need::No => "no",
                    Need::Perhaps => "perhaps",
                    Need::Yes => "yes",
                });
            }
            Verdict::Run { key, why, left, expected, download } => {
                (line.key, line.why) = (Some(key), Some(why.as_str()));
                (line.expected, line.expected_of) = expected.map(|of| (of.seconds, of.runs)).unzip();
                line.left = left.as_ref().map(|left| left.bytes);
                line.goes_on = left.as_ref().and_then(|left| left.note.as_deref());
                (line.downloads, line.download) = (download.is_some(), download.and_then(|download| download.bytes));
            }
            Verdict::After { upstream, runs } => {
                line.runs = *runs;
                line.after = upstream.iter().map(|node| graph.nodes[*node].name.as_str()).collect();
            }
        }
        line
    }

    fn json(&self) -> String {
        serde_json::to_string(self).expect("string keys and finite numbers")
    }
}
