//! Every command that the README shows is run.
//!
//! A block fenced as `console` is a script: its lines that begin with `$ ` are commands and must end well, in one copy
//! of the repository's pipelines and examples for all blocks, in order. Not run: blocks with `cargo` (`.ci/run`
//! types those), and, where no trainer is named by `FLOW_TORCH`, blocks that train, evaluate or generate.

use std::{fs, path::Path, process::Command};

use crate::support::{Output, Sandbox};

/// The commands of the `console` blocks of a Markdown text.
fn blocks(markdown: &str) -> Vec<Vec<&str>> {
    let mut blocks = Vec::new();
    let mut block: Option<Vec<&str>> = None;
    for line in markdown.lines() {
        match &mut block {
            None if line.trim() == "```console" => block = Some(Vec::new()),
            None => {}
            Some(_) if line.trim() == "```" => blocks.extend(block.take()),
            Some(commands) => commands.extend(line.trim_start().strip_prefix("$ ")),
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

fn is_run(block: &[&str]) -> bool {
    let builds = block.iter().any(|command| command.starts_with("cargo"));
    let trains = ["flow run pipelines/", "flow run examples/eval/", "flow generate"];
    let trains = block.iter().any(|command| trains.iter().any(|start| command.starts_with(start)));
    !builds && (!trains || std::env::var_os("FLOW_TORCH").is_some())
}

#[test]
fn blocks_are_found() {
    let text =
        "a\n```console\n$ flow run p.toml\nsaid\n$ flow status\n```\n```sh\n$ rm\n```\n  ```console\n  $ ls\n  ```\n";
    assert_eq!(blocks(text), [vec!["flow run p.toml", "flow status"], vec!["ls"]]);
    assert!(is_run(&["flow init x"]) && !is_run(&["cd x", "cargo xtask demo"]));
}

#[test]
fn what_the_readme_shows_works() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sandbox = Sandbox::shipped();
    let bin = Path::new(env!("CARGO_BIN_EXE_flow")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let markdown = fs::read_to_string(root.join("README.md")).unwrap();
    let mut ran = 0;
    for block in blocks(&markdown).iter().filter(|block| is_run(block)) {
        let mut shell = Command::new("sh");
        sandbox.at_home(&mut shell);
        let output = Output::of(shell.env("PATH", &path).args(["-ec", &block.join("\n")]).output().unwrap());
        assert_eq!(output.code, Some(0), "{}\n{output}", block.join("\n"));
        ran += 1;
    }
    assert!(ran > 0, "the README shows nothing that can be run here");
}
