//! Real container engines, a registry, and an image: see `engines.sh`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use crate::{
    servers::{Server, directory},
    support::{Output, Sandbox, until},
};

/// What `engines.sh` made: in the target directory, once.
pub fn engines() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/engines.sh");
        let place = directory().join("containers");
        let output = Output::of(Command::new("sh").arg(script).arg(&place).output().unwrap());
        assert_eq!(output.code, Some(0), "{output}");
        place
    })
}

/// `flow`, where these engines are found.
pub fn flow(sandbox: &Sandbox, args: &[&str]) -> Command {
    let mut flow = sandbox.flow(args);
    flow.env("PATH", format!("{}:{}", engines().join("bin").display(), std::env::var("PATH").unwrap()));
    flow.env("DOCKER_HOST", "unix:///nowhere");
    flow
}

/// The image of all tests, in a directory, with the system's libraries that a worker takes from its image.
pub fn worker_image(sandbox: &Sandbox, worker: &Path) -> PathBuf {
    let image = sandbox.outside("image");
    let done = Command::new("cp").arg("-a").arg(engines().join("image")).arg(&image).status().unwrap();
    assert!(done.success());
    let libraries = Output::of(Command::new("ldd").arg(worker).output().unwrap()).stdout;
    for word in libraries.split_whitespace().filter(|word| word.starts_with("/lib")) {
        let target = image.join(&word[1..]);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(word, target).unwrap();
    }
    image
}

/// A server of Docker's with the image `localhost/box:1`; killed when dropped.
pub struct Docker {
    child: Child,
    dir: tempfile::TempDir,
}

impl Docker {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name).display().to_string();
        let program = engines().join("bin/dockerd");
        let mut command = Command::new(program);
        command.args(["--data-root", &place("data"), "--exec-root", &place("exec"), "-p", &place("id")]);
        command.args(["-H", &format!("unix://{}", place("socket")), "--iptables=false", "--bridge=none"]);
        command.args(["--ip-forward=false", "--ip-masq=false"]);
        let log = fs::File::create(place("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().unwrap();
        let docker = Self { child, dir };
        until("dockerd answers", || docker.try_do(&["version"]).code == Some(0));
        docker.ok(&["import", engines().join("image.tar").to_str().unwrap(), "localhost/box:1"]);
        docker
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.dir.path().join("socket").display())
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn try_do(&self, args: &[&str]) -> Output {
        let mut command = Command::new(engines().join("bin/docker"));
        Output::of(command.args(args).env("DOCKER_HOST", self.host()).output().unwrap())
    }

    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.try_do(args);
        assert_eq!(output.code, Some(0), "docker {}\n{output}", args.join(" "));
        output.stdout
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // It ends what it has started, and takes its mounts away.
        // SAFETY: a system call on a child that was not waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let _ = self.child.wait();
    }
}

/// A registry over a directory.
pub fn registry(root: &Path, settings: &[(&str, &str)]) -> Server {
    let text = "version: 0.1\nstorage: {filesystem: {rootdir: ROOT}, delete: {enabled: true}}\nhttp: {addr: \"127.0.0.1:PORT\"}\n";
    let more: String = settings.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    let root = root.to_owned();
    Server::start(&engines().join("bin/docker-registry"), &move |port| {
        let file = root.join("registry.yml");
        let text = text.replace("ROOT", root.join("registry").to_str().unwrap()).replace("PORT", &port.to_string());
        fs::write(&file, text + &more).unwrap();
        vec!["serve".into(), file.to_str().unwrap().into()]
    })
}
