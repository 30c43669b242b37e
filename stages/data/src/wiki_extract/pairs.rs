//! Where templates, tables and links end.

use std::collections::{HashMap, HashSet};

use super::elements::verbatim_end;

/// What was opened, and where.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    /// `{{`
    Template,
    /// `{{{`
    Parameter,
    /// `{|` at the beginning of a line
    Table,
    /// `[[`
    Link,
}

/// Where each of them ends, by where it begins; and how many tables never end.
#[derive(Debug, Default)]
pub struct Pairs {
    pub ends: HashMap<usize, usize>,
    pub unclosed_tables: u64,
}

/// Finds them in one pass. What closes something also ends what was opened inside of it and not closed. A table that is
/// never closed ends before the next heading.
pub fn pairs(text: &str) -> Pairs {
    let bytes = text.as_bytes();
    let run = |at: usize| bytes[at..].iter().take_while(|byte| **byte == bytes[at]).count();
    let mut pairs = Pairs::default();
    let mut open = Stack::default();
    let mut never_closed = HashSet::new();
    let mut i = 0;
    while let Some(next) = bytes[i..].iter().position(|byte| matches!(byte, b'{' | b'}' | b'[' | b']' | b'|' | b'<')) {
        i += next;
        match bytes[i] {
            b'<' => i = verbatim_end(text, i, &mut never_closed).unwrap_or(i + 1),
            b'{' if bytes.get(i + 1) == Some(&b'|') && begins_line(bytes, i) => {
                open.push(Open::Table, i);
                i += 2;
            }
            b'{' => {
                let end = i + run(i);
                while end - i >= 2 {
                    let (kind, length) = if end - i == 3 { (Open::Parameter, 3) } else { (Open::Template, 2) };
                    open.push(kind, i);
                    i += length;
                }
                i = end;
            }
            b'}' => {
                let end = i + run(i);
                while end - i >= 2 {
                    let Some((kind, start)) = open.pop_template() else { break };
                    i += if kind == Open::Parameter && end - i >= 3 { 3 } else { 2 };
                    pairs.ends.insert(start, i);
                }
                i = end;
            }
            b'|' if bytes.get(i + 1) == Some(&b'}') && begins_line(bytes, i) => match open.pop_table() {
                Some(start) => {
                    i += 2;
                    pairs.ends.insert(start, i);
                }
                None => i += 1,
            },
            b'[' => {
                let end = i + run(i);
                if end - i >= 2 {
                    open.push(Open::Link, end - 2);
                }
                i = end;
            }
            b']' => {
                let end = i + run(i);
                // Of three the first closes an external link, unless three opened it.
                let three = open.top_link().is_some_and(|start| start > 0 && bytes[start - 1] == b'[');
                i += usize::from((end - i) % 2 == 1 && !three);
                while end - i >= 2 {
                    i += 2;
                    if let Some(start) = open.pop_link() {
                        pairs.ends.insert(start, i);
                    }
                }
                i = end;
            }
            _ => i += 1,
        }
    }
    // From behind: where the next heading is, the one before knows too.
    let mut behind = (text.len(), text.len());
    for start in open.tables().rev() {
        let end = text[start..behind.0].find("\n==").map_or(behind.1, |end| start + end);
        behind = (start, end);
        pairs.ends.insert(start, end);
        pairs.unclosed_tables += 1;
    }
    pairs
}

/// What is open, the innermost last.
#[derive(Default)]
struct Stack {
    all: Vec<(Open, usize)>,
    /// The places in `all` of what is no link.
    solid: Vec<usize>,
    /// How many of them are templates and parameters.
    templates: usize,
}

impl Stack {
    fn push(&mut self, kind: Open, start: usize) {
        if kind != Open::Link {
            self.solid.push(self.all.len());
        }
        self.templates += usize::from(matches!(kind, Open::Template | Open::Parameter));
        self.all.push((kind, start));
    }

    /// The innermost template, and nothing of what is in it.
    fn pop_template(&mut self) -> Option<(Open, usize)> {
        if self.templates == 0 {
            return None;
        }
        while let Some(at) = self.solid.pop() {
            let open = self.all[at];
            self.all.truncate(at);
            if open.0 != Open::Table {
                self.templates -= 1;
                return Some(open);
            }
        }
        None
    }

    /// The innermost table, if it is in no template that is not closed.
    fn pop_table(&mut self) -> Option<usize> {
        let at = self.solid.pop_if(|at| self.all[*at].0 == Open::Table)?;
        let start = self.all[at].1;
        self.all.truncate(at);
        Some(start)
    }

    fn top_link(&self) -> Option<usize> {
        self.all.last().filter(|open| open.0 == Open::Link).map(|open| open.1)
    }

    fn pop_link(&mut self) -> Option<usize> {
        self.all.pop_if(|open| open.0 == Open::Link).map(|open| open.1)
    }

    fn tables(&self) -> impl DoubleEndedIterator<Item = usize> {
        self.all.iter().filter(|open| open.0 == Open::Table).map(|open| open.1)
    }
}

/// Whether only spaces and marks of indents stand before it in its line.
fn begins_line(bytes: &[u8], at: usize) -> bool {
    let before = bytes[..at].iter().rev().take_while(|byte| **byte != b'\n');
    before.into_iter().all(|byte| matches!(byte, b' ' | b'\t' | b':' | b'*' | b'#'))
}
