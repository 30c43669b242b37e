//! `flow check`

use flow_cache::Cache;
use flow_core::Diagnostic;
use flow_engine::{Project, RunError, Settings, check_profiles, obstacles_of_all};
use serde_json::json;

use super::{Done, load};
use crate::{
    args,
    failure::{Failure, draw_all},
    out,
    ui::{diagnostic::Severity, format::plural},
};

/// Reports every error of a pipeline: as it is, and under each of its profiles if none is chosen.
pub fn check(args: &args::Check) -> Done {
    let pipeline = &args.pipeline;
    let (options, mut said) = (pipeline.load_options(), Said::default());
    let project = match load(pipeline) {
        Ok(project) => Some(project),
        Err(Failure::Pipeline(errors)) => {
            said.errors = errors;
            None
        }
        Err(other) => return Err(other),
    };
    if let Some(project) = &project {
        said.of(project)?;
    }
    if options.profile.is_none() {
        let known = [&said.errors[..], &said.warnings].concat();
        let (errors, warnings) = check_profiles(&pipeline.file, flow_data::KINDS, &options, &known);
        said.errors.extend(errors);
        said.warnings.extend(warnings);
    }
    if args.json {
        print(&said.errors, "error")?;
        print(&said.warnings, "warning")?;
    }
    if !said.errors.is_empty() {
        // In JSON they were said.
        return Err(Failure::Pipeline(if args.json { Vec::new() } else { said.errors }));
    }
    if let Some(project) = project.filter(|_| !args.json) {
        draw_all(&said.warnings, Severity::Warning);
        let (graph, profiles) = (project.graph(), project.profiles().len());
        let with = match profiles {
            0 => String::new(),
            _ if options.profile.is_some() => String::new(),
            _ => format!(", {}", plural(profiles, "profile")),
        };
        let (stages, nodes) = (plural(graph.stages.len(), "stage"), plural(graph.nodes.len(), "node"));
        eprintln!("{}: {stages} in {nodes}{with}, nothing wrong", pipeline.file.display());
    }
    Ok(())
}

/// What is to be said.
#[derive(Default)]
struct Said {
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

impl Said {
    /// What its stages say, and what a run here would meet.
    fn of(&mut self, project: &Project) -> Done {
        match project.check() {
            Ok(checked) => self.warnings = checked.warnings,
            Err(errors) => self.errors = errors,
        }
        let settings = match Settings::load(project.dir(), &|name| std::env::var(name).ok()) {
            Ok(settings) => settings,
            Err(errors) => {
                self.errors.extend(errors);
                return Ok(());
            }
        };
        match obstacles_of_all(project, &settings, || Cache::open(&settings.cache_dir)) {
            Ok(found) => {
                self.errors.extend(found.errors);
                self.warnings.extend(found.warnings);
            }
            Err(RunError::Pipeline(errors)) => self.errors.extend(errors),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// One line of JSON each.
fn print(diagnostics: &[Diagnostic], severity: &str) -> Done {
    for diagnostic in diagnostics {
        let place = diagnostic.span.as_ref().map(|span| (span.source.path.display().to_string(), span.line_column()));
        let (file, line, column) = match place {
            Some((file, (line, column))) => (Some(file), Some(line), Some(column)),
            None => (None, None, None),
        };
        let Diagnostic { message, causes, hints, .. } = diagnostic;
        let all = json!({
            "severity": severity, "file": file, "line": line, "column": column, "message": message,
            "causes": causes, "hints": hints,
        });
        out::line(all.to_string())?;
    }
    Ok(())
}
