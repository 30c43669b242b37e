//! `matrix`: one stage over a table of values.
//!
//! `matrix = { lr = [1e-3, 3e-4], seed = [1, 2] }` is every combination, less those that `exclude` names;
//! `matrix = [{ lr = 1e-3, wd = 0 }, …]` is the ones that are listed.

use std::collections::HashSet;

use flow_core::{Diagnostic, Span, Table, Value, ValueKind, did_you_mean, expand_braces};

/// More combinations than this are a mistake.
const MOST: usize = 10_000;

/// One of the combinations of a stage's matrix.
#[derive(Clone, Debug, Default)]
pub struct Combination {
    /// `lr=0.001,seed=1`
    pub label: String,
    /// The values, by their names.
    pub values: Table,
}

/// The combinations of a matrix. What is wrong with it goes to `errors`; to `idle` that an `exclude` meets nothing, by
/// which no other combinations are meant.
pub fn combinations(matrix: Value, errors: &mut Vec<Diagnostic>, idle: &mut Vec<Diagnostic>) -> Vec<Combination> {
    let before = errors.len();
    let span = matrix.span.clone();
    let tables = match matrix.kind {
        ValueKind::Table(table) => product(table, span.as_ref(), errors, idle),
        ValueKind::Array(items) => listed(items, errors),
        ValueKind::Wrong => return Vec::new(),
        _ => {
            let error = Diagnostic::new(format!("`matrix` is a table of lists, not {}", matrix.type_name()));
            errors.push(error.at(span.clone()).hint("matrix = { lr = [1e-3, 3e-4], seed = [1, 2] }"));
            return Vec::new();
        }
    };
    let mut seen = HashSet::new();
    let mut combinations = Vec::with_capacity(tables.len());
    for (at, values) in tables {
        let label = values.entries.iter().map(|(key, _, value)| format!("{key}={}", word(value)));
        let label = label.collect::<Vec<_>>().join(",");
        if seen.insert(label.clone()) {
            combinations.push(Combination { label, values });
        } else {
            errors.push(Diagnostic::new(format!("the combination {label} stands there twice")).at(at));
        }
    }
    if combinations.is_empty() && errors.len() == before {
        let error = Diagnostic::new("`matrix` has no combination").at(span);
        errors.push(error.hint("give every name at least one value, or leave `matrix` away"));
    }
    combinations
}

/// A combination, and where it stands.
type Placed = (Option<Span>, Table);

/// Every combination of a table of lists; the last name varies fastest.
fn product(table: Table, span: Option<&Span>, errors: &mut Vec<Diagnostic>, idle: &mut Vec<Diagnostic>) -> Vec<Placed> {
    let mut exclude = None;
    let mut all = vec![(span.cloned(), Table::default())];
    for (key, key_span, value) in table.entries {
        if key == "exclude" {
            exclude = Some(value);
            continue;
        }
        name_error(&key, key_span.as_ref(), errors);
        let values = values(value, errors);
        if all.len().saturating_mul(values.len()) > MOST {
            errors.push(Diagnostic::new(format!("`matrix` has more than {MOST} combinations")).at(span.cloned()));
            return Vec::new();
        }
        let with = |(at, table): &Placed| {
            let mut made = Vec::with_capacity(values.len());
            for value in &values {
                let mut table = table.clone();
                table.insert(key.clone(), key_span.clone(), value.clone());
                made.push((at.clone(), table));
            }
            made
        };
        all = all.iter().flat_map(with).collect();
    }
    if all.len() == 1 && all[0].1.entries.is_empty() {
        all.clear();
    }
    let exclude = exclude.map(|exclude| match exclude.kind {
        ValueKind::Array(items) => items,
        _ => vec![exclude],
    });
    for item in exclude.into_iter().flatten() {
        let ValueKind::Table(table) = &item.kind else {
            let error = Diagnostic::new(format!("`exclude` holds tables, not {}", item.type_name())).at(item.span);
            errors.push(error.hint("exclude = [{ lr = 1e-3, seed = 2 }]"));
            continue;
        };
        let before = all.len();
        all.retain(|(_, values)| {
            !table.entries.iter().all(|(key, _, value)| values.get(key).is_some_and(|have| word(have) == word(value)))
        });
        if all.len() == before && before > 0 {
            idle.push(Diagnostic::new("`exclude` names no combination of the matrix").at(item.span));
        }
    }
    all
}

/// The combinations as they are listed: all of them have the same names.
fn listed(items: Vec<Value>, errors: &mut Vec<Diagnostic>) -> Vec<Placed> {
    let mut all: Vec<Placed> = Vec::new();
    for item in items {
        let span = item.span.clone();
        let ValueKind::Table(table) = item.kind else {
            let error = Diagnostic::new(format!("a list in `matrix` holds tables, not {}", item.type_name())).at(span);
            errors.push(error.hint("matrix = [{ lr = 1e-3, wd = 0 }, …]"));
            continue;
        };
        for (key, key_span, _) in &table.entries {
            name_error(key, key_span.as_ref(), errors);
        }
        if let Some((_, first)) = all.first() {
            let lacks = |of: &Table, other: &Table| {
                other.entries.iter().find(|entry| of.get(&entry.0).is_none()).map(|entry| entry.0.clone())
            };
            if let Some(key) = lacks(&table, first).or_else(|| lacks(first, &table)) {
                let error = Diagnostic::new(format!("`{key}` is not in every combination")).at(span.clone());
                errors.push(error.hint("all tables of a matrix have the same names"));
            }
        }
        all.push((span, table));
    }
    all
}

/// The values of a name: a list, the texts that braces stand for, or one.
fn values(value: Value, errors: &mut Vec<Diagnostic>) -> Vec<Value> {
    let span = value.span.clone();
    match value.kind {
        ValueKind::Array(items) => items,
        ValueKind::String(text) if text.contains('{') => match expand_braces(&text) {
            Ok(texts) => texts.into_iter().map(|t| Value { kind: ValueKind::String(t), span: span.clone() }).collect(),
            Err(why) => {
                errors.push(Diagnostic::new(why).at(span));
                Vec::new()
            }
        },
        _ => vec![value],
    }
}

fn name_error(key: &str, span: Option<&Span>, errors: &mut Vec<Diagnostic>) {
    if key.is_empty() || !key.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-') {
        let error = Diagnostic::new(format!("`{key}` cannot be a name in a matrix")).at(span.cloned());
        errors.push(error.hint("letters, digits, `_` and `-`"));
    }
}

/// A value in the name of a node. What is no short word is known by a hash, which tells it from others.
pub fn word(value: &Value) -> String {
    let text = match &value.kind {
        ValueKind::String(text) => text.clone(),
        ValueKind::Integer(number) => number.to_string(),
        ValueKind::Float(number) => number.to_string(),
        ValueKind::Bool(truth) => truth.to_string(),
        kind => spell(kind),
    };
    let plain = |c: char| c.is_alphanumeric() || "._+-".contains(c);
    if !text.is_empty() && text.len() <= 40 && text.chars().all(plain) {
        return text;
    }
    let hash = blake3::hash(text.as_bytes()).to_hex();
    // The last word tells a person most: of a path or a URL it is the file.
    let last =
        text.rsplit(|c| !plain(c)).find(|word| !word.is_empty()).filter(|_| !matches!(value.kind, ValueKind::Table(_)));
    let last: String = last.unwrap_or_default().chars().take(24).collect();
    format!("{last}~{}", &hash[..6])
}

fn spell(kind: &ValueKind) -> String {
    match kind {
        ValueKind::Array(items) => {
            format!("[{}]", items.iter().map(|item| spell(&item.kind)).collect::<Vec<_>>().join(","))
        }
        ValueKind::Table(table) => {
            let mut entries: Vec<_> = table.entries.iter().map(|(k, _, v)| format!("{k}={}", spell(&v.kind))).collect();
            entries.sort_unstable();
            format!("{{{}}}", entries.join(","))
        }
        other => format!("{other:?}"),
    }
}

/// Whether a word of a selection (`lr=1e-3`, `2`) means a word of a node's name (`lr=0.001`).
pub fn means(asked: &str, have: &str) -> bool {
    let split = |word: &str| word.split_once('=').map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()));
    match (split(asked), split(have)) {
        (Some((key, asked)), Some((other, have))) => {
            let same = || Some(asked.parse::<f64>().ok()? == have.parse::<f64>().ok()?);
            key == other && (asked == have || same().unwrap_or(false))
        }
        _ => asked.trim() == have,
    }
}

/// What `${matrix…}` stands for in a stage without a matrix, or with another.
pub fn unknown(name: &str, combination: Option<&Combination>) -> Diagnostic {
    let error = Diagnostic::new(format!("there is no `{name}` in the stage's matrix"));
    let Some(combination) = combination else {
        return error.hint(format!("add it: matrix = {{ {name} = [ … ] }}"));
    };
    let names: Vec<&str> = combination.values.entries.iter().map(|entry| entry.0.as_str()).collect();
    match did_you_mean(name, names.iter().copied()) {
        Some(near) => error.hint(format!("did you mean `${{matrix.{near}}}`?")),
        None => error.hint(format!("it has: {}", names.join(", "))),
    }
}

/// What was said of several combinations or shards of one stage, each said once: with the ones that it holds for, if
/// not for all `total`.
pub fn gather(said: Vec<(&str, Diagnostic)>, total: usize) -> Vec<Diagnostic> {
    let mut gathered: Vec<(Diagnostic, Vec<&str>)> = Vec::new();
    for (of, error) in said {
        match gathered.iter_mut().find(|(other, _)| *other == error) {
            Some((_, names)) if names.last() == Some(&of) => {}
            Some((_, names)) => names.push(of),
            None => gathered.push((error, vec![of])),
        }
    }
    let named = |(error, names): (Diagnostic, Vec<&str>)| {
        if names.len() == total {
            return error;
        }
        let more = if names.len() > 3 { format!(" and {} more", names.len() - 3) } else { String::new() };
        let names: Vec<String> = names.iter().take(3).map(|name| format!("`{name}`")).collect();
        error.cause(format!("this is about {}{more}", names.join(", ")))
    };
    gathered.into_iter().map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn labels(text: &str) -> (Vec<String>, Vec<String>) {
        let root = crate::syntax::parse(Path::new("p.toml"), text.into(), &mut Vec::new()).unwrap();
        let mut errors = Vec::new();
        let mut idle = Vec::new();
        let made = combinations(root.as_table().unwrap().get("matrix").unwrap().clone(), &mut errors, &mut idle);
        errors.append(&mut idle);
        (made.into_iter().map(|one| one.label).collect(), errors.into_iter().map(|error| error.message).collect())
    }

    #[test]
    fn every_combination_is_made_but_the_excluded() {
        let (made, errors) =
            labels("matrix = { lr = [1e-3, 3e-4], seed = [1, 2], exclude = [{ lr = 0.001, seed = 2 }] }");
        assert_eq!((made.join(" ").as_str(), errors.len()), ("lr=0.001,seed=1 lr=0.0003,seed=1 lr=0.0003,seed=2", 0));
        let (made, errors) = labels("matrix = [{ lr = 1, wd = 0 }, { lr = 2, wd = 0.5 }]");
        assert_eq!((made.join(" ").as_str(), errors.len()), ("lr=1,wd=0 lr=2,wd=0.5", 0));
        let (made, _) = labels("matrix = { s = '{a,b}', n = 3, on = [true] }");
        assert_eq!(made.join(" "), "s=a,n=3,on=true s=b,n=3,on=true");
        let (made, errors) =
            labels("matrix = { url = ['https://x/a.gz', 'https://y/a.gz'], t = [{ a = 1 }, { a = 2 }] }");
        assert!(made.len() == 4 && errors.is_empty() && made[0].starts_with("url=a.gz~"), "{made:?} {errors:?}");
    }

    #[test]
    fn what_is_no_matrix_is_said() {
        for (text, said) in [
            ("matrix = 3", "is a table of lists"),
            ("matrix = {}", "has no combination"),
            ("matrix = { a = [] }", "has no combination"),
            ("matrix = { a = [1, 1] }", "stands there twice"),
            ("matrix = [{ a = 1 }, { b = 1 }]", "`a` is not in every combination"),
            ("matrix = [1]", "holds tables"),
            ("matrix = { a = [1], exclude = [{ a = 2 }] }", "names no combination"),
            ("matrix = { 'a b' = [1] }", "cannot be a name"),
            ("matrix = { a = '{0..999}', b = '{0..999}' }", "more than 10000"),
        ] {
            let (_, errors) = labels(text);
            assert!(errors.iter().any(|error| error.contains(said)), "{text}: {errors:?}");
        }
    }

    #[test]
    fn a_selection_knows_numbers() {
        assert!(means("lr=1e-3", "lr=0.001") && means("lr=0.001", "lr=0.001") && means("2", "2"));
        assert!(!means("lr=1e-4", "lr=0.001") && !means("l=0.001", "lr=0.001") && !means("a", "b"));
    }
}
