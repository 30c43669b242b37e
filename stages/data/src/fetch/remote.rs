//! Files from the web and from the hub. What is whole waits in the scratch directory until everything is there, so
//! that an interrupted run goes on from its last byte.

use std::{cell::Cell, fs, path::Path};

use anyhow::{Context, Result, ensure};
use flow_core::{Ctx, Level, Unchanged, Unit};
use reqwest::{StatusCode, Url};

use super::{
    Filter,
    hub::{Hub, HubFile, Repository},
    local::copy_file,
    source::file_name,
};
use crate::http::{Checksums, Download, Downloaded, Http, redacted, wait};

/// Downloads one file.
///
/// # Errors
/// The server does not have it, or it is not what it must be.
pub fn file(ctx: &Ctx<'_>, http: &Http, url: Url, checksums: Checksums) -> Result<()> {
    let name = file_name(&url).context("the URL names no file")?;
    let shown = redacted(url.as_str());
    let (part, file) = (ctx.scratch.join("part"), ctx.scratch.join("file"));
    let unless = ctx.before.and_then(|before| before.etag.as_deref());
    let download = Download { url, token: None, part, file: file.clone(), size: None, checksums, unless };
    let say = |text: String| ctx.log(Level::Warning, text);
    let progress = |done: u64, total: Option<u64>| ctx.progress(done, total, Unit::Bytes);
    let downloaded = wait(ctx, async {
        download.run(http, &say, &progress).await.map_err(|failure| match failure.status {
            Some(StatusCode::NOT_MODIFIED) if unless.is_some() => Unchanged.into(),
            _ => failure.error,
        })
    });
    let downloaded = downloaded.inspect_err(|error| {
        if error.is::<Unchanged>() {
            ctx.log(Level::Info, format!("{shown}: {Unchanged}"));
            ctx.remark(|remarks| remarks.etag = unless.map(str::to_owned));
        }
    })?;
    ctx.remark(|remarks| {
        remarks.etag.clone_from(&downloaded.etag);
        remarks.resumed = Some(downloaded.resumed_at > 0);
    });
    ctx.log(Level::Info, told(&shown, &downloaded));
    publish(&file, &ctx.out.join(name))
}

/// Downloads the files of a repository that the filter takes.
///
/// # Errors
/// As for [`file`], or the filter takes none.
pub fn repository(ctx: &Ctx<'_>, http: &Http, hub: &Hub, repository: &Repository, filter: &Filter) -> Result<()> {
    let say = |text: String| ctx.log(Level::Warning, text);
    wait(ctx, async {
        // A branch moves on; what flow.lock pins is what it was.
        let pinned = ctx.pinned.and_then(|pinned| pinned.revision.as_deref());
        let commit = hub.commit(http, repository, pinned, &say).await?;
        ctx.remark(|remarks| remarks.revision = Some(commit.id.clone()));
        if ctx.before.is_some_and(|before| before.revision.as_ref() == Some(&commit.id)) {
            ctx.log(Level::Info, format!("{} is still at commit {}", repository.name, commit.id));
            return Err(Unchanged.into());
        }
        let wanted: Vec<_> = commit.files.iter().filter(|file| filter.takes(&file.name)).collect();
        ensure!(!wanted.is_empty(), "none of the {} files of {} matches", commit.files.len(), repository.name);
        ctx.log(Level::Info, format!("{} at commit {}: {} files", repository.name, commit.id, wanted.len()));

        // What an earlier run left of another commit is of no use.
        let place = ctx.scratch.join(&commit.id);
        for entry in fs::read_dir(ctx.scratch)? {
            let path = entry?.path();
            if path != place {
                fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path))?;
            }
        }
        let (parts, whole) = (place.join("parts"), place.join("whole"));
        for directory in [&parts, &whole] {
            fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        }

        let total = wanted.iter().map(|file| file.size).sum::<Option<u64>>();
        let done: Vec<Cell<u64>> = wanted.iter().map(|_| Cell::new(0)).collect();
        let (next, resumed) = (Cell::new(0), Cell::new(false));
        // A few at once: the hub's files come from a store that is slow for one connection.
        let worker = async || {
            while let Some(file) = wanted.get(next.get()) {
                let i = next.replace(next.get() + 1);
                // The number, and not the name, which may have directories in it.
                let target = whole.join(i.to_string());
                let progress = |bytes: u64, _: Option<u64>| {
                    done[i].set(bytes);
                    ctx.progress(done.iter().map(Cell::get).sum(), total, Unit::Bytes);
                };
                if let Ok(known) = target.metadata() {
                    progress(known.len(), None);
                    resumed.set(true);
                    continue;
                }
                if let Some(cached) = hub.cached(repository, &commit.id, file) {
                    take(ctx, &cached, file, &parts.join(format!("{i}.copy")), &target)?;
                    progress(file.size.unwrap_or(0), None);
                    ctx.log(Level::Info, format!("{}: from {}", file.name, cached.display()));
                    continue;
                }
                let url = hub.file_url(repository, &commit.id, &file.name)?;
                let checksums = Checksums { sha256: file.sha256.clone(), blake3: None };
                let (part, token) = (parts.join(i.to_string()), hub.token.as_deref());
                let download = Download { url, token, part, file: target, size: file.size, checksums, unless: None };
                let downloaded = download.run(http, &say, &progress).await;
                let downloaded = downloaded.map_err(|failure| hub.explain(repository, failure))?;
                resumed.set(resumed.get() || downloaded.resumed_at > 0);
                ctx.log(Level::Info, told(&file.name, &downloaded));
            }
            anyhow::Ok(())
        };
        tokio::try_join!(worker(), worker(), worker(), worker())?;
        ctx.remark(|remarks| remarks.resumed = Some(resumed.get()));
        for (i, file) in wanted.iter().enumerate() {
            publish(&whole.join(i.to_string()), &ctx.out.join(&file.name))?;
        }
        Ok(())
    })
}

/// Takes a file from the hub's cache of this machine, if it is what it must be.
fn take(ctx: &Ctx<'_>, cached: &Path, file: &HubFile, copy: &Path, target: &Path) -> Result<()> {
    let _ = fs::remove_file(copy);
    copy_file(cached, copy, |_| Ok(ctx.go_on()?))?;
    let checksums = Checksums { sha256: file.sha256.clone(), blake3: None };
    let mut hashers = checksums.hashers();
    hashers.update_from(copy, u64::MAX)?;
    checksums.verify(hashers, &cached.display().to_string())?;
    fs::rename(copy, target).with_context(|| format!("cannot create {}", target.display()))
}

fn told(name: &str, downloaded: &Downloaded) -> String {
    let Downloaded { size, etag, resumed_at } = downloaded;
    let etag = etag.as_ref().map_or(String::new(), |etag| format!(", ETag {etag}"));
    let resumed = if *resumed_at > 0 { format!(", {resumed_at} of them from an earlier run") } else { String::new() };
    format!("{name}: {size} bytes{resumed}{etag}")
}

fn publish(file: &Path, target: &Path) -> Result<()> {
    let cannot = || format!("cannot create {}", target.display());
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).with_context(cannot)?;
    }
    fs::rename(file, target).with_context(cannot)
}
