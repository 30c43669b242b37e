//! `image`: what a name of an image stands for. Nobody has to write such a stage: `container = "docker://…"` stands for one.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use flow_core::{Check, Ctx, Diagnostic, Implied, Input, Level, Pin, Ref, Stage, Table, Value, ValueKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    engine::Engine,
    image::{Reference, SCHEME},
    registry,
};
use crate::http::{Http, Patience};

/// The file that the result is.
const FILE: &str = "digest";
/// How what no registry knows begins.
const LOCAL: &str = "local ";

/// `kind = "image"`: the digest that an image has in its registry, or on this machine if none has it.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// `docker://[REGISTRY/]NAME[:TAG][@sha256:DIGEST]`
    image: String,
}

impl Stage for Image {
    const KIND: &'static str = "image";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Finds the digest of a container image, which `flow.lock` pins";
    const LOCAL: bool = true;

    fn pin(&self) -> Option<Pin> {
        let moves = Reference::parse(&self.image).is_ok_and(|reference| reference.digest.is_none());
        moves.then(|| Pin { url: self.image.clone() })
    }

    fn check(&self, check: &mut Check<'_>) {
        if let Err(message) = Reference::parse(&self.image) {
            check.error("image", Diagnostic::new(message));
        }
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let reference = Reference::parse(&self.image).map_err(anyhow::Error::msg)?;
        let pinned = ctx.pinned.and_then(|pinned| pinned.revision.clone());
        let text = match reference.digest.clone().or(pinned) {
            Some(known) => known,
            None => look(ctx, &self.image, &reference)?,
        };
        ctx.log(Level::Info, format!("{} is {text}", self.image));
        fs::write(ctx.out.join(FILE), format!("{text}\n")).context("cannot write the digest")?;
        ctx.remark(|remarks| remarks.revision = Some(text));
        Ok(())
    }
}

impl Image {
    /// The stage that knows what a name stands for: nothing if it is no name of a registry.
    pub fn implied(name: &Ref) -> Option<Implied> {
        let reference = Reference::parse(name.text()).ok()?;
        let value = |kind| Value { kind, span: name.span().cloned() };
        let text = |text: &str| value(ValueKind::String(text.to_owned()));
        let cpus = ("cpus".to_owned(), None, value(ValueKind::Integer(0)));
        let resources = value(ValueKind::Table(Table { entries: vec![cpus] }));
        let entries = [("kind", text(Self::KIND)), ("image", text(name.text())), ("resources", resources)];
        let entries = entries.map(|(key, value)| (key.to_owned(), None, value)).into();
        let last = reference.name.rsplit('/').next().unwrap_or_default();
        let words = [Some(last), reference.tag.as_deref()].into_iter().flatten().collect::<Vec<_>>().join("-");
        let called = format!("image-{words}").replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let table = value(ValueKind::Table(Table { entries }));
        Some(Implied { reference: name.clone(), name: called.chars().take(80).collect(), table })
    }
}

/// Asks the registry; and if that has none, what is on this machine.
fn look(ctx: &Ctx<'_>, image: &str, reference: &Reference) -> Result<String> {
    let local = local(image.strip_prefix(SCHEME).unwrap_or(image));
    let http = Http::new(Patience::default(), ctx.network.connections);
    let http = if local.is_some() { http.hasty() } else { http };
    match (registry::digest(ctx, &http, reference), local) {
        (Err(error), Some((engine, id))) if !error.is::<flow_core::Cancelled>() => {
            ctx.log(Level::Warning, format!("{error:#}; {} has an image of this name, which is taken", engine.name()));
            Ok(format!("{LOCAL}{id}"))
        }
        (digest, _) => digest,
    }
}

/// The id of an image that Docker or Podman has under a name.
fn local(name: &str) -> Option<(Engine, String)> {
    let here = [Engine::Docker, Engine::Podman].into_iter().filter(|engine| engine.is_here());
    here.into_iter().find_map(|engine| {
        let mut command = Command::new(engine.program());
        let command = command.args(["image", "inspect", "--format", "{{.Id}}", name]).stdin(Stdio::null());
        let output = command.output().ok().filter(|output| output.status.success())?;
        let id = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (!id.is_empty()).then(|| (engine, format!("sha256:{}", id.strip_prefix("sha256:").unwrap_or(&id))))
    })
}

/// What the result says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// A registry's digest.
    Digest(String),
    /// The id of an image of Docker's or Podman's.
    Local(String),
}

impl Known {
    /// Reads the result of a stage of kind `image`.
    ///
    /// # Errors
    /// It is none.
    pub fn read(input: &Input) -> Result<Self> {
        let Some(path) = input.file(FILE) else { bail!("{} is not what a stage of kind `image` makes", input.name) };
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let (text, is_local) = match text.trim().strip_prefix(LOCAL) {
            Some(id) => (id, true),
            None => (text.trim(), false),
        };
        ensure!(text.starts_with("sha256:"), "{} holds no digest", path.display());
        Ok(if is_local { Self::Local(text.to_owned()) } else { Self::Digest(text.to_owned()) })
    }
}
