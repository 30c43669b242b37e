//! `flow completions`

use super::Done;
use crate::{args, complete, out};

/// Prints a completion script.
pub fn completions(args: &args::Completions) -> Done {
    let script = complete::script(args.shell).map_err(anyhow::Error::from)?;
    Ok(out::bytes(&script)?)
}
