//! The real program, on one and on many ranks, against another implementation and against itself.

mod agents;
mod common;
mod eval;
mod generate;
mod refusals;
mod resume;
mod saves;
mod trace;
