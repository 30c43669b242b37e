//! `${param}` in strings: resolved among the parameters themselves, then put into the stages.

use std::collections::HashMap;

use flow_core::{Diagnostic, Span, Table, Value, ValueKind, did_you_mean, holds_secret, is_secret_name};

use crate::matrix::{self, Combination};

/// `${matrix.lr}` is a value of the stage's own matrix: no parameter has this name.
const MATRIX: &str = "matrix";

/// The parameters with nothing left to resolve in them.
#[derive(Debug, Default)]
pub struct Params {
    values: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

/// What a string turned out to hold.
enum Piece<'a> {
    Text(&'a str),
    Param(&'a str),
}

impl Params {
    /// Resolves parameters that refer to each other.
    pub fn resolve(table: Table, errors: &mut Vec<Diagnostic>) -> Self {
        if let Some((_, span, _)) = table.entries.iter().find(|entry| entry.0 == MATRIX) {
            let error = Diagnostic::new("a parameter cannot be called `matrix`").at(span.clone());
            errors.push(error.hint("`${matrix.…}` is a value of a stage's own matrix"));
        }
        let index = table.entries.iter().enumerate().map(|(i, entry)| (entry.0.clone(), i)).collect();
        let values: Vec<_> = table.entries.into_iter().map(|(name, _, value)| (name, value)).collect();
        let mut resolver = Resolver { done: vec![None; values.len()], stack: Vec::new(), raw: &values, index: &index };
        for at in 0..values.len() {
            resolver.resolve(at, errors);
        }
        let done = resolver.done;
        let values = values.iter().zip(done).map(|((name, raw), done)| (name.clone(), done.unwrap_or(raw.clone())));
        Self { values: values.collect(), index }
    }

    /// Replaces every `${param}` in `value`.
    pub fn fill(&self, value: &mut Value, errors: &mut Vec<Diagnostic>) {
        self.fill_from(value, errors, &mut |path, span, errors| {
            errors.push(matrix::unknown(path, None).at(span.cloned()));
            None
        });
    }

    /// As [`Params::fill`], and every `${matrix.name}`; `${matrix}` is all of it: `lr=0.001,seed=1`.
    pub fn fill_with(&self, value: &mut Value, combination: &Combination, errors: &mut Vec<Diagnostic>) {
        self.fill_from(value, errors, &mut |path, span, errors| {
            let (name, rest) = split_path(path);
            if name.is_empty() {
                return Some(Value::new(ValueKind::String(combination.label.clone())));
            }
            match combination.values.get(name) {
                Some(value) => member(value, name, rest, span, errors),
                None => {
                    errors.push(matrix::unknown(name, Some(combination)).at(span.cloned()));
                    None
                }
            }
        });
    }

    /// As [`Params::fill`], where the matrix is wrong: what comes from it is so too, and that was said.
    pub fn fill_all_but_matrix(&self, value: &mut Value, errors: &mut Vec<Diagnostic>) {
        self.fill_from(value, errors, &mut |_, _, _| None);
    }

    fn fill_from(&self, value: &mut Value, errors: &mut Vec<Diagnostic>, of_matrix: &mut LookUp<'_>) {
        let names = || self.values.iter().map(|entry| entry.0.as_str());
        fill(value, errors, &mut |path, span, errors| {
            let (name, rest) = split_path(path);
            match self.index.get(name) {
                _ if name == MATRIX => of_matrix(rest.unwrap_or_default(), span, errors),
                Some(&at) => {
                    let found = member(&self.values[at].1, name, rest, span, errors);
                    if found.as_ref().is_some_and(|found| is_secret(path, found)) {
                        errors.push(secret(path).at(span.cloned()));
                    }
                    found
                }
                None => unknown(name, names(), span, errors),
            }
        });
    }
}

/// Whether a parameter is a secret itself, and not the variable that holds one (`$PASSWORD`).
fn is_secret(path: &str, value: &Value) -> bool {
    value.as_str().is_some_and(|text| holds_secret(text) || is_secret_name(path) && is_one(text))
}

/// Whether what stands under the name of a secret is one: not nothing, a variable that holds it, or a file that does.
fn is_one(text: &str) -> bool {
    !text.is_empty() && !text.starts_with(['$', '/', '~', '.'])
}

fn secret(path: &str) -> Diagnostic {
    let error = Diagnostic::new(format!("`{path}` looks like a secret, and what a stage is made of is recorded"));
    let variable = path.to_uppercase().replace(['-', '.'], "_");
    let hint = format!("leave it out, and name a variable of the environment that flow is started in: `${variable}`");
    error.hint(hint).secret()
}

struct Resolver<'a> {
    raw: &'a [(String, Value)],
    index: &'a HashMap<String, usize>,
    done: Vec<Option<Value>>,
    /// The parameters that are being resolved, outermost first.
    stack: Vec<usize>,
}

impl Resolver<'_> {
    /// Resolves one parameter and all that it needs; nothing if it is wrong, which is said once.
    fn resolve(&mut self, at: usize, errors: &mut Vec<Diagnostic>) -> Option<Value> {
        if let Some(done) = &self.done[at] {
            return Some(done.clone());
        }
        let raw = self.raw;
        let mut value = raw[at].1.clone();
        if let Some(from) = self.stack.iter().position(|&other| other == at) {
            let mut names: Vec<&str> = self.stack[from..].iter().map(|&i| raw[i].0.as_str()).collect();
            names.push(&raw[at].0);
            let error = Diagnostic::new(format!("parameters refer to each other in a circle: {}", names.join(" → ")));
            errors.push(error.at(value.span.clone()));
            // Every member of the circle is wrong, so that the circle is said once.
            for &member in &self.stack[from..] {
                self.done[member] = Some(Value { kind: ValueKind::Wrong, span: raw[member].1.span.clone() });
            }
            return None;
        }
        self.stack.push(at);
        fill(&mut value, errors, &mut |path, span, errors| {
            let (name, rest) = split_path(path);
            match self.index.get(name) {
                Some(&other) => {
                    let other = self.resolve(other, errors)?;
                    member(&other, name, rest, span, errors)
                }
                None => unknown(name, raw.iter().map(|entry| entry.0.as_str()), span, errors),
            }
        });
        self.stack.pop();
        Some(self.done[at].get_or_insert(value).clone())
    }
}

fn split_path(path: &str) -> (&str, Option<&str>) {
    path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)))
}

/// `${optim.lr}`: a value inside of a parameter that is a table.
fn member(
    value: &Value,
    name: &str,
    rest: Option<&str>,
    span: Option<&Span>,
    errors: &mut Vec<Diagnostic>,
) -> Option<Value> {
    let mut at = value;
    for part in rest.into_iter().flat_map(|rest| rest.split('.')) {
        let next = at.as_table().and_then(|table| table.get(part));
        let Some(next) = next else {
            if !at.is_sound() {
                return None;
            }
            let error = Diagnostic::new(format!("parameter `{name}` has no `{part}` in it")).at(span.cloned());
            errors.push(error.absent());
            return None;
        };
        at = next;
    }
    Some(at.clone())
}

fn unknown<'a>(
    name: &str,
    known: impl Iterator<Item = &'a str>,
    span: Option<&Span>,
    errors: &mut Vec<Diagnostic>,
) -> Option<Value> {
    let error = Diagnostic::new(format!("there is no parameter `{name}`")).at(span.cloned()).absent();
    let error = match did_you_mean(name, known) {
        Some(near) => error.hint(format!("did you mean `${{{near}}}`?")),
        None => error.hint(format!("add `{name} = …` under [params], or write `$${{{name}}}` to mean the text itself")),
    };
    errors.push(error);
    None
}

/// What stands for `${path}`; nothing if that is wrong, which was said.
type LookUp<'a> = dyn FnMut(&str, Option<&Span>, &mut Vec<Diagnostic>) -> Option<Value> + 'a;

fn fill(value: &mut Value, errors: &mut Vec<Diagnostic>, look_up: &mut LookUp<'_>) {
    let span = value.span.clone();
    match &mut value.kind {
        ValueKind::Array(items) => items.iter_mut().for_each(|item| fill(item, errors, look_up)),
        ValueKind::Table(table) => table.entries.iter_mut().for_each(|entry| fill(&mut entry.2, errors, look_up)),
        ValueKind::String(text) if text.contains("${") => {
            let pieces = match pieces(text) {
                Ok(pieces) => pieces,
                Err(message) => {
                    value.kind = ValueKind::Wrong;
                    return errors.push(Diagnostic::new(message).at(span));
                }
            };
            // A string that is only `${n}` takes the value's type.
            if let [Piece::Param(path)] = pieces[..] {
                let found = look_up(path, span.as_ref(), errors);
                value.kind = found.map_or(ValueKind::Wrong, |found| found.kind);
                return;
            }
            let mut filled = String::with_capacity(text.len());
            let mut sound = true;
            for piece in pieces {
                match piece {
                    Piece::Text(text) => filled.push_str(text),
                    Piece::Param(path) => match look_up(path, span.as_ref(), errors).map(|found| as_text(&found)) {
                        Some(Ok(text)) => filled.push_str(&text),
                        Some(Err(what)) => {
                            sound = false;
                            if let Some(what) = what {
                                errors.push(
                                    Diagnostic::new(format!("`${{{path}}}` is {what} and cannot stand inside a text"))
                                        .at(span.clone())
                                        .hint(format!("a string that is only \"${{{path}}}\" takes it as it is")),
                                );
                            }
                        }
                        None => sound = false,
                    },
                }
            }
            value.kind = if sound { ValueKind::String(filled) } else { ValueKind::Wrong };
        }
        _ => {}
    }
}

/// The value inside of a text; or what it is that cannot stand there, if that was not said yet.
fn as_text(value: &Value) -> Result<String, Option<&'static str>> {
    match &value.kind {
        ValueKind::String(text) => Ok(text.clone()),
        ValueKind::Integer(number) => Ok(number.to_string()),
        ValueKind::Float(number) => Ok(number.to_string()),
        ValueKind::Bool(truth) => Ok(truth.to_string()),
        ValueKind::Array(_) | ValueKind::Table(_) => Err(Some(value.type_name())),
        ValueKind::Wrong => Err(None),
    }
}

/// Splits at `${…}`; `$${` means `${`.
fn pieces(text: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            pieces.push(Piece::Text(&rest[..at - 1]));
            pieces.push(Piece::Text("${"));
            rest = &rest[at + 2..];
            continue;
        }
        if at > 0 {
            pieces.push(Piece::Text(&rest[..at]));
        }
        let end = rest[at..].find('}').ok_or_else(|| "a `${` is never closed: write `$${` to mean it".to_owned())?;
        let name = rest[at + 2..at + end].trim();
        if name.is_empty() {
            return Err("`${}` names no parameter".into());
        }
        pieces.push(Piece::Param(name));
        rest = &rest[at + end + 1..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The table `[x]` of the text after filling in its `[params]`.
    fn filled(text: &str) -> (Value, Vec<Diagnostic>) {
        let mut root = crate::syntax::parse(Path::new("p.toml"), text.into(), &mut Vec::new()).unwrap();
        let ValueKind::Table(table) = &mut root.kind else { unreachable!() };
        let params = table.remove("params").map(|value| match value.kind {
            ValueKind::Table(table) => table,
            _ => unreachable!(),
        });
        let mut errors = Vec::new();
        let params = Params::resolve(params.unwrap_or_default(), &mut errors);
        params.fill(&mut root, &mut errors);
        (root, errors)
    }

    #[test]
    fn strings_are_filled_and_types_kept() {
        let (root, errors) = filled(
            "[params]\nn = 3\nf = 0.5\ndir = 'data/${name}'\nname = 'ja'\nlist = ['${n}']\noptim = { lr = 1.5 }\n[x]\n\
             a = '${n}'\nb = '${dir}/${n}.txt'\nc = '${list}'\nd = 'echo $${HOME} ${f}'\ne = '${optim.lr}'\nf = '$n {n}'",
        );
        assert!(errors.is_empty(), "{errors:?}");
        assert!(matches!(root.nearest("x.a").kind, ValueKind::Integer(3)));
        assert_eq!(root.nearest("x.b").as_str(), Some("data/ja/3.txt"));
        assert!(matches!(root.nearest("x.c.0").kind, ValueKind::Integer(3)));
        assert_eq!(root.nearest("x.d").as_str(), Some("echo ${HOME} 0.5"));
        assert!(matches!(root.nearest("x.e").kind, ValueKind::Float(number) if number == 1.5));
        assert_eq!(root.nearest("x.f").as_str(), Some("$n {n}"));
        assert_eq!(root.nearest("x.a").span.as_ref().unwrap().line_column(), (9, 5), "the place is where it is used");
    }

    #[test]
    fn unknown_circular_and_unfit_ones_are_all_said_in_place() {
        let (_, errors) = filled(
            "[params]\na = '${b}'\nb = 'x${c}'\nc = '${a}'\nshards = [1]\nd = '${a}'\n[x]\ny = '${shrads}'\n\
             z = 'n${shards}'\nw = '${a'\nv = '${shards.no}'\nu = '${a}'",
        );
        let said: Vec<_> =
            errors.iter().map(|e| (e.span.as_ref().unwrap().line_column().0, e.message.as_str())).collect();
        assert_eq!(said.len(), 5, "{said:?}");
        assert!(said[0].1.ends_with("a → b → c → a"), "{said:?}");
        assert_eq!((said[1].0, said[1].1), (8, "there is no parameter `shrads`"));
        assert_eq!(errors[1].hints, ["did you mean `${shards}`?"]);
        assert!(said[2].0 == 9 && said[2].1.contains("a list"));
        assert!(said[3].0 == 10 && said[3].1.contains("never closed"));
        assert!(said[4].0 == 11 && said[4].1.contains("`no`"));
    }
}
