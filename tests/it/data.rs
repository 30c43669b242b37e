//! The data path through the real `flow`: what re-runs, what is resumed, what is said.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::Path,
    sync::{Arc, Mutex},
};

use crate::support::{Sandbox, copy};

/// The shipped example's directory, as `example` in the project.
fn with_example(text: &str) -> Sandbox {
    let sandbox = Sandbox::with(text);
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ja_wiki_mini"), &sandbox.path("example"));
    sandbox
}

#[test]
fn a_file_that_a_stage_does_not_read_is_not_its_input() {
    let sandbox = with_example(
        r#"
        [params]
        seed = 1
        [stage.base]
        kind = "init-model"
        config = "example/config.json"
        tokenizer = "example/tokenizer"
        seed = "${seed}"
        [stage.tokens]
        kind = "tokenize"
        input = "example/validation_0.jsonl.gz"
        tokenizer = "base"
        [stage.plain]
        kind = "tokenize"
        input = "example/validation_0.jsonl.gz"
        tokenizer = "example/tokenizer"
        append_eod = true # another key than the other's, whose tokenizer is the same by content
        "#,
    );
    assert_eq!(sandbox.json(&[]).ran(), ["base", "plain", "tokens"]);
    sandbox.write("example/tokenizer/README.md", "a page");
    assert_eq!(sandbox.json(&[]).ran(), [""; 0]);
    let other_seed = ["--set", "params.seed=2"];
    assert_eq!(sandbox.json(&other_seed).ran(), ["base"], "other weights, the same tokenizer");

    let config = sandbox.read("example/tokenizer/tokenizer_config.json");
    sandbox.write("example/tokenizer/tokenizer_config.json", &config.replacen('{', "{\"add_bos_token\": true,", 1));
    assert_eq!(sandbox.json(&other_seed).ran(), ["base", "plain", "tokens"]);
}

#[test]
fn every_url_that_cannot_be_fetched_is_told_at_once_with_its_place() {
    let sandbox = Sandbox::with(
        "[stage.raw]\nkind = \"fetch\"\nurls = [\n  \"s3://bucket/{a,b}\",\n  \"https://h.example/x\",\n  \"hf://nobody\",\n]\n",
    );
    let output = sandbox.run(&["check", "p.toml"]);
    assert_eq!(output.code, Some(2), "{output}");
    for place in ["p.toml:6:3", "p.toml:8:3"] {
        assert_eq!(output.stderr.matches(place).count(), 1, "{output}");
    }
    assert!(output.stderr.contains("`s3` is not a kind of URL") && output.stderr.contains("hf://ORG/NAME"), "{output}");
}

#[test]
fn a_shard_that_is_no_jsonl_is_the_inputs_fault() {
    let sandbox =
        with_example("[stage.tokens]\nkind = \"tokenize\"\ninput = \"a.jsonl\"\ntokenizer = \"example/tokenizer\"\n");
    sandbox.write("a.jsonl", "{\"text\": nul}\n");
    let output = sandbox.run(&["check", "p.toml"]);
    assert_eq!(output.code, Some(2), "{output}");
    assert!(
        output.stderr.contains("p.toml:5:") && output.stderr.contains("a.jsonl:1: a value is expected"),
        "{output}"
    );
}

/// A server of one file, of which it tells what was asked: the body sent, or `unchanged`.
fn serve(content: &Arc<Mutex<String>>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/shard.jsonl", listener.local_addr().unwrap());
    let told = Arc::new(Mutex::new(Vec::new()));
    let (content, log) = (Arc::clone(content), Arc::clone(&told));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let body = content.lock().unwrap().clone();
            let etag = format!("\"{}\"", body.len());
            let known = head.iter().any(|line| *line.to_lowercase() == format!("if-none-match: {etag}"));
            log.lock().unwrap().push(if known { "unchanged".to_owned() } else { body.clone() });
            let (status, body) = if known { ("304 Not Modified", "") } else { ("200 OK", body.as_str()) };
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: {etag}\r\nConnection: close\r\n\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    (url, told)
}

#[test]
fn an_update_of_the_lock_asks_whether_anything_changed() {
    let content = Arc::new(Mutex::new("one".to_owned()));
    let (url, told) = serve(&content);
    let sandbox = Sandbox::with(&format!("[stage.raw]\nkind = \"fetch\"\nurls = [\"{url}\"]\n"));
    assert_eq!(sandbox.json(&[]).ran(), ["raw"]);
    let lock = sandbox.read("flow.lock");
    assert!(lock.contains("etag = \"\\\"3\\\"\""), "{lock}");
    sandbox.ok(&["lock", "p.toml", "--update"]);
    assert_eq!(*told.lock().unwrap(), ["one", "unchanged"]);
    assert_eq!(sandbox.read("flow.lock"), lock);
    assert_eq!(sandbox.json(&[]).ran(), [""; 0]);

    "three".clone_into(&mut content.lock().unwrap());
    sandbox.ok(&["lock", "p.toml", "--update"]);
    assert_eq!(*told.lock().unwrap(), ["one", "unchanged", "three"]);
    assert_ne!(sandbox.read("flow.lock"), lock);

    // Without the result of then there is nothing to go on using: it is asked for as if for the first time.
    std::fs::remove_dir_all(sandbox.cache()).unwrap();
    sandbox.ok(&["lock", "p.toml", "--update"]);
    assert_eq!(told.lock().unwrap().last().unwrap(), "three");
}
