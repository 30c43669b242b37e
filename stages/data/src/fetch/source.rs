//! What one entry of `urls` names.

use std::path::PathBuf;

use flow_core::{Diagnostic, is_safe_name};
use reqwest::Url;

use super::hub::Repository;
use crate::http::redacted;

/// What one entry of `urls` names.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A file or directory of this machine; of a directory only what the pattern names, if there is one.
    Local(PathBuf, Option<String>),
    /// A file behind a URL.
    Web(Url),
    /// A repository of the hub.
    Hub(Repository),
}

impl Source {
    /// Reads an entry.
    ///
    /// # Errors
    /// It is a URL of a kind that is not known, or names no file.
    pub fn parse(text: &str) -> Result<Self, Diagnostic> {
        let shown = redacted(text);
        let bad = |why: String| Diagnostic::new(format!("`{shown}`: {why}"));
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::local(text));
        };
        match scheme {
            "hf" => {
                Repository::parse(rest).map(Self::Hub).map_err(|why| bad(why).hint("hf://ORG/NAME[@REVISION][/GLOB]"))
            }
            "http" | "https" => {
                let url = Url::parse(text).map_err(|error| bad(format!("not a URL: {error}")))?;
                match file_name(&url) {
                    Some(_) => Ok(Self::Web(url)),
                    None => Err(bad("the URL names no file".into())
                        .hint("its last part, before any `?`, becomes the file's name")),
                }
            }
            "file" => {
                let path = Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
                let path = path.and_then(|path| path.into_os_string().into_string().ok());
                path.map(|path| Self::local(&path)).ok_or_else(|| {
                    bad("not a file of this machine".into())
                        .hint("file:///absolute/path, or a plain path relative to the pipeline")
                })
            }
            _ => Err(bad(format!("`{scheme}` is not a kind of URL that can be fetched"))
                .hint("https://, http://, hf://, file://, or a plain path")),
        }
    }

    /// A path; from its first part with `*`, `?` or `[` on it is a pattern below what stands before.
    fn local(path: &str) -> Self {
        let Some(special) = path.find(['*', '?', '[']) else { return Self::Local(path.into(), None) };
        match path[..special].rfind('/') {
            Some(slash) => Self::Local(path[..slash.max(1)].into(), Some(path[slash + 1..].to_owned())),
            None => Self::Local(".".into(), Some(path.to_owned())),
        }
    }
}

/// The last part of the URL's path, decoded: the name that the file gets.
pub fn file_name(url: &Url) -> Option<String> {
    let name = percent_decoded(url.path_segments()?.next_back()?)?;
    (is_safe_name(&name) && !name.contains('/')).then_some(name)
}

/// Text with `%E6%97%A5` decoded; none if that is no UTF-8.
pub fn percent_decoded(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let code = text.get(i + 1..i + 3).filter(|_| bytes[i] == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(code.unwrap_or(bytes[i]));
        i += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_source_is_told_apart() {
        let local = |path: &str, pattern: Option<&str>| Ok(Source::Local(path.into(), pattern.map(str::to_owned)));
        assert_eq!(Source::parse("data/a.jsonl"), local("data/a.jsonl", None));
        assert_eq!(Source::parse("data/wiki/*/[ab].jsonl"), local("data/wiki", Some("*/[ab].jsonl")));
        assert_eq!(Source::parse("*.gz"), local(".", Some("*.gz")));
        assert_eq!(Source::parse("/*.gz"), local("/", Some("*.gz")));
        assert_eq!(Source::parse("file:///tmp/a%20b"), local("/tmp/a b", None));
        let Ok(Source::Web(url)) = Source::parse("https://h.example/x/train_0.jsonl.gz?ref_type=heads#f") else {
            panic!()
        };
        assert_eq!(file_name(&url).unwrap(), "train_0.jsonl.gz");
        let Ok(Source::Web(url)) = Source::parse("http://h.example/%E6%97%A5%zz") else { panic!() };
        assert_eq!(file_name(&url).unwrap(), "日%zz");
        for bad in [
            "https://h.example/",
            "https://h.example/a%2Fb",
            "https://h.example/..%2f",
            "s3://b/k",
            "file://host/a",
            "hf://x",
        ] {
            assert!(Source::parse(bad).is_err(), "{bad}");
        }
        let error = Source::parse("https://me:hunter2@h.example/?token=hunter2").unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"));
    }
}
