//! Python's pickles, as far as checkpoints need them.
//!
//! [`Pickle`] reads: a stack machine over data alone. A class is a name, a call is a note that there was one;
//! nothing is imported, called or executed, whatever the bytes say. [`Encoder`] and [`Value`] write protocol 2.

mod read;
#[cfg(test)]
mod tests;
mod view;
mod write;

pub use read::Pickle;
pub use view::View;
pub use write::{Encoder, Value};
