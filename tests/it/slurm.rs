//! Stages as jobs of a real Slurm: a controller and its machines, started here by `tests/slurm/slurm-up` as root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use crate::{
    engines::{engines, worker_image},
    support::{Events, Output, Running, Sandbox, until},
};

/// A cluster of its own.
struct Cluster {
    dir: tempfile::TempDir,
    nodes: u32,
}

/// Installing Slurm and choosing ports is done by one at a time.
static STARTING: Mutex<()> = Mutex::new(());

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slurm").join(name)
}

impl Cluster {
    fn start(nodes: u32) -> Self {
        // A socket's path is short.
        let dir = tempfile::Builder::new().prefix("sl").tempdir_in("/tmp").unwrap();
        let cluster = Self { dir, nodes };
        cluster.up();
        cluster
    }

    /// Starts what of it does not run.
    fn up(&self) {
        let _one = STARTING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut up = Command::new(script("slurm-up"));
        up.args([self.nodes.to_string(), "4".into(), "2".into()]).env("SLURM_DEV_DIR", self.dir.path());
        let output = Output::of(up.env("SLURM_DEV_WAIT", "120").output().unwrap());
        assert_eq!(output.code, Some(0), "Slurm does not start (it needs root and Debian's packages)\n{output}");
    }

    fn conf(&self) -> PathBuf {
        self.dir.path().join("slurm.conf")
    }

    /// One of Slurm's commands.
    fn ask(&self, words: &[&str]) -> String {
        let output = Command::new(words[0]).args(&words[1..]).env("SLURM_CONF", self.conf()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn kill(&self, daemon: &str) {
        let pid = fs::read_to_string(self.dir.path().join(format!("run/{daemon}.pid"))).unwrap();
        let pid = pid.split_whitespace().next().unwrap();
        assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success());
    }

    fn flow(&self, sandbox: &Sandbox, args: &[&str]) -> Command {
        let mut command = sandbox.flow(args);
        command.env("SLURM_CONF", self.conf()).env("PATH", path());
        command
    }

    fn run(&self, sandbox: &Sandbox, args: &[&str]) -> Output {
        Output::of(self.flow(sandbox, args).output().unwrap())
    }

    fn start_flow(&self, sandbox: &Sandbox, args: &[&str]) -> Running {
        Running::of(&mut self.flow(sandbox, args))
    }
}

fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        Command::new(script("slurm-down")).env("SLURM_DEV_DIR", self.dir.path()).output().ok();
    }
}

/// A project whose stages are jobs.
fn sandbox(pipeline: &str, more: &str) -> Sandbox {
    let sandbox = Sandbox::with(pipeline);
    sandbox.write("flow.toml", &format!("executor = \"slurm\"\n[slurm]\npoll = \"1s\"\n{more}"));
    sandbox
}

/// A stage that says each time that it begins, and goes on when it may.
fn slow(sandbox: &Sandbox, name: &str, more: &str) -> String {
    let (began, go) = (sandbox.outside(&format!("{name}-began")), sandbox.outside("go"));
    format!(
        "[stage.{name}]\nkind = \"command\"\n{more}run = \"echo $SLURMD_NODENAME >> {}; while ! test -e {}; do sleep 0.1; done; echo {name} > {{out}}/x\"\n",
        began.display(),
        go.display()
    )
}

/// Whether a run has said something of itself.
fn said(sandbox: &Sandbox, text: &str) -> bool {
    let runs = fs::read_dir(sandbox.cache().join("runs")).into_iter().flatten().flatten();
    let mut events = runs.map(|run| fs::read_to_string(run.path().join("events.jsonl")).unwrap_or_default());
    events.any(|events| events.contains(text))
}

fn began(sandbox: &Sandbox, name: &str) -> usize {
    sandbox.lines(&format!("{name}-began")).len()
}

#[test]
fn stages_are_jobs_shards_are_arrays_and_what_is_there_is_no_job() {
    let cluster = Cluster::start(2);
    let shards: Vec<String> = (0..500).map(|i| i.to_string()).collect();
    let sandbox = sandbox(
        &format!(
            "[stage.one]\nkind = \"command\"\nresources = {{ cpus = 2, gpus = 1, memory = \"64MiB\", time = \"10m\" }}\n\
             run = \"echo $SLURM_CPUS_PER_TASK $CUDA_VISIBLE_DEVICES $SLURM_JOB_NAME; echo said; echo 1 > {{out}}/x\"\n\
             [stage.many]\nkind = \"command\"\nin = {{ one = \"one\" }}\n\
             run = \"cat {{in.one}}/x; echo ${{matrix.i}} > {{out}}/x\"\nmatrix = {{ i = [{}] }}\n\
             [stage.here]\nkind = \"command\"\nexecutor = \"local\"\nin = {{ many = \"many\" }}\n\
             run = \"test -z \\\"$SLURM_JOB_ID\\\" && echo here > {{out}}/x\"\n",
            shards.join(",")
        ),
        "[slurm.stage.many]\ntogether = 20\n",
    );
    let output = cluster.run(&sandbox, &["run", "p.toml", "--json"]);
    assert_eq!(output.code, Some(0), "{output}");
    let events = Events::of(&output.stdout);
    assert_eq!(events.ran().len(), 502);
    let log = sandbox.ok(&["log", "one"]);
    assert!(log.contains("2 0 one@") && log.contains("\nsaid\n"), "{log}");
    // One call of sbatch for the one, one for the five hundred.
    let submitted = cluster.ask(&["squeue", "-h", "-t", "all", "-o", "%F"]);
    let mut arrays: Vec<&str> = submitted.lines().collect();
    arrays.sort_unstable();
    arrays.dedup();
    assert_eq!(arrays.len(), 2, "{submitted}");
    let again = cluster.run(&sandbox, &["run", "p.toml", "--json"]);
    assert_eq!((again.code, Events::of(&again.stdout).ran().len()), (Some(0), 0), "{again}");
    assert_eq!(fs::read_dir(sandbox.cache().join("jobs/keys")).unwrap().count(), 0);
}

#[test]
fn a_run_takes_up_the_jobs_of_one_that_was_killed_and_nothing_runs_twice() {
    let cluster = Cluster::start(1);
    let sandbox = sandbox("", "");
    sandbox.pipeline(&slow(&sandbox, "one", ""));
    let head = cluster.start_flow(&sandbox, &["run", "p.toml"]);
    until("it began", || began(&sandbox, "one") == 1);
    drop(head);
    // Without a head it is seen, and its log is.
    let status = cluster.run(&sandbox, &["status", "p.toml"]);
    assert!(status.stderr.contains("of slurm runs on n1: one"), "{status}");
    let heads = [(); 2].map(|()| cluster.start_flow(&sandbox, &["run", "p.toml", "--json"]));
    std::thread::sleep(Duration::from_secs(2));
    fs::write(sandbox.outside("go"), "").unwrap();
    for head in heads {
        let output = head.end();
        assert_eq!((output.code, Events::of(&output.stdout).ran()), (Some(0), vec!["one"]), "{output}");
        assert!(output.stdout.contains("makes it already"), "{output}");
    }
    assert_eq!(began(&sandbox, "one"), 1);
}

#[test]
fn what_can_never_start_is_said_and_what_fails_says_why() {
    let cluster = Cluster::start(1);
    let sandbox = sandbox(
        "[stage.big]\nkind = \"command\"\nresources = { nodes = 3 }\nrun = \"echo > {out}/x\"\n\
         [stage.nowhere]\nkind = \"command\"\nrun = \"echo 1 > {out}/x\"\n\
         [stage.wrong]\nkind = \"command\"\nrun = \"echo why >&2; exit 7\"\n\
         [stage.shot]\nkind = \"command\"\nrun = \"kill -9 $PPID; sleep 60\"\n",
        "[slurm.stage.nowhere]\npartition = \"nosuch\"\n",
    );
    let output = cluster.run(&sandbox, &["run", "p.toml", "--keep-going"]);
    assert_eq!(output.code, Some(1), "{output}");
    for said in [
        "can never start: it asks for 3 machines, and partition dev gives a job at most 1",
        "Slurm does not take its job",
        "invalid partition",
        "exit status 7",
        "why",
        "ended without a word of its node",
    ] {
        assert!(output.stderr.contains(said), "{said}\n{output}");
    }
    assert_eq!(cluster.ask(&["squeue", "-h"]), "", "what can never start is taken back");
}

#[test]
fn a_machine_that_fails_and_a_controller_that_is_away_cost_time_alone() {
    let cluster = Cluster::start(2);
    let sandbox = sandbox("", "");
    sandbox.pipeline(&(slow(&sandbox, "one", "") + &slow(&sandbox, "two", "resources = { cpus = 4 }\n")));
    let head = cluster.start_flow(&sandbox, &["run", "p.toml"]);
    until("both began", || began(&sandbox, "one") == 1 && began(&sandbox, "two") == 1);
    let node = sandbox.lines("one-began")[0].clone();
    cluster.ask(&["scontrol", "update", &format!("nodename={node}"), "state=down", "reason=test"]);
    cluster.ask(&["scontrol", "update", &format!("nodename={node}"), "state=resume"]);
    until("it began again", || began(&sandbox, "one") == 2);
    cluster.kill("slurmctld");
    until("it is missed", || said(&sandbox, "Slurm does not answer"));
    fs::write(sandbox.outside("go"), "").unwrap();
    until("it is done all the same", || sandbox.run(&["path", "p.toml", "two"]).code == Some(0));
    cluster.up();
    let output = head.end();
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(began(&sandbox, "two"), 1);
}

#[test]
fn jobs_go_on_without_an_interrupted_run_until_they_are_cancelled() {
    let cluster = Cluster::start(1);
    let sandbox = sandbox("", "");
    sandbox.pipeline(&slow(&sandbox, "one", ""));
    let head = cluster.start_flow(&sandbox, &["run", "p.toml"]);
    until("it began", || began(&sandbox, "one") == 1);
    head.signal(libc::SIGINT);
    let output = head.end();
    assert_eq!(output.code, Some(130), "{output}");
    assert!(output.stderr.contains("1 job left in the cluster"), "{output}");
    assert!(cluster.ask(&["squeue", "-h", "-o", "%T"]).contains("RUNNING"));
    let cancelled = cluster.run(&sandbox, &["cancel", "p.toml", "one"]);
    assert!(cancelled.code == Some(0) && cancelled.stderr.contains("cancelled 1 job"), "{cancelled}");
    until("it is gone", || cluster.ask(&["squeue", "-h"]).is_empty());
    let none = cluster.run(&sandbox, &["cancel", "p.toml"]);
    assert_eq!(none.code, Some(1), "{none}");
    // Cancelled by somebody else while a run waits for it.
    let head = cluster.start_flow(&sandbox, &["run", "p.toml"]);
    until("it began again", || began(&sandbox, "one") == 2);
    cluster.ask(&["scancel", "--full", "-u", "root"]);
    let output = head.end();
    assert!(output.code == Some(1) && output.stderr.contains("was cancelled"), "{output}");
}

#[test]
fn who_edits_the_pipeline_changes_the_next_run() {
    let cluster = Cluster::start(1);
    let sandbox = sandbox("", "");
    let two = "[stage.two]\nkind = \"command\"\nin = { one = \"one\" }\nrun = \"cat {in.one}/x > {out}/x\"\n";
    sandbox.pipeline(&(slow(&sandbox, "one", "") + two));
    let head = cluster.start_flow(&sandbox, &["run", "p.toml", "--json"]);
    until("it began", || began(&sandbox, "one") == 1);
    sandbox.pipeline("[stage.other]\nkind = \"command\"\nrun = \"false\"\n");
    fs::write(sandbox.outside("go"), "").unwrap();
    let output = head.end();
    assert_eq!((output.code, Events::of(&output.stdout).ran()), (Some(0), vec!["one", "two"]), "{output}");
}

/// Needs `flow-torch`: run where FLOW_TORCH names it.
#[test]
fn training_on_two_machines_goes_on_after_its_limit_and_gives_what_one_machine_does() {
    let Some(worker) = std::env::var_os("FLOW_TORCH") else {
        eprintln!("left out: FLOW_TORCH names no trainer (`cargo xtask test` builds it)");
        return;
    };
    let cluster = Cluster::start(2);
    let sandbox = Sandbox::new();
    sandbox.ok(&["init", "tiny", "--template", "train"]);
    let text = sandbox.read("tiny/pipeline.toml");
    let on_two = "max_steps = 400\nparallel = { data = 2 }\nresources = { cpus = 1, nodes = 2 }";
    let two = text.replace("max_steps = 40", on_two).replace("micro_batch_size = 8", "micro_batch_size = 4");
    assert_ne!(two, text);
    sandbox.write("tiny/pipeline.toml", &two);
    sandbox.write("tiny/flow.toml", "executor = \"slurm\"\n[slurm]\npoll = \"1s\"\n");
    let head = cluster.start_flow(&sandbox, &["run", "tiny/pipeline.toml", "--json"]);
    let trains = || {
        let jobs = cluster.ask(&["squeue", "-h", "-t", "R", "-o", "%i %j"]);
        jobs.lines().find(|job| job.contains(" train@")).map(|job| job.split(' ').next().unwrap().to_owned())
    };
    // Slurm's warning of the limit, as it comes by `--signal`.
    until("it has trained a little", || said(&sandbox, "\"event\":\"metrics\"") && trains().is_some());
    cluster.ask(&["scancel", "--signal=USR1", "--batch", &trains().unwrap()]);
    let output = head.end();
    assert_eq!(output.code, Some(0), "{output}");
    let log = sandbox.ok(&["log", "train"]);
    assert!(log.contains("reached its time limit") && log.contains(", part 2"), "{log}");

    // The same on one machine, in one piece.
    let model = fs::read(sandbox.path("tiny/model/model.safetensors")).unwrap();
    let alone = Sandbox::new();
    alone.ok(&["init", "tiny", "--template", "train"]);
    alone.write("tiny/pipeline.toml", &two.replace(", nodes = 2", ""));
    alone.ok(&["run", "tiny/pipeline.toml", "hf"]);
    assert!(fs::read(alone.path("tiny/model/model.safetensors")).unwrap() == model, "the weights differ");

    // The same on two machines, each with its container: another key, the same bytes.
    let image = sandbox.outside("worker.sif");
    let mut build = Command::new(engines().join("bin/apptainer"));
    build.args(["-q", "build"]).args([&image, &worker_image(&sandbox, Path::new(&worker))]);
    assert_eq!(Output::of(build.output().unwrap()).code, Some(0));
    let container = format!("stage.train.container=\"{}\"", image.display());
    let mut inside = cluster.flow(&sandbox, &["run", "tiny/pipeline.toml", "train", "--json", "--set", &container]);
    inside.env("PATH", format!("{}:{}", engines().join("bin").display(), path())).env("FLOW_CONTAINER", "apptainer");
    let inside = Output::of(inside.output().unwrap());
    assert_eq!((inside.code, Events::of(&inside.stdout).ran()), (Some(0), vec!["train"]), "{inside}");
    assert_eq!(Events::of(&inside.stdout).digests()["train"], Events::of(&output.stdout).digests()["train"]);
    assert!(inside.stdout.contains("1 of 2 ranks, cores"), "{inside}");
}

#[test]
fn two_runs_that_begin_together_submit_one_job() {
    let cluster = Cluster::start(2);
    let sandbox = sandbox("", "");
    sandbox.pipeline(&slow(&sandbox, "one", ""));
    let heads = [(); 2].map(|()| cluster.start_flow(&sandbox, &["run", "p.toml", "--json"]));
    until("it began", || began(&sandbox, "one") == 1);
    until("the other has found it", || said(&sandbox, "makes it already"));
    fs::write(sandbox.outside("go"), "").unwrap();
    for head in heads {
        let output = head.end();
        assert_eq!((output.code, Events::of(&output.stdout).ran()), (Some(0), vec!["one"]), "{output}");
    }
    assert_eq!(began(&sandbox, "one"), 1);
    assert_eq!(cluster.ask(&["squeue", "-h", "-t", "all", "-o", "%i"]).lines().count(), 1);
}

#[test]
fn what_did_not_have_its_turn_in_a_job_has_it_in_another() {
    let cluster = Cluster::start(1);
    let sandbox = sandbox("", "[slurm.stage.many]\ntogether = 3\n");
    let (began, go) = (sandbox.outside("first-began"), sandbox.outside("go"));
    sandbox.pipeline(&format!(
        "[stage.many]\nkind = \"command\"\nmatrix = {{ i = [0, 1, 2] }}\n\
         run = \"if test ${{matrix.i}} = 0; then echo >> {}; while ! test -e {}; do sleep 0.1; done; fi; echo ${{matrix.i}} > {{out}}/x\"\n",
        began.display(),
        go.display()
    ));
    let head = cluster.start_flow(&sandbox, &["run", "p.toml", "--keep-going", "--json"]);
    until("the first began", || began.exists());
    cluster.ask(&["scancel", "--signal=USR1", "--batch", "1_0"]);
    let output = head.end();
    let events = Events::of(&output.stdout);
    let mut ran = events.ran();
    ran.sort_unstable();
    assert_eq!((output.code, ran), (Some(1), vec!["many[i=1]", "many[i=2]"]), "{output}");
    assert!(output.stdout.contains("reached its time limit; a stage of this kind begins from nothing"), "{output}");
}
