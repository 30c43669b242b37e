//! What is wrong with the profiles of a file that nobody chose.

use std::path::Path;

use flow_core::{Diagnostic, Kind};

use crate::{
    link::sort_and_dedup,
    load::{LoadOptions, outline},
    obstacles::Obstacles,
    project::{Checked, Project},
};

/// What is wrong with a pipeline under each of its profiles, and was not `said` of it without one. What several profiles
/// share is said once, with all of their names. `obstacles`: what a run of one would meet.
///
/// # Errors
/// Those of `obstacles`.
pub fn check_profiles<E>(
    pipeline: &Path,
    kinds: &'static [Kind],
    options: &LoadOptions,
    said: &[Diagnostic],
    mut obstacles: impl FnMut(&Project, &Checked) -> Result<Obstacles, E>,
) -> Result<(Vec<Diagnostic>, Vec<Diagnostic>), E> {
    let (mut errors, mut warnings) = (Found::default(), Found::default());
    for profile in outline(pipeline).profiles {
        let options = LoadOptions { profile: Some(profile.clone()), ..options.clone() };
        let project = match Project::load(pipeline, kinds, &options) {
            Ok(project) => project,
            Err(found) => {
                errors.add(found, &profile, said);
                continue;
            }
        };
        let (mut checked, wrong) = project.look(None);
        errors.add(wrong, &profile, said);
        warnings.add(std::mem::take(&mut checked.warnings), &profile, said);
        let met = obstacles(&project, &checked)?;
        errors.add(met.errors, &profile, said);
        warnings.add(met.warnings, &profile, said);
    }
    Ok((errors.named(pipeline), warnings.named(pipeline)))
}

/// Diagnostics, and the profiles that they are of.
#[derive(Default)]
struct Found(Vec<(Diagnostic, Vec<String>)>);

impl Found {
    fn add(&mut self, found: Vec<Diagnostic>, profile: &str, said: &[Diagnostic]) {
        for diagnostic in found.into_iter().filter(|one| !said.iter().any(|said| same(said, one))) {
            match self.0.iter_mut().find(|(known, _)| same(known, &diagnostic)) {
                Some((_, profiles)) => profiles.push(profile.to_owned()),
                None => self.0.push((diagnostic, vec![profile.to_owned()])),
            }
        }
    }

    fn named(self, pipeline: &Path) -> Vec<Diagnostic> {
        let named = |(diagnostic, profiles): (Diagnostic, Vec<String>)| {
            let names: Vec<String> = profiles.iter().map(|profile| format!("`{profile}`")).collect();
            let noun = if names.len() == 1 { "profile" } else { "profiles" };
            diagnostic.cause(format!("this is with the {noun} {}", names.join(", ")))
        };
        let mut all: Vec<Diagnostic> = self.0.into_iter().map(named).collect();
        sort_and_dedup(&mut all, pipeline);
        all
    }
}

/// Whether both say the same is wrong. Hints do not count: they may list stages, and each profile may have others.
fn same(one: &Diagnostic, other: &Diagnostic) -> bool {
    (&one.message, &one.span, &one.field, &one.causes) == (&other.message, &other.span, &other.field, &other.causes)
}
