//! Documents as windows that a model can be asked about, and the sum of what it answers.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    ops::Range,
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use flow_plan::EvalAnswer;

/// The windows of a document of `length` tokens, as lm-evaluation-harness cuts them: which tokens (one more than go in), and
/// how many at the end are scored. They score disjoint runs of tokens; the input of a later one are the tokens right before
/// its end, so that the last, short run keeps a full context.
pub fn windows(length: usize, longest: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
    (1..length).step_by(longest).map(move |from| {
        let end = (from + longest).min(length);
        (end.saturating_sub(longest + 1)..end, end - from)
    })
}

/// The sum of −ln p over what was answered.
pub fn nll(answers: &Path) -> Result<f64> {
    let file = File::open(answers).with_context(|| format!("cannot open {}", answers.display()))?;
    let mut sum = 0.0;
    for line in BufReader::new(file).lines() {
        match serde_json::from_str(&line?).with_context(|| format!("cannot read {}", answers.display()))? {
            EvalAnswer::Score(scored) => sum -= scored.logprob,
            EvalAnswer::Generate(_) => bail!("{} answers what was not asked", answers.display()),
        }
    }
    Ok(sum)
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
