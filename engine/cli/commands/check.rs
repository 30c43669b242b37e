//! `flow check`

use flow_cache::Cache;
use flow_core::Diagnostic;
use flow_engine::{Checked, Obstacles, Project, RunError, Settings, check_profiles, obstacles_of_all, project_dir};
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
    let settings = match Settings::load(&project_dir(&pipeline.file), &|name| std::env::var(name).ok()) {
        Ok(settings) => Some(settings),
        Err(errors) => {
            said.errors.extend(errors);
            None
        }
    };
    let met = |project: &Project, checked: &Checked| {
        settings.as_ref().map_or_else(|| Ok(Obstacles::default()), |found| meets(project, found, checked))
    };
    if let Some(project) = &project {
        let (mut checked, errors) = project.look(settings.as_ref());
        said.errors.extend(errors);
        said.warnings.append(&mut checked.warnings);
        let met = met(project, &checked)?;
        said.errors.extend(met.errors);
        said.warnings.extend(met.warnings);
    }
    if options.profile.is_none() {
        let known = [&said.errors[..], &said.warnings].concat();
        let (errors, warnings) = check_profiles(&pipeline.file, flow_data::KINDS, &options, &known, met)?;
        said.errors.extend(errors);
        said.warnings.extend(warnings);
    }
    if args.json {
        print(&said.errors, "error")?;
        print(&said.warnings, "warning")?;
    }
    if args.json {
        // They were said.
        return if said.errors.is_empty() { Ok(()) } else { Err(Failure::Pipeline(Vec::new())) };
    }
    draw_all(&said.warnings, Severity::Warning);
    if !said.errors.is_empty() {
        if !said.warnings.is_empty() {
            eprintln!();
        }
        return Err(Failure::Pipeline(said.errors));
    }
    if let Some(project) = project {
        let (graph, profiles) = (project.graph(), project.profiles().len());
        let with = match profiles {
            0 => String::new(),
            _ if options.profile.is_some() => String::new(),
            _ => format!(", {}", plural(profiles, "profile")),
        };
        let (stages, nodes) = (plural(graph.stages.len(), "stage"), plural(graph.nodes.len(), "node"));
        let but = match said.warnings.len() {
            0 => String::new(),
            number => format!(", {}", plural(number, "warning")),
        };
        eprintln!("{}: {stages} in {nodes}{with}, nothing wrong{but}", pipeline.file.display());
    }
    Ok(())
}

/// What is to be said.
#[derive(Default)]
struct Said {
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

/// What a run here would meet.
fn meets(project: &Project, settings: &Settings, checked: &Checked) -> Result<Obstacles, Failure> {
    match obstacles_of_all(project, settings, checked, || Cache::open(&settings.cache_dir)) {
        Err(RunError::Pipeline(errors)) => Ok(Obstacles { errors, ..Obstacles::default() }),
        found => Ok(found?),
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
