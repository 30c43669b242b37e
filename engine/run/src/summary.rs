//! How a run ends, or why it does not take place.

use std::fmt;

use flow_core::Diagnostic;

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// The run's id.
    pub run: String,
    /// Everything that was asked for is there.
    pub ok: bool,
    /// It was interrupted.
    pub interrupted: bool,
    /// The cache could not be used: everything was stopped.
    pub unusable: bool,
    /// Nodes that ran.
    pub ran: usize,
    /// Nodes whose result was there.
    pub skipped: usize,
    /// Nodes that failed.
    pub failed: usize,
    /// Nodes that could not run because another failed.
    pub blocked: usize,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What the cache saved, in seconds.
    pub saved: f64,
    /// Jobs of executors that go on although the run was interrupted: executor and id.
    pub left: Vec<(String, String)>,
}

/// Why a run did not take place.
#[derive(Debug)]
pub enum RunError {
    /// What was asked for cannot work; nothing was run.
    Pipeline(Vec<Diagnostic>),
    /// The cache cannot be used.
    Cache(anyhow::Error),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipeline(errors) => errors.iter().try_for_each(|error| writeln!(f, "{error}")),
            Self::Cache(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for RunError {}
