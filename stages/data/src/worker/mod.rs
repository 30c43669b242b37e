//! The worker program, `flow-torch`: where it is, whether it speaks our language, and running one process a rank.
//!
//! Tensors never enter this program: a spoiled GPU or a crash in libtorch takes a worker, not `flow`.

mod agents;
pub mod mesh;
mod ranks;
mod reach;
mod supervise;
#[cfg(test)]
mod tests;

use std::{
    env,
    io::Read as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use flow_core::{Cancel, Check, Diagnostic};
use serde::Deserialize;
use serde_json::Value as Json;

pub use ranks::{Line, Ranks, Stream};
pub use supervise::{Launch, verdict};

use crate::{container::Inside, diagnostic};

/// The version of what `flow` and a worker say to each other: arguments, environment, [`flow_plan::Job`], events.
pub const PROTOCOL: u32 = 2;

/// The name of the program.
const PROGRAM: &str = "flow-torch";

/// Loading libtorch from a cold disk takes seconds; more than this is a hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// So long a plan waits for what it can do without.
const GLANCE: Duration = Duration::from_secs(10);

/// So long the words of a worker that has ended may be on their way.
const WORDS: Duration = Duration::from_secs(2);

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
            "{PROGRAM} is not {} and not on the PATH",
            beside.map_or_else(|| "beside flow".to_owned(), |path| format!("at {}", path.display()))
        ),
    }
}

/// Says before the run that the worker is missing, or no worker of this flow: an error when a run is about to begin,
/// which must not find out after hours of other work; else a warning, because a plan can do without.
pub fn check(check: &mut Check<'_>) {
    if check.elsewhere {
        return;
    }
    /// Several stages ask about one program.
    static ASKED: Mutex<Option<(PathBuf, Option<Diagnostic>)>> = Mutex::new(None);
    let cancel = check.about_to_run;
    let look = |patience| -> Option<Diagnostic> {
        let program = match worker() {
            Ok(program) => program,
            Err(error) => return Some(diagnostic(&error)),
        };
        let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
        match &*asked {
            Some((before, wrong)) if *before == program => wrong.clone(),
            _ => {
                let wrong = about_within(&program, patience, cancel).err().map(|error| diagnostic(&error));
                if cancel.is_some_and(Cancel::is_set) {
                    return None;
                }
                *asked = Some((program, wrong.clone()));
                wrong
            }
        }
    };
    let wrong = look(if cancel.is_some() { PATIENCE } else { GLANCE });
    let Some(wrong) = wrong else { return };
    let wrong = wrong.hint(format!(
        "`cargo xtask build` builds flow and {PROGRAM} from one source; or set FLOW_TORCH to where a {PROGRAM} {} is",
        env!("CARGO_PKG_VERSION")
    ));
    if cancel.is_some() {
        check.errors.push(wrong);
    } else {
        check.warnings.push(wrong);
    }
}

/// Asks a worker program what it is.
///
/// # Errors
/// It does not start, does not answer, or speaks another protocol.
pub fn about(program: &Path) -> Result<About> {
    about_within(program, PATIENCE, None)
}

/// As [`about`], of the program as it is in a container.
///
/// # Errors
/// As there.
pub fn about_inside(program: &Path, inside: &Inside) -> Result<About> {
    let mut command = Command::new(program);
    command.arg("--about");
    let about = ask(inside.wrap(&command, "about")?, &program.display().to_string(), PATIENCE, None);
    about.context("in its container")
}

fn about_within(program: &Path, patience: Duration, cancel: Option<&Cancel>) -> Result<About> {
    let mut command = Command::new(program);
    command.arg("--about");
    ask(command, &program.display().to_string(), patience, cancel)
}

fn ask(mut command: Command, name: &str, patience: Duration, cancel: Option<&Cancel>) -> Result<About> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    // Read on threads of their own: a pipe that is full would keep it from ending, and one that something else holds
    // open would keep us.
    let read = |pipe: Box<dyn std::io::Read + Send>| {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = pipe.take(1 << 20).read_to_end(&mut text);
            let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
        });
        receiver
    };
    let stdout = read(Box::new(child.stdout.take().context("its output is a pipe")?));
    let stderr = read(Box::new(child.stderr.take().context("its errors are a pipe")?));
    let deadline = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() > deadline || cancel.is_some_and(Cancel::is_set) {
            break None;
        }
        thread::sleep(Duration::from_millis(5));
    };
    ranks::kill_group(&child, libc::SIGKILL);
    let Some(status) = status else {
        child.wait()?;
        bail!("{name} --about did not answer within {} s", patience.as_secs());
    };
    let text = |words: mpsc::Receiver<String>| words.recv_timeout(WORDS).unwrap_or_default();
    let (stdout, stderr) = (text(stdout), text(stderr));
    ensure!(status.success(), "{name} --about failed ({status}): {}", stderr.trim());
    let about: About = serde_json::from_str(stdout.trim())
        .with_context(|| format!("{name} --about did not answer with what a worker is: {}", stdout.trim()))?;
    ensure!(
        about.protocol == PROTOCOL && about.version == env!("CARGO_PKG_VERSION"),
        "{name} is version {} and speaks protocol {}, this flow is {} and speaks {PROTOCOL}",
        about.version,
        about.protocol,
        env!("CARGO_PKG_VERSION")
    );
    Ok(about)
}
