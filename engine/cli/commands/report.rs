//! `flow report`

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    path::Path,
};

use anyhow::Context as _;
use flow_core::Diagnostic;
use flow_engine::{History, RunInfo};

use super::{Done, open_here, show::find};
use crate::{
    args,
    failure::Failure,
    out,
    report::{Library, Report, page},
};

/// So much of a file is looked at to tell whether flow wrote it.
const HEAD: u64 = 1024;

/// Writes a page about some runs.
pub fn report(args: &args::Report) -> Done {
    let (_, cache) = open_here()?;
    let history = History::open(&cache);
    let mut runs: Vec<RunInfo> = Vec::new();
    for id in &args.runs {
        runs.push(find(&history, id)?);
    }
    let library = Library::new(&cache);
    if args.json {
        let report = Report::of(&library, &runs)?;
        let json = serde_json::to_string(&report).context("the report as JSON")?;
        return Ok(out::line(json)?);
    }
    let to = args.output.as_path();
    if to == Path::new("-") {
        return Ok(out::write(&page::written(&Report::of(&library, &runs)?))?);
    }
    // Before the work.
    if !args.force {
        may_write(to)?;
    }
    write(to, &page::written(&Report::of(&library, &runs)?))?;
    let full = to.canonicalize().unwrap_or_else(|_| to.to_owned());
    Ok(out::line(full.display().to_string())?)
}

/// Nothing is there, or what flow wrote.
fn may_write(to: &Path) -> Result<(), Failure> {
    let mut head = Vec::new();
    let read = File::open(to).and_then(|file| file.take(HEAD).read_to_end(&mut head));
    match read {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Ok(_) if String::from_utf8_lossy(&head).contains(page::GENERATOR) => return Ok(()),
        _ => {}
    }
    let wrong = Diagnostic::new(format!("{} is there and is no report of flow", to.display()));
    Err(wrong.hint("name another file with `-o`, or use --force").into())
}

/// Whole or not at all.
fn write(to: &Path, page: &str) -> Result<(), Failure> {
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let on_its_way = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = (|| {
        let mut file = File::create(&on_its_way)?;
        file.write_all(page.as_bytes())?;
        file.sync_all()?;
        fs::rename(&on_its_way, to)
    })();
    written.map_err(|error| {
        fs::remove_file(&on_its_way).ok();
        let wrong = Diagnostic::new(format!("cannot write {}: {error}", to.display()));
        Failure::Pipeline(vec![wrong.hint("name a file with `-o`, in a directory that is there and may be written to")])
    })
}
