//! What one made, the others take: a team with a shared directory, an S3 server and a WebDAV server, all of them real.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    servers::{KEYS, Server, endpoint},
    support::{Output, Sandbox, until},
};

/// `raw` is big and feeds `small`, which feeds `last`, which reads a word that can be changed.
const PIPELINE: &str = "[params]\nword = \"one\"\n\
    [stage.raw]\nkind = \"command\"\nrun = \"head -c 20000000 /dev/urandom > {out}/noise; echo raw > {out}/a\"\n\
    [stage.small]\nkind = \"command\"\nin = { x = \"raw\" }\nrun = \"cat {in.x}/a > {out}/a; yes | head -c 300000 > {out}/yes\"\n\
    [stage.last]\nkind = \"command\"\nin = { x = \"small\" }\nrun = \"cat {in.x}/a > {out}/a; echo ${word} >> {out}/a\"\n";

/// Who names a stage fetches its files.
pub const ALL: [&str; 3] = ["raw", "small", "last"];

/// A person with a cache of their own.
pub fn person(url: &str, mode: &str, more: &str) -> Sandbox {
    let sandbox = Sandbox::with(PIPELINE);
    sandbox.write("flow.toml", &format!("[remote]\nurl = \"{url}\"\nmode = \"{mode}\"\n{more}"));
    sandbox
}

/// A person who uses the bucket `team` of a server on this machine, with a secret in the usual file.
pub fn bucketeer(port: u16, mode: &str, secret: &str) -> Sandbox {
    let sandbox = person("s3://team/cache", mode, &endpoint(port));
    credentials(&sandbox, secret);
    sandbox
}

fn credentials(sandbox: &Sandbox, secret: &str) {
    let dir = sandbox.outside("home/.aws");
    fs::create_dir_all(&dir).unwrap();
    let text = format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {secret}\n", KEYS[0]);
    fs::write(dir.join("credentials"), text).unwrap();
}

pub fn shared() -> (tempfile::TempDir, String) {
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
    let taken = bob.json(&ALL);
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

    // When it is there again, the next run pushes what was asked for. Of what was not (`raw`), and of what is too big,
    // goes the record alone, so that the key of what was can be made.
    fs::create_dir(dir.path()).unwrap();
    for state in fs::read_dir(alice.cache().join("state/team")).unwrap() {
        for name in ["down", "down-for-writing"] {
            let _ = fs::remove_file(state.as_ref().unwrap().path().join(name));
        }
    }
    alice.ok(&["run", "p.toml"]);
    let records = fs::read_dir(dir.path().join("results")).unwrap().count();
    assert_eq!(records, 3);
    let objects = fs::read_dir(dir.path().join("objects")).unwrap().count();
    assert_eq!(objects, 1, "that of `last`");
    let bob = person(&url, "read", "");
    let taken = bob.json(&[]);
    assert_eq!(taken.ran(), [""; 0], "what they gave is what they gave alice");
    assert_eq!(taken.how().get("last"), Some(&"remote"));
    assert_eq!(bob.json(&["--set", "params.word=two"]).ran(), ["last", "raw", "small"], "who needs them makes them");
}

#[test]
fn what_was_made_before_is_known_to_the_team_by_its_record() {
    let (dir, url) = shared();
    let alice = Sandbox::with(PIPELINE);
    alice.ok(&["run", "p.toml", "small"]);
    alice.write("flow.toml", &format!("[remote]\nurl = \"{url}\"\nmode = \"read-write\"\npush = [\"last\"]\n"));
    assert_eq!(alice.json(&[]).ran(), ["last"]);
    assert_eq!(fs::read_dir(dir.path().join("results")).unwrap().count(), 3);
    let bob = person(&url, "read", "");
    assert_eq!(bob.json(&[]).ran(), [""; 0]);
    alice.write("flow.toml", &format!("[remote]\nurl = \"{url}\"\npush = []\n"));
    let empty = alice.run(&["run", "p.toml"]);
    assert!(empty.code == Some(2) && empty.stderr.contains("nothing is pushed by an empty list"), "{empty}");
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

#[test]
fn a_web_server() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::dav(root.path());
    colleagues(&format!("http://127.0.0.1:{}/", server.port), "");
    assert!(root.path().join("results").is_dir());
}

#[test]
fn nginx_as_its_administrators_set_it_up() {
    // With directories that are asked for, and with such as are made by the way.
    for (nth, location) in ["dav_methods PUT MKCOL;", "dav_methods PUT;\ncreate_full_put_path on;"].iter().enumerate() {
        let root = tempfile::tempdir().unwrap();
        let Some(server) = Server::nginx(root.path(), &format!("client_max_body_size 0;\n{location}")) else {
            eprintln!("not tried: there is no nginx, nor a package of it");
            return;
        };
        colleagues(&format!("http://127.0.0.1:{}/cache/", server.port), "");
        assert!(root.path().join("www/cache/results").is_dir(), "{nth}");
    }
    // What is not allowed is said with the word of nginx that allows it.
    for (location, word) in [
        ("client_max_body_size 0;\ndav_methods PUT;", "create_full_put_path"),
        ("dav_methods PUT MKCOL;", "client_max_body_size"),
        ("client_max_body_size 0;", "must allow PUT"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let Some(server) = Server::nginx(root.path(), location) else { return };
        let alice = person(&format!("http://127.0.0.1:{}/cache/", server.port), "read-write", "");
        let run = alice.run(&["run", "p.toml"]);
        assert!(run.code == Some(0) && run.stderr.contains(word), "{run}");
    }
}

/// Whoever asks may do everything.
pub const POLICY: &str = r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:*",
    "Resource": "arn:aws:s3:::team/*"}]}"#;

#[test]
fn an_s3_server() {
    let server = Server::moto();
    let [alice, bob] = ["read-write", "read"].map(|mode| bucketeer(server.port, mode, KEYS[1]));
    let made = alice.json(&[]);
    let taken = bob.json(&ALL);
    assert!(taken.how().values().all(|how| *how == "remote"), "{:?}", taken.how());
    assert_eq!(taken.digests(), made.digests());
    bob.ok(&["cache", "verify"]);
    // A bucket that is public is asked without credentials, and another is not.
    let anyone = person("s3://team/cache", "read", &endpoint(server.port));
    let pull = || {
        let pulled = anyone.flow(&["cache", "pull", "p.toml"]).env("AWS_SKIP_SIGNATURE", "true").output();
        Output::of(pulled.unwrap())
    };
    let refused = pull();
    assert!(refused.code == Some(3) && refused.stderr.contains("refuses"), "{refused}");
    server.put("/team?policy", POLICY);
    let pulled = pull();
    assert!(pulled.code == Some(0) && pulled.stderr.contains("3 results fetched"), "{pulled}");
    // What is misspelt is not empty.
    let lost = person("s3://taem/cache", "read", &endpoint(server.port));
    credentials(&lost, KEYS[1]);
    let lost = lost.run(&["cache", "pull", "p.toml"]);
    assert!(lost.code == Some(3) && lost.stderr.contains("no such bucket"), "{lost}");
}

#[test]
fn an_s3_server_that_checks_signatures() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::s3s(root.path());
    let [alice, bob, eve] = [("read-write", KEYS[1]), ("read", KEYS[1]), ("read-write", "another-secret")]
        .map(|(mode, secret)| bucketeer(server.port, mode, secret));
    let made = alice.json(&[]);
    let taken = bob.json(&ALL);
    assert!(taken.how().values().all(|how| *how == "remote"), "{:?}", taken.how());
    assert_eq!(taken.digests(), made.digests());
    bob.ok(&["cache", "verify"]);
    let refused = eve.run(&["run", "p.toml"]);
    assert!(refused.code == Some(0) && refused.stderr.contains("3 ran"), "{refused}");
    assert_eq!(refused.stderr.matches("refuses these credentials: check AWS_ACCESS_KEY_ID").count(), 1, "{refused}");
    for command in ["pull", "push"] {
        let refused = eve.run(&["cache", command, "p.toml", "--set", "params.word=x"]);
        assert!(command == "push" || refused.code == Some(3), "{refused}");
        assert!(!refused.stderr.contains("another-secret"), "{refused}");
    }
    let refused = eve.run(&["cache", "push", "p.toml"]);
    assert!(refused.code == Some(3) && refused.stderr.contains("refuses these credentials"), "{refused}");
    for person in [&alice, &bob, &eve] {
        assert!(!grep(&person.cache(), KEYS[1]) && !grep(&person.cache(), "another-secret"));
    }
    assert!(!grep(root.path(), KEYS[1]));
}

/// Whether a file under a directory holds a text.
pub fn grep(dir: &Path, text: &str) -> bool {
    fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return grep(&path, text);
        }
        let bytes = fs::read(&path).unwrap_or_default();
        bytes.windows(text.len()).any(|window| window == text.as_bytes()) || path.to_string_lossy().contains(text)
    })
}
