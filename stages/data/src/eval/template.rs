//! What a task file makes of a document: Jinja templates over its columns, as lm-evaluation-harness fills them in.

use std::{borrow::Cow, collections::BTreeMap};

use anyhow::{Context as _, Result, anyhow, bail};
use flow_core::Diagnostic;
use minijinja::{
    Environment, Error, ErrorKind, UndefinedBehavior, Value,
    syntax::SyntaxConfig,
    value::{Serde, ValueKind},
};
use minijinja_contrib::pycompat::unknown_method_callback;
use regex::Regex;
use serde_json::{Map, Value as Json};

use super::literal::literal;

/// A document: an object of a JSON line.
#[derive(Clone, Debug, PartialEq)]
pub struct Document(pub Map<String, Json>);

impl Document {
    /// Reads a line.
    ///
    /// # Errors
    /// It is not one JSON object.
    pub fn of_line(line: &[u8]) -> Result<Self> {
        if line.trim_ascii().is_empty() {
            bail!("a blank line");
        }
        match serde_json::from_slice(line)? {
            Json::Object(fields) => Ok(Self(fields)),
            _ => bail!("it is no JSON object"),
        }
    }
}

/// The templates of a task, by the fields that they stand in.
#[derive(Debug)]
pub struct Templates {
    env: Environment<'static>,
    sources: BTreeMap<String, String>,
}

impl Templates {
    /// No templates yet.
    pub fn new() -> Self {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        let mut syntax = SyntaxConfig::builder();
        syntax.keep_trailing_newline(true);
        env.set_syntax(syntax.build().expect("the usual signs"));
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(unknown_method_callback);
        env.add_filter("regex_replace", regex_replace);
        env.add_filter("literal", literal);
        Self { env, sources: BTreeMap::new() }
    }

    /// Takes the template of a field.
    pub fn add(&mut self, field: &str, source: &str, errors: &mut Vec<Diagnostic>) {
        if let Err(error) = self.env.add_template_owned(field.to_owned(), source.to_owned()) {
            let wrong = Diagnostic::new(format!("`{field}` is no template")).field(field).cause(words(&error));
            errors.push(wrong.hint("templates are Jinja's: \"{{question}}\", or the name of a column"));
        }
        self.sources.insert(field.to_owned(), source.to_owned());
    }

    /// Whether a field has a template.
    pub fn has(&self, field: &str) -> bool {
        self.sources.contains_key(field)
    }

    /// What a field's template makes of a document: the value of the column that it names, a list if its only expression gives
    /// one, or else its text.
    ///
    /// # Errors
    /// A column is not there; the template fails.
    pub fn fill(&self, field: &str, document: &Document) -> Result<Json> {
        let source = self.sources.get(field).with_context(|| format!("there is no `{field}`"))?;
        if let Some(value) = document.0.get(source) {
            return Ok(value.clone());
        }
        // A word alone is a column, and not a text that is the same for all documents. A choice may be a word.
        let is_word =
            source.starts_with(char::is_alphabetic) && source.chars().all(|c| c.is_alphanumeric() || c == '_');
        if is_word && !field.contains('.') && field != "description" {
            bail!("`{field}`: there is no column `{source}`{}", columns(document));
        }
        if let Some(list) = expression(source).and_then(|expression| self.listed(expression, document)) {
            return Ok(list);
        }
        let filled = self.env.get_template(field).and_then(|template| template.render(Serde(&document.0)));
        filled.map(Json::String).map_err(|error| failed(field, document, &error))
    }

    /// The list that an expression gives; nothing if it gives something else.
    fn listed(&self, expression: &str, document: &Document) -> Option<Json> {
        let value = self.env.compile_expression(expression).and_then(|e| e.eval(Serde(&document.0))).ok()?;
        if value.kind() == ValueKind::Seq { serde_json::to_value(&value).ok() } else { None }
    }

    /// The same as text.
    ///
    /// # Errors
    /// As there; or it is a list or an object.
    pub fn text(&self, field: &str, document: &Document) -> Result<String> {
        plain(self.fill(field, document)?).with_context(|| format!("`{field}`"))
    }

    /// What a field's template makes as a list: the column that it names, or what its only expression gives.
    ///
    /// # Errors
    /// As there; or it is no list of texts.
    pub fn list(&self, field: &str, document: &Document) -> Result<Vec<String>> {
        let source = self.sources.get(field).with_context(|| format!("there is no `{field}`"))?;
        let value = match (document.0.get(source), expression(source)) {
            (Some(value), _) => value.clone(),
            (None, Some(expression)) => {
                let given = self.env.compile_expression(expression).and_then(|e| e.eval(Serde(&document.0)));
                let given = given.map_err(|error| failed(field, document, &error))?;
                serde_json::to_value(&given).with_context(|| format!("`{field}`"))?
            }
            (None, None) => bail!("`{field}`: there is no column `{source}`{}", columns(document)),
        };
        match value {
            Json::Array(items) => {
                items.into_iter().map(plain).collect::<Result<_>>().with_context(|| format!("`{field}`"))
            }
            other => bail!("`{field}` gives {other}, and a list is needed"),
        }
    }
}

/// What stands in a template that is one expression and nothing else.
fn expression(source: &str) -> Option<&str> {
    let inside = source.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    (!inside.contains("{{") && !inside.contains("}}")).then_some(inside)
}

/// A value as Jinja would print it.
fn plain(value: Json) -> Result<String> {
    Ok(match value {
        Json::String(text) => text,
        Json::Number(number) => number.to_string(),
        Json::Bool(truth) => if truth { "True" } else { "False" }.to_owned(),
        Json::Null => "None".to_owned(),
        Json::Array(_) | Json::Object(_) => bail!("a text is needed, and this is {value}"),
    })
}

fn failed(field: &str, document: &Document, error: &Error) -> anyhow::Error {
    let more = if error.kind() == ErrorKind::UndefinedError { columns(document) } else { String::new() };
    anyhow!("`{field}`: {}{more}", words(error))
}

/// What went wrong, without what the library says of its own templates.
fn words(error: &Error) -> String {
    let detail = error.detail().map_or(Cow::Owned(error.kind().to_string()), Cow::Borrowed);
    match error.line() {
        Some(line) if line > 1 => format!("{detail} (line {line} of the template)"),
        _ => detail.into_owned(),
    }
}

/// For who named a column that is not there.
fn columns(document: &Document) -> String {
    let names: Vec<&str> = document.0.keys().map(String::as_str).collect();
    format!(": the columns are {}", names.join(", "))
}

/// `{{ text | regex_replace("\\[.*?\\]", "") }}`, as lm-evaluation-harness has it.
fn regex_replace(text: &str, pattern: &str, by: &str, count: Option<usize>) -> Result<Value, Error> {
    let regex = Regex::new(pattern).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))?;
    Ok(Value::from(regex.replacen(text, count.unwrap_or(0), by).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Document {
        Document::of_line(r#"{"a": "x < y", "n": 3, "f": 1.0, "yes": true, "list": ["p", "q"]}"#.as_bytes()).unwrap()
    }

    #[test]
    fn templates_are_filled_as_jinja2_does() {
        let mut errors = Vec::new();
        let mut templates = Templates::new();
        // By jinja2 3.1.6, with StrictUndefined and keep_trailing_newline.
        let cases = [
            ("a", "x < y"),
            ("n", "3"),
            ("{{a}}|{{n}}|{{f}}|{{yes}}|{{list}}\n", "x < y|3|1.0|True|['p', 'q']\n"),
            ("{{a.upper()}} {{ list|join('+') }} {{ \"ABCD\".find('C') }}", "X < Y p+q 2"),
            ("{% if yes %}T{% else %}F{% endif %} {{ a | regex_replace('[<>]', 'is') }}", "T x is y"),
            ("{{ a.strip().split(' ')[0] }}{{ n + 1 }}{{ list[1] }}", "x4q"),
        ];
        for (i, (source, expected)) in cases.into_iter().enumerate() {
            templates.add(&i.to_string(), source, &mut errors);
            assert_eq!(templates.text(&i.to_string(), &document()).unwrap(), expected);
        }
        templates.add("list", "list", &mut errors);
        templates.add("made", "{{ [a, 'b'] }}", &mut errors);
        assert_eq!(templates.list("list", &document()).unwrap(), ["p", "q"]);
        assert_eq!(templates.list("made", &document()).unwrap(), ["x < y", "b"]);
        assert!(errors.is_empty());
    }

    #[test]
    fn what_is_not_there_is_said() {
        let mut errors = Vec::new();
        let mut templates = Templates::new();
        templates.add("text", "Question: {{qestion}}", &mut errors);
        templates.add("choices", "a", &mut errors);
        templates.add("target", "lable", &mut errors);
        templates.add("choices.0", "no", &mut errors);
        assert_eq!(templates.text("choices.0", &document()).unwrap(), "no");
        let missing = templates.text("target", &document()).unwrap_err().to_string();
        assert_eq!(missing, "`target`: there is no column `lable`: the columns are a, f, list, n, yes");
        let error = templates.text("text", &document()).unwrap_err().to_string();
        assert!(error.starts_with("`text`: ") && error.ends_with(": the columns are a, f, list, n, yes"), "{error}");
        assert!(templates.list("choices", &document()).unwrap_err().to_string().contains("a list is needed"));
        assert!(errors.is_empty());
        templates.add("text", "{{ a", &mut errors);
        assert_eq!(errors[0].field.as_deref(), Some("text"));
    }
}
