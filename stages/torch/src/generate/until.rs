//! Texts that end a generation.

use std::{cell::OnceCell, path::PathBuf};

use anyhow::{Context, Result, anyhow};
use tokenizers::Tokenizer;

/// More tokens than a text has bytes are looked at: those that stand for no text, and what a decoder drops at its beginning.
const MORE: usize = 8;

/// Reads `tokenizer.json` of a model's directory when a text is to be looked for.
#[derive(Debug)]
pub struct Until {
    path: PathBuf,
    tokenizer: OnceCell<Tokenizer>,
}

impl Until {
    /// That of the model in `dir`.
    pub fn of(dir: &std::path::Path) -> Self {
        Self { path: dir.join("tokenizer.json"), tokenizer: OnceCell::new() }
    }

    /// Whether one of the texts stands in what was made, which it did not before the last token.
    pub fn is_there(&self, made: &[u32], texts: &[String]) -> Result<bool> {
        let Some(longest) = texts.iter().map(String::len).max() else { return Ok(false) };
        let tail = &made[made.len().saturating_sub(longest + MORE)..];
        let text = self.tokenizer()?.decode(tail, false).map_err(|error| anyhow!("{error}"))?;
        Ok(texts.iter().any(|wanted| text.contains(wanted)))
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        if self.tokenizer.get().is_none() {
            let read = Tokenizer::from_file(&self.path).map_err(|error| anyhow!("{error}"));
            let read = read.with_context(|| format!("`until` needs {}", self.path.display()))?;
            let _ = self.tokenizer.set(read);
        }
        self.tokenizer.get().context("it was read")
    }
}
