//! How prompts go on: rows that are at different places go forward together, and whose row ends makes room for the next
//! prompt.

mod sampling;
mod talk;
mod until;

use std::{collections::VecDeque, path::Path};

use anyhow::{Result, ensure};
use flow_plan::{Ending, Generate, PROMPT_TOKENS};

use crate::{model::Cache, opened::Opened};
use sampling::{Wants, choose};
use until::Until;

pub use talk::talk;

/// Makes tokens.
#[derive(Debug)]
pub struct Generator<'a> {
    opened: &'a Opened,
    until: Until,
    cache: Cache,
    /// Those of the cache.
    rows: Vec<Row>,
    waiting: VecDeque<Row>,
    most: usize,
}

/// A request on its way.
#[derive(Debug)]
struct Row {
    id: usize,
    request: Generate,
    made: Vec<u32>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It has one more token.
    Token(u32),
    /// It has no more.
    Ended(Ending),
}

impl<'a> Generator<'a> {
    /// For the model that was opened from `dir`, up to `rows` requests at a time.
    pub fn new(opened: &'a Opened, dir: &Path, rows: usize) -> Self {
        let cache = opened.model.cache(rows);
        Self { opened, until: Until::of(dir), cache, rows: Vec::new(), waiting: VecDeque::new(), most: rows }
    }

    /// Takes a request. It is called `id` from then on.
    pub fn ask(&mut self, id: usize, request: Generate) -> Result<()> {
        ensure!(!request.tokens.is_empty(), "a prompt has no tokens");
        self.opened.has(&request.tokens)?;
        self.waiting.push_back(Row { id, request, made: Vec::new() });
        Ok(())
    }

    /// Lets go of a request.
    pub fn forget(&mut self, id: usize) {
        self.waiting.retain(|row| row.id != id);
        if let Some(at) = self.rows.iter().position(|row| row.id == id) {
            self.remove(at);
        }
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.rows.is_empty() && self.waiting.is_empty()
    }

    /// One forward pass: of prompts, where there is room for some, else of one more token for every row.
    pub fn step(&mut self, tell: &mut dyn FnMut(usize, Told) -> Result<()>) -> Result<()> {
        while let Some(at) = self.waiting.iter().position(|row| row.request.max_new_tokens == 0) {
            if let Some(row) = self.waiting.remove(at) {
                tell(row.id, Told::Ended(Ending::Length))?;
            }
        }
        let first = self.rows.len();
        let (from, logits) = if first < self.most && !self.waiting.is_empty() {
            let new = self.next_prompts();
            self.rows.extend(self.waiting.drain(..new));
            let prompts: Vec<&[u32]> = self.rows[first..].iter().map(|row| row.request.tokens.as_slice()).collect();
            (first, self.opened.model.begin(&mut self.cache, &prompts)?)
        } else if first > 0 {
            let last: Vec<u32> = self.rows.iter().filter_map(|row| row.made.last().copied()).collect();
            (0, self.opened.model.go_on(&mut self.cache, &last)?)
        } else {
            return Ok(());
        };
        let wants: Vec<Wants<'_>> = self.rows[from..].iter().map(Row::wants).collect();
        let chosen = choose(&logits, &wants)?;
        // From behind: the last row takes the place of one that ends.
        for (at, token) in (from..self.rows.len()).zip(chosen).rev() {
            let row = &mut self.rows[at];
            let ending = if row.request.end.contains(&token) {
                Some(Ending::End)
            } else {
                row.made.push(token);
                tell(row.id, Told::Token(token))?;
                row.ending(&self.until)?
            };
            if let Some(ending) = ending {
                tell(row.id, Told::Ended(ending))?;
                self.remove(at);
            }
        }
        Ok(())
    }

    /// How many of those that wait go in together.
    fn next_prompts(&self) -> usize {
        let mut longest = 0;
        let fits = |(n, row): (usize, &Row)| {
            longest = longest.max(row.request.tokens.len());
            n == 0 || (n + 1) * longest <= PROMPT_TOKENS
        };
        self.waiting.iter().take(self.most - self.rows.len()).enumerate().map(fits).take_while(|fits| *fits).count()
    }

    fn remove(&mut self, at: usize) {
        self.rows.swap_remove(at);
        self.cache.remove(at);
    }
}

impl Row {
    fn wants(&self) -> Wants<'_> {
        Wants { sampling: self.request.sampling.as_ref(), prompt: &self.request.tokens, made: &self.made }
    }

    /// What its last token ends it with, if it does.
    fn ending(&self, until: &Until) -> Result<Option<Ending>> {
        Ok(if until.is_there(&self.made, &self.request.until)? {
            Some(Ending::Until)
        } else if self.made.len() >= self.request.max_new_tokens {
            Some(Ending::Length)
        } else {
            None
        })
    }
}
