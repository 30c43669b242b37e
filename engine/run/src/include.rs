//! A pipeline file laid over the files that it includes.

use std::path::{Path, PathBuf};

use flow_core::{Diagnostic, Table, Value, ValueKind};
use std::collections::HashMap;

use crate::syntax;

/// Reads a file and lays it over what it includes, and these over what they include.
///
/// # Errors
/// A file cannot be read or is no TOML, an `include` is no list of names or leads back to its own file: all of them. What
/// is wrong with single values goes to `errors`.
pub fn read(file: &Path, errors: &mut Vec<Diagnostic>) -> Result<Table, Vec<Diagnostic>> {
    let mut fatal = Vec::new();
    let table = Reader { above: Vec::new(), errors, fatal: &mut fatal }.read(file);
    match table {
        Some(table) if fatal.is_empty() => Ok(table),
        _ => Err(fatal),
    }
}

struct Reader<'a> {
    /// The files that include the one that is being read.
    above: Vec<PathBuf>,
    errors: &'a mut Vec<Diagnostic>,
    fatal: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    fn read(&mut self, file: &Path) -> Option<Table> {
        let root = match syntax::read_lenient(file, self.errors) {
            Ok(root) => root,
            Err(wrong) => {
                self.fatal.extend(wrong);
                return None;
            }
        };
        let ValueKind::Table(mut table) = root.kind else { unreachable!("a TOML document is a table") };
        let Some(include) = table.remove("include") else { return Some(table) };
        self.above.push(file.canonicalize().unwrap_or_else(|_| file.to_owned()));
        let mut base = Table::default();
        for include in match include.kind {
            ValueKind::Array(items) => items,
            _ => vec![include],
        } {
            if let Some(table) = self.included(&include, file) {
                merge(&mut base, table);
            }
        }
        self.above.pop();
        merge(&mut base, table);
        Some(base)
    }

    fn included(&mut self, include: &Value, from: &Path) -> Option<Table> {
        let place = include.span.clone();
        let Some(name) = include.as_str() else {
            let error = Diagnostic::new(format!("`include` holds the names of files, not {}", include.type_name()));
            self.fatal.push(error.at(place).hint("include = [\"base.toml\"]"));
            return None;
        };
        let path = from.parent().unwrap_or(Path::new("")).join(name);
        let known = path.canonicalize().unwrap_or_else(|_| path.clone());
        if let Some(at) = self.above.iter().position(|above| *above == known) {
            let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let circle: Vec<String> = self.above[at..].iter().chain([&known]).map(name).collect();
            let error = Diagnostic::new(format!("files include each other in a circle: {}", circle.join(" → ")));
            self.fatal.push(error.at(place).hint("remove one of these includes"));
            return None;
        }
        let before = self.fatal.len();
        let table = self.read(&path);
        // That the file cannot be read is wrong here; what is wrong in it has its own place.
        for error in &mut self.fatal[before..] {
            *error = error.clone().at(place.clone());
        }
        table
    }
}

/// Lays `over` over `base`: tables merge, everything else is replaced; a stage that names its `kind` is replaced whole.
pub fn merge(base: &mut Table, over: Table) {
    merge_at(base, over, &mut Vec::new());
}

/// `path`: the keys that lead here.
fn merge_at(base: &mut Table, over: Table, path: &mut Vec<String>) {
    if base.entries.is_empty() {
        *base = over;
        return;
    }
    let index: HashMap<String, usize> = base.entries.iter().enumerate().map(|(i, e)| (e.0.clone(), i)).collect();
    for (key, span, value) in over.entries {
        let Some(&at) = index.get(&key) else {
            base.entries.push((key, span, value));
            continue;
        };
        let under = &mut base.entries[at];
        match (&mut under.2.kind, value.kind) {
            (ValueKind::Table(inner), ValueKind::Table(over)) if !replaces(path, &over) => {
                path.push(key);
                merge_at(inner, over, path);
                path.pop();
            }
            (_, kind) => (under.1, under.2) = (span, Value { kind, span: value.span }),
        }
    }
}

/// Whether a table at `path` + one key is a stage that names its kind (under `stage`, or under a profile's).
fn replaces(path: &[String], over: &Table) -> bool {
    let is_stage = match path {
        [stage] => stage == "stage",
        [profile, _, stage] => profile == "profile" && stage == "stage",
        _ => false,
    };
    is_stage && over.get("kind").is_some()
}
