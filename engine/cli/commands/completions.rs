//! `flow completions`

use clap::CommandFactory;

use super::Done;
use crate::{args, out};

/// Prints a completion script.
pub fn completions(args: &args::Completions) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::Cli::command(), "flow", &mut script);
    Ok(out::write(&String::from_utf8_lossy(&script))?)
}
