//! The text under a key of one JSON line, as Python's `json.loads` reads it: the last of equal keys wins, `NaN` and
//! `Infinity` are numbers, control characters inside of strings are not allowed, nothing may follow the object.
//!
//! Only the wanted values are made; the rest is checked and passed over.

use std::{borrow::Cow, fmt};

/// Deeper nesting is refused, as Python does.
const MAX_DEPTH: usize = 1000;

/// [`BadLine::why`] of a line without anything.
pub const BLANK: &str = "a blank line";

/// [`BadLine::why`] of a line that begins with U+FEFF.
pub const BYTE_ORDER_MARK: &str = "a byte order mark before the JSON";

/// [`BadLine::why`] of bytes that are no text; surrogates that were encoded by themselves among them.
pub const INVALID_UTF8: &str = "invalid UTF-8";

/// [`Text::Other`] of a string with `\ud800` or the like that has no other half.
pub const HALF_SURROGATE: &str = "holds half of a surrogate pair";

/// What stands under a wanted key.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Text<'a> {
    /// Nothing: the key is not there.
    #[default]
    Missing,
    /// A string.
    One(Cow<'a, str>),
    /// A list of strings, possibly empty.
    Many(Vec<Cow<'a, str>>),
    /// Something that is no text, in a few words.
    Other(&'static str),
}

/// Why a line is not a document, and where in the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Offset in the line, in bytes from 0.
    pub at: usize,
    /// Why.
    pub why: Cow<'static, str>,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (byte {} of the line)", self.why, self.at + 1)
    }
}

impl std::error::Error for BadLine {}

/// What stands under each of `keys` in the object that is `line`; `found` is as long as `keys` and holds
/// [`Text::Missing`].
///
/// # Errors
/// The line is not one JSON object in UTF-8.
pub fn texts<'a>(line: &'a [u8], keys: &[impl AsRef<str>], found: &mut [Text<'a>]) -> Result<(), BadLine> {
    let text = match std::str::from_utf8(line) {
        Ok(text) => text,
        Err(error) => return Err(BadLine { at: error.valid_up_to(), why: INVALID_UTF8.into() }),
    };
    let mut scanner = Scanner { text, at: 0 };
    scanner.space();
    match scanner.peek() {
        Some(b'{') => {}
        None => return scanner.bad(0, BLANK),
        Some(0xef) if text.starts_with('\u{feff}') => {
            return scanner.bad(0, BYTE_ORDER_MARK);
        }
        Some(b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n' | b'N' | b'I') => {
            return scanner.bad(scanner.at, "not a JSON object");
        }
        Some(_) => return scanner.bad(scanner.at, "not JSON"),
    }
    scanner.at += 1;
    scanner.members(|scanner, key| {
        match keys.iter().position(|wanted| key.as_deref() == Some(wanted.as_ref())) {
            Some(i) => found[i] = scanner.text_value()?,
            None => scanner.skip_value()?,
        }
        Ok(())
    })?;
    scanner.space();
    if scanner.at < line.len() { scanner.bad(scanner.at, "something follows the JSON object") } else { Ok(()) }
}

/// The line with this text in the place of what stands under `key`, and everything else as it was; none if it is no
/// document with this key. Of equal keys the last counts.
#[must_use]
pub fn replace_text(line: &[u8], key: &str, text: &str) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?;
    let (place, text) = (place(line, key)?, serde_json::to_string(text).ok()?);
    Some([&line[..place.start], &text, &line[place.end..]].concat())
}

/// What stands under a key in the object that is `line`, as it is written there; with several keys, each inside of what
/// stands under the one before.
#[must_use]
pub fn raw_value<'a>(line: &'a [u8], path: &[&str]) -> Option<&'a str> {
    path.iter().try_fold(std::str::from_utf8(line).ok()?, |object, key| Some(&object[place(object, key)?]))
}

/// Where in an object the value of a key stands. Of equal keys the last counts.
fn place(object: &str, key: &str) -> Option<std::ops::Range<usize>> {
    let mut scanner = Scanner { text: object, at: 0 };
    scanner.space();
    scanner.expect(b'{', "").ok()?;
    let mut place = None;
    let members = scanner.members(|scanner, found| {
        let start = scanner.at;
        scanner.skip_value()?;
        if found.as_deref() == Some(key) {
            place = Some(start..scanner.at);
        }
        Ok(())
    });
    place.filter(|_| members.is_ok())
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

/// A string's content; none if it holds half of a surrogate pair, which is no text.
type Content<'a> = Option<Cow<'a, str>>;

impl<'a> Scanner<'a> {
    fn bytes(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    fn peek(&self) -> Option<u8> {
        self.bytes().get(self.at).copied()
    }

    fn bad<T>(&self, at: usize, why: &'static str) -> Result<T, BadLine> {
        let why = if at >= self.text.len() && !why.contains("line") { "the line ends too early" } else { why };
        Err(BadLine { at: at.min(self.text.len()), why: why.into() })
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8, why: &'static str) -> Result<(), BadLine> {
        if self.peek() != Some(byte) {
            return self.bad(self.at, why);
        }
        self.at += 1;
        Ok(())
    }

    /// The members of an object behind its `{`, through its `}`.
    fn members(&mut self, mut value: impl FnMut(&mut Self, Content<'a>) -> Result<(), BadLine>) -> Result<(), BadLine> {
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            self.expect(b'"', "a key in double quotes is expected")?;
            let key = self.string()?;
            self.space();
            self.expect(b':', "`:` is expected")?;
            self.space();
            value(self, key)?;
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return self.bad(self.at, "`,` or `}` is expected"),
            }
        }
    }

    /// The content of a string behind its opening quote.
    fn string(&mut self) -> Result<Content<'a>, BadLine> {
        let start = self.at;
        self.at = plain_end(self.bytes(), self.at);
        if self.peek() == Some(b'"') {
            self.at += 1;
            return Ok(Some(Cow::Borrowed(&self.text[start..self.at - 1])));
        }
        let mut content = String::with_capacity(self.text.len() - start);
        let mut whole = true;
        let mut from = start;
        loop {
            content.push_str(&self.text[from..self.at]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(whole.then_some(Cow::Owned(content)));
                }
                Some(b'\\') => match self.escape()? {
                    Some(character) => content.push(character),
                    None => whole = false,
                },
                Some(_) => return self.bad(self.at, "a raw control character inside of a string"),
                None => return self.bad(self.at, ""),
            }
            from = self.at;
            self.at = plain_end(self.bytes(), self.at);
        }
    }

    /// The character that an escape means; none for half of a surrogate pair.
    fn escape(&mut self) -> Result<Option<char>, BadLine> {
        let start = self.at;
        self.at += 2;
        Ok(Some(match self.bytes().get(start + 1) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = self.hex4()?;
                if (0xd800..0xdc00).contains(&first) && self.bytes()[self.at..].starts_with(b"\\u") {
                    let behind = self.at;
                    self.at += 2;
                    let second = self.hex4()?;
                    if (0xdc00..0xe000).contains(&second) {
                        return Ok(char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)));
                    }
                    self.at = behind;
                }
                return Ok(char::from_u32(first));
            }
            _ => return self.bad(start, "an escape that JSON does not have"),
        }))
    }

    fn hex4(&mut self) -> Result<u32, BadLine> {
        let digits = self.bytes().get(self.at..self.at + 4);
        let Some(digits) = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit)) else {
            return self.bad(self.at, "`\\u` without four hexadecimal digits");
        };
        self.at += 4;
        Ok(digits.iter().fold(0, |value, digit| value << 4 | (*digit as char).to_digit(16).unwrap_or(0)))
    }

    /// A wanted value.
    fn text_value(&mut self) -> Result<Text<'a>, BadLine> {
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                Ok(self.string()?.map_or(Text::Other(HALF_SURROGATE), Text::One))
            }
            Some(b'[') => {
                self.at += 1;
                let (mut items, mut other) = (Vec::new(), None);
                self.space();
                if self.peek() == Some(b']') {
                    self.at += 1;
                    return Ok(Text::Many(items));
                }
                loop {
                    self.space();
                    match self.text_value_in_list()? {
                        Ok(item) => items.push(item),
                        Err(what) => other = other.or(Some(what)),
                    }
                    self.space();
                    match self.peek() {
                        Some(b',') => self.at += 1,
                        Some(b']') => {
                            self.at += 1;
                            return Ok(other.map_or(Text::Many(items), Text::Other));
                        }
                        _ => return self.bad(self.at, "`,` or `]` is expected"),
                    }
                }
            }
            start => {
                self.skip_value()?;
                Ok(Text::Other(match start {
                    Some(b'{') => "is an object, not text",
                    Some(b't' | b'f') => "is a boolean, not text",
                    Some(b'n') => "is null",
                    _ => "is a number, not text",
                }))
            }
        }
    }

    fn text_value_in_list(&mut self) -> Result<Result<Cow<'a, str>, &'static str>, BadLine> {
        if self.peek() == Some(b'"') {
            self.at += 1;
            return Ok(self.string()?.ok_or(HALF_SURROGATE));
        }
        self.skip_value()?;
        Ok(Err("is a list with something that is not text"))
    }

    /// Passes over a value, however deep.
    fn skip_value(&mut self) -> Result<(), BadLine> {
        let mut closers = Vec::new();
        loop {
            // A value begins here.
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    self.skip_string()?;
                }
                Some(open @ (b'{' | b'[')) => {
                    self.at += 1;
                    self.space();
                    let closer = open + 2; // `{` and `}`, `[` and `]` are two apart
                    if self.peek() == Some(closer) {
                        self.at += 1;
                    } else if closers.len() == MAX_DEPTH {
                        return self.bad(self.at, "nested too deep");
                    } else {
                        closers.push(closer);
                        if closer == b'}' {
                            self.key()?;
                        }
                        continue;
                    }
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                _ => self.word()?,
            }
            // A value ended here.
            loop {
                let Some(closer) = closers.last().copied() else { return Ok(()) };
                self.space();
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        self.space();
                        if closer == b'}' {
                            self.key()?;
                        }
                        break;
                    }
                    Some(byte) if byte == closer => {
                        self.at += 1;
                        closers.pop();
                    }
                    _ => return self.bad(self.at, "`,` or the end of a list or object is expected"),
                }
            }
        }
    }

    /// Passes over a key, its colon, and the space around.
    fn key(&mut self) -> Result<(), BadLine> {
        self.expect(b'"', "a key in double quotes is expected")?;
        self.skip_string()?;
        self.space();
        self.expect(b':', "`:` is expected")?;
        self.space();
        Ok(())
    }

    fn skip_string(&mut self) -> Result<(), BadLine> {
        loop {
            self.at = plain_end(self.bytes(), self.at);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.escape()?;
                }
                Some(_) => return self.bad(self.at, "a raw control character inside of a string"),
                None => return self.bad(self.at, ""),
            }
        }
    }

    fn number(&mut self) -> Result<(), BadLine> {
        if self.peek() == Some(b'-') {
            self.at += 1;
            if self.peek() == Some(b'I') {
                return self.word();
            }
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return self.bad(self.at, "a number without digits"),
        }
        let after_integer = self.at;
        if self.peek() == Some(b'.') {
            self.at += 1;
            if !matches!(self.peek(), Some(b'0'..=b'9')) {
                return self.bad(after_integer, "a number that ends with a point");
            }
            self.digits();
        }
        if let Some(b'e' | b'E') = self.peek() {
            let before = self.at;
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            if !matches!(self.peek(), Some(b'0'..=b'9')) {
                return self.bad(before, "an exponent without digits");
            }
            self.digits();
        }
        Ok(())
    }

    fn digits(&mut self) {
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
    }

    fn word(&mut self) -> Result<(), BadLine> {
        let rest = &self.bytes()[self.at..];
        let words: [&[u8]; 5] = [b"true", b"false", b"null", b"NaN", b"Infinity"];
        match words.iter().find(|word| rest.starts_with(word)) {
            Some(word) => {
                self.at += word.len();
                Ok(())
            }
            None => self.bad(self.at, "a value is expected"),
        }
    }
}

/// From `at`, the first byte that is not plain inside of a string: a quote, a backslash, a control character.
/// Eight bytes at a time; the lowest bit found is exact, whatever borrows do above it.
fn plain_end(bytes: &[u8], at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let mut chunks = bytes[at..].chunks_exact(8);
    let mut base = at;
    for chunk in chunks.by_ref() {
        let word = u64::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3], chunk[4], chunk[5], chunk[6], chunk[7]]);
        let equals = |byte: u8| {
            let difference = word ^ (ONES * u64::from(byte));
            difference.wrapping_sub(ONES) & !difference
        };
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let hit = (equals(b'"') | equals(b'\\') | control) & HIGH;
        if hit != 0 {
            return base + hit.trailing_zeros() as usize / 8;
        }
        base += 8;
    }
    let tail = chunks.remainder();
    base + tail.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f)).unwrap_or(tail.len())
}

#[cfg(test)]
mod tests;
