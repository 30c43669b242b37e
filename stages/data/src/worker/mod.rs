//! The worker program, `flow-torch`: where it is, whether it speaks our language, and running one process a rank.
//!
//! Tensors never enter this program: a spoiled GPU or a crash in libtorch takes a worker, not `flow`.

mod ranks;
mod supervise;
#[cfg(test)]
mod tests;

use std::{
    env,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value as Json;

pub use supervise::Launch;

/// The version of what `flow` and a worker say to each other: arguments, environment, [`flow_plan::Job`], events.
pub const PROTOCOL: u32 = 1;

/// The name of the program.
const PROGRAM: &str = "flow-torch";

/// Loading libtorch from a cold disk takes seconds; more than this is a hang.
const ABOUT_TIMEOUT: Duration = Duration::from_secs(120);

/// What a worker says of itself: `flow-torch --about`.
#[derive(Clone, Debug, Deserialize)]
pub struct About {
    /// Its own version.
    pub version: String,
    /// libtorch's version.
    pub libtorch: String,
    /// Its [`PROTOCOL`].
    pub protocol: u32,
    /// What it sees of CUDA.
    #[serde(default)]
    pub cuda: Json,
}

/// Where the worker program is: `$FLOW_TORCH`, else beside this program, else on the PATH.
///
/// # Errors
/// It is nowhere; the error says where it was looked for.
pub fn worker() -> Result<PathBuf> {
    let is_program = |path: &PathBuf| path.is_file();
    if let Some(path) = env::var_os("FLOW_TORCH").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        ensure!(is_program(&path), "FLOW_TORCH is {}, which is not a file", path.display());
        return Ok(path);
    }
    let beside = env::current_exe().ok().and_then(|flow| Some(flow.parent()?.join(PROGRAM)));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join(PROGRAM));
    match beside.iter().cloned().chain(on_path).find(is_program) {
        Some(program) => Ok(program),
        None => bail!(
            "{PROGRAM} is not {} and not on the PATH: `cargo xtask demo` builds it, or set FLOW_TORCH to where it is",
            beside.map_or_else(|| "beside flow".to_owned(), |path| format!("at {}", path.display()))
        ),
    }
}

/// Asks a worker program what it is.
///
/// # Errors
/// It does not start, does not answer, or speaks another protocol.
pub fn about(program: &Path) -> Result<About> {
    let name = program.display();
    let mut command = Command::new(program);
    command.arg("--about").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    // Read on threads of their own: a pipe that is full would keep it from ending.
    let read = |mut pipe: Box<dyn std::io::Read + Send>| {
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = pipe.by_ref().take(1 << 20).read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let stdout = read(Box::new(child.stdout.take().context("its output is a pipe")?));
    let stderr = read(Box::new(child.stderr.take().context("its errors are a pipe")?));
    let deadline = Instant::now() + ABOUT_TIMEOUT;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("{name} --about did not answer within {} s", ABOUT_TIMEOUT.as_secs());
        }
        thread::sleep(Duration::from_millis(5));
    };
    let text = |reader: thread::JoinHandle<String>| reader.join().unwrap_or_default();
    let (stdout, stderr) = (text(stdout), text(stderr));
    ensure!(status.success(), "{name} --about failed ({status}): {}", stderr.trim());
    let about: About = serde_json::from_str(stdout.trim())
        .with_context(|| format!("{name} --about did not answer with what a worker is: {}", stdout.trim()))?;
    ensure!(
        about.protocol == PROTOCOL && about.version == env!("CARGO_PKG_VERSION"),
        "{name} is version {} and speaks protocol {}, this flow is {} and speaks {PROTOCOL}: build both from the same source",
        about.version,
        about.protocol,
        env!("CARGO_PKG_VERSION")
    );
    Ok(about)
}
