//! `flow why`

use std::fmt::Write;

use flow_core::KeyParts;
use flow_engine::{Change, Verdict, Why};
use serde_json::json;

use super::{Done, load_and_open, plan::state};
use crate::{
    args, out,
    ui::format::{bytes, duration, fit},
};

/// A value of a key is shown up to so many columns.
const VALUE: usize = 100;

/// Explains a stage.
pub fn why(args: &args::Why) -> Done {
    let (project, _, cache) = load_and_open(&args.pipeline)?;
    let whys = flow_engine::why(&project, &cache, &args.stage, args.run.as_deref())?;
    let texts: Vec<String> = whys.iter().map(if args.json { json_line } else { text }).collect();
    Ok(out::write(&texts.join(if args.json { "" } else { "\n" }))?)
}

/// For people.
fn text(why: &Why) -> String {
    let verdict = match &why.verdict {
        Verdict::Off => "off: its `when` says that it is not wanted".to_owned(),
        Verdict::Unselected => "not selected".to_owned(),
        Verdict::Cached { bytes: size, cost, .. } => {
            format!("cached: {}, took {}", bytes(*size), duration(*cost))
        }
        Verdict::Run { why: reason, resumes, .. } => {
            let verb = if *resumes { "would resume" } else { "would run" };
            // What changed stands below, each change on its line.
            if why.changes.is_empty() { format!("{verb}: {reason}") } else { verb.to_owned() }
        }
        Verdict::After { .. } => "its key is known when what it takes from has run".to_owned(),
    };
    let mut text = format!("{}\n  {verdict}\n", why.node);
    if let Some(previous) = &why.previous {
        let _ = if why.changes.is_empty() && why.key.is_some() {
            writeln!(text, "  nothing differs from run {}", previous.run)
        } else {
            writeln!(text, "  since run {} (key {}):", previous.run, previous.key.short())
        };
    }
    for change in &why.changes {
        text += &change_line(change);
    }
    if let (Some(key), Some(parts)) = (&why.key, &why.parts) {
        let _ = writeln!(text, "  key {}", key.short());
        text += &parts_lines(parts);
    }
    text
}

fn change_line(change: &Change) -> String {
    let value = |value: &Option<String>| value.as_deref().map_or("nothing".to_owned(), |value| fit(value, VALUE));
    format!("    {}: {} -> {}\n", change.what, value(&change.from), value(&change.to))
}

/// What the key is made of.
fn parts_lines(parts: &KeyParts) -> String {
    let mut text = format!("    kind {} version {}\n", parts.kind, parts.version);
    match parts.params.as_object() {
        Some(params) => {
            for (name, value) in params {
                let _ = writeln!(text, "    {name} = {}", fit(&value.to_string(), VALUE));
            }
        }
        None => {
            let _ = writeln!(text, "    params = {}", fit(&parts.params.to_string(), VALUE));
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
    let changes: Vec<_> =
        why.changes.iter().map(|change| json!({ "what": change.what, "from": change.from, "to": change.to })).collect();
    let line = json!({
        "node": why.node,
        "state": state(&why.verdict),
        "key": why.key,
        "parts": why.parts,
        "previous": why.previous.as_ref().map(|previous| json!({ "run": previous.run, "key": previous.key })),
        "changes": changes,
    });
    format!("{line}\n")
}
