//! What one made, the others take: a team with a shared directory, an S3 server and a WebDAV server, all of them real.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use crate::support::{Output, Sandbox, until};

/// `raw` is big and feeds `small`, which feeds `last`, which reads a word that can be changed.
const PIPELINE: &str = "[params]\nword = \"one\"\n\
    [stage.raw]\nkind = \"command\"\nrun = \"head -c 20000000 /dev/urandom > {out}/noise; echo raw > {out}/a\"\n\
    [stage.small]\nkind = \"command\"\nin = { x = \"raw\" }\nrun = \"cat {in.x}/a > {out}/a; yes | head -c 300000 > {out}/yes\"\n\
    [stage.last]\nkind = \"command\"\nin = { x = \"small\" }\nrun = \"cat {in.x}/a > {out}/a; echo ${word} >> {out}/a\"\n";

/// A person with a cache of their own.
fn person(url: &str, mode: &str, more: &str) -> Sandbox {
    let sandbox = Sandbox::with(PIPELINE);
    sandbox.write("flow.toml", &format!("[remote]\nurl = \"{url}\"\nmode = \"{mode}\"\n{more}"));
    sandbox
}

fn shared() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().to_str().unwrap().to_owned();
    (dir, url)
}

/// What every remote must do for a cold and a warm colleague.
fn colleagues(url: &str, more: &str) {
    let alice = person(url, "read-write", more);
    let made = alice.json(&[]);
    assert_eq!(made.ran(), ["last", "raw", "small"]);

    let bob = person(url, "read", more);
    let taken = bob.json(&[]);
    assert!(taken.how().values().all(|how| *how == "remote"), "{:?}", taken.how());
    assert_eq!(taken.digests(), made.digests());
    let changed = bob.json(&["--set", "params.word=two"]);
    assert_eq!(changed.ran(), ["last"]);
    let path = bob.ok(&["path", "p.toml", "raw"]);
    assert_eq!(fs::read_to_string(format!("{}/a", path.trim())).unwrap(), "raw\n");
    assert_eq!(fs::metadata(format!("{}/noise", path.trim())).unwrap().len(), 20_000_000);
    bob.ok(&["cache", "verify"]);

    let carol = person(url, "read", more);
    let pulled = carol.run(&["cache", "pull", "p.toml", "small"]);
    assert!(pulled.code == Some(0) && pulled.stderr.contains("2 results fetched"), "{pulled}");
    let output = carol.run(&["cache", "push", "p.toml"]);
    assert!(output.code == Some(2) && output.stderr.contains("may only be read"), "{output}");
}

#[test]
fn a_shared_directory() {
    let (_dir, url) = shared();
    colleagues(&url, "");
}

#[test]
fn what_cannot_be_had_is_made() {
    let (dir, url) = shared();
    person(&url, "read-write", "").json(&[]);
    // The objects are lost, the records stay.
    fs::remove_dir_all(dir.path().join("objects")).unwrap();
    let bob = person(&url, "read", "");
    let output = bob.run(&["run", "p.toml", "--json"]);
    assert_eq!(output.code, Some(0), "{output}");
    let events = crate::support::Events::of(&output.stdout);
    assert_eq!(events.ran(), ["last", "raw", "small"], "{output}");
    assert!(output.stdout.contains("is made here"), "{output}");
    let finished = events.0.iter().filter(|event| event["event"] == "finished").count();
    assert_eq!(finished, 3, "each node is done once: {output}");
    bob.ok(&["cache", "verify"]);
}

#[test]
fn a_team_that_is_not_there_hinders_nobody() {
    let (dir, url) = shared();
    let alice = person(&url, "read-write", "push = [\"sm*\", \"last\"]\npush_limit = \"200kB\"\n");
    fs::remove_dir(dir.path()).unwrap();
    let output = alice.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(output.stderr.matches("cannot be used").count(), 1, "{output}");
    let pull = alice.run(&["cache", "pull", "p.toml", "--set", "params.word=x"]);
    assert_eq!(pull.code, Some(3), "it is what was asked for: {pull}");

    // When it is there again, the next run pushes what was asked for: not `raw`, and not what is too big.
    fs::create_dir(dir.path()).unwrap();
    for state in fs::read_dir(alice.cache().join("state/team")).unwrap() {
        for name in ["down", "down-for-writing"] {
            let _ = fs::remove_file(state.as_ref().unwrap().path().join(name));
        }
    }
    alice.ok(&["run", "p.toml"]);
    let records = fs::read_dir(dir.path().join("results")).unwrap().count();
    assert_eq!(records, 1);
    let bob = person(&url, "read", "");
    let taken = bob.json(&[]);
    assert_eq!(taken.ran(), ["raw", "small"]);
    assert_eq!(taken.how().get("last"), Some(&"remote"), "what they gave is what they gave alice");
}

#[test]
fn signed_archives_and_keys() {
    let (alice, bob) = (Sandbox::with(PIPELINE), Sandbox::with(PIPELINE));
    let public = alice.ok(&["cache", "keygen"]);
    let secret = alice.outside("home/config/flow/signing-key");
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(alice.run(&["cache", "keygen"]).code, Some(2), "a key is never overwritten");
    let archive = alice.outside("archive");
    let archive = archive.to_str().unwrap();
    alice.json(&[]);
    alice.ok(&["cache", "export", archive, "p.toml"]);
    bob.write("flow.toml", &format!("[remote]\ntrusted_keys = [\"{} alice\"]\n", public.trim()));
    let refused = bob.run(&["cache", "import", archive]);
    assert!(refused.code == Some(3) && refused.stderr.contains("not signed"), "{refused}");
    alice.write("flow.toml", &format!("[remote]\nsign_key = \"{}\"\n", secret.display()));
    alice.ok(&["cache", "export", archive, "p.toml"]);
    bob.ok(&["cache", "import", archive]);
    assert_eq!(bob.json(&[]).ran(), [""; 0]);
    let bytes = fs::read(archive).unwrap();
    fs::write(archive, &bytes[..bytes.len() / 2]).unwrap();
    let cut = bob.run(&["cache", "import", archive]);
    assert!(cut.code == Some(3) && cut.stderr.contains("cut off"), "{cut}");
}

#[test]
fn an_archive_is_written_over_archives_alone() {
    let alice = Sandbox::with(PIPELINE);
    alice.json(&[]);
    let pipeline = alice.read("p.toml");
    let refused = alice.run(&["cache", "export", "p.toml"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("flow cache export FILE p.toml"), "{refused}");
    alice.write("notes", "mine");
    let refused = alice.run(&["cache", "export", "notes", "p.toml"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("--force"), "{refused}");
    let device = alice.run(&["cache", "export", "/dev/null", "p.toml", "--force"]);
    assert_eq!(device.code, Some(2), "{device}");
    assert_eq!((alice.read("p.toml"), alice.read("notes").as_str()), (pipeline, "mine"));
    alice.ok(&["cache", "export", "notes", "p.toml", "--force"]);
    alice.ok(&["cache", "export", "notes", "p.toml"]);
}

#[test]
fn a_download_that_hangs_is_interrupted_and_nothing_is_begun_for_it() {
    use std::os::unix::fs::OpenOptionsExt as _;
    let (dir, url) = shared();
    person(&url, "read-write", "").json(&[]);
    let mut pipes = Vec::new();
    for prefix in fs::read_dir(dir.path().join("objects")).unwrap() {
        for object in fs::read_dir(prefix.unwrap().path()).unwrap() {
            let path = object.unwrap().path();
            fs::remove_file(&path).unwrap();
            assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
            pipes.push(path);
        }
    }
    let bob = person(&url, "read", "");
    let run = bob.start(&["run", "p.toml", "--json"]);
    // Opens only where somebody reads; and as long as it is open, the reader waits.
    let open = |path: &PathBuf| fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut writer = None;
    until("an object is read", || {
        writer = pipes.iter().find_map(|path| open(path).ok());
        writer.is_some()
    });
    run.signal(libc::SIGINT);
    let ended = run.end();
    assert!(ended.code == Some(130) && !ended.stdout.contains("\"started\""), "{ended}");
}

#[test]
fn settings_are_said_with_their_place_and_without_their_secrets() {
    let sandbox = person("/shared", "writable", "trusted_keys = [\"nonsense\"]\npush = [\"[\"]\n");
    let output = sandbox.run(&["plan", "p.toml"]);
    assert!(output.code == Some(2) && output.stderr.matches("error:").count() == 3, "{output}");
    assert!(output.stderr.contains("flow.toml:3:"), "{output}");
    let nobody = person("/shared", "read", "trusted_keys = []\n").run(&["plan", "p.toml"]);
    assert!(nobody.code == Some(2) && nobody.stderr.contains("flow.toml:4:"), "{nobody}");
    let sandbox = person("https://me:hunter2@host/cache", "read", "");
    let output = sandbox.run(&["plan", "p.toml"]);
    assert!(output.code == Some(2) && !output.stderr.contains("hunter2"), "{output}");
    assert!(output.stderr.contains("FLOW_REMOTE_TOKEN"), "{output}");
}

/// The servers, from the Python package index, in an environment of their own in the target directory.
fn servers() -> &'static Path {
    static SERVERS: OnceLock<PathBuf> = OnceLock::new();
    SERVERS.get_or_init(|| {
        let target = Path::new(env!("CARGO_BIN_EXE_flow")).ancestors().nth(2).unwrap();
        let dir = target.join("servers");
        let run = |program: &Path, args: &[&str]| {
            let output = Output::of(Command::new(program).args(args).output().unwrap());
            assert_eq!(output.code, Some(0), "{} {}\n{output}", program.display(), args.join(" "));
        };
        if !dir.join("bin/wsgidav").exists() || !dir.join("bin/moto_server").exists() {
            run(Path::new("python3"), &["-m", "venv", dir.to_str().unwrap()]);
            run(
                &dir.join("bin/pip"),
                &["install", "-q", "moto[server,s3]==5.2.5", "wsgidav==4.4.0", "cheroot==11.1.2"],
            );
        }
        dir
    })
}

/// A server that runs; killed when dropped.
struct Server(Child, u16);

impl Server {
    fn start(program: &str, args: &dyn Fn(u16) -> Vec<String>) -> Self {
        // Another may take the port before the server does; then it ends, and the next one is tried.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut command = Command::new(servers().join("bin").join(program));
            command.args(args(port)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut server = Self(command.spawn().unwrap(), port);
            let mut ended = false;
            until(&format!("{program} listens"), || {
                ended = server.0.try_wait().unwrap().is_some();
                ended || TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            if !ended {
                return server;
            }
        }
        panic!("{program} does not start");
    }

    fn dav(root: &Path) -> Self {
        let root = root.to_str().unwrap().to_owned();
        Self::start("wsgidav", &|port| {
            ["--host=127.0.0.1", &format!("--port={port}"), &format!("--root={root}"), "--auth=anonymous"]
                .map(str::to_owned)
                .to_vec()
        })
    }

    fn moto() -> Self {
        Self::start("moto_server", &|port| ["-H", "127.0.0.1", "-p", &port.to_string()].map(str::to_owned).to_vec())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_web_server() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::dav(root.path());
    colleagues(&format!("http://127.0.0.1:{}/", server.1), "");
    assert!(root.path().join("results").is_dir());
}

#[test]
fn an_s3_server_that_is_killed_and_comes_back() {
    // The environment of the process is that of the tests; what flow sees is set for each.
    let server = Server::moto();
    let made = TcpStream::connect(("127.0.0.1", server.1)).and_then(|mut stream| {
        use std::io::{Read as _, Write as _};
        stream.write_all(b"PUT /team HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    });
    assert!(made.as_ref().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")), "{made:?}");
    let more = format!("endpoint = \"http://127.0.0.1:{}\"\nregion = \"us-east-1\"\n", server.1);
    // Credentials in the usual file of each person's home.
    let home = |sandbox: &Sandbox| {
        let dir = sandbox.outside("home/.aws");
        fs::create_dir_all(&dir).unwrap();
        fs::write(
            dir.join("credentials"),
            "[default]\naws_access_key_id = flowtest\naws_secret_access_key = planted-s3-secret\n",
        )
        .unwrap();
    };
    let alice = person("s3://team/cache", "read-write", &more);
    home(&alice);
    alice.json(&[]);
    let bob = person("s3://team/cache", "read", &more);
    home(&bob);
    let taken = bob.json(&[]);
    assert!(taken.how().values().all(|how| *how == "remote"), "{:?}", taken.how());
    let path = bob.ok(&["path", "p.toml", "raw"]);
    assert_eq!(fs::metadata(format!("{}/noise", path.trim())).unwrap().len(), 20_000_000);
    bob.ok(&["cache", "verify"]);
    assert!(!grep(&bob.cache(), "planted-s3-secret") && !grep(&alice.cache(), "planted-s3-secret"));

    drop(server);
    let carol = person("s3://team/cache", "read", &more);
    home(&carol);
    let output = carol.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(output.stderr.matches("cannot be used").count(), 1, "{output}");
    assert!(!output.stderr.contains("planted-s3-secret"), "{output}");
}

/// Whether a file under a directory holds a text.
fn grep(dir: &Path, text: &str) -> bool {
    fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return grep(&path, text);
        }
        let bytes = fs::read(&path).unwrap_or_default();
        bytes.windows(text.len()).any(|window| window == text.as_bytes()) || path.to_string_lossy().contains(text)
    })
}

#[test]
fn secrets_are_nowhere() {
    const PLANTED: [&str; 4] =
        ["hf_planted0token", "planted1secret2key", "planted3url4password", "planted5remote6token"];
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("words.txt"), "some words\n").unwrap();
    let server = Server::dav(root.path());
    let url = format!("http://127.0.0.1:{}/team/", server.1);
    let sandbox = Sandbox::with(&format!(
        "[stage.words]\nkind = \"fetch\"\nurls = [\"http://me:planted3url4password@127.0.0.1:{}/words.txt\"]\n\
         [stage.ps]\nkind = \"command\"\nin = {{ x = \"words\" }}\nrun = \"cat /proc/[0-9]*/cmdline > {{out}}/ps 2>/dev/null || true\"\n",
        server.1
    ));
    let flow = |args: &[&str]| {
        let mut command = sandbox.flow(args);
        command
            .env("HF_TOKEN", PLANTED[0])
            .env("AWS_SECRET_ACCESS_KEY", PLANTED[1])
            .env("FLOW_REMOTE_TOKEN", PLANTED[3]);
        Output::of(command.env("FLOW_REMOTE", &url).env("FLOW_REMOTE_MODE", "read-write").output().unwrap())
    };
    let mut said = String::new();
    for args in [
        &["run", "p.toml"][..],
        &["run", "p.toml", "--json"],
        &["plan", "p.toml"],
        &["why", "p.toml", "words"],
        &["cache", "push", "p.toml"],
        &["show"],
    ] {
        let output = flow(args);
        assert_eq!(output.code, Some(0), "{output}");
        said += &output.to_string();
    }
    assert!(root.path().join("team/results").is_dir());
    drop(server);
    said += &flow(&["cache", "pull", "p.toml", "--set", "stage.ps.run=true > {out}/x"]).to_string();
    for secret in PLANTED {
        assert!(!said.contains(secret), "{secret}\n{said}");
        assert!(!grep(&sandbox.cache(), secret) && !grep(root.path(), secret), "{secret}");
        let project = sandbox.path("");
        assert!(secret == PLANTED[2] || !grep(&project, secret), "{secret}");
        assert!(!grep(&project.join("flow.lock"), secret) && !sandbox.read("flow.lock").contains(secret), "{secret}");
    }
}
