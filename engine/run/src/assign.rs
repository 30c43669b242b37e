//! Values from outside of the file: `--set path=value`, and `FLOW_PARAM_<NAME>` in the environment.

use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};

use flow_core::{Diagnostic, Source, Span, Table, Value, ValueKind, did_you_mean};

use crate::syntax;

/// How variables that set parameters begin.
pub const PREFIX: &str = "FLOW_PARAM_";

/// `FLOW_PARAM_<NAME>` sets the parameter of that name. Others may be for other pipelines, and are only told.
pub fn apply_env(
    root: &mut Table,
    env: &[(String, String)],
    errors: &mut Vec<Diagnostic>,
    warnings: &mut Vec<Diagnostic>,
) {
    let mut set: BTreeMap<&str, &str> =
        env.iter().filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?, value.as_str()))).collect();
    if set.is_empty() {
        return;
    }
    let params = match root.get_mut("params") {
        Some(Value { kind: ValueKind::Table(params), .. }) => params.entries.as_mut_slice(),
        _ => &mut [],
    };
    let mut variables = Vec::new();
    for (name, _, value) in params {
        let variable = name.to_uppercase().replace('-', "_");
        variables.push(format!("{PREFIX}{variable}"));
        if let Some(text) = set.remove(variable.as_str()) {
            let prefix = format!("{PREFIX}{variable}=");
            let source = source("environment", &format!("{prefix}{text}"));
            *value = syntax::parse_assigned(&source, prefix.len(), errors);
        }
    }
    for name in set.into_keys().map(|name| format!("{PREFIX}{name}")) {
        let warning = Diagnostic::new(format!("`{name}` is set, and the pipeline has no such parameter"));
        warnings.push(match did_you_mean(&name, variables.iter().map(String::as_str)) {
            Some(near) => warning.hint(format!("did you mean `{near}`?")),
            None if variables.is_empty() => warning.hint("it has none: [params] holds them"),
            None => warning.hint(format!("it has: {}", variables.join(", "))),
        });
    }
}

fn source(label: &str, text: &str) -> Arc<Source> {
    Arc::new(Source { path: Path::new(label).to_owned(), text: text.to_owned() })
}

/// Lays one `--set` over the file.
///
/// # Errors
/// It is no assignment, or to something that is not there. What is wrong with its value goes to `errors`.
pub fn apply_set(root: &mut Table, assignment: &str, errors: &mut Vec<Diagnostic>) -> Result<(), Diagnostic> {
    let source = source("--set", assignment);
    let place = |range: Range<usize>| Some(Span::new(&source, range));
    let Some((path, _)) = assignment.split_once('=') else {
        return Err(Diagnostic::new("there is no `=`")
            .at(place(0..assignment.len()))
            .hint("write `--set params.shards={0..2}` or `--set stage.train.max_steps=300`"));
    };
    // Each part of the path, with its place.
    let mut at = 0;
    let mut parts: Vec<(&str, Range<usize>)> = Vec::new();
    for part in path.split('.') {
        let trimmed = part.trim();
        let start = at + (part.len() - part.trim_start().len());
        parts.push((trimmed, start..start + trimmed.len()));
        at += part.len() + 1;
    }
    let names: Vec<&str> = parts.iter().map(|part| part.0).collect();
    if let Some((nth, error)) = wrong_path(root, &names) {
        return Err(error.at(place(parts[nth].1.clone())));
    }
    let value = syntax::parse_assigned(&source, path.len() + 1, errors);

    let ((last, last_at), above) = parts.split_last().expect("a path has a part");
    let mut table = root;
    for (part, range) in above {
        if table.get(part).is_none() {
            let span = place(range.clone());
            let empty = Value { kind: ValueKind::Table(Table::default()), span: span.clone() };
            table.insert(*part, span, empty);
        }
        match table.get_mut(part) {
            Some(Value { kind: ValueKind::Table(inner), .. }) => table = inner,
            other => {
                let what = other.map_or("nothing", |value| value.type_name());
                let error = Diagnostic::new(format!("`{part}` is {what}, not a table: it has no `{last}`"));
                return Err(error.at(place(range.clone())));
            }
        }
    }
    table.insert(*last, place(last_at.clone()), value);
    Ok(())
}

/// Which part of the path is wrong, if it leads to nothing that may be set.
fn wrong_path(root: &Table, path: &[&str]) -> Option<(usize, Diagnostic)> {
    let names = |key: &str| -> Vec<&str> {
        let table = root.get(key).and_then(Value::as_table);
        table.map_or_else(Vec::new, |table| table.entries.iter().map(|entry| entry.0.as_str()).collect())
    };
    let (what, known) = match path {
        ["params", _, ..] => ("parameter", names("params")),
        ["stage", _, _, ..] => ("stage", names("stage")),
        ["pipeline", "name"] => return None,
        _ => {
            let error = Diagnostic::new(format!("`{}` cannot be set", path.join("."))).absent();
            return Some((
                0,
                match path {
                    [name] if names("params").contains(name) => error.hint(format!("write `params.{name}=…`")),
                    [stage, key, ..] if names("stage").contains(stage) => {
                        error.hint(format!("write `stage.{stage}.{key}=…`"))
                    }
                    ["stage", name] => error.hint(format!("name a key of the stage: `stage.{name}.KEY=…`")),
                    _ => match did_you_mean(path[0], ["params", "stage", "pipeline"]) {
                        Some(near) if near != path[0] => error.hint(format!("did you mean `{near}`?")),
                        _ => error.hint("begin with `params.NAME` or `stage.NAME.KEY`"),
                    },
                },
            ));
        }
    };
    if known.contains(&path[1]) {
        return None;
    }
    let error = Diagnostic::new(format!("there is no {what} `{}`", path[1])).absent();
    Some((
        1,
        match did_you_mean(path[1], known.iter().copied()) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None if known.is_empty() => error.hint(format!("the file has no {what}s")),
            None => error.hint(format!("the file has: {}", known.join(", "))),
        },
    ))
}
