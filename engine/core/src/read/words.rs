//! What serde says, in words of the file that the user wrote.

use serde::de::{self, Expected, Unexpected};

use crate::{Diagnostic, Value, ValueKind, did_you_mean};

/// How an error about a type begins.
pub const EXPECTED: &str = "expected ";

/// More of a text is not shown.
const LONGEST: usize = 40;

impl de::Error for Diagnostic {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Diagnostic::new(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Diagnostic::new(format!("{EXPECTED}{}, found {}", translated(&expected.to_string()), describe(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn invalid_length(len: usize, expected: &dyn Expected) -> Self {
        Diagnostic::new(format!("{EXPECTED}{}, found {len}", translated(&expected.to_string())))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let error = Diagnostic::new(format!("unknown key `{field}`"));
        match did_you_mean(field, expected.iter().copied()) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None if expected.is_empty() => error.hint("no keys are expected here"),
            None => error.hint(format!("known keys: {}", expected.join(", "))),
        }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let error = Diagnostic::new(format!("`{variant}` is not a choice here"));
        let error = match did_you_mean(variant, expected.iter().copied()) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        };
        error.hint(format!("the choices: {}", expected.join(", ")))
    }

    fn missing_field(field: &'static str) -> Self {
        // The reader of the table takes the field out again.
        Diagnostic::new(format!("`{field}` is missing")).hint(format!("add `{field} = …`")).field(field)
    }

    fn duplicate_field(field: &'static str) -> Self {
        Diagnostic::new(format!("`{field}` stands there twice"))
    }
}

/// serde's own words for types are Rust's.
fn translated(expected: &str) -> String {
    let list_of = |prefix: &str| expected.strip_prefix(prefix).map(|len| format!("a list of {len}"));
    match expected {
        "a string" | "string" | "str" => "a text".into(),
        "a boolean" | "bool" => "true or false".into(),
        "a sequence" | "sequence" => "a list".into(),
        "a map" | "map" => "a table".into(),
        "f32" | "f64" => "a number".into(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "an integer".into(),
        "u8" | "u16" | "u32" | "u64" | "usize" => "an integer from 0 on".into(),
        _ if expected.starts_with("struct ") => "a table".into(),
        _ if expected.starts_with("enum ") || expected.starts_with("variant ") => "one of its choices".into(),
        _ => list_of("an array of length ")
            .or_else(|| list_of("a tuple of size "))
            .unwrap_or_else(|| expected.to_owned()),
    }
}

fn describe(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(truth) => format!("`{truth}`"),
        Unexpected::Unsigned(number) => format!("{number}"),
        Unexpected::Signed(number) => format!("{number}"),
        Unexpected::Float(number) => format!("the number {number:?}"),
        Unexpected::Str(text) if text.chars().count() > LONGEST => {
            format!("the text \"{}…\"", text.chars().take(LONGEST).collect::<String>())
        }
        Unexpected::Str(text) => format!("the text \"{text}\""),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map => "a table".into(),
        other => other.to_string(),
    }
}

/// What to write instead, where that is plain.
pub fn fix(key: &str, value: &Value, message: &str) -> Option<String> {
    let expected = message.strip_prefix(EXPECTED)?.split(", found").next()?;
    let span = value.span.as_ref()?;
    let written = span.source.text.get(span.start..span.end)?;
    if written.len() > LONGEST || written.contains('\n') {
        return None;
    }
    let expects = |word: &str| expected.contains(word);
    match &value.kind {
        ValueKind::String(text)
            if (expects("number") && text.parse::<f64>().is_ok_and(f64::is_finite))
                || (expects("integer") && text.parse::<i64>().is_ok())
                || (expects("true or false") && text.parse::<bool>().is_ok()) =>
        {
            Some(format!("without quotes: {key} = {text}"))
        }
        ValueKind::Float(number) if expects("integer") && number.fract() == 0.0 && number.abs() < 1e15 => {
            Some(format!("{key} = {number:.0}"))
        }
        // Where a number may stand, too, it is wrong in itself.
        ValueKind::Integer(_) | ValueKind::Float(_) | ValueKind::Bool(_) if expects("a text") && !expects("number") => {
            Some(format!("in quotes: {key} = \"{written}\""))
        }
        ValueKind::String(_) if expected == "a list" && written.starts_with(['"', '\'']) => {
            Some(format!("in brackets: {key} = [{written}]"))
        }
        _ => None,
    }
}
