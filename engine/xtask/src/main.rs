//! What is typed in a clone of the repository: `cargo xtask demo` and `cargo xtask test` install what they need
//! (libtorch, by pip), build, and run. Nothing here is part of the product.

#![allow(clippy::print_stdout, reason = "a developer's tool: what it prints is its result")]

mod demo;
mod libtorch;
mod test;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo       installs libtorch, builds, and runs pipelines/ja_wiki.toml with the profile `mini`
  test       installs libtorch, builds, and runs every test; further arguments go to `cargo test`
  build      installs libtorch and builds `flow` and `flow-torch` into target/release
  libtorch   installs libtorch and prints its directory, for LIBTORCH";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.first().map(String::as_str) {
        Some("demo") => demo::run(),
        Some("test") => test::run(&arguments[1..]),
        Some("build") => build().map(drop),
        Some("libtorch") => libtorch::ensure().map(|dir| println!("{}", dir.display())),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Builds both programs and returns the directory that they are in.
fn build() -> Result<PathBuf> {
    let status =
        cargo(&libtorch::ensure()?).args(["build", "--release", "--package=flow", "--package=flow-torch"]).status();
    if !status.context("cargo does not start")?.success() {
        bail!("the build failed");
    }
    Ok(target().join("release"))
}

/// Where cargo builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// cargo, in the repository, with libtorch.
fn cargo(libtorch: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).env("LIBTORCH", libtorch);
    // What cargo told this program of its own package is no word to who starts from here: build scripts look at it, and
    // would be made again each time it comes or goes.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "CARGO_CRATE_NAME" {
            command.env_remove(name);
        }
    }
    command
}

/// The repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("xtask lies two levels below the root")
}
