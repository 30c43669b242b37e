//! `flow plan`

use flow_core::{Facts, Key};
use flow_engine::{Graph, Planned, Project, Verdict};
use serde::Serialize;

use super::{
    Done, load_and_open,
    nodes::{Row, table, tally},
};
use crate::{
    args,
    failure::{Failure, draw_all},
    out,
    ui::{
        diagnostic::Severity,
        format::{WHY, duration, fit},
    },
};

/// Says what would run and why.
pub fn plan(args: &args::Plan) -> Done {
    let (project, _, cache) = load_and_open(&args.pipeline)?;
    let options = args.selection.options();
    let plan = flow_engine::plan(&project, &cache, &options)?;
    let facts = check(&project, &plan.nodes)?;
    let graph = project.graph();
    // Nodes stand in the order of running, the shards of a stage together.
    let wanted: Vec<&Planned> =
        plan.nodes.iter().filter(|planned| !matches!(planned.verdict, Verdict::Unselected)).collect();
    if args.json {
        let lines: String = wanted.iter().map(|planned| Line::of(graph, planned).json() + "\n").collect();
        return Ok(out::write(&lines)?);
    }
    let mut noted = vec![false; graph.stages.len()];
    let rows = wanted
        .iter()
        .map(|planned| {
            let stage = graph.nodes[planned.node].stage;
            let notes = if std::mem::replace(&mut noted[stage], true) { Vec::new() } else { notes(&facts, planned) };
            Row { below: notes, ..row(graph, planned) }
        })
        .collect();
    out::write(&table(rows))?;
    eprintln!("{}", summary(&plan.nodes));
    Ok(())
}

/// What the stages say before a run, where something would run: as `flow run` asks them.
fn check(project: &Project, nodes: &[Planned]) -> Result<Vec<Facts>, Failure> {
    if !nodes.iter().any(|planned| matches!(planned.verdict, Verdict::Run { .. } | Verdict::After { .. })) {
        return Ok(Vec::new());
    }
    let checked = project.check()?;
    draw_all(&checked.warnings, Severity::Warning);
    Ok(checked.facts)
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
        Verdict::Cached { bytes, cost, .. } => Row { seconds: Some(*cost), bytes: Some(*bytes), ..row },
        Verdict::Run { why, expected, .. } => {
            let last_time = expected.map_or_else(String::new, |seconds| format!(" (last time {})", duration(seconds)));
            Row { note: format!("{}{last_time}", fit(why, WHY)), ..row }
        }
        Verdict::After { upstream } => Row { note: format!("after {}", names(graph, upstream)), ..row },
    }
}

/// A verdict in a word.
pub fn state(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Off => "off",
        Verdict::Unselected => "unselected",
        Verdict::Cached { .. } => "cached",
        Verdict::Run { resumes: true, .. } => "resume",
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

fn summary(nodes: &[Planned]) -> String {
    let number = |word: &str| nodes.iter().filter(|planned| state(&planned.verdict) == word).count();
    let saved: f64 =
        nodes.iter().map(|planned| if let Verdict::Cached { cost, .. } = planned.verdict { cost } else { 0.0 }).sum();
    let counted = tally(&[
        (number("run"), "to run"),
        (number("resume"), "to resume"),
        (number("later"), "after them (cached if these give what they gave)"),
        (number("cached"), "cached"),
        (number("off"), "off"),
    ]);
    if saved >= 1.0 { format!("{counted}; the cache saves {}", duration(saved)) } else { counted }
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
    /// Seconds that the last run of this node took.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// Seconds that the cached result took.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    after: Vec<&'a str>,
}

impl<'a> Line<'a> {
    fn of(graph: &'a Graph, planned: &'a Planned) -> Self {
        let mut line = Self {
            node: &graph.nodes[planned.node].name,
            state: state(&planned.verdict),
            key: None,
            why: None,
            expected: None,
            bytes: None,
            cost: None,
            after: Vec::new(),
        };
        match &planned.verdict {
            Verdict::Off | Verdict::Unselected => {}
            Verdict::Cached { key, bytes, cost } => {
                (line.key, line.bytes, line.cost) = (Some(key), Some(*bytes), Some(*cost));
            }
            Verdict::Run { key, why, expected, .. } => {
                (line.key, line.why, line.expected) = (Some(key), Some(why.as_str()), *expected);
            }
            Verdict::After { upstream } => {
                line.after = upstream.iter().map(|node| graph.nodes[*node].name.as_str()).collect();
            }
        }
        line
    }

    fn json(&self) -> String {
        serde_json::to_string(self).expect("string keys and finite numbers")
    }
}
