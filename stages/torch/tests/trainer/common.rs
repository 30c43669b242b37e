//! What the tests share: models as Megatron checkpoints, runs of the real program with any number of ranks.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use flow_formats::{
    safetensors::{self, Index},
    torch_dist::{self, Finish, RankWriter},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The program.
pub const FLOW_TORCH: &str = env!("CARGO_BIN_EXE_flow-torch");

/// Models, tokens and numbers of another implementation.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/training")
}

/// What the other implementation measured.
pub fn reference() -> Value {
    serde_json::from_slice(&fs::read(golden().join("reference.json")).unwrap()).unwrap()
}

/// Writes a Hugging Face model as a Megatron checkpoint, in its own type.
pub fn to_megatron(hf: &Path, root: &Path) {
    let files = BTreeMap::from([(safetensors::SINGLE.to_owned(), hf.join(safetensors::SINGLE))]);
    let tensors = Index::read(&files).unwrap().tensors;
    let content = fs::read(hf.join(safetensors::SINGLE)).unwrap();
    let dtype = tensors["model.norm.weight"].dtype;
    let bytes = |name: &str| {
        let tensor = &tensors[name];
        content[tensor.at as usize..][..tensor.len as usize].to_vec()
    };
    let config: Value = serde_json::from_slice(&fs::read(hf.join("config.json")).unwrap()).unwrap();
    let number = |name: &str| config[name].as_u64().unwrap();
    let (layers, h, f, d) =
        (number("num_hidden_layers"), number("hidden_size"), number("intermediate_size"), number("head_dim"));
    let (heads, kv) = (number("num_attention_heads"), number("num_key_value_heads"));

    fs::create_dir_all(root).unwrap();
    let dir = torch_dist::begin(root, 0).unwrap();
    let mut writer = RankWriter::create(&dir, 0).unwrap();
    let mut put = |key: &str, shape: &[u64], layer: Option<u64>, bytes: &[u8]| {
        let (mut stored, mut start, mut size) = (shape.to_vec(), vec![0; shape.len()], shape.to_vec());
        if let Some(layer) = layer {
            stored.insert(0, layers);
            start.insert(0, layer);
            size.insert(0, 1);
        }
        writer.tensor(key, &stored, &start, &size, dtype, &mut &bytes[..]).unwrap();
    };
    put("embedding.word_embeddings.weight", &[number("vocab_size"), h], None, &bytes("model.embed_tokens.weight"));
    put("decoder.final_layernorm.weight", &[h], None, &bytes("model.norm.weight"));
    if tensors.contains_key("lm_head.weight") {
        put("output_layer.weight", &[number("vocab_size"), h], None, &bytes("lm_head.weight"));
    }
    for layer in 0..layers {
        let of = |name: &str| bytes(&format!("model.layers.{layer}.{name}.weight"));
        let [q, k, v] = ["q", "k", "v"].map(|name| of(&format!("self_attn.{name}_proj")));
        let mut qkv = Vec::new();
        for group in 0..kv as usize {
            for part in [&q, &k, &v] {
                let n = part.len() / kv as usize;
                qkv.extend_from_slice(&part[group * n..][..n]);
            }
        }
        let gate_up = [of("mlp.gate_proj"), of("mlp.up_proj")].concat();
        let l = Some(layer);
        put("decoder.layers.self_attention.linear_qkv.weight", &[(heads + 2 * kv) * d, h], l, &qkv);
        put("decoder.layers.self_attention.linear_proj.weight", &[h, heads * d], l, &of("self_attn.o_proj"));
        put("decoder.layers.mlp.linear_fc1.weight", &[2 * f, h], l, &gate_up);
        put("decoder.layers.mlp.linear_fc2.weight", &[h, f], l, &of("mlp.down_proj"));
        put("decoder.layers.self_attention.linear_qkv.layer_norm_weight", &[h], l, &of("input_layernorm"));
        put("decoder.layers.mlp.linear_fc1.layer_norm_weight", &[h], l, &of("post_attention_layernorm"));
    }
    writer.extra_states(layers).unwrap();
    torch_dist::finish(root, 0, writer.finish().unwrap(), &Finish::default()).unwrap();
    fs::create_dir(root.join("hf")).unwrap();
    fs::copy(hf.join("config.json"), root.join("hf/config.json")).unwrap();
}

/// A training in a directory of its own.
pub struct Training {
    pub dir: TempDir,
    /// The model it begins from.
    hf: PathBuf,
    /// As the job's `training`.
    pub numbers: Value,
    /// More environment for the ranks.
    pub env: Vec<(&'static str, &'static str)>,
    /// This rank is told of data that does not exist.
    pub misled: Option<usize>,
}

impl Training {
    /// The reference's training of its model `name`.
    pub fn of(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        to_megatron(&golden().join(name), &dir.path().join("model"));
        let mut numbers = reference()["training"].clone();
        numbers["device"] = json!("cpu");
        Self { dir, hf: golden().join(name), numbers, env: Vec::new(), misled: None }
    }

    /// With these fields changed: `("parallel", json!({"data": 2}))`.
    pub fn with(mut self, changes: &[(&str, Value)]) -> Self {
        for (field, value) in changes {
            if *field == "layers" {
                self.keep_layers(value);
            } else {
                self.numbers[*field] = value.clone();
            }
        }
        self
    }

    /// Makes a model of the first so many layers of the reference's.
    fn keep_layers(&self, layers: &Value) {
        let (hf, root) = (self.path("shorter"), self.path("model"));
        let config = root.join("hf/config.json");
        let mut content: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        content["num_hidden_layers"] = layers.clone();
        fs::create_dir(&hf).unwrap();
        fs::write(hf.join("config.json"), content.to_string()).unwrap();
        fs::copy(self.hf.join(safetensors::SINGLE), hf.join(safetensors::SINGLE)).unwrap();
        fs::remove_dir_all(&root).unwrap();
        to_megatron(&hf, &root);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes what the ranks are told; where to.
    pub fn write_job(&self) -> PathBuf {
        for name in ["out", "scratch"] {
            fs::create_dir_all(self.path(name)).unwrap();
        }
        let source = |name: &str| json!([{ "prefix": golden().join(name), "weight": null }]);
        let mut job = json!({
            "job": "train", "node": "train", "model": self.path("model"), "config": null,
            "train": source("train_document"), "validation": source("validation_document"),
            "training": self.numbers, "out": self.path("out"), "scratch": self.path("scratch"), "threads": 1,
        });
        fs::write(self.path("job.json"), job.to_string()).unwrap();
        job["train"] = source("nothing_document");
        fs::write(self.path("misled.json"), job.to_string()).unwrap();
        self.path("job.json")
    }

    /// Starts one process a rank.
    pub fn start(&self) -> Vec<Child> {
        self.write_job();
        let size = |axis: &str| self.numbers["parallel"][axis].as_u64().unwrap_or(1);
        let world = size("tensor") * size("data") * size("pipeline") * size("context");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        (0..world)
            .map(|rank| {
                Command::new(FLOW_TORCH)
                    .arg("worker")
                    .arg(self.path(if self.misled == Some(rank as usize) { "misled.json" } else { "job.json" }))
                    .env("RANK", rank.to_string())
                    .env("LOCAL_RANK", rank.to_string())
                    .env("WORLD_SIZE", world.to_string())
                    .env("MASTER_ADDR", "127.0.0.1")
                    .env("MASTER_PORT", port.to_string())
                    .envs(self.env.iter().copied())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect()
    }

    /// Runs it to its end and gives the lines of `metrics.jsonl`.
    pub fn run(&self) -> Vec<Value> {
        for ended in finish(self.start()) {
            assert!(ended.status.success(), "{}", ended.stderr);
        }
        self.metrics()
    }

    /// The result's lines.
    pub fn metrics(&self) -> Vec<Value> {
        lines(&fs::read_to_string(self.path("out/metrics.jsonl")).unwrap())
    }

    /// Every file of the result: name → content.
    pub fn result(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        walk(&self.path("out"), &self.path("out"), &mut files);
        files
    }
}

/// How a rank ended, and what it said.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Waits for ranks.
pub fn finish(children: Vec<Child>) -> Vec<Ended> {
    children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Ended { status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr) }
        })
        .collect()
}

/// JSON lines.
pub fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The largest relative difference of a field between two traces that both have it at the same steps.
pub fn difference(a: &[Value], b: &[Value], field: &str) -> f64 {
    assert_eq!(a.len(), b.len());
    let mut worst = 0.0f64;
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a["step"], b["step"]);
        assert_eq!(a.get(field).is_some(), b.get(field).is_some(), "{field} of {a} and {b}");
        if let (Some(a), Some(b)) = (a[field].as_f64(), b[field].as_f64()) {
            worst = worst.max((a - b).abs() / b.abs().max(1e-12));
        }
    }
    worst
}

fn walk(root: &Path, dir: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(root, &path, files);
        } else {
            files.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
        }
    }
}
