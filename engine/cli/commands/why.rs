//! `flow why`

use std::fmt::Write;

use flow_core::{KeyParts, masked_json};
use flow_engine::{Cause, Change, Verdict, Why};
use serde_json::{Value as Json, json};

use super::{
    Done, draw_warnings, load_and_open,
    nodes::comes,
    plan::{given, state},
};
use crate::{
    args, out,
    ui::format::{bytes, duration, fit},
};

/// A value of a key is shown up to so many characters.
const VALUE: usize = 100;
/// So many inputs of one node that changed are told one by one.
const INPUTS: usize = 8;
/// So many nodes of a stage are told one by one.
const NODES: usize = 8;

/// Explains a stage.
pub fn why(args: &args::Why) -> Done {
    let (project, _, cache) = load_and_open(&args.pipeline)?;
    let whys = flow_engine::why(&project, &cache, &args.stage, args.run.as_deref())?;
    draw_warnings(&cache);
    let graph = project.graph();
    let some = graph.stage(&args.stage).map_or(&[][..], |stage| &graph.stages[stage].off_some);
    if args.json {
        let off = some.iter().map(|(node, why)| format!("{}\n", json!({ "node": node, "state": "off", "why": why })));
        let lines: String = whys.iter().map(json_line).chain(off).collect();
        return Ok(out::write(&lines)?);
    }
    // Of many shards, those that are as they were say nothing.
    let many = whys.len() > 1;
    let (quiet, told): (Vec<&Why>, Vec<&Why>) = whys.iter().partition(|why| many && is_quiet(why));
    let mut texts = Vec::new();
    if let (Some(first), Some(last)) = (quiet.first(), quiet.last()) {
        let names = if quiet.len() == 1 { first.node.clone() } else { format!("{} to {}", first.node, last.node) };
        texts.push(format!("{names}\n  {} cached, as they were\n", quiet.len()));
    }
    let off = graph.select(&args.stage).ok().and_then(|nodes| graph.stage_of(*nodes.first()?).off.as_deref());
    texts.extend(told.iter().take(NODES).map(|why| text(why, off.unwrap_or_default())));
    if told.len() > NODES {
        texts.push(format!("and {} more: name one, as {}\n", told.len() - NODES, told[NODES].node));
    }
    texts.extend(some.iter().map(|(node, why)| format!("{node}\n  off: {why}\n")));
    Ok(out::write(&texts.join("\n"))?)
}

fn is_quiet(why: &Why) -> bool {
    matches!(why.verdict, Verdict::Cached { .. }) && why.changes.is_empty()
}

/// For people. `off`: why its stage is not part of a run.
fn text(why: &Why, off: &str) -> String {
    let verdict = match &why.verdict {
        Verdict::Off => format!("off: {off}"),
        Verdict::Unselected => "not selected".to_owned(),
        Verdict::Cached { here: false, cost, .. } => {
            format!("known, took {}; its files are not here, and nobody needs them", duration(*cost))
        }
        Verdict::Cached { bytes: size, cost, .. } => {
            format!("cached: {}, took {}", bytes(*size), duration(*cost))
        }
        Verdict::Run { why: reason, left, .. } => {
            let verb = if left.is_some() { "would resume" } else { "would run" };
            // What changed stands below, each change on its line.
            if why.changes.is_empty() { format!("{verb}: {reason}") } else { verb.to_owned() }
        }
        Verdict::Team { bytes: size, cost, by, time, fetch, need, .. } => {
            let team = format!("{} · {}", given(by, *time), comes(*fetch, *need));
            format!("in the team's cache: {}, took {}, {team}", bytes(*size), duration(*cost))
        }
        Verdict::After { .. } if why.key.is_some() => {
            "known, and its files are needed if what takes from it must run, which depends on:".to_owned()
        }
        Verdict::After { .. } => "its key is known when what it takes from has run:".to_owned(),
    };
    let mut text = format!("{}\n  {verdict}\n", why.node);
    for cause in why.waits_for.iter().take(INPUTS) {
        let _ = writeln!(text, "    {} would run{}", cause.of, note(cause));
        below(cause, 6, &mut text);
    }
    more(why.waits_for.len(), 4, &mut text);
    if let Some(previous) = &why.previous {
        let _ = if why.key.is_none() {
            writeln!(text, "  in run {} its key was {}", previous.run, previous.key.short())
        } else if why.changes.is_empty() && why.comparable {
            writeln!(text, "  nothing differs from run {}", previous.run)
        } else {
            let unknown = if why.comparable { "" } else { " what it was made from is not in the cache any more" };
            writeln!(text, "  since run {} (key {}):{unknown}", previous.run, previous.key.short())
        };
    }
    change_lines(&why.changes, 4, &mut text);
    if let (Some(key), Some(parts)) = (&why.key, &why.parts) {
        let _ = writeln!(text, "  key {}", key.short());
        text += &parts_lines(parts);
    }
    text
}

/// Each change on a line, and where it comes from below it.
fn change_lines(changes: &[Change], indent: usize, text: &mut String) {
    let inputs = |change: &&Change| change.input.is_some();
    for change in changes.iter().filter(|change| !inputs(change)).chain(changes.iter().filter(inputs).take(INPUTS)) {
        let of = match &change.cause {
            Some(cause @ Cause { of, is_path: true, .. }) => format!(", `{of}` changed{}", note(cause)),
            Some(cause) => format!(", the result of {}{}", cause.of, note(cause)),
            None => String::new(),
        };
        let _ = writeln!(text, "{:indent$}{}{of}", "", change.line(VALUE));
        if let Some(cause) = &change.cause {
            below(cause, indent + 2, text);
        }
    }
    more(changes.iter().filter(inputs).count(), indent, text);
}

fn below(cause: &Cause, indent: usize, text: &mut String) {
    change_lines(&cause.changes, indent, text);
}

fn note(cause: &Cause) -> String {
    cause.note.as_ref().map_or_else(String::new, |note| format!(": {note}"))
}

fn more(count: usize, indent: usize, text: &mut String) {
    if count > INPUTS {
        let _ = writeln!(text, "{:indent$}and {} more", "", count - INPUTS);
    }
}

/// What the key is made of.
fn parts_lines(parts: &KeyParts) -> String {
    let mut text = format!("    kind {} version {}\n", parts.kind, parts.version);
    let params = masked_json(&parts.params);
    match params.as_object() {
        Some(params) => {
            for (name, value) in params {
                let _ = writeln!(text, "    {name} = {}", fit(&value.to_string(), VALUE));
            }
        }
        None => {
            let _ = writeln!(text, "    params = {}", fit(&params.to_string(), VALUE));
        }
    }
    for (port, digests) in &parts.inputs {
        let shown: Vec<String> = digests.iter().take(4).map(flow_core::Digest::short).collect();
        let more = if digests.len() > 4 { format!(" and {} more", digests.len() - 4) } else { String::new() };
        let _ = writeln!(text, "    input {port}: {}{more}", shown.join(", "));
    }
    text
}

fn json_line(why: &Why) -> String {
    let line = json!({
        "node": why.node,
        "state": state(&why.verdict),
        "key": why.key,
        "parts": why.parts.as_ref().map(|parts| KeyParts { params: masked_json(&parts.params), ..parts.clone() }),
        "previous": why.previous.as_ref().map(|previous| json!({ "run": previous.run, "key": previous.key })),
        "changes": json_changes(&why.changes),
        "waits_for": why.waits_for.iter().map(json_cause).collect::<Vec<_>>(),
    });
    format!("{line}\n")
}

fn json_changes(changes: &[Change]) -> Json {
    let one = |change: &Change| {
        let cause = change.cause.as_ref().map(json_cause);
        json!({ "what": change.what, "from": change.from, "to": change.to, "cause": cause })
    };
    changes.iter().map(one).collect()
}

fn json_cause(cause: &Cause) -> Json {
    let of = if cause.is_path { "path" } else { "node" };
    json!({ of: cause.of, "note": cause.note, "changes": json_changes(&cause.changes) })
}
