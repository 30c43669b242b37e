//! flow-torch
fn main() {}
