//! Integration tests: the real `flow`, in directories of its own, as a person types it.

mod answers;
mod arrows;
mod broken;
mod commands;
mod crash;
mod data;
mod errors;
mod history;
mod language;
mod load;
mod machine;
mod main_job;
mod minimal;
mod outs;
mod readme;
mod schema;
mod screen;
mod servers;
mod support;
mod team;
mod temp;
mod terminal;
mod trust;
mod versions;
mod views;
mod weights;
