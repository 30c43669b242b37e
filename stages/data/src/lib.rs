//! flow-data
