//! What a text is made of: words, lines, sentences, scripts.
//!
//! **A word** is what stands between white space, as Python's `str.split()` has it. Scripts that do without spaces are cut
//! out of that: Han characters by two, hiragana by four, katakana as far as they go (a prolonged sound mark goes with
//! either), Thai, Lao, Khmer and Burmese letters by four, each counted from where such a run begins, and what is left
//! between them. These pieces are about as long as the words of these languages are, and the same phrase is cut in the same
//! way wherever it stands, so that what is said of repeated n-grams of words holds for them as well. As a regular expression:
//!
//! ```text
//! \p{Han}{1,2}|[\p{Hiragana}ー]{1,4}|[\p{Katakana}ー]+|[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]{1,4}|[^\s<all of these>]+
//! ```

use unicode_script::{Script, UnicodeScript};

/// A word, by its place in the text.
#[derive(Clone, Copy, Debug)]
pub struct Word<'t> {
    /// It.
    pub text: &'t str,
    /// How many characters it has.
    pub chars: u32,
    /// White space stands before it.
    pub spaced: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Space,
    Han,
    Hiragana,
    Katakana,
    /// ー
    Prolonged,
    /// Thai, Lao, Khmer, Burmese.
    Southeast,
    Other,
}

impl Class {
    fn of(c: char) -> Self {
        match c {
            '\t'..='\r' | '\x1c'..='\x20' => Self::Space,
            '\0'..='\x7f' => Self::Other,
            '\u{30fc}' => Self::Prolonged,
            '\u{4e00}'..='\u{9fff}' => Self::Han,
            '\u{3041}'..='\u{3096}' => Self::Hiragana,
            '\u{30a1}'..='\u{30fa}' => Self::Katakana,
            // Letters of Europe and the Near East.
            '\u{a1}'..='\u{6ff}' => Self::Other,
            c if c.is_whitespace() => Self::Space,
            c => match c.script() {
                Script::Han => Self::Han,
                Script::Hiragana => Self::Hiragana,
                Script::Katakana => Self::Katakana,
                Script::Thai | Script::Lao | Script::Khmer | Script::Myanmar => Self::Southeast,
                _ => Self::Other,
            },
        }
    }

    /// Whether a word of `chars` characters of this class goes on with a character of `next`.
    fn goes_on(self, next: Self, chars: u32) -> bool {
        match self {
            Self::Space => false,
            Self::Han => next == self && chars < 2,
            Self::Hiragana => matches!(next, Self::Hiragana | Self::Prolonged) && chars < 4,
            Self::Katakana => matches!(next, Self::Katakana | Self::Prolonged),
            Self::Southeast => next == self && chars < 4,
            Self::Prolonged | Self::Other => next == self,
        }
    }
}

/// The words of a text.
pub fn words(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::with_capacity(text.len() / 5);
    let (mut class, mut start, mut chars, mut spaced) = (Class::Space, 0, 0, false);
    for (at, c) in text.char_indices() {
        let next = Class::of(c);
        if class.goes_on(next, chars) {
            chars += 1;
            continue;
        }
        if class != Class::Space {
            words.push(Word { text: &text[start..at], chars, spaced });
            spaced = false;
        }
        spaced |= next == Class::Space;
        // A prolonged sound mark that follows nothing begins a word of hiragana.
        class = if next == Class::Prolonged { Class::Hiragana } else { next };
        (start, chars) = (at, 1);
    }
    if class != Class::Space {
        words.push(Word { text: &text[start..], chars, spaced });
    }
    words
}

/// Whether most letters of a text are of scripts that do without spaces.
pub fn is_unspaced(words: &[Word<'_>]) -> bool {
    let (mut unspaced, mut letters) = (0u64, 0u64);
    for word in words {
        let first = word.text.chars().next().unwrap_or(' ');
        match Class::of(first) {
            Class::Other | Class::Space => {
                letters += word.text.chars().filter(|c| c.is_alphabetic()).count() as u64;
            }
            _ => {
                unspaced += u64::from(word.chars);
                letters += u64::from(word.chars);
            }
        }
    }
    2 * unspaced > letters
}

/// The lines of a text, as Python's `str.splitlines()` has them.
pub fn lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut start = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if !matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}') {
            continue;
        }
        lines.push(&text[start..at]);
        start = at + c.len_utf8();
        if c == '\r' && chars.next_if(|next| next.1 == '\n').is_some() {
            start += 1;
        }
    }
    if start < text.len() {
        lines.push(&text[start..]);
    }
    lines
}

/// White space, as Python's `str.isspace()` has it.
pub fn is_space(c: char) -> bool {
    Class::of(c) == Class::Space
}

/// Without white space at its ends, as Python's `str.strip()` has it.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// How many sentences a line has: a sentence ends with `.`, `!` or `?` before white space, or with `。`, `！`, `？` or `｡`,
/// and with the quotes and brackets that close behind it; what is left at the end is one, too.
pub fn sentences(line: &str) -> u64 {
    let mut count = 0;
    let mut chars = line.chars().peekable();
    let mut open = false;
    while let Some(c) = chars.next() {
        let wide = matches!(c, '。' | '！' | '？' | '｡');
        if !(wide || matches!(c, '.' | '!' | '?')) {
            open |= Class::of(c) != Class::Space;
            continue;
        }
        let mut wide = wide;
        while let Some(next) = chars.next_if(|next| is_end(*next) || is_closing(*next)) {
            wide |= matches!(next, '。' | '！' | '？' | '｡');
        }
        if wide || chars.peek().is_none_or(|next| Class::of(*next) == Class::Space) {
            count += 1;
            open = false;
        } else {
            open = true;
        }
    }
    count + u64::from(open)
}

fn is_end(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | '。' | '！' | '？' | '｡')
}

fn is_closing(c: char) -> bool {
    matches!(c, '"' | '\'' | ')' | ']' | '}' | '”' | '’' | '」' | '』' | '）' | '】' | '》' | '〉')
}

/// The part of the letters that are of one of these scripts; 0 of a text without letters.
pub fn script_share(text: &str, scripts: &[Script]) -> f64 {
    let (mut of_them, mut letters) = (0u64, 0u64);
    for c in text.chars().filter(|c| c.is_alphabetic()) {
        letters += 1;
        // What several scripts share, as ー, is of each of them.
        of_them += u64::from(scripts.contains(&c.script()) || scripts.iter().any(|script| shares(c, *script)));
    }
    if letters == 0 { 0.0 } else { of_them as f64 / letters as f64 }
}

fn shares(c: char, script: Script) -> bool {
    matches!(c.script(), Script::Common | Script::Inherited) && c.script_extension().contains_script(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<&str> {
        words(text).into_iter().map(|word| word.text).collect()
    }

    #[test]
    fn words_are_between_spaces_and_in_runs_of_scripts_without() {
        assert_eq!(cut("  It's a test, isn't\u{a0}it?\n"), ["It's", "a", "test,", "isn't", "it?"]);
        let text = "東京都は日本のスーパーコンピューターである。";
        assert_eq!(cut(text), ["東京", "都", "は", "日本", "の", "スーパーコンピューター", "である", "。"]);
        assert_eq!(cut("なければならない"), ["なければ", "ならない"]);
        assert_eq!(cut("ーあ 한국어 텍스트 GPUで動く"), ["ーあ", "한국어", "텍스트", "GPU", "で", "動", "く"]);
        assert_eq!(cut("ภาษาไทย"), ["ภาษา", "ไทย"]);
        let spaced: Vec<bool> = words("a b東京").iter().map(|word| word.spaced).collect();
        assert_eq!(spaced, [false, true, false]);
        assert!(is_unspaced(&words("これはGPUの話です")) && !is_unspaced(&words("The word 東京 is a name")));
    }

    #[test]
    fn lines_and_sentences_are_counted() {
        assert_eq!(lines("a\r\nb\n\nc\u{2028}d\n"), ["a", "b", "", "c", "d"]);
        assert_eq!(lines(""), [""; 0]);
        for (line, count) in [
            ("One. Two! \"Three?\" Four", 4),
            ("Version 1.2 is out.", 1),
            ("一つ。二つ！「三つ？」四つ", 4),
            ("なに！？そう。", 2),
            ("", 0),
            ("...", 1),
        ] {
            assert_eq!(sentences(line), count, "{line}");
        }
    }

    #[test]
    fn shares_of_scripts_are_of_letters() {
        let japanese = [Script::Han, Script::Hiragana, Script::Katakana];
        assert_eq!(script_share("東京タワー 123!", &japanese), 1.0);
        assert_eq!(script_share("東京 is", &japanese), 0.5);
        assert_eq!(script_share("123", &japanese), 0.0);
    }
}
