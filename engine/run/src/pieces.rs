//! A large TOML text in pieces: parsed on all cores, and the parser's own memory, which is many times the text's, is needed
//! for the pieces at hand alone.
//!
//! It is cut before lines `[stage.NAME]`, where a table ends wherever the text is TOML at all and has no strings of
//! several lines. What is not as simple as that, or wrong, is parsed whole, which also finds the words for it.

use std::{collections::HashSet, ops::Range, sync::Arc};

use flow_core::{Diagnostic, Source, Span, Value, ValueKind};
use rayon::prelude::*;

use crate::syntax;

/// Less is parsed at once.
const LARGE: usize = 256 << 10;
/// How long a piece is at least.
const PIECE: usize = 64 << 10;

/// The table that is cut.
const STAGE: &str = "stage";

/// Parses a text in pieces; nothing if it has to be parsed whole.
pub fn parse(source: &Arc<Source>, errors: &mut Vec<Diagnostic>) -> Option<Value> {
    if source.text.len() < LARGE { None } else { parse_by(source, PIECE, errors) }
}

fn parse_by(source: &Arc<Source>, piece: usize, errors: &mut Vec<Diagnostic>) -> Option<Value> {
    let read = |piece: Range<usize>| {
        let mut wrong = Vec::new();
        Some((syntax::parse_piece(source, piece, &mut wrong)?, wrong))
    };
    let read: Option<Vec<_>> = cut(&source.text, piece)?.into_par_iter().map(read).collect();
    let mut read = read?.into_iter();
    let (mut root, mut said) = read.next()?;
    // What stands before the first stage does not say what `stage` is.
    if root.get(STAGE).is_some() {
        return None;
    }
    let mut stages: Option<(Option<Span>, Value)> = None;
    for (mut table, wrong) in read {
        said.extend(wrong);
        let (_, span, value) = table.entries.pop().filter(|(key, ..)| key == STAGE && table.entries.is_empty())?;
        let Value { kind: ValueKind::Table(more), span: place } = value else { return None };
        match &mut stages {
            None => stages = Some((span, Value { kind: ValueKind::Table(more), span: place })),
            Some((_, Value { kind: ValueKind::Table(stages), .. })) => stages.entries.extend(more.entries),
            Some(_) => return None,
        }
    }
    let (span, stages) = stages?;
    let entries = &stages.as_table()?.entries;
    let mut names = HashSet::with_capacity(entries.len());
    if !entries.iter().all(|(name, _, stage)| stage.as_table().is_some() && names.insert(name.as_str())) {
        return None;
    }
    root.insert(STAGE, span, stages);
    errors.extend(said);
    Some(Value { kind: ValueKind::Table(root), span: Some(Span::new(source, 0..source.text.len())) })
}

/// What stands before the first stage, and then pieces of at least `length` bytes that begin with one.
fn cut(text: &str, length: usize) -> Option<Vec<Range<usize>>> {
    if text.contains("\"\"\"") || text.contains("'''") || text.lines().any(is_table_of_all) {
        return None;
    }
    let mut begin = stage_from(text, 0)?;
    let mut pieces = Vec::with_capacity(text.len() / length + 2);
    pieces.push(0..begin);
    while let Some(next) = stage_from(text, begin + length) {
        pieces.push(begin..next);
        begin = next;
    }
    pieces.push(begin..text.len());
    Some(pieces)
}

/// A line `[stage]`, of which there may be one: two in two pieces would not be seen.
fn is_table_of_all(line: &str) -> bool {
    let header = line.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']'));
    header.is_some_and(|(name, _)| name.trim().trim_matches(['"', '\'']) == STAGE)
}

/// The first line `[stage.NAME]` that begins after this byte.
fn stage_from(text: &str, from: usize) -> Option<usize> {
    const LINE: &str = "\n[stage.";
    let mut at = from;
    while !text.is_char_boundary(at) && at < text.len() {
        at += 1;
    }
    loop {
        at += text.get(at..)?.find(LINE)? + 1;
        let (name, _) = text[at + LINE.len() - 1..].split_once(']')?;
        if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    fn source(text: &str) -> Arc<Source> {
        Arc::new(Source { path: "p.toml".into(), text: text.to_owned() })
    }

    /// In pieces of a few bytes, and whole: both with all places.
    fn both(text: &str) -> (Option<String>, String) {
        let pieces = parse_by(&source(text), 1, &mut Vec::new()).map(|value| format!("{value:?}"));
        (pieces, format!("{:?}", syntax::parse("p.toml".as_ref(), text.into(), &mut Vec::new())))
    }

    #[test]
    fn pieces_are_the_whole() {
        let mut text =
            "# é\n[pipeline]\nname = \"many\"\n[params]\na = [1,\n 2]\n\n[profile.x]\nparams.a = 1\n".to_owned();
        for i in 0..50 {
            let _ = write!(text, "[stage.s{i}]\r\nkind = 'command' # ö\nouts = [\n '[stage.x]',\n]\nl = {{ a = 1 }}\n");
            if i % 7 == 0 {
                let _ = writeln!(text, "[stage.s{i}.resources]\ncpus = {i}\n[stage.\"q{i}\"]\nx.y = 1");
            }
        }
        let (pieces, whole) = both(&text);
        assert_eq!(format!("Ok({})", pieces.expect("it can be cut")), whole);
    }

    #[test]
    fn what_is_not_simple_is_parsed_whole() {
        let stages = "\n[stage.a]\nk = 1\n[stage.b]\nk = 1\n";
        assert!(both(stages).0.is_some());
        for text in [
            format!("stage = 1{stages}"),
            format!("[stage]\nx = 1{stages}"),
            format!("[stage.c]{stages}[stage.a]\nl = 1"),
            format!("{stages}[stage.a.more]\nl = 1"),
            format!("{stages}[params]\nl = 1"),
            format!("{stages}[stage]\nl = 1"),
            format!("{stages}[ \"stage\" ]\nl = {{ k = 1 }}\n[stage.c]\nk = 1\n[stage]\nm = {{ k = 1 }}"),
            format!("{stages}[stage.c]\nk = \"\"\"\n[stage.d]\n\"\"\""),
            format!("{stages}[stage.c]\nk = [\n[stage.d]\n"),
            format!("x = [{stages}"),
            "[params]\na = 1".to_owned(),
        ] {
            assert!(both(&text).0.is_none(), "{text}");
        }
    }
}
