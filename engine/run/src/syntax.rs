//! TOML text → [`Value`] with the place of every key and value. Nothing here knows what a pipeline is.

use std::{fs::File, io::Read, ops::Range, path::Path, sync::Arc};

use flow_core::{Diagnostic, Source, Span, Table, Value, ValueKind, did_you_mean};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{frozen, looks, pieces, settings::SETTINGS_FILE};

/// No file that a person or flow writes is bigger, and one without an end, such as `/dev/zero`, is none.
const MOST: u64 = 64 << 20;

/// Reads a TOML file.
///
/// # Errors
/// It cannot be read or is not UTF-8; or everything in it that is no TOML, or no value to compute with.
pub fn read(path: &Path) -> Result<Value, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    let value = read_lenient(path, &mut errors)?;
    if errors.is_empty() { Ok(value) } else { Err(errors) }
}

/// As [`read`], but what is wrong with single values goes to `errors`, and they are [`ValueKind::Wrong`].
///
/// # Errors
/// As there.
pub fn read_lenient(path: &Path, errors: &mut Vec<Diagnostic>) -> Result<Value, Vec<Diagnostic>> {
    let unreadable = |cause: String| Diagnostic::new(format!("cannot read {}", path.display())).cause(cause);
    let mut bytes = Vec::new();
    let read = match frozen::text(path) {
        Some(text) => {
            bytes.extend_from_slice(text.as_bytes());
            Ok(text.len())
        }
        None => File::open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes)),
    };
    read.map_err(|error| vec![near(path, unreadable(error.to_string()))])?;
    if bytes.len() as u64 > MOST {
        let error = unreadable(format!("it has more than {} MiB", MOST >> 20));
        return Err(vec![error.hint("a text of that size is nobody's: is it the right file?")]);
    }
    looks::read(path, &bytes);
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
        let source = Arc::new(Source { path: path.to_owned(), text });
        let error = Diagnostic::new("this is not UTF-8, and so not TOML").at(Some(Span::new(&source, at..at + 1)));
        vec![error.hint("save the file as UTF-8")]
    })?;
    parse(path, text, errors)
}

/// For a file that is not there: which ones are.
fn near(path: &Path, error: Diagnostic) -> Diagnostic {
    if path.is_dir() {
        let inside = pipelines_in(path);
        return match inside.as_slice() {
            [] => error,
            _ => error.hint(format!("it is a directory; in it are: {}", inside.join(", "))),
        };
    }
    if path.exists() {
        return error;
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = pipelines_in(folder);
    if found.is_empty() && folder == Path::new(".") {
        found = pipelines_in(Path::new("pipelines"));
    }
    let wanted = path.to_string_lossy();
    match did_you_mean(&wanted, found.iter().map(String::as_str)) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None if found.is_empty() => error.hint("`flow init` writes a pipeline to begin with"),
        None => error.hint(format!("pipelines here: {}", found.join(", "))),
    }
}

/// The TOML files in a folder that may be pipelines, as a person would name them, a few of them.
fn pipelines_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml") && path.is_file())
        .filter(|path| !path.file_name().is_some_and(|name| name == "Cargo.toml" || name == SETTINGS_FILE))
        .map(|path| path.strip_prefix("./").unwrap_or(&path).display().to_string())
        .collect();
    names.sort();
    names.truncate(10);
    names
}

/// Reads TOML text; `path` is what places are said with.
///
/// # Errors
/// Every syntax error in it, if one of them may be about more than a single value. What is wrong with single values goes
/// to `errors`.
pub fn parse(path: &Path, text: String, errors: &mut Vec<Diagnostic>) -> Result<Value, Vec<Diagnostic>> {
    let source = Arc::new(Source { path: path.to_owned(), text });
    if let Some(whole) = pieces::parse(&source, errors) {
        return Ok(whole);
    }
    let (document, wrong) = DeTable::parse_recoverable(&source.text);
    let place = |error: &toml::de::Error| (error.span().unwrap_or(0..0), is_second_key(error, &source.text));
    let places = wrong.iter().map(place).collect();
    let mut reader = Reader { source: &source, base: 0, wrong: places, errors };
    let span = reader.span(document.span());
    let table = reader.table(document.into_inner());
    let contained = reader.wrong.iter().all(|(_, found)| *found);
    let said = syntax_errors(&wrong, &source);
    if !contained {
        return Err(said);
    }
    errors.extend(said);
    Ok(Value { kind: ValueKind::Table(table), span: Some(span) })
}

/// Reads a piece of a source that is TOML in itself; nothing if something is wrong with it as TOML.
pub fn parse_piece(source: &Arc<Source>, piece: Range<usize>, errors: &mut Vec<Diagnostic>) -> Option<Table> {
    let (document, wrong) = DeTable::parse_recoverable(&source.text[piece.clone()]);
    let mut reader = Reader { source, base: piece.start, wrong: Vec::new(), errors };
    wrong.is_empty().then(|| reader.table(document.into_inner()))
}

/// Reads the right side of `--set path=value` or of an environment variable, which begins at byte `at` of the source: a
/// TOML value if it is one, else the text itself.
pub fn parse_assigned(source: &Arc<Source>, at: usize, errors: &mut Vec<Diagnostic>) -> Value {
    let text = &source.text[at..];
    let whole = Some(Span::new(source, at..source.text.len()));
    match DeValue::parse(text.trim()) {
        Ok(parsed) => {
            let mut wrong = Vec::new();
            let mut parsed = Reader { source, base: 0, wrong: Vec::new(), errors: &mut wrong }.value(parsed);
            set_span(&mut parsed, whole.as_ref());
            let placed = |error| Diagnostic { span: whole.clone(), ..error };
            errors.extend(wrong.into_iter().map(placed));
            parsed
        }
        Err(_) => Value { kind: ValueKind::String(text.to_owned()), span: whole },
    }
}

/// Gives a value and all in it one place.
fn set_span(value: &mut Value, span: Option<&Span>) {
    value.span = span.cloned();
    match &mut value.kind {
        ValueKind::Array(items) => items.iter_mut().for_each(|item| set_span(item, span)),
        ValueKind::Table(table) => table.entries.iter_mut().for_each(|entry| {
            entry.1 = span.cloned();
            set_span(&mut entry.2, span);
        }),
        _ => {}
    }
}

/// A key stands there twice: one of both is read, and all else is as it is written. Of a table there may be more that is not.
fn is_second_key(error: &toml::de::Error, text: &str) -> bool {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.rsplit('\n').next().unwrap_or_default();
    error.message().starts_with("duplicate key") && !line.trim_start().starts_with('[')
}

/// What is no TOML, with what to type instead.
fn syntax_errors(wrong: &[toml::de::Error], source: &Arc<Source>) -> Vec<Diagnostic> {
    let mut errors = Vec::new();
    // The keys of a table that stands there twice are twice there as well: that is one mistake.
    let mut doubled = false;
    for error in wrong {
        let range = error.span().unwrap_or(0..0);
        let text = &source.text;
        let at = (0..=range.start.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[start..].lines().next().unwrap_or_default().trim();
        let duplicate = error.message().starts_with("duplicate key");
        if duplicate && doubled && !line.starts_with('[') {
            continue;
        }
        doubled = duplicate && line.starts_with('[');
        let span = Span::new(source, range);
        let diagnostic = Diagnostic::new(error.message().trim().replace('\n', ", ")).at(Some(span));
        let hint = if duplicate { first_of(text, start, line) } else { syntax_hint(error.message(), line) };
        errors.push(match hint {
            Some(hint) => diagnostic.hint(hint),
            None => diagnostic,
        });
    }
    errors
}

/// Where the key or table of this line stands for the first time: in an earlier line of the same table.
fn first_of(text: &str, start: usize, line: &str) -> Option<String> {
    let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
    let is_table = line.starts_with('[');
    let mut first = None;
    for (number, earlier) in text[..start].lines().enumerate() {
        let earlier = earlier.trim();
        if !is_table && earlier.starts_with('[') {
            first = None;
        } else if first.is_none() && (if is_table { earlier == line } else { key(earlier) == key(line) }) {
            first = Some(number + 1);
        }
    }
    let first = first?;
    Some(format!("it stands in line {first} for the first time: remove one of them, or make one of both"))
}

/// What to type instead, for the usual slips.
fn syntax_hint(message: &str, line: &str) -> Option<String> {
    let (key, value) = line.split_once('=').map_or((line, ""), |(key, value)| (key.trim(), value.trim()));
    let starts = |with: &str| message.starts_with(with);
    if starts("string values must be quoted") {
        return Some(match value {
            "" => format!("a value is missing: {key} = …"),
            _ => format!("a text stands in quotes: {key} = \"{value}\""),
        });
    }
    let hint = match line.split_once(':') {
        Some((key, value)) if starts("invalid unquoted key") && !key.contains(['=', '"']) => {
            return Some(format!("TOML has `=` and not `:`: {} = {}", key.trim(), value.trim()));
        }
        _ if starts("invalid basic string") => "close the text with `\"`, or put one of several lines in `\"\"\"`",
        _ if starts("invalid literal string") => "close the text with `'`, or put one of several lines in `'''`",
        _ if starts("unclosed array") => "close the list with `]`",
        _ if starts("unclosed inline table") => "close the table with `}`",
        _ if starts("unclosed table") => "a table begins with its name in brackets: [stage.NAME]",
        _ if starts("key with no value") => return Some(format!("write {} = …", line.split_whitespace().next()?)),
        _ if starts("invalid boolean") => "`true` and `false` are written small",
        _ if starts("unexpected key or value") => {
            "every `key = value` has its own line; a text with `'` in it stands in `\"`"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// What the parser made of a text → [`Value`]s.
struct Reader<'a> {
    source: &'a Arc<Source>,
    /// Where in it the text begins that was parsed.
    base: usize,
    /// Where the parser complains, and whether that turned out to be about a single value.
    wrong: Vec<(Range<usize>, bool)>,
    errors: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    fn span(&self, range: Range<usize>) -> Span {
        Span::new(self.source, self.base + range.start..self.base + range.end)
    }

    fn table(&mut self, from: DeTable<'_>) -> Table {
        // Not collected: that would keep the parser's own, much larger, memory.
        let mut entries = Vec::with_capacity(from.len());
        entries.extend(from.into_iter().map(|(key, entry)| {
            let span = self.span(key.span());
            (key.into_inner().into_owned(), Some(span), self.value(entry))
        }));
        Table { entries }
    }

    /// Whether the parser complains of this value, and of nothing around it: the rest of the text stands as it is.
    fn is_wrong(&mut self, at: &Range<usize>) -> bool {
        let mut wrong = false;
        for (place, found) in &mut self.wrong {
            let inside = at.start <= place.start && place.end <= at.end;
            // One that is never closed takes the lines that follow with it.
            if inside && !self.source.text.get(at.clone()).is_some_and(|text| text.contains('\n')) {
                (*found, wrong) = (true, true);
            }
        }
        wrong
    }

    fn value(&mut self, value: Spanned<DeValue<'_>>) -> Value {
        let range = value.span();
        let span = Some(self.span(range.clone()));
        let value = value.into_inner();
        let is_scalar = !matches!(value, DeValue::Array(_) | DeValue::Table(_));
        if is_scalar && !self.wrong.is_empty() && self.is_wrong(&range) {
            return Value { kind: ValueKind::Wrong, span };
        }
        let mut wrong = |message: String| {
            self.errors.push(Diagnostic::new(message).at(span.clone()));
            ValueKind::Wrong
        };
        let kind = match value {
            DeValue::String(text) => ValueKind::String(text.into_owned()),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => ValueKind::Integer(number),
                Err(_) => wrong(format!("the integer `{number}` is too big: the largest is {}", i64::MAX)),
            },
            DeValue::Float(number) => match number.as_str().parse::<f64>() {
                Ok(number) if number.is_finite() => ValueKind::Float(number),
                _ => wrong(format!("`{number}` is not a number to compute with: it must be finite")),
            },
            DeValue::Boolean(truth) => ValueKind::Bool(truth),
            DeValue::Datetime(date) => ValueKind::String(date.to_string()),
            DeValue::Array(items) => {
                let mut values = Vec::with_capacity(items.len());
                values.extend(items.into_iter().map(|item| self.value(item)));
                ValueKind::Array(values)
            }
            DeValue::Table(entries) => ValueKind::Table(self.table(entries)),
        };
        Value { kind, span }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &Path, text: String) -> Result<Value, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let value = super::parse(path, text, &mut errors)?;
        if errors.is_empty() { Ok(value) } else { Err(errors) }
    }

    fn assigned(text: &str) -> Value {
        let source = Arc::new(Source { path: "--set".into(), text: text.to_owned() });
        let mut errors = Vec::new();
        let value = parse_assigned(&source, 2, &mut errors);
        assert_eq!(errors.is_empty(), value.is_sound(), "{errors:?}");
        value
    }

    fn place(value: &Value) -> (usize, usize) {
        value.span.as_ref().unwrap().line_column()
    }

    #[test]
    fn every_value_and_key_knows_its_place_and_order_is_kept() {
        let text = "z = 1\na = [\"x\", 0x1F]\n[b.c]\nd = 1_000\ne = -2.5e3\nf = 2026-01-02\n";
        let root = parse(Path::new("p.toml"), text.into()).unwrap();
        let table = root.as_table().unwrap();
        let keys: Vec<_> = table.entries.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(keys, ["z", "a", "b"]);
        assert_eq!(place(root.nearest("a.1")), (2, 11));
        assert!(matches!(root.nearest("a.1").kind, ValueKind::Integer(31)));
        assert!(matches!(root.nearest("b.c.d").kind, ValueKind::Integer(1000)));
        assert_eq!(place(root.nearest("b.c.d")), (4, 5));
        assert!(matches!(root.nearest("b.c.e").kind, ValueKind::Float(number) if number == -2500.0));
        assert_eq!(root.nearest("b.c.f").as_str(), Some("2026-01-02"));
    }

    #[test]
    fn all_syntax_errors_are_said_with_their_places() {
        let text = "a = \nb = 1\nc = 'x\nd = 99999999999999999999\n";
        let errors = parse(Path::new("p.toml"), text.into()).unwrap_err();
        let lines: Vec<_> = errors.iter().map(|e| e.span.as_ref().unwrap().line_column().0).collect();
        assert!(lines.contains(&1) && lines.contains(&3), "{errors:?}");
        let text = "d = 99999999999999999999\ne = inf\nd2 = 1";
        let errors = parse(Path::new("p.toml"), text.into()).unwrap_err();
        assert_eq!(errors.len(), 2);
        assert_eq!(errors[0].span.as_ref().unwrap().line_column(), (1, 5));
        let errors = parse(Path::new("p.toml"), "a = 1\na = 2".into()).unwrap_err();
        assert!(errors[0].message.contains("duplicate"), "{errors:?}");
        assert_eq!(errors[0].span.as_ref().unwrap().line_column().0, 2);
        let errors = parse(Path::new("p.toml"), "a = 1\na = 2\nd = 99999999999999999999".into()).unwrap_err();
        let said: Vec<_> = errors.iter().map(|error| error.message.split(' ').next().unwrap()).collect();
        assert_eq!(said, ["the", "duplicate"], "a key that stands there twice hides nothing else");
    }

    #[test]
    fn an_assigned_value_is_toml_or_else_text() {
        let parsed = |text: &str| assigned(text).kind;
        assert!(matches!(parsed("a=3"), ValueKind::Integer(3)));
        assert!(matches!(parsed("a={0..2}"), ValueKind::String(text) if text == "{0..2}"));
        assert!(matches!(parsed("a=hello"), ValueKind::String(text) if text == "hello"));
        assert!(matches!(parsed("a=\"3\""), ValueKind::String(text) if text == "3"));
        assert!(matches!(parsed("a=[1, 2]"), ValueKind::Array(items) if items.len() == 2));
        for bad in ["a=99999999999999999999", "a=inf", "a=[1, nan]"] {
            assert!(!assigned(bad).is_sound(), "{bad}");
        }
        assert!(matches!(parsed("a="), ValueKind::String(text) if text.is_empty()));
        assert_eq!(place(&assigned("a=x")), (1, 3));
    }
}
