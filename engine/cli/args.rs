//! What can be typed.

mod cluster;
mod generate;
mod run;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::{amounts, complete};
pub use cluster::{Cancel, Job};
pub use generate::Generate;
pub use run::{OnInterrupt, Run};

/// Runs pipelines of language-model training: what is already done is never done again.
#[derive(Debug, Parser)]
#[command(
    name = "flow",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 a stage failed, 2 usage or pipeline error, 3 the cache cannot be used or \
                  trusted, 130 interrupted.\nData goes to stdout, everything for people to stderr."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a pipeline: skip what is done, resume what was begun, run the rest
    #[command(
        after_help = "Examples:\n  flow run pipeline.toml\n  flow run pipeline.toml train --set stage.train.max_steps=300\n  flow run pipeline.toml --only tokens --profile mini"
    )]
    Run(Run),
    /// Say what would run and why, and what would be skipped; run nothing
    #[command(after_help = "Examples:\n  flow plan pipeline.toml\n  flow plan pipeline.toml --profile mini --json")]
    Plan(Plan),
    /// Report every error in a pipeline at once, each with its place
    Check(Check),
    /// Explain a stage: the parts of its key, and what differs from the last time
    #[command(
        after_help = "Examples:\n  flow why pipeline.toml train\n  flow why pipeline.toml 'tokens[2]' --run last-1"
    )]
    Why(Why),
    /// Print the directory of a stage's output
    #[command(after_help = "Examples:\n  ls \"$(flow path pipeline.toml hf)\"")]
    Path(Path),
    /// Draw the graph of a pipeline
    #[command(
        after_help = "Examples:\n  flow graph pipeline.toml\n  flow graph pipeline.toml --nodes --format svg > graph.svg"
    )]
    Graph(Graph),
    /// Show how the stages of the last run stand, also while it is going on
    Status(Status),
    /// List the runs, newest first
    Runs(Runs),
    /// Show a run: what each node did, what it took, what it made
    #[command(after_help = "Examples:\n  flow show\n  flow show last-1 train")]
    Show(Show),
    /// Compare two runs: parameters, inputs, versions, times, metrics
    #[command(after_help = "Examples:\n  flow diff\n  flow diff last-3 last --all")]
    Diff(Diff),
    /// Print the log of a stage
    #[command(
        after_help = "Examples:\n  flow log train -f\n  flow log 'tokens[2]' --run last-1\n  flow log train --rank 3"
    )]
    Log(Log),
    /// Write a page about a run, or about several side by side: one HTML file that needs nothing else
    #[command(
        after_help = "Examples:\n  flow report\n  flow report last -o run.html\n  flow report last-1 last -o compared.html"
    )]
    Report(Report),
    /// Show runs in a browser while they go on
    #[command(after_help = "Examples:\n  flow ui\n  flow ui --port 8080\n  flow ui --host 0.0.0.0")]
    Ui(Ui),
    /// Look after the cache
    #[command(subcommand)]
    Cache(Cache),
    /// Pin what the pipeline fetches in flow.lock
    Lock(Lock),
    /// Write a small pipeline that runs
    #[command(after_help = "Examples:\n  flow init my-project\n  flow init my-model --template train")]
    Init(Init),
    /// Print a completion script for a shell
    #[command(
        after_help = "Examples:\n  source <(flow completions bash)\n  flow completions fish > ~/.config/fish/completions/flow.fish"
    )]
    Completions(Completions),
    /// Print the JSON Schema of pipeline files, for editors
    Schema,
    /// Say what a Hugging Face model or a Megatron checkpoint holds
    Inspect(Inspect),
    /// Compare the tensors of two models, each in any of the formats; 1 if they differ
    DiffWeights(DiffWeights),
    /// Let a model go on with prompts, and print what it makes while it makes it
    #[command(after_help = generate::EXAMPLES)]
    Generate(Generate),
    /// End jobs in a cluster that a run left there
    #[command(
        after_help = "Examples:\n  flow cancel pipeline.toml\n  flow cancel pipeline.toml train\n  flow cancel --all"
    )]
    Cancel(Cancel),
    #[command(hide = true)]
    Job(Job),
    /// Check that this machine has what flow needs
    Doctor,
}

/// A pipeline, and what is changed in it.
#[derive(Debug, Args)]
pub struct Pipeline {
    /// The pipeline's TOML file
    #[arg(value_name = "PIPELINE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Merge this [profile.…] table over the file
    #[arg(long, short, value_name = "NAME", add = complete::profiles())]
    pub profile: Option<String>,
    /// Set a value, as `stage.train.max_steps=300`; may be given again
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Which part of a pipeline.
#[derive(Debug, Args)]
pub struct Selection {
    /// Only these stages and what they need; all if none is named
    #[arg(value_name = "STAGE", add = complete::stages())]
    pub stages: Vec<String>,
    /// Just this stage, its inputs taken from the cache; may be given again
    #[arg(long, value_name = "STAGE", add = complete::stages())]
    pub only: Vec<String>,
    /// This stage and everything after it, even if cached
    #[arg(long, value_name = "STAGE", add = complete::stages())]
    pub from: Option<String>,
    /// This stage even if cached; its `outs` and `export` may overwrite files that are not flow's
    #[arg(long, value_name = "STAGE", add = complete::stages())]
    pub force: Vec<String>,
}

/// `flow plan`
#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    pub pipeline: Pipeline,
    #[command(flatten)]
    pub selection: Selection,
    /// Print one line of JSON a node
    #[arg(long)]
    pub json: bool,
}

/// `flow check`
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    pub pipeline: Pipeline,
    /// Print every error and warning as a line of JSON on stdout
    #[arg(long)]
    pub json: bool,
}

/// `flow why`
#[derive(Debug, Args)]
pub struct Why {
    #[command(flatten)]
    pub pipeline: Pipeline,
    /// A stage, or one node as `tokens[2]`
    #[arg(add = complete::stages())]
    pub stage: String,
    /// Compare with this run and not with the last
    #[arg(long, value_name = "RUN", add = complete::runs())]
    pub run: Option<String>,
    /// Print one line of JSON a node
    #[arg(long)]
    pub json: bool,
}

/// `flow path`
#[derive(Debug, Args)]
pub struct Path {
    #[command(flatten)]
    pub pipeline: Pipeline,
    /// A stage, or one node as `tokens[2]`
    #[arg(add = complete::stages())]
    pub stage: String,
}

/// `flow graph`
#[derive(Debug, Args)]
pub struct Graph {
    #[command(flatten)]
    pub pipeline: Pipeline,
    /// How to draw
    #[arg(long, short, value_enum, default_value = "ascii")]
    pub format: GraphFormat,
    /// Draw every node, each shard and each combination of a matrix, and not the stages
    #[arg(long)]
    pub nodes: bool,
}

/// How a graph is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// Text: a line a stage, in the order of running
    Ascii,
    /// Mermaid, for Markdown
    Mermaid,
    /// Graphviz
    Dot,
    /// A picture for a browser or a page
    Svg,
}

/// `flow status`
#[derive(Debug, Args)]
pub struct Status {
    /// The pipeline's TOML file [default: the pipeline that ran last]
    #[arg(value_name = "PIPELINE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// Print one line of JSON a node
    #[arg(long)]
    pub json: bool,
}

/// `flow runs`
#[derive(Debug, Args)]
pub struct Runs {
    /// Show so many
    #[arg(long, short, value_name = "N", default_value_t = 20)]
    pub number: usize,
    /// Print one line of JSON a run
    #[arg(long)]
    pub json: bool,
}

/// `flow show`
#[derive(Debug, Args)]
pub struct Show {
    /// A run: an id, the beginning of one, `last`, `last-1`, …
    #[arg(default_value = "last", add = complete::runs())]
    pub run: String,
    /// A stage, or one node as `tokens[2]`: everything about it
    #[arg(add = complete::stages())]
    pub stage: Option<String>,
    /// Print one line of JSON a node
    #[arg(long)]
    pub json: bool,
}

/// `flow inspect`
#[derive(Debug, Args)]
pub struct Inspect {
    /// A Hugging Face directory, a .safetensors file, a Megatron checkpoint or one of its iterations; a .bin/.idx, its
    /// prefix or a directory of them
    #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,
    /// Of a .bin/.idx, show the text too, and see that the tokenizer has every id
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::AnyPath)]
    pub tokenizer: Option<PathBuf>,
    /// Print it as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// `flow diff-weights`
#[derive(Debug, Args)]
pub struct DiffWeights {
    /// The first model, as for `flow inspect`
    #[arg(value_name = "FIRST", value_hint = ValueHint::AnyPath)]
    pub first: PathBuf,
    /// The second
    #[arg(value_name = "SECOND", value_hint = ValueHint::AnyPath)]
    pub second: PathBuf,
    /// Elements may be so far apart
    #[arg(long, value_name = "MAX_ABS", default_value_t = 0.0)]
    pub tolerance: f64,
    /// List equal tensors too
    #[arg(long)]
    pub all: bool,
    /// Print one line of JSON a tensor
    #[arg(long)]
    pub json: bool,
}

/// `flow diff`
#[derive(Debug, Args)]
pub struct Diff {
    /// A run: an id, the beginning of one, `last`, `last-1`, …
    #[arg(value_name = "RUN", default_value = "last-1", add = complete::runs())]
    pub from: String,
    /// The run that it is compared with
    #[arg(value_name = "RUN", default_value = "last", add = complete::runs())]
    pub to: String,
    /// Also what does not differ
    #[arg(long)]
    pub all: bool,
    /// Print one line of JSON a difference
    #[arg(long)]
    pub json: bool,
}

/// `flow log`
#[derive(Debug, Args)]
pub struct Log {
    /// A stage, or one node as `tokens[2]`
    #[arg(add = complete::stages())]
    pub stage: String,
    /// Go on printing while the stage runs
    #[arg(long, short)]
    pub follow: bool,
    /// Of one rank alone, where a stage has several: 0 is the first
    #[arg(long, value_name = "RANK")]
    pub rank: Option<usize>,
    /// Of this run [default: the last one in which the stage ran]
    #[arg(long, value_name = "RUN", add = complete::runs())]
    pub run: Option<String>,
}

/// `flow report`
#[derive(Debug, Args)]
pub struct Report {
    /// Runs: an id, the beginning of one, `last`, `last-1`, …; several are laid over each other
    #[arg(value_name = "RUN", default_value = "last", add = complete::runs())]
    pub runs: Vec<String>,
    /// The file; `-` is stdout. Its place is printed
    #[arg(long, short, value_name = "FILE", default_value = "report.html", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// Write over a file that is no report of flow
    #[arg(long)]
    pub force: bool,
    /// Print what the page says as one line of JSON, and write no page
    #[arg(long, conflicts_with_all = ["output", "force"])]
    pub json: bool,
}

/// `flow ui`
#[derive(Debug, Args)]
pub struct Ui {
    /// The port; 0 is any that is free [default: 4750, or any other if that is taken]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// The address of this machine to listen on. Other than on the machine itself, who looks needs the token that is printed
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1", value_hint = ValueHint::Hostname)]
    pub host: String,
}

/// `flow cache`
#[derive(Debug, Subcommand)]
pub enum Cache {
    /// Show what the cache holds
    Stats,
    /// List the results, newest first
    Ls {
        /// Print one line of JSON a result
        #[arg(long)]
        json: bool,
    },
    /// Remove old results and what no result names
    Gc {
        /// Remove results that were not used for this long: 30d, 12h, 90m
        #[arg(long, alias = "older", value_name = "AGE", value_parser = amounts::age)]
        max_age: Option<std::time::Duration>,
        /// Then remove the least recently used until the cache is at most this big: 500G, 1.5T
        #[arg(long, alias = "max", value_name = "SIZE", value_parser = amounts::size)]
        max_size: Option<u64>,
        /// Keep what the last runs of each pipeline used, if they began within this time; 0d keeps nothing for them. Older
        /// runs go, but the last of each pipeline and profile, and those that made a result that stays
        #[arg(long, value_name = "AGE", value_parser = amounts::age, default_value = "30d")]
        keep_runs: std::time::Duration,
        /// Say what would be removed, and remove nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Read everything again, put aside what is damaged, and fetch it again if the team has it
    Verify,
    /// Keep results of a pipeline whatever gc is asked for; without a pipeline, list what is kept
    Pin(Part),
    /// Let go of what was pinned, also of results that the pipeline no longer has
    Unpin {
        /// The pipeline file
        #[arg(value_hint = clap::ValueHint::FilePath)]
        file: std::path::PathBuf,
        /// These stages, or nodes as `tokens[2]` [default: all]
        #[arg(value_name = "STAGE", add = complete::stages())]
        stages: Vec<String>,
    },
    /// Give results to the team: a pipeline's, or all
    Push(Part),
    /// Fetch results from the team: a pipeline's, or all that it has
    Pull(Part),
    /// Write results and their objects to one file, for machines that share no network
    Export {
        /// The archive
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        to: PathBuf,
        #[command(flatten)]
        part: Part,
        /// Write over a file that is no archive of flow
        #[arg(long)]
        force: bool,
    },
    /// Take the results of an archive
    Import {
        /// The archive
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        from: PathBuf,
    },
    /// Make a key to sign results with, and print its public half
    Keygen {
        /// The file of the secret half [default: flow/signing-key in the user's configuration]
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        to: Option<PathBuf>,
    },
}

/// Some results of a cache.
#[derive(Debug, Args)]
pub struct Part {
    /// The results of this pipeline; all if none is named
    #[arg(value_name = "PIPELINE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// Merge this [profile.…] table over the file
    #[arg(long, short, value_name = "NAME", requires = "file", add = complete::profiles())]
    pub profile: Option<String>,
    /// Set a value, as `stage.train.max_steps=300`; may be given again
    #[arg(long, value_name = "KEY=VALUE", requires = "file")]
    pub set: Vec<String>,
    /// Only these stages and what they need
    #[arg(value_name = "STAGE", requires = "file", add = complete::stages())]
    pub stages: Vec<String>,
}

/// `flow lock`
#[derive(Debug, Args)]
pub struct Lock {
    #[command(flatten)]
    pub pipeline: Pipeline,
    /// Look again at what is pinned already: at these stages, or at all
    #[arg(long)]
    pub update: bool,
    /// Only these stages
    #[arg(value_name = "STAGE", add = complete::stages())]
    pub stages: Vec<String>,
}

/// `flow init`
#[derive(Debug, Args)]
pub struct Init {
    /// A new directory for it [default: here]
    #[arg(value_hint = ValueHint::DirPath)]
    pub name: Option<PathBuf>,
    /// What it does
    #[arg(long, short, value_enum, default_value = "words")]
    pub template: Template,
}

/// A pipeline to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Template {
    /// Two commands over a text file
    Words,
    /// A tiny language model: tokenize, train on the CPU, convert, evaluate
    Train,
}

/// `flow completions`
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_table_of_arguments_is_sound() {
        Cli::command().debug_assert();
    }
}
