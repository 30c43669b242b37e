//! numpy's legacy `RandomState`: MT19937 seeded by one integer, and its in-place shuffle. Bit-exact, since the order
//! of the training samples hangs on it. Python's own generator is the same with another seeding.

const N: usize = 624;
const M: usize = 397;

/// The state of `numpy.random.RandomState(seed)`.
#[derive(Clone, Debug)]
pub struct RandomState {
    key: [u32; N],
    position: usize,
}

impl RandomState {
    /// Seeds as `RandomState(seed)` does for one integer (`init_genrand` of the reference MT19937).
    #[must_use]
    pub fn new(seed: u32) -> Self {
        let mut key = [0; N];
        key[0] = seed;
        for i in 1..N {
            let last = key[i - 1];
            key[i] = 1_812_433_253_u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Self { key, position: N }
    }

    /// Seeds with several words, as Python's `random.Random` does (`init_by_array` of the reference MT19937).
    #[must_use]
    pub fn of_words(words: &[u32]) -> Self {
        let mut state = Self::new(19_650_218);
        let key = &mut state.key;
        let mut at = 1;
        let mut mix = |by: u32, more: &dyn Fn(usize) -> u32| {
            let before = key[at - 1] ^ (key[at - 1] >> 30);
            key[at] = (key[at] ^ before.wrapping_mul(by)).wrapping_add(more(at));
            at += 1;
            if at == N {
                (key[0], at) = (key[N - 1], 1);
            }
        };
        for (j, word) in words.iter().enumerate().cycle().take(N.max(words.len())) {
            mix(1_664_525, &|_| word.wrapping_add(j as u32));
        }
        for _ in 1..N {
            mix(1_566_083_941, &|at| (at as u32).wrapping_neg());
        }
        key[0] = 0x8000_0000;
        state
    }

    /// Draws 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.position == N {
            self.refill();
        }
        let mut y = self.key[self.position];
        self.position += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn refill(&mut self) {
        for i in 0..N {
            let y = (self.key[i] & 0x8000_0000) | (self.key[(i + 1) % N] & 0x7fff_ffff);
            let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.key[i] = self.key[(i + M) % N] ^ (y >> 1) ^ twist;
        }
        self.position = 0;
    }

    /// A number in `0..=max`, by masked rejection.
    fn up_to(&mut self, max: u32) -> u32 {
        if max == 0 {
            return 0;
        }
        let mask = u32::MAX >> max.leading_zeros();
        loop {
            let value = self.next_u32() & mask;
            if value <= max {
                return value;
            }
        }
    }

    /// `RandomState.shuffle` of a one-dimensional array of fewer than 2³² entries.
    ///
    /// # Panics
    /// The array is longer: callers refuse such data first.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let max = u32::try_from(i).expect("fewer than 2^32 entries");
            items.swap(i, self.up_to(max) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_those_of_the_reference() {
        // The well-known first and 10,000th outputs of MT19937 for seed 5489 (C++ [rand.predef]).
        let mut state = RandomState::new(5489);
        assert_eq!(state.next_u32(), 3_499_211_612);
        let last = (1..10_000).map(|_| state.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn a_shuffle_is_a_permutation_and_depends_on_the_seed() {
        let shuffled = |seed| {
            let mut items: Vec<u32> = (0..1000).collect();
            RandomState::new(seed).shuffle(&mut items);
            items
        };
        let (one, two) = (shuffled(1), shuffled(2));
        assert_ne!(one, two);
        for mut items in [one, two] {
            items.sort_unstable();
            assert!(items.into_iter().eq(0..1000));
        }
    }
}
