//! What an image is called, and what an image file is.

use std::path::Path;

/// How a reference to a registry begins.
pub const SCHEME: &str = "docker://";

/// Where images are whose name says no registry.
const HUB: &str = "registry-1.docker.io";

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host, possibly with a port.
    pub registry: String,
    /// `org/name`
    pub name: String,
    /// What moves on.
    pub tag: Option<String>,
    /// What does not: `sha256:…`.
    pub digest: Option<String>,
}

impl Reference {
    /// `docker://[REGISTRY/]NAME[:TAG][@sha256:DIGEST]`; without tag and digest it is `latest`.
    ///
    /// # Errors
    /// It is none: with what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("`{text}` {what}: write {SCHEME}[REGISTRY/]NAME[:TAG][@sha256:DIGEST]");
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong("is no reference to an image"))?;
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (rest, None),
        };
        let is_digest = |digest: &str| {
            let hex = digest.strip_prefix("sha256:").unwrap_or_default();
            hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        if !digest.is_none_or(is_digest) {
            return Err(wrong("has no digest of 64 hexadecimal digits behind `@sha256:`"));
        }
        let is_host = |part: &str| part == "localhost" || part.contains(['.', ':']);
        let (registry, path) = match rest.split_once('/') {
            Some((first, path)) if is_host(first) => (first, path.to_owned()),
            Some(_) => (HUB, rest.to_owned()),
            None => (HUB, format!("library/{rest}")),
        };
        let (name, tag) = match path.rsplit_once(':') {
            Some((name, tag)) => (name.to_owned(), Some(tag)),
            None => (path, None),
        };
        let word = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !registry.chars().all(|c| word(c) || ":[]".contains(c)) {
            return Err(wrong("names no host"));
        }
        let is_part = |part: &str| {
            !part.is_empty()
                && part.chars().all(|c| word(c) && !c.is_ascii_uppercase())
                && !part.starts_with(['.', '-'])
        };
        if !name.split('/').all(is_part) {
            return Err(wrong("has no name of small letters, digits, `.`, `_`, `-` and `/`"));
        }
        if !tag
            .is_none_or(|tag| (1..=128).contains(&tag.len()) && tag.chars().all(word) && !tag.starts_with(['.', '-']))
        {
            return Err(wrong("has a tag that is none"));
        }
        let tag = tag.or(digest.is_none().then_some("latest")).map(str::to_owned);
        let registry = if registry == "docker.io" || registry == "index.docker.io" { HUB } else { registry };
        Ok(Self { registry: registry.to_owned(), name, tag, digest: digest.map(str::to_owned) })
    }

    /// As engines know it: `REGISTRY/NAME`. The hub's own name is not the one of its server.
    pub fn repository(&self) -> String {
        let registry = if self.registry == HUB { "docker.io" } else { &self.registry };
        format!("{registry}/{}", self.name)
    }

    /// Of this machine itself no certificate is asked for, as Docker has it.
    pub fn is_here(&self) -> bool {
        let host = self.registry.rsplit_once(':').map_or(self.registry.as_str(), |(host, _)| host);
        host == "localhost" || host.starts_with("127.") || host == "[::1]"
    }
}

/// What an image is, before it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// In a registry.
    Reference,
    /// A file of Singularity's or Apptainer's.
    Sif,
    /// A file system in a file, as enroot has them.
    Squash,
    /// What a stage makes: nothing is known of it before.
    Unknown,
}

impl Form {
    /// Of what is named so.
    pub fn of(name: &str) -> Self {
        if name.starts_with(SCHEME) {
            return Self::Reference;
        }
        match Path::new(name).extension().and_then(|ending| ending.to_str()) {
            Some("sif" | "simg") => Self::Sif,
            Some("sqsh" | "sqfs" | "squashfs") => Self::Squash,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let parts = |text: &str| {
            let Reference { registry, name, tag, digest } = Reference::parse(text).unwrap();
            (registry, name, tag.unwrap_or_default(), digest.unwrap_or_default())
        };
        let owned = |parts: [&str; 4]| {
            let [a, b, c, d] = parts.map(str::to_owned);
            (a, b, c, d)
        };
        for (text, expected) in [
            ("docker://alpine", [HUB, "library/alpine", "latest", ""]),
            ("docker://docker.io/org/x:1", [HUB, "org/x", "1", ""]),
            ("docker://nvcr.io/nvidia/pytorch:24.08-py3", ["nvcr.io", "nvidia/pytorch", "24.08-py3", ""]),
            ("docker://localhost:5000/a/b__c", ["localhost:5000", "a/b__c", "latest", ""]),
            (&format!("docker://ghcr.io/a/b@{digest}"), ["ghcr.io", "a/b", "", &digest]),
            (&format!("docker://ghcr.io/a/b:t@{digest}"), ["ghcr.io", "a/b", "t", &digest]),
        ] {
            assert_eq!(parts(text), owned(expected), "{text}");
        }
        for wrong in [
            "docker://",
            "docker://A/b",
            "docker://a:",
            "docker://a:b:c",
            "docker://a@sha256:12",
            "docker://a//b",
            "docker://a b",
        ] {
            assert!(Reference::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Reference::parse("docker://x:1").unwrap().repository(), "docker.io/library/x");
    }
}
