//! `flow inspect`

use flow_data::weights;

use super::Done;
use crate::{args, failure, failure::Failure, out, ui::format::tame};

/// Says what lies at a path.
pub fn inspect(args: &args::Inspect) -> Done {
    let found = weights::inspect(&args.path, args.tokenizer.as_deref()).map_err(|error| unreadable(&error))?;
    if args.json {
        return Ok(out::line(found.json.to_string())?);
    }
    // What a file says is not for the terminal to obey.
    let facts: Vec<Vec<String>> =
        found.facts.into_iter().map(|(name, value)| vec![name.to_owned(), tame(&value)]).collect();
    out::write(&out::table(&facts, &[]))?;
    out::line("")?;
    let rows: Vec<Vec<String>> = found.rows.iter().map(|row| row.iter().map(|cell| tame(cell)).collect()).collect();
    Ok(out::write(&out::table(&rows, &[]))?)
}

/// A path that was named and cannot be used is usage.
pub fn unreadable(error: &anyhow::Error) -> Failure {
    Failure::Pipeline(vec![failure::from_error(error)])
}
