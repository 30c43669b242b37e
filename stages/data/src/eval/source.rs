//! [`Source`]: where the documents of a task are.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use flow_core::{Ctx, Input};
use flow_formats::{
    compressed::Decoder,
    documents::{Blocks, Lines},
};

use crate::documents::is_jsonl;

/// Text that is worked on at a time.
const BLOCK: usize = 4 << 20;

/// A longer line is not a document but a file that has no lines.
const MAX_LINE: usize = 1 << 30;

/// Documents: JSON lines.
#[derive(Clone, Debug)]
pub enum Source {
    /// In files.
    Files(Vec<PathBuf>),
    /// In this program, under a name for people.
    Flow(String, &'static str),
}

/// Some lines that follow each other.
pub struct Lot<'a> {
    /// Where they are from, for people.
    pub file: &'a str,
    /// The number of the first, from 1.
    pub first: usize,
    /// The lines.
    pub lines: Vec<&'a [u8]>,
}

impl Source {
    /// All documents of these inputs, in order. A single file is taken whatever its name.
    ///
    /// # Errors
    /// There are none.
    pub fn of_inputs(inputs: &[Input]) -> Result<Self> {
        let mut all = Vec::new();
        for input in inputs {
            let files = input.files();
            let (before, count) = (all.len(), files.len());
            all.extend(files.into_iter().filter(|(name, _)| is_jsonl(name, count)).map(|(_, path)| path));
            ensure!(all.len() > before, "{} holds no .jsonl, plain or as .gz, .zst, .bz2 or .xz", input.name);
        }
        Ok(Self::Files(all))
    }

    /// Calls `take` with the first `limit` lines, some at a time.
    ///
    /// # Errors
    /// They cannot be read; `take` fails; the run was interrupted.
    pub fn lots(&self, ctx: &Ctx<'_>, limit: Option<u64>, mut take: impl FnMut(Lot<'_>) -> Result<()>) -> Result<()> {
        let mut left = limit.unwrap_or(u64::MAX);
        let mut of_one = |name: &str, text: Box<dyn Read>| -> Result<()> {
            let mut blocks = Blocks::new(text, BLOCK, MAX_LINE);
            let (mut block, mut before) = (Vec::new(), 0);
            while left > 0 && blocks.next_into(&mut block).with_context(|| format!("cannot read {name}"))? {
                ctx.go_on()?;
                let lines: Vec<&[u8]> = Lines::new(&block).take(usize::try_from(left).unwrap_or(usize::MAX)).collect();
                let count = lines.len();
                take(Lot { file: name, first: before + 1, lines })?;
                before += count;
                left -= count as u64;
            }
            Ok(())
        };
        match self {
            Self::Files(files) => files.iter().try_for_each(|file| of_one(&file.display().to_string(), open(file)?)),
            Self::Flow(name, text) => of_one(name, Box::new(text.as_bytes())),
        }
    }

    /// How many of the first `limit` documents there are.
    ///
    /// # Errors
    /// As there.
    pub fn count(&self, ctx: &Ctx<'_>, limit: Option<u64>) -> Result<u64> {
        let mut count = 0;
        self.lots(ctx, limit, |lot| {
            count += lot.lines.len() as u64;
            Ok(())
        })?;
        Ok(count)
    }

    /// Every line.
    ///
    /// # Errors
    /// As there.
    pub fn lines(&self, ctx: &Ctx<'_>) -> Result<Vec<Box<[u8]>>> {
        let mut all = Vec::new();
        self.lots(ctx, None, |lot| {
            all.extend(lot.lines.into_iter().map(Box::from));
            Ok(())
        })?;
        Ok(all)
    }
}

fn open(file: &Path) -> Result<Box<dyn Read>> {
    Ok(Box::new(Decoder::open(file)?))
}

/// The first line of a file, if that can be had without reading much.
///
/// # Errors
/// The file cannot be read.
pub fn first_line(file: &Path) -> Result<Option<Vec<u8>>> {
    const LOOK: usize = 64 << 10;
    let mut block = Vec::new();
    Blocks::new(Decoder::open(file)?.take(LOOK as u64), LOOK, LOOK).next_into(&mut block)?;
    Ok(Lines::new(&block).next().filter(|line| line.len() < block.len()).map(<[u8]>::to_vec))
}
