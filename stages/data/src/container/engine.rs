//! What runs programs in images: which of it is here, and which to take.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
    sync::OnceLock,
};

use flow_core::{Diagnostic, did_you_mean};
use schemars::JsonSchema;
use serde::Deserialize;

use super::image::Form;

/// What runs programs in images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// `apptainer exec`
    Apptainer,
    /// `singularity exec`
    Singularity,
    /// `enroot start`
    Enroot,
    /// `srun --container-image`, in a Slurm job.
    Pyxis,
    /// `podman run`
    Podman,
    /// `docker run`
    Docker,
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Apptainer, Self::Singularity, Self::Enroot, Self::Pyxis, Self::Podman, Self::Docker];

    /// As it stands in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Apptainer => "apptainer",
            Self::Singularity => "singularity",
            Self::Enroot => "enroot",
            Self::Pyxis => "pyxis",
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }

    /// The program that is started.
    pub fn program(self) -> &'static str {
        match self {
            Self::Pyxis => "srun",
            other => other.name(),
        }
    }

    /// How the variables are called by which it hands others in.
    pub fn prefix(self) -> Option<&'static str> {
        match self {
            Self::Apptainer => Some("APPTAINERENV_"),
            Self::Singularity => Some("SINGULARITYENV_"),
            Self::Enroot | Self::Pyxis | Self::Podman | Self::Docker => None,
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.name() == name)
    }

    /// Whether it runs such images.
    pub fn takes(self, form: Form) -> bool {
        match form {
            Form::Reference => true,
            Form::Sif => matches!(self, Self::Apptainer | Self::Singularity),
            Form::Squash | Form::Unknown => !matches!(self, Self::Podman | Self::Docker),
        }
    }

    /// Whether it is here and answers. That it is installed says little of Docker, whose server may not run or not be for
    /// everybody, and of pyxis, which is a part of Slurm on some sites.
    pub fn is_here(self) -> bool {
        static ANSWERS: [OnceLock<bool>; 2] = [const { OnceLock::new() }; 2];
        let succeeds = |args: &[&str], word: &str| {
            let output = Command::new(self.program()).args(args).stdin(Stdio::null()).output();
            output.is_ok_and(|output| output.status.success() && String::from_utf8_lossy(&output.stdout).contains(word))
        };
        self.place().is_some()
            && match self {
                Self::Docker => {
                    *ANSWERS[0].get_or_init(|| succeeds(&["version", "--format", "{{.Server.Version}}"], ""))
                }
                Self::Pyxis => {
                    env::var_os("SLURM_JOB_ID").is_some()
                        && *ANSWERS[1].get_or_init(|| succeeds(&["--help"], "--container-image"))
                }
                _ => true,
            }
    }

    /// Where its program is.
    pub fn place(self) -> Option<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).map(|folder| folder.join(self.program())).find(|program| program.is_file())
    }

    /// What is to be done so that it is here.
    fn want(self) -> &'static str {
        match self {
            Self::Docker => "its program is not on the PATH, or its server does not answer: see `docker version`",
            Self::Pyxis => "it is there only in a job of a Slurm that has it: see `srun --help`",
            _ => "its program is not on the PATH; on clusters it may be a module to load",
        }
    }
}

/// Those that suit an image, the first choice first. Within a job pyxis starts what the site meant to be started; Docker
/// has images of registries as they are, and answers only where somebody set it up; Podman comes with many systems on which nobody
/// uses it, and does not work on every file system.
fn order(form: Form) -> &'static [Engine] {
    use Engine::{Apptainer, Docker, Enroot, Podman, Pyxis, Singularity};
    match form {
        Form::Reference => &[Pyxis, Docker, Apptainer, Singularity, Enroot, Podman],
        Form::Squash => &[Pyxis, Enroot, Apptainer, Singularity],
        Form::Sif => &[Apptainer, Singularity],
        Form::Unknown => &[Apptainer, Singularity, Pyxis, Enroot],
    }
}

/// The engine for an image: as the settings say, or the pipeline, or the first that is here.
///
/// # Errors
/// There is none, or not the one that is asked for.
pub fn choose(form: Form, own: Option<Engine>, setting: Option<&str>) -> Result<Engine, Diagnostic> {
    let names = |engines: &[Engine]| engines.iter().map(|engine| engine.name()).collect::<Vec<_>>().join(", ");
    let asked = match setting {
        Some(name) => Some(Engine::named(name).ok_or_else(|| {
            let error = Diagnostic::new(format!("`{name}` is none of the container engines that flow knows"));
            let error = error.cause("the setting `container_engine`, or FLOW_CONTAINER, names it");
            match did_you_mean(name, Engine::ALL.map(Engine::name)) {
                Some(near) => error.hint(format!("did you mean `{near}`?")),
                None => error.hint(format!("it knows: {}", names(&Engine::ALL))),
            }
        })?),
        None => own,
    };
    let suited = order(form);
    let Some(engine) = asked else {
        return suited.iter().copied().find(|engine| engine.is_here()).ok_or_else(|| {
            let error = Diagnostic::new("nothing on this machine runs such a container");
            let error = error.cause(format!("looked for, in this order: {}", names(suited)));
            error.hint("install one of them, or load its module; `flow doctor` says which are here")
        });
    };
    let by = if setting.is_some() { " (a setting asks for it)" } else { "" };
    if !engine.takes(form) {
        let error = Diagnostic::new(format!("{} does not run such an image{by}", engine.name()));
        return Err(error.hint(format!("these do: {}", names(suited))));
    }
    if !engine.is_here() {
        let error = Diagnostic::new(format!("{} is not here{by}", engine.name())).cause(engine.want());
        let here: Vec<Engine> = suited.iter().copied().filter(|engine| engine.is_here()).collect();
        return Err(if here.is_empty() { error } else { error.hint(format!("here are: {}", names(&here))) });
    }
    Ok(engine)
}

/// The engines of this machine, and where their programs are.
pub fn found() -> Vec<(&'static str, PathBuf)> {
    let here = Engine::ALL.into_iter().filter(|engine| engine.is_here());
    here.filter_map(|engine| Some((engine.name(), engine.place()?))).collect()
}
