//! `flow doctor`

use std::path::Path;

use anyhow::{Context, Result};
use flow_cache::Cache;
use flow_core::Diagnostic;
use flow_engine::Settings;

use super::Done;
use crate::{failure::Failure, out, ui::format::bytes};

/// Checks that this machine has what flow needs.
pub fn doctor() -> Done {
    let mut lines = vec![("ok", "flow", env!("CARGO_PKG_VERSION").to_owned())];
    let mut wrong = 0;
    let mut say = |what: &'static str, found: Result<String>| match found {
        Ok(found) => lines.push(("ok", what, found)),
        Err(error) => {
            wrong += 1;
            lines.push(("BAD", what, format!("{error:#}")));
        }
    };
    match Settings::load(Path::new("."), &|name| std::env::var(name).ok()) {
        Ok(settings) => {
            let files: Vec<String> = settings.sources.iter().map(|path| path.display().to_string()).collect();
            say("settings", Ok(if files.is_empty() { "defaults".into() } else { files.join(", ") }));
            say("cache", cache(&settings.cache_dir));
            let (cpus, gpus, memory) = (settings.cpus, settings.gpus, bytes(settings.memory));
            say("machine", Ok(format!("{cpus} cores, {gpus} GPUs, {memory} of memory")));
        }
        Err(errors) => {
            for error in errors {
                say("settings", Err(error.into()));
            }
        }
    }
    say("trainer", trainer());
    let rows: Vec<Vec<String>> =
        lines.into_iter().map(|(state, what, found)| vec![state.to_owned(), what.to_owned(), found]).collect();
    out::write(&out::table(&rows, &[]))?;
    if wrong == 0 {
        return Ok(());
    }
    Err(Failure::absent(Diagnostic::new("this machine lacks something").hint("see the lines marked BAD")))
}

/// The cache's directory can be written.
fn cache(dir: &Path) -> Result<String> {
    let cache = Cache::open(dir)?;
    let trial = cache.root().join("tmp").join(format!("doctor-{}", std::process::id()));
    let written =
        std::fs::write(&trial, b"flow").with_context(|| format!("cannot write in {}", cache.root().display()));
    let _ = std::fs::remove_file(&trial);
    written?;
    Ok(format!("{}, writable", cache.root().display()))
}

/// The worker program answers, and speaks our language.
fn trainer() -> Result<String> {
    let program = flow_data::worker()?;
    let about = flow_data::about(&program)?;
    Ok(format!("{} {}, libtorch {}, CUDA {}", program.display(), about.version, about.libtorch, about.cuda))
}
