//! What `flow ui` does: shows runs in a browser while they go on. One thread reads what runs write down (`hub`), for those
//! that somebody looks at; a server hands that on (`server`) to whom it may (`guard`). It reads, and changes nothing.

pub mod guard;
pub mod hub;
mod list;
mod log;
pub mod server;

pub use guard::Guard;
pub use hub::Hub;
