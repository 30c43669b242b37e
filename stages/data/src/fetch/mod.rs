//! `fetch`: files from the web, from the hub, or of this machine.

mod hub;
mod hub_cache;
mod local;
mod remote;
mod source;

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};
use flow_core::{Check, Ctx, Diagnostic, Implied, Pin, Port, Ref, Refs, Stage, Table, Value, ValueKind, expand_braces};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::{
    diagnostic, facts,
    http::{Checksums, Http, Patience, redacted},
};
use hub::Hub;
pub use local::copy_file;
use source::Source;

/// `kind = "fetch"`: one node a URL, after brace expansion.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fetch {
    /// What to fetch: a node each, after brace expansion. An entry may be a list: the first URL is what it is known by, and
    /// the others are asked, in their order, when it cannot be had there. A path of this machine is an input, known by
    /// its content, and its name is none of the key's.
    #[serde(serialize_with = "without_paths")]
    urls: Vec<Refs>,
    /// Of a directory or a repository: only files whose path matches one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    include: Vec<String>,
    /// Of a directory or a repository: no file whose path matches one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    exclude: Vec<String>,
    /// How many bytes the file must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// What the file's SHA-256 must be, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    /// What the file's BLAKE3 must be, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
}

/// What the key sees of the URLs: no secrets, of local paths only the pattern, and not where else a file is.
fn without_paths<S: Serializer>(urls: &[Refs], serializer: S) -> Result<S::Ok, S::Error> {
    let shown = |url: &Ref| match Source::parse(url.text()) {
        Ok(Source::Local(_, pattern)) => pattern.unwrap_or_default(),
        _ => redacted(url.text()),
    };
    serializer.collect_seq(urls.iter().map(|places| shown(&places[0])))
}

impl Stage for Fetch {
    const KIND: &'static str = "fetch";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Takes files from the web, from the Hugging Face hub, or of this machine";
    const RESUMABLE: bool = true;
    const LOCAL: bool = true;

    fn expand(self, errors: &mut Vec<Diagnostic>) -> Vec<Self> {
        for (field, globs) in [("include", &self.include), ("exclude", &self.exclude)] {
            for (i, glob) in globs.iter().enumerate() {
                if let Err(error) = GlobBuilder::new(glob).literal_separator(false).build() {
                    let error = Diagnostic::new(format!("`{glob}` is not a pattern: {}", error.kind()));
                    errors.push(error.field(format!("{field}.{i}")));
                }
            }
        }
        for (field, digits) in [("sha256", &self.sha256), ("blake3", &self.blake3)] {
            if digits
                .as_ref()
                .is_some_and(|digits| digits.len() != 64 || !digits.bytes().all(|c| c.is_ascii_hexdigit()))
            {
                errors.push(Diagnostic::new(format!("not a {field}: 64 hexadecimal digits")).field(field));
            }
        }
        let nodes = self.nodes(errors);
        // Keys and flow.lock know a URL by its redacted text: what differs in a secret alone would pass for the same.
        let mut seen: HashMap<String, String> = HashMap::new();
        for node in &nodes {
            let url = &node.urls[0][0];
            if let Some(other) = seen.insert(redacted(url.text()), url.text().to_owned())
                && other != url.text()
            {
                let error = Diagnostic::new("two URLs differ only in a parameter that is taken for a secret");
                let error = error.cause(redacted(url.text())).at(url.span().cloned()).field("urls");
                let hint = "give the parameter another name, or make a stage of each URL under its own path";
                errors.push(error.hint(hint));
            }
        }
        if self.urls.is_empty() {
            errors.push(Diagnostic::new("`urls` is empty").field("urls").hint("name at least one URL or path"));
        }
        let given =
            [("sha256", self.sha256.is_some()), ("blake3", self.blake3.is_some()), ("size", self.size.is_some())];
        if let Some((checked, _)) = given.iter().find(|(_, given)| nodes.len() > 1 && *given) {
            let error = Diagnostic::new(format!("one `{checked}` for {} files", nodes.len())).field(*checked);
            errors.push(error.hint("make a stage of each; flow.lock pins the content of all of them anyway"));
        }
        nodes
    }

    fn ports(&self) -> Vec<Port> {
        match self.source() {
            Ok(Source::Local(path, _)) => {
                vec![Port::all("urls", &[self.urls[0][0].with_text(path.to_string_lossy())])]
            }
            _ => Vec::new(),
        }
    }

    fn pin(&self) -> Option<Pin> {
        match self.source() {
            Ok(Source::Web(_) | Source::Hub(_)) => Some(Pin { url: redacted(self.urls[0][0].text()) }),
            _ => None,
        }
    }

    fn check(&self, check: &mut Check<'_>) {
        check.files = match self.source() {
            Ok(Source::Web(url)) => source::file_name(&url).into_iter().collect(),
            _ => check.input("urls").iter().flat_map(|known| known.files.clone()).collect(),
        };
        let Some(path) = check.input("urls").iter().find_map(|known| known.path.clone()) else { return };
        let filter = self.filter();
        if filter.takes_all() {
            check.result_path = Some(path.clone());
        } else if path.is_dir() && !local::has_any(&path, &filter) {
            let error = Diagnostic::new(format!("no file in {} matches", path.display()));
            check.error("urls", error.hint("`*` in a path does not match `/`; in `include` and `exclude` it does"));
        }
        match facts::of_path(&path) {
            Ok(facts) => {
                let config = ["model_config", "vocab_size", "max_position_embeddings"];
                for (name, value) in facts {
                    let file = if config.contains(&name.as_str()) { "config.json" } else { "tokenizer.json" };
                    if path.is_file() || filter.takes(file) {
                        check.provide(&name, value);
                    }
                }
            }
            Err(error) => check.error("urls", diagnostic(&error)),
        }
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        self.fetch(ctx, &Hub::from_environment(), Patience::default())
    }
}

impl Fetch {
    /// The stage that fetches what another one names by its URL.
    pub fn implied(name: String, url: &Ref) -> Implied {
        let value = |kind| Value { kind, span: url.span().cloned() };
        let text = |text: &str| value(ValueKind::String(text.to_owned()));
        let urls = value(ValueKind::Array(vec![text(url.text())]));
        let entries = [("kind", text(Self::KIND)), ("urls", urls)];
        let entries = entries.map(|(key, value)| (key.to_owned(), url.span().cloned(), value)).into();
        Implied { reference: url.clone(), name, table: value(ValueKind::Table(Table { entries })) }
    }

    /// One for each of the URLs, after brace expansion.
    fn nodes(&self, errors: &mut Vec<Diagnostic>) -> Vec<Self> {
        let mut nodes = Vec::new();
        for (i, entry) in self.urls.iter().enumerate() {
            let mut columns = Vec::new();
            for (j, url) in entry.iter().enumerate() {
                let field = if entry.len() == 1 { format!("urls.{i}") } else { format!("urls.{i}.{j}") };
                match expanded(url, entry.len() > 1) {
                    Ok(column) => columns.push(column),
                    Err(error) => errors.push(error.field(field).at(url.span().cloned())),
                }
            }
            if columns.iter().any(|column| column.len() != columns[0].len()) {
                let counts: Vec<_> = columns.iter().map(|column| column.len().to_string()).collect();
                let error = Diagnostic::new(format!("the braces of one entry stand for {} URLs", counts.join(" and ")));
                let error = error.field(format!("urls.{i}")).at(entry[0].span().cloned());
                errors.push(error.hint("each of the first URL's has one on the other places"));
                continue;
            }
            let rows = columns.first().map_or(0, Vec::len);
            nodes.extend((0..rows).map(|row| Self {
                urls: vec![columns.iter().map(|column| column[row].clone()).collect()],
                include: self.include.clone(),
                exclude: self.exclude.clone(),
                size: self.size,
                sha256: self.sha256.clone(),
                blake3: self.blake3.clone(),
            }));
        }
        nodes
    }

    /// What the node fetches: it has exactly one entry, and this is the first of its places.
    fn source(&self) -> Result<Source, Diagnostic> {
        match self.urls.as_slice() {
            [places] => Source::parse(places[0].text()),
            urls => Err(Diagnostic::new(format!("{} URLs for one node", urls.len()))),
        }
    }

    fn fetch(&self, ctx: &Ctx<'_>, hub: &Hub, patience: Patience) -> Result<()> {
        let filter = self.filter();
        let single = self.size.is_some() || self.sha256.is_some() || self.blake3.is_some();
        match self.source()? {
            Source::Local(..) => {
                let names = local::copy(ctx, ctx.one("urls")?, &filter)?;
                if single {
                    let [name] = names.as_slice() else {
                        bail!("`size`, `sha256` and `blake3` are for a single file, and there are {}", names.len());
                    };
                    let file = ctx.out.join(name);
                    let size = file.metadata()?.len();
                    if let Some(must) = self.size.filter(|must| *must != size) {
                        bail!("{name} has {size} bytes, not the {must} that it must have");
                    }
                    let mut hashers = self.checksums().hashers();
                    hashers.update_from(&file, u64::MAX)?;
                    self.checksums().verify(hashers, name)?;
                }
                Ok(())
            }
            Source::Web(_) => {
                ensure!(filter.takes_all(), "`include` and `exclude` choose among files, and a URL is one");
                let web = |place: &Ref| match Source::parse(place.text()) {
                    Ok(Source::Web(url)) => Ok(url),
                    _ => bail!("{} is no http or https", redacted(place.text())),
                };
                let urls = self.urls[0].iter().map(web).collect::<Result<Vec<_>>>()?;
                let wanted = remote::Wanted { urls: &urls, size: self.size, checksums: self.checksums() };
                wanted.fetch(ctx, &Http::new(patience, ctx.network.connections))
            }
            Source::Hub(repository) => {
                ensure!(!single, "`size`, `sha256` and `blake3` are for a single file");
                remote::repository(ctx, &Http::new(patience, ctx.network.connections), hub, &repository, &filter)
            }
        }
    }

    fn checksums(&self) -> Checksums {
        Checksums { sha256: self.sha256.clone(), blake3: self.blake3.clone() }
    }

    fn filter(&self) -> Filter {
        let pattern = match self.source() {
            Ok(Source::Local(_, pattern)) => pattern,
            Ok(Source::Hub(repository)) => repository.pattern,
            _ => None,
        };
        Filter {
            pattern: pattern.map(|glob| set(&[glob], true)),
            include: set(&self.include, false),
            exclude: set(&self.exclude, false),
        }
    }
}

/// What an entry stands for, after brace expansion; one of several places of a file is on the web.
fn expanded(url: &Ref, of_several: bool) -> Result<Vec<Ref>, Diagnostic> {
    let texts = expand_braces(url.text()).map_err(Diagnostic::new)?;
    for text in &texts {
        // What its braces stand for is wrong in the same way.
        let source = Source::parse(text)?;
        if of_several && !matches!(source, Source::Web(_)) {
            let error = Diagnostic::new("a file that is in several places is named by its URLs, http:// or https://");
            return Err(error.hint("`[mirrors]` in flow.toml says where else everything of a server is, the hub's too"));
        }
    }
    Ok(texts.into_iter().map(|text| url.with_text(text)).collect())
}

/// Which files of a directory or a repository are wanted.
#[derive(Debug)]
struct Filter {
    pattern: Option<GlobSet>,
    include: GlobSet,
    exclude: GlobSet,
}

impl Filter {
    fn takes_all(&self) -> bool {
        self.pattern.is_none() && self.include.is_empty() && self.exclude.is_empty()
    }

    fn takes(&self, name: &str) -> bool {
        self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(name))
            && (self.include.is_empty() || self.include.is_match(name))
            && !self.exclude.is_match(name)
    }
}

/// Patterns. In `include` and `exclude` a `*` matches `/` too, as the hub's own tools have it; in a path or URL not.
fn set(globs: &[String], separators: bool) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        // What is no pattern was told when the file was read; as part of a path it is a name.
        if let Ok(glob) = GlobBuilder::new(glob).literal_separator(separators).build() {
            set.add(glob);
        }
    }
    set.build().unwrap_or_else(|_| GlobSet::empty())
}

#[cfg(test)]
mod tests;
