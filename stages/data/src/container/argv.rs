//! What each engine is told: one vector of arguments, made of the same facts.

use std::path::Path;

use super::{engine::Engine, inside::Bind};

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// A file.
    File(String),
    /// In a registry or the engine's own store: `REGISTRY/NAME@sha256:…`, or the id of one that no registry knows.
    Name(String),
}

/// A program to start in an image.
#[derive(Debug)]
pub struct Start<'a> {
    pub engine: Engine,
    pub image: &'a At,
    /// Parents before what is in them.
    pub binds: &'a [Bind],
    /// The user's.
    pub args: &'a [String],
    /// Variables of the engine's own environment that are handed in: their values are nobody's to see in a list of processes.
    pub pass: &'a [String],
    /// Variables that are no secret.
    pub set: &'a [(String, String)],
    pub gpus: bool,
    /// What comes on the standard input goes in. pyxis's `srun` is started by whoever has it.
    pub hears: bool,
    /// Who is to own what is written: user, group, further groups.
    pub user: (u32, u32, &'a [u32]),
    /// Where Docker and Podman write what they call it.
    pub id: &'a Path,
    /// The script for `sh`.
    pub enter: &'a Path,
    /// Of a Slurm job: the node that this runs on, and its cores.
    pub slurm: (Option<&'a str>, Option<&'a str>),
}

impl Start<'_> {
    /// The program and its arguments.
    pub fn argv(&self) -> Vec<String> {
        let mut argv = vec![self.engine.program().to_owned()];
        match self.engine {
            Engine::Apptainer | Engine::Singularity => self.apptainer(&mut argv),
            Engine::Enroot => self.enroot(&mut argv),
            Engine::Pyxis => self.pyxis(&mut argv),
            Engine::Podman | Engine::Docker => self.docker(&mut argv),
        }
        argv
    }

    fn image(&self) -> String {
        match self.image {
            At::File(path) => path.clone(),
            At::Name(name) => name.clone(),
        }
    }

    fn enter(&self) -> String {
        self.enter.display().to_string()
    }

    /// The user's home and environment stay outside, though Apptainer would let them in: what `~/.local` or `PYTHONPATH` hold is
    /// no part of the image, and of no key.
    fn apptainer(&self, argv: &mut Vec<String>) {
        argv.extend(["exec", "--cleanenv", "--no-home"].map(str::to_owned));
        argv.extend(self.gpus.then(|| "--nv".to_owned()));
        for bind in self.binds {
            argv.extend(["--bind".to_owned(), bind.joined(":", if bind.read_only { ":ro" } else { "" })]);
        }
        argv.extend_from_slice(self.args);
        argv.extend([self.image(), "sh".into(), self.enter()]);
    }

    /// The script takes the place of the image's entry point.
    fn enroot(&self, argv: &mut Vec<String>) {
        argv.push("start".into());
        for bind in self.binds {
            let options = if bind.read_only { ",ro" } else { "" };
            argv.extend(["--mount".to_owned(), bind.joined(":", &format!(":none:x-create=auto,rbind{options}"))]);
        }
        for name in self.pass {
            argv.extend(["--env".to_owned(), name.clone()]);
        }
        let gpus = [("NVIDIA_VISIBLE_DEVICES", "all"), ("NVIDIA_DRIVER_CAPABILITIES", "compute,utility")];
        let gpus = gpus.iter().filter(|_| self.gpus).map(|(name, value)| format!("{name}={value}"));
        for one in self.set.iter().map(|(name, value)| format!("{name}={value}")).chain(gpus) {
            argv.extend(["--env".to_owned(), one]);
        }
        argv.extend_from_slice(self.args);
        argv.extend(["--rc".into(), self.enter(), self.image()]);
    }

    /// One task on the node that flow is on, beside flow itself.
    fn pyxis(&self, argv: &mut Vec<String>) {
        argv.extend(["--nodes=1", "--ntasks=1", "--overlap", "--cpu-bind=none", "--input=none"].map(str::to_owned));
        let (node, cores) = self.slurm;
        argv.extend(node.map(|node| format!("--nodelist={node}")));
        argv.extend(cores.map(|cores| format!("--cpus-per-task={cores}")));
        argv.extend(self.pyxis_options());
        argv.extend(["sh".into(), self.enter()]);
    }

    /// What `srun` is told of the container that its tasks run in.
    pub fn pyxis_options(&self) -> Vec<String> {
        let names: Vec<&str> =
            self.pass.iter().chain(self.set.iter().map(|(name, _)| name)).map(String::as_str).collect();
        // Slurm's word for no variable at all.
        let names = if names.is_empty() { "NIL".to_owned() } else { names.join(",") };
        let mut argv = vec![format!("--export={names}")];
        argv.extend((names != "NIL").then(|| format!("--container-env={names}")));
        let image = match self.image {
            At::File(path) => path.clone(),
            At::Name(name) => name.replacen('/', "#", 1),
        };
        argv.push(format!("--container-image={image}"));
        let binds = self.binds.iter().map(|bind| bind.joined(":", if bind.read_only { ":ro" } else { "" }));
        argv.push(format!("--container-mounts={}", binds.collect::<Vec<_>>().join(",")));
        argv.extend(["--no-container-mount-home", "--no-container-entrypoint"].map(str::to_owned));
        argv.extend_from_slice(self.args);
        argv
    }

    /// Network and shared memory are the machine's, as they are with the others. A process of its own (`--init`) hands signals on and
    /// takes all with it that the program left.
    fn docker(&self, argv: &mut Vec<String>) {
        argv.extend(["run", "--rm", "--init", "--network=host", "--ipc=host"].map(str::to_owned));
        argv.extend(self.hears.then(|| "--interactive".to_owned()));
        argv.extend(["--security-opt=label=disable".to_owned(), format!("--cidfile={}", self.id.display())]);
        let (user, group, groups) = self.user;
        if self.engine == Engine::Podman && user != 0 {
            argv.push("--userns=keep-id".into());
        } else {
            argv.push(format!("--user={user}:{group}"));
            argv.extend(groups.iter().filter(|one| **one != group).map(|one| format!("--group-add={one}")));
        }
        if self.gpus {
            let all = if self.engine == Engine::Podman { "--device=nvidia.com/gpu=all" } else { "--gpus=all" };
            argv.push(all.into());
        }
        for bind in self.binds {
            argv.extend(["--volume".to_owned(), bind.joined(":", if bind.read_only { ":ro" } else { "" })]);
        }
        for name in self.pass {
            argv.extend(["--env".to_owned(), name.clone()]);
        }
        for (name, value) in self.set {
            argv.extend(["--env".to_owned(), format!("{name}={value}")]);
        }
        argv.extend_from_slice(self.args);
        argv.extend(["--entrypoint=sh".into(), self.image(), self.enter()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of those that do not run where the tests do, what they are told is all that can be looked at.
    #[test]
    fn each_engine_is_told_the_same_in_its_own_words() {
        let bind = |place: &str, read_only| Bind { from: place.into(), to: place.into(), read_only };
        let binds =
            [bind("/c/objects", true), bind("/c/s.out", false), Bind { to: "/data".into(), ..bind("/d", true) }];
        let file = At::File("/i.sqsh".into());
        let name = At::Name("nvcr.io/nvidia/pytorch@sha256:12".into());
        let start = |engine, image: &At, gpus| {
            let (pass, set) = (["HF_TOKEN".to_owned()], [("MARK".to_owned(), "ab".to_owned())]);
            let (args, groups) = (["--x".to_owned()], [100, 7]);
            let start = Start {
                engine,
                image,
                binds: &binds,
                args: &args,
                pass: &pass,
                set: &set,
                gpus,
                hears: false,
                user: (1000, 100, &groups),
                id: Path::new("/c/id"),
                enter: Path::new("/c/enter"),
                slurm: (Some("n1"), Some("8")),
            };
            start.argv().join(" ")
        };
        for engine in [Engine::Apptainer, Engine::Singularity] {
            let line = start(engine, &file, true);
            let rest = "exec --cleanenv --no-home --nv --bind /c/objects:/c/objects:ro --bind /c/s.out:/c/s.out \
                        --bind /d:/data:ro --x /i.sqsh sh /c/enter";
            assert_eq!(line, format!("{} {rest}", engine.name()));
        }
        assert_eq!(
            start(Engine::Enroot, &file, false),
            "enroot start --mount /c/objects:/c/objects:none:x-create=auto,rbind,ro --mount /c/s.out:/c/s.out:none:x-create=auto,rbind \
             --mount /d:/data:none:x-create=auto,rbind,ro --env HF_TOKEN --env MARK=ab --x --rc /c/enter /i.sqsh"
        );
        assert_eq!(
            start(Engine::Pyxis, &name, true),
            "srun --nodes=1 --ntasks=1 --overlap --cpu-bind=none --input=none --nodelist=n1 --cpus-per-task=8 --export=HF_TOKEN,MARK \
             --container-env=HF_TOKEN,MARK --container-image=nvcr.io#nvidia/pytorch@sha256:12 \
             --container-mounts=/c/objects:/c/objects:ro,/c/s.out:/c/s.out,/d:/data:ro --no-container-mount-home \
             --no-container-entrypoint --x sh /c/enter"
        );
        let rest = "--volume /c/objects:/c/objects:ro --volume /c/s.out:/c/s.out --volume /d:/data:ro --env HF_TOKEN \
                    --env MARK=ab --x --entrypoint=sh nvcr.io/nvidia/pytorch@sha256:12 /c/enter";
        let begin = "run --rm --init --network=host --ipc=host --security-opt=label=disable --cidfile=/c/id";
        assert_eq!(
            start(Engine::Docker, &name, true),
            format!("docker {begin} --user=1000:100 --group-add=7 --gpus=all {rest}")
        );
        assert_eq!(
            start(Engine::Podman, &name, true),
            format!("podman {begin} --userns=keep-id --device=nvidia.com/gpu=all {rest}")
        );
    }
}
