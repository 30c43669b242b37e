//! Merging where there are many symbols: a heap of pairs. n log n steps and twelve bytes a symbol, so that a text which never
//! breaks, as a line of millions of the same letter, is no trouble.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::rules::{NONE, Rules};

/// Where a symbol went into the one before it.
const GONE: u32 = u32::MAX;

/// Merges at least 2 symbols, in their own place.
pub fn merge(rules: &Rules, symbols: &mut [u32], ids: &mut Vec<u32>) {
    let pair = |left: u32, right: u32, place: usize| {
        let rank = rules.rank(left, right);
        (rank != NONE).then_some(Reverse(u64::from(rank) << 32 | place as u64))
    };
    let mut pairs = Vec::with_capacity(symbols.len());
    pairs.extend((1..symbols.len()).filter_map(|place| pair(symbols[place - 1], symbols[place], place - 1)));
    let mut heap = BinaryHeap::from(pairs);
    while let Some(Reverse(lowest)) = heap.pop() {
        let (rank, place) = ((lowest >> 32) as u32, lowest as u32 as usize);
        // What is in the heap may be of symbols that are no more. A symbol that is gone is in no rule.
        let Some(gone) = next(symbols, place) else { continue };
        if symbols[place] == GONE || rules.rank(symbols[place], symbols[gone]) != rank {
            continue;
        }
        let merged = rules.merged(rank);
        symbols[place] = merged;
        symbols[gone] = GONE;
        if let Some(next) = next(symbols, gone) {
            heap.extend(pair(merged, symbols[next], place));
        }
        // No token is so long that these steps were many.
        if let Some(before) = symbols[..place].iter().rposition(|symbol| *symbol != GONE) {
            heap.extend(pair(symbols[before], merged, before));
        }
    }
    ids.extend(symbols.iter().filter(|symbol| **symbol != GONE));
}

/// The place of the symbol behind the one at a place.
fn next(symbols: &[u32], place: usize) -> Option<usize> {
    let steps = symbols[place + 1..].iter().position(|symbol| *symbol != GONE)?;
    Some(place + 1 + steps)
}
