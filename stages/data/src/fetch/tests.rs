//! Against a server on loopback that misbehaves, a hub with its routes, and files of this machine.

use std::{fs, time::Duration};

use serde_json::json;

mod hub;
mod places;
mod stretches;

use super::*;
use crate::{
    http::testserver::{Answer, Server},
    testing::{Stand, expand, stage},
};

/// As patient as the real one, in a thousandth of the time.
const QUICK: Patience = Patience {
    attempts: 4,
    pause: Duration::from_millis(2),
    longest_pause: Duration::from_millis(1200),
    connect: Duration::from_secs(5),
    silence: Duration::from_millis(300),
    piece: 32 << 20,
};

fn nowhere() -> Hub {
    Hub { endpoint: "http://127.0.0.1:1".into(), ..Hub::default() }
}

fn fetch(url: &str) -> Fetch {
    stage(json!({ "urls": [url] }))
}

fn run(stand: &Stand, stage: &Fetch, hub: &Hub) -> Result<()> {
    stand.ctx(|ctx| stage.fetch(ctx, hub, QUICK))
}

#[track_caller]
fn error(stand: &Stand, stage: &Fetch, hub: &Hub) -> String {
    let error = format!("{:#}", run(stand, stage, hub).unwrap_err());
    assert_eq!(stand.outs(), Vec::<String>::new());
    error
}

fn noise(n: usize) -> Vec<u8> {
    (0..n as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

#[test]
fn a_file_comes_whole_through_redirects_with_its_name() {
    let content = noise(3_000_000);
    let body = content.clone();
    let server = Server::start(move |request, _| match request.path.as_str() {
        "/a/train_0.jsonl.gz?ref_type=heads" => Answer::status(302).with("Location", "/b"),
        _ => Answer::file(request, &body, "\"v1\""),
    });
    let stand = Stand::new();
    let url = server.url("/a/train_0.jsonl.gz?ref_type=heads");
    run(&stand, &fetch(&url), &nowhere()).unwrap();
    assert!(stand.out("train_0.jsonl.gz") == content);
    assert_eq!(stand.outs(), ["train_0.jsonl.gz"]);
    assert_eq!(server.requests()[1].headers["accept-encoding"], "identity");
    assert!(stand.log().iter().any(|line| line.contains("3000000 bytes, ETag \"v1\"")), "{:?}", stand.log());
    let events = stand.events.lock().unwrap();
    let last = events.iter().rev().find_map(|event| match event {
        flow_core::Event::Progress { done, total, .. } => Some((*done, *total)),
        _ => None,
    });
    assert_eq!(last, Some((3_000_000, Some(3_000_000))));
}

#[test]
fn what_a_server_compresses_on_its_own_is_refused_and_what_lies_there_compressed_is_taken() {
    let server = Server::start(|request, _| {
        let coding = if request.path.contains("zst") { "zstd" } else { "x-GZip" };
        Answer::file(request, b"as it lies there", "\"v1\"").with("Content-Encoding", coding)
    });
    for name in ["a.jsonl.gz", "b.tar.GZ", "c.jsonl.zst"] {
        let stand = Stand::new();
        run(&stand, &fetch(&server.url(&format!("/{name}"))), &nowhere()).unwrap();
        assert_eq!(stand.out(name), b"as it lies there");
    }
    let before = server.requests().len();
    for name in ["a.jsonl", "gz", "a.zst.gz.txt"] {
        let error = error(&Stand::new(), &fetch(&server.url(&format!("/{name}"))), &nowhere());
        assert!(error.contains("Content-Encoding: ") && error.contains("asked not to"), "{error}");
    }
    assert_eq!(server.requests().len(), before + 3, "it is asked once");

    // Another place has it as it is.
    let plain =
        Server::start(|request, _| Answer::file(request, b"plain", "\"v1\"").with("Content-Encoding", "identity"));
    let stand = Stand::new();
    run(&stand, &stage(json!({ "urls": [[server.url("/x"), plain.url("/x")]] })), &nowhere()).unwrap();
    assert_eq!(stand.out("x"), b"plain");
}

#[test]
fn a_broken_connection_goes_on_from_its_last_byte() {
    let content = noise(2_000_000);
    let body = content.clone();
    let server = Server::start(move |request, number| {
        let answer = Answer::file(request, &body, "\"v1\"");
        if number < 3 { answer.cut(600_000) } else { answer }
    });
    let stand = Stand::new();
    run(&stand, &fetch(&server.url("/f")), &nowhere()).unwrap();
    assert!(stand.out("f") == content);
    let ranges: Vec<_> = server.requests().iter().map(|request| request.headers.get("range").cloned()).collect();
    assert_eq!(ranges[0], None);
    assert_eq!(ranges[1..], ["bytes=600000-", "bytes=1200000-", "bytes=1800000-"].map(|range| Some(range.to_owned())));
    assert!(stand.log()[0].contains("the connection broke after 600000 of 2000000 bytes"), "{:?}", stand.log());
}

#[test]
fn an_interrupted_run_is_resumed_and_a_changed_file_is_not() {
    let (old, new) = (noise(2_000_000), vec![7; 1_500_000]);
    for changed in [false, true] {
        let (old_body, new_body) = (old.clone(), new.clone());
        let server = Server::start(move |request, number| match (number, changed) {
            (0..4, _) => Answer::file(request, &old_body, "\"v1\"").cut(300_000),
            (_, false) => Answer::file(request, &old_body, "\"v1\""),
            (_, true) => Answer::file(request, &new_body, "\"v2\""),
        });
        let stand = Stand::new();
        let stage = fetch(&server.url("/f"));
        assert!(error(&stand, &stage, &nowhere()).contains("broke after 1200000 of 2000000"));
        run(&stand, &stage, &nowhere()).unwrap();
        assert!(stand.out("f") == if changed { &new[..] } else { &old[..] });
        assert_eq!(server.requests()[4].headers["if-range"], "\"v1\"");
        assert_eq!(server.requests()[4].headers["range"], "bytes=1200000-");
        let told = stand.log().iter().any(|line| line.contains("1200000 of them from an earlier run"));
        assert_eq!(told, !changed);
        assert_eq!(stand.remarks.lock().unwrap().resumed, Some(!changed), "and the engine is told the same");
    }
}

/// What stands between may not know `If-Range`, and answer with the rest of another file.
#[test]
fn two_files_are_not_made_one() {
    let (old, new) = (noise(2_000_000), noise(2_400_000)[400_000..].to_vec());
    let longer = [&new[..], b"more"].concat();
    for (etag, new) in [("\"v2\"", &new), ("\"v1\"", &longer)] {
        let (old_body, new_body) = (old.clone(), new.clone());
        let server = Server::start(move |request, number| {
            if number == 0 {
                return Answer::file(request, &old_body, "\"v1\"").cut(300_000);
            }
            // Whatever was asked for, it is taken to be of this file.
            let mut request = request.clone();
            request.headers.remove("if-range");
            Answer::file(&request, &new_body, etag)
        });
        let stand = Stand::new();
        run(&stand, &fetch(&server.url("/f")), &nowhere()).unwrap();
        assert!(stand.out("f") == **new);
        assert!(stand.log().iter().any(|line| line.contains("another file")), "{:?}", stand.log());
    }
}

/// What stands beside a part of `"v1"` that was written since the machine was started.
fn origin(synced: u64) -> String {
    json!({"etag": "\"v1\"", "modified": null, "synced": synced, "boot": crate::http::boot()}).to_string()
}

#[test]
fn after_a_power_loss_only_what_was_on_the_disk_is_gone_on_from() {
    let content = noise(1_000_000);
    let body = content.clone();
    let server = Server::start(move |request, _| Answer::file(request, &body, "\"v1\""));
    for (synced, range) in [(400_000, Some("bytes=400000-")), (0, None)] {
        let stand = Stand::new();
        // The file system kept the length, and of the bytes only the first.
        let part = [&content[..400_000], &vec![0; 300_000]].concat();
        fs::write(stand.place("scratch/part"), part).unwrap();
        let before = json!({"etag": "\"v1\"", "synced": synced, "boot": "another start of the machine"});
        fs::write(stand.place("scratch/part.json"), before.to_string()).unwrap();
        run(&stand, &fetch(&server.url("/f")), &nowhere()).unwrap();
        assert!(stand.out("f") == content);
        assert_eq!(server.requests().last().unwrap().headers.get("range").map(String::as_str), range);
    }
}

#[test]
fn what_has_not_changed_is_not_sent_again() {
    let server = Server::start(|request, _| match request.headers.get("if-none-match") {
        Some(etag) if etag == "\"v1\"" => Answer::status(304),
        _ => Answer::file(request, b"content", "\"v1\""),
    });
    let stage = fetch(&server.url("/f"));
    let mut stand = Stand::new();
    run(&stand, &stage, &nowhere()).unwrap();
    let told = stand.remarks.lock().unwrap().clone();
    assert_eq!(told.etag.as_deref(), Some("\"v1\""));
    let before = |etag: &str| flow_core::Pinned {
        digest: flow_core::Digest::of(b""),
        size: 7,
        etag: Some(etag.into()),
        revision: None,
    };
    stand.again();
    stand.before = Some(before("\"v1\""));
    let error = run(&stand, &stage, &nowhere()).unwrap_err();
    assert!(error.is::<flow_core::Unchanged>(), "{error:#}");
    stand.before = Some(before("\"v0\""));
    run(&stand, &stage, &nowhere()).unwrap();
    assert_eq!(stand.out("f"), b"content");
}

#[test]
fn what_is_whole_but_was_not_committed_is_not_downloaded_again() {
    let content = noise(100_000);
    let body = content.clone();
    let server = Server::start(move |request, _| Answer::file(request, &body, "\"v1\""));
    let stand = Stand::new();
    fs::write(stand.place("scratch/part"), &content).unwrap();
    fs::write(stand.place("scratch/part.json"), origin(0)).unwrap();
    run(&stand, &fetch(&server.url("/f")), &nowhere()).unwrap();
    assert!(stand.out("f") == content);
    assert_eq!(server.requests().len(), 1);

    // Without a validator nothing says that the part is of this file.
    let stand = Stand::new();
    fs::write(stand.place("scratch/part"), "rubbish").unwrap();
    run(&stand, &fetch(&server.url("/f")), &nowhere()).unwrap();
    assert!(stand.out("f") == content);
}

#[test]
fn a_server_with_its_hands_full_is_waited_for() {
    let server = Server::start(|request, number| match number {
        0 => Answer::status(429).with("Retry-After", "1"),
        1 => Answer::status(429).with("RateLimit", "\"resolvers\";r=0;t=1"),
        2 => Answer::status(429).with("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"),
        _ => Answer::file(request, b"there", "\"v1\""),
    });
    let stand = Stand::new();
    let started = std::time::Instant::now();
    run(&stand, &fetch(&server.url("/f")), &nowhere()).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(2), "Retry-After is kept");
    assert_eq!(stand.out("f"), b"there");

    let later = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(3600));
    let server = Server::start(move |request, number| match number {
        0 => Answer::status(503).with("Retry-After", later.as_str()),
        _ => Answer::file(request, b"there", "\"v1\""),
    });
    let stand = Stand::new();
    run(&stand, &fetch(&server.url("/f")), &nowhere()).unwrap();
    assert!(stand.log()[0].contains("trying again in 1.2 s"), "the longest pause there is: {:?}", stand.log());

    let down = Server::start(|_, _| Answer::status(500));
    let text = error(&Stand::new(), &fetch(&down.url("/f")), &nowhere());
    assert!(text.contains("500") && text.contains("the server has a problem"), "{text}");
    assert_eq!(down.requests().len(), 4);
}

#[test]
fn silence_is_a_failure_and_no_server_too() {
    let server = Server::start(|request, number| {
        let answer = Answer::file(request, b"late", "\"v1\"");
        if number == 0 { Answer { silence: Duration::from_secs(2), ..answer } } else { answer }
    });
    let stand = Stand::new();
    run(&stand, &fetch(&server.url("/f")), &nowhere()).unwrap();
    assert_eq!(stand.out("f"), b"late");
    let text = error(&Stand::new(), &fetch("http://127.0.0.1:1/f"), &nowhere());
    assert!(text.starts_with("GET http://127.0.0.1:1/f: "), "{text}");
}

#[test]
fn wrong_lengths_and_wrong_content_are_refused() {
    let server = Server::start(|_, _| Answer { length: Some(10), ..Answer::body("five!") });
    let text = error(&Stand::new(), &fetch(&server.url("/f")), &nowhere());
    assert!(text.contains("broke after 5 of 10 bytes"), "{text}");

    let server = Server::start(|request, _| Answer::file(request, b"content", "\"v1\""));
    let digest = |digits: &str| -> Fetch { stage(json!({"urls": [server.url("/f")], "sha256": digits})) };
    let right = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73";
    let stand = Stand::new();
    run(&stand, &digest(right), &nowhere()).unwrap();
    let text = error(&Stand::new(), &digest(&"0".repeat(64)), &nowhere());
    assert!(text.contains(&format!("the sha256 of {} is {right}", server.url("/f"))), "{text}");
    assert_eq!(server.requests().len(), 2, "another attempt would bring the same");
    let blake3: Fetch = stage(json!({"urls": [server.url("/f")], "blake3": blake3::hash(b"content").to_string()}));
    run(&Stand::new(), &blake3, &nowhere()).unwrap();

    // A part that is not of this file makes a wrong whole: once more from the beginning.
    let stand = Stand::new();
    fs::write(stand.place("scratch/part"), "CON").unwrap();
    fs::write(stand.place("scratch/part.json"), origin(0)).unwrap();
    run(&stand, &digest(right), &nowhere()).unwrap();
    assert_eq!(stand.out("f"), b"content");
}

#[test]
fn errors_say_what_to_do_and_no_secrets() {
    let server = Server::start(|request, _| Answer::status(request.path[1..4].parse().unwrap()));
    for (status, words) in [(404, "check the spelling"), (401, "wants credentials"), (403, "wants credentials")] {
        let url = format!("http://me:hunter2@127.0.0.1:{}/{status}/f?private_token=hunter2&x=1", server.port);
        let text = error(&Stand::new(), &fetch(&url), &nowhere());
        let shown = server.url(&format!("/{status}/f?x=1"));
        assert!(text.contains(&shown) && text.contains(words) && !text.contains("hunter2"), "{text}");
        let stage = fetch(&url);
        assert!(!serde_json::to_string(&stage).unwrap().contains("hunter2"));
        assert_eq!(stage.pin().unwrap().url, shown);
    }
    assert!(server.requests()[0].headers["authorization"].starts_with("Basic "));
    assert_eq!(server.requests().len(), 3, "a refusal is not asked about again");
}

#[test]
fn an_interrupt_ends_a_download_and_keeps_what_came() {
    let server = Server::start(|request, _| {
        Answer { silence: Duration::from_millis(50), ..Answer::file(request, &[1; 1000], "\"v\"") }.cut(500)
    });
    let stand = Stand::new();
    stand.cancel.set();
    let stage = fetch(&server.url("/f"));
    let error = stand.ctx(|ctx| stage.fetch(ctx, &nowhere(), Patience::default())).unwrap_err();
    assert!(error.downcast_ref::<flow_core::Cancelled>().is_some(), "{error:#}");
}

#[test]
fn plain_http_needs_no_certificates() {
    const INSIDE: &str = "FLOW_TEST_WITHOUT_CERTIFICATES";
    if std::env::var_os(INSIDE).is_some() {
        let server = Server::start(|request, _| Answer::file(request, b"plain", "\"v1\""));
        let stand = Stand::new();
        run(&stand, &fetch(&server.url("/f")), &nowhere()).unwrap();
        assert_eq!(stand.out("f"), b"plain");
        let text = error(&Stand::new(), &fetch("https://127.0.0.1:1/f"), &nowhere());
        assert!(text.contains("install ca-certificates"), "{text}");
        return;
    }
    let inner = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "fetch::tests::plain_http_needs_no_certificates"])
        .envs([(INSIDE, "1"), ("SSL_CERT_FILE", "/dev/null"), ("SSL_CERT_DIR", "/nonexistent")])
        .output()
        .unwrap();
    assert!(inner.status.success(), "{}", String::from_utf8_lossy(&inner.stdout));
}

#[test]
fn files_of_this_machine_are_inputs_and_are_copied() {
    let mut stand = Stand::new();
    stand.write("model/config.json", r#"{"vocab_size": 8}"#);
    stand.write("model/sub/a.bin", "a");
    stand.write("model/b.bin", "b");
    let model = stand.place("model");
    let plain = fetch("model");
    assert_eq!(plain.ports()[0].refs[0].text(), "model");
    assert!(plain.pin().is_none());
    stand.input("urls", &model);
    stand.run(&plain).unwrap();
    assert_eq!(stand.outs(), ["b.bin", "config.json", "sub/a.bin"]);
    let (errors, facts, path) = stand.check(&plain);
    assert_eq!((errors.len(), facts["vocab_size"].as_u64(), path), (0, Some(8), Some(model)));

    stand.again();
    let some: Fetch = stage(json!({"urls": ["model/**/*.bin"], "exclude": ["b*"]}));
    assert_eq!(some.ports()[0].refs[0].text(), "model");
    stand.run(&some).unwrap();
    assert_eq!(stand.outs(), ["sub/a.bin"]);
    let (_, facts, path) = stand.check(&some);
    assert_eq!((facts.len(), path), (0, None));

    stand.again();
    let text = stand.error(&stage::<Fetch>(json!({"urls": ["model"], "include": ["*.txt"]})));
    assert!(text.contains("nothing in"), "{text}");
    let checked: Fetch = stage(json!({"urls": ["model/b.bin"], "blake3": blake3::hash(b"B").to_string()}));
    stand.inputs.clear();
    let file = stand.place("model/b.bin");
    stand.input("urls", &file);
    assert!(stand.error(&checked).contains("the blake3 of b.bin is"), "{}", stand.error(&checked));
}

#[test]
fn urls_become_nodes_and_keys_know_no_paths() {
    let nodes = expand::<Fetch>(json!({"urls": ["https://h.example/train_{0..2}.gz?token=x", "data/{a,b}"]})).unwrap();
    let keys: Vec<String> = nodes.iter().map(|node| serde_json::to_string(node).unwrap()).collect();
    assert_eq!(keys.len(), 5);
    assert_eq!(keys[1], r#"{"urls":["https://h.example/train_1.gz"]}"#);
    assert_eq!(keys[3], r#"{"urls":[""]}"#);
    assert_eq!(expand::<Fetch>(json!({"urls": ["https://h.example/a?key={train,valid}"]})).unwrap().len(), 2);
    assert_eq!(nodes[4].ports()[0].refs[0].text(), "data/b");
    for (params, field) in [
        (json!({"urls": []}), "urls"),
        (json!({"urls": ["a{0..1"]}), "urls.0"),
        (json!({"urls": ["https://h.example/a?token=x", "https://h.example/a?token=y"]}), "urls"),
        (json!({"urls": ["a", "b"], "sha256": "0".repeat(64)}), "sha256"),
        (json!({"urls": ["a"], "sha256": "xyz"}), "sha256"),
        (json!({"urls": ["a"], "include": ["*", "["]}), "include.1"),
    ] {
        assert_eq!(expand::<Fetch>(params).unwrap_err().field.as_deref(), Some(field));
    }
}
