//! File formats of the field, as bytes: nothing here knows tensors, stages or the cache.
//!
//! Every reader takes hostile files: lengths and offsets are checked before they are used, and an error says the file
//! and the offset.

pub mod compressed;
pub mod documents;
pub mod dtype;
pub mod indexed;
pub mod pickle;
pub mod protobuf;
pub mod safetensors;
pub mod torch_dist;
pub mod zip;

pub use dtype::DType;
