//! Documents as windows that a model can be asked about.

use std::ops::Range;

/// The windows of a document of `length` tokens, as lm-evaluation-harness cuts them: which tokens (one more than go in), and
/// how many at the end are scored. They score disjoint runs of tokens; the input of a later one are the tokens right before
/// its end, so that the last, short run keeps a full context.
pub fn windows(length: usize, longest: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
    (1..length).step_by(longest).map(move |from| {
        let end = (from + longest).min(length);
        (end.saturating_sub(longest + 1)..end, end - from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_scored_once() {
        for length in 0..40 {
            for longest in 1..12 {
                let mut next = 1;
                for (window, scored) in windows(length, longest) {
                    assert_eq!(window.end - scored, next);
                    assert!(window.len() <= longest + 1 && scored < window.len());
                    // A full left context, where there is that much before.
                    assert!(window.start == 0 || window.len() == longest + 1);
                    next = window.end;
                }
                assert_eq!(next, length.max(1));
            }
        }
    }
}
