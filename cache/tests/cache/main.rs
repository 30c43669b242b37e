//! What the cache promises, tried from outside.

mod basics;
mod concurrency;
mod crash;
mod damage;
mod gc;
mod kit;
mod memos;
mod placing;
mod team;
