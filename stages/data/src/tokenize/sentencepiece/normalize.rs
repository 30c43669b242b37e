//! Text as a model wants it: characters replaced, white space tamed, and spaces written as `▁`.

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};
use anyhow::{Context, Result, ensure};

use super::proto;

/// What is written for a space.
pub const SPACE: &str = "▁";

/// What a model does to a text first.
pub struct Normalizer {
    rules: Option<Rules>,
    /// Symbols that are kept as they are.
    symbols: Option<Symbols>,
    add_prefix: bool,
    tame_spaces: bool,
}

impl Normalizer {
    /// As the model says it.
    ///
    /// # Errors
    /// Its rules are damaged.
    pub fn new(written: &proto::Normalizer, symbols: &[&str]) -> Result<Self> {
        let rules = if written.charsmap.is_empty() { None } else { Some(Rules::new(&written.charsmap)?) };
        Ok(Self {
            rules,
            symbols: Symbols::new(symbols)?,
            add_prefix: written.add_dummy_prefix.unwrap_or(true),
            tame_spaces: written.remove_extra_whitespaces.unwrap_or(true),
        })
    }

    /// Whether a text begins with a space that is not its own.
    pub fn adds_prefix(&self) -> bool {
        self.add_prefix
    }

    /// The text, normalized.
    pub fn normalize(&self, text: &str) -> String {
        let mut rest = text;
        if self.tame_spaces {
            while let Some((" ", behind)) = self.first(rest) {
                rest = behind;
            }
        }
        let mut out = String::with_capacity(text.len() + text.len() / 4 + 3);
        if rest.is_empty() {
            return out;
        }
        if self.add_prefix {
            out.push_str(SPACE);
        }
        let mut behind_space = self.tame_spaces;
        while let Some((mut piece, behind)) = self.first(rest) {
            if behind_space {
                piece = piece.trim_start_matches(' ');
            }
            for part in piece.split_inclusive(' ') {
                match part.strip_suffix(' ') {
                    Some(word) => out.extend([word, SPACE]),
                    None => out.push_str(part),
                }
            }
            if !piece.is_empty() {
                behind_space = self.tame_spaces && piece.ends_with(' ');
            }
            rest = behind;
        }
        if self.tame_spaces {
            out.truncate(out.trim_end_matches(SPACE).len());
        }
        out
    }

    /// What the beginning of a text becomes, and what is behind it; none at its end.
    fn first<'t>(&'t self, text: &'t str) -> Option<(&'t str, &'t str)> {
        if let Some(length) = self.symbols.as_ref().and_then(|symbols| symbols.first(text)) {
            return Some(text.split_at(length));
        }
        let char = text.chars().next()?;
        match self.rules.as_ref().and_then(|rules| rules.first(text)) {
            Some((replaced, length)) => Some((replaced, &text[length..])),
            None => Some(text.split_at(char.len_utf8())),
        }
    }
}

/// Symbols that a text is searched for before anything else.
pub struct Symbols(AhoCorasick);

impl Symbols {
    /// None if there are none.
    ///
    /// # Errors
    /// There are too many.
    pub fn new(symbols: &[&str]) -> Result<Option<Self>> {
        if symbols.is_empty() {
            return Ok(None);
        }
        let mut builder = AhoCorasick::builder();
        let search = builder.match_kind(MatchKind::LeftmostLongest).start_kind(StartKind::Anchored).build(symbols)?;
        Ok(Some(Self(search)))
    }

    /// How long the longest is that a text begins with.
    pub fn first(&self, text: &str) -> Option<usize> {
        let found = self.0.find(Input::new(text).anchored(Anchored::Yes))?;
        Some(found.end()).filter(|length| *length > 0)
    }
}

/// Replacements, of which the longest holds: a trie in a double array, as Darts writes it, and texts.
struct Rules {
    trie: Vec<u32>,
    texts: String,
}

impl Rules {
    fn new(written: &[u8]) -> Result<Self> {
        let (size, rest) = written.split_first_chunk::<4>().context("its rules of normalization are cut off")?;
        let size = u32::from_le_bytes(*size) as usize;
        ensure!(size.is_multiple_of(4) && size <= rest.len() && size > 0, "its rules of normalization are damaged");
        let (trie, texts) = rest.split_at(size);
        let trie = trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        let texts = String::from_utf8(texts.to_vec()).context("its rules of normalization are damaged")?;
        Ok(Self { trie, texts })
    }

    /// What the beginning of a text is replaced with, and how long that is.
    fn first(&self, text: &str) -> Option<(&str, usize)> {
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut place = offset(*self.trie.first()?);
        let mut found = None;
        for (at, byte) in text.bytes().enumerate() {
            place ^= usize::from(byte);
            let unit = self.trie.get(place).copied().unwrap_or(0);
            if byte == 0 || unit & (1 << 31 | 0xff) != u32::from(byte) {
                break;
            }
            place ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                let value = self.trie.get(place).copied().unwrap_or(0) & ((1 << 31) - 1);
                found = Some((value as usize, at + 1));
            }
        }
        let (start, length) = found?;
        let replaced = self.texts.get(start..)?;
        Some((replaced.split('\0').next()?, length))
    }
}
