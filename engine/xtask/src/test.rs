//! `cargo xtask test`: every test of every crate, and one closing line.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};

use crate::{cargo, libtorch, target};

/// Runs all tests; `arguments` go to `cargo test`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let libtorch = libtorch::ensure()?;
    // The tests of `flow` start `flow-torch`, which is no dependency that cargo would build for them.
    let built = cargo(&libtorch).args(["build", "--workspace"]).status().context("cargo does not start")?;
    if !built.success() {
        bail!("the build failed");
    }
    let mut child = cargo(&libtorch)
        .env("FLOW_TORCH", target().join("debug/flow-torch"))
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo does not start")?;
    let (mut passed, mut failed) = (0, 0);
    for line in BufReader::new(child.stdout.take().context("cargo's output is not there")?).lines() {
        let line = line?;
        println!("{line}");
        if let Some((p, f)) = counts(&line) {
            passed += p;
            failed += f;
        }
    }
    let status = child.wait()?;
    println!("\n{passed} passed, {failed} failed");
    if !status.success() {
        bail!("cargo test ended with {status}");
    }
    Ok(())
}

/// Passed and failed, from `test result: ok. 3 passed; 0 failed; …`.
fn counts(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ")?;
    let count = |word: &str| {
        let before = &rest[..rest.find(word)?];
        before.trim_end().rsplit(' ').next()?.parse().ok()
    };
    Some((count("passed")?, count("failed;")?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_closing_line_counts_what_cargo_printed() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(super::counts(line), Some((12, 3)));
        assert_eq!(super::counts("test a::b ... ok"), None);
    }
}
