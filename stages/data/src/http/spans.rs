//! [`Spans`]: which bytes of a file are there.

use serde::{Deserialize, Serialize};

/// Stretches `[from, to)`, sorted, none of which touches another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Spans(Vec<(u64, u64)>);

impl Spans {
    /// The first bytes.
    pub fn first(bytes: u64) -> Self {
        let mut spans = Self::default();
        spans.add(0, bytes);
        spans
    }

    /// One more stretch.
    pub fn add(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let start = self.0.partition_point(|span| span.1 < from);
        let end = self.0.partition_point(|span| span.0 <= to);
        let joined = self.0[start..end].iter().fold((from, to), |all, span| (all.0.min(span.0), all.1.max(span.1)));
        self.0.splice(start..end, [joined]);
    }

    /// How many bytes they are.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|span| span.1 - span.0).sum()
    }

    /// What is missing of the first `total` bytes, in pieces of at most `piece`.
    pub fn gaps(&self, total: u64, piece: u64) -> Vec<(u64, u64)> {
        let ends = self.0.iter().copied().chain([(total, total)]);
        let mut gaps = Vec::new();
        let mut at = 0;
        for (from, to) in ends {
            while at < from.min(total) {
                let next = from.min(total).min(at + piece.max(1));
                gaps.push((at, next));
                at = next;
            }
            at = at.max(to);
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn they_are_the_set_of_their_bytes(adds in proptest::collection::vec((0..60u64, 0..20u64), 0..12), piece in 1..9u64) {
            let mut spans = Spans::default();
            let mut bytes = [false; 100];
            for (from, length) in adds {
                spans.add(from, from + length);
                bytes[from as usize..(from + length) as usize].fill(true);
            }
            assert_eq!(spans.bytes(), bytes.iter().filter(|there| **there).count() as u64);
            assert!(spans.0.windows(2).all(|two| two[0].1 < two[1].0), "{spans:?}");
            let total = 70;
            let mut missing = [false; 100];
            for (from, to) in spans.gaps(total, piece) {
                assert!(from < to && to - from <= piece);
                missing[from as usize..to as usize].fill(true);
            }
            let there = |i: usize| bytes[i] || i >= total as usize;
            assert!((0..100).all(|i| missing[i] != there(i)));
        }
    }
}
