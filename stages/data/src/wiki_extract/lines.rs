//! Lines without their marks: headings, lists, and what is left of what was taken out.

/// Stands before text that is meant as it is written. No XML can hold it.
pub const LITERAL: char = '\u{1}';

/// The lines that say something. A heading under which nothing stands is dropped; an item of a list begins with `- `.
pub fn lines(marked: &str) -> String {
    let mut out = String::with_capacity(marked.len());
    let mut headings: Vec<(usize, String)> = Vec::new();
    for line in marked.split('\n') {
        let Some((item, line)) = (match line.trim() {
            literal if literal.starts_with(LITERAL) => {
                let literal = literal.replace(LITERAL, "");
                (!literal.trim().is_empty()).then_some((false, literal))
            }
            line => match heading(line) {
                Some((level, title)) => {
                    headings.retain(|heading| heading.0 < level);
                    headings.push((level, tidy(title)));
                    None
                }
                None => unmarked(line)
                    .map(|(item, text)| (item, tidy(text)))
                    .filter(|(_, text)| text.chars().any(char::is_alphanumeric)),
            },
        }) else {
            continue;
        };
        for (_, title) in headings.drain(..).filter(|(_, title)| !title.is_empty()) {
            push(&mut out, false, &title);
        }
        push(&mut out, item, &line);
    }
    out
}

fn push(out: &mut String, item: bool, line: &str) {
    if !out.is_empty() {
        out.push('\n');
    }
    if item {
        out.push_str("- ");
    }
    out.push_str(line);
}

/// `== Title ==`
fn heading(line: &str) -> Option<(usize, &str)> {
    let inner = line.trim_matches('=');
    if inner.is_empty() {
        return None;
    }
    let before = line.len() - line.trim_start_matches('=').len();
    let behind = line.len() - line.trim_end_matches('=').len();
    let level = before.min(behind).min(6);
    (level > 0).then(|| (level, line[level..line.len() - level].trim()))
}

/// A line without the marks of a list, and whether it is an item of one; none if it is of a broken table or template.
fn unmarked(line: &str) -> Option<(bool, &str)> {
    if line.starts_with('|') {
        return None;
    }
    if let Some(rest) = line.strip_prefix("----") {
        return Some((false, rest.trim_start_matches('-').trim()));
    }
    let text = line.trim_start_matches(['*', '#', ':', ';']);
    let item = line[..line.len() - text.len()].ends_with(['*', '#']);
    Some((item, text.trim()))
}

/// One space where there are several, none where what stood between it and a sign was taken out, and no empty brackets.
fn tidy(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut space = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            LITERAL => continue,
            ' ' | '\t' | '\r' | '\u{a0}' => {
                space = !out.is_empty();
                continue;
            }
            ')' | '）' => {
                let open = out.trim_end_matches([' ', ',', ';', ':', '、', '，', '；', '\u{3000}']);
                if let Some(before) = open.strip_suffix(if c == ')' { '(' } else { '（' }) {
                    let kept = before.trim_end_matches(' ').len();
                    space = kept < before.len();
                    out.truncate(kept);
                    continue;
                }
                space = false;
            }
            ',' | '.' if chars.peek().is_none_or(|next| next.is_whitespace()) => space = false,
            _ => {}
        }
        if space && !out.ends_with(['(', '（']) {
            out.push(' ');
        }
        space = false;
        out.push(c);
    }
    out
}
