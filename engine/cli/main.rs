//! The command line: reads what was typed, calls the engine, draws what it says. Decides nothing.

mod amounts;
mod args;
mod commands;
mod complete;
mod failure;
mod interrupt;
mod live;
mod metrics;
mod out;
mod report;
mod ui;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use failure::Failure;
use flow_core::Diagnostic;

fn main() -> ExitCode {
    interrupt::hear_of_children();
    // Where a shell asks what could be typed: answers, and ends.
    clap_complete::CompleteEnv::with_factory(Cli::command).var(complete::VARIABLE).complete();
    let command = Cli::parse().command;
    if let Err(failure) = start_threads() {
        return failure.end();
    }
    let done = match command {
        Command::Run(args) => commands::run::run(&args),
        Command::Plan(args) => commands::plan::plan(&args),
        Command::Check(args) => commands::check::check(&args),
        Command::Why(args) => commands::why::why(&args),
        Command::Path(args) => commands::path::path(&args),
        Command::Graph(args) => commands::graph::graph(&args),
        Command::Status(args) => commands::status::status(&args),
        Command::Runs(args) => commands::runs::runs(&args),
        Command::Show(args) => commands::show::show(&args),
        Command::Diff(args) => commands::diff::diff(&args),
        Command::Log(args) => commands::log::log(&args),
        Command::Report(args) => commands::report::report(&args),
        Command::Ui(args) => commands::ui::ui(&args),
        Command::Cache(args) => commands::cache::cache(&args),
        Command::Lock(args) => commands::lock::lock(&args),
        Command::Init(args) => commands::init::init(&args),
        Command::Completions(args) => commands::completions::completions(&args),
        Command::Schema => commands::schema::schema(),
        Command::Inspect(args) => commands::inspect::inspect(&args),
        Command::DiffWeights(args) => commands::diff_weights::diff_weights(&args),
        Command::Generate(args) => commands::generate::generate(&args),
        Command::Cancel(args) => commands::cancel::cancel(&args),
        Command::Job(args) => commands::job::job(&args),
        Command::Doctor => commands::doctor::doctor(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.end(),
    }
}

/// The threads that all of flow shares. Where they cannot be had, its first use of them would have no way to say so.
fn start_threads() -> Result<(), Failure> {
    rayon::ThreadPoolBuilder::new().build_global().map_err(|error| {
        let error = Diagnostic::new(format!("cannot start threads: {error}"));
        let hint = "too few processes are allowed here: raise `ulimit -u`, or the limit of pids of the container";
        Failure::Pipeline(vec![error.hint(hint)])
    })
}
