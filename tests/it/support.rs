//! [`Sandbox`]: a project, a cache and a home of its own, and the real `flow` in it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value as Json;
use tempfile::TempDir;

/// A place where nothing of this machine's user is seen.
pub struct Sandbox {
    dir: TempDir,
}

/// What a command left.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Sandbox {
    pub fn new() -> Self {
        let sandbox = Self { dir: tempfile::tempdir().unwrap() };
        for dir in ["project", "home"] {
            fs::create_dir(sandbox.dir.path().join(dir)).unwrap();
        }
        sandbox
    }

    /// With the pipelines and examples that flow is shipped with.
    pub fn shipped() -> Self {
        let (sandbox, root) = (Self::new(), Path::new(env!("CARGO_MANIFEST_DIR")));
        ["pipelines", "examples"].iter().for_each(|dir| copy(&root.join(dir), &sandbox.path(dir)));
        sandbox
    }

    /// With `text` as `p.toml`, after a `[pipeline]` head.
    pub fn with(text: &str) -> Self {
        let sandbox = Self::new();
        sandbox.pipeline(text);
        sandbox
    }

    pub fn pipeline(&self, text: &str) {
        self.write("p.toml", &format!("[pipeline]\nname = \"p\"\n{text}"));
    }

    /// A file of the project.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("project").join(name)
    }

    /// A file outside of the project, that no key sees.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// The lines of a file outside; none if it is not there.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.outside(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// `flow`, in the project's folder.
    pub fn flow(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
        self.at_home(&mut command);
        command.args(args);
        command
    }

    /// Any command, in the project's folder, with the sandbox's environment.
    pub fn at_home(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let kept = name == "FLOW_TORCH";
            if name.to_string_lossy().starts_with("FLOW_") && !kept {
                command.env_remove(name);
            }
        }
        let home = self.dir.path().join("home");
        command
            .current_dir(self.path(""))
            .env("FLOW_CACHE_DIR", self.cache())
            .env("HOME", &home)
            .env("XDG_CONFIG_HOME", home.join("config"))
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
    }

    pub fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    pub fn run(&self, args: &[&str]) -> Output {
        Output::of(self.flow(args).output().unwrap())
    }

    /// Must end well; its stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.code, Some(0), "flow {}\n{output}", args.join(" "));
        output.stdout
    }

    /// `flow run p.toml --json`, which must end well: what each node did.
    pub fn json(&self, args: &[&str]) -> Events {
        let args: Vec<&str> = ["run", "p.toml", "--json"].into_iter().chain(args.iter().copied()).collect();
        Events::of(&self.ok(&args))
    }

    /// Starts `flow` and leaves it running.
    pub fn start(&self, args: &[&str]) -> Running {
        Running::of(&mut self.flow(args))
    }
}

impl Output {
    pub fn of(output: std::process::Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit {:?}\n--- stdout\n{}--- stderr\n{}", self.code, self.stdout, self.stderr)
    }
}

/// A `flow` that runs. Killed when dropped.
pub struct Running(Option<Child>);

impl Running {
    /// Starts a command and leaves it running.
    pub fn of(command: &mut Command) -> Self {
        Self(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    pub fn id(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: i32) {
        let id = self.id();
        // SAFETY: plain system call on a child that has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(id as i32, signal) }, 0);
    }

    /// Waits for its end.
    pub fn end(mut self) -> Output {
        Output::of(self.0.take().unwrap().wait_with_output().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How long a wait may last on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The events of a run.
pub struct Events(pub Vec<Json>);

impl Events {
    pub fn of(stdout: &str) -> Self {
        Self(stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect())
    }

    /// Node → how its result came.
    pub fn how(&self) -> BTreeMap<&str, &str> {
        let finished = self.0.iter().filter(|event| event["event"] == "finished");
        finished.map(|event| (event["node"].as_str().unwrap(), event["how"].as_str().unwrap())).collect()
    }

    /// The nodes that ran, sorted.
    pub fn ran(&self) -> Vec<&str> {
        self.how().into_iter().filter(|(_, how)| *how == "ran").map(|(node, _)| node).collect()
    }

    /// Node → digest of its result.
    pub fn digests(&self) -> BTreeMap<&str, &str> {
        let finished = self.0.iter().filter(|event| event["event"] == "finished");
        finished.map(|event| (event["node"].as_str().unwrap(), event["digest"].as_str().unwrap())).collect()
    }

    pub fn end(&self) -> &Json {
        let end = self.0.last().unwrap();
        assert_eq!(end["event"], "run_finished");
        end
    }
}

/// Copies a directory.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
