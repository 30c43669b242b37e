//! The data path through the real `flow`: what re-runs, what is resumed, what is said.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::support::{Sandbox, copy, until};

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

#[test]
fn a_part_of_a_result_is_an_input_of_its_own() {
    let text = r#"
        [stage.raw]
        kind = "fetch"
        urls = ["example/train_{0..1}.jsonl.gz"]
        [stage.parts]
        kind = "split"
        input = "raw"
        validation = 0.1
        key = "meta.id"
        [stage.tokens]
        kind = "tokenize"
        input = "parts:train"
        tokenizer = "example/tokenizer"
        [stage.one]
        kind = "tokenize"
        input = "parts[1]:validation"
        tokenizer = "example/tokenizer"
        [stage.list]
        kind = "command"
        run = "ls {in.all} > {out}/list"
        in = { all = "parts:validation" }
        "#;
    let sandbox = with_example(text);
    let nodes = ["list", "one", "parts[0]", "parts[1]", "raw[0]", "raw[1]", "tokens[0]", "tokens[1]"];
    assert_eq!(sandbox.json(&[]).ran(), nodes);
    assert_eq!(sandbox.json(&[]).ran(), [""; 0]);
    let stats = |stage: &str| -> serde_json::Value {
        let path = sandbox.ok(&["path", "p.toml", stage]);
        let stats = std::fs::read(Path::new(path.trim()).join("train_1.stats.json")).unwrap();
        serde_json::from_slice(&stats).unwrap()
    };
    let (split, tokens) = (stats("parts[1]"), stats("one"));
    assert_eq!(tokens["lines"], split["parts"]["validation"]["documents"]);
    let list = sandbox.ok(&["path", "p.toml", "list"]);
    let list = std::fs::read_to_string(Path::new(list.trim()).join("list")).unwrap();
    assert!(
        list.contains("train_0.jsonl.zst") && list.contains("train_1.jsonl.zst") && !list.contains("stats"),
        "{list}"
    );
    sandbox.write("p.toml", &text.replace("in = { all = \"parts:validation\" }", "in = { all = \"parts:validaton\" }"));
    let output = sandbox.run(&["check", "p.toml"]);
    assert_eq!(output.code, Some(2), "{output}");
    assert!(
        output.stderr.contains("p.toml:21:") && output.stderr.contains("did you mean `parts:validation`?"),
        "{output}"
    );
    sandbox.write("p.toml", &text.replace("\"parts:train\"", "\"raw:train\""));
    assert!(sandbox.run(&["check", "p.toml"]).stderr.contains("`raw` has no part `train`"));
    // An error in the stage is said once, and nothing of its parts.
    sandbox.write("p.toml", &text.replace("validation = 0.1", "validation = 1.5"));
    let output = sandbox.run(&["check", "p.toml"]);
    assert!(output.stderr.contains("1.5 is no part") && !output.stderr.contains("has no part"), "{output}");
}

#[test]
fn the_example_of_curation_gives_tokens_of_what_is_kept() {
    let sandbox = Sandbox::new();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples"), &sandbox.path("examples"));
    let output = sandbox.run(&["run", "examples/curate/pipeline.toml"]);
    assert_eq!(output.code, Some(0), "{output}");
    let path = sandbox.ok(&["path", "examples/curate/pipeline.toml", "tokens"]);
    assert!(Path::new(path.trim()).join("mixed_text_document.bin").is_file());
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

/// A range of a file; none: all of it.
type Asked = Option<(usize, usize)>;

/// A server of one big file that knows ranges. Until it may go on, it sends eight MiB of an answer and no more.
struct BigFile {
    url: String,
    may_go_on: Arc<AtomicBool>,
    /// What was asked for.
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl BigFile {
    fn serve(content: Arc<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/big", listener.local_addr().unwrap());
        let (may_go_on, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (go, log) = (Arc::clone(&may_go_on), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (content, go, log) = (Arc::clone(&content), Arc::clone(&go), Arc::clone(&log));
                std::thread::spawn(move || Self::answer(stream.unwrap(), &content, &go, &log));
            }
        });
        Self { url, may_go_on, asked }
    }

    /// A client that is gone is no error.
    fn answer(mut stream: TcpStream, content: &[u8], go: &AtomicBool, log: &Mutex<Vec<Asked>>) {
        let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
        let range = head.iter().find_map(|line| line.strip_prefix("range: bytes=")?.split_once('-'));
        let range = range.map(|(from, to)| (from.parse().unwrap(), to.parse::<usize>().unwrap() + 1));
        log.lock().unwrap().push(range);
        let (from, to) = range.unwrap_or((0, content.len()));
        let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
        let place = format!("Content-Range: bytes {from}-{}/{}\r\n", to - 1, content.len());
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"v1\"\r\nAccept-Ranges: bytes\r\n{}Connection: close\r\n\r\n",
            to - from,
            if range.is_some() { place.as_str() } else { "" },
        );
        let part = (from + (8 << 20)).min(to);
        let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&content[from..part]));
        if sent.is_ok() {
            until("it may go on", || go.load(Ordering::SeqCst));
            let _ = stream.write_all(&content[part..to]);
        }
    }
}

#[test]
fn killed_in_the_middle_of_a_big_file_it_goes_on_where_each_connection_was() {
    let words = (0..68u64 << 17).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    let content: Arc<Vec<u8>> = Arc::new(words.flatten().collect());
    let server = BigFile::serve(Arc::clone(&content));
    let sandbox = Sandbox::with(&format!("[stage.raw]\nkind = \"fetch\"\nurls = [\"{}\"]\n", server.url));
    // What is noted beside the part that grows.
    let spans = || -> Vec<(usize, usize)> {
        let scratch = std::fs::read_dir(sandbox.cache().join("scratch")).into_iter().flatten();
        let notes = scratch.filter_map(|entry| std::fs::read(entry.unwrap().path().join("part.json")).ok());
        let note = notes.filter_map(|text| serde_json::from_slice::<serde_json::Value>(&text).ok()).next();
        note.and_then(|note| serde_json::from_value(note["pieces"]["have"].clone()).ok()).unwrap_or_default()
    };
    let running = sandbox.start(&["run", "p.toml"]);
    until("three connections are in their middles", || {
        spans().iter().filter(|span| span.1 - span.0 > 2 << 20).count() == 3
    });
    running.signal(libc::SIGKILL);
    assert_eq!(running.end().code, None);
    let have: usize = spans().iter().map(|span| span.1 - span.0).sum();
    server.asked.lock().unwrap().clear();
    server.may_go_on.store(true, Ordering::SeqCst);
    assert_eq!(sandbox.json(&[]).how()["raw"], "resumed");
    let path = sandbox.ok(&["path", "p.toml", "raw"]);
    assert!(std::fs::read(Path::new(path.trim()).join("big")).unwrap() == *content);
    let asked: Option<usize> = server.asked.lock().unwrap().iter().map(|range| range.map(|(from, to)| to - from)).sum();
    assert_eq!(asked, Some(content.len() - have), "what was there is not asked for again");
}

#[test]
fn a_pattern_that_nothing_matches_is_told_before_the_run() {
    let sandbox = with_example(
        "[stage.raw]\nkind = \"fetch\"\nurls = [\"example/*.jsonl.zst\"]\n\
         [stage.there]\nkind = \"fetch\"\nurls = [\"example/*_0.jsonl.gz\"]\nexclude = [\"val*\"]\n\
         [stage.none]\nkind = \"fetch\"\nurls = [\"example\"]\ninclude = [\"*.parquet\"]\n",
    );
    let output = sandbox.run(&["check", "p.toml"]);
    assert_eq!(output.code, Some(2), "{output}");
    assert_eq!(output.stderr.matches("matches").count(), 2, "{output}");
    assert!(output.stderr.contains("p.toml:5:") && output.stderr.contains("p.toml:12:"), "{output}");
}

#[test]
fn shards_of_a_stage_lie_in_one_exported_directory() {
    let sandbox = with_example(
        r#"
        [stage.raw]
        kind = "fetch"
        urls = ["example/train_{0..1}.jsonl.gz"]
        [stage.clean]
        kind = "filter"
        input = "raw"
        length = { min_chars = 200 }
        export = "clean"
        [stage.tokens]
        kind = "tokenize"
        input = "clean"
        tokenizer = "example/tokenizer"
        export = "tokens"
        "#,
    );
    sandbox.ok(&["run", "p.toml"]);
    let names = |directory: &str| {
        let entries = std::fs::read_dir(sandbox.path(directory)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    };
    let of = |endings: &[&str]| -> Vec<String> {
        let all = ["train_0", "train_1"].iter().flat_map(|stem| endings.iter().map(move |e| format!("{stem}{e}")));
        all.collect()
    };
    assert_eq!(names("clean"), of(&[".jsonl.zst", ".stats.json"]));
    assert_eq!(names("tokens"), of(&[".stats.json", "_text_document.bin", "_text_document.idx"]));
}
