//! The elements that a page may have, as HTML writes them, and what becomes of each.

use std::collections::HashSet;

/// Elements whose content is meant as it is written.
pub const VERBATIM: [&str; 8] = ["nowiki", "pre", "syntaxhighlight", "source", "math", "chem", "ce", "templatedata"];

/// Elements that go with their content.
pub const DROPPED: [&str; 19] = [
    "ref",
    "references",
    "table",
    "gallery",
    "timeline",
    "score",
    "imagemap",
    "hiero",
    "graph",
    "mapframe",
    "maplink",
    "categorytree",
    "inputbox",
    "templatestyles",
    "templatedata",
    "includeonly",
    "indicator",
    "style",
    "script",
];

/// Elements that stand on lines of their own.
pub const BLOCKS: [&str; 24] = [
    "p",
    "div",
    "blockquote",
    "ul",
    "ol",
    "li",
    "dl",
    "dt",
    "dd",
    "center",
    "poem",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "tr",
    "td",
    "th",
    "caption",
    "figure",
    "section",
];

/// Elements of which only the content is seen.
const INLINE: [&str; 41] = [
    "b",
    "i",
    "u",
    "s",
    "del",
    "ins",
    "em",
    "strong",
    "small",
    "big",
    "sub",
    "sup",
    "span",
    "font",
    "tt",
    "code",
    "kbd",
    "samp",
    "var",
    "abbr",
    "cite",
    "dfn",
    "q",
    "mark",
    "bdi",
    "bdo",
    "ruby",
    "rb",
    "rt",
    "rp",
    "rtc",
    "time",
    "data",
    "wbr",
    "strike",
    "noinclude",
    "onlyinclude",
    "tbody",
    "translate",
    "tvar",
    "languages",
];

/// `<name …>`, `</name>` or `<name/>` of an element that a page may have.
pub struct Tag {
    /// In lower case.
    pub name: String,
    /// `</name>`
    pub closes: bool,
    /// `<name/>`
    pub empty: bool,
    /// Behind it.
    pub end: usize,
}

impl Tag {
    /// The one that begins at a place of the text, if one does.
    pub fn parse(text: &str, start: usize) -> Option<Self> {
        let bytes = text.as_bytes();
        let closes = bytes.get(start + 1) == Some(&b'/');
        let name_at = start + 1 + usize::from(closes);
        let length = bytes.get(name_at..)?.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
        if length == 0 || length > 16 {
            return None;
        }
        let name = text[name_at..name_at + length].to_ascii_lowercase();
        let known = [&DROPPED[..], &VERBATIM, &BLOCKS, &INLINE, &["br"]];
        if !known.iter().any(|names| names.contains(&name.as_str())) {
            return None;
        }
        let (mut quote, mut before) = (None, b' ');
        for (i, byte) in bytes.iter().enumerate().skip(name_at + length).take(4096) {
            match (byte, quote) {
                (b'"' | b'\'', None) if before == b'=' => quote = Some(*byte),
                (byte, Some(open)) if *byte == open => quote = None,
                (b'>', None) => {
                    return Some(Self { name, closes, empty: bytes[i - 1] == b'/', end: i + 1 });
                }
                (b'<', None) => return None,
                _ => {}
            }
            if !byte.is_ascii_whitespace() {
                before = *byte;
            }
        }
        None
    }
}

/// Behind the end of what hides braces and brackets: a comment, or an element whose content is meant as it is written.
/// Of those in `never_closed` no end follows.
pub fn verbatim_end(text: &str, start: usize, never_closed: &mut HashSet<String>) -> Option<usize> {
    if text[start..].starts_with("<!--") {
        return Some(text[start..].find("-->").map_or(text.len(), |close| start + close + 3));
    }
    let tag =
        Tag::parse(text, start).filter(|tag| !tag.closes && !tag.empty && VERBATIM.contains(&tag.name.as_str()))?;
    if never_closed.contains(&tag.name) {
        return None;
    }
    let mut at = tag.end;
    while let Some(next) = text[at..].find("</") {
        at += next;
        match Tag::parse(text, at).filter(|other| other.name == tag.name) {
            Some(close) => return Some(close.end),
            None => at += 2,
        }
    }
    never_closed.insert(tag.name);
    None
}
