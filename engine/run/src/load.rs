//! A pipeline file and all that is laid over it: includes, profile, environment, `--set`. What comes out is still TOML,
//! with every value's place; what stages mean is for [`crate::graph`].

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use flow_core::{Diagnostic, Span, Table, Value, ValueKind, did_you_mean};

use crate::{params::Params, syntax};

/// What a person adds to the file on the command line or in the environment.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The profile to lay over the file.
    pub profile: Option<String>,
    /// `path=value`, in order: `params.shards={0..2}`, `stage.train.max_steps=300`.
    pub set: Vec<String>,
    /// The environment: `FLOW_PARAM_SHARDS` sets `params.shards`.
    pub env: Vec<(String, String)>,
}

/// The names in a pipeline file, for completions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// `pipeline.name`
    pub name: Option<String>,
    /// The stages, in the order of the file.
    pub stages: Vec<String>,
    /// The profiles.
    pub profiles: Vec<String>,
}

/// A pipeline file with everything laid over it and every parameter filled in.
#[derive(Debug)]
pub struct Merged {
    /// `pipeline.name`, or the file's name.
    pub name: String,
    /// The profiles that the file has.
    pub profiles: Vec<String>,
    /// Name, its place, table: in the order of the file.
    pub stages: Vec<(String, Option<Span>, Value)>,
}

/// Reads the file with what it includes, and lays everything over it.
///
/// # Errors
/// Every error that shows before stages are looked at.
pub fn load(file: &Path, options: &LoadOptions) -> Result<Merged, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    let mut root = read(file, &mut Vec::new(), &mut errors)?;
    let profiles = profile_names(&root);
    if let Some(name) = &options.profile {
        apply_profile(&mut root, name, &profiles, &mut errors);
    }
    root.remove("profile");
    apply_env(&mut root, &options.env);
    for assignment in &options.set {
        errors.extend(apply_set(&mut root, assignment).err());
    }

    let params = Params::resolve(take_table(&mut root, "params", &mut errors), &mut errors);
    let mut name = None;
    for (key, span, mut value) in take_table(&mut root, "pipeline", &mut errors).entries {
        params.fill(&mut value, &mut errors);
        match (key.as_str(), value.kind) {
            ("name", ValueKind::String(text)) => name = Some(text),
            ("name", _) => errors.push(Diagnostic::new("a pipeline's name is a string").at(value.span)),
            _ => errors.push(Diagnostic::new(format!("unknown key `{key}`")).at(span).hint("[pipeline] holds `name`")),
        }
    }
    let mut stages = take_table(&mut root, "stage", &mut errors).entries;
    for (name, span, value) in &mut stages {
        errors.extend(stage_name_error(name).map(|error| error.at(span.clone())));
        params.fill(value, &mut errors);
    }
    for (key, span, _) in &root.entries {
        let error = Diagnostic::new(format!("unknown key `{key}`")).at(span.clone());
        let known = ["pipeline", "params", "stage", "profile", "include"];
        errors.push(match did_you_mean(key, known) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint(format!("a pipeline file holds: {}", known.join(", "))),
        });
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let stem = || file.file_stem().map_or_else(|| "pipeline".into(), |stem| stem.to_string_lossy().into_owned());
    Ok(Merged { name: name.unwrap_or_else(stem), profiles, stages })
}

/// The names in a pipeline file, as far as it can be read.
#[must_use]
pub fn outline(file: &Path) -> Outline {
    let Ok(root) = read(file, &mut Vec::new(), &mut Vec::new()) else { return Outline::default() };
    let names = |key: &str| {
        let table = root.get(key).and_then(Value::as_table);
        table.map_or_else(Vec::new, |table| table.entries.iter().map(|entry| entry.0.clone()).collect())
    };
    let name = root.get("pipeline").and_then(|pipeline| pipeline.as_table()?.get("name")?.as_str());
    Outline { name: name.map(str::to_owned), stages: names("stage"), profiles: names("profile") }
}

/// A stage's name is part of file names, of `--set` paths and of `tokens[2]`.
fn stage_name_error(name: &str) -> Option<Diagnostic> {
    let fits = !name.is_empty()
        && name.len() <= 100
        && !name.starts_with('-')
        && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
    let error = || Diagnostic::new(format!("`{name}` cannot be the name of a stage"));
    (!fits).then(|| error().hint("up to 100 letters, digits, `_` and `-`, the first of them no `-`"))
}

/// Reads a file and lays it over what it includes. `above`: the files that include this one.
fn read(file: &Path, above: &mut Vec<PathBuf>, errors: &mut Vec<Diagnostic>) -> Result<Table, Vec<Diagnostic>> {
    let ValueKind::Table(mut table) = syntax::read(file)?.kind else { unreachable!("a TOML document is a table") };
    let Some(include) = table.remove("include") else { return Ok(table) };
    let includes = match include.kind {
        ValueKind::Array(items) => items,
        _ => vec![include],
    };
    above.push(file.canonicalize().unwrap_or_else(|_| file.to_owned()));
    let mut base = Table::default();
    for include in includes {
        let Some(name) = include.as_str() else {
            errors.push(Diagnostic::new("`include` holds the names of files").at(include.span));
            continue;
        };
        let path = file.parent().unwrap_or(Path::new("")).join(name);
        if above.contains(&path.canonicalize().unwrap_or_else(|_| path.clone())) {
            errors.push(Diagnostic::new(format!("`{name}` includes itself")).at(include.span));
            continue;
        }
        match read(&path, above, errors) {
            Ok(table) => merge(&mut base, table, &mut Vec::new()),
            Err(inner) => errors.extend(inner.into_iter().map(|error| error.at(include.span.clone()))),
        }
    }
    above.pop();
    merge(&mut base, table, &mut Vec::new());
    Ok(base)
}

fn profile_names(root: &Table) -> Vec<String> {
    let table = root.get("profile").and_then(Value::as_table);
    table.map_or_else(Vec::new, |table| table.entries.iter().map(|entry| entry.0.clone()).collect())
}

fn apply_profile(root: &mut Table, name: &str, profiles: &[String], errors: &mut Vec<Diagnostic>) {
    let found = root.remove("profile").and_then(|profiles| match profiles.kind {
        ValueKind::Table(mut table) => table.remove(name),
        _ => None,
    });
    let Some(profile) = found else {
        let error = Diagnostic::new(format!("there is no profile `{name}`"));
        errors.push(match did_you_mean(name, profiles.iter().map(String::as_str)) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None if profiles.is_empty() => error.hint("the file has no profiles"),
            None => error.hint(format!("the file has: {}", profiles.join(", "))),
        });
        return;
    };
    let ValueKind::Table(profile) = profile.kind else {
        return errors.push(Diagnostic::new(format!("profile `{name}` is not a table")).at(profile.span));
    };
    for (key, span, _) in &profile.entries {
        if !["params", "stage", "pipeline"].contains(&key.as_str()) {
            let error = Diagnostic::new(format!("unknown key `{key}` in profile `{name}`")).at(span.clone());
            errors.push(error.hint("a profile holds `params`, `stage` and `pipeline`"));
        }
    }
    merge(root, profile, &mut Vec::new());
}

/// Lays `over` over `base`: tables merge, everything else is replaced; a stage that names its `kind` is replaced whole.
/// `path`: the keys that lead here.
fn merge(base: &mut Table, over: Table, path: &mut Vec<String>) {
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
                merge(inner, over, path);
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

fn take_table(root: &mut Table, key: &str, errors: &mut Vec<Diagnostic>) -> Table {
    match root.remove(key) {
        Some(Value { kind: ValueKind::Table(table), .. }) => table,
        Some(other) => {
            let error = Diagnostic::new(format!("`{key}` is a table, not {}", other.type_name()));
            errors.push(error.at(other.span));
            Table::default()
        }
        None => Table::default(),
    }
}

/// `FLOW_PARAM_<NAME>` sets the parameter of that name, if the file has it. Others are for other pipelines.
fn apply_env(root: &mut Table, env: &[(String, String)]) {
    let set: HashMap<&str, &str> =
        env.iter().filter_map(|(name, value)| Some((name.strip_prefix("FLOW_PARAM_")?, value.as_str()))).collect();
    if set.is_empty() {
        return;
    }
    let Some(Value { kind: ValueKind::Table(params), .. }) = root.get_mut("params") else { return };
    for (name, _, value) in &mut params.entries {
        let variable = name.to_uppercase().replace('-', "_");
        if let Some(text) = set.get(variable.as_str()) {
            let prefix = format!("FLOW_PARAM_{variable}=");
            *value = syntax::parse_assigned(Path::new("environment"), &format!("{prefix}{text}"), prefix.len());
        }
    }
}

fn apply_set(root: &mut Table, assignment: &str) -> Result<(), Diagnostic> {
    let label = Path::new("--set");
    let Some((path, _)) = assignment.split_once('=') else {
        return Err(Diagnostic::new(format!("`--set {assignment}` has no `=`"))
            .hint("write `--set params.shards={0..2}` or `--set stage.train.max_steps=300`"));
    };
    let value = syntax::parse_assigned(label, assignment, path.len() + 1);
    let span = value.span.clone();
    let parts: Vec<&str> = path.trim().split('.').map(str::trim).collect();
    let wrong = |message: String| Diagnostic::new(format!("`--set {assignment}`: {message}"));
    let names = |table: Option<&Value>| -> HashSet<String> {
        let table = table.and_then(Value::as_table);
        table.map_or_else(HashSet::new, |table| table.entries.iter().map(|entry| entry.0.clone()).collect())
    };
    let known = match parts[..] {
        ["params", _, ..] => names(root.get("params")),
        ["stage", _, _, ..] => names(root.get("stage")),
        ["pipeline", "name"] => HashSet::from(["name".to_owned()]),
        _ => {
            let error = wrong(format!("`{path}` cannot be set"));
            return Err(match &parts[..] {
                [name] if names(root.get("params")).contains(*name) => error.hint(format!("write `params.{name}=…`")),
                _ => error.hint("begin with `params.NAME` or `stage.NAME.KEY`"),
            });
        }
    };
    if !known.contains(parts[1]) {
        let what = if parts[0] == "params" { "parameter" } else { "stage" };
        let error = wrong(format!("there is no {what} `{}`", parts[1]));
        return Err(match did_you_mean(parts[1], known.iter().map(String::as_str)) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        });
    }
    let (last, above) = parts.split_last().expect("a path has a part");
    let mut table = root;
    for part in above {
        if table.get(part).is_none() {
            table.insert(*part, span.clone(), Value { kind: ValueKind::Table(Table::default()), span: span.clone() });
        }
        match table.get_mut(part).map(|value| &mut value.kind) {
            Some(ValueKind::Table(inner)) => table = inner,
            _ => return Err(wrong(format!("`{part}` is not a table"))),
        }
    }
    table.insert(*last, span, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn load_text(text: &str, options: &LoadOptions) -> Result<Merged, Vec<Diagnostic>> {
        let dir = tempfile::tempdir().unwrap();
        load(&write(dir.path(), "pipe.toml", text), options)
    }

    fn text_of(merged: &Merged, path: &str) -> String {
        let (stage, path) = path.split_once('.').unwrap();
        let value = &merged.stages.iter().find(|entry| entry.0 == stage).unwrap().2;
        format!("{:?}", value.nearest(path).kind)
    }

    const PIPE: &str = "[pipeline]\nname = 'p'\n[params]\nshards = '{0..13}'\nn = 1\n\
        [profile.mini]\nparams.shards = '{0..2}'\nstage.train.max_steps = 30\n\
        [profile.mini.stage.base]\nkind = 'init'\nseed = 1\n\
        [stage.base]\nkind = 'fetch'\nurls = ['x']\n\
        [stage.raw]\nkind = 'fetch'\nurls = ['${shards}']\n\
        [stage.train]\nkind = 'train'\nmax_steps = 150\noptim = { lr = 1.0, eps = 2.0 }\n";

    #[test]
    fn a_profile_merges_and_a_stage_with_a_kind_replaces() {
        let plain = load_text(PIPE, &LoadOptions::default()).unwrap();
        assert_eq!((plain.name.as_str(), plain.profiles.as_slice()), ("p", &["mini".to_owned()][..]));
        assert_eq!(text_of(&plain, "train.max_steps"), "Integer(150)");
        assert_eq!(text_of(&plain, "raw.urls.0"), "String(\"{0..13}\")");

        let mini = load_text(PIPE, &LoadOptions { profile: Some("mini".into()), ..Default::default() }).unwrap();
        assert_eq!(text_of(&mini, "train.max_steps"), "Integer(30)");
        assert_eq!(text_of(&mini, "train.optim.lr"), "Float(1.0)");
        assert_eq!(text_of(&mini, "raw.urls.0"), "String(\"{0..2}\")");
        let base = mini.stages.iter().find(|entry| entry.0 == "base").unwrap().2.as_table().unwrap();
        assert_eq!(base.entries.len(), 2, "the file's `urls` are gone");
    }

    #[test]
    fn environment_wins_over_the_profile_and_set_over_both() {
        let mut options = LoadOptions {
            profile: Some("mini".into()),
            env: vec![("FLOW_PARAM_SHARDS".into(), "{5..6}".into()), ("FLOW_PARAM_OTHER".into(), "1".into())],
            set: vec!["stage.train.optim.lr=0.5".into(), "stage.train.optim.betas=[0.9, 0.95]".into()],
        };
        let merged = load_text(PIPE, &options).unwrap();
        assert_eq!(text_of(&merged, "raw.urls.0"), "String(\"{5..6}\")");
        assert_eq!(text_of(&merged, "train.optim.lr"), "Float(0.5)");
        assert_eq!(text_of(&merged, "train.optim.eps"), "Float(2.0)");
        assert_eq!(text_of(&merged, "train.optim.betas.1"), "Float(0.95)");
        options.set.push("params.shards={7..8}".into());
        assert_eq!(text_of(&load_text(PIPE, &options).unwrap(), "raw.urls.0"), "String(\"{7..8}\")");
    }

    #[test]
    fn what_cannot_be_set_is_said_with_what_was_meant() {
        let said = |set: &str| {
            let error = load_text(PIPE, &LoadOptions { set: vec![set.into()], ..Default::default() }).unwrap_err();
            assert_eq!(error.len(), 1, "{error:?}");
            format!("{} | {}", error[0].message, error[0].hints.join(" "))
        };
        assert!(said("params.shrads=1").ends_with("there is no parameter `shrads` | did you mean `shards`?"));
        assert!(said("stage.trian.x=1").ends_with("did you mean `train`?"));
        assert!(said("shards=1").ends_with("write `params.shards=…`"));
        assert!(said("stage.train.max_steps").contains("has no `=`"));
        assert!(said("stage.train.max_steps.x=1").contains("is not a table"));
        let error = load_text(PIPE, &LoadOptions { profile: Some("mni".into()), ..Default::default() }).unwrap_err();
        assert_eq!(error[0].hints, ["did you mean `mini`?"]);
    }

    #[test]
    fn every_error_is_said_at_once() {
        let errors = load_text(
            "[pipeline]\nnmae = 'x'\n[stages.a]\nkind = 'x'\n[stage.'a b']\nx = '${no}'\n[params]\np = '${q}'",
            &LoadOptions::default(),
        )
        .unwrap_err();
        let mut lines: Vec<_> = errors.iter().map(|e| e.span.as_ref().unwrap().line_column().0).collect();
        lines.sort_unstable();
        assert_eq!(lines, [2, 3, 5, 6, 8], "{errors:?}");
    }

    #[test]
    fn includes_lie_under_the_file_and_circles_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "base.toml", "[params]\na = 1\nb = 2\n[stage.s]\nkind = 'x'\nv = '${a}${b}'");
        let file = write(dir.path(), "pipe.toml", "include = ['base.toml']\n[params]\nb = 3\n");
        let merged = load(&file, &LoadOptions::default()).unwrap();
        assert_eq!(text_of(&merged, "s.v"), "String(\"13\")");
        assert_eq!(merged.name, "pipe");
        assert_eq!(outline(&file).stages, ["s"]);

        write(dir.path(), "base.toml", "include = 'pipe.toml'");
        let errors = load(&file, &LoadOptions::default()).unwrap_err();
        assert!(errors[0].message.contains("includes itself"), "{errors:?}");
        std::fs::remove_file(dir.path().join("base.toml")).unwrap();
        let errors = load(&file, &LoadOptions::default()).unwrap_err();
        assert_eq!(errors[0].span.as_ref().unwrap().line_column(), (1, 12));
    }
}
