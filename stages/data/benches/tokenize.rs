//! How fast JSON lines become token ids, and where the time goes: each step alone on one thread, the whole stage, and
//! Hugging Face's `tokenizers` on the same documents.
//!
//! `cargo bench -p flow-data --bench tokenize -- [SHARD] [TOKENIZER]`; the example's are taken if none are given. MB are
//! 10⁶ bytes of uncompressed JSON lines. Text that repeats tokenizes faster than any text does: give real shards.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use flow_core::{Cancel, Ctx, Digest, Entry, Event, Input, Table, Tree, Value, ValueKind};
use flow_data::tokenize::{Files, Tokenizer};
use flow_formats::{
    compressed::Decoder,
    documents::{Lines, Text, texts},
};

/// The best of several rounds: the machine has other things to do.
const ROUNDS: usize = 3;

fn main() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/ja_wiki_mini");
    let mut paths = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).map(PathBuf::from);
    let shard = paths.next().unwrap_or_else(|| example.join("train_0.jsonl.gz"));
    let tokenizer = paths.next().unwrap_or_else(|| example.join("tokenizer"));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);

    let mut content = Vec::new();
    let decompressed = best(|| {
        content.clear();
        Decoder::open(&shard).and_then(|mut decoder| Ok(decoder.read_to_end(&mut content)?)).expect("a shard");
    });
    let bytes = content.len();
    report("decompress, 1 thread", bytes, decompressed);
    let mut documents = Vec::new();
    let parsed = best(|| documents = parse(&content));
    report("find the text in JSON, 1 thread", bytes, parsed);

    let loaded = best(|| drop(Tokenizer::load(&Files::find(&tokenizer).expect("its files")).expect("a tokenizer")));
    let Took { wall, cpu } = loaded;
    eprintln!("{:>50} {wall:>24.3} s {cpu:>8.3} CPU seconds", "load the tokenizer, once a run");

    // Before the peers, so that the memory is its own.
    let whole = best(|| stage(&shard, &tokenizer, threads));
    report(&format!("flow tokenize, {threads} threads, end to end"), bytes, whole);
    eprintln!("{:>50} {:>8} MB", "most memory so far", most_memory() / 1_000_000);
    report("flow tokenize, 1 thread, end to end", bytes, best(|| stage(&shard, &tokenizer, 1)));

    let peer = tokenizers::Tokenizer::from_file(tokenizer.join("tokenizer.json")).expect("a tokenizer");
    let mut tokens = 0;
    let encoded = best(|| {
        let encodings = peer.encode_batch_fast(documents.clone(), true).expect("documents");
        tokens = encodings.iter().map(tokenizers::Encoding::len).sum();
    });
    report(&format!("tokenizers encode_batch_fast, {threads} threads"), bytes, encoded);
    eprintln!(
        "{} documents, {tokens} tokens, {:.1} times as fast as tokenizers",
        documents.len(),
        encoded.cpu / whole.cpu
    );
}

/// What a piece of work took, in seconds.
#[derive(Clone, Copy)]
struct Took {
    wall: f64,
    /// Of all threads: says what a quiet machine would do when this one is not.
    cpu: f64,
}

fn report(what: &str, bytes: usize, took: Took) {
    let mb = bytes as f64 / 1e6;
    let Took { wall, cpu } = took;
    eprintln!("{what:>50} {:>8.1} MB/s {wall:>8.3} s {:>8.1} MB per CPU second", mb / wall, mb / cpu);
}

fn best(mut work: impl FnMut()) -> Took {
    let mut once = || {
        let (started, cpu) = (Instant::now(), cpu_seconds());
        work();
        Took { wall: started.elapsed().as_secs_f64(), cpu: cpu_seconds() - cpu }
    };
    let rounds: Vec<Took> = (0..ROUNDS).map(|_| once()).collect();
    let least = |of: fn(&Took) -> f64| rounds.iter().map(of).fold(f64::INFINITY, f64::min);
    Took { wall: least(|took| took.wall), cpu: least(|took| took.cpu) }
}

fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a system call that fills the structure it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn parse(content: &[u8]) -> Vec<String> {
    let text = |line| {
        let mut found = [Text::Missing];
        texts(line, &["text"], &mut found).expect("a document");
        match found {
            [Text::One(text)] => text.into_owned(),
            other => panic!("no text: {other:?}"),
        }
    };
    Lines::new(content).map(text).collect()
}

/// Runs the stage as the engine does.
fn stage(shard: &Path, tokenizer: &Path, threads: usize) {
    let directory = tempfile::tempdir().expect("a directory");
    let place = |name: &str| {
        let path = directory.path().join(name);
        std::fs::create_dir(&path).expect("a directory");
        path
    };
    let text = |text: &str| Value::new(ValueKind::String(text.to_owned()));
    let truth = Value::new(ValueKind::Bool(true));
    let entries = [("input", text("raw")), ("tokenizer", text("base")), ("append_eod", truth)];
    let entries = entries.into_iter().map(|(name, value)| (name.to_owned(), None, value)).collect();
    let kind = flow_data::KINDS.iter().find(|kind| kind.name == "tokenize").expect("the registry has it");
    let stages = (kind.parse)(&Value::new(ValueKind::Table(Table { entries })), &()).nodes;
    let inputs =
        BTreeMap::from([("input".to_owned(), vec![input(shard)]), ("tokenizer".to_owned(), vec![input(tokenizer)])]);
    let sink = |_: Event| {};
    let ctx = Ctx {
        node: "tokens",
        inputs: &inputs,
        out: &place("out"),
        scratch: &place("scratch"),
        project: directory.path(),
        pinned: None,
        before: None,
        remarks: &std::sync::Mutex::default(),
        threads,
        nodes: 1,
        hosts: &[],
        gpus: &[],
        container_engine: None,
        network: &flow_core::Network::default(),
        sink: &sink,
        cancel: &Cancel::default(),
        whole: &|_| (),
    };
    stages[0].run(&ctx).expect("the stage runs");
}

/// The tree of a file or a flat directory. Digests tell tokenizers apart here, and that is all.
fn input(path: &Path) -> Input {
    let entry = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        let size = path.metadata().expect("a file").len();
        Entry { digest: Digest::of(path.as_os_str().as_encoded_bytes()), name, size, executable: false }
    };
    let entries = if path.is_dir() {
        std::fs::read_dir(path).expect("a directory").map(|file| entry(&file.expect("a file").path())).collect()
    } else {
        vec![entry(path)]
    };
    Input {
        name: path.display().to_string(),
        path: path.to_owned(),
        tree: Arc::new(Tree::new(entries).expect("names")),
    }
}

/// The most memory that this process ever had, in bytes.
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}
