//! Wikitext → the text that who reads the page sees, without tables, templates, notes and pictures.
//!
//! It is looked at once from the left to the right; what is nested was paired before, so that no text, however broken,
//! costs more than its length.

use std::{
    collections::HashSet,
    ops::{AddAssign, Range},
};

use serde::Serialize;

use super::{
    dump::Site,
    elements::{BLOCKS, DROPPED, Tag, VERBATIM},
    entities::{entity, unescaped},
    lines::{LITERAL, lines},
    pairs::{Pairs, pairs},
};

/// What was taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// `{{…}}`, with parser functions and parameters; nested ones count as one.
    pub templates: u64,
    /// `{|…|}` and `<table>`.
    pub tables: u64,
    /// Of those, tables that never end: they are taken out up to the next heading.
    pub unclosed_tables: u64,
    /// `<ref>`.
    pub references: u64,
    /// Files and pictures.
    pub files: u64,
    /// Categories, and the same page in other languages.
    pub categories: u64,
    /// Galleries, maps, scores and the like.
    pub elements: u64,
}

impl AddAssign for Removed {
    fn add_assign(&mut self, other: Self) {
        self.templates += other.templates;
        self.tables += other.tables;
        self.unclosed_tables += other.unclosed_tables;
        self.references += other.references;
        self.files += other.files;
        self.categories += other.categories;
        self.elements += other.elements;
    }
}

/// What links to other places begin with.
const PROTOCOLS: [&str; 9] = ["http://", "https://", "//", "ftp://", "mailto:", "news:", "irc://", "tel:", "ircs://"];

/// So deep may links be in the labels of links.
const DEEPEST: usize = 40;

/// The text of a page, and what is not in it.
pub fn text(site: &Site, wikitext: &str) -> (String, Removed) {
    let pairs = pairs(wikitext);
    let removed = Removed { unclosed_tables: pairs.unclosed_tables, ..Removed::default() };
    let out = String::with_capacity(wikitext.len());
    let (never_closed, bracket) = (HashSet::new(), 0..0);
    let mut reader = Reader { site, text: wikitext, pairs, out, removed, never_closed, bracket };
    reader.read(0, wikitext.len(), 0);
    (lines(&reader.out), reader.removed)
}

struct Reader<'a> {
    site: &'a Site,
    text: &'a str,
    pairs: Pairs,
    out: String,
    removed: Removed,
    /// Elements of which no end stands between here and there.
    never_closed: HashSet<(String, usize)>,
    /// Between here and there is no `]` and no end of a line.
    bracket: Range<usize>,
}

impl Reader<'_> {
    /// Reads from `i` to `end`.
    fn read(&mut self, mut i: usize, end: usize, depth: usize) {
        let text = self.text;
        let bytes = &text.as_bytes()[..end];
        while i < end {
            let special = |byte: &u8| matches!(byte, b'{' | b'}' | b'[' | b']' | b'<' | b'\'' | b'&' | b'_');
            let next = bytes[i..].iter().position(special).map_or(end, |next| i + next);
            self.out.push_str(&text[i..next]);
            i = next;
            if i == end {
                break;
            }
            // Of what is not taken as a whole no more is looked at than matters.
            let longest = if matches!(bytes[i], b'\'' | b'[') { usize::MAX } else { 3 };
            let run = bytes[i..].iter().take(longest).take_while(|byte| **byte == bytes[i]).count();
            let closed = self.pairs.ends.get(&i).copied().filter(|closed| *closed <= end);
            i = match (bytes[i], closed) {
                (b'{', Some(closed)) => {
                    let is_table = text[i..].starts_with("{|");
                    *(if is_table { &mut self.removed.tables } else { &mut self.removed.templates }) += 1;
                    closed
                }
                (b'[', Some(closed)) => {
                    self.link(i + 2, closed - 2, depth);
                    closed
                }
                (b'[', None) if run == 1 => self.external(i, end, depth),
                // What is opened and not closed, or the other way round, is no text.
                (b'[', None) if self.pairs.ends.contains_key(&(i + run - 2)) => {
                    if run % 2 == 1 {
                        self.out.push('[');
                    }
                    i + run - 2
                }
                (b'[', None) => i + run,
                (b'{' | b'}' | b']', None) if run >= 2 => i + 2,
                (b'<', _) => self.element(i, end),
                (b'\'', _) => {
                    let kept = match run {
                        1 => 1,
                        4 => 1,
                        6.. => run - 5,
                        _ => 0,
                    };
                    self.out.extend(std::iter::repeat_n('\'', kept));
                    i + run
                }
                (b'&', _) => self.entity(i, end),
                (b'_', _) if run == 2 => self.switch(i, end),
                _ => {
                    self.out.push(char::from(bytes[i]));
                    i + 1
                }
            };
        }
    }

    /// `[[target|label]]`, between the brackets.
    fn link(&mut self, start: usize, end: usize, depth: usize) {
        let inner = &self.text[start..end];
        let (target, label) = match inner.find('|') {
            Some(bar) => (&inner[..bar], Some(start + bar + 1)),
            None => (inner, None),
        };
        if depth >= DEEPEST {
            return;
        }
        if target.contains(['\n', '[', '{', '<']) {
            // No page is called so: it is text in brackets.
            return self.read(start, end, depth + 1);
        }
        let shown = target.trim();
        if let Some((namespace, _)) = shown.split_once(':').filter(|(namespace, _)| !namespace.is_empty()) {
            let name = namespace.trim().replace('_', " ").to_lowercase();
            if self.site.files.contains(&name) {
                self.removed.files += 1;
                return;
            }
            if self.site.categories.contains(&name) || is_language(namespace) {
                self.removed.categories += 1;
                return;
            }
        }
        match label {
            Some(label) if !self.text[label..end].trim().is_empty() => self.read(label, end, depth + 1),
            _ => {
                let target = shown.trim_start_matches(':').replace('_', " ");
                self.literal(&target, false);
            }
        }
    }

    /// `[https://example.org label]`
    fn external(&mut self, start: usize, end: usize, depth: usize) -> usize {
        let inner = &self.text[start + 1..end];
        if !self.bracket.contains(&start) || self.bracket.end > end {
            let found = inner.find([']', '\n']).map_or(end, |found| start + 1 + found);
            self.bracket = start..found;
        }
        let close = self.bracket.end - start - 1;
        let close = Some(close).filter(|close| inner.as_bytes().get(*close) == Some(&b']'));
        let is_link = PROTOCOLS
            .iter()
            .any(|protocol| inner.get(..protocol.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(protocol)));
        let (Some(close), true) = (close, is_link && depth < DEEPEST) else {
            self.out.push('[');
            return start + 1;
        };
        let url = inner[..close].find([' ', '\t', '<', '[']).unwrap_or(close);
        self.read(start + 1 + url, start + 1 + close, depth + 1);
        start + 1 + close + 1
    }

    /// A comment, an element, or a sign of its own.
    fn element(&mut self, start: usize, end: usize) -> usize {
        let text = &self.text[..end];
        if text[start..].starts_with("<!--") {
            return text[start..].find("-->").map_or(end, |close| start + close + 3);
        }
        let Some(tag) = Tag::parse(text, start) else {
            self.out.push('<');
            return start + 1;
        };
        let name = tag.name.as_str();
        let whole = !tag.closes && !tag.empty;
        if DROPPED.contains(&name) {
            if !tag.closes {
                *(match name {
                    "ref" => &mut self.removed.references,
                    "table" => &mut self.removed.tables,
                    _ => &mut self.removed.elements,
                }) += 1;
            }
            let close = if whole { self.close(&tag, end) } else { Some((tag.end, tag.end)) };
            // A note that is not closed would take the rest of the page with it.
            let line = || text[tag.end..].find('\n').map_or(end, |line| tag.end + line);
            return close.map_or_else(|| if name == "ref" { line() } else { tag.end }, |close| close.1);
        }
        if VERBATIM.contains(&name) {
            if let Some((content, behind)) = Some(&tag).filter(|_| whole).and_then(|tag| self.close(tag, end)) {
                self.verbatim(name, &text[tag.end..content]);
                return behind;
            }
        } else if name == "br" {
            self.out.push(' ');
        } else if BLOCKS.contains(&name) {
            self.out.push('\n');
            if name == "li" && !tag.closes {
                self.out.push_str("* ");
            }
        }
        tag.end
    }

    /// The end of an element: where its content ends, and what is behind.
    fn close(&mut self, tag: &Tag, end: usize) -> Option<(usize, usize)> {
        if self.never_closed.contains(&(tag.name.clone(), end)) {
            return None;
        }
        let text = &self.text[..end];
        let (mut at, mut depth) = (tag.end, 1);
        while let Some(next) = text[at..].find('<') {
            at += next;
            if let Some(other) = Tag::parse(text, at).filter(|other| other.name == tag.name) {
                // Tables are in tables; of all else the first end is the end.
                depth -= usize::from(other.closes);
                depth += usize::from(!other.closes && !other.empty && tag.name == "table");
                if depth == 0 {
                    return Some((at, other.end));
                }
                at = other.end;
            } else {
                at += 1;
            }
        }
        self.never_closed.insert((tag.name.clone(), end));
        None
    }

    fn verbatim(&mut self, name: &str, content: &str) {
        match name {
            "math" => {
                let formula = content.split_whitespace().collect::<Vec<_>>().join(" ");
                self.literal(&format!("${formula}$"), true);
            }
            "nowiki" => self.literal(&unescaped(content), false),
            "pre" => self.lines(&unescaped(content)),
            "chem" | "ce" => self.literal(content, true),
            _ => self.lines(content),
        }
    }

    /// Lines that stay as they are.
    fn lines(&mut self, content: &str) {
        for line in content.trim_matches('\n').split('\n') {
            self.out.push('\n');
            self.out.push(LITERAL);
            self.out.push_str(line);
        }
        self.out.push('\n');
    }

    /// Text in which nothing is a mark; a formula at the beginning of a line is not what makes the line.
    fn literal(&mut self, content: &str, inline: bool) {
        let is_mark = !inline && content.starts_with(['*', '#', ':', ';', '=', '|', '-']);
        if is_mark && (self.out.is_empty() || self.out.trim_end_matches(' ').ends_with('\n')) {
            self.out.push(LITERAL);
        }
        self.out.extend(content.chars().map(|c| if c == '\n' { ' ' } else { c }));
    }

    /// `&nbsp;`
    fn entity(&mut self, start: usize, end: usize) -> usize {
        match entity(&self.text[start..end]) {
            Some((decoded, length)) => {
                self.literal(&decoded, false);
                start + length
            }
            None => {
                self.out.push('&');
                start + 1
            }
        }
    }

    /// `__NOTOC__`
    fn switch(&mut self, start: usize, end: usize) -> usize {
        let word = self.text[start + 2..end].split_once("__").map(|(word, _)| word);
        let is_switch = |word: &&str| {
            let upper = |c: char| if c.is_ascii() { c.is_ascii_uppercase() } else { c.is_alphabetic() };
            !word.is_empty() && word.len() <= 60 && word.chars().all(upper)
        };
        match word.filter(is_switch) {
            Some(word) => start + word.len() + 4,
            None => {
                self.out.push_str("__");
                start + 2
            }
        }
    }
}

/// `ja`, `zh-yue`, `simple`: a link to the same page in another language is beside the text.
fn is_language(prefix: &str) -> bool {
    let mut parts = prefix.split('-');
    let first = parts.next().is_some_and(|first| {
        (2..=3).contains(&first.len()) && first.bytes().all(|c| c.is_ascii_lowercase()) && first != "mw"
    });
    first && parts.all(|part| part.len() >= 2 && part.bytes().all(|c| c.is_ascii_lowercase())) || prefix == "simple"
}
