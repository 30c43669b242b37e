//! `flow schema`

use super::Done;
use crate::out;

/// Prints the JSON Schema of pipeline files.
pub fn schema() -> Done {
    let schema = flow_engine::schema(flow_data::KINDS);
    Ok(out::line(format!("{schema:#}"))?)
}
