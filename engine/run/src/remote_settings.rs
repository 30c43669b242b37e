//! The `[remote]` table of the settings: where the team's cache is, and how it is used.

use std::path::{Path, PathBuf};

use flow_cache::{Location, RemoteConfig, Trust};
use flow_core::{Diagnostic, Value, did_you_mean};
use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::Deserialize;

use crate::settings::optional_bytes;

/// The team's cache, and what goes there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteSettings {
    /// Where it is and how it is used.
    pub config: RemoteConfig,
    /// The stages whose results are pushed, as patterns of names; all if there is none.
    pub push: Vec<String>,
}

impl RemoteSettings {
    /// What keeps results from being given as they are asked to be: signed.
    ///
    /// # Errors
    /// They are to be given, and the key to sign them with cannot be read.
    pub(crate) fn can_sign(&self) -> Result<(), Diagnostic> {
        let why = match self.config.trust.signs_as() {
            Err(why) if self.config.write => why,
            _ => return Ok(()),
        };
        let error = Diagnostic::new("what is made cannot be signed for the team, as `sign_key` asks");
        let error = why.chain().fold(error, |error, cause| error.cause(cause.to_string()));
        Err(error.hint("`flow cache keygen` makes a key; with FLOW_REMOTE_MODE=read nothing is given to the team"))
    }

    /// The stages whose results are pushed.
    pub(crate) fn pushes(&self) -> GlobSet {
        let mut set = GlobSetBuilder::new();
        let all = ["*".to_owned()];
        let patterns = if self.push.is_empty() { &all[..] } else { &self.push };
        patterns.iter().filter_map(|pattern| Glob::new(pattern).ok()).for_each(|glob| {
            set.add(glob);
        });
        // Each pattern was checked when it was read; together they can only be too big.
        set.build().unwrap_or_default()
    }
}

/// What a settings file may say of it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoteFile {
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    mode: Option<String>,
    #[serde(default)]
    push: Option<Vec<String>>,
    #[serde(default, deserialize_with = "optional_bytes")]
    push_limit: Option<u64>,
    #[serde(default)]
    endpoint: Option<String>,
    #[serde(default)]
    region: Option<String>,
    #[serde(default)]
    trusted_keys: Option<Vec<String>>,
    #[serde(default)]
    sign_key: Option<String>,
}

const READ: &str = "read";
const READ_WRITE: &str = "read-write";
/// What switches it off, where another file or nobody switched it on.
const OFF: &str = "off";

impl RemoteFile {
    /// What the environment says.
    pub fn from_env(env: &dyn Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| env(name).filter(|value| !value.is_empty());
        // A variable's path is relative to where the person stands.
        let url = variable("FLOW_REMOTE").map(|url| match is_path(&url) {
            true => std::path::absolute(&url).map_or(url, |path| path.to_string_lossy().into_owned()),
            false => url,
        });
        Self { url, mode: variable("FLOW_REMOTE_MODE"), ..Self::default() }
    }

    /// Whether the values of a file are what they should be; the file's own names its errors.
    pub fn check(&self, file: &Path, value: &Value) -> Result<(), Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let at = |error: Diagnostic, field: &str| error.at(value.nearest(&format!("remote.{field}")).span.clone());
        if let Some(url) = self.url.as_deref().filter(|url| !is_path(url) && *url != OFF)
            && let Err(why) = Location::parse(url)
        {
            let error = Diagnostic::new(format!("`remote.url` in {} cannot be used", file.display())).cause(why);
            // Its line would be shown, and what stands there may be a secret.
            let secret = url.contains(['@', '?', '#']);
            errors.push(if secret { error } else { at(error, "url") });
        }
        if let Some(Err(error)) = self.mode.as_deref().map(mode) {
            errors.push(at(error, "mode"));
        }
        for (n, key) in self.trusted_keys.iter().flatten().enumerate() {
            if let Err(why) = key.parse::<flow_cache::TrustedKey>() {
                let hint = "`flow cache keygen` prints a key as it is written here";
                errors.push(at(Diagnostic::new(why).hint(hint), &format!("trusted_keys.{n}")));
            }
        }
        if self.trusted_keys.as_ref().is_some_and(Vec::is_empty) {
            let error = Diagnostic::new("nobody is trusted by an empty list, and it would be read as everybody");
            errors.push(at(error.hint("name keys, or leave it out to take results of anybody"), "trusted_keys"));
        }
        if self.push.as_ref().is_some_and(Vec::is_empty) {
            let error = Diagnostic::new("nothing is pushed by an empty list, and it would be read as everything");
            errors.push(at(error.hint("name stages, or set mode = \"read\" to give nothing"), "push"));
        }
        for (n, pattern) in self.push.iter().flatten().enumerate() {
            if let Err(error) = Glob::new(pattern) {
                let error =
                    Diagnostic::new(format!("`{pattern}` is no pattern of names")).cause(error.kind().to_string());
                errors.push(at(error, &format!("push.{n}")));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Takes what `over` says.
    pub fn lay_over(&mut self, over: Self, absolute: &dyn Fn(String) -> PathBuf) {
        let path = |text: String| absolute(text).to_string_lossy().into_owned();
        let url = over.url.map(|url| if is_path(&url) { path(url) } else { url });
        self.url = url.or(self.url.take());
        self.mode = over.mode.or(self.mode.take());
        self.push = over.push.or(self.push.take());
        self.push_limit = over.push_limit.or(self.push_limit);
        self.endpoint = over.endpoint.or(self.endpoint.take());
        self.region = over.region.or(self.region.take());
        self.trusted_keys = over.trusted_keys.or(self.trusted_keys.take());
        self.sign_key = over.sign_key.map(path).or(self.sign_key.take());
    }

    /// Who is trusted, also where no remote is named.
    pub fn trust(&self) -> Trust {
        let keys = self.trusted_keys.iter().flatten();
        Trust {
            trusted_keys: keys.filter_map(|key| key.parse().ok()).collect(),
            sign_key: self.sign_key.as_ref().map(PathBuf::from),
        }
    }

    /// The settings that all together make, if a remote is named.
    pub fn settings(self) -> Result<Option<RemoteSettings>, Diagnostic> {
        let trust = self.trust();
        let Some(url) = self.url.filter(|url| url != OFF) else { return Ok(None) };
        let location = Location::parse(&url).map_err(|why| {
            Diagnostic::new("the URL of the team's cache (`[remote] url`, FLOW_REMOTE) cannot be used").cause(why)
        })?;
        let write = self.mode.as_deref().map_or(Ok(false), mode)?;
        let config = RemoteConfig {
            location,
            write,
            push_limit: self.push_limit,
            endpoint: self.endpoint,
            region: self.region,
            trust,
        };
        Ok(Some(RemoteSettings { config, push: self.push.unwrap_or_default() }))
    }
}

fn is_path(url: &str) -> bool {
    !url.contains(":/") && url != OFF
}

/// Whether it may be written to.
fn mode(text: &str) -> Result<bool, Diagnostic> {
    match text {
        READ => Ok(false),
        READ_WRITE => Ok(true),
        _ => {
            let error =
                Diagnostic::new(format!("`{text}` is no mode of a team's cache: use {READ:?} or {READ_WRITE:?}"));
            Err(match did_you_mean(text, [READ, READ_WRITE]) {
                Some(word) => error.hint(format!("did you mean `{word}`?")),
                None => error,
            })
        }
    }
}
