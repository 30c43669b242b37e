//! flow-cache
