//! [`Inside`]: a container that is ready for the programs of one node.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use flow_core::{Ctx, Input, SECRETS};

use super::{
    Container, PORT,
    argv::{At, Start},
    engine::{self, Engine},
    image::{Form, Reference},
    stage::Known,
    store,
};
use crate::command::{family, placeholders::quote, process};

/// More links than that lead round in a circle.
const LINKS: usize = 16;
/// More directories than that are bound by what they have in common.
const APART: usize = 8;

/// What every program may need to reach the network.
const PROXIES: [&str; 8] =
    ["http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"];

/// What tells ranks, and the libraries that they are made of, how to talk and compute.
const FOR_WORKERS: [&str; 11] =
    ["CUDA_", "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "OMP_", "GOMP_", "KMP_", "MKL_", "UCX_", "FLOW_"];

/// A file or directory that is seen inside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bind {
    /// Where it is seen.
    pub to: PathBuf,
    /// Where it is.
    pub from: PathBuf,
    /// Nobody writes there.
    pub read_only: bool,
}

impl Bind {
    fn new(place: &Path, read_only: bool) -> Self {
        Self { to: place.to_owned(), from: place.to_owned(), read_only }
    }

    /// `PLACE[:PLACE_INSIDE][:ro]`
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts: Vec<&str> = text.split(':').collect();
        let read_only = parts.len() > 1 && parts.last() == Some(&"ro");
        if read_only || parts.last() == Some(&"rw") {
            parts.pop();
        }
        let (from, to) = match parts[..] {
            [from] => (from, from),
            [from, to] => (from, to),
            _ => return Err(format!("`{text}` is not PLACE, PLACE:PLACE_INSIDE or PLACE:PLACE_INSIDE:ro")),
        };
        let home = env::var("HOME").unwrap_or_default();
        let absolute = |path: &str| match path.strip_prefix("~/") {
            Some(rest) => PathBuf::from(&home).join(rest),
            None => PathBuf::from(path),
        };
        let (from, to) = (absolute(from), absolute(to));
        if let Some(path) = [&from, &to].into_iter().find(|path| !path.is_absolute()) {
            return Err(format!("`{}` is not absolute", path.display()));
        }
        Ok(Self { to, from, read_only })
    }

    /// `from:to`, and what else is said.
    pub fn joined(&self, between: &str, end: &str) -> String {
        format!("{}{between}{}{end}", self.from.display(), self.to.display())
    }
}

/// A container that is ready.
#[derive(Debug)]
pub struct Inside {
    pub(super) engine: Engine,
    image: At,
    binds: Vec<Bind>,
    args: Vec<String>,
    pub(super) pass: Vec<String>,
    /// What the user names of the environment, but for patterns.
    pub(super) named: Vec<String>,
    gpus: bool,
    /// The variable that shows a node's GPUs, and the mark of its family.
    own: Vec<(String, String)>,
    workdir: Option<PathBuf>,
    /// Where a worker program has its libraries.
    libraries: Vec<PathBuf>,
    /// A directory of its own in the scratch directory.
    place: PathBuf,
    /// Who is to own what is written.
    user: (u32, u32, Vec<u32>),
}

impl Inside {
    /// Chooses what runs it and gets the image. `writes`: whether the program makes something in the project's folder.
    ///
    /// # Errors
    /// Nothing runs it here; the image cannot be had.
    pub fn of(container: &Container, ctx: &Ctx<'_>, writes: bool) -> Result<Self> {
        let input = ctx.one(PORT)?;
        let place = ctx.scratch.join("container");
        let _ = fs::remove_dir_all(&place);
        fs::create_dir_all(place.join("home")).with_context(|| format!("cannot create {}", place.display()))?;
        let (engine, image) = image(container, ctx, input)?;
        let mut pass: Vec<String> = env::vars_os()
            .filter_map(|(name, _)| name.into_string().ok())
            .filter(|name| !SECRETS.contains(&name.as_str()) && name != family::VARIABLE)
            .filter(|name| {
                PROXIES.contains(&name.as_str()) || name == "CUDA_VISIBLE_DEVICES" || container.hands_in(name)
            })
            .collect();
        let gpus = ctx.gpu_variable().map(|(name, value)| (name.to_owned(), value));
        pass.retain(|name| gpus.as_ref().is_none_or(|(own, _)| own != name));
        let own = gpus.into_iter().chain([(family::VARIABLE.to_owned(), family::Mark::of(ctx.scratch).value())]);
        // Docker and Podman refuse to start if they are told of GPUs and cannot give them; the others only say so.
        let lenient = !matches!(engine, Engine::Docker | Engine::Podman);
        Ok(Self {
            engine,
            image,
            binds: binds(container, ctx, writes)?,
            args: container.args.clone(),
            pass,
            named: container.env.iter().filter(|name| !name.contains('*')).cloned().collect(),
            gpus: !ctx.gpus.is_empty() || (lenient && Path::new("/dev/nvidiactl").exists()),
            own: own.collect(),
            workdir: container.workdir.as_ref().map(PathBuf::from),
            libraries: Vec::new(),
            place,
            user: rights(),
        })
    }

    /// As [`Inside::of`], for ranks of a worker program of this machine: it and its libraries are seen inside.
    ///
    /// # Errors
    /// As there.
    pub fn of_workers(container: &Container, ctx: &Ctx<'_>, writes: bool, program: &Path) -> Result<Self> {
        let mut inside = Self::of(container, ctx, writes)?;
        let real = program.canonicalize().with_context(|| format!("cannot find {}", program.display()))?;
        inside.libraries = libraries(&real);
        let folders = [program, &real].into_iter().filter_map(|path| path.parent().map(Path::to_owned));
        let folders = folders.chain(inside.libraries.iter().cloned());
        let index = env::var_os("FLOW_INDEX_DIR").map(|place| Bind::new(Path::new(&place), false));
        let more = folders.map(|folder| Bind::new(&folder, true)).chain(index);
        inside.binds = in_order(inside.binds.drain(..).chain(more))?;
        let names = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        let wanted = names.filter(|name| FOR_WORKERS.iter().any(|start| name.starts_with(start)));
        let fresh: Vec<String> = wanted
            .filter(|name| !inside.pass.contains(name) && !SECRETS.contains(&name.as_str()) && name != family::VARIABLE)
            .collect();
        inside.pass.extend(fresh);
        Ok(inside)
    }

    /// A program that runs inside, with what its own environment is given. `name` tells it from others of the node.
    ///
    /// # Errors
    /// Its script cannot be written.
    pub fn wrap(&self, command: &Command, name: &str) -> Result<Command> {
        let text = |text: &OsStr| text.to_str().map(str::to_owned).context("an argument is no UTF-8");
        let mut words = String::new();
        words.push_str("exec");
        for word in std::iter::once(command.get_program()).chain(command.get_args()) {
            words.push(' ');
            quote(&text(word)?, &mut words);
        }
        let mut env = BTreeMap::new();
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                env.insert(text(name)?, text(value)?);
            }
        }
        let argv = self.enter(name, &words, self.directory(), &env)?;
        let mut wrapped = Command::new(&argv[0]);
        wrapped.args(&argv[1..]).current_dir(&self.place).envs(self.environment());
        wrapped.envs(self.own.iter().map(|(name, value)| (name, value)));
        for secret in SECRETS {
            wrapped.env_remove(secret);
        }
        // See `run`: and what keeps a container is to tidy up when this is over.
        if self.is_kept() {
            wrapped.env_remove(family::VARIABLE);
        }
        Ok(wrapped)
    }

    /// Runs a line in a shell inside until it ends.
    ///
    /// # Errors
    /// As [`process::run`].
    pub fn run(&self, ctx: &Ctx<'_>, line: &str, directory: &Path, env: &BTreeMap<String, String>) -> Result<()> {
        let mut words = String::from("exec sh -c ");
        quote(line, &mut words);
        let directory_inside = self.workdir.as_deref().unwrap_or(directory);
        let argv = self.enter("enter", &words, directory_inside, env)?;
        let mut line = String::from("exec");
        // What keeps Docker's and Podman's containers is not of the family: it has to tidy up when the container was ended.
        line.push_str(if self.is_kept() { " env -u FLOW_COMMAND_MARK" } else { "" });
        for word in argv {
            line.push(' ');
            quote(&word, &mut line);
        }
        let done = process::run(ctx, &line, directory, &self.environment());
        if done.is_err() {
            self.end();
        }
        done
    }

    /// Where a program begins that has no directory of its own.
    pub(super) fn directory(&self) -> &Path {
        self.workdir.as_deref().unwrap_or(&self.place)
    }

    /// Writes the script that is begun with, and tells how it is begun.
    fn enter(&self, name: &str, words: &str, directory: &Path, env: &BTreeMap<String, String>) -> Result<Vec<String>> {
        let enter = self.script(name, words, directory, env)?;
        let (node, cores) = (env::var("SLURMD_NODENAME").ok(), env::var("SLURM_CPUS_ON_NODE").ok());
        let id = self.place.join(format!("{name}.id"));
        let start = Start { slurm: (node.as_deref(), cores.as_deref()), ..self.start(&enter, &id) };
        Ok(start.argv())
    }

    /// A program that is started by a script.
    pub(super) fn start<'a>(&'a self, enter: &'a Path, id: &'a Path) -> Start<'a> {
        Start {
            engine: self.engine,
            image: &self.image,
            binds: &self.binds,
            args: &self.args,
            pass: &self.pass,
            set: &self.own,
            gpus: self.gpus,
            hears: false,
            user: (self.user.0, self.user.1, &self.user.2),
            id,
            enter,
            slurm: (None, None),
        }
    }

    /// Writes what is run inside. Values of variables stand in it: they are seen by nobody else, may hold anything, and are none of
    /// the engine's own.
    pub(super) fn script(
        &self,
        name: &str,
        words: &str,
        directory: &Path,
        env: &BTreeMap<String, String>,
    ) -> Result<PathBuf> {
        let mut script = String::from("export HOME=");
        let utf8 =
            |path: &Path| path.to_str().map(str::to_owned).with_context(|| format!("{} is no UTF-8", path.display()));
        quote(&utf8(&self.place.join("home"))?, &mut script);
        for (name, value) in env {
            ensure!(is_variable(name), "`{name}` cannot be set by the shell that begins in a container");
            script.push_str(&format!("\nexport {name}="));
            quote(value, &mut script);
        }
        script.push_str("\ncd ");
        quote(&utf8(directory)?, &mut script);
        script.push_str(" || exit 126\n");
        let libraries: Vec<String> = self.libraries.iter().map(|path| path.display().to_string()).collect();
        if !libraries.is_empty() {
            script.push_str("export LD_LIBRARY_PATH=");
            quote(&libraries.join(":"), &mut script);
            script.push_str("${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\n");
        }
        script.push_str(&format!("{words}\n"));
        self.write(name, &script)
    }

    /// Writes a script, which this user alone may read.
    pub(super) fn write(&self, name: &str, script: &str) -> Result<PathBuf> {
        let path = self.place.join(name);
        fs::write(&path, script)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o600)))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// What the engine's own environment has besides flow's.
    fn environment(&self) -> BTreeMap<String, String> {
        let Some(prefix) = self.engine.prefix() else { return BTreeMap::new() };
        let passed = self.pass.iter().filter_map(|name| Some((name.clone(), env::var(name).ok()?)));
        passed.chain(self.own.iter().cloned()).map(|(name, value)| (format!("{prefix}{name}"), value)).collect()
    }

    /// Whether somebody else than the engine's program is the parent of what runs inside.
    pub(super) fn is_kept(&self) -> bool {
        matches!(self.engine, Engine::Docker | Engine::Podman)
    }

    /// Ends what runs inside and was not reached otherwise: behind a server of another user or machine.
    pub fn end(&self) {
        let files = fs::read_dir(&self.place).into_iter().flatten().flatten().map(|entry| entry.path());
        for file in files.filter(|path| self.is_kept() && path.extension().is_some_and(|ending| ending == "id")) {
            let Ok(id) = fs::read_to_string(&file) else { continue };
            let mut command = Command::new(self.engine.program());
            let quiet =
                command.args(["kill", id.trim()]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let _ = quiet.status();
        }
    }
}

impl Container {
    /// Whether a variable of flow's own environment is handed in.
    fn hands_in(&self, name: &str) -> bool {
        self.env.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => pattern == name,
        })
    }
}

/// Whether a shell takes this for the name of a variable.
pub fn is_variable(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
}

/// Where a program of this machine has its libraries, but for those that every image has its own of.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let path = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = env::split_paths(&path).filter(|place| place.is_absolute()).collect();
    let output = Command::new("ldd").arg(program).stdin(Stdio::null()).output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    // `libc10.so => /opt/libtorch/lib/libc10.so (0x7f…)`
    let files = said.lines().filter_map(|line| line.split_once("=> ")?.1.split(" (").next()).map(PathBuf::from);
    // They are found by these names, and may be links to where they are.
    let files = files.flat_map(|file| [file.canonicalize().ok(), Some(file)]).flatten();
    places.extend(files.filter_map(|file| file.parent().map(Path::to_owned)));
    places.retain(|place| place.is_dir() && !["/lib", "/lib64", "/usr/lib"].iter().any(|own| place.starts_with(own)));
    let mut seen = BTreeSet::new();
    places.retain(|place| seen.insert(place.clone()));
    places
}

/// This process's user, group and further groups.
fn rights() -> (u32, u32, Vec<u32>) {
    // SAFETY: system calls; the second one writes as many numbers as the first has counted.
    unsafe {
        let mut groups = vec![0; usize::try_from(libc::getgroups(0, std::ptr::null_mut())).unwrap_or(0)];
        let n = libc::getgroups(groups.len() as libc::c_int, groups.as_mut_ptr());
        groups.truncate(usize::try_from(n).unwrap_or(0));
        (libc::geteuid(), libc::getegid(), groups)
    }
}

/// What runs the image, and where that is.
fn image(container: &Container, ctx: &Ctx<'_>, input: &Input) -> Result<(Engine, At)> {
    let text = container.image.text();
    if Form::of(text) != Form::Reference {
        let files = input.files();
        let image = match &files[..] {
            [(_, path)] => path.clone(),
            files => {
                let mut images = files.iter().filter(|(name, _)| Form::of(name) != Form::Unknown);
                match (images.next(), images.next()) {
                    (Some((_, path)), None) => path.clone(),
                    _ => bail!("{} must be one image file, and has {} files", input.name, files.len()),
                }
            }
        };
        let form = image.to_str().map_or(Form::Unknown, Form::of);
        let engine = engine::choose(form, container.engine, ctx.container_engine)?;
        let path = image.to_str().with_context(|| format!("{} is no UTF-8", image.display()))?;
        return Ok((engine, At::File(path.to_owned())));
    }
    let reference = Reference::parse(text).map_err(anyhow::Error::msg)?;
    let known = Known::read(input)?;
    let engine = engine::choose(Form::Reference, container.engine, ctx.container_engine)?;
    let image = match (engine, known) {
        (Engine::Docker | Engine::Podman, Known::Digest(digest)) => {
            At::Name(format!("{}@{digest}", reference.repository()))
        }
        (Engine::Docker | Engine::Podman, Known::Local(id)) => At::Name(id),
        (_, Known::Local(_)) => bail!(
            "{text} is in no registry but an image of Docker's or Podman's on one machine, and {} has no such images: push it, or \
             run it with what built it",
            engine.name()
        ),
        (_, Known::Digest(digest)) => store::image_file(ctx, engine, &reference, &digest)?,
    };
    Ok((engine, image))
}

/// All that is seen inside, parents before what is in them.
fn binds(container: &Container, ctx: &Ctx<'_>, writes: bool) -> Result<Vec<Bind>> {
    let mut binds =
        BTreeSet::from([Bind::new(ctx.out, false), Bind::new(ctx.scratch, false), Bind::new(ctx.project, !writes)]);
    for input in ctx.inputs.iter().filter(|(port, _)| *port != PORT).flat_map(|(_, inputs)| inputs) {
        binds.insert(Bind::new(&input.path, true));
        let files = input.files();
        let ends: BTreeSet<PathBuf> = files.iter().flat_map(|(_, path)| behind(path)).collect();
        // A tree of the cache is links to objects, thousands of them.
        let common =
            || ends.iter().cloned().reduce(|a, b| common(&a, &b)).filter(|common| common.components().count() > 2);
        match (ends.len() > APART).then(common).flatten() {
            Some(common) => drop(binds.insert(Bind::new(&common, true))),
            None => binds.extend(ends.iter().map(|end| Bind::new(end, true))),
        }
    }
    for text in &container.binds {
        let bind = Bind::parse(text).map_err(anyhow::Error::msg)?;
        ensure!(bind.from.exists(), "{}, which `binds` names, is not there", bind.from.display());
        binds.retain(|other| other.to != bind.to);
        binds.insert(bind);
    }
    in_order(binds.into_iter())
}

/// Parents before what is in them, and nothing twice.
fn in_order(binds: impl Iterator<Item = Bind>) -> Result<Vec<Bind>> {
    let binds: BTreeSet<Bind> = binds.collect();
    let mut kept: Vec<Bind> = Vec::new();
    for bind in binds {
        let place = [&bind.from, &bind.to].map(|path| path.to_str());
        let odd = |path: &Option<&str>| path.is_none_or(|path| path.contains([':', ',', '\\', ' ', '\n', '"']));
        if place.iter().any(odd) {
            bail!(
                "{}: no engine takes a place with such a name into a container (`:`, `,`, a space)",
                bind.from.display()
            );
        }
        let above = kept.iter().rev().find(|above| bind.to.starts_with(&above.to));
        // Of two for one place the first: one that is written to.
        if above.is_some_and(|above| above.to == bind.to) {
            continue;
        }
        let is_seen = above
            .is_some_and(|above| above.read_only == bind.read_only && above.from == above.to && bind.from == bind.to);
        if !is_seen {
            kept.push(bind);
        }
    }
    Ok(kept)
}

/// The directories that links lead to from a path, as they are called in the links.
fn behind(path: &Path) -> Vec<PathBuf> {
    let mut ends = Vec::new();
    let mut at = path.to_owned();
    for _ in 0..LINKS {
        let Ok(to) = fs::read_link(&at) else { break };
        at = plain(&at.parent().unwrap_or(Path::new("/")).join(to));
        ends.extend(at.parent().map(Path::to_owned));
    }
    ends
}

/// Without `..`, as the path reads.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            part => plain.push(part),
        }
        plain
    })
}

/// The directory that both are in.
fn common(a: &Path, b: &Path) -> PathBuf {
    a.components().zip(b.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
}
