//! Normally distributed numbers that are the same on every machine, in any order and from any thread.
//!
//! Element pair `i` of tensor `name` comes from Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers:
//! as easy as 1, 2, 3", SC 2011) with the seed as its key and the counter (i, BLAKE3(name)): 64 bits each for the two
//! uniforms of the Box-Muller transform. Logarithm and cosine are not taken from the machine's libraries, which
//! differ in the last bit, but computed here with additions, multiplications and divisions alone, which IEEE 754
//! fixes to the bit; so is the square root.

/// The numbers of one tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Normal {
    key: [u32; 2],
    tensor: [u32; 2],
    deviation: f64,
}

impl Normal {
    pub(super) fn new(seed: u64, tensor: &str, deviation: f64) -> Self {
        let hash = blake3::hash(tensor.as_bytes());
        let word = |at: usize| u32::from_le_bytes(hash.as_bytes()[at..at + 4].try_into().expect("four bytes"));
        Self { key: [seed as u32, (seed >> 32) as u32], tensor: [word(0), word(4)], deviation }
    }

    /// Gives elements `from..from + count`, in order.
    pub(super) fn run(&self, from: u64, count: u64, mut put: impl FnMut(f32)) {
        let mut at = from;
        while at < from + count {
            let [even, odd] = self.pair(at / 2);
            if at.is_multiple_of(2) {
                put((even * self.deviation) as f32);
                at += 1;
                if at == from + count {
                    return;
                }
            }
            put((odd * self.deviation) as f32);
            at += 1;
        }
    }

    /// Two independent numbers with mean 0 and deviation 1.
    fn pair(&self, i: u64) -> [f64; 2] {
        let [a, b, c, d] = philox([i as u32, (i >> 32) as u32, self.tensor[0], self.tensor[1]], self.key);
        let word = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        // (0, 1] in steps of 2⁻⁵³: never 0, whose logarithm there is not.
        let u = ((word(a, b) >> 11) + 1) as f64 / (1u64 << 53) as f64;
        let radius = (-2.0 * ln(u)).sqrt();
        let (sin, cos) = turn(word(c, d));
        [radius * cos, radius * sin]
    }
}

/// Philox4x32 with ten rounds.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [a, b] = [u64::from(counter[0]) * 0xd251_1f53, u64::from(counter[2]) * 0xcd9e_8d57];
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

/// The natural logarithm of a positive normal number.
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i64 - 1023;
    let mut mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        exponent += 1;
    }
    // ln m = 2 artanh((m-1)/(m+1)), where |(m-1)/(m+1)| < 0.172: 12 terms are enough for the last bit.
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let square = t * t;
    let mut sum = 0.0;
    for k in (0..12).rev() {
        sum = sum * square + 1.0 / f64::from(2 * k + 1);
    }
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * t * sum
}

/// Sine and cosine of an angle given as a fraction of a full turn in units of 2⁻⁶⁴.
fn turn(angle: u64) -> (f64, f64) {
    // The upper two bits are the quarter; the rest, centred, is an angle of at most an eighth of a turn.
    let quarter = (angle.wrapping_add(1 << 61) >> 62) & 3;
    let rest = (angle as i64).wrapping_sub((quarter << 62) as i64);
    let x = (rest >> 11) as f64 / (1u64 << 53) as f64 * (2.0 * std::f64::consts::PI);
    let square = x * x;
    let series = |first: i32| {
        let mut sum = 0.0;
        for k in (1..=8).rev() {
            let n = f64::from(2 * k + first);
            sum = (1.0 + sum) * (-square / (n * (n - 1.0)));
        }
        1.0 + sum
    };
    let (sin, cos) = (x * series(1), series(0));
    match quarter {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the paper's reference implementation (Random123, kat_vectors).
    #[test]
    fn philox_is_philox() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn the_functions_are_what_their_names_say() {
        for i in 1..2000u64 {
            let x = i as f64 / 2000.0;
            assert!((ln(x) - x.ln()).abs() <= 4e-16 * x.ln().abs().max(1.0), "ln {x}");
            let angle = i * (u64::MAX / 2000);
            let radians = (angle >> 11) as f64 / (1u64 << 53) as f64 * std::f64::consts::TAU;
            let (sin, cos) = turn(angle);
            assert!((sin - radians.sin()).abs() < 1e-14 && (cos - radians.cos()).abs() < 1e-14, "{radians}");
        }
        assert!((ln(1.0 / (1u64 << 53) as f64) + 53.0 * std::f64::consts::LN_2).abs() < 1e-14);
    }

    #[test]
    fn the_numbers_are_normal() {
        let mut values = Vec::new();
        Normal::new(7, "t", 1.0).run(0, 200_000, |value| values.push(f64::from(value)));
        let n = values.len() as f64;
        let moment = |k: i32| values.iter().map(|value| value.powi(k)).sum::<f64>() / n;
        let within = |limit: f64| values.iter().filter(|value| value.abs() < limit).count() as f64 / n;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.02 && moment(3).abs() < 0.03);
        assert!((moment(4) - 3.0).abs() < 0.1, "{}", moment(4));
        assert!((within(1.0) - 0.6827).abs() < 0.005 && (within(2.0) - 0.9545).abs() < 0.003);
    }

    #[test]
    fn elements_do_not_depend_on_where_one_begins() {
        let normal = Normal::new(42, "model.norm.weight", 0.02);
        let run = |from, count| {
            let mut values = Vec::new();
            normal.run(from, count, |value| values.push(value));
            values
        };
        let all = run(0, 101);
        for from in 0..8 {
            assert_eq!(run(from, 101 - from), all[from as usize..]);
        }
        assert_ne!(all[..2], run(2, 2)[..]);
        let mut other = Vec::new();
        Normal::new(43, "model.norm.weight", 0.02).run(0, 101, |value| other.push(value));
        assert_ne!(all, other);
        // The definition of the generator: a change here changes every model that was made with it.
        assert_eq!(all[..2].iter().map(|value| value.to_bits()).collect::<Vec<_>>(), [1_018_367_045, 1_012_537_739]);
    }
}
