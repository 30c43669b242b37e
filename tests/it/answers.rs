//! Servers that answer something else than they should: what is said, and that the work goes on.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crate::{
    servers::{KEYS, answering, asked, plain},
    support::{Output, Sandbox},
    team::{bucketeer, person, shared},
};

const ERROR: &str = "<?xml version=\"1.0\"?><Error><Code>CODE</Code><Message>more</Message></Error>";

/// Answers out of a directory, as a web server does.
fn serve(root: &Path, head: &str) -> Vec<u8> {
    let (method, name) = asked(head);
    match fs::read(root.join(name)) {
        Ok(bytes) if method == "HEAD" => {
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", bytes.len()).into_bytes()
        }
        Ok(bytes) => plain("200 OK", "", &bytes),
        Err(_) => plain("404 Not Found", "", b""),
    }
}

fn web(port: u16) -> Sandbox {
    person(&format!("http://127.0.0.1:{port}/"), "read", "")
}

/// A team in a directory that has everything.
fn team() -> (tempfile::TempDir, PathBuf) {
    let (dir, url) = shared();
    person(&url, "read-write", "").json(&[]);
    let root = dir.path().to_owned();
    (dir, root)
}

#[test]
fn a_busy_server_is_asked_again() {
    for busy in ["503 Service Unavailable", "429 Too Many Requests\r\nRetry-After: 0", "500 Internal Server Error"] {
        let (_dir, root) = team();
        let asked_before = Mutex::new(HashSet::new());
        let port = answering(move |head| match asked_before.lock().unwrap().insert(asked(head).1.to_owned()) {
            true => plain(busy, "", b""),
            false => serve(&root, head),
        });
        let bob = web(port);
        let output = bob.run(&["run", "p.toml", "--json"]);
        assert!(output.code == Some(0) && !output.stdout.contains("\"how\":\"ran\""), "{busy}\n{output}");
        assert!(!output.stdout.contains("\"warning\""), "{busy}\n{output}");
        bob.ok(&["cache", "verify"]);
    }
}

#[test]
fn what_a_web_server_refuses_is_said_once_and_the_work_goes_on() {
    let long = "x".repeat(100_000);
    for (status, headers, said) in [
        ("403 Forbidden", "", "check FLOW_REMOTE_TOKEN"),
        ("401 Unauthorized", "", "check FLOW_REMOTE_TOKEN"),
        ("500 Internal Server Error", "", "500 Internal Server Error"),
        ("503 Service Unavailable", "Retry-After: 100000\r\n", "503 Service Unavailable"),
        ("429 Too Many Requests", "", "429 Too Many Requests"),
        ("302 Found", "Location: /again\r\n", "redirect"),
        ("206 Partial Content", "Content-Range: bytes 7-9/10\r\n", "another range"),
        ("200 OK", "", "is not used: it does not parse"),
    ] {
        let body = long.clone();
        let port = answering(move |_| plain(status, headers, body.as_bytes()));
        let bob = web(port);
        let run = bob.run(&["run", "p.toml"]);
        assert!(run.code == Some(0) && run.stderr.contains("3 ran"), "{status}\n{run}");
        assert!(run.stderr.contains(said) && run.stderr.len() < 10_000, "{status}\n{run}");
        let pull = bob.run(&["cache", "pull", "p.toml", "--set", "params.word=x"]);
        assert_eq!(pull.code, Some(3), "{status}\n{pull}");
    }
}

#[test]
fn a_server_that_says_nothing_is_not_waited_for() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bob = web(listener.local_addr().unwrap().port());
    let run = bob.run(&["run", "p.toml"]);
    assert!(run.code == Some(0) && run.stderr.contains("no answer within 5 s"), "{run}");
    assert_eq!(run.stderr.matches("cannot be used").count(), 1, "{run}");
}

#[test]
fn a_redirect_is_followed_without_the_token_and_its_signature_is_not_said() {
    let (_dir, root) = team();
    let heads = Arc::new(Mutex::new(String::new()));
    let seen = Arc::clone(&heads);
    let store = answering(move |head| {
        seen.lock().unwrap().push_str(head);
        if head.contains("planted-good") { serve(&root, head) } else { plain("403 Forbidden", "", b"") }
    });
    let front = move |signature: &'static str| {
        answering(move |head| {
            let to = format!("Location: http://127.0.0.1:{store}/{}?X-Signature={signature}\r\n", asked(head).1);
            plain("307 Temporary Redirect", &to, b"")
        })
    };
    let flow = |person: &Sandbox, args: &[&str]| {
        Output::of(person.flow(args).env("FLOW_REMOTE_TOKEN", "planted-token").output().unwrap())
    };
    let bob = web(front("planted-good"));
    let taken = flow(&bob, &["run", "p.toml", "--json"]);
    assert!(taken.code == Some(0) && !taken.stdout.contains("\"how\":\"ran\""), "{taken}");
    let carol = web(front("planted-bad"));
    let refused = flow(&carol, &["run", "p.toml"]);
    assert!(refused.code == Some(0) && refused.stderr.contains("403 Forbidden"), "{refused}");
    assert!(!refused.to_string().contains("planted") && !crate::team::grep(&carol.cache(), "planted"), "{refused}");
    assert!(!heads.lock().unwrap().contains("planted-token"));
}

#[test]
fn what_a_store_refuses_is_said_with_what_to_do() {
    for (status, code, said) in [
        ("403 Forbidden", "RequestTimeTooSkewed", "this machine's clock is not the server's"),
        ("403 Forbidden", "SignatureDoesNotMatch", "check AWS_ACCESS_KEY_ID"),
        ("403 Forbidden", "InvalidAccessKeyId", "check AWS_ACCESS_KEY_ID"),
        ("404 Not Found", "NoSuchBucket", "there is no such bucket"),
        ("500 Internal Server Error", "InternalError", "500 Internal Server Error"),
    ] {
        let port = answering(move |_| plain(status, "", ERROR.replace("CODE", code).as_bytes()));
        let bob = bucketeer(port, "read", KEYS[1]);
        let run = bob.run(&["run", "p.toml"]);
        assert!(run.code == Some(0) && run.stderr.contains("3 ran"), "{code}\n{run}");
        assert_eq!(run.stderr.matches(said).count(), 1, "{code}\n{run}");
        assert!(!run.stderr.contains(KEYS[1]), "{run}");
        let pull = bob.run(&["cache", "pull", "p.toml", "--set", "params.word=x"]);
        assert!(pull.code == Some(3) && pull.stderr.contains(said), "{code}\n{pull}");
    }
}
