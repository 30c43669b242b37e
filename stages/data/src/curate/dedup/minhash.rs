//! MinHash with banding: what two documents that are nearly the same have in common, most likely.
//!
//! A document is the set of its shingles: every `ngram` words, or characters, in a row, of the text in NFKC, in small
//! letters, without what is neither letter nor digit. `bands` × `rows` hash functions each give the smallest hash of a
//! shingle; the smallest hashes of two sets are the same with the probability of their Jaccard similarity *s*. Documents
//! that agree in all the rows of one band are taken for the same: with probability 1 − (1 − *s*^rows)^bands.

use unicode_normalization::UnicodeNormalization;

use crate::curate::text::words;

/// What a shingle is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Word,
    Character,
}

/// The hash functions.
pub struct MinHash {
    unit: Unit,
    ngram: usize,
    rows: usize,
    /// Odd factors, and summands: the upper half of factor · shingle + summand is the hash.
    functions: Vec<(u64, u64)>,
}

impl MinHash {
    /// `bands` × `rows` functions, which follow from the seed.
    pub fn new(unit: Unit, ngram: usize, bands: usize, rows: usize, seed: u64) -> Self {
        let mut random = blake3::Hasher::new().update(b"flow minhash\n").update(&seed.to_le_bytes()).finalize_xof();
        let mut next = || {
            let mut bytes = [0; 8];
            random.fill(&mut bytes);
            u64::from_le_bytes(bytes)
        };
        let functions = (0..bands * rows).map(|_| (next() | 1, next())).collect();
        Self { unit, ngram, rows, functions }
    }

    /// A digest for each band; none of a text without letters and digits.
    pub fn bands(&self, text: &str) -> Vec<[u8; 16]> {
        let shingles = self.shingles(text);
        if shingles.is_empty() {
            return Vec::new();
        }
        let mut smallest = vec![u32::MAX; self.functions.len()];
        for shingle in shingles {
            for (smallest, (factor, summand)) in smallest.iter_mut().zip(&self.functions) {
                let hash = (factor.wrapping_mul(shingle).wrapping_add(*summand) >> 32) as u32;
                *smallest = hash.min(*smallest);
            }
        }
        let digest = |(band, rows): (usize, &[u32])| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&(band as u64).to_le_bytes());
            for row in rows {
                hasher.update(&row.to_le_bytes());
            }
            let mut digest = [0; 16];
            hasher.finalize_xof().fill(&mut digest);
            digest
        };
        smallest.chunks(self.rows).enumerate().map(digest).collect()
    }

    /// The digests of the shingles, each once. A text that is shorter than a shingle is one.
    fn shingles(&self, text: &str) -> Vec<u64> {
        let text: String = text.nfkc().flat_map(char::to_lowercase).collect();
        let units: Vec<u64> = match self.unit {
            Unit::Word => {
                let digest = |word: &str| {
                    let letters = word.chars().filter(|c| c.is_alphanumeric());
                    letters.fold(None, |sum: Option<u64>, c| Some(mixed(sum.unwrap_or(1), u64::from(u32::from(c)))))
                };
                words(&text).into_iter().filter_map(|word| digest(word.text)).collect()
            }
            Unit::Character => text.chars().filter(|c| c.is_alphanumeric()).map(|c| u64::from(u32::from(c))).collect(),
        };
        let length = self.ngram.min(units.len()).max(1);
        let shingle = |units: &[u64]| units.iter().fold(0, |sum, unit| mixed(sum, *unit));
        let mut shingles: Vec<u64> = units.windows(length).map(shingle).collect();
        shingles.sort_unstable();
        shingles.dedup();
        shingles
    }
}

fn mixed(sum: u64, next: u64) -> u64 {
    let mut sum = (sum.rotate_left(23) ^ next).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    sum = (sum ^ sum >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    sum ^ sum >> 32
}

/// The bands and rows, of at most `functions` together, by which as few as possible of those less similar than
/// `similarity` are taken for the same and of those more similar for others, if all similarities are equally frequent.
pub fn bands_and_rows(similarity: f64, functions: usize) -> (usize, usize) {
    const STEPS: usize = 1000;
    let area = |from: f64, to: f64, error: &dyn Fn(f64) -> f64| {
        let width = (to - from) / STEPS as f64;
        (0..STEPS).map(|step| error(from + (step as f64 + 0.5) * width) * width).sum::<f64>()
    };
    let mut best = (f64::INFINITY, (1, 1));
    for bands in 1..=functions {
        for rows in 1..=functions / bands {
            let same = |s: f64| 1.0 - (1.0 - s.powi(rows as i32)).powi(bands as i32);
            let error = area(0.0, similarity, &same) + area(similarity, 1.0, &|s| 1.0 - same(s));
            if error < best.0 {
                best = (error, (bands, rows));
            }
        }
    }
    best.1
}
