//! Byte-level byte-pair encoding: the ids that merging from bytes gives, without most of the merging.
//!
//! The rule is: of all neighbours that a rule joins, join those of the lowest rank, the leftmost first, until no rule is left. It
//! starts from bytes. Japanese has three bytes a character, so most of that work makes characters, the same ones again and
//! again. [`Chars`] knows which characters may be taken as made, and where a text falls into parts that never join.

mod chars;
mod long;
mod model;
mod rules;
mod short;
#[cfg(test)]
mod tests;

use ahash::AHashMap;
use chars::Chars;
use rules::{NONE, Rules};

pub use model::{Model, Written};

/// A rule: what it joins and what it makes, as ids. Its rank is its place among the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Joins this one
    pub left: u32,
    /// and this one
    pub right: u32,
    /// to this one.
    pub merged: u32,
}

/// An encoder of pieces of text, as a pre-tokenizer cuts them.
pub struct Bpe {
    rules: Rules,
    chars: Chars,
    /// Tokens that merging does not lead to, of models that take a piece whole if it is a token.
    unreached: AHashMap<Box<str>, u32>,
}

impl Bpe {
    /// None if the model is of a kind that is not served.
    pub fn new(model: &Model) -> Option<Self> {
        let rules = Rules::new(&model.merges)?;
        let chars = Chars::new(model, &rules)?;
        let mut bpe = Self { rules, chars, unreached: AHashMap::new() };
        if model.ignore_merges {
            let (mut symbols, mut ids) = (Vec::new(), Vec::new());
            let mut unreached = AHashMap::new();
            for (token, id) in &model.tokens {
                let Ok(text) = std::str::from_utf8(token) else { continue };
                ids.clear();
                bpe.encode(text, &mut symbols, &mut ids);
                if ids != [*id] {
                    unreached.insert(text.into(), *id);
                }
            }
            bpe.unreached = unreached;
        }
        Some(bpe)
    }

    /// Appends the ids of a piece. `symbols` is room that is used again.
    pub fn encode(&self, piece: &str, symbols: &mut Vec<u32>, ids: &mut Vec<u32>) {
        if !self.unreached.is_empty()
            && let Some(id) = self.unreached.get(piece)
        {
            ids.push(*id);
            return;
        }
        self.chars.parts(piece, symbols, |symbols| match *symbols {
            [] => {}
            [one] => ids.push(one),
            [left, right] => match self.rules.rank(left, right) {
                NONE => ids.extend([left, right]),
                rank => ids.push(self.rules.merged(rank)),
            },
            _ if symbols.len() <= short::MOST => short::merge(&self.rules, symbols, ids),
            _ => long::merge(&self.rules, symbols, ids),
        });
    }
}
