//! `flow cache push`, `pull`, `export`, `import` and `keygen`: results that change hands.

use std::{fs::File, io::Read as _, path::Path};

use anyhow::{Context as _, anyhow};
use flow_cache::{Archived, Cache, Pushed, Remote};
use flow_core::{Diagnostic, Key};
use flow_engine::{Settings, holdings};

use super::{Done, draw_warnings, load_and_open, open_here};
use crate::{
    args::{Part, Pipeline},
    failure::Failure,
    interrupt, out,
    ui::format::{bytes, count, plural},
};

/// Gives results to the team.
pub fn push(part: &Part) -> Done {
    let (_, cache, keys) = find(part)?;
    let remote = remote(&cache)?;
    if !remote.writes() {
        let error = Diagnostic::new(format!("the team's cache {} may only be read", remote.location()));
        return Err(error.hint("set `mode = \"read-write\"` in [remote], or FLOW_REMOTE_MODE=read-write").into());
    }
    let cancel = interrupt::watch().map_err(|error| Failure::Cache(error.into()))?;
    let (mut new, mut known, mut too_big, mut sent) = (0, 0, 0, 0);
    let pushed = remote.push_now(&keys, &cancel, |pushed| match pushed {
        Pushed::New(size) => (new, sent) = (new + 1, sent + size),
        Pushed::Known => known += 1,
        Pushed::TooBig => too_big += 1,
        Pushed::Gone => {}
    });
    if cancel.is_set() {
        return Err(Failure::Interrupted);
    }
    pushed.with_context(|| format!("cannot push to the team's cache {}", remote.location()))?;
    if !keys.is_empty() {
        remote.has_answered();
    }
    draw_warnings(&cache);
    let mut text = format!("{} pushed ({}), {} there before", results(new), bytes(sent), count(known));
    if too_big > 0 {
        text += &format!(", {} above `push_limit` known by their records alone", count(too_big));
    }
    eprintln!("{text}");
    Ok(())
}

/// Fetches results from the team.
pub fn pull(part: &Part) -> Done {
    let (cache, remote, project) = match &part.file {
        None => {
            let (_, cache) = open_here()?;
            (cache.clone(), remote(&cache)?, None)
        }
        Some(_) => {
            let (project, _, cache) = load_and_open(&part.pipeline())?;
            (cache.clone(), remote(&cache)?, Some(project))
        }
    };
    remote.insist();
    let failed = || anyhow!("the team's cache {} cannot be used", remote.location());
    let cancel = interrupt::watch().map_err(|error| Failure::Cache(error.into()))?;
    let (mut taken, mut fetched) = (0, 0);
    let (open, unknown) = match &project {
        // What the team knows tells the keys of what comes after it.
        Some(project) => {
            let holdings = holdings(project, &cache, &part.stages, true)?;
            (holdings.missing, holdings.unknown)
        }
        None => {
            let mut open = remote.keys().with_context(failed)?;
            open.retain(|key| !matches!(cache.lookup(key), Ok(Some(_))));
            (open, 0)
        }
    };
    let found = remote.ask_all(&open);
    if remote.has_failed() {
        draw_warnings(&cache);
        return Err(Failure::Cache(failed()));
    }
    let (found, bare): (Vec<_>, Vec<_>) = found.into_iter().flatten().partition(|result| result.has_objects());
    let pulled = remote.pull_all(&found, &cancel, |size| (taken, fetched) = (taken + 1, fetched + size));
    if cancel.is_set() {
        return Err(Failure::Interrupted);
    }
    pulled?;
    let refused = remote.refused(&open);
    if !open.is_empty() {
        remote.has_answered();
    }
    let absent = open.len() - found.len() - bare.len() - refused;
    draw_warnings(&cache);
    let mut text = format!("{} fetched ({})", results(taken), bytes(fetched));
    if !bare.is_empty() {
        text += &format!(", {} known by their records alone", count(bare.len() as u64));
    }
    if absent > 0 {
        text += &format!(", {} that the team does not have", count(absent as u64));
    }
    if unknown > 0 {
        text += &format!(", {} that can be asked for when what they take is here", count(unknown as u64));
    }
    // Why each is not was said.
    if refused > 0 {
        text += &format!(", {} that the team has and that cannot be trusted", count(refused as u64));
    }
    eprintln!("{text}");
    if open.is_empty() || !(found.is_empty() && bare.is_empty()) {
        return Ok(());
    }
    // Whoever asked must not take this for a yes.
    match refused {
        0 => Err(Failure::absent(Diagnostic::new("the team has nothing of what was asked for and is not here"))),
        _ => Err(Failure::Cache(anyhow!("nothing of what was asked for can be trusted"))),
    }
}

/// Writes results to an archive; `overwrite`: also over a file that is none.
pub fn export(to: &Path, part: &Part, overwrite: bool) -> Done {
    may_write(to, part, overwrite)?;
    let (settings, cache, keys) = find(part)?;
    if keys.is_empty() {
        return Err(Failure::absent(Diagnostic::new("there is no result to export").hint("run the pipeline first")));
    }
    let archived = cache.export(&keys, to, &settings.trust)?;
    draw_warnings(&cache);
    eprintln!("{}", told(&archived));
    Ok(())
}

/// Refuses to write an archive over anything but an archive.
fn may_write(to: &Path, part: &Part, overwrite: bool) -> Result<(), Diagnostic> {
    let Ok(found) = std::fs::metadata(to) else { return Ok(()) };
    if !found.is_file() {
        return Err(Diagnostic::new(format!("{} is not a file that can be written anew", to.display())));
    }
    let mut head = [0; 4];
    let archive = File::open(to).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head == flow_cache::ARCHIVE;
    if archive || overwrite {
        return Ok(());
    }
    let error = Diagnostic::new(format!("{} is no archive of flow, and would be overwritten", to.display()));
    Err(match part.file {
        None if to.extension().is_some_and(|ending| ending == "toml") => {
            error.hint(format!("the archive is named first: flow cache export FILE {}", to.display()))
        }
        _ => error.hint("name another file, or use --force"),
    })
}

/// Takes the results of an archive.
pub fn import(from: &Path) -> Done {
    let (settings, cache) = open_here()?;
    let file = File::open(from).map_err(|error| {
        Failure::Pipeline(vec![Diagnostic::new(format!("cannot read {}", from.display())).cause(error.to_string())])
    })?;
    let imported = cache.import(file, &settings.trust);
    draw_warnings(&cache);
    let imported = imported.with_context(|| format!("cannot import {}", from.display()))?;
    eprintln!("{}", told(&imported));
    match imported.refused {
        0 => Ok(()),
        n => Err(Failure::Cache(anyhow!("{} of the archive cannot be trusted and were not taken", results(n)))),
    }
}

/// Makes a signing key.
pub fn keygen(to: Option<&Path>) -> Done {
    let usual = || {
        let directory = |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(std::path::PathBuf::from);
        let config = directory("XDG_CONFIG_HOME").or_else(|| Some(directory("HOME")?.join(".config")));
        config.map(|config| config.join("flow/signing-key"))
    };
    let Some(to) = to.map(Path::to_owned).or_else(usual) else {
        return Err(Diagnostic::new("there is no place for the key").hint("name a file, or set HOME").into());
    };
    let public =
        flow_cache::generate_key(&to).map_err(|error| Failure::Pipeline(vec![crate::failure::from_error(&error)]))?;
    out::line(public.to_string())?;
    eprintln!(
        "the secret half is {}: name it as `sign_key` in [remote]; the line above goes to the `trusted_keys` of others",
        to.display()
    );
    Ok(())
}

/// The keys of the results of a part of a pipeline that are here; of all, if no pipeline is named.
fn find(part: &Part) -> Result<(Settings, Cache, Vec<Key>), Failure> {
    if part.file.is_none() {
        let (settings, cache) = open_here()?;
        let keys = cache.results().map(|record| record.key).collect();
        return Ok((settings, cache, keys));
    }
    let (project, settings, cache) = load_and_open(&part.pipeline())?;
    let keys = holdings(&project, &cache, &part.stages, false)?.here;
    Ok((settings, cache, keys))
}

impl Part {
    pub(super) fn pipeline(&self) -> Pipeline {
        let file = self.file.clone().unwrap_or_default();
        Pipeline { file, profile: self.profile.clone(), set: self.set.clone() }
    }
}

fn remote(cache: &Cache) -> Result<Remote, Failure> {
    let remote = cache.remote().ok_or_else(|| {
        let error = Diagnostic::new("no team's cache is named");
        error.hint("set `url` in [remote] of flow.toml or of the user's config.toml, or FLOW_REMOTE")
    })?;
    Ok(remote)
}

fn told(archived: &Archived) -> String {
    let (results, objects) = (results(archived.results), plural(archived.objects, "object"));
    let bare = match archived.bare {
        0 => String::new(),
        n => format!("; {} by their records alone, as their files are not here", count(n as u64)),
    };
    format!("{results} with {objects}, {}{bare}", bytes(archived.bytes))
}

fn results(n: usize) -> String {
    plural(n, "result")
}
