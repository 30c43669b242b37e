//! Where the rows of a Hugging Face model's tensors stand in Megatron's, for each family of models.
//!
//! A family is a table ([`Family`], one file each in `families/`): names, shapes, how tensors are joined, and which
//! fields of `config.json` are understood. [`Layout`] is the table written out for one model: which rows of which tensor
//! are which rows of which other. Both directions of conversion follow it, so one is the inverse of the other. No
//! element is computed here.

mod cast;
mod checkpoint;
mod copy;
mod dir;
mod families;
mod family;
mod layout;
mod work;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod resume;
#[cfg(test)]
pub(crate) mod tests;

pub use cast::{Dtype, cast, to_bf16};
pub use checkpoint::has_megatron_keys;
pub use copy::{Copying, TILE, Tile, room, write};
pub use dir::{COMPANIONS, MODEL, ModelDir, without_weights, wrong_model};
pub use family::Model;
pub use layout::Layout;
pub use work::Work;
