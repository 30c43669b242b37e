//! The report of runs: what there is to say of them as data (`data`, read through `library`, `tale` and `curve`), and the
//! page that shows it (`page`). The same page is written by `flow report` and kept up to date by `flow ui`.

pub mod charts;
mod corpus;
mod curve;
pub mod data;
pub mod evaluation;
pub mod library;
pub mod page;
mod samples;
pub mod tale;

pub use data::Report;
pub use library::Library;
