//! Process groups: c10d's store and Gloo out of libtorch, and whatever else libtorch has and tch hides.
//!
//! [`Store`] is where ranks find each other, [`Group`] moves tensors between them, [`autograd`] makes collectives
//! part of a graph, [`runtime`] switches libtorch. Below is a C++ shim (`shim/`); no exception leaves it, every error
//! is a `Result` with libtorch's own words. Nothing here knows a model, a mesh or a job.

pub mod autograd;
mod ffi;
mod group;
mod nccl;
pub mod route;
pub mod runtime;
mod store;

pub use group::{Group, Pending, Reduce};
pub use nccl::Nccl;
pub use store::{LISTENS, Store, listen};
