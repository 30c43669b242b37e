//! [`ModelDir`]: the files of a Hugging Face model, from one input or from several.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use flow_core::{Diagnostic, Input, Known};
use serde_json::Value as Json;

use crate::facts;

/// Files beside the weights that make a model usable: copied as they are.
pub const COMPANIONS: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// [`COMPANIONS`], and the weights themselves.
pub const MODEL: &[&str] = &{
    let mut names = ["*.safetensors"; COMPANIONS.len() + 2];
    let mut i = 0;
    while i < COMPANIONS.len() {
        names[i] = COMPANIONS[i];
        i += 1;
    }
    names[i] = "model.safetensors.index.json";
    names
};

/// The files of a model, by name.
#[derive(Debug)]
pub struct ModelDir {
    /// Name → where it lies.
    pub files: BTreeMap<String, PathBuf>,
}

impl ModelDir {
    /// The files of all these inputs together (a `fetch` of several URLs has several).
    ///
    /// # Errors
    /// Two inputs have a file of the same name.
    pub fn new(inputs: &[Input]) -> Result<Self> {
        let mut files = BTreeMap::new();
        for input in inputs {
            for (name, path) in input.files() {
                let before = files.insert(name.to_owned(), path);
                ensure!(before.is_none(), "`{name}` is in two of the inputs, the second is `{}`", input.name);
            }
        }
        Ok(Self { files })
    }

    /// The object in `config.json`.
    ///
    /// # Errors
    /// There is none, or it is not JSON.
    pub fn config(&self) -> Result<Json> {
        facts::read_json(self.files.get("config.json").context("there is no config.json")?)
    }

    /// How many bytes [`copy_companions`](Self::copy_companions) copies.
    #[must_use]
    pub fn companions(&self) -> u64 {
        let found = COMPANIONS.iter().filter_map(|name| self.files.get(*name)?.metadata().ok());
        found.map(|meta| meta.len()).sum()
    }

    /// Copies config, generation config and tokenizer files into `dir`.
    ///
    /// # Errors
    /// A file cannot be copied.
    pub fn copy_companions(&self, dir: &Path) -> Result<()> {
        self.copy(dir, |_| true)
    }

    /// Copies the tokenizer's files alone into `dir`.
    ///
    /// # Errors
    /// A file cannot be copied.
    pub fn copy_tokenizer(&self, dir: &Path) -> Result<()> {
        self.copy(dir, |name| name != "config.json" && name != "generation_config.json")
    }

    fn copy(&self, dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
        for name in COMPANIONS.iter().filter(|name| wanted(name)) {
            let Some(from) = self.files.get(*name) else { continue };
            fs::create_dir_all(dir)?;
            // Read and written, not copied: the source may be read-only, and this must not be.
            let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
            let to = dir.join(name);
            fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
        }
        Ok(())
    }
}

/// What is wrong with what is there already and is to be a Hugging Face model: said before the run.
#[must_use]
pub fn wrong_model(inputs: &[Known]) -> Vec<Diagnostic> {
    let mut wrong: Vec<_> = inputs.iter().filter_map(wrong_dir).collect();
    if let Some(files) = files_alone(inputs)
        && !files.iter().any(|file| file.ends_with("config.json"))
    {
        let what = match files[..] {
            [file] => format!("{} is a file, and a Hugging Face model is a directory", file.display()),
            _ => "no config.json is among these files, so they are no Hugging Face model".to_owned(),
        };
        wrong.push(Diagnostic::new(what).hint(NAME_IT));
    }
    wrong
}

/// What to write where a model is needed.
const NAME_IT: &str = "name the directory that holds config.json and *.safetensors";

/// The inputs, if each of them is a file that is there: together they are the model, and nothing comes beside them.
fn files_alone(inputs: &[Known]) -> Option<Vec<&Path>> {
    let files = inputs.iter().map(|known| known.path.as_deref().filter(|path| path.is_file()));
    files.collect::<Option<Vec<_>>>().filter(|files| !files.is_empty())
}

fn wrong_dir(known: &Known) -> Option<Diagnostic> {
    let path = known.path.as_deref()?;
    let has = |name: &str| path.join(name).exists();
    if has(flow_formats::torch_dist::LATEST) || has(flow_formats::torch_dist::METADATA) {
        return Some(
            Diagnostic::new(format!(
                "{} is a Megatron checkpoint, and a Hugging Face model is needed here",
                path.display()
            ))
            .hint("`megatron-to-hf` makes one"),
        );
    }
    if path.is_dir() && !has("config.json") && !path.join("model.safetensors").exists() {
        return Some(
            Diagnostic::new(format!("{} is no Hugging Face model: it has no config.json", path.display()))
                .hint(NAME_IT),
        );
    }
    None
}

/// What is wrong with a model that is there already and is to be read with its weights: it has none that are read here.
#[must_use]
pub fn without_weights(inputs: &[Known]) -> Vec<Diagnostic> {
    let mut wrong: Vec<_> = inputs.iter().filter_map(bare).collect();
    if let Some(files) = files_alone(inputs)
        && files.iter().any(|file| file.ends_with("config.json"))
        && !files.iter().any(|file| file.extension().is_some_and(|ending| ending == "safetensors"))
    {
        wrong.push(Diagnostic::new("config.json comes without *.safetensors").hint(NAME_IT));
    }
    wrong
}

fn bare(known: &Known) -> Option<Diagnostic> {
    let path = known.path.as_deref().filter(|path| path.join("config.json").is_file())?;
    let names: Vec<_> =
        fs::read_dir(path).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    if names.iter().any(|name| name.ends_with(".safetensors")) {
        return None;
    }
    let pickled = names.iter().any(|name| name.starts_with("pytorch_model") && name.ends_with(".bin"));
    Some(Diagnostic::new(format!("{} has no *.safetensors", path.display())).hint(if pickled {
        "its weights are pickles, which are not read here: `save_pretrained` of transformers writes safetensors"
    } else {
        "is its download complete?"
    }))
}
