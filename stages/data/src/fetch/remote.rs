//! Files from the web and from the hub. What is whole waits in the scratch directory until everything is there, so
//! that an interrupted run goes on from its last byte.

use std::{cell::Cell, fs, path::Path};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flow_core::{Cancelled, Ctx, Digest, Entry, Level, Tree, Unchanged, Unit};
use reqwest::{StatusCode, Url};

use super::{
    Filter,
    hub::{Hub, HubFile, Repository},
    local::copy_file,
    source::file_name,
};
use crate::http::{Checksums, Download, Downloaded, Http, WrongLength, redacted, wait};

/// One file that is wanted.
pub struct Wanted<'a> {
    /// Where it is: the first is what it is known by.
    pub urls: &'a [Url],
    /// How long it must be.
    pub size: Option<u64>,
    /// What it must be.
    pub checksums: Checksums,
}

/// A place that is asked for a file.
struct Place {
    url: Url,
    /// It is what the file is known by, and not another place.
    own: bool,
}

impl Wanted<'_> {
    /// Downloads the file, from the first of its places that has it as it must be.
    ///
    /// # Errors
    /// None has it.
    pub fn fetch(&self, ctx: &Ctx<'_>, http: &Http) -> Result<()> {
        let name = file_name(&self.urls[0]).context("the URL names no file")?;
        let file = ctx.scratch.join("file");
        let (places, hasty) = (self.places(ctx), http.hasty());
        let (downloaded, place) = wait(ctx, async {
            for (i, place) in places.iter().enumerate() {
                let next = places.get(i + 1);
                let http = if next.is_some() { &hasty } else { http };
                match (self.fetch_from(ctx, http, place, &file, &name, next.is_none()).await, next) {
                    (Ok(downloaded), _) => return Ok((downloaded, place)),
                    (Err(error), Some(next)) if !error.is::<Unchanged>() => {
                        let next = redacted(next.url.as_str());
                        ctx.log(Level::Warning, format!("{error:#}; trying {next}"));
                    }
                    (Err(error), None) if i > 0 => {
                        return Err(
                            error.context(format!("{name} cannot be had in any of {} places; in the last", i + 1))
                        );
                    }
                    (Err(error), _) => return Err(error),
                }
            }
            bail!("{name} is nowhere")
        })?;
        ctx.remark(|remarks| {
            // Of another place it says nothing about this one.
            remarks.etag = downloaded.etag.clone().filter(|_| place.own);
            remarks.resumed = Some(downloaded.resumed_at > 0);
        });
        ctx.log(Level::Info, told(&redacted(place.url.as_str()), &downloaded));
        publish(&file, &ctx.out.join(name))
    }

    /// In order: the mirrors of a URL come before it. Who looks whether anything changed asks the URL itself first.
    fn places(&self, ctx: &Ctx<'_>) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::new();
        for (i, url) in self.urls.iter().enumerate() {
            // What opens the one server is none of the other's business.
            let mirrors = ctx.network.mirrors_of(&redacted(url.as_str()));
            let mirrors = mirrors.iter().filter_map(|mirror| Url::parse(mirror).ok());
            let all = mirrors.map(|url| Place { url, own: false }).chain([Place { url: url.clone(), own: i == 0 }]);
            places.extend(all);
        }
        if ctx.before.is_some() {
            places.sort_by_key(|place| !place.own);
        }
        places
    }

    async fn fetch_from(
        &self,
        ctx: &Ctx<'_>,
        http: &Http,
        place: &Place,
        file: &Path,
        name: &str,
        last: bool,
    ) -> Result<Downloaded> {
        let shown = redacted(place.url.as_str());
        let part = match place.own {
            true => "part".to_owned(),
            false => format!("part-{}", Digest::of(shown.as_bytes()).short()),
        };
        let unless = ctx.before.and_then(|before| before.etag.as_deref()).filter(|_| place.own);
        let download = Download {
            url: place.url.clone(),
            token: None,
            part: ctx.scratch.join(part),
            file: file.to_owned(),
            size: self.size.or(ctx.pinned.map(|pinned| pinned.size)),
            checksums: self.checksums.clone(),
            unless,
        };
        let say = |text: String| ctx.log(Level::Warning, text);
        let progress = |done: u64, total: Option<u64>| ctx.progress(done, total, Unit::Bytes);
        let differs =
            || format!("{shown} gives something else than flow.lock pins: `flow lock --update PIPELINE` takes it");
        let downloaded = download.run(http, &say, &progress).await.map_err(|failure| match failure.status {
            Some(StatusCode::NOT_MODIFIED) if unless.is_some() => {
                ctx.log(Level::Info, format!("{shown}: {Unchanged}"));
                ctx.remark(|remarks| remarks.etag = unless.map(str::to_owned));
                Unchanged.into()
            }
            _ if self.size.is_none() && failure.error.is::<WrongLength>() => failure.error.context(differs()),
            _ => failure.error,
        })?;
        // Whether the last one is what it must be, the engine says.
        if let Some(pinned) = ctx.pinned.filter(|_| !last)
            && digest_of(name, file)? != pinned.digest
        {
            fs::remove_file(file)?;
            bail!(differs());
        }
        Ok(downloaded)
    }
}

/// The digest of the result that holds this file alone.
fn digest_of(name: &str, file: &Path) -> Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap_rayon(file).with_context(|| format!("cannot read {}", file.display()))?;
    let (digest, size) = (Digest(*hasher.finalize().as_bytes()), file.metadata()?.len());
    let entry = Entry { name: name.to_owned(), digest, size, executable: false };
    let tree = Tree::new(vec![entry]).map_err(|error| anyhow!("{error}"))?;
    Ok(tree.digest())
}

/// Downloads a repository, from the mirrors of the hub or from itself.
///
/// # Errors
/// None of them gives what the filter takes.
pub fn repository(ctx: &Ctx<'_>, http: &Http, hub: &Hub, repository: &Repository, filter: &Filter) -> Result<()> {
    let mut hubs = vec![hub.clone()];
    if !hub.offline {
        // The token is for the hub alone. Who looks whether anything changed asks itself first.
        let mirrors = ctx.network.mirrors_of(&hub.endpoint).into_iter();
        let mirrors = mirrors.map(|endpoint| endpoint.trim_end_matches('/').to_owned());
        let mirrors = mirrors.map(|endpoint| Hub { endpoint, token: None, ..hub.clone() });
        let at = if ctx.before.is_some() { 1 } else { 0 };
        hubs.splice(at..at, mirrors);
    }
    let hasty = http.hasty();
    for (i, hub) in hubs.iter().enumerate() {
        let next = hubs.get(i + 1);
        match (from_hub(ctx, if next.is_some() { &hasty } else { http }, hub, repository, filter), next) {
            (Err(error), Some(next)) if !error.is::<Unchanged>() && !error.is::<Cancelled>() => {
                ctx.log(Level::Warning, format!("{error:#}; trying {}", redacted(&next.endpoint)));
            }
            (ended, _) => return ended,
        }
    }
    Ok(())
}

/// Downloads the files of a repository that the filter takes.
///
/// # Errors
/// The hub does not have them, or they are not what they must be; or the filter takes none.
fn from_hub(ctx: &Ctx<'_>, http: &Http, hub: &Hub, repository: &Repository, filter: &Filter) -> Result<()> {
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
