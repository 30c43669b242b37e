//! The regular expressions with which byte-level tokenizers cut text into pieces, by hand: those of GPT-2, of Llama 3 and
//! of its kin. What letters, numbers and spaces are is asked of the reference's engine, once a process.

use std::sync::LazyLock;

use tokenizers::{pattern::Pattern, utils::SysRegex};

/// Cuts text as a regular expression would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Splitter {
    /// The expression of GPT-2.
    Gpt2,
    /// The expression of Llama 3, with so many digits in a piece at most.
    Llama3 {
        /// 3 in Llama 3, 1 in Qwen 2.
        digits: usize,
    },
}

impl Splitter {
    /// The splitter for a regular expression, which takes every match as a piece, and what is between too.
    pub fn of_regex(regex: &str) -> Option<Self> {
        const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|";
        const REST: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        if regex == GPT2 {
            return Some(Self::Gpt2);
        }
        match regex.strip_prefix(WORDS)?.strip_suffix(REST)? {
            r"\p{N}{1,3}" => Some(Self::Llama3 { digits: 3 }),
            r"\p{N}" => Some(Self::Llama3 { digits: 1 }),
            _ => None,
        }
    }

    /// Gives the pieces of a text.
    #[inline(always)]
    pub fn split<'t>(self, text: &'t str, mut take: impl FnMut(&'t str)) {
        let mut rest = Text { classes: &CLASSES, text };
        while let Some((class, first)) = rest.first() {
            let end = match self {
                Self::Gpt2 => rest.gpt2(class, first),
                Self::Llama3 { digits } => rest.llama3(class, first, digits),
            };
            let (piece, behind) = rest.text.split_at(end);
            take(piece);
            rest.text = behind;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Other,
    Letter,
    Number,
    /// White space, but for line ends.
    Space,
    /// `\r` and `\n`.
    LineEnd,
}

use Class::{Letter, LineEnd, Number, Other, Space};

static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::new);

/// Asks now, and not when the first text comes.
pub fn prepare() {
    LazyLock::force(&CLASSES);
}

/// The classes of all characters.
struct Classes {
    /// By character / [`PAGE`]: which page of `classes`.
    pages: Vec<u16>,
    classes: Vec<Class>,
}

/// Characters whose classes lie together.
const PAGE: usize = 256;

impl Classes {
    /// Asks the engine about all planes with characters of some class.
    fn new() -> Self {
        let mut classes = Self { pages: vec![0; 0x11_0000 / PAGE], classes: vec![Other; PAGE] };
        let all: String = ('\0'..'\u{40000}').chain('\u{e0000}'..'\u{f0000}').collect();
        for (class, regex) in [(Letter, r"\p{L}+"), (Number, r"\p{N}+"), (Space, r"\s+")] {
            let regex = SysRegex::new(regex).expect("a regular expression");
            for ((start, end), _) in (&regex).find_matches(&all).expect("a search").into_iter().filter(|found| found.1)
            {
                for char in all[start..end].chars() {
                    classes.set(char, if matches!(char, '\r' | '\n') { LineEnd } else { class });
                }
            }
        }
        classes
    }

    fn set(&mut self, char: char, class: Class) {
        let page = &mut self.pages[char as usize / PAGE];
        if *page == 0 {
            *page = (self.classes.len() / PAGE) as u16;
            self.classes.resize(self.classes.len() + PAGE, Other);
        }
        self.classes[usize::from(*page) * PAGE + char as usize % PAGE] = class;
    }

    #[inline(always)]
    fn of(&self, char: char) -> Class {
        self.classes[usize::from(self.pages[char as usize / PAGE]) * PAGE + char as usize % PAGE]
    }
}

/// A text that pieces are cut off from.
struct Text<'c, 't> {
    classes: &'c Classes,
    text: &'t str,
}

impl Text<'_, '_> {
    /// The class and the bytes of the character at a place.
    #[inline(always)]
    fn at(&self, place: usize) -> Option<(Class, usize)> {
        let char = self.text[place..].chars().next()?;
        Some((self.classes.of(char), char.len_utf8()))
    }

    #[inline(always)]
    fn first(&self) -> Option<(Class, usize)> {
        self.at(0)
    }

    /// Where the characters of some classes end that begin at a place.
    #[inline(always)]
    fn run(&self, place: usize, is_wanted: impl Fn(Class) -> bool) -> usize {
        let rest = &self.text[place..];
        rest.char_indices()
            .find(|(_, char)| !is_wanted(self.classes.of(*char)))
            .map_or(self.text.len(), |(at, _)| place + at)
    }

    /// The end of the first piece, which begins with a character of so many bytes.
    #[inline(always)]
    fn llama3(&self, class: Class, first: usize, digits: usize) -> usize {
        if let Some(end) = self.contraction(|byte| byte.to_ascii_lowercase()) {
            return end;
        }
        if class == Letter {
            return self.run(first, |class| class == Letter);
        }
        let second = self.at(first);
        if matches!(class, Other | Space)
            && let Some((Letter, bytes)) = second
        {
            return self.run(first + bytes, |class| class == Letter);
        }
        if class == Number {
            let mut end = first;
            for _ in 1..digits {
                let Some((Number, bytes)) = self.at(end) else { break };
                end += bytes;
            }
            return end;
        }
        if class == Other || self.text.starts_with(' ') && matches!(second, Some((Other, _))) {
            let end = self.run(first, |class| class == Other);
            return self.run(end, |class| class == LineEnd);
        }
        let end = self.run(first, |class| matches!(class, Space | LineEnd));
        match self.text[..end].rfind(['\r', '\n']) {
            Some(last) => last + 1,
            None => self.spaces(end),
        }
    }

    /// The same.
    #[inline(always)]
    fn gpt2(&self, class: Class, first: usize) -> usize {
        if let Some(end) = self.contraction(|byte| byte) {
            return end;
        }
        let (class, start) = match self.at(first) {
            Some((next @ (Letter | Number | Other), bytes)) if self.text.starts_with(' ') => (next, first + bytes),
            _ => (class, first),
        };
        match class {
            Letter | Number | Other => self.run(start, |next| next == class),
            Space | LineEnd => self.spaces(self.run(start, |class| matches!(class, Space | LineEnd))),
        }
    }

    /// White space up to `end`, and something else behind: its last character goes with that, unless it is the only one.
    fn spaces(&self, end: usize) -> usize {
        let spaces = &self.text[..end];
        match spaces.char_indices().next_back() {
            Some((last, _)) if last > 0 && end < self.text.len() => last,
            _ => end,
        }
    }

    /// The end of `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d`; `fold` says whether upper case is the same.
    #[inline(always)]
    fn contraction(&self, fold: impl Fn(u8) -> u8) -> Option<usize> {
        let bytes = self.text.as_bytes();
        if bytes[0] != b'\'' {
            return None;
        }
        let byte = |at: usize| bytes.get(at).map(|byte| fold(*byte));
        match (byte(1)?, byte(2)) {
            (b's' | b't' | b'm' | b'd', _) => Some(2),
            (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(3),
            // The long s is an s in another case.
            (0xc5, Some(0xbf)) if fold(b'S') == b's' => Some(3),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
        pre_tokenizers::split::{Split, SplitPattern},
    };

    use super::*;
    use crate::tokenize::tests::odd_text;

    const REGEXES: [&str; 3] = [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ];

    fn reference(regex: &str) -> Split {
        Split::new(SplitPattern::Regex(regex.into()), SplitDelimiterBehavior::Isolated, false).unwrap()
    }

    #[track_caller]
    fn assert_same(regex: &str, reference: &Split, text: &str) {
        let mut expected = PreTokenizedString::from(text);
        reference.pre_tokenize(&mut expected).unwrap();
        let expected = expected.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let expected: Vec<&str> = expected.into_iter().map(|(piece, ..)| piece).collect();
        let mut pieces = Vec::new();
        Splitter::of_regex(regex).unwrap().split(text, |piece| pieces.push(piece));
        if let Some(at) = (0..pieces.len().max(expected.len())).find(|at| pieces.get(*at) != expected.get(*at)) {
            panic!("{regex}\npiece {at} is {:?}, and the reference's {:?}", pieces.get(at), expected.get(at));
        }
    }

    #[test]
    fn every_character_is_cut_as_by_the_reference() {
        // What class a character has is the same for all.
        for (regex, last) in REGEXES.into_iter().zip(['\u{3100}', char::MAX, '\u{3100}']) {
            let reference = reference(regex);
            let mut text = String::new();
            for char in '\0'..=last {
                text.extend(['x', char, '\'', char, '1', char, ' ', char, '\n']);
                if text.len() > 1 << 16 {
                    assert_same(regex, &reference, &text);
                    text.clear();
                }
            }
            assert_same(regex, &reference, &text);
        }
        assert_eq!(Splitter::of_regex(r"\s+"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn any_text_is_cut_as_by_the_reference(text in odd_text()) {
            for regex in REGEXES {
                assert_same(regex, &reference(regex), &text);
            }
        }
    }
}
