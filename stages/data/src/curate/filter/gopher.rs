//! The rules of Rae et al. 2021, "Scaling Language Models: … Gopher", table A1 and its text: what looks like prose, and what
//! repeats itself.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Drop;
use crate::curate::{
    limits::Limit,
    text::{self, Word},
};

/// Gopher's rules of quality, with its thresholds. A word counts if it has a letter or digit. In texts that do without spaces
/// the lengths of words and the stop words say nothing, and are not looked at, and a comma is no word without a letter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Quality {
    /// Fewer words.
    pub min_doc_words: Limit,
    /// More words.
    pub max_doc_words: Limit,
    /// A smaller mean of the words' lengths in characters.
    pub min_avg_word_length: Limit,
    /// A greater one.
    pub max_avg_word_length: Limit,
    /// More `#`, or more ellipses, a word.
    pub max_symbol_word_ratio: Limit,
    /// A greater part of the lines begins with `•`, `-` or `・`.
    pub max_bullet_lines_ratio: Limit,
    /// A greater part of the lines ends with an ellipsis.
    pub max_ellipsis_lines_ratio: Limit,
    /// A smaller part of the words has a letter.
    pub min_alpha_words_ratio: Limit,
    /// Fewer of the stop words.
    pub min_stop_words: Limit,
    /// The stop words: English ones if nothing is said.
    pub stop_words: Vec<String>,
}

impl Default for Quality {
    fn default() -> Self {
        Self {
            min_doc_words: 50.0.into(),
            max_doc_words: 100_000.0.into(),
            min_avg_word_length: 3.0.into(),
            max_avg_word_length: 10.0.into(),
            max_symbol_word_ratio: 0.1.into(),
            max_bullet_lines_ratio: 0.9.into(),
            max_ellipsis_lines_ratio: 0.3.into(),
            min_alpha_words_ratio: 0.8.into(),
            min_stop_words: 2.0.into(),
            stop_words: ["the", "be", "to", "of", "and", "that", "have", "with"].map(str::to_owned).to_vec(),
        }
    }
}

impl Quality {
    /// The rules that are on, in the order in which they are asked.
    pub fn rules(&self) -> Vec<&'static str> {
        let rules = [
            (self.min_doc_words, "gopher_quality.min_doc_words"),
            (self.max_doc_words, "gopher_quality.max_doc_words"),
            (self.min_avg_word_length, "gopher_quality.min_avg_word_length"),
            (self.max_avg_word_length, "gopher_quality.max_avg_word_length"),
            (self.max_symbol_word_ratio, "gopher_quality.max_symbol_word_ratio"),
            (self.max_bullet_lines_ratio, "gopher_quality.max_bullet_lines_ratio"),
            (self.max_ellipsis_lines_ratio, "gopher_quality.max_ellipsis_lines_ratio"),
            (self.min_alpha_words_ratio, "gopher_quality.min_alpha_words_ratio"),
            (self.min_stop_words, "gopher_quality.min_stop_words"),
        ];
        rules.into_iter().filter(|rule| rule.0.0.is_some()).map(|rule| rule.1).collect()
    }

    /// Why a text goes, if it does.
    pub fn judge(&self, text: &str, words: &[Word<'_>]) -> Result<(), Drop> {
        let real = || words.iter().filter(|word| word.text.chars().any(char::is_alphanumeric));
        let (count, chars) = real().fold((0u64, 0u64), |sum, word| (sum.0 + 1, sum.1 + u64::from(word.chars)));
        let said = || format!("{count} words");
        Drop::when(self.min_doc_words.missed_by(count as f64), "gopher_quality.min_doc_words", said)?;
        Drop::when(self.max_doc_words.exceeded_by(count as f64), "gopher_quality.max_doc_words", said)?;
        let unspaced = text::is_unspaced(words);
        if count > 0 && !unspaced {
            let mean = chars as f64 / count as f64;
            let said = || format!("words of {mean:.2} characters");
            Drop::when(self.min_avg_word_length.missed_by(mean), "gopher_quality.min_avg_word_length", said)?;
            Drop::when(self.max_avg_word_length.exceeded_by(mean), "gopher_quality.max_avg_word_length", said)?;
        }
        let part = |of_them: usize, all: usize| if all == 0 { 0.0 } else { of_them as f64 / all as f64 };
        let ellipses = text.matches("...").count() + text.matches('…').count();
        for (symbols, what) in [(text.matches('#').count(), "#"), (ellipses, "ellipses")] {
            let ratio = part(symbols, words.len());
            let said = || format!("{ratio:.3} {what} a word");
            Drop::when(self.max_symbol_word_ratio.exceeded_by(ratio), "gopher_quality.max_symbol_word_ratio", said)?;
        }
        let lines = text::lines(text);
        let part_of_lines =
            |is: fn(&str) -> bool| part(lines.iter().filter(|line| is(text::strip(line))).count(), lines.len());
        let bullets = part_of_lines(|line| line.starts_with(['•', '-', '・']));
        let said = || format!("{bullets:.3} of the lines");
        Drop::when(self.max_bullet_lines_ratio.exceeded_by(bullets), "gopher_quality.max_bullet_lines_ratio", said)?;
        let ellipses = part_of_lines(|line| line.ends_with("...") || line.ends_with('…'));
        let said = || format!("{ellipses:.3} of the lines");
        Drop::when(
            self.max_ellipsis_lines_ratio.exceeded_by(ellipses),
            "gopher_quality.max_ellipsis_lines_ratio",
            said,
        )?;
        if !words.is_empty() {
            // Without spaces a comma is a piece by itself, where otherwise it is part of a word.
            let all = if unspaced { count as usize } else { words.len() };
            let alphabetic = words.iter().filter(|word| word.text.chars().any(char::is_alphabetic)).count();
            let ratio = part(alphabetic, all);
            let said = || format!("{ratio:.3} of the words");
            Drop::when(self.min_alpha_words_ratio.missed_by(ratio), "gopher_quality.min_alpha_words_ratio", said)?;
        }
        if !unspaced {
            let found = self.stop_words.iter().filter(|stop| words.iter().any(|word| word.text == **stop)).count();
            let said = || format!("{found} of them");
            Drop::when(self.min_stop_words.missed_by(found as f64), "gopher_quality.min_stop_words", said)?;
        }
        Ok(())
    }
}

/// Gopher's rules of repetition, with its thresholds: what part of the text is in lines, paragraphs or n-grams of words that
/// come again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Repetition {
    /// Of the lines, those that came before.
    pub dup_line_frac: Limit,
    /// Of the paragraphs, those that came before.
    pub dup_para_frac: Limit,
    /// Of the characters, those in lines that came before.
    pub dup_line_char_frac: Limit,
    /// Of the characters, those in paragraphs that came before.
    pub dup_para_char_frac: Limit,
    /// Of the characters, those in the most frequent pair of words.
    pub top_2_gram: Limit,
    /// In the most frequent three words.
    pub top_3_gram: Limit,
    /// In the most frequent four words.
    pub top_4_gram: Limit,
    /// Of the characters, those in five words that came before.
    pub dup_5_gram: Limit,
    /// In six words that came before.
    pub dup_6_gram: Limit,
    /// In seven.
    pub dup_7_gram: Limit,
    /// In eight.
    pub dup_8_gram: Limit,
    /// In nine.
    pub dup_9_gram: Limit,
    /// In ten.
    pub dup_10_gram: Limit,
}

impl Default for Repetition {
    fn default() -> Self {
        Self {
            dup_line_frac: 0.3.into(),
            dup_para_frac: 0.3.into(),
            dup_line_char_frac: 0.2.into(),
            dup_para_char_frac: 0.2.into(),
            top_2_gram: 0.2.into(),
            top_3_gram: 0.18.into(),
            top_4_gram: 0.16.into(),
            dup_5_gram: 0.15.into(),
            dup_6_gram: 0.14.into(),
            dup_7_gram: 0.13.into(),
            dup_8_gram: 0.12.into(),
            dup_9_gram: 0.11.into(),
            dup_10_gram: 0.1.into(),
        }
    }
}

impl Repetition {
    fn tops(&self) -> [(usize, Limit, &'static str); 3] {
        [
            (2, self.top_2_gram, "gopher_repetition.top_2_gram"),
            (3, self.top_3_gram, "gopher_repetition.top_3_gram"),
            (4, self.top_4_gram, "gopher_repetition.top_4_gram"),
        ]
    }

    fn duplicates(&self) -> [(usize, Limit, &'static str); 6] {
        [
            (5, self.dup_5_gram, "gopher_repetition.dup_5_gram"),
            (6, self.dup_6_gram, "gopher_repetition.dup_6_gram"),
            (7, self.dup_7_gram, "gopher_repetition.dup_7_gram"),
            (8, self.dup_8_gram, "gopher_repetition.dup_8_gram"),
            (9, self.dup_9_gram, "gopher_repetition.dup_9_gram"),
            (10, self.dup_10_gram, "gopher_repetition.dup_10_gram"),
        ]
    }

    /// Every threshold with its name.
    pub fn limits(&self) -> Vec<(Limit, &'static str)> {
        let mut limits = vec![
            (self.dup_para_frac, "gopher_repetition.dup_para_frac"),
            (self.dup_para_char_frac, "gopher_repetition.dup_para_char_frac"),
            (self.dup_line_frac, "gopher_repetition.dup_line_frac"),
            (self.dup_line_char_frac, "gopher_repetition.dup_line_char_frac"),
        ];
        limits.extend(self.tops().into_iter().chain(self.duplicates()).map(|(_, limit, rule)| (limit, rule)));
        limits
    }

    /// The rules that are on, in the order in which they are asked.
    pub fn rules(&self) -> Vec<&'static str> {
        let on = self.limits().into_iter().filter(|rule| rule.0.0.is_some()).map(|rule| rule.1);
        std::iter::once("gopher_repetition.empty").chain(on).collect()
    }

    /// Why a text goes, if it does.
    pub fn judge(&self, text: &str, words: &[Word<'_>]) -> Result<(), Drop> {
        Drop::when(text.is_empty(), "gopher_repetition.empty", String::new)?;
        let chars = text.chars().count() as f64;
        for (parts, what, limits) in [
            (
                split(text::strip(text), 2),
                "paragraphs",
                [
                    (self.dup_para_frac, "gopher_repetition.dup_para_frac"),
                    (self.dup_para_char_frac, "gopher_repetition.dup_para_char_frac"),
                ],
            ),
            (
                split(text, 1),
                "lines",
                [
                    (self.dup_line_frac, "gopher_repetition.dup_line_frac"),
                    (self.dup_line_char_frac, "gopher_repetition.dup_line_char_frac"),
                ],
            ),
        ] {
            let (again, chars_again) = repeated(&parts);
            let shares = [again as f64 / parts.len() as f64, chars_again as f64 / chars];
            for ((limit, rule), (share, what)) in limits.into_iter().zip(shares.into_iter().zip([what, "characters"])) {
                Drop::when(limit.exceeded_by(share), rule, || format!("{share:.3} of the {what}"))?;
            }
        }
        let mut grams = Grams::new(words);
        for (n, limit, rule) in self.tops().into_iter().filter(|rule| rule.1.0.is_some()) {
            let share = grams.top(n) as f64 / chars;
            Drop::when(limit.exceeded_by(share), rule, || format!("{share:.3} of the characters"))?;
        }
        for (n, limit, rule) in self.duplicates().into_iter().filter(|rule| rule.1.0.is_some()) {
            let share = grams.repeated(n) as f64 / chars;
            Drop::when(limit.exceeded_by(share), rule, || format!("{share:.3} of the characters"))?;
        }
        Ok(())
    }
}

/// What stands between runs of `least` newlines or more.
fn split(text: &str, least: usize) -> Vec<&str> {
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        let run = bytes[at..].iter().take_while(|byte| **byte == b'\n').count();
        if run >= least {
            parts.push(&text[start..at]);
            start = at + run;
        }
        at += run.max(1);
    }
    parts.push(&text[start..]);
    parts
}

/// How many of these came before, and how many characters they have.
fn repeated(parts: &[&str]) -> (usize, usize) {
    let mut seen = HashSet::with_capacity(parts.len());
    let again = parts.iter().filter(|part| !seen.insert(**part));
    again.fold((0, 0), |sum, part| (sum.0 + 1, sum.1 + part.chars().count()))
}

/// N-grams of words, known by digests of 64 bits.
struct Grams {
    words: Vec<u64>,
    /// Characters before each word, and before the end; and the same with the spaces between words.
    chars: Vec<u32>,
    with_spaces: Vec<u32>,
    seen: HashMap<u64, (u32, u32), BuildHasherDefault<Already>>,
}

/// Digests need no hashing.
#[derive(Default)]
struct Already(u64);

impl Hasher for Already {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only numbers are hashed");
    }
    fn write_u64(&mut self, digest: u64) {
        self.0 = digest;
    }
}

fn mixed(digest: u64) -> u64 {
    let digest = (digest ^ digest >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let digest = (digest ^ digest >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    digest ^ digest >> 31
}

impl Grams {
    const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

    fn new(words: &[Word<'_>]) -> Self {
        let digest = |word: &Word<'_>| {
            let fold = |digest: u64, byte: &u8| (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            mixed(word.text.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, fold))
        };
        let (mut chars, mut with_spaces) = (vec![0], vec![0]);
        for (i, word) in words.iter().enumerate() {
            chars.push(chars[i] + word.chars);
            with_spaces.push(with_spaces[i] + word.chars + u32::from(word.spaced));
        }
        Self { words: words.iter().map(digest).collect(), chars, with_spaces, seen: HashMap::default() }
    }

    /// The digest of the `n` words from each place on.
    fn digests(words: &[u64], n: usize) -> impl Iterator<Item = u64> {
        // What the first of n words is multiplied with.
        let first = (1..n).fold(1u64, |power, _| power.wrapping_mul(Self::BASE));
        let mut rolling =
            words.iter().take(n - 1).fold(0u64, |sum, word| sum.wrapping_mul(Self::BASE).wrapping_add(*word));
        (0..(words.len() + 1).saturating_sub(n)).map(move |at| {
            rolling = rolling.wrapping_mul(Self::BASE).wrapping_add(words[at + n - 1]);
            let gram = rolling;
            rolling = rolling.wrapping_sub(words[at].wrapping_mul(first));
            mixed(gram)
        })
    }

    /// How many characters the most frequent n-gram takes, with the spaces in it; the first of several.
    fn top(&mut self, n: usize) -> u64 {
        self.seen.clear();
        for (at, gram) in Self::digests(&self.words, n).enumerate() {
            self.seen.entry(gram).or_insert((0, at as u32)).0 += 1;
        }
        let most = self.seen.values().max_by_key(|(count, first)| (*count, std::cmp::Reverse(*first)));
        most.map_or(0, |(count, first)| {
            let at = *first as usize;
            // Not the space before its first word.
            let start = self.with_spaces[at + 1] - (self.chars[at + 1] - self.chars[at]);
            u64::from(*count) * u64::from(self.with_spaces[at + n] - start)
        })
    }

    /// How many characters are in n-grams that came before, none of them counted twice.
    fn repeated(&mut self, n: usize) -> u64 {
        self.seen.clear();
        let (mut chars, mut next) = (0, 0);
        for (at, gram) in Self::digests(&self.words, n).enumerate() {
            if at < next {
                continue;
            }
            next = at + 1;
            if self.seen.insert(gram, (0, 0)).is_some() {
                chars += u64::from(self.chars[at + n] - self.chars[at]);
                next = at + n;
            }
        }
        chars
    }
}
