//! A pipeline file and all that is laid over it: includes, profile, environment, `--set`. What comes out is still TOML,
//! with every value's place; what stages mean is for [`crate::graph`].

use std::path::Path;

use flow_core::{Diagnostic, Span, Table, Value, ValueKind, did_you_mean};

use crate::{
    assign::{PREFIX, apply_env, apply_set},
    include::{self, Whole, merge},
    matrix::{self, Combination},
    params::Params,
};

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

impl LoadOptions {
    /// The variables that set parameters, sorted: `FLOW_PARAM_N=8`. Also those that are meant for other pipelines.
    #[must_use]
    pub fn variables(&self) -> Vec<String> {
        let variables = self.env.iter().filter(|(name, _)| name.starts_with(PREFIX));
        let mut variables: Vec<String> = variables.map(|(name, value)| format!("{name}={value}")).collect();
        variables.sort_unstable();
        variables
    }

    /// What was set, as it was said: by variables, and by `--set`.
    #[must_use]
    pub fn said(&self) -> Vec<String> {
        let mut said = self.variables();
        said.extend_from_slice(&self.set);
        said
    }
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
    /// In the order of the file.
    pub stages: Vec<StageTable>,
    /// What is wrong so far; where it is, values are [`ValueKind::Wrong`].
    pub errors: Vec<Diagnostic>,
    /// What may surprise.
    pub warnings: Vec<Diagnostic>,
    /// Every included file could be read. If not, what is said to be nowhere ([`Diagnostic::absent`]) may be in one that
    /// could not.
    pub complete: bool,
}

/// A stage of the file.
#[derive(Debug)]
pub struct StageTable {
    /// Its name.
    pub name: String,
    /// Where that stands.
    pub span: Option<Span>,
    /// Its table: for each combination of its matrix, or once.
    pub variants: Vec<Variant>,
}

/// The table of a stage, for one combination of its matrix.
#[derive(Debug)]
pub struct Variant {
    /// `lr=0.001,seed=1`; empty if the stage has no matrix.
    pub label: String,
    /// The table, filled in.
    pub value: Value,
}

/// Reads the file with what it includes, and lays everything over it.
///
/// # Errors
/// What keeps the stages from being looked at: a file that cannot be read, a profile that is not there. All else that is
/// wrong is in [`Merged::errors`].
pub fn load(file: &Path, options: &LoadOptions) -> Result<Merged, Vec<Diagnostic>> {
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    let Whole { table: mut root, complete } = include::read(file, &mut errors)?;
    let profiles = profile_names(&root);
    check_profiles(&root, &mut errors);
    if let Some(name) = &options.profile
        && let Err(error) = apply_profile(&mut root, name, &profiles)
    {
        // Without it the stages are others than those that were meant.
        if complete {
            errors.push(error);
        }
        return Err(errors);
    }
    root.remove("profile");
    apply_env(&mut root, &options.env, &mut errors, &mut warnings);
    for assignment in &options.set {
        let wrong = apply_set(&mut root, assignment, &mut errors).err();
        errors.extend(wrong);
    }

    let params = Params::resolve(take_table(&mut root, "params", &mut errors), &mut errors);
    let mut name = None;
    for (key, span, mut value) in take_table(&mut root, "pipeline", &mut errors).entries {
        params.fill(&mut value, &mut errors);
        match (key.as_str(), value.kind) {
            ("name", ValueKind::String(text)) => name = Some(text),
            ("name", ValueKind::Wrong) => {}
            ("name", _) => errors.push(Diagnostic::new("a pipeline's name is a text").at(value.span)),
            _ => errors.push(Diagnostic::new(format!("unknown key `{key}`")).at(span).hint("[pipeline] holds `name`")),
        }
    }
    let stages = take_table(&mut root, "stage", &mut errors).entries;
    let mut idle = Vec::new();
    let stages = stages.into_iter().map(|(name, span, value)| {
        errors.extend(stage_name_error(&name).map(|error| error.at(span.clone())));
        let variants = variants(&name, value, &params, &mut errors, &mut idle);
        StageTable { name, span, variants }
    });
    let stages = stages.collect();
    // What is laid over the file may have left fewer combinations.
    let is_as_written = options.profile.is_none() && options.set.is_empty();
    if is_as_written { &mut errors } else { &mut warnings }.append(&mut idle);
    for (key, span, value) in &root.entries {
        let error = Diagnostic::new(format!("unknown key `{key}`")).at(span.clone());
        let known = ["pipeline", "params", "stage", "profile", "include"];
        errors.push(match did_you_mean(key, known) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None if value.as_table().is_some_and(|table| table.get("kind").is_some()) => {
                error.hint(format!("a stage is a table `[stage.{key}]`"))
            }
            None if [
                "mirrors",
                "remote",
                "connections",
                "cache_dir",
                "jobs",
                "cpus",
                "gpus",
                "memory",
                "container_engine",
            ]
            .contains(&&**key) =>
            {
                error.hint(format!(
                    "`{key}` is a setting: it stands in flow.toml beside the pipeline, or in the user's own"
                ))
            }
            None => error.hint(format!("a pipeline file holds: {}", known.join(", "))),
        });
    }
    let stem = || file.file_stem().map_or_else(|| "pipeline".into(), |stem| stem.to_string_lossy().into_owned());
    Ok(Merged { name: name.unwrap_or_else(stem), profiles, stages, errors, warnings, complete })
}

/// A stage's table with parameters filled in, for each combination of its matrix.
fn variants(
    name: &str,
    mut stage: Value,
    params: &Params,
    errors: &mut Vec<Diagnostic>,
    idle: &mut Vec<Diagnostic>,
) -> Vec<Variant> {
    let matrix = match &mut stage.kind {
        ValueKind::Table(table) => table.remove("matrix"),
        _ => None,
    };
    let Some(mut matrix) = matrix else {
        params.fill(&mut stage, errors);
        return vec![Variant { label: String::new(), value: stage }];
    };
    let mut wrong = Vec::new();
    params.fill(&mut matrix, &mut wrong);
    let combinations = if matrix.is_sound() { matrix::combinations(matrix, &mut wrong, idle) } else { Vec::new() };
    if combinations.is_empty() || !wrong.is_empty() {
        // What `${matrix.…}` stands for is not known, and no further error.
        errors.extend(wrong);
        params.fill_all_but_matrix(&mut stage, errors);
        return vec![Variant { label: String::new(), value: stage }];
    }
    let mut said = Vec::new();
    let total = combinations.len();
    let fill = |combination: Combination| {
        let mut value = stage.clone();
        let mut wrong = Vec::new();
        params.fill_with(&mut value, &combination, &mut wrong);
        said.extend(wrong.into_iter().map(|error| (format!("{name}[{}]", combination.label), error)));
        Variant { label: combination.label, value }
    };
    let variants = combinations.into_iter().map(fill).collect();
    errors.extend(matrix::gather(said.iter().map(|(of, error)| (of.as_str(), error.clone())).collect(), total));
    variants
}

/// The names in a pipeline file, as far as it can be read.
#[must_use]
pub fn outline(file: &Path) -> Outline {
    let Ok(Whole { table: root, .. }) = include::read(file, &mut Vec::new()) else { return Outline::default() };
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

fn profile_names(root: &Table) -> Vec<String> {
    let table = root.get("profile").and_then(Value::as_table);
    table.map_or_else(Vec::new, |table| table.entries.iter().map(|entry| entry.0.clone()).collect())
}

/// What is wrong with the profiles, also with those that are not asked for.
fn check_profiles(root: &Table, errors: &mut Vec<Diagnostic>) {
    let Some(profiles) = root.get("profile") else { return };
    let Some(table) = profiles.as_table() else {
        let error = Diagnostic::new(format!("`profile` is a table, not {}", profiles.type_name()));
        return errors.push(error.at(profiles.span.clone()).hint("a profile is a table `[profile.NAME]`"));
    };
    for (name, _, profile) in &table.entries {
        let Some(table) = profile.as_table() else {
            errors.push(Diagnostic::new(format!("profile `{name}` is not a table")).at(profile.span.clone()));
            continue;
        };
        for (key, span, _) in &table.entries {
            let known = ["params", "stage", "pipeline"];
            if !known.contains(&key.as_str()) {
                let error = Diagnostic::new(format!("unknown key `{key}` in profile `{name}`")).at(span.clone());
                errors.push(match did_you_mean(key, known) {
                    Some(near) => error.hint(format!("did you mean `{near}`?")),
                    None => error.hint("a profile holds `params`, `stage` and `pipeline`"),
                });
            }
        }
    }
}

fn apply_profile(root: &mut Table, name: &str, profiles: &[String]) -> Result<(), Diagnostic> {
    let found = root.remove("profile").and_then(|profiles| match profiles.kind {
        ValueKind::Table(mut table) => table.remove(name),
        _ => None,
    });
    let Some(profile) = found else {
        let error = Diagnostic::new(format!("there is no profile `{name}`"));
        return Err(match did_you_mean(name, profiles.iter().map(String::as_str)) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None if profiles.is_empty() => error.hint("the file has no profiles"),
            None => error.hint(format!("the file has: {}", profiles.join(", "))),
        });
    };
    if let ValueKind::Table(mut profile) = profile.kind {
        // Keys that no profile has were told, and are none of the file's.
        profile.entries.retain(|entry| ["params", "stage", "pipeline"].contains(&entry.0.as_str()));
        merge(root, profile);
    }
    Ok(())
}

fn take_table(root: &mut Table, key: &str, errors: &mut Vec<Diagnostic>) -> Table {
    match root.remove(key) {
        Some(Value { kind: ValueKind::Table(table), .. }) => table,
        Some(Value { kind: ValueKind::Wrong, .. }) | None => Table::default(),
        Some(other) => {
            let error = Diagnostic::new(format!("`{key}` is a table, not {}", other.type_name()));
            errors.push(error.at(other.span));
            Table::default()
        }
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
