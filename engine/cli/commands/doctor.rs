//! `flow doctor`: what this machine has, where each setting comes from, and what is wrong.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::Path,
};

use anyhow::{Context, Result, bail};
use flow_cache::{Cache, RemoteConfig};
use flow_core::Diagnostic;
use flow_engine::Settings;

use super::Done;
use crate::{
    failure::Failure,
    out,
    ui::format::{bytes, duration},
};

/// Where the way out may lead through.
const PROXIES: [&str; 4] = ["https_proxy", "http_proxy", "all_proxy", "no_proxy"];

/// Lines, and how many of them say that something is wrong.
#[derive(Default)]
struct Report {
    lines: Vec<Vec<String>>,
    wrong: usize,
    /// Some of it in a file that the user wrote.
    settings: bool,
}

impl Report {
    fn say(&mut self, what: &str, found: Result<String>) {
        let (state, text) = match found {
            Ok(text) => ("ok", text),
            Err(error) => {
                self.wrong += 1;
                ("BAD", format!("{error:#}"))
            }
        };
        self.lines.push(vec![state.to_owned(), what.to_owned(), text]);
    }
}

/// Checks that this machine has what flow needs.
pub fn doctor() -> Done {
    let mut report = Report::default();
    report.say("flow", Ok(format!("{} at {}", env!("CARGO_PKG_VERSION"), own_path())));
    match Settings::load(Path::new("."), &|name| std::env::var(name).ok()) {
        Ok(settings) => {
            let (cpus, gpus, memory) = (settings.cpus, settings.gpus, bytes(settings.memory));
            report.say("machine", Ok(format!("{cpus} cores, {gpus} GPUs, {memory} of memory")));
            tell_settings(&settings, &mut report);
            report.say("cache", cache(&settings.cache_dir));
            report.say("locks", locks(&settings.cache_dir));
            if let Some(remote) = &settings.remote {
                report.say("team", team(&settings.cache_dir, &remote.config));
            }
        }
        Err(errors) => {
            report.settings = true;
            for error in errors {
                report.say("settings", Err(error.into()));
            }
        }
    }
    report.say("trainer", trainer());
    report.say("containers", Ok(containers()));
    for (name, value) in PROXIES.iter().filter_map(|name| proxy(name)) {
        report.say("proxy", Ok(format!("{name} = {}", without_password(&value))));
    }
    out::write(&out::table(&report.lines, &[]))?;
    let said = format!("{} of this is not as it must be: see the lines marked BAD", report.wrong);
    match report.wrong {
        0 => Ok(()),
        _ if report.settings => Err(Diagnostic::new(said).into()),
        _ => Err(Failure::Cache(anyhow::anyhow!(said))),
    }
}

fn own_path() -> String {
    std::env::current_exe().map_or_else(|_| "an unknown place".into(), |path| path.display().to_string())
}

/// Each setting that somebody made, and who.
fn tell_settings(settings: &Settings, report: &mut Report) {
    let mut made: Vec<(String, String)> = Vec::new();
    for path in &settings.sources {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // It was read as settings before, so it is a table.
        for name in text.parse::<toml::Table>().unwrap_or_default().keys() {
            made.retain(|(known, _)| known != name);
            made.push((name.clone(), path.display().to_string()));
        }
    }
    for name in ["cache_dir", "jobs", "cpus", "gpus", "memory", "wait", "connections", "container_engine"] {
        let variable = match name {
            "container_engine" => "FLOW_CONTAINER".to_owned(),
            name => format!("FLOW_{}", name.to_uppercase()),
        };
        if std::env::var_os(&variable).is_some() {
            made.retain(|(known, _)| known != name);
            made.push((name.to_owned(), variable));
        }
    }
    if made.is_empty() {
        return report.say("settings", Ok("none: all is as it comes".into()));
    }
    for (name, by) in made {
        report.say("setting", Ok(format!("{name} by {by}")));
    }
}

/// The cache's directory can be written, and has room.
fn cache(dir: &Path) -> Result<String> {
    let cache = Cache::open(dir)?;
    let root = cache.root().display();
    let trial = cache.root().join("tmp").join(format!("doctor-{}", std::process::id()));
    let written = std::fs::write(&trial, b"flow").with_context(|| format!("cannot write in {root}"));
    let _ = std::fs::remove_file(&trial);
    written?;
    let space = rustix::fs::statvfs(cache.root()).with_context(|| format!("cannot ask for the room in {root}"))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    Ok(format!("{root}, writable, {} free of {}", bytes(free), bytes(space.f_blocks.saturating_mul(space.f_frsize))))
}

/// The team's cache answers, and what goes out can be signed as it is asked for.
fn team(cache_dir: &Path, config: &RemoteConfig) -> Result<String> {
    let cache = Cache::open(cache_dir)?;
    cache.connect(config.clone());
    let Some(remote) = cache.remote() else { bail!("it cannot be connected") };
    let signed = match config.trust.signs_as()? {
        Some(key) => format!("signs as {key}"),
        None => "signs nothing".into(),
    };
    let took = remote.probe().with_context(|| format!("{} cannot be used", remote.location()))?;
    let mode = if remote.writes() { "read-write" } else { "read" };
    let names = config.trust.trusted_keys.iter().map(|key| key.name.clone().unwrap_or_else(|| key.key.to_string()));
    let trusted = names.collect::<Vec<_>>().join(", ");
    let trusts = if trusted.is_empty() { "everybody".into() } else { trusted };
    let took = duration(took.as_secs_f64());
    Ok(format!("{}, {mode}, answers in {took}, {signed}, trusts {trusts}", remote.location()))
}

/// Locks hold: who has the same file open cannot take what is taken.
fn locks(dir: &Path) -> Result<String> {
    let path = dir.join("tmp").join(format!("doctor-{}.lock", std::process::id()));
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let tried = (|| -> Result<String> {
        let (first, second): (File, File) = (open()?, open()?);
        first.try_lock().context("the file system has no locks: two flows may do the same work twice")?;
        match second.try_lock() {
            Err(TryLockError::WouldBlock) => Ok("hold".into()),
            _ => bail!("the file system gives the same lock twice: two flows may do the same work twice"),
        }
    })();
    let _ = std::fs::remove_file(&path);
    tried
}

/// The worker program answers, and speaks our language.
fn trainer() -> Result<String> {
    let program = flow_data::worker()?;
    let about = flow_data::about(&program)?;
    Ok(format!("{} {}, libtorch {}, CUDA {}", program.display(), about.version, about.libtorch, about.cuda))
}

/// What runs containers. A machine that has nothing of the kind lacks nothing, until a stage names an image.
fn containers() -> String {
    let found = flow_data::container_engines();
    let told: Vec<String> = found.iter().map(|(name, place)| format!("{name} ({})", place.display())).collect();
    if told.is_empty() { "nothing runs them here".into() } else { told.join(", ") }
}

/// The variable in either spelling.
fn proxy(name: &str) -> Option<(String, String)> {
    let spellings = [name.to_owned(), name.to_uppercase()];
    let set = |name: String| std::env::var(&name).ok().filter(|value| !value.is_empty()).map(|value| (name, value));
    spellings.into_iter().find_map(set)
}

/// `http://user:secret@host` → `http://***@host`
fn without_password(url: &str) -> String {
    match url.split_once("://").map(|(scheme, rest)| (scheme, rest.rsplit_once('@'))) {
        Some((scheme, Some((_, host)))) => format!("{scheme}://***@{host}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_uses_a_proxy_is_not_told() {
        assert_eq!(without_password("http://a:b@proxy:3128"), "http://***@proxy:3128");
        assert_eq!(without_password("http://proxy:3128"), "http://proxy:3128");
    }
}
