//! Python's `random.Random`, to the bit: few-shot examples and bootstrapped errors are those of lm-evaluation-harness.

use std::collections::HashSet;

use flow_plan::RandomState;

/// `random.Random(seed)`.
#[derive(Clone, Debug)]
pub struct Random(RandomState);

impl Random {
    /// Seeds as Python does for an integer that is not negative.
    pub fn new(seed: u64) -> Self {
        let words = [seed as u32, (seed >> 32) as u32];
        Self(RandomState::of_words(&words[..if words[1] == 0 { 1 } else { 2 }]))
    }

    /// A number below `n`: `_randbelow`.
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let value = (self.0.next_u32() >> (32 - bits.clamp(1, 32))) as usize;
            if value < n {
                return value;
            }
        }
    }

    /// One of `choices(range(n), k=…)`.
    pub fn choice(&mut self, n: usize) -> usize {
        let (high, low) = (self.0.next_u32() >> 5, self.0.next_u32() >> 6);
        let random = (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0;
        (random * n as f64) as usize
    }

    /// `sample(range(n), k)`; at most all of them.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        let k = k.min(n);
        // Where a set of those that are taken would be smaller than a list of all.
        let large = if k > 5 { std::iter::successors(Some(1), |n| Some(n * 4)).find(|n| *n > k * 3) } else { None };
        if n <= 21 + large.unwrap_or(0) {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..k)
                .map(|i| {
                    let at = self.below(n - i);
                    let chosen = pool[at];
                    pool[at] = pool[n - i - 1];
                    chosen
                })
                .collect();
        }
        let mut seen = HashSet::with_capacity(k);
        (0..k)
            .map(|_| {
                loop {
                    let at = self.below(n);
                    if seen.insert(at) {
                        return at;
                    }
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By CPython 3.11.
    #[test]
    fn draws_are_pythons() {
        let seeds = [0, 1234, (1 << 40) + 5];
        let samples = [[6, 9, 0], [7, 1, 0], [8, 9, 4]];
        let large = [[864, 394, 776, 911, 430, 41], [989, 796, 451, 119, 7, 92], [516, 529, 275, 679, 948, 28]];
        let choices = [[42, 37, 21, 12, 25], [48, 22, 0, 45, 46], [25, 13, 46, 26, 40]];
        for (i, seed) in seeds.into_iter().enumerate() {
            assert_eq!(Random::new(seed).sample(10, 3), samples[i]);
            assert_eq!(Random::new(seed).sample(1000, 6), large[i]);
            let mut random = Random::new(seed);
            assert_eq!([(); 5].map(|()| random.choice(50)), choices[i]);
        }
        let sizes = [(85, 8), (86, 8), (277, 30), (278, 30), (21, 5), (22, 5)];
        let last = [[68, 12, 46], [9, 68, 12], [56, 11, 142], [68, 148, 73], [12, 1, 2], [12, 20, 1]];
        for ((n, k), last) in sizes.into_iter().zip(last) {
            assert!(Random::new(7).sample(n, k).ends_with(&last), "{n} {k}");
        }
        assert_eq!(Random::new(1).sample(2, 5).len(), 2);
    }
}
