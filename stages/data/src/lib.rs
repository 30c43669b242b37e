//! Stage kinds that need no tensors: from the web to what a trainer reads, and back.
//!
//! One stage kind is one struct (its parameters), `impl Stage`, and one line in [`KINDS`]. Nothing here knows the
//! cache or the engine: a stage sees its inputs, an output directory, a sink for events and a cancel flag.

mod command;
mod container;
mod curate;
mod datasets;
mod documents;
mod eval;
pub mod facts;
mod fetch;
pub mod generate;
mod gunzip;
mod hf_to_megatron;
mod http;
mod init_model;
mod megatron_to_hf;
mod merge;
mod models;
mod size;
#[cfg(test)]
mod testing;
pub mod tokenize;
mod train;
pub mod weights;
mod wiki_extract;
mod worker;

pub use container::found as container_engines;
pub use worker::{About, PROTOCOL, about, worker};

use flow_core::{Diagnostic, Kind};

/// The registry: every stage kind of this crate, one line each, sorted by name.
pub const KINDS: &[Kind] = &[
    Kind::of::<command::Command>(),
    // The same by the other name that it is looked for under.
    Kind { name: "decompress", ..Kind::of::<gunzip::Gunzip>() },
    Kind::of::<curate::dedup::Dedup>(),
    Kind::of::<eval::Eval>(),
    Kind::of::<fetch::Fetch>(),
    Kind::of::<curate::filter::Filter>(),
    Kind::of::<gunzip::Gunzip>(),
    Kind::of::<hf_to_megatron::HfToMegatron>(),
    Kind::of::<container::Image>(),
    Kind::of::<init_model::InitModel>(),
    Kind::of::<megatron_to_hf::MegatronToHf>(),
    Kind::of::<merge::Merge>(),
    Kind::of::<curate::mix::Mix>(),
    Kind::of::<curate::split::Split>(),
    Kind::of::<tokenize::Tokenize>(),
    Kind::of::<train::Train>(),
    Kind::of::<wiki_extract::WikiExtract>(),
];

/// An error met while checking, as what a person is told: the outermost as the message, the rest as causes.
fn diagnostic(error: &anyhow::Error) -> Diagnostic {
    error
        .chain()
        .skip(1)
        .fold(Diagnostic::new(error.to_string()), |diagnostic, cause| diagnostic.cause(cause.to_string()))
}
