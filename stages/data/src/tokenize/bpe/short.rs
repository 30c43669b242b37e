//! Merging where there are few symbols: the lowest rank is found by looking at all.

use super::rules::{EDGE, NONE, Rules};

/// As many symbols as a word has bits, less an edge on both sides.
pub const MOST: usize = PLACES - 2;

const PLACES: usize = 64;
const PLACE_BITS: u32 = PLACES.trailing_zeros();

/// Merges 2 to [`MOST`] symbols. The edges are symbols without rules, so that nothing here asks whether it is at an end.
pub fn merge(rules: &Rules, symbols: &[u32], ids: &mut Vec<u32>) {
    let n = symbols.len();
    let mut here = [EDGE; PLACES];
    here[1..=n].copy_from_slice(symbols);
    // The rank of the pair that begins at a place, and the place: the least is the leftmost of the lowest rank.
    let pair = |left: u32, right: u32, place: usize| {
        let rank = rules.rank(left, right);
        if rank == NONE { NONE } else { rank << PLACE_BITS | place as u32 }
    };
    let mut pairs = [NONE; PLACES];
    for place in 1..n {
        pairs[place] = pair(here[place], here[place + 1], place);
    }
    // Places at which a symbol begins.
    let mut alive = u64::MAX >> (MOST - n);
    loop {
        // Two at a time: each comparison waits for the one before.
        let (mut even, mut odd) = (NONE, NONE);
        for two in pairs[..n + n % 2].as_chunks::<2>().0 {
            even = even.min(two[0]);
            odd = odd.min(two[1]);
        }
        let least = even.min(odd);
        if least == NONE {
            break;
        }
        let place = least as usize % PLACES;
        let merged = rules.merged(least >> PLACE_BITS);
        let behind = alive & !1 << place;
        let gone = behind.trailing_zeros() as usize % PLACES;
        let next = (behind & behind.wrapping_sub(1)).trailing_zeros() as usize % PLACES;
        let before = PLACES - 1 - (alive & ((1 << place) - 1) | 1).leading_zeros() as usize;
        alive &= !(1 << gone);
        here[place] = merged;
        pairs[gone] = NONE;
        pairs[place] = pair(merged, here[next], place);
        pairs[before] = pair(here[before], merged, before);
    }
    alive &= !1 & !(1 << (n + 1));
    while alive != 0 {
        ids.push(here[alive.trailing_zeros() as usize]);
        alive &= alive - 1;
    }
}
