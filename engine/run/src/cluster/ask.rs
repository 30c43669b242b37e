//! Programs of the cluster: asked with patience that ends.

use std::{
    io::Read,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use flow_core::{Cancel, Cancelled};

/// A controller that is busy answers after tens of seconds; Slurm's own programs give up after this.
const PATIENCE: Duration = Duration::from_secs(100);

/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(10);

/// Ends with a program, which nobody reads any more.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What a program says. Who asks for nothing that must be said to its end names what stops it.
///
/// # Errors
/// It does not start, or does not end; or it was stopped.
pub fn ask(command: &mut Command, stop: Option<&Cancel>) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    // What opens the team's cache is nobody's but flow's, and a scheduler keeps its jobs' environment.
    for secret in flow_core::SECRETS {
        command.env_remove(secret);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Ended(command.spawn().with_context(|| format!("cannot start `{name}`"))?);
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
            bytes
        })
    };
    let stdout = read(child.0.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let stderr = read(child.0.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.0.try_wait()? {
            break status;
        }
        if stop.is_some_and(Cancel::is_set) {
            return Err(Cancelled.into());
        }
        if began.elapsed() > PATIENCE {
            bail!("`{name}` did not answer within {} s", PATIENCE.as_secs());
        }
        thread::sleep(LOOK);
    };
    let text = |reader: thread::JoinHandle<Vec<u8>>| reader.join().unwrap_or_default();
    Ok(Output { status, stdout: text(stdout), stderr: text(stderr) })
}

/// What a program said when it failed, in a line.
pub fn complaint(output: &Output) -> String {
    let text = [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    let said = text.into_iter().find(|text| !text.is_empty()).unwrap_or_else(|| output.status.to_string());
    said.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}
