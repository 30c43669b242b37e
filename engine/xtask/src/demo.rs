//! `cargo xtask demo`: the whole pipeline on this machine, fetched over real HTTP from a server on loopback.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{build, root};

/// Installs, builds, serves, runs.
pub(crate) fn run() -> Result<()> {
    let bin = build()?;
    let server = Server::start(&root().join("examples/ja_wiki_mini"))?;
    let corpus = format!("params.corpus=http://127.0.0.1:{}", server.port);
    let flow = bin.join("flow");
    let arguments = ["run", "pipelines/ja_wiki.toml", "--profile", "mini", "--set", &corpus];
    eprintln!("\n$ flow {}", arguments.join(" "));
    let status = Command::new(&flow).current_dir(root()).args(arguments).status().context("flow does not start")?;
    drop(server);
    if !status.success() {
        bail!("flow ended with {status}");
    }
    let path = |stage: &str| -> Result<String> {
        let arguments = ["path", "pipelines/ja_wiki.toml", stage, "--profile", "mini", "--set", &corpus];
        let output = Command::new(&flow).current_dir(root()).args(arguments).stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            bail!("flow path {stage} ended with {}", output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    println!("model    {}", root().join("results/ja-mini").display());
    println!("eval     {}/results.json", path("eval")?);
    println!("training {}/metrics.jsonl", path("train")?);
    println!("again    cargo xtask demo   (everything is skipped)");
    Ok(())
}

/// Python's HTTP server on loopback, ended when dropped.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Serves `directory`, on the same port as last time if that is free: the URLs are then the ones in flow.lock.
    fn start(directory: &Path) -> Result<Self> {
        const PORT: u16 = 18737;
        Self::listen(directory, PORT).or_else(|_| Self::listen(directory, 0))
    }

    fn listen(directory: &Path, port: u16) -> Result<Self> {
        let mut child = Command::new("python3")
            .args(["-u", "-m", "http.server", "--bind", "127.0.0.1", &port.to_string(), "--directory"])
            .arg(directory)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("python3 does not start")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("the server's output is not there")?).read_line(&mut line)?;
        // "Serving HTTP on 127.0.0.1 port 18737 (http://127.0.0.1:18737/) ..."
        let port =
            line.split(" port ").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|port| port.parse().ok());
        match port {
            Some(port) => Ok(Self { child, port }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the HTTP server did not start on port {port:?}")
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
