//! Megatron's `split` string ("98,1,1") and numpy's sum, which decides the last bit of a normalised weight.

use std::ops::Range;

use anyhow::{Context as _, Result, bail, ensure};

/// The parts of one source that train, validate and test, as fractions; `None` where a part is empty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Splits(pub(crate) [Option<(f64, f64)>; 3]);

impl Splits {
    /// Everything for training.
    pub const ALL: Self = Self([Some((0.0, 1.0)), None, None]);

    /// Reads `"98,1,1"`: numbers separated by anything else, in proportion; missing ones are 0.
    ///
    /// # Errors
    /// Not one to three numbers, or all of them 0.
    pub fn parse(text: &str) -> Result<Self> {
        let parts: Vec<f64> = text
            .split(|c: char| c != '.' && !c.is_ascii_digit())
            .filter(|part| !part.is_empty())
            .map(|part| part.parse().with_context(|| format!("`{part}` in splits `{text}` is not a number")))
            .collect::<Result<_>>()?;
        ensure!((1..=3).contains(&parts.len()), "splits `{text}` need one to three numbers, such as `98,1,1`");
        let parts = [0, 1, 2].map(|i| parts.get(i).copied().unwrap_or(0.0));
        if parts.iter().sum::<f64>() <= 0.0 {
            bail!("splits `{text}` leave nothing: at least one number must be above 0");
        }
        let parts = normalize(&parts);
        let mut from = 0.0;
        Ok(Self([0, 1, 2].map(|i| {
            let to = from + parts[i];
            let part = (to > from).then_some((from, to));
            from = to;
            part
        })))
    }

    /// The sequences of a source of `n` sequences that part `split` (0 train, 1 validation, 2 test) gets.
    pub fn range(&self, split: usize, n: usize) -> Option<Range<usize>> {
        let (from, to) = self.0[split]?;
        let bound = |x: f64| (x * n as f64).round_ties_even() as usize;
        Some(bound(from)..bound(to))
    }
}

/// Weights divided by their sum, to the bit as numpy does it.
pub fn normalize(weights: &[f64]) -> Vec<f64> {
    let sum = pairwise_sum(weights);
    weights.iter().map(|weight| weight / sum).collect()
}

/// `numpy.sum` of contiguous float64: eight accumulators in blocks of 128, halves above.
fn pairwise_sum(values: &[f64]) -> f64 {
    let n = values.len();
    if n < 8 {
        values.iter().sum()
    } else if n <= 128 {
        let mut r: [f64; 8] = std::array::from_fn(|i| values[i]);
        let whole = n - n % 8;
        for block in values[8..whole].chunks_exact(8) {
            for (sum, value) in r.iter_mut().zip(block) {
                *sum += value;
            }
        }
        let sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
        values[whole..].iter().fold(sum, |sum, value| sum + value)
    } else {
        let half = n / 2 - (n / 2) % 8;
        pairwise_sum(&values[..half]) + pairwise_sum(&values[half..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_megatrons() {
        let splits = Splits::parse("98,1,1").unwrap();
        // Of 818 sequences, as Megatron's builder cuts them.
        assert_eq!([0, 1, 2].map(|i| splits.range(i, 818).unwrap()), [0..802, 802..810, 810..818]);
        let two = Splits::parse("99, 1").unwrap();
        assert_eq!(two.range(2, 100), None);
        assert_eq!(two.range(0, 100), Some(0..99));
        assert_eq!(Splits::parse("7").unwrap(), Splits::ALL);
        // Half to even: 0.5 · 5 = 2.5 → 2.
        assert_eq!(Splits::parse("1,1").unwrap().range(0, 5), Some(0..2));
        for bad in ["", "a,b", "0,0", "1,1,1,1", "1.2.3"] {
            assert!(Splits::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_long_sum_is_exact_for_integers_and_near_for_others() {
        for n in [7, 8, 9, 127, 128, 129, 1000] {
            let whole: Vec<f64> = (0..n).map(f64::from).collect();
            assert_eq!(pairwise_sum(&whole), f64::from(n * (n - 1) / 2));
        }
        let tenths = vec![0.1; 1000];
        // numpy.sum(numpy.full(1000, 0.1)), where a plain loop gives 99.9999999999986.
        assert_eq!(pairwise_sum(&tenths), 100.000_000_000_000_01);
    }
}
