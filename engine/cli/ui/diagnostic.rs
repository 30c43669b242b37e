//! Draws a [`Diagnostic`]: message, place, the line with what is wrong underlined, causes, hints.

use std::fmt::Write;

use flow_core::{Diagnostic, Span, holds_secret};
use unicode_width::UnicodeWidthChar;

use super::{format::tame, paint::Paint};

/// Lines longer than this many columns are shown around what is wrong only.
const WIDEST: usize = 110;

/// An error or a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It cannot work.
    Error,
    /// It may surprise.
    Warning,
}

/// The text of one diagnostic, with its line ends.
pub fn draw(diagnostic: &Diagnostic, severity: Severity, paint: Paint) -> String {
    let mut text = String::new();
    let head = match severity {
        Severity::Error => paint.red("error:"),
        Severity::Warning => paint.yellow("warning:"),
    };
    let _ = writeln!(text, "{head} {}", paint.bold(&lines(&diagnostic.message)));
    if let Some(span) = &diagnostic.span {
        place(span, paint, &mut text);
        if !diagnostic.secret {
            excerpt(span, severity, paint, &mut text);
        }
    }
    for cause in &diagnostic.causes {
        let _ = writeln!(text, "  {} {}", paint.red("caused by:"), lines(cause));
    }
    for hint in &diagnostic.hints {
        let _ = writeln!(text, "  {} {}", paint.cyan("hint:"), lines(hint));
    }
    text
}

/// Continuation lines are set in; control characters are tamed.
fn lines(text: &str) -> String {
    text.trim_end().lines().map(tame).collect::<Vec<_>>().join("\n    ")
}

/// `--> file:line:column`
fn place(span: &Span, paint: Paint, text: &mut String) {
    let (line, column) = span.line_column();
    let _ = writeln!(text, "  {} {}:{line}:{column}", paint.cyan("-->"), span.source.path.display());
}

/// The line, and carets under the span; not a line that holds a secret.
fn excerpt(span: &Span, severity: Severity, paint: Paint, text: &mut String) {
    let (line_number, column) = span.line_column();
    let Some(line) = span.source.text.split('\n').nth(line_number - 1) else { return };
    if holds_secret(line) {
        return;
    }
    let line = line.trim_end_matches('\r');
    let first = column - 1;
    // A span over several lines is underlined to the end of its first.
    let length = span
        .source
        .text
        .get(span.start..span.end.max(span.start))
        .map_or(1, |spanned| spanned.split(['\n', '\r']).next().unwrap_or("").chars().count());
    let (before, marked, after) = split(line, first, length.max(1));
    let (before, after) = window(&before, &marked, &after);
    let caret = "^".repeat(columns(&marked).max(1));
    let caret = match severity {
        Severity::Error => paint.red(&caret),
        Severity::Warning => paint.yellow(&caret),
    };
    let number = line_number.to_string();
    let gutter = " ".repeat(number.len());
    let bar = paint.cyan("|");
    let _ = writeln!(text, " {gutter} {bar}");
    let _ = writeln!(text, " {} {bar} {before}{marked}{after}", paint.cyan(&number));
    let _ = writeln!(text, " {gutter} {bar} {}{caret}", " ".repeat(columns(&before)));
}

/// The line's characters before, in and after the span, tabs as four spaces.
fn split(line: &str, first: usize, length: usize) -> (String, String, String) {
    let part = |from: usize, to: usize| -> String {
        let chars = line.chars().skip(from).take(to - from);
        chars.flat_map(|c| if c == '\t' { vec![' '; 4] } else { vec![if c.is_control() { '?' } else { c }] }).collect()
    };
    (part(0, first), part(first, first + length), part(first + length, usize::MAX))
}

/// Cuts what is far from the span, so that a line of thousands of columns still shows what is wrong.
fn window(before: &str, marked: &str, after: &str) -> (String, String) {
    if columns(before) + columns(marked) + columns(after) <= WIDEST {
        return (before.to_owned(), after.to_owned());
    }
    let room = WIDEST.saturating_sub(columns(marked).min(WIDEST));
    let keep = |text: &mut dyn Iterator<Item = char>, room: usize| -> (String, bool) {
        let (mut kept, mut used) = (String::new(), 0);
        for c in text {
            used += c.width().unwrap_or(0);
            if used > room {
                return (kept, true);
            }
            kept.push(c);
        }
        (kept, false)
    };
    let (kept_after, cut_after) = keep(&mut after.chars(), (room / 2).max(room.saturating_sub(columns(before))));
    let (kept_before, cut_before) = keep(&mut before.chars().rev(), room.saturating_sub(columns(&kept_after)));
    let kept_before: String = kept_before.chars().rev().collect();
    let dots = |cut: bool| if cut { "…" } else { "" };
    (format!("{}{kept_before}", dots(cut_before)), format!("{kept_after}{}", dots(cut_after)))
}

fn columns(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flow_core::Source;

    use super::*;

    fn drawn(text: &str, marked: &str) -> String {
        let start = text.find(marked).unwrap();
        let source = Arc::new(Source { path: "p.toml".into(), text: text.into() });
        let span = Span::new(&source, start..start + marked.len());
        draw(&Diagnostic::new("it is wrong").at(Some(span)), Severity::Error, Paint::none())
    }

    #[test]
    fn the_whole_of_it() {
        let source = Arc::new(Source { path: "a/p.toml".into(), text: "[stage.x]\r\nkind = \"gunzp\"\r\n".into() });
        let diagnostic = Diagnostic::new("`gunzp` is not a stage kind")
            .at(Some(Span::new(&source, 18..25)))
            .cause("it is not in the registry")
            .hint("did you mean `gunzip`?");
        let expected = "\
error: `gunzp` is not a stage kind
  --> a/p.toml:2:8
   |
 2 | kind = \"gunzp\"
   |        ^^^^^^^
  caused by: it is not in the registry
  hint: did you mean `gunzip`?
";
        assert_eq!(draw(&diagnostic, Severity::Error, Paint::none()), expected);
        assert!(draw(&diagnostic, Severity::Warning, Paint::none()).starts_with("warning: `gunzp`"));
    }

    #[test]
    fn carets_stand_under_wide_characters() {
        let text = drawn("名前 = [\"日本語\", 1]", "\"日本語\"");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[3], " 1 | 名前 = [\"日本語\", 1]");
        assert_eq!(lines[4], "   |         ^^^^^^^^");
        assert_eq!(lines[1], "  --> p.toml:1:7");
    }

    #[test]
    fn tabs_and_many_lines() {
        let text = drawn("a = 1\n\tb = [1,\n  2]\n", "[1,\n  2]");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines[3], lines[4]), (" 2 |     b = [1,", "   |         ^^^"));
    }

    #[test]
    fn a_very_long_line_is_shown_around_the_place() {
        let text = drawn(&format!("{}WRONG{}", "a".repeat(5000), "b".repeat(5000)), "WRONG");
        let lines: Vec<_> = text.lines().collect();
        assert!(columns(lines[3]) < 130, "{}", lines[3]);
        assert!(lines[3].contains("…aaa") && lines[3].contains("aWRONGb") && lines[3].ends_with("b…"));
        assert_eq!(lines[3].find("WRONG").map(|at| columns(&lines[3][..at])), lines[4].find('^'));
    }

    #[test]
    fn a_place_past_the_end_is_survived() {
        let source = Arc::new(Source { path: "p".into(), text: String::new() });
        let text = draw(&Diagnostic::new("m").at(Some(Span::new(&source, 7..9))), Severity::Error, Paint::none());
        assert!(text.contains("--> p:1:1"), "{text}");
    }
}
