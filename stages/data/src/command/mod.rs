//! `command`: any program, with declared inputs and outputs.

pub(crate) mod family;
pub(crate) mod guard;
mod lines;
pub(crate) mod orphans;
pub(crate) mod placeholders;
pub(crate) mod process;
mod spawn;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use flow_core::{
    Check, Ctx, Diagnostic, Implied, Machine, Port, Ref, Refs, Stage, holds_secret, is_safe_name, is_secret_name,
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    container::{Container, Inside},
    fetch::copy_file,
};
use placeholders::{Placeholder, Template};

/// `kind = "command"`: a line for the shell.
///
/// With `outs` it runs in the project's folder and must make those files and directories there; without, it runs in an empty
/// directory that holds copies of `files`. In both, what it writes into `{out}` is the result.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// For `sh -c`. `{in.NAME}` is where the input NAME lies, `{out}` a directory to fill; both come quoted.
    run: String,
    /// Names of stages and paths.
    #[serde(default, rename = "in", serialize_with = "names")]
    inputs: BTreeMap<String, Refs>,
    /// The input of which it takes one thing at a time: it runs once for each, as a node of its own, cached by itself.
    #[serde(default, skip_serializing)]
    each: Option<String>,
    /// Files and directories of the project that it reads, relative to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    files: Vec<Ref>,
    /// Files and directories that it makes in the project's folder, relative to it.
    #[serde(default, deserialize_with = "outs", skip_serializing_if = "Vec::is_empty")]
    outs: Vec<String>,
    /// Variables of its environment, besides those that flow itself runs with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    /// The image in which the program runs: `"docker://…"`, a file, a stage that makes one; or
    /// `{ image = "…", engine = "apptainer", binds = ["/data:/data:ro"] }`.
    #[serde(default, skip_serializing_if = "Container::is_keyless")]
    container: Option<Container>,
}

/// The kernel hands on no text to a program that is longer (`MAX_ARG_STRLEN`, with the zero at its end).
const LONGEST: usize = (128 << 10) - 1;

/// What to do about a line that is too long.
const SCRIPT: &str = "put it in a script, and the script into `files`";

/// What an input is called is part of what the command does; what it names is known by its content.
fn names<S: Serializer>(inputs: &BTreeMap<String, Refs>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(inputs.keys())
}

/// `./figures/` is `figures`.
fn outs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let outs = Vec::<String>::deserialize(deserializer)?;
    Ok(outs.iter().map(|out| plain(out).to_owned()).collect())
}

impl Stage for Command {
    const KIND: &'static str = "command";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Runs a program: declared inputs in, declared outputs out";
    /// It starts what it needs on the others by itself, with `srun`.
    const MANY_NODES: bool = true;

    fn ports(&self) -> Vec<Port> {
        let mut ports: Vec<Port> =
            self.inputs.iter().map(|(name, refs)| self.port(name)(format!("in.{name}"), refs)).collect();
        if !self.files.is_empty() {
            ports.push(Port::all("files", &self.files));
        }
        ports.extend(self.container.as_ref().map(Container::port));
        ports
    }

    fn outs(&self) -> &[String] {
        &self.outs
    }

    fn check(&self, check: &mut Check<'_>) {
        let mut wrong = Vec::new();
        let template = Template::parse(&self.run, &mut wrong);
        for name in template.inputs().filter(|name| !self.inputs.contains_key(*name)) {
            let error = Diagnostic::new(format!("`{{in.{name}}}`: there is no input `{name}`"));
            let near = flow_core::did_you_mean(name, self.inputs.keys().map(String::as_str));
            wrong.push(error.hint(match near {
                Some(near) => format!("did you mean `{{in.{near}}}`?"),
                None => format!("declare it: in = {{ {name} = \"…\" }}"),
            }));
        }
        let unused = self.inputs.keys().filter(|name| !template.inputs().any(|used| used == *name));
        for name in unused.filter(|_| wrong.is_empty()) {
            let text = format!("the input `{name}` is declared and `{{in.{name}}}` is not used");
            check.warnings.push(Diagnostic::new(text).field(format!("in.{name}")));
        }
        wrong.into_iter().for_each(|error| check.error("run", error));
        if !check.hosts.is_empty() {
            let error = Diagnostic::new("a command begins on this machine");
            check.error("resources.hosts", error.hint("remove `hosts`, and let the command call `ssh` itself"));
        }
        if let Some(each) = self.each.as_ref().filter(|each| !self.inputs.contains_key(*each)) {
            let error = Diagnostic::new(format!("there is no input `{each}`"));
            let near = flow_core::did_you_mean(each, self.inputs.keys().map(String::as_str));
            check.error("each", near.iter().fold(error, |error, near| error.hint(format!("did you mean `{near}`?"))));
        }
        for (i, file) in self.files.iter().enumerate() {
            if !is_safe_name(plain(file.text())) {
                let error = Diagnostic::new(format!("`{}` is not in the project's folder", file.text()));
                check.error(
                    &format!("files.{i}"),
                    error.hint("what lies elsewhere is an input: in = { name = \"/path\" }"),
                );
            }
        }
        for (i, file) in self.files.iter().enumerate() {
            let inside = |other: &Ref| Path::new(plain(file.text())).starts_with(plain(other.text()));
            if let Some((_, other)) = self.files.iter().enumerate().find(|(j, other)| *j != i && inside(other)) {
                let error = Diagnostic::new(format!("`{}` is part of `{}`", file.text(), other.text()));
                check.error(&format!("files.{i}"), error.hint("name it once"));
            }
        }
        if self.run.contains('\0') {
            check.error("run", Diagnostic::new("no shell takes a line with a zero character (`\\u0000`) in it"));
        }
        if self.run.len() > LONGEST {
            let error = Diagnostic::new(format!("{} bytes are too long for a shell's line", self.run.len()));
            check.error("run", error.cause(format!("the kernel takes {LONGEST} at most")).hint(SCRIPT));
        }
        for (name, value) in &self.env {
            let field = format!("env.{name}");
            if value.contains('\0') {
                check.error(&field, Diagnostic::new("no variable holds a zero character (`\\u0000`)"));
            }
            if name.len() + 1 + value.len() > LONGEST {
                let error = Diagnostic::new(format!("{} bytes are too long for a variable", value.len()));
                check.error(&field, error.hint("put it in a file, and the file into `files`"));
            }
        }
        for (name, _) in self.env.iter().filter(|(name, value)| is_secret_name(name) || holds_secret(value)) {
            let error = Diagnostic::new(format!("`{name}` looks like a secret, and what is in the file is recorded"));
            let hint = "leave it out: the command inherits the environment that flow was started in";
            check.error(&format!("env.{name}"), error.hint(hint).secret());
        }
        if holds_secret(&self.run) {
            let error = Diagnostic::new("`run` holds what looks like a token or a password, and is recorded");
            let hint = "name a variable in its place, as `$TOKEN`: the command inherits the environment that flow was started in";
            check.error("run", error.hint(hint).secret());
        }
        for name in self.env.keys().filter(|name| name.is_empty() || name.contains(['=', '\0'])) {
            check.error("env", Diagnostic::new(format!("`{name}` is not the name of a variable")));
        }
        if let Some(container) = &self.container {
            container.check(&mut check.errors);
        }
    }

    fn implied(&self) -> Vec<Implied> {
        self.container.as_ref().and_then(Container::implied).into_iter().collect()
    }

    fn lacks(&self, machine: &Machine<'_>) -> Option<Diagnostic> {
        self.container.as_ref()?.lacks(machine)
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let mut wrong = Vec::new();
        let template = Template::parse(&self.run, &mut wrong);
        if let Some(wrong) = wrong.pop() {
            return Err(wrong.into());
        }
        let line = template.fill(|placeholder| match placeholder {
            Placeholder::Out => Ok(vec![ctx.out.to_owned()]),
            Placeholder::In(name) => {
                let inputs = ctx.input(&format!("in.{name}"));
                ensure!(!inputs.is_empty(), "there is no input `{name}`");
                Ok(inputs.iter().map(|input| input.path.clone()).collect())
            }
        })?;
        ensure!(
            line.len() <= LONGEST,
            "with its inputs the line has {} bytes, and the kernel takes {LONGEST} at most: {SCRIPT}",
            line.len()
        );
        if orphans::wait(ctx)? {
            // What an earlier run of the key left may have written there meanwhile.
            for directory in [ctx.out, ctx.scratch] {
                let cannot = || format!("cannot empty {}", directory.display());
                fs::remove_dir_all(directory).and_then(|()| fs::create_dir(directory)).with_context(cannot)?;
            }
        }
        let directory = if self.outs.is_empty() { self.place_files(ctx)? } else { self.prepare_outs(ctx)? };
        match &self.container {
            None => process::run(ctx, &line, &directory, &self.env)?,
            Some(container) => {
                Inside::of(container, ctx, !self.outs.is_empty())?.run(ctx, &line, &directory, &self.env)?;
            }
        }
        for out in &self.outs {
            take_out(ctx, out)?;
        }
        if self.outs.is_empty() && template.uses_out() && fs::read_dir(ctx.out)?.next().is_none() {
            bail!("the command ended well, but wrote nothing into {{out}}");
        }
        Ok(())
    }
}

impl Command {
    /// How an input is taken.
    fn port(&self, name: &str) -> fn(String, &[Ref]) -> Port {
        if self.each.as_deref() == Some(name) { Port::each } else { Port::all }
    }

    /// An empty directory, with copies of the declared files under their names: what is not declared is not there,
    /// and what the command does to them is done to copies.
    fn place_files(&self, ctx: &Ctx<'_>) -> Result<PathBuf> {
        let directory = ctx.scratch.join("work");
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        for input in ctx.input("files") {
            let name = plain(&input.name);
            let base = name.rsplit('/').next();
            let files = input.files();
            let is_file = files.len() == 1 && !ctx.project.join(name).is_dir() && files[0].0.rsplit('/').next() == base;
            for (inner, path) in files {
                let relative = if is_file { name.to_owned() } else { format!("{name}/{inner}") };
                copy_file(&path, &directory.join(relative), |_| Ok(ctx.go_on()?))?;
            }
        }
        Ok(directory)
    }

    /// The project's folder, with the directories that the outs go to. What lay in their places was moved away.
    fn prepare_outs(&self, ctx: &Ctx<'_>) -> Result<PathBuf> {
        for parent in self.outs.iter().filter_map(|out| ctx.project.join(out).parent().map(Path::to_owned)) {
            fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        Ok(ctx.project.to_owned())
    }
}

/// Copies a declared output, a file or a directory with all that is in it, from the project's folder into the result.
fn take_out(ctx: &Ctx<'_>, out: &str) -> Result<()> {
    let path = ctx.project.join(out);
    if path.is_file() {
        return copy_file(&path, &ctx.out.join(out), |_| Ok(ctx.go_on()?));
    }
    ensure!(
        path.is_dir(),
        "the command ended well, but did not make `{out}`, which `outs` promises ({})",
        path.display()
    );
    let mut directories = vec![PathBuf::from(out)];
    let mut files = 0;
    while let Some(directory) = directories.pop() {
        let cannot = || format!("cannot read {}", ctx.project.join(&directory).display());
        for entry in fs::read_dir(ctx.project.join(&directory)).with_context(cannot)? {
            let name = directory.join(entry.with_context(cannot)?.file_name());
            let path = ctx.project.join(&name);
            if path.is_dir() {
                ensure!(!path.is_symlink(), "{} is a link to a directory: make a directory of files", path.display());
                directories.push(name);
            } else {
                ensure!(path.is_file(), "{} is not a file", path.display());
                copy_file(&path, &ctx.out.join(&name), |_| Ok(ctx.go_on()?))?;
                files += 1;
            }
        }
    }
    ensure!(files > 0, "the command ended well, but left the directory `{out}` of `outs` empty ({})", path.display());
    Ok(())
}

/// A path as it stands below the project's folder.
fn plain(path: &str) -> &str {
    path.trim_start_matches("./").trim_end_matches('/')
}

#[cfg(test)]
mod tests;
