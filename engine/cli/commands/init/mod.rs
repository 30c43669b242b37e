//! `flow init`

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use flow_core::Diagnostic;

use super::Done;
use crate::{
    args::{self, Template},
    failure::Failure,
    ui::shell_word,
};

/// A file that is written: its name, and the text.
type File = (&'static str, &'static str);

const WORDS: [File; 2] = [("pipeline.toml", include_str!("pipeline.toml")), ("words.txt", include_str!("words.txt"))];

const TRAIN: [File; 5] = [
    ("pipeline.toml", include_str!("train/pipeline.toml")),
    ("text.jsonl", include_str!("train/text.jsonl")),
    ("held_out.jsonl", include_str!("train/held_out.jsonl")),
    ("tokenizer/tokenizer.json", include_str!("train/tokenizer/tokenizer.json")),
    ("tokenizer/tokenizer_config.json", include_str!("train/tokenizer/tokenizer_config.json")),
];

/// Writes a small pipeline that runs; never over a file that is there.
pub fn init(args: &args::Init) -> Done {
    let dir = args.name.clone().unwrap_or_else(|| PathBuf::from("."));
    let files: &[File] = match args.template {
        Template::Words => &WORDS,
        Template::Train => &TRAIN,
    };
    if let Some((name, _)) = files.iter().find(|(name, _)| dir.join(name).exists()) {
        let wrong = Diagnostic::new(format!("`{}` is there already", dir.join(name).display()));
        return Err(wrong.hint("nothing was written; name a new directory: flow init NAME").into());
    }
    for (name, text) in files {
        write_new(&dir.join(name), text).map_err(|error| Failure::absent(crate::failure::from_error(&error)))?;
    }
    let file = if args.name.is_some() { dir.join(files[0].0) } else { PathBuf::from(files[0].0) };
    eprintln!("wrote {}; run it: flow run {}", file.display(), shell_word(&file.to_string_lossy()));
    Ok(())
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(context)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).with_context(context)?;
    match file.write_all(text.as_bytes()) {
        Ok(()) => Ok(()),
        Err(error) => {
            // Half a file must not stand in the way of the next try.
            match fs::remove_file(path) {
                Err(left) if left.kind() != ErrorKind::NotFound => Err(error).context(left).with_context(context),
                _ => Err(error).with_context(context),
            }
        }
    }
}
