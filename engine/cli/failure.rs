//! [`Failure`]: how a command ends that did not do what it was asked, with its exit code.

use std::process::ExitCode;

use flow_core::{Cancelled, Diagnostic};
use flow_engine::RunError;

use crate::{
    out,
    ui::{diagnostic, diagnostic::Severity, paint::Paint},
};

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// 1: a stage failed, and that was said; or what was asked for is not there yet.
    Stage(Vec<Diagnostic>),
    /// 2: usage, or the pipeline.
    Pipeline(Vec<Diagnostic>),
    /// 3: the cache cannot be used or trusted.
    Cache(anyhow::Error),
    /// 3: the cache failed while a run went on, and that was said.
    Unusable,
    /// 130: interrupted.
    Interrupted,
}

impl Failure {
    /// What is asked for is not there yet, and running will make it.
    pub fn absent(diagnostic: Diagnostic) -> Self {
        Self::Stage(vec![diagnostic])
    }

    /// Draws it on stderr; the exit code.
    pub fn end(self) -> ExitCode {
        let (diagnostics, code) = match self {
            Self::Stage(diagnostics) => (diagnostics, 1),
            Self::Pipeline(diagnostics) => (diagnostics, 2),
            Self::Cache(error) => (vec![from_error(&error)], 3),
            Self::Unusable => (Vec::new(), 3),
            Self::Interrupted => (Vec::new(), 130),
        };
        draw_all(&diagnostics, Severity::Error);
        ExitCode::from(code)
    }
}

/// Draws diagnostics on stderr, with an empty line between.
pub fn draw_all(diagnostics: &[Diagnostic], severity: Severity) {
    let paint = Paint::for_stderr();
    let texts: Vec<String> = diagnostics.iter().map(|one| diagnostic::draw(one, severity, paint)).collect();
    eprint!("{}", texts.join("\n"));
}

/// An error and its causes, as a diagnostic.
pub fn from_error(error: &anyhow::Error) -> Diagnostic {
    // A diagnostic that travelled as an error keeps its place and its hints.
    if let Some(diagnostic) = error.downcast_ref::<Diagnostic>() {
        return diagnostic.clone();
    }
    error.chain().skip(1).fold(Diagnostic::new(error.to_string()), |all, cause| all.cause(cause.to_string()))
}

/// What names a run or a stage, and there is none: usage. Anything else: the cache cannot be read.
pub fn unknown(error: anyhow::Error) -> Failure {
    match error.downcast::<Diagnostic>() {
        Ok(diagnostic) => Failure::Pipeline(vec![diagnostic]),
        Err(error) => Failure::Cache(error),
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Pipeline(diagnostics) => Self::Pipeline(diagnostics),
            RunError::Cache(error) => error.into(),
        }
    }
}

impl From<Vec<Diagnostic>> for Failure {
    fn from(diagnostics: Vec<Diagnostic>) -> Self {
        Self::Pipeline(diagnostics)
    }
}

impl From<Diagnostic> for Failure {
    fn from(diagnostic: Diagnostic) -> Self {
        Self::Pipeline(vec![diagnostic])
    }
}

/// What reads and writes the cache and the history fails so; what writes to stdout fails as what was asked for.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        if error.is::<out::Refused>() {
            return Self::Stage(vec![from_error(&error)]);
        }
        if error.chain().any(<dyn std::error::Error>::is::<Cancelled>) {
            return Self::Interrupted;
        }
        Self::Cache(error)
    }
}
