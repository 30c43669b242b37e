//! Repositories of the Hugging Face hub: `hf://ORG/NAME[@REVISION][/GLOB]`, `hf://datasets/ORG/NAME…`.
//!
//! The revision is resolved to a commit first and everything is taken from that commit. The hub says each file's
//! length, and the SHA-256 of those that it keeps in LFS: both are verified.

use std::{env, path::PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use flow_core::is_safe_name;
use reqwest::{
    Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue},
};
use serde::Deserialize;

use super::{hub_cache::HubCache, source::percent_decoded};
use crate::http::{Failure, Http};

/// What an `hf://` URL names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// `models` or `datasets`.
    pub kind: &'static str,
    /// `ORG/NAME`
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: Option<String>,
    /// Which files.
    pub pattern: Option<String>,
}

/// A hub, and who asks.
#[derive(Clone, Default)]
pub struct Hub {
    /// Where it is, without a slash at the end.
    pub endpoint: String,
    /// The token of its user.
    pub token: Option<String>,
    /// What its own tools keep on this machine.
    pub cache: Option<HubCache>,
    /// It is not asked: what the cache holds is all there is.
    pub offline: bool,
}

/// One file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubFile {
    /// Its path in the repository.
    pub name: String,
    /// Its length.
    pub size: Option<u64>,
    /// Its SHA-256, if it is kept in LFS.
    pub sha256: Option<String>,
}

/// A commit of a repository.
#[derive(Debug)]
pub struct Commit {
    /// The commit's id.
    pub id: String,
    /// Its files, sorted by name.
    pub files: Vec<HubFile>,
}

impl Repository {
    /// Reads what stands behind `hf://`.
    ///
    /// # Errors
    /// What is wrong, in a few words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (kind, text) = match text.split_once('/') {
            Some(("datasets", rest)) => ("datasets", rest),
            Some(("models", rest)) => ("models", rest),
            Some(("spaces", _)) => return Err("spaces are programs, not data".into()),
            _ => ("models", text),
        };
        let mut parts = text.splitn(3, '/');
        let organisation = parts.next().unwrap_or_default();
        let (name, revision) = match parts.next().unwrap_or_default().split_once('@') {
            Some((name, revision)) => (name, Some(percent_decoded(revision).ok_or("the revision is no UTF-8")?)),
            None => (text.split('/').nth(1).unwrap_or_default(), None),
        };
        let pattern = parts.next().filter(|pattern| !pattern.is_empty()).map(str::to_owned);
        let is_name = |text: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !text.is_empty() && text.chars().all(plain) && text != "." && text != ".."
        };
        if !is_name(organisation) || !is_name(name) {
            return Err("not an organisation and a name".into());
        }
        if revision.as_deref() == Some("") {
            return Err("no revision behind `@`".into());
        }
        Ok(Self { kind, name: format!("{organisation}/{name}"), revision, pattern })
    }
}

impl Hub {
    /// The hub and the user that the environment names: `HF_ENDPOINT`; `HF_TOKEN`, or the file that
    /// `hf auth login` writes (`HF_TOKEN_PATH`, `HF_HOME/token`, `~/.cache/huggingface/token`); its cache directory, and
    /// `HF_HUB_OFFLINE`.
    #[must_use]
    pub fn from_environment() -> Self {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.trim().is_empty());
        let home = || set("HF_HOME").map(PathBuf::from);
        let cache = || set("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cache")));
        let file = set("HF_TOKEN_PATH")
            .map(PathBuf::from)
            .or_else(|| Some(home().or_else(|| Some(cache()?.join("huggingface")))?.join("token")));
        let from_file = || std::fs::read_to_string(file?).ok();
        let token =
            set("HF_TOKEN").or_else(from_file).map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let on = |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        let (cache, offline) = (HubCache::from_environment(), set("HF_HUB_OFFLINE").is_some_and(on));
        Self { endpoint: endpoint.trim_end_matches('/').to_owned(), token, cache, offline }
    }

    /// Resolves the revision, or the commit that is `pinned` for it, and lists the files.
    ///
    /// # Errors
    /// The repository or revision is not there, or not for this user; the hub cannot be reached.
    pub async fn commit(
        &self,
        http: &Http,
        repository: &Repository,
        pinned: Option<&str>,
        say: &dyn Fn(String),
    ) -> Result<Commit> {
        #[derive(Deserialize)]
        struct Answer {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            sha256: Option<String>,
        }
        let revision = pinned.or(repository.revision.as_deref()).unwrap_or("main");
        if self.offline {
            let cache = self.cache.as_ref().context("HF_HUB_OFFLINE is set, and there is no home for a cache")?;
            return cache.commit(repository, revision);
        }
        let mut url = self.url(&["api", repository.kind], repository, &["revision", revision])?;
        url.set_query(Some("blobs=true"));
        let mut headers = HeaderMap::new();
        if let Some(token) = &self.token {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).context("HF_TOKEN is not a token")?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let asked = http.patiently(say, async || {
            let response = http.get(&url, headers.clone()).await.map_err(|failure| (failure, 0))?;
            response.bytes().await.map_err(|error| (Failure::broken(&url, error), 0))
        });
        let body = asked.await.map_err(|failure| match (failure.status.map(|status| status.as_u16()), pinned) {
            (Some(404), Some(commit)) => self.explain(repository, failure).context(format!(
                "{} has no commit {commit}, which flow.lock pins: `flow lock --update PIPELINE` takes what there is now",
                repository.name
            )),
            _ => self.explain(repository, failure),
        })?;
        let answer: Answer =
            serde_json::from_slice(&body).with_context(|| format!("what {url} answered is no list of files"))?;
        if let Some(bad) = answer.siblings.iter().find(|file| !is_safe_name(&file.rfilename)) {
            bail!("{}: `{}` is not a file name", repository.name, bad.rfilename);
        }
        let file = |file: Sibling| HubFile {
            name: file.rfilename,
            size: file.size,
            sha256: file.lfs.and_then(|lfs| lfs.sha256),
        };
        let mut files: Vec<HubFile> = answer.siblings.into_iter().map(file).collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        if answer.sha.is_empty() || !answer.sha.chars().all(|c| c.is_ascii_hexdigit()) {
            bail!("{}: `{}` is not a commit", repository.name, answer.sha);
        }
        Ok(Commit { id: answer.sha, files })
    }

    /// A file of a commit that is on this machine already. While the hub can be asked, only one whose content it names
    /// is taken: the others are small.
    pub fn cached(&self, repository: &Repository, commit: &str, file: &HubFile) -> Option<PathBuf> {
        let cache = self.cache.as_ref().filter(|_| self.offline || file.sha256.is_some())?;
        cache.file(repository, commit, file)
    }

    /// Where a file of a commit lies.
    ///
    /// # Errors
    /// The endpoint is no URL.
    pub fn file_url(&self, repository: &Repository, commit: &str, name: &str) -> Result<Url> {
        let start: &[&str] = if repository.kind == "models" { &[] } else { &[repository.kind] };
        let rest: Vec<&str> = ["resolve", commit].into_iter().chain(name.split('/')).collect();
        self.url(start, repository, &rest)
    }

    /// Every part is encoded as one: a `/` in a revision is no part of the path.
    fn url(&self, start: &[&str], repository: &Repository, rest: &[&str]) -> Result<Url> {
        let mut url = Url::parse(&self.endpoint).with_context(|| format!("HF_ENDPOINT={} is no URL", self.endpoint))?;
        let Ok(mut parts) = url.path_segments_mut() else { bail!("HF_ENDPOINT={} cannot have a path", self.endpoint) };
        parts.pop_if_empty().extend(start).extend(repository.name.split('/')).extend(rest);
        drop(parts);
        Ok(url)
    }

    /// What a person can do about a refusal.
    pub fn explain(&self, repository: &Repository, failure: Failure) -> anyhow::Error {
        let page = match repository.kind {
            "models" => format!("{}/{}", self.endpoint, repository.name),
            kind => format!("{}/{kind}/{}", self.endpoint, repository.name),
        };
        let login = "set HF_TOKEN to a token from the page /settings/tokens, or run `hf auth login`";
        let what = match (failure.status.map(|status| status.as_u16()), &self.token) {
            (Some(401), None) => format!(
                "{} is gated, private, or does not exist, and there is no token: visit {page}, accept its terms if it \
                 has some, then {login}",
                repository.name
            ),
            (Some(401), Some(_)) => format!("the hub does not accept the token for {}: {login}", repository.name),
            (Some(403), _) => format!(
                "{} is gated: visit {page}, accept its terms and wait until you are let in; then {login}, with a token \
                 of that account that may read gated repositories",
                repository.name
            ),
            (Some(404), _) => match &repository.revision {
                Some(revision) => {
                    format!("{} is not there, or has no revision `{revision}`: look at {page}", repository.name)
                }
                None => format!("{} is not there, or private and not yours: look at {page}", repository.name),
            },
            _ => return failure.error,
        };
        anyhow!(failure.error).context(what)
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "…");
        f.debug_struct("Hub").field("endpoint", &self.endpoint).field("token", &token).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_read_in_all_their_forms() {
        let parse = |text| Repository::parse(text);
        let repository = |kind, name: &str, revision: Option<&str>, pattern: Option<&str>| {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            Ok(Repository { kind, name: name.into(), revision: owned(revision), pattern: owned(pattern) })
        };
        assert_eq!(parse("meta-llama/Llama-3.1-8B"), repository("models", "meta-llama/Llama-3.1-8B", None, None));
        assert_eq!(parse("a/b@v1.0/*.json"), repository("models", "a/b", Some("v1.0"), Some("*.json")));
        assert_eq!(parse("a/b@refs%2Fpr%2F1"), repository("models", "a/b", Some("refs/pr/1"), None));
        assert_eq!(parse("a/b/x/**"), repository("models", "a/b", None, Some("x/**")));
        assert_eq!(parse("datasets/a/b/"), repository("datasets", "a/b", None, None));
        for bad in ["", "gpt2", "a/", "/b", "a/b@", "a/..", "a b/c", "spaces/a/b", "datasets/a"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_revision_with_a_slash_stays_one_part() {
        let hub = Hub { endpoint: "http://127.0.0.1:1/mirror".into(), ..Hub::default() };
        let repository = Repository::parse("datasets/a/b@refs%2Fpr%2F1").unwrap();
        let url = hub.url(&["api", "datasets"], &repository, &["revision", "refs/pr/1"]).unwrap();
        assert_eq!(url.as_str(), "http://127.0.0.1:1/mirror/api/datasets/a/b/revision/refs%2Fpr%2F1");
        let url = hub.file_url(&repository, "c0", "x/日 本.txt").unwrap();
        assert_eq!(url.as_str(), "http://127.0.0.1:1/mirror/datasets/a/b/resolve/c0/x/%E6%97%A5%20%E6%9C%AC.txt");
    }
}
