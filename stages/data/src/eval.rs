//! `eval`: loss and perplexity of a model over documents, beside those of another model.
//!
//! The stage owns the tokenizer and turns documents into ids; a worker computes. Every number that follows from what
//! the worker measured is made here.

mod windows;

use std::{
    borrow::Cow,
    fs::{self, File},
    io::{BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use flow_core::{Check, Ctx, Diagnostic, Event, Input, Level, Port, Ref, Refs, Stage, Unit, did_you_mean};
use flow_formats::{
    compressed::{Decoder, strip_ending},
    documents::{Blocks, Lines, Text, texts},
};
use flow_plan::{Device, EvalJob, EvalRequest, EvalResults, Job, ModelConfig, Precision, Score};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use crate::{
    diagnostic, facts, models,
    tokenize::Tokenizer,
    worker::{self, Launch, worker},
};
use windows::{nll, windows};

/// The tasks there are.
const TASKS: &[&str] = &["perplexity"];

/// Text that is encoded at a time.
const BLOCK: usize = 4 << 20;

/// A longer line is not a document but a file that has no lines.
const MAX_LINE: usize = 1 << 30;

/// A worker that evaluates keeps nothing: it is given no time when the run is interrupted.
const GRACE: Duration = Duration::from_secs(2);

/// `kind = "eval"`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    /// A Hugging Face directory.
    #[serde(skip_serializing)]
    model: Ref,
    /// Documents: `.jsonl`, also `.gz`, `.zst`, `.bz2` and `.xz`.
    #[serde(skip_serializing)]
    data: Refs,
    /// Another Hugging Face directory, for the same tasks.
    #[serde(default, skip_serializing)]
    compare: Option<Ref>,
    /// What is measured.
    #[serde(default = "default_tasks")]
    tasks: Vec<String>,
    /// Tokens in a window; as many as the model was made for, at most 2048, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seq_length: Option<usize>,
    /// Windows in one forward pass.
    #[serde(default = "default_batch_size")]
    batch_size: usize,
    /// The key whose text is taken.
    #[serde(default = "default_json_key")]
    json_key: String,
    /// The first so many documents alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    /// Where to compute.
    #[serde(default, skip_serializing)]
    device: Device,
    /// Of weights and activations; the loss is computed in fp32.
    #[serde(default = "default_precision")]
    precision: Precision,
}

fn default_tasks() -> Vec<String> {
    vec!["perplexity".to_owned()]
}
fn default_batch_size() -> usize {
    8
}
fn default_json_key() -> String {
    "text".to_owned()
}
fn default_precision() -> Precision {
    Precision::Fp32
}

/// Longer windows need memory that not everyone has: who wants them says so.
const LONGEST_BY_DEFAULT: usize = 2048;

impl Stage for Eval {
    const KIND: &'static str = "eval";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "Measures loss and perplexity of a model over documents";

    fn ports(&self) -> Vec<Port> {
        let model = |port, model| Port::one(port, model).only(models::MODEL);
        let mut ports = vec![model("model", &self.model), Port::all("data", &self.data)];
        ports.extend(self.compare.iter().map(|compare| model("compare", compare)));
        ports
    }

    fn check(&self, check: &mut Check<'_>) {
        check.files.push("results.json".to_owned());
        for (i, task) in self.tasks.iter().enumerate().filter(|(_, task)| !TASKS.contains(&task.as_str())) {
            let wrong = Diagnostic::new(format!("there is no task `{task}`"));
            let hint = match did_you_mean(task, TASKS.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the tasks: {}", TASKS.join(", ")),
            };
            check.error(&format!("tasks.{i}"), wrong.hint(hint));
        }
        if self.tasks.is_empty() {
            check.error("tasks", Diagnostic::new("no task is named").hint("tasks = [\"perplexity\"]"));
        }
        let zero = [
            ("seq_length", self.seq_length == Some(0)),
            ("batch_size", self.batch_size == 0),
            ("limit", self.limit == Some(0)),
        ];
        for (field, _) in zero.into_iter().filter(|(_, zero)| *zero) {
            check.error(field, Diagnostic::new(format!("`{field}` is 0")).hint("the smallest that works is 1"));
        }
        let mut notes = Vec::new();
        for port in ["model", "compare"] {
            self.check_model(port, check, &mut notes);
        }
        check.provide("plan_notes", notes);
        let files: Vec<_> = check.input("data").iter().filter_map(|known| known.path.clone()).collect();
        for path in files.iter().filter(|path| path.is_file()) {
            if let Err(error) = self.look_at(path) {
                check.error(
                    "data",
                    diagnostic(&error).hint("documents are JSON lines; json_key names the key of the text"),
                );
            }
        }
        worker::check(check);
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let program = worker()?;
        let about = worker::about(&program)?;
        ctx.log(Level::Info, format!("{} {}, libtorch {}", program.display(), about.version, about.libtorch));
        let mut measured = Map::new();
        let mut results = Vec::new();
        for port in ["model", "compare"] {
            let [model] = ctx.input(port) else { continue };
            let result =
                self.measure(ctx, port, model, &program).with_context(|| format!("evaluation of {}", model.name))?;
            ctx.log(
                Level::Info,
                format!(
                    "{}: loss {:.4}, perplexity {:.3} a token, {:.4} a byte, {} tokens",
                    model.name,
                    result.loss(),
                    result.token_perplexity(),
                    result.byte_perplexity(),
                    result.tokens
                ),
            );
            if port == "model" {
                let values = [
                    ("eval_loss", result.loss()),
                    ("perplexity", result.token_perplexity()),
                    ("byte_perplexity", result.byte_perplexity()),
                ];
                let values = values.map(|(name, value)| (name.to_owned(), value)).into();
                ctx.sink.emit(Event::Metrics { node: ctx.node.to_owned(), step: 1, values });
            }
            measured.insert(port.to_owned(), table(&result));
            results.push(result);
        }
        if let [model, compare] = &results[..] {
            measured.insert("difference".to_owned(), difference(model, compare));
        }
        let tasks: Map<String, Json> =
            self.tasks.iter().map(|task| (task.clone(), Json::Object(measured.clone()))).collect();
        let text = serde_json::to_string_pretty(&json!({ "tasks": tasks }))? + "\n";
        let path = ctx.out.join("results.json");
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Eval {
    fn check_model(&self, port: &str, check: &mut Check<'_>, notes: &mut Vec<String>) {
        let Some(known) = check.input(port).first().cloned() else { return };
        if let Some(path) = known.path.as_ref().filter(|path| !path.join("config.json").is_file()) {
            let wrong = Diagnostic::new(format!("{} holds no config.json", path.display()));
            check.error(
                port,
                wrong.hint("name a Hugging Face directory, or a stage that makes one, such as `megatron-to-hf`"),
            );
            return;
        }
        let read = facts::of(&known).and_then(|facts| {
            let config = facts.get("model_config").map(ModelConfig::from_json).transpose()?;
            Ok((config, facts.get("tokenizer_vocab").and_then(Json::as_u64)))
        });
        let (config, tokens) = match read {
            Ok((Some(config), tokens)) => (config, tokens),
            Ok((None, _)) => return,
            Err(error) => return check.error(port, diagnostic(&error)),
        };
        let longest = config.max_position_embeddings;
        if let Some(asked) = self.seq_length.filter(|asked| *asked > longest) {
            let wrong =
                Diagnostic::new(format!("seq_length {asked} is longer than the {longest} positions of {}", known.name));
            check.error("seq_length", wrong.hint(format!("at most seq_length = {longest}")));
        }
        if let Some(tokens) = tokens.filter(|tokens| *tokens > config.vocab_size as u64) {
            let wrong =
                format!("the tokenizer of {} has {tokens} tokens, and its model {}", known.name, config.vocab_size);
            check.error(port, Diagnostic::new(wrong).hint("give the model the tokenizer that it was trained with"));
        }
        notes.push(format!("{port}: windows of {} tokens, {} at a time", self.window(&config), self.batch_size));
    }

    fn window(&self, config: &ModelConfig) -> usize {
        self.seq_length.unwrap_or(config.max_position_embeddings.min(LONGEST_BY_DEFAULT))
    }

    /// Evaluates one model in a worker of its own.
    fn measure(&self, ctx: &Ctx<'_>, port: &str, model: &Input, program: &Path) -> Result<EvalResults> {
        let config = ModelConfig::read(&model.path)?;
        let window = self.window(&config);
        ensure!(window <= config.max_position_embeddings, "seq_length {window} is longer than its positions");
        let requests = ctx.scratch.join(format!("{port}.requests.jsonl"));
        let mut results = self.write_requests(ctx, model, &requests, window, config.vocab_size as u64)?;
        ensure!(results.tokens > 0 && results.bytes > 0, "the documents have not one token to predict");
        let answers = ctx.scratch.join(format!("{port}.answers.jsonl"));
        let job = Job::Eval(EvalJob {
            node: ctx.node.to_owned(),
            model: model.path.clone(),
            requests,
            answers: answers.clone(),
            max_length: window,
            batch_size: self.batch_size,
            device: self.device,
            precision: self.precision,
            threads: ctx.threads,
            tensor: 1,
        });
        Launch { program, job: &job, world_size: 1, threads: ctx.threads, grace: GRACE }.run(ctx)?;
        results.nll = nll(&answers)?;
        ensure!(results.nll.is_finite(), "the loss is not a number: the weights are damaged, or bf16 overflowed");
        Ok(results)
    }

    /// Writes what the worker is asked, the windows of all documents in the order of the data; what they add up to, but for
    /// what is asked.
    fn write_requests(
        &self,
        ctx: &Ctx<'_>,
        model: &Input,
        path: &Path,
        window: usize,
        vocab_size: u64,
    ) -> Result<EvalResults> {
        let tokenizer = Tokenizer::of_input(model)?;
        let mut out = BufWriter::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?);
        let mut left = self.limit.unwrap_or(u64::MAX);
        let mut written = 0;
        let mut results = EvalResults::default();
        for file in data_files(ctx)? {
            let mut blocks = Blocks::new(Decoder::open(&file)?, BLOCK, MAX_LINE);
            let (mut block, mut line_number) = (Vec::new(), 0);
            while left > 0 && blocks.next_into(&mut block).with_context(|| format!("cannot read {}", file.display()))? {
                ctx.go_on()?;
                let lines: Vec<&[u8]> = Lines::new(&block).take(usize::try_from(left).unwrap_or(usize::MAX)).collect();
                let encode = |(i, line): (usize, &&[u8])| {
                    self.document(&tokenizer, line, vocab_size)
                        .with_context(|| format!("{}: line {}", file.display(), line_number + i + 1))
                };
                // Collected whole: the error of the first bad line is said, not of the one that was met first.
                let encoded: Vec<Result<Document>> = lines.par_iter().enumerate().map(encode).collect();
                for document in encoded {
                    let Document { tokens, bytes } = document?;
                    if tokens.len() > 1 {
                        results.documents += 1;
                        results.tokens += tokens.len() as u64 - 1;
                        results.bytes += bytes;
                    }
                    for (range, scored) in windows(tokens.len(), window) {
                        let request = EvalRequest::Score(Score { tokens: tokens[range].to_vec(), scored });
                        serde_json::to_writer(&mut out, &request)?;
                        out.write_all(b"\n")?;
                    }
                }
                line_number += lines.len();
                left -= lines.len() as u64;
                written += lines.len() as u64;
                ctx.progress(written, self.limit, Unit::Documents);
            }
        }
        ensure!(written > 0, "there is not one document");
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_data()?;
        Ok(results)
    }

    /// Whether the first line of a file is a document, if that can be said without reading much.
    fn look_at(&self, path: &Path) -> Result<()> {
        const LOOK: usize = 64 << 10;
        let mut block = Vec::new();
        Blocks::new(Decoder::open(path)?.take(LOOK as u64), LOOK, LOOK).next_into(&mut block)?;
        let Some(line) = Lines::new(&block).next().filter(|line| line.len() < block.len()) else { return Ok(()) };
        self.text(line).map(drop).with_context(|| format!("{}: line 1", path.display()))
    }

    fn text<'l>(&self, line: &'l [u8]) -> Result<Cow<'l, str>> {
        let mut found = [Text::Missing];
        texts(line, &[&self.json_key], &mut found)?;
        let [text] = found;
        match text {
            Text::One(text) => Ok(text),
            Text::Missing => bail!("`{}` is missing: json_key names the key that holds the text", self.json_key),
            Text::Many(_) => bail!("`{}` is a list, not a text", self.json_key),
            Text::Other(what) => bail!("`{}` {what}", self.json_key),
        }
    }

    fn document(&self, tokenizer: &Tokenizer, line: &[u8], vocab_size: u64) -> Result<Document> {
        let text = self.text(line)?;
        let tokens = tokenizer.encode_reference(&text, true)?;
        if let Some(id) = tokens.iter().find(|id| u64::from(**id) >= vocab_size) {
            bail!("token {id} is not in the model's vocabulary of {vocab_size}");
        }
        Ok(Document { tokens, bytes: text.len() as u64 })
    }
}

/// A document that is measured.
struct Document {
    /// The first is context alone.
    tokens: Vec<u32>,
    /// Of its text.
    bytes: u64,
}

/// The files of the documents, in order. A single file is taken whatever its name.
fn data_files(ctx: &Ctx<'_>) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for input in ctx.input("data") {
        let files = input.files();
        let alone = files.len() == 1;
        let is_text =
            |name: &str| [".jsonl", ".ndjson", ".json"].iter().any(|ending| strip_ending(name).ends_with(ending));
        let before = all.len();
        all.extend(files.into_iter().filter(|(name, _)| alone || is_text(name)).map(|(_, path)| path));
        ensure!(all.len() > before, "{} holds no .jsonl, plain or as .gz, .zst, .bz2 or .xz", input.name);
    }
    Ok(all)
}

/// The numbers that are compared, by name.
fn numbers(result: &EvalResults) -> [(&'static str, f64); 4] {
    [
        ("loss", result.loss()),
        ("token_perplexity", result.token_perplexity()),
        ("byte_perplexity", result.byte_perplexity()),
        ("bits_per_byte", result.bits_per_byte()),
    ]
}

/// All that is known of one model.
fn table(result: &EvalResults) -> Json {
    let mut table: Map<String, Json> =
        numbers(result).map(|(name, number)| (name.to_owned(), json!(number))).into_iter().collect();
    let counts = [("documents", result.documents), ("tokens", result.tokens), ("bytes", result.bytes)];
    table.extend(counts.map(|(name, count)| (name.to_owned(), json!(count))));
    table.insert("nll".to_owned(), json!(result.nll));
    Json::Object(table)
}

/// Model less the one it is compared with: below 0 is better.
fn difference(model: &EvalResults, compare: &EvalResults) -> Json {
    let pairs = numbers(model).into_iter().zip(numbers(compare));
    Json::Object(pairs.map(|((name, a), (_, b))| (name.to_owned(), json!(a - b))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Stand, repository, stage};

    fn model_dir(stand: &Stand) -> PathBuf {
        let config = r#"{"model_type":"llama","vocab_size":8192,"hidden_size":64,"intermediate_size":128,
            "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"max_position_embeddings":256,
            "rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":false}"#;
        stand.write("project/model/config.json", config);
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(
                repository().join("examples/ja_wiki_mini/tokenizer").join(name),
                stand.place("project/model").join(name),
            )
            .unwrap();
        }
        stand.place("project/model")
    }

    fn eval(more: &Json) -> Eval {
        let mut params = json!({"model": "m", "data": "d", "limit": 3});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        stage(params)
    }

    #[test]
    fn documents_are_written_in_order_with_bos_and_bytes() {
        let mut stand = Stand::new();
        let model = model_dir(&stand);
        let one = stand.write("project/a.jsonl", "{\"text\":\"日本語\"}\n{\"text\":\"\"}\n");
        let two = stand.write("project/b.jsonl", "{\"text\":\"b\"}\n{\"text\":\"beyond the limit\"}\n");
        stand.input("model", &model).input("data", &one).input("data", &two);
        let path = stand.place("scratch/requests.jsonl");
        let write = |vocabulary| {
            stand.ctx(|ctx| eval(&json!({})).write_requests(ctx, &ctx.input("model")[0], &path, 4, vocabulary))
        };
        let counts = write(8192).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let requests: Vec<Json> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        // The empty one has a BOS alone, and nothing that could be scored.
        assert_eq!((counts.documents, counts.bytes), (2, 10));
        let scored: u64 = requests.iter().map(|request| request["score"]["scored"].as_u64().unwrap()).sum();
        assert_eq!(scored, counts.tokens);
        let first = |request: &Json| request["score"]["tokens"][0].as_u64().unwrap();
        assert_eq!(first(&requests[0]), first(requests.last().unwrap()), "both begin with the BOS");
        let small = write(10);
        assert!(format!("{:#}", small.unwrap_err()).contains("a.jsonl: line 1: token "));
        write(8192).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn what_cannot_be_evaluated_is_said_before() {
        let mut stand = Stand::new();
        let model = model_dir(&stand);
        let data = stand.write("project/a.jsonl", "{\"txt\":\"x\"}\n");
        let good = stand.write("project/b.jsonl", "{\"text\":\"x\"}\n");
        let fields = |stand: &Stand, more: Json| {
            let errors = stand.check(&eval(&more)).0;
            errors.iter().map(|e| e.field.clone().unwrap()).collect::<Vec<_>>()
        };
        stand.input("model", &model).input("data", &good);
        assert_eq!(fields(&stand, json!({})), [""; 0]);
        assert_eq!(
            fields(&stand, json!({"seq_length": 257, "tasks": ["perplexiti"], "limit": 0})),
            ["tasks.0", "limit", "seq_length"]
        );
        let hint = stand.check(&eval(&json!({"tasks": ["perplexiti"]}))).0[0].hints[0].clone();
        assert_eq!(hint, "did you mean `perplexity`?");
        stand.input("data", &data);
        assert_eq!(fields(&stand, json!({})), ["data"]);
        let empty = stand.place("project");
        stand.input("compare", &empty);
        assert_eq!(fields(&stand, json!({"compare": "c"})), ["compare", "data"]);
        let (_, facts, _) = stand.check(&eval(&json!({"seq_length": 100})));
        assert_eq!(facts["plan_notes"], json!(["model: windows of 100 tokens, 8 at a time"]));
    }

    #[test]
    fn numbers_follow_from_what_was_measured() {
        // A model that gives every byte probability 1/2, and tokens of two bytes.
        let ln2 = std::f64::consts::LN_2;
        let even = EvalResults { documents: 2, tokens: 50, bytes: 100, nll: 100.0 * ln2 };
        let table = table(&even);
        let near = |name: &str, expected: f64| {
            let value = table[name].as_f64().unwrap();
            assert!((value - expected).abs() < 1e-12, "{name}: {value}");
        };
        near("loss", 2.0 * ln2);
        near("token_perplexity", 4.0);
        near("byte_perplexity", 2.0);
        near("bits_per_byte", 1.0);
        assert_eq!((&table["documents"], &table["tokens"], &table["bytes"]), (&json!(2), &json!(50), &json!(100)));
        let worse = EvalResults { nll: 200.0 * ln2, ..even };
        assert!((difference(&even, &worse)["bits_per_byte"].as_f64().unwrap() + 1.0).abs() < 1e-12);
    }
}
