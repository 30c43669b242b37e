//! flow-dist
