//! Stages as jobs of schedulers with `qsub`, by the templates that flow brings along. The schedulers are stand-ins
//! (`tests/qsub`): real ones cannot be had, so their formats are from their manuals.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use crate::support::{Events, Output, Running, Sandbox, until};

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
