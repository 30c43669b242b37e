//! flow-formats
