//! `flow generate`

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

/// What its help ends with.
pub const EXAMPLES: &str = "Without a prompt each line of stdin is one; in a terminal, that is a conversation.

Examples:
  flow generate results/ja-mini \"日本の首都は\" --max-new-tokens 32
  flow generate pipeline.toml hf \"日本の首都は\"
  flow generate pipeline.toml hf --chat --temperature 0.7 --top-p 0.9
  flow generate results/ja-mini --prompts questions.jsonl -o answers.jsonl --batch-size 32";

/// `flow generate`
#[derive(Debug, Args)]
pub struct Generate {
    /// A Hugging Face directory; or a pipeline's TOML file, and then the stage that makes one
    #[arg(value_name = "MODEL | PIPELINE STAGE", value_hint = ValueHint::AnyPath)]
    pub model: PathBuf,
    /// What it goes on with [default: each line of stdin]
    #[arg(value_name = "PROMPT")]
    pub words: Vec<String>,
    /// Of the pipeline: merge this [profile.…] table over the file
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// Of the pipeline: set a value, as `stage.train.max_steps=300`; may be given again
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Go on with each line of this file: JSON objects with `prompt` (or `input`)
    #[arg(long, value_name = "FILE.jsonl", value_hint = ValueHint::FilePath)]
    pub prompts: Option<PathBuf>,
    /// Write the predictions here: each object of --prompts with `prediction`, `tokens` and `ended`
    #[arg(long, short, value_name = "OUT.jsonl", value_hint = ValueHint::FilePath, requires = "prompts")]
    pub output: Option<PathBuf>,
    /// Say prompts as the model's chat template does
    #[arg(long)]
    pub chat: bool,
    /// More tokens are not made
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_one)]
    pub max_new_tokens: usize,
    /// Draw tokens, from logits divided by this; 0 is always the likeliest [default: 1 if --top-k or --top-p is given, else 0]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f64>,
    /// Draw from the N likeliest tokens only
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub top_k: Option<usize>,
    /// Draw from the likeliest tokens that together have this probability only
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Make what was there already less likely: logits are divided by it, or multiplied where they are negative
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f64>,
    /// Draw with this seed: the same seed, the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// End where this text would come; may be given again
    #[arg(long, value_name = "TEXT")]
    pub until: Vec<String>,
    /// So many texts for each prompt, with the seeds that follow
    #[arg(short = 'n', value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub number: usize,
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    pub device: Device,
    /// Of weights and activations [default: as the weights are stored]
    #[arg(long, value_enum)]
    pub precision: Option<Precision>,
    /// Processes that share each layer, on a GPU each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub tensor: usize,
    /// Prompts that go on together
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    pub batch_size: usize,
    /// Print one line of JSON a text
    #[arg(long)]
    pub json: bool,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Device {
    /// On a GPU if there is one
    Auto,
    /// On the CPU
    Cpu,
    /// On a GPU
    Cuda,
}

/// Of weights and activations.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Precision {
    /// Four bytes
    Fp32,
    /// Two bytes
    Bf16,
}

impl From<Device> for flow_data::generate::Device {
    fn from(device: Device) -> Self {
        match device {
            Device::Auto => Self::Auto,
            Device::Cpu => Self::Cpu,
            Device::Cuda => Self::Cuda,
        }
    }
}

impl From<Precision> for flow_data::generate::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Self::Fp32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("the smallest that works is 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("it is not a count".to_owned()),
    }
}
