//! Neighbours become one as long as what they make is a piece, the one with the highest score first, the leftmost of those.

use std::{cmp::Ordering, collections::BinaryHeap};

use ahash::AHashMap;
use anyhow::Result;

use super::{
    normalize::Symbols,
    proto::{Kind, Piece},
};

/// Pieces, and how soon each is made.
pub struct Bpe {
    pieces: AHashMap<String, (u32, f32)>,
    /// Symbols that are not joined with anything.
    symbols: Option<Symbols>,
    unknown: u32,
}

/// A part of the text; empty when it went into the one before it.
struct Symbol {
    start: usize,
    end: usize,
    before: Option<usize>,
    behind: Option<usize>,
    frozen: bool,
}

/// Two neighbours that may become a piece.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// How long both were: what has another length by now is of other neighbours.
    length: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

impl Bpe {
    /// Of pieces, the symbols among them, and the id of what is unknown.
    ///
    /// # Errors
    /// There are too many.
    pub fn new<'p>(
        pieces: impl Iterator<Item = (&'p Piece, Kind, u32)>,
        symbols: &[&str],
        unknown: u32,
    ) -> Result<Self> {
        let pieces = pieces.map(|(piece, _, id)| (piece.text.clone(), (id, piece.score))).collect();
        Ok(Self { pieces, symbols: Symbols::new(symbols)?, unknown })
    }

    /// Gives the pieces of a normalized text.
    pub fn segment(&self, text: &str, mut take: impl FnMut(&str, u32)) {
        let mut symbols = self.symbols_of(text);
        let pair = |symbols: &[Symbol], left: Option<usize>, right: Option<usize>| {
            let (left, right) = (left?, right?);
            let (a, b) = (&symbols[left], &symbols[right]);
            let (_, score) = self.pieces.get(&text[a.start..b.end]).filter(|_| !a.frozen && !b.frozen)?;
            // A zero has two signs.
            Some(Pair { score: score + 0.0, left, right, length: b.end - a.start })
        };
        let pairs = (1..symbols.len()).filter_map(|right| pair(&symbols, Some(right - 1), Some(right)));
        let mut agenda: BinaryHeap<Pair> = pairs.collect();
        while let Some(Pair { left, right, length, .. }) = agenda.pop() {
            let size = |symbol: &Symbol| symbol.end - symbol.start;
            let (a, b) = (size(&symbols[left]), size(&symbols[right]));
            if a == 0 || b == 0 || a + b != length {
                continue;
            }
            let (end, behind) = (symbols[right].end, symbols[right].behind);
            symbols[left].end = end;
            symbols[left].behind = behind;
            symbols[right].start = end;
            if let Some(behind) = behind {
                symbols[behind].before = Some(left);
            }
            agenda.extend(pair(&symbols, symbols[left].before, Some(left)));
            agenda.extend(pair(&symbols, Some(left), behind));
        }
        for symbol in symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            let piece = &text[symbol.start..symbol.end];
            take(piece, self.pieces.get(piece).map_or(self.unknown, |piece| piece.0));
        }
    }

    /// Characters, and symbols that are not joined.
    fn symbols_of(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = Vec::new();
        let mut start = 0;
        while let Some(char) = text[start..].chars().next() {
            let found = self.symbols.as_ref().and_then(|symbols| symbols.first(&text[start..]));
            let end = start + found.unwrap_or(char.len_utf8());
            let (before, behind) = (symbols.len().checked_sub(1), Some(symbols.len() + 1));
            symbols.push(Symbol { start, end, before, behind, frozen: found.is_some() });
            start = end;
        }
        if let Some(last) = symbols.last_mut() {
            last.behind = None;
        }
        symbols
    }
}
