//! A pipeline file laid over the files that it includes.

use std::path::{Path, PathBuf};

use flow_core::{Diagnostic, Table, Value, ValueKind};
use std::collections::HashMap;

use crate::syntax;

/// A file laid over what it includes.
#[derive(Debug)]
pub struct Whole {
    /// All of them together.
    pub table: Table,
    /// Every file could be read. If not, what is nowhere may stand in one that could not.
    pub complete: bool,
}

/// Reads a file and lays it over what it includes, and these over what they include. What is wrong with single values
/// goes to `errors`, and so does what is wrong with an `include`: it is no list of names, it leads back to its own file,
/// what it names cannot be read or is no TOML.
///
/// # Errors
/// The file itself cannot be read or is no TOML: all that is wrong.
pub fn read(file: &Path, errors: &mut Vec<Diagnostic>) -> Result<Whole, Vec<Diagnostic>> {
    let mut reader = Reader { above: Vec::new(), errors, complete: true };
    match reader.read(file) {
        Ok(table) => Ok(Whole { table, complete: reader.complete }),
        Err(mut fatal) => {
            fatal.append(errors);
            Err(fatal)
        }
    }
}

struct Reader<'a> {
    /// The files that include the one that is being read.
    above: Vec<PathBuf>,
    errors: &'a mut Vec<Diagnostic>,
    complete: bool,
}

impl Reader<'_> {
    fn read(&mut self, file: &Path) -> Result<Table, Vec<Diagnostic>> {
        let root = syntax::read_lenient(file, self.errors)?;
        let ValueKind::Table(mut table) = root.kind else { unreachable!("a TOML document is a table") };
        let Some(include) = table.remove("include") else { return Ok(table) };
        self.above.push(file.canonicalize().unwrap_or_else(|_| file.to_owned()));
        let mut base = Table::default();
        for include in match include.kind {
            ValueKind::Array(items) => items,
            _ => vec![include],
        } {
            match self.included(&include, file) {
                Ok(table) => merge(&mut base, table),
                Err(wrong) => {
                    self.complete = false;
                    // That a file cannot be read is wrong here; what is wrong in it has its own place.
                    self.errors.extend(wrong.into_iter().map(|error| error.at(include.span.clone())));
                }
            }
        }
        self.above.pop();
        merge(&mut base, table);
        Ok(base)
    }

    fn included(&mut self, include: &Value, from: &Path) -> Result<Table, Vec<Diagnostic>> {
        let Some(name) = include.as_str() else {
            let error = Diagnostic::new(format!("`include` holds the names of files, not {}", include.type_name()));
            return Err(vec![error.hint("include = [\"base.toml\"]")]);
        };
        let path = from.parent().unwrap_or(Path::new("")).join(name);
        let known = path.canonicalize().unwrap_or_else(|_| path.clone());
        if let Some(at) = self.above.iter().position(|above| *above == known) {
            let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let circle: Vec<String> = self.above[at..].iter().chain([&known]).map(name).collect();
            let error = Diagnostic::new(format!("files include each other in a circle: {}", circle.join(" → ")));
            return Err(vec![error.hint("remove one of these includes")]);
        }
        self.read(&path)
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
