//! Who may see what: secrets are nowhere, keys are one's own, and what two share both may use.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
};

use crate::{
    servers::{KEYS, Server},
    support::{Output, Sandbox},
    team::{POLICY, bucketeer, grep, person, shared},
};

#[test]
fn secrets_are_nowhere() {
    const VARIABLES: [(&str, &str); 6] = [
        ("HF_TOKEN", "hf_planted0token"),
        ("AWS_ACCESS_KEY_ID", "planted1access2key"),
        ("AWS_SECRET_ACCESS_KEY", "planted1secret2key"),
        ("WANDB_API_KEY", "planted4wandb5key"),
        ("FLOW_REMOTE_PASSWORD", "planted7remote8word"),
        ("FLOW_REMOTE_TOKEN", "planted5remote6token"),
    ];
    const PASSWORD: &str = "planted3url4password";
    const SIGNATURE: &str = "planted8signature9";
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("words.txt"), "some words\n").unwrap();
    let server = Server::dav(root.path());
    let url = format!("http://127.0.0.1:{}/team/", server.port);
    let host = format!("127.0.0.1:{}", server.port);
    let sandbox = Sandbox::with(&format!(
        "[stage.words]\nkind = \"fetch\"\nurls = [\"http://me:{PASSWORD}@127.0.0.1:{}/words.txt\"]\n\
         [stage.ps]\nkind = \"command\"\nin = {{ x = \"words\" }}\nrun = \"cat /proc/[0-9]*/cmdline > {{out}}/ps 2>/dev/null || true\"\n\
         [stage.env]\nkind = \"command\"\nin = {{ x = \"words\" }}\n\
         run = \"env | grep -c FLOW_REMOTE_[TUP] > {{out}}/own; echo $AWS_SECRET_ACCESS_KEY | wc -c > {{out}}/aws\"\n\
         [stage.fails]\nkind = \"command\"\nin = {{ x = \"words\" }}\nneeds = [\"env\", \"ps\"]\nrun = \"echo its key is $AWS_SECRET_ACCESS_KEY; exit 7\"\n",
        server.port
    ));
    let flow = |args: &[&str]| {
        let mut command = sandbox.flow(args);
        command.envs(VARIABLES).env("FLOW_REMOTE", &url).env("FLOW_REMOTE_MODE", "read-write");
        Output::of(command.output().unwrap())
    };
    let mut said = String::new();
    for (args, code) in [
        (&["run", "p.toml"][..], 1),
        (&["run", "p.toml", "env", "ps"], 0),
        (&["run", "p.toml", "env", "ps", "--json"], 0),
        (&["plan", "p.toml"], 0),
        (&["why", "p.toml", "words"], 0),
        (&["cache", "push", "p.toml"], 0),
        (&["show"], 0),
        (&["log", "fails"], 0),
        (
            &[
                "run",
                "p.toml",
                "words",
                "--set",
                &format!("stage.words.urls=[\"http://me:{PASSWORD}@{host}/words.txt?X-Amz-Signature={SIGNATURE}\"]"),
            ],
            0,
        ),
        (
            &[
                "run",
                "p.toml",
                "words",
                "--set",
                &format!("stage.words.urls=[\"http://me:{PASSWORD}@{host}/none.txt?X-Amz-Signature={SIGNATURE}\"]"),
            ],
            1,
        ),
        (&["show"], 0),
    ] {
        let output = flow(args);
        assert_eq!(output.code, Some(code), "{args:?}\n{output}");
        said += &output.to_string();
    }
    assert!(root.path().join("team/results").is_dir());
    drop(server);
    said += &flow(&["cache", "pull", "p.toml", "--set", "stage.ps.run=true > {out}/x"]).to_string();
    said += &flow(&["run", "p.toml", "--set", "stage.ps.run=true > {out}/x"]).to_string();
    for secret in VARIABLES.iter().map(|(_, value)| *value).chain([PASSWORD, SIGNATURE]) {
        assert!(!said.contains(secret), "{secret}\n{said}");
        assert!(!grep(&sandbox.cache(), secret) && !grep(root.path(), secret), "{secret}");
        let project = sandbox.path("");
        assert!(secret == PASSWORD || !grep(&project, secret), "{secret}");
        assert!(!grep(&project.join(".flow"), secret) && !sandbox.read("flow.lock").contains(secret), "{secret}");
    }
    let env = flow(&["path", "p.toml", "env"]).stdout;
    let told = |name: &str| fs::read_to_string(Path::new(env.trim()).join(name)).unwrap();
    assert_eq!(told("own"), "0\n", "flow's own are not handed on");
    assert_eq!(told("aws"), "19\n", "what commands need is");
}

#[test]
fn no_secret_is_hashed_where_it_could_be_guessed() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"echo > {out}/a\"\n");
    let witness = || {
        let memos = fs::read_dir(sandbox.cache().join("state/memo")).unwrap().flatten();
        let mut seen = memos.filter(|memo| memo.path().extension().is_some_and(|ending| ending == "seen"));
        fs::read(seen.next().unwrap().path()).unwrap()
    };
    let run = |token: &str| {
        let mut flow = sandbox.flow(&["run", "p.toml"]);
        flow.env("FLOW_REMOTE_TOKEN", token).env("FLOW_REMOTE_USER", token).env("FLOW_REMOTE_PASSWORD", token);
        assert!(flow.output().unwrap().status.success());
        // The guard stands behind the magic number and the checksum.
        witness()[10 + 32..10 + 64].to_vec()
    };
    run("one");
    assert_eq!(run("one"), run("two"));
}

#[test]
fn a_key_to_sign_with_that_cannot_be_used() {
    let (dir, url) = shared();
    let key = dir.path().join("key");
    let alice = person(&url, "read-write", &format!("sign_key = \"{}\"\n", key.display()));
    // Who gives nothing needs no key.
    let made = alice.flow(&["run", "p.toml"]).env("FLOW_REMOTE_MODE", "read").output().unwrap();
    assert!(made.status.success(), "{made:?}");
    for (spoil, said) in [
        (None, "No such file"),
        (Some(("nonsense", 0o600)), "is no signing key of flow"),
        (Some(("nonsense", 0o644)), "chmod 600"),
    ] {
        if let Some((text, mode)) = spoil {
            fs::write(&key, text).unwrap();
            fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        }
        let run = alice.run(&["run", "p.toml", "--force", "last"]);
        assert!(run.code == Some(3) && !run.stderr.contains("nonsense"), "{run}");
        assert!(run.stderr.contains("cannot be signed for the team") && !run.stderr.contains("started"), "{run}");
        assert_eq!(run.stderr.matches(said).count(), 1, "said once and not for each result: {run}");
        for args in [&["cache", "push", "p.toml"][..], &["cache", "export", "archive", "p.toml"]] {
            let refused = alice.run(args);
            assert!(refused.code == Some(3) && refused.stderr.contains(said), "{refused}");
            assert!(
                refused.stderr.contains(key.to_str().unwrap()) && !refused.stderr.contains("nonsense"),
                "{refused}"
            );
        }
    }
    assert!(!dir.path().join("results").exists() && !alice.path("archive").exists());
    fs::remove_file(&key).unwrap();
    alice.ok(&["cache", "keygen", key.to_str().unwrap()]);
    alice.ok(&["cache", "push", "p.toml"]);
    assert_eq!(fs::read_dir(dir.path().join("results")).unwrap().count(), 3);
}

#[test]
fn what_is_no_archive_is_said() {
    let sandbox = Sandbox::new();
    let empty = zstd(b"");
    let zeros = zstd(&[0; 10_240]);
    let text = zstd(b"hello hello hello");
    for (name, bytes) in [("empty", &[][..]), ("p.toml", b"[pipeline]\n"), ("a", &empty), ("b", &zeros), ("c", &text)] {
        fs::write(sandbox.path(name), bytes).unwrap();
        let output = sandbox.run(&["cache", "import", name]);
        assert!(output.code == Some(3) && output.stderr.contains("no archive of flow"), "{name}\n{output}");
    }
    let output = sandbox.run(&["cache", "import", "nothing"]);
    assert_eq!(output.code, Some(2), "{output}");
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut child = Command::new("python3")
        .args(["-c", ZSTD])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    child.wait_with_output().unwrap().stdout
}

/// One frame with one raw block.
const ZSTD: &str = "import sys\nb = sys.stdin.buffer.read()\n\
    sys.stdout.buffer.write(bytes([0x28, 0xb5, 0x2f, 0xfd, 0xa0]) + len(b).to_bytes(4, 'little') \
    + (len(b) << 3 | 1).to_bytes(3, 'little') + b)\n";

#[test]
fn a_url_that_is_none_is_shown_where_it_stands() {
    for (url, said) in [("s3s://bucket/x", "did you mean `s3://`?"), ("s3:/bucket/x", "`://`"), ("ftp://h/x", "use s3")]
    {
        let output = person(url, "read", "").run(&["plan", "p.toml"]);
        assert!(output.code == Some(2) && output.stderr.contains(said), "{output}");
        assert!(output.stderr.contains("flow.toml:2:7") && output.stderr.contains('^'), "{output}");
    }
}

const GROUP: u32 = 54_321;

/// Runs `flow` as a user who is of the group, with files that the group may change. `None` where this user may not.
fn as_user(person: &Sandbox, user: u32, args: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    let (user, group) = (format!("--reuid={user}"), format!("--regid={GROUP}"));
    person.at_home(command.args([&user, &group, "--clear-groups", env!("CARGO_BIN_EXE_flow")]).args(args));
    // SAFETY: umask only sets a number of the process.
    unsafe {
        command.pre_exec(|| {
            libc::umask(0o002);
            Ok(())
        });
    }
    Output::of(command.output().unwrap())
}

#[test]
fn names_in_a_remote_are_only_names() {
    let (dir, url) = shared();
    person(&url, "read-write", "").json(&[]);
    let results = dir.path().join("results");
    let hex = "ab".repeat(32);
    for name in ["..json", "x.json", ".flow-1-1", "..%2f..%2fx.json", "\u{1b}[31m.json", "a b\n.json"] {
        fs::write(results.join(name), "{}").unwrap();
    }
    fs::create_dir_all(results.join(format!("{hex}.json/{hex}.json"))).unwrap();
    std::os::unix::fs::symlink(".", results.join("ring")).unwrap();
    std::os::unix::fs::symlink("/", results.join("root")).unwrap();
    fs::write(results.join(format!("{}.json", hex.to_uppercase())), "{}").unwrap();
    fs::write(results.join(format!("{hex}{hex}.json")), "{}").unwrap();
    let bob = person(&url, "read", "");
    let pulled = bob.run(&["cache", "pull"]);
    assert!(pulled.code == Some(0) && pulled.stderr.contains("3 results fetched (20.0 MB)"), "{pulled}");
    assert!(!pulled.stderr.contains('\u{1b}'), "{pulled:?}");
    let bucket = Server::moto();
    let alice = bucketeer(bucket.port, "read-write", KEYS[1]);
    alice.json(&[]);
    bucket.put("/team?policy", POLICY);
    let plant = |name: &str| bucket.put(&format!("/team/cache/results/{name}"), "{}");
    for name in ["x.json", "a%20b.json", &format!("{hex}.json/{hex}.json")] {
        plant(name);
    }
    let bob = bucketeer(bucket.port, "read", KEYS[1]);
    let pulled = bob.run(&["cache", "pull"]);
    assert!(pulled.code == Some(0) && pulled.stderr.contains("3 results fetched"), "{pulled}");
    // A name that cannot be one in a store is named, and hinders nobody who does not list.
    plant("%1b%5b31m/%2e%2e/%2e%2e/x.json");
    let refused = bob.run(&["cache", "pull"]);
    assert!(refused.code == Some(3) && refused.stderr.contains("invalid path"), "{refused}");
    assert!(!refused.stderr.contains('\u{1b}'), "{refused:?}");
    let pulled = bucketeer(bucket.port, "read", KEYS[1]).run(&["cache", "pull", "p.toml"]);
    assert!(pulled.code == Some(0) && pulled.stderr.contains("3 results fetched"), "{pulled}");
}

#[test]
fn two_users_share_a_cache_and_a_team() {
    // SAFETY: plain system call.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("not tried: only root can be two users");
        return;
    }
    let (dir, url) = shared();
    let make = |user: u32, cache: Option<&Path>| {
        let sandbox = person(&url, "read-write", "");
        for path in [sandbox.path(""), sandbox.outside("home"), sandbox.outside("")] {
            std::os::unix::fs::chown(&path, Some(user), Some(GROUP)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o2775)).unwrap();
        }
        std::os::unix::fs::chown(sandbox.path("p.toml"), Some(user), Some(GROUP)).unwrap();
        if let Some(cache) = cache {
            std::os::unix::fs::symlink(cache, sandbox.cache()).unwrap();
        }
        sandbox
    };
    for shared in [dir.path(), dir.path().parent().unwrap()] {
        if shared == dir.path() {
            std::os::unix::fs::chown(shared, None, Some(GROUP)).unwrap();
            fs::set_permissions(shared, fs::Permissions::from_mode(0o2775)).unwrap();
        }
    }
    let ok = |person: &Sandbox, user: u32, args: &[&str]| {
        let output = as_user(person, user, args);
        assert_eq!(output.code, Some(0), "{user} {args:?}\n{output}");
        assert!(!output.stderr.contains("warning"), "{user} {args:?}\n{output}");
        output
    };
    let (a, b, c) = (54_322, 54_323, 54_324);
    let alice = make(a, None);
    ok(&alice, a, &["run", "p.toml"]);
    // Bob works in Alice's cache: he takes what is there, adds to it, and she takes that.
    let bob = make(b, Some(&alice.cache()));
    let taken = ok(&bob, b, &["run", "p.toml"]);
    assert!(taken.stderr.contains("0 ran"), "{taken}");
    ok(&bob, b, &["run", "p.toml", "--set", "params.word=two"]);
    ok(&bob, b, &["cache", "verify"]);
    let again = ok(&alice, a, &["run", "p.toml", "--set", "params.word=two"]);
    assert!(again.stderr.contains("0 ran"), "{again}");
    // What he uses is noted as used, although it is hers.
    let records = || {
        let shards = fs::read_dir(alice.cache().join("results")).unwrap().flatten();
        shards.flat_map(|shard| fs::read_dir(shard.path()).unwrap().flatten()).map(|record| record.path())
    };
    let past = std::time::SystemTime::now() - std::time::Duration::from_secs(90 * 24 * 3600);
    records().for_each(|path| fs::File::open(path).unwrap().set_modified(past).unwrap());
    ok(&bob, b, &["run", "p.toml", "--json"]);
    let kept = ok(&alice, a, &["cache", "gc", "--max-age", "30d"]);
    assert!(records().count() >= 3, "{kept}");
    ok(&bob, b, &["cache", "gc", "--max-age", "30d"]);
    // Carol's cache is her own; the team's directory is shared, and what one damaged the other replaces.
    let carol = make(c, None);
    let taken = ok(&carol, c, &["run", "p.toml"]);
    assert!(taken.stderr.contains("0 ran"), "{taken}");
    ok(&carol, c, &["run", "p.toml", "--set", "params.word=three"]);
    for shard in fs::read_dir(dir.path().join("results")).unwrap().flatten() {
        for record in fs::read_dir(shard.path()).unwrap().flatten() {
            fs::write(record.path(), "half").unwrap();
        }
    }
    let pushed = ok(&alice, a, &["cache", "push", "p.toml"]);
    assert!(pushed.stderr.contains("3 results pushed"), "{pushed}");
}
