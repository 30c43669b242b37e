//! A line for the shell with places to fill: `{in.NAME}` and `{out}`. Other braces are the shell's own, unless they
//! look like one of these gone wrong.

use std::{os::unix::ffi::OsStrExt, path::PathBuf};

use anyhow::{Result, bail};
use flow_core::{Diagnostic, did_you_mean};

/// What a place is filled with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// `{in.NAME}`: where the input lies. Of several inputs the word that it is part of stands once for each: `{in.x}/*`
    /// is `a/* b/*`.
    In(String),
    /// `{out}`: the directory to fill.
    Out,
}

/// A line with places.
#[derive(Debug)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Text(String),
    Place(Placeholder),
}

impl Template {
    /// Reads a line. `${VARIABLE}` is the shell's, and so are braces that hold more than a plain name.
    ///
    /// A name in braces that is none that is known goes to `errors`, each of them.
    pub fn parse(line: &str, errors: &mut Vec<Diagnostic>) -> Self {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = line;
        while let Some(at) = rest.find('{') {
            text.push_str(&rest[..at]);
            let inner = rest[at + 1..].split_once('}').map(|(inner, _)| inner);
            let shell = text.ends_with('$');
            match inner.filter(|inner| !shell && is_name(inner)) {
                Some(inner) => {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                    match placeholder(inner) {
                        Ok(place) => parts.push(Part::Place(place)),
                        Err(error) => errors.push(error),
                    }
                    rest = &rest[at + inner.len() + 2..];
                }
                None => {
                    text.push('{');
                    rest = &rest[at + 1..];
                }
            }
        }
        text.push_str(rest);
        parts.push(Part::Text(text));
        Self { parts }
    }

    /// The names of the inputs that it uses.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Place(Placeholder::In(name)) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whether it uses `{out}`.
    pub fn uses_out(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Place(Placeholder::Out)))
    }

    /// What stands before and behind a place in the same word of the line.
    ///
    /// # Errors
    /// It cannot stand there once for each of several things.
    fn word_around(&self, at: usize) -> Result<(&str, &str)> {
        let text = |at: Option<usize>| match at.and_then(|at| self.parts.get(at)) {
            Some(Part::Text(text)) => text.as_str(),
            _ => "",
        };
        let (before, after) = (text(at.checked_sub(1)), text(Some(at + 1)));
        // Between two places is a text, if only an empty one.
        let meets = |text: &str, other: Option<usize>| {
            !text.contains(ends_word) && other.is_some_and(|at| at < self.parts.len())
        };
        let meets_another = meets(before, at.checked_sub(2)) || meets(after, Some(at + 2));
        let all_before = before;
        let before = before.rsplit(ends_word).next().unwrap_or_default();
        let ended = all_before[..all_before.len() - before.len()].strip_suffix(ends_word);
        let escaped = ended.is_some_and(|rest| rest.ends_with('\\'));
        let after = after.split(ends_word).next().unwrap_or_default();
        // `sh -c 'cat {in.x}'`: the end of a longer text in quotes.
        if before.is_empty() && matches!(after, "'" | "\"") {
            return Ok(("", ""));
        }
        if meets_another || escaped || [before, after].iter().any(|part| part.contains(['\'', '"', '\\'])) {
            bail!(
                "`{before}{{in.…}}{after}`: the input is several things, and this word cannot stand for each of them: write `for one in \
                 {{in.…}}; do … \"$one\" …; done`"
            );
        }
        Ok((before, after))
    }

    /// The line with its places filled, quoted for the shell.
    ///
    /// # Errors
    /// A path is no UTF-8, or `paths` fails.
    pub fn fill(&self, paths: impl Fn(&Placeholder) -> Result<Vec<PathBuf>>) -> Result<String> {
        let mut line = String::new();
        for (at, part) in self.parts.iter().enumerate() {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Place(place) => {
                    let paths = paths(place)?;
                    let (before, after) = if paths.len() > 1 { self.word_around(at)? } else { ("", "") };
                    for (i, path) in paths.iter().enumerate() {
                        if i > 0 {
                            line.extend([after, " ", before]);
                        }
                        let Ok(path) = std::str::from_utf8(path.as_os_str().as_bytes()) else {
                            bail!("{} is no UTF-8, and cannot stand in a command", path.display());
                        };
                        quote(path, &mut line);
                    }
                }
            }
        }
        Ok(line)
    }
}

/// What ends a word of a shell's line.
fn ends_word(c: char) -> bool {
    c.is_whitespace() || ";|&<>()`".contains(c)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "._-".contains(c)) && !text.contains("..")
}

fn placeholder(name: &str) -> Result<Placeholder, Diagnostic> {
    if name == "out" {
        return Ok(Placeholder::Out);
    }
    if let Some(input) = name.strip_prefix("in.").filter(|input| !input.is_empty()) {
        return Ok(Placeholder::In(input.to_owned()));
    }
    let error = Diagnostic::new(format!("`{{{name}}}` is nothing that can be filled in"));
    let near = did_you_mean(name, ["out", "in"]);
    Err(match near {
        Some("out") => error.hint("did you mean `{out}`?"),
        _ => error.hint("`{in.NAME}` is an input, `{out}` the directory to fill; `${NAME}` is the shell's; for another program's braces leave a space: `{ print }`"),
    })
}

/// In single quotes, unless it is plain.
pub fn quote(text: &str, line: &mut String) {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        line.push_str(text);
        return;
    }
    line.push('\'');
    line.push_str(&text.replace('\'', r"'\''"));
    line.push('\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line, and what is wrong with it.
    fn parse(line: &str) -> (Template, Vec<String>) {
        let mut errors = Vec::new();
        let template = Template::parse(line, &mut errors);
        (template, errors.into_iter().map(|error| format!("{} {}", error.message, error.hints.join(" "))).collect())
    }

    fn fill(line: &str, path: &str) -> String {
        let (template, errors) = parse(line);
        assert!(errors.is_empty(), "{errors:?}");
        template.fill(|_| Ok(vec![path.into(), "b".into()])).unwrap()
    }

    #[test]
    fn places_are_filled_and_quoted_and_the_shell_keeps_its_own() {
        assert_eq!(fill("cat {in.a} > x", "/a b"), "cat '/a b' b > x");
        // The word is there for each; what is in quotes is one word however long.
        assert_eq!(fill("cat {in.a}/* --in={in.a};", "/a"), "cat /a/* b/* --in=/a --in=b;");
        assert_eq!(fill("sh -c 'cat {in.a}'; `ls {in.a}/x`", "/a"), "sh -c 'cat /a b'; `ls /a/x b/x`");
        for wrong in ["\"{in.a}\"", "x{in.a}/'y z'", "a\\ b{in.a}", "{in.a}{in.b}", "{in.a}:{in.b}/x"] {
            let error = parse(wrong).0.fill(|_| Ok(vec!["a".into(), "b".into()])).unwrap_err();
            assert!(error.to_string().contains("for one in"), "{wrong}: {error}");
        }
        assert_eq!(fill("{in.a}", "it's $HOME;"), r"'it'\''s $HOME;' b");
        for own in ["echo ${HOME} {1..3} {a,b} { true; } {}", "awk '{print $1}' {", "awk '{ n += $1 } END { print n }'"]
        {
            assert_eq!(fill(own, "x"), own);
        }
        assert_eq!(parse("{in.a}{in.b-c}").0.inputs().collect::<Vec<_>>(), ["a", "b-c"]);
    }

    #[test]
    fn a_wrong_place_is_told() {
        let (_, errors) = parse("cp a {ouT} {in.} {out} {threads}");
        assert_eq!(errors.len(), 3, "{errors:?}");
        assert!(errors[0].ends_with("did you mean `{out}`?"), "{errors:?}");
        assert!(errors[1].contains("`{in.}`") && errors[2].contains("`{threads}`"), "{errors:?}");
    }
}
