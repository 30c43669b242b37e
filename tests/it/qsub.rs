//! Stages as jobs of schedulers with `qsub`, by the templates that flow brings along: of Grid Engine itself, which
//! `tests/qsub/age-up` starts as root, and of stand-ins (`tests/qsub`) that say what was asked of them.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    servers::directory,
    support::{Events, Output, Running, Sandbox, until},
};

struct Site {
    sandbox: Sandbox,
}

impl Site {
    /// Where stages run with a preset.
    fn new(preset: &str) -> Self {
        let site = Self { sandbox: Sandbox::new() };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qsub").join(preset);
        for dir in ["bin", "state"] {
            fs::create_dir(site.sandbox.outside(dir)).unwrap();
        }
        for name in ["qsub", "qstat", "qdel"] {
            symlink(&script, site.sandbox.outside("bin").join(name)).unwrap();
        }
        site.sandbox.write(
            "flow.toml",
            &format!(
                "executor = \"there\"\n[executors.there]\npreset = \"{preset}\"\naccount = \"group\"\npartition = \"cpu_4\"\n\
                 time = \"1h\"\npoll = \"200ms\"\nsetup = \"export SITE=here\"\n"
            ),
        );
        site
    }

    fn flow(&self, args: &[&str]) -> Command {
        let mut command = self.sandbox.flow(args);
        let path = format!("{}:{}", self.sandbox.outside("bin").display(), std::env::var("PATH").unwrap());
        command.env("PATH", path).env("QSUB_DIR", self.sandbox.outside("state"));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        Output::of(self.flow(args).output().unwrap())
    }

    /// What `qsub` was called with, call by call.
    fn submitted(&self) -> Vec<String> {
        self.sandbox.lines("state/submitted")
    }

    /// A stage that writes down that it began, and waits for a file.
    fn slow(&self) {
        let (began, go) = (self.sandbox.outside("began"), self.sandbox.outside("go"));
        self.sandbox.pipeline(&format!(
            "[stage.slow]\nkind = \"command\"\nrun = \"echo began >> {}; while ! test -e {}; do sleep 0.1; done; echo x > {{out}}/x\"\n",
            began.display(),
            go.display()
        ));
    }

    fn begins(&self, times: usize) {
        until("it began", || self.sandbox.lines("began").len() == times);
    }
}

#[test]
fn stages_are_jobs_of_the_shipped_templates() {
    for preset in ["age", "pbs"] {
        let site = Site::new(preset);
        site.sandbox.pipeline(
            "[stage.here]\nkind = \"command\"\nexecutor = \"local\"\nrun = \"echo here$JOB_ID$PBS_JOBID > {out}/x\"\n\
             [stage.many]\nkind = \"command\"\nmatrix = { i = [1, 2, 3] }\nin = { here = \"here\" }\n\
             resources = { cpus = 2, memory = \"64MiB\", time = \"10m\" }\n\
             run = \"cat {in.here}/x; echo $SITE ${matrix.i} job $JOB_ID$PBS_JOBID > {out}/x\"\n\
             [stage.all]\nkind = \"command\"\nin = { many = \"many\" }\nrun = \"cat {in.many}/x > {out}/all\"\n",
        );
        let output = site.run(&["run", "p.toml", "--json"]);
        assert_eq!(output.code, Some(0), "{preset}: {output}");
        assert_eq!(Events::of(&output.stdout).ran().len(), 5, "{preset}");
        let path = site.sandbox.ok(&["path", "p.toml", "all"]);
        let all = fs::read_to_string(Path::new(path.trim_end()).join("all")).unwrap();
        let begin = |line: &str| line.split(" job ").next().unwrap().to_owned();
        assert_eq!(all.lines().map(begin).collect::<Vec<_>>(), ["here 1", "here 2", "here 3"], "{preset}: {all}");
        assert!(all.lines().all(|line| line.contains(" job 10")), "{preset}: {all}");
        assert_eq!(site.submitted().len(), 4, "{preset}: {:?}", site.submitted());
        let script = fs::read_to_string(site.sandbox.outside("state/100/script")).unwrap();
        let words: &[&str] = match preset {
            "age" => &["#$ -l h_rt=0:10:00\n", "#$ -l cpu_4=1\n"],
            _ => &[
                "#PBS -l walltime=0:10:00\n",
                "#PBS -q cpu_4\n",
                "#PBS -A group\n",
                "#PBS -l select=1:ncpus=2:mem=64mb\n",
            ],
        };
        assert!(words.iter().all(|word| script.contains(word)), "{preset}: {script}");
        assert_eq!(preset == "age", site.submitted()[0].starts_with("-g group "), "{:?}", site.submitted());
        let again = site.run(&["run", "p.toml", "--json"]);
        assert_eq!((again.code, Events::of(&again.stdout).ran().len()), (Some(0), 0), "{again}");
        assert_eq!(site.submitted().len(), 4);

        site.sandbox.pipeline("[stage.wrong]\nkind = \"command\"\nrun = \"echo why; exit 7\"\n");
        let output = site.run(&["run", "p.toml"]);
        assert_eq!(output.code, Some(1), "{output}");
        assert!(output.stderr.contains("exit status 7") && output.stderr.contains("why"), "{output}");
    }
}

#[test]
fn a_killed_run_leaves_its_jobs_to_the_next_and_cancel_ends_them() {
    for preset in ["age", "pbs"] {
        let site = Site::new(preset);
        site.slow();
        let mut head = site.flow(&["run", "p.toml"]);
        let head = Running::of(&mut head);
        site.begins(1);
        // Such a scheduler cannot be asked for a job by name: its id must be written down.
        let batches = || fs::read_dir(site.sandbox.cache().join("jobs")).unwrap().map(|batch| batch.unwrap().path());
        until("its job is known", || batches().any(|batch| batch.join("submitted.json").exists()));
        drop(head);
        let head = Running::of(&mut site.flow(&["run", "p.toml", "--json"]));
        until("it is seen", || site.run(&["status", "p.toml"]).stderr.contains("slow"));
        fs::write(site.sandbox.outside("go"), "").unwrap();
        let output = head.end();
        assert_eq!(output.code, Some(0), "{preset}: {output}");
        assert_eq!((site.submitted().len(), site.sandbox.lines("began").len()), (1, 1), "{preset}");

        fs::remove_file(site.sandbox.outside("go")).unwrap();
        let head = Running::of(&mut site.flow(&["run", "p.toml", "--force", "slow"]));
        site.begins(2);
        head.signal(libc::SIGINT);
        assert_eq!(head.end().code, Some(130), "{preset}");
        let cancelled = site.run(&["cancel", "p.toml", "slow"]);
        assert!(cancelled.code == Some(0) && cancelled.stderr.contains("cancelled 1 job"), "{preset}: {cancelled}");
        until("it is gone", || fs::read_to_string(site.sandbox.outside("state/101/ended")).is_ok());
    }
}

#[test]
fn who_may_have_few_jobs_has_them_all_in_the_end() {
    let site = Site::new("age");
    site.sandbox.pipeline(
        "[stage.many]\nkind = \"command\"\nmatrix = { i = [0, 1, 2, 3, 4, 5] }\nrun = \"sleep 2; echo ${matrix.i} > {out}/x\"\n",
    );
    let output = Output::of(site.flow(&["run", "p.toml"]).env("QSUB_LIMIT", "4").output().unwrap());
    assert!(output.code == Some(0) && output.stderr.contains("6 ran"), "{output}");
    assert_eq!(output.stderr.matches("no room for more jobs just now: 2 wait").count(), 1, "it is said once\n{output}");
    // None that runs is ended for the sake of the others.
    assert_eq!(site.submitted().len(), 6, "{:?}", site.submitted());
}

/// A Grid Engine of its own.
struct GridEngine {
    dir: tempfile::TempDir,
    /// What its commands need to find it.
    env: Vec<(String, String)>,
}

impl GridEngine {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("ge").tempdir_in("/tmp").unwrap();
        let mut engine = Self { dir, env: Vec::new() };
        engine.up();
        engine
    }

    /// Starts what of it does not run.
    fn up(&mut self) {
        let mut up = Command::new("sh");
        up.args(["-c", "set -e; said=$(\"$0\" \"$1\" 4); eval \"$said\"; env | grep -e ^SGE_ -e ^PATH="]);
        up.arg(script("age-up")).arg(self.dir.path()).env("AGE_PACKAGES", directory().join("grid-engine"));
        let output = Output::of(up.output().unwrap());
        assert_eq!(output.code, Some(0), "Grid Engine does not start (it needs root and Debian's packages)\n{output}");
        let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        self.env = output.stdout.lines().filter_map(pair).collect();
    }

    fn flow(&self, sandbox: &Sandbox, args: &[&str]) -> Command {
        let mut command = sandbox.flow(args);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    fn run(&self, sandbox: &Sandbox, args: &[&str]) -> Output {
        Output::of(self.flow(sandbox, args).output().unwrap())
    }
}

impl Drop for GridEngine {
    fn drop(&mut self) {
        Command::new(script("age-down")).arg(self.dir.path()).output().ok();
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qsub").join(name)
}

#[test]
fn grid_engine_itself_takes_the_jobs_of_the_template() {
    let mut engine = GridEngine::start();
    let sandbox = Sandbox::new();
    sandbox.write(
        "a b/flow.toml",
        "executor = \"there\"\n[executors.there]\npreset = \"age\"\ntime = \"10m\"\npoll = \"500ms\"\nsetup = \"export SITE=here\"\n",
    );
    let pipeline = |text: &str| sandbox.write("a b/p.toml", &format!("[pipeline]\nname = \"p\"\n{text}"));
    pipeline(
        "[stage.here]\nkind = \"command\"\nexecutor = \"local\"\nrun = \"echo here$JOB_ID > {out}/x\"\n\
         [stage.many]\nkind = \"command\"\nmatrix = { i = [1, 2, 3] }\nin = { here = \"here\" }\n\
         run = \"test -n $JOB_ID && cat {in.here}/x && echo $SITE ${matrix.i} > {out}/x\"\n\
         [stage.all]\nkind = \"command\"\nin = { many = \"many\" }\nrun = \"cat {in.many}/x > {out}/all\"\n\
         [stage.wrong]\nkind = \"command\"\nneeds = [\"all\"]\nrun = \"echo why; exit 7\"\n",
    );
    let output = engine.run(&sandbox, &["run", "a b/p.toml"]);
    assert!(output.code == Some(1) && output.stderr.contains("exit status 7"), "{output}");
    assert!(output.stderr.contains("why") && output.stderr.contains("5 ran"), "{output}");
    let path = sandbox.ok(&["path", "a b/p.toml", "all"]);
    assert_eq!(fs::read_to_string(Path::new(path.trim_end()).join("all")).unwrap(), "here 1\nhere 2\nhere 3\n");

    // One that runs when its head dies is taken up; who submits while the master is away waits.
    let (began, go) = (sandbox.outside("began"), sandbox.outside("go"));
    pipeline(&format!(
        "[stage.slow]\nkind = \"command\"\nrun = \"echo >> {}; while ! test -e {}; do sleep 0.1; done; echo > {{out}}/x\"\n\
         [stage.next]\nkind = \"command\"\nin = {{ x = \"slow\" }}\nrun = \"cat {{in.x}}/x > {{out}}/x\"\n",
        began.display(),
        go.display()
    ));
    let begins = |times: usize| until("it began", || sandbox.lines("began").len() == times);
    let batches = || fs::read_dir(sandbox.cache().join("jobs")).unwrap().map(|batch| batch.unwrap().path());
    let head = Running::of(&mut engine.flow(&sandbox, &["run", "a b/p.toml"]));
    begins(1);
    until("its job is known", || batches().any(|batch| batch.join("submitted.json").exists()));
    drop(head);
    let head = Running::of(&mut engine.flow(&sandbox, &["run", "a b/p.toml"]));
    until("it is seen", || engine.run(&sandbox, &["status", "a b/p.toml"]).stderr.contains("slow"));
    let pid = fs::read_to_string(engine.dir.path().join("run/sge_qmaster.pid")).unwrap();
    let pid = pid.split_whitespace().next().unwrap();
    assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success());
    fs::write(&go, "").unwrap();
    let said = |text: &str| {
        let runs = fs::read_dir(sandbox.cache().join("runs")).unwrap().map(|run| run.unwrap().path());
        let mut events = runs.map(|run| fs::read_to_string(run.join("events.jsonl")).unwrap_or_default());
        events.any(|events| events.contains(text))
    };
    until("the next one has to wait", || said("cannot be given jobs now"));
    engine.up();
    let output = head.end();
    assert!(output.code == Some(0) && output.stderr.contains("2 ran"), "{output}");
    assert_eq!(sandbox.lines("began").len(), 1);

    fs::remove_file(&go).unwrap();
    let head = Running::of(&mut engine.flow(&sandbox, &["run", "a b/p.toml", "--force", "slow"]));
    begins(2);
    head.signal(libc::SIGINT);
    assert_eq!(head.end().code, Some(130));
    let cancelled = engine.run(&sandbox, &["cancel", "a b/p.toml", "slow"]);
    assert!(cancelled.code == Some(0) && cancelled.stderr.contains("cancelled 1 job"), "{cancelled}");
    let left = || Output::of(Command::new("qstat").envs(engine.env.iter().cloned()).output().unwrap()).stdout;
    until("it is gone", || left().is_empty());
}
