//! Weights & Biases: what a training measures goes into a run directory as the `wandb` client keeps it offline, which
//! `wandb sync` takes. With `WANDB_API_KEY` set, and unless `WANDB_MODE` says otherwise, that client is started to sync it
//! while the run goes on: what it says to its server is its own business, and changes.

mod log;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use flow_core::{Ctx, Event, Level, Sink};
use flow_plan::Wandb;
use serde_json::Value as Json;

use log::{Head, Log};

/// What keeps the id of a training that goes on.
const ID: &str = "wandb-id";
/// So long the client may take to send the last of a run.
const LAST: Duration = Duration::from_secs(60);

/// A run that is written, as the sink of a training's events: they all go on to `to`.
pub struct Run<'a> {
    to: &'a dyn Sink,
    node: &'a str,
    dir: PathBuf,
    log: Mutex<Option<Log>>,
    client: Option<Child>,
}

impl<'a> Run<'a> {
    /// Begins a run, or the next part of one that was interrupted.
    pub fn begin(wandb: &Wandb, config: &Json, ctx: &Ctx<'a>) -> Result<Self> {
        let id = match &wandb.id {
            Some(id) => id.clone(),
            None => kept_id(ctx)?,
        };
        let now = SystemTime::now();
        let name = format!("offline-run-{}-{id}", stamp(now));
        let dir = ctx.project.join(&wandb.dir).join(name);
        for folder in ["files", "logs"] {
            fs::create_dir_all(dir.join(folder)).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let head = Head {
            id: &id,
            project: &wandb.project,
            entity: wandb.entity.as_deref(),
            name: wandb.name.as_deref().unwrap_or(ctx.node),
            group: wandb.group.as_deref(),
            tags: &wandb.tags,
            host: host.trim(),
            config,
            began: seconds(now),
        };
        let log = Log::begin(&dir.join(format!("run-{id}.wandb")), &head)?;
        let client = client(&dir, ctx);
        Ok(Self { to: ctx.sink, node: ctx.node, dir, log: Mutex::new(Some(log)), client })
    }

    /// The run is over. Never an error: a training is not lost for its curves.
    pub fn end(mut self, well: bool) {
        self.write(|log| log.exit(u64::from(!well)));
        let Some(mut client) = self.client.take() else { return };
        let until = Instant::now() + LAST;
        while Instant::now() < until {
            match client.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(50)),
                Ok(Some(status)) if status.success() => return,
                Ok(Some(_)) | Err(_) => break,
            }
        }
        let _ = client.kill().and_then(|()| client.wait());
        self.warn(format!("Weights & Biases has not got all of the run: wandb sync {}", self.dir.display()));
    }

    /// Adds to the file; after the first failure nothing more.
    fn write(&self, write: impl FnOnce(&mut Log) -> Result<()>) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = log.as_mut().map(write) {
            *log = None;
            self.warn(format!("{}: {error:#}; nothing more of this run goes there", self.dir.display()));
        }
    }

    fn warn(&self, text: String) {
        self.to.emit(Event::log(self.node, Level::Warning, text));
    }
}

impl Sink for Run<'_> {
    fn emit(&self, event: Event) {
        if let Event::Metrics { step, values, .. } = &event {
            let values: Vec<(&str, f64)> = values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            self.write(|log| log.history(*step, seconds(SystemTime::now()), &values));
        }
        self.to.emit(event);
    }
}

/// The id of this training: the one that it had when it was interrupted, or a new one.
fn kept_id(ctx: &Ctx<'_>) -> Result<String> {
    let path = ctx.scratch.join(ID);
    if let Ok(id) = fs::read_to_string(&path)
        && !id.is_empty()
    {
        return Ok(id);
    }
    let mut bytes = [0; 8];
    fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))?;
    let letters = b"abcdefghijklmnopqrstuvwxyz012345";
    let id: String = bytes.iter().map(|byte| letters[usize::from(byte % 32)] as char).collect();
    fs::write(&path, &id).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(id)
}

/// The client that syncs `dir` from now on, where it is wanted and there.
fn client(dir: &Path, ctx: &Ctx<'_>) -> Option<Child> {
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    set("WANDB_API_KEY")?;
    if set("WANDB_MODE").is_some_and(|mode| mode != "online") {
        return None;
    }
    let mut command = Command::new("wandb");
    command.args(["beta", "sync", "--live", "--yes"]).arg(dir);
    let output = fs::File::create(dir.join("logs/sync.log")).map_or_else(|_| Stdio::null(), Stdio::from);
    let errors = fs::File::create(dir.join("logs/sync-errors.log")).map_or_else(|_| Stdio::null(), Stdio::from);
    match command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn() {
        Ok(client) => Some(client),
        Err(error) => {
            ctx.log(
                Level::Warning,
                format!(
                    "WANDB_API_KEY is set, and `wandb`, which sends runs while they go on, does not start ({error}): \
                     pip install wandb, or afterwards wandb sync {}",
                    dir.display()
                ),
            );
            None
        }
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// `20261121_160707`, UTC.
fn stamp(time: SystemTime) -> String {
    // Sat, 21 Nov 2026 16:07:07 GMT
    let text = httpdate::fmt_http_date(time);
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|month| *month == &text[8..11]).unwrap_or(0) + 1;
    format!("{}{month:02}{}_{}", &text[12..16], &text[5..7], text[17..25].replace(':', ""))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::testing::Stand;

    #[test]
    fn a_time_is_written_as_the_client_does() {
        assert_eq!(stamp(UNIX_EPOCH + Duration::from_secs(1_795_277_227)), "20261121_160707");
    }

    #[test]
    fn a_training_that_goes_on_is_the_same_run() {
        let stand = Stand::new();
        let wandb: Wandb = serde_json::from_value(json!({"project": "ja", "dir": "boards"})).unwrap();
        let one = || {
            stand.ctx(|ctx| {
                let run = Run::begin(&wandb, &json!({"lr": 0.1}), ctx).unwrap();
                let values = BTreeMap::from([("loss".to_owned(), 9.0)]);
                run.emit(Event::Metrics { node: "node".into(), step: 1, values });
                let dir = run.dir.clone();
                run.end(true);
                dir
            })
        };
        let first = one();
        assert!(first.starts_with(stand.place("project/boards")));
        let id = fs::read_to_string(stand.place("scratch").join(ID)).unwrap();
        assert!(first.to_str().unwrap().ends_with(&format!("-{id}")));
        let file = fs::read(first.join(format!("run-{id}.wandb"))).unwrap();
        for part in ["loss", "_timestamp", "ja", "0.1"] {
            assert!(file.windows(part.len()).any(|window| window == part.as_bytes()), "{part}");
        }
        // The event goes on to whom it was for.
        assert!(matches!(stand.events.lock().unwrap()[..], [Event::Metrics { step: 1, .. }]));
        thread::sleep(Duration::from_millis(1100));
        let second = one();
        assert_ne!(first, second);
        assert!(second.to_str().unwrap().ends_with(&format!("-{id}")));
    }
}
