//! `flow check`

use flow_core::Diagnostic;
use serde_json::json;

use super::{Done, load};
use crate::{
    args,
    failure::{Failure, draw_all},
    out,
    ui::{diagnostic::Severity, format::plural},
};

/// Reports every error of a pipeline.
pub fn check(args: &args::Check) -> Done {
    let checked = load(&args.pipeline).and_then(|project| {
        let checked = project.check()?;
        Ok((project, checked))
    });
    let (project, checked) = match checked {
        Err(Failure::Pipeline(errors)) if args.json => {
            print(&errors, "error")?;
            // They were said.
            return Err(Failure::Pipeline(Vec::new()));
        }
        checked => checked?,
    };
    if args.json {
        return print(&checked.warnings, "warning");
    }
    draw_all(&checked.warnings, Severity::Warning);
    let graph = project.graph();
    eprintln!(
        "{}: {} in {}, nothing wrong",
        args.pipeline.file.display(),
        plural(graph.stages.len(), "stage"),
        plural(graph.nodes.len(), "node")
    );
    Ok(())
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
