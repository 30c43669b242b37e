//! Programs in images: real engines, on this machine.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use crate::{
    engines::{Docker, engines, flow, registry, worker_image},
    servers::{answering, plain},
    support::{Output, Sandbox, until},
};

/// An engine of this machine, an image that it runs, and where Docker's server is.
type Way = (&'static str, String, String);

fn ways(docker: &Docker) -> Vec<Way> {
    let file = |name: &str| engines().join(name).display().to_string();
    vec![
        ("apptainer", file("image.sif"), String::new()),
        ("apptainer", file("image.sqsh"), String::new()),
        ("podman", "docker://localhost/box:1".into(), String::new()),
        ("docker", "docker://localhost/box:1".into(), docker.host()),
    ]
}

/// `flow` with that engine.
fn by((engine, _, host): &Way, sandbox: &Sandbox, args: &[&str]) -> Command {
    let mut flow = flow(sandbox, args);
    flow.env("FLOW_CONTAINER", engine);
    if !host.is_empty() {
        flow.env("DOCKER_HOST", host);
    }
    flow
}

fn end(mut command: Command) -> Output {
    Output::of(command.output().unwrap())
}

fn ends_well(command: Command) -> Output {
    let output = end(command);
    assert_eq!(output.code, Some(0), "{output}");
    output
}

const BOTH: &str = r#"
[stage.first]
kind = "command"
run = """
cat /etc/flow-test {in.text} data/more.txt > {out}/all
echo "$WORD|$HF_TOKEN|$OTHER|" > {out}/env
echo "$HOME" > {out}/home
(echo changed > {in.text}) 2> /dev/null && echo written > {out}/wrong
pwd > /outside/pwd
"""
in = { text = "text.txt" }
files = ["data/more.txt"]
env = { WORD = "it's $x\nand more" }
container = { image = "IMAGE", env = ["HF_*"], binds = ["OUTSIDE:/outside"] }

[stage.second]
kind = "command"
run = """
cat {in.first}/all > made/here.txt
(echo x > {in.first}/env) 2> /dev/null && echo written > made/wrong.txt
ls made > {out}/list
"""
in = { first = "first" }
outs = ["made/here.txt"]
container = "IMAGE"
"#;

#[test]
fn what_is_inside_is_the_same_with_every_engine() {
    let docker = Docker::start();
    for way in ways(&docker) {
        let sandbox = Sandbox::new();
        sandbox.write("text.txt", "from the input\n");
        sandbox.write("data/more.txt", "from a file\n");
        let outside = sandbox.outside("seen");
        fs::create_dir(&outside).unwrap();
        sandbox.pipeline(&BOTH.replace("IMAGE", &way.1).replace("OUTSIDE", outside.to_str().unwrap()));
        let mut run = by(&way, &sandbox, &["run", "p.toml"]);
        run.env("HF_TOKEN", "planted-hub-token").env("OTHER", "not handed in");
        ends_well(run);
        let path = ends_well(by(&way, &sandbox, &["path", "p.toml", "first"])).stdout;
        let read = |name: &str| fs::read_to_string(Path::new(path.trim_end()).join(name)).unwrap();
        assert_eq!(read("all"), "in the image\nfrom the input\nfrom a file\n", "{way:?}");
        assert_eq!(read("env"), "it's $x\nand more|planted-hub-token||\n", "{way:?}");
        assert!(!Path::new(path.trim_end()).join("wrong").exists(), "{way:?}: an input was written to");
        assert!(read("home").starts_with(sandbox.cache().to_str().unwrap()), "{way:?}: {}", read("home"));
        assert!(fs::read_to_string(outside.join("pwd")).unwrap().ends_with("/work\n"), "{way:?}");
        assert_eq!(sandbox.read("text.txt"), "from the input\n", "{way:?}");
        assert_eq!(sandbox.read("made/here.txt"), read("all"), "{way:?}");
        let again = ends_well(by(&way, &sandbox, &["run", "p.toml"]));
        assert!(again.stderr.contains("0 ran"), "{way:?}: {again}");
    }
}

/// Whether a process runs that has this in its arguments; or a shell that a command started, by its mark.
fn runs(word: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok()).any(|line| {
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.first() == Some(&b"sleep".as_slice()) && words.get(1) == Some(&word.as_bytes())
    })
}

#[test]
fn what_runs_inside_ends_with_flow_and_tells_how_it_ended() {
    let docker = Docker::start();
    for (nth, way) in ways(&docker).into_iter().enumerate().filter(|(nth, _)| *nth != 1) {
        // A number that no other test sleeps for.
        let number = |of: usize| format!("{}{nth}{of}", 7_000_000 + std::process::id() % 100_000);
        let sandbox = Sandbox::new();
        let slow = |of: usize, more: &str| {
            sandbox.pipeline(&format!(
                "[stage.s]\nkind = \"command\"\nrun = \"sleep {n} & setsid sleep {n} & echo $SECRET > {{out}}/x; sleep {n}\"\n\
                 container = {{ image = \"{}\", env = [\"SECRET\"] }}\n{more}",
                way.1,
                n = number(of)
            ));
        };
        for (of, signal) in [libc::SIGINT, libc::SIGKILL].into_iter().enumerate() {
            slow(of, "");
            let mut command = by(&way, &sandbox, &["run", "p.toml"]);
            command.env("SECRET", "planted-secret-value").stdout(std::process::Stdio::null());
            let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
            until("it sleeps", || runs(&number(of)));
            let told = fs::read_dir("/proc").unwrap().flatten().any(|entry| {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains("planted-secret-value")
            });
            assert!(!told, "{way:?}: a secret is in a list of processes");
            // SAFETY: a system call on a child that was not waited for.
            unsafe { libc::kill(child.id() as i32, signal) };
            let status = child.wait().unwrap();
            assert_eq!(status.code(), (signal == libc::SIGINT).then_some(130), "{way:?}");
            until("nobody sleeps", || !runs(&number(of)));
        }
        slow(2, "timeout = \"3s\"");
        let output = end(by(&way, &sandbox, &["run", "p.toml"]));
        assert_eq!(output.code, Some(1), "{way:?}: {output}");
        until("nobody sleeps", || !runs(&number(2)));
        sandbox.pipeline(&format!(
            "[stage.s]\nkind = \"command\"\nrun = \"echo why; exit 7\"\ncontainer = \"{}\"\n",
            way.1
        ));
        let output = end(by(&way, &sandbox, &["run", "p.toml"]));
        assert_eq!(output.code, Some(1), "{way:?}: {output}");
        assert!(output.stderr.contains("exit status 7") && output.stderr.contains("why"), "{way:?}: {output}");
    }
    until("no container is left", || docker.ok(&["ps", "-aq"]).is_empty());
}

/// A user without rights, who may use Docker.
#[test]
fn what_a_container_writes_is_the_users() {
    let docker = Docker::start();
    let sandbox = Sandbox::with(
        "[stage.s]\nkind = \"command\"\nrun = \"id -u > made/id; mkdir {out}/d; echo x > {out}/d/x\"\nouts = [\"made/id\"]\n\
         container = \"docker://localhost/box:1\"\n",
    );
    let give = |path: &Path| {
        let done = Command::new("chown").args(["-R", "1234:1234"]).arg(path).status().unwrap();
        assert!(done.success());
    };
    give(&sandbox.outside(""));
    give(&docker.socket());
    let way = ("docker", String::new(), docker.host());
    let inner = by(&way, &sandbox, &["run", "p.toml"]);
    let mut outer = Command::new("setpriv");
    outer
        .args(["--reuid=1234", "--regid=1234", "--clear-groups", "--"])
        .arg(inner.get_program())
        .args(inner.get_args());
    outer.current_dir(inner.get_current_dir().unwrap());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    ends_well(outer);
    assert_eq!(sandbox.read("made/id"), "1234\n");
    let mut open = vec![sandbox.outside("")];
    while let Some(path) = open.pop() {
        let metadata = path.symlink_metadata().unwrap();
        assert_eq!(metadata.uid(), 1234, "{}", path.display());
        if metadata.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

#[test]
fn a_tag_is_pinned_and_the_key_is_of_the_image_whatever_runs_it() {
    let docker = Docker::start();
    let store = tempfile::tempdir().unwrap();
    let server = registry(store.path(), &[]);
    let name = format!("127.0.0.1:{}/org/box:1", server.port);
    let push = |comment: &str| {
        let tar = engines().join("image.tar");
        docker.ok(&["import", "-m", comment, tar.to_str().unwrap(), &name]);
        docker.ok(&["push", "-q", &name]);
    };
    push("one");
    let sandbox = Sandbox::with(&format!(
        "[stage.s]\nkind = \"command\"\nrun = \"cat /etc/flow-test > {{out}}/x; echo ran >> /outside/ran\"\n\
         container = {{ image = \"docker://{name}\", binds = [\"OUTSIDE:/outside\"] }}\n",
    ));
    let outside = sandbox.outside("seen");
    fs::create_dir(&outside).unwrap();
    sandbox.write("p.toml", &sandbox.read("p.toml").replace("OUTSIDE", outside.to_str().unwrap()));
    let ran = || fs::read_to_string(outside.join("ran")).unwrap_or_default().lines().count();
    let way = |engine: &'static str| (engine, String::new(), docker.host());

    ends_well(by(&way("docker"), &sandbox, &["run", "p.toml"]));
    let lock = sandbox.read("flow.lock");
    assert!(lock.contains(&format!("docker://{name}")) && lock.contains("revision = \"sha256:"), "{lock}");
    assert_eq!(ran(), 1);
    // Another engine is another way to the same result.
    ends_well(by(&way("apptainer"), &sandbox, &["run", "p.toml"]));
    assert_eq!(ran(), 1);
    // It makes a file of what the registry has, once.
    let files = || {
        let files = fs::read_dir(sandbox.cache().join("scratch/images")).unwrap().map(|file| file.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|ending| ending == "sif"));
        files.map(|path| path.metadata().unwrap().ino()).collect::<Vec<_>>()
    };
    ends_well(by(&way("apptainer"), &sandbox, &["run", "p.toml", "--force", "s"]));
    let made = files();
    assert_eq!((ran(), made.len()), (2, 1));
    ends_well(by(&way("apptainer"), &sandbox, &["run", "p.toml", "--force", "s"]));
    assert_eq!((ran(), files()), (3, made));

    // The tag moves on, and the pin does not until it is asked to.
    push("two");
    ends_well(by(&way("docker"), &sandbox, &["run", "p.toml"]));
    assert_eq!(ran(), 3);
    ends_well(by(&way("docker"), &sandbox, &["lock", "--update", "p.toml"]));
    assert_ne!(sandbox.read("flow.lock"), lock);
    ends_well(by(&way("docker"), &sandbox, &["run", "p.toml"]));
    assert_eq!(ran(), 4);

    // With the lock nobody asks the registry, also in a cache that has nothing; and a digest in the name is the same key.
    let pinned = sandbox.read("flow.lock");
    let digest = pinned.split("revision = \"").nth(1).unwrap().split('"').next().unwrap();
    sandbox.write("p.toml", &sandbox.read("p.toml").replace(&name, &format!("{name}@{digest}")));
    drop(server);
    ends_well(by(&way("docker"), &sandbox, &["run", "p.toml"]));
    assert_eq!(ran(), 4);
    sandbox.write("p.toml", &sandbox.read("p.toml").replace(&format!("@{digest}"), ""));
    let mut elsewhere = by(&way("docker"), &sandbox, &["run", "p.toml"]);
    elsewhere.env("FLOW_CACHE_DIR", sandbox.outside("other"));
    ends_well(elsewhere);
    assert_eq!(ran(), 5);
}

/// Most registries give a token to everybody who asks for one, as this one tells where.
#[test]
fn a_registry_that_wants_a_token_gets_one() {
    let tokens = answering(|head| {
        let asks =
            head.contains("service=here") && head.contains("scope=repository%3Aorg%2F") && head.contains("%3Apull");
        plain(if asks { "200 OK" } else { "400 Bad Request" }, "", br#"{"token": "abc"}"#)
    });
    let docker = Docker::start();
    let store = tempfile::tempdir().unwrap();
    let open = registry(store.path(), &[]);
    let image = |port: u16| format!("127.0.0.1:{port}/org/box:1");
    docker.ok(&["import", engines().join("image.tar").to_str().unwrap(), &image(open.port)]);
    docker.ok(&["push", "-q", &image(open.port)]);
    drop(open);
    let realm = format!("{{silly: {{realm: \"http://127.0.0.1:{tokens}/token\", service: here}}}}");
    let server = registry(store.path(), &[("auth", &realm)]);
    let sandbox = Sandbox::with(&format!("[stage.i]\nkind = \"image\"\nimage = \"docker://{}\"\n", image(server.port)));
    ends_well(flow(&sandbox, &["run", "p.toml"]));
    assert!(sandbox.read("flow.lock").contains("revision = \"sha256:"));
    sandbox
        .pipeline(&format!("[stage.i]\nkind = \"image\"\nimage = \"docker://127.0.0.1:{}/org/none\"\n", server.port));
    let output = end(flow(&sandbox, &["run", "p.toml"]));
    assert!(output.code == Some(1) && output.stderr.contains("has no org/none:latest"), "{output}");
}

#[test]
fn what_cannot_run_is_said_by_a_check() {
    let sandbox = Sandbox::new();
    // Of the engines none; of all else what flow needs.
    let bare = sandbox.outside("bin");
    fs::create_dir(&bare).unwrap();
    std::os::unix::fs::symlink("/bin/sh", bare.join("sh")).unwrap();
    let check = |container: &str, engine: &str, more: &str| {
        sandbox.pipeline(&format!("[stage.s]\nkind = \"command\"\nrun = \"true\"\ncontainer = {container}\n{more}"));
        let mut command = sandbox.flow(&["check", "p.toml"]);
        command.env("PATH", &bare);
        if !engine.is_empty() {
            command.env("FLOW_CONTAINER", engine);
        }
        end(command)
    };
    sandbox.write("x.sif", "");
    for (container, engine, words) in [
        ("\"docker://a/b:1\"", "", ["nothing on this machine runs such a container", "p.toml:6:"]),
        ("\"x.sif\"", "", ["looked for, in this order: apptainer, singularity", "p.toml:6:"]),
        ("{ image = \"x.sif\", engine = \"apptainer\" }", "", ["apptainer is not here", "p.toml:6:"]),
        (
            "\"x.sif\"",
            "docker",
            ["docker does not run such an image (a setting asks for it)", "apptainer, singularity"],
        ),
        ("\"x.sif\"", "aptainer", ["did you mean `apptainer`?", "FLOW_CONTAINER"]),
        ("\"y.sif\"", "", ["`y.sif` is neither a stage nor a file or directory", "p.toml:6:13"]),
        ("\"docker://A/b\"", "", ["`docker://A/b` has no name", "p.toml:6:13"]),
        ("\"oras://a/b\"", "", ["`oras://` is no place of images", "p.toml:6:13"]),
        ("{ image = \"x.sif\", engine = \"rkt\" }", "", ["`rkt` is not a choice here", "p.toml:6:"]),
        ("{ image = \"x.sif\", binds = [\"data\"] }", "", ["`data` is not absolute", "p.toml:6:"]),
    ] {
        let output = check(container, engine, "");
        assert_eq!(output.code, Some(2), "{container}\n{output}");
        assert!(words.iter().all(|word| output.stderr.contains(word)), "{container}: {words:?}\n{output}");
    }
    // On the machines of a cluster it may be there.
    sandbox.write("flow.toml", "[executors.there]\npreset = \"age\"\n");
    let output = check("\"x.sif\"", "", "executor = \"there\"\n");
    assert!(output.stderr.contains("it must be there on the machines of that"), "{output}");
    let mut doctor = flow(&sandbox, &["doctor"]);
    doctor.env("FLOW_TORCH", "/nowhere");
    let output = end(doctor);
    assert!(output.stdout.contains("apptainer (") && output.stdout.contains("podman ("), "{output}");
}

/// Needs `flow-torch`: run where FLOW_TORCH names it.
#[test]
fn workers_run_in_an_image() {
    let Some(worker) = std::env::var_os("FLOW_TORCH") else {
        eprintln!("left out: FLOW_TORCH names no trainer (`cargo xtask test` builds it)");
        return;
    };
    let sandbox = Sandbox::new();
    let file = sandbox.outside("worker.sif");
    let mut build = Command::new(engines().join("bin/apptainer"));
    build.args(["-q", "build"]).args([&file, &worker_image(&sandbox, Path::new(&worker))]);
    ends_well(build);
    sandbox.ok(&["init", "tiny", "--template", "train"]);
    let way = ("apptainer", String::new(), String::new());
    let with = |image: &Path| {
        let set = |stage: &str| format!("stage.{stage}.container=\"{}\"", image.display());
        let (train, eval) = (set("train"), set("eval"));
        let run = ["run", "tiny/pipeline.toml", "--set", &train, "--set", &eval, "--set", "stage.train.max_steps=10"];
        end(by(&way, &sandbox, &run))
    };
    // Without the libraries it does not even begin: it is inside.
    let output = with(&engines().join("image.sif"));
    assert!(output.code == Some(1) && output.stderr.contains("in its container"), "{output}");
    let output = with(&file);
    assert_eq!(output.code, Some(0), "{output}");
    assert!(sandbox.path("tiny/model/model.safetensors").is_file());
}
