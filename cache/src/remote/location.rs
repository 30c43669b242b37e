//! [`Location`]: where a team's cache is, and who may never be told: the secrets that lead there.

use std::{fmt, path::PathBuf};

use flow_core::{did_you_mean, masked};
use reqwest::Url;

/// Where a team's cache is.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory that all share.
    Dir(PathBuf),
    /// An object store: `s3`, `gs` or `az`; its bucket or container; the prefix in it.
    Bucket {
        /// The store's scheme.
        scheme: &'static str,
        /// The bucket, or Azure's container.
        bucket: String,
        /// Before every name; without slashes at its ends.
        prefix: String,
    },
    /// A web server that knows GET, HEAD and PUT; ends in a slash.
    Web(Url),
}

const SCHEMES: [&str; 6] = ["s3", "gs", "az", "https", "http", "file"];

impl Location {
    /// It is a directory of this machine.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        matches!(self, Self::Dir(_))
    }

    /// Understands `s3://bucket/prefix`, `gs://…`, `az://container/prefix`, `http(s)://…`, `file:///dir` and `/dir`.
    ///
    /// # Errors
    /// Why it is none; a secret in it is not repeated.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((scheme, _)) = text.split_once("://") else {
            return match text {
                "" => Err("it is empty".into()),
                _ if text.starts_with('/') => Ok(Self::Dir(text.into())),
                _ if text.contains(":/") => Err("after its scheme, a URL has `://`".into()),
                _ => Err("it is neither a URL nor an absolute path".into()),
            };
        };
        let url = Url::parse(text).map_err(|error| format!("it is no URL: {error}"))?;
        if url.password().is_some() || !url.username().is_empty() {
            return Err("a URL with a user or password would stand in files, logs and process lists: use the \
                        environment (FLOW_REMOTE_TOKEN, or FLOW_REMOTE_USER and FLOW_REMOTE_PASSWORD)"
                .into());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("a team's cache has no `?` or `#` in its URL".into());
        }
        let prefix = || url.path().trim_matches('/').to_owned();
        let bucket = |scheme: &'static str| match url.host_str() {
            Some(bucket) if !bucket.is_empty() => {
                Ok(Self::Bucket { scheme, bucket: bucket.to_owned(), prefix: prefix() })
            }
            _ => Err(format!("the bucket is missing: {scheme}://bucket/prefix")),
        };
        match scheme {
            "s3" => bucket("s3"),
            "gs" => bucket("gs"),
            "az" => bucket("az"),
            "file" => url.to_file_path().map(Self::Dir).map_err(|()| "it is no path of this machine".into()),
            "http" | "https" => {
                let mut url = url;
                if !url.path().ends_with('/') {
                    url.set_path(&format!("{}/", url.path()));
                }
                Ok(Self::Web(url))
            }
            _ => Err(match did_you_mean(scheme, SCHEMES) {
                Some(meant) => format!("`{scheme}://` is not known: did you mean `{meant}://`?"),
                None => format!("`{scheme}://` is not known: use {} or a path", SCHEMES.join(", ")),
            }),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(dir) => write!(f, "{}", dir.display()),
            Self::Bucket { scheme, bucket, prefix } if prefix.is_empty() => write!(f, "{scheme}://{bucket}"),
            Self::Bucket { scheme, bucket, prefix } => write!(f, "{scheme}://{bucket}/{prefix}"),
            Self::Web(url) => f.write_str(url.as_str().trim_end_matches('/')),
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Variables whose values never appear in what flow says. What servers and libraries say may quote them.
const SECRET_VARIABLES: [&str; 14] = [
    "FLOW_REMOTE_TOKEN",
    "FLOW_REMOTE_PASSWORD",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_CLIENT_SECRET",
];

/// A text of others for people: one line, not long, without secrets.
pub(crate) fn tame(text: &str) -> String {
    let mut text = masked(text).split_whitespace().collect::<Vec<_>>().join(" ");
    for value in SECRET_VARIABLES.iter().filter_map(|name| std::env::var(name).ok()) {
        if value.len() >= 4 {
            text = text.replace(&value, "***");
        }
    }
    const LONGEST: usize = 300;
    if let Some((cut, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_understood_and_secrets_are_not_repeated() {
        for (text, shown) in [
            ("/shared/flow", "/shared/flow"),
            ("file:///shared/flow", "/shared/flow"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("gs://bucket", "gs://bucket"),
            ("az://container/x", "az://container/x"),
            ("https://host:8443/flow", "https://host:8443/flow"),
        ] {
            assert_eq!(Location::parse(text).unwrap().to_string(), shown);
        }
        assert!(Location::parse("s3s://bucket").unwrap_err().contains("did you mean `s3://`?"));
        for bad in [
            "",
            "shared",
            "s3:/bucket",
            "ftp://host/a",
            "s3:///x",
            "https://me:hunter2@host/a",
            "https://host/a?sig=hunter2",
        ] {
            let error = Location::parse(bad).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert_eq!(tame("at  https://me:hunter2@host/a?X-Amz-Signature=hunter2\n!"), "at https://***@host/a?*** !");
    }
}
