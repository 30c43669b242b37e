//! The vocabulary of `flow`: what every other crate talks about.
//!
//! Digests and keys, stages and what they see while they run, events, run records, diagnostics.
//! No async, no I/O policy, no knowledge of any particular stage kind may enter here.

mod braces;
mod cancel;
mod civil;
mod diag;
mod digest;
mod event;
mod hidden;
mod key;
mod kind;
mod masked;
mod network;
mod pin;
mod read;
mod refs;
mod schema;
mod secret;
mod stage;
mod text;
mod tree;
mod value;

pub use braces::expand_braces;
pub use cancel::{Cancel, Cancelled};
pub use civil::Civil;
pub use diag::{Diagnostic, Source, Span, did_you_mean};
pub use digest::Digest;
pub use event::{Event, How, Level, Record, Sink, Unit};
pub use hidden::hidden;
pub use key::{KEY_FORMAT, Key, KeyParts, canonical_json};
pub use kind::{Implied, Kind, Parsed};
pub use masked::masked;
pub use network::Network;
pub use pin::{Pin, Pinned, Remarks, Unchanged};
pub use read::{Read, from_value, read};
pub use refs::{Ref, Refs};
pub use schema::schema_of;
pub use secret::{holds_secret, is_secret_name, masked_json};
pub use stage::{Check, Ctx, DynStage, Facts, Files, Input, Known, Machine, Mode, Port, Stage};
pub use tree::{Entry, Tree, is_safe_name};
pub use value::{Table, Value, ValueKind};

/// The variables with which flow opens a team's cache on a web server: for itself, and for no command that it starts.
pub const SECRETS: [&str; 3] = ["FLOW_REMOTE_TOKEN", "FLOW_REMOTE_USER", "FLOW_REMOTE_PASSWORD"];
