//! [`Value`]: a TOML value that knows where it stands, and a serde deserializer over it whose errors are
//! [`Diagnostic`]s with that place.

use std::cell::RefCell;

use serde::{
    Deserializer,
    de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor},
};

use crate::{Diagnostic, Span, did_you_mean};

/// A value with its place.
#[derive(Clone, Debug)]
pub struct Value {
    /// What it is.
    pub kind: ValueKind,
    /// Where it stands.
    pub span: Option<Span>,
}

/// What a [`Value`] is.
#[derive(Clone, Debug)]
pub enum ValueKind {
    /// `"text"`
    String(String),
    /// `1`
    Integer(i64),
    /// `1.0`
    Float(f64),
    /// `true`
    Bool(bool),
    /// `[…]`
    Array(Vec<Value>),
    /// `{…}`
    Table(Table),
}

/// A table: entries in the order of the file. Look-up is linear: tables with thousands of entries (the stages) are
/// walked, not searched.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Key, place of the key, value.
    pub entries: Vec<(String, Option<Span>, Value)>,
}

impl Table {
    /// The value under `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|entry| entry.0 == key).map(|entry| &entry.2)
    }

    /// The value under `key`, to change.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        self.entries.iter_mut().find(|entry| entry.0 == key).map(|entry| &mut entry.2)
    }

    /// Takes out the value under `key`.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.entries.iter().position(|entry| entry.0 == key)?;
        Some(self.entries.remove(at).2)
    }

    /// Puts `value` under `key`, in the place of what was there.
    pub fn insert(&mut self, key: impl Into<String>, key_span: Option<Span>, value: Value) {
        let key = key.into();
        match self.entries.iter_mut().find(|entry| entry.0 == key) {
            Some(entry) => (entry.1, entry.2) = (key_span, value),
            None => self.entries.push((key, key_span, value)),
        }
    }
}

impl Value {
    /// A value with no place.
    #[must_use]
    pub fn new(kind: ValueKind) -> Self {
        Self { kind, span: None }
    }

    /// The text, if it is a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match &self.kind {
            ValueKind::String(text) => Some(text),
            _ => None,
        }
    }

    /// The table, if it is one.
    #[must_use]
    pub fn as_table(&self) -> Option<&Table> {
        match &self.kind {
            ValueKind::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The value at a path such as `optim.lr` or `urls.0`; the deepest that exists if `path` does not.
    #[must_use]
    pub fn nearest(&self, path: &str) -> &Value {
        let mut at = self;
        for part in path.split('.') {
            let next = match &at.kind {
                ValueKind::Table(table) => table.get(part),
                ValueKind::Array(items) => part.parse::<usize>().ok().and_then(|i| items.get(i)),
                _ => None,
            };
            match next {
                Some(next) => at = next,
                None => break,
            }
        }
        at
    }

    /// What it is, in a word.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self.kind {
            ValueKind::String(_) => "a string",
            ValueKind::Integer(_) => "an integer",
            ValueKind::Float(_) => "a number",
            ValueKind::Bool(_) => "a boolean",
            ValueKind::Array(_) => "an array",
            ValueKind::Table(_) => "a table",
        }
    }
}

/// Reads a `T` from a value.
///
/// # Errors
/// What does not fit, with the place of the smallest value (or key) that is wrong.
pub fn from_value<T: DeserializeOwned>(value: &Value) -> Result<T, Diagnostic> {
    T::deserialize(value)
}

thread_local! {
    /// The place of the value that a [`crate::Ref`] is being read from: serde's data model has no room for it.
    static REF_SPAN: RefCell<Option<Span>> = const { RefCell::new(None) };
}

/// The newtype name by which [`crate::Ref`] asks the deserializer for its place.
pub(crate) const REF_TOKEN: &str = "$flow::Ref";

pub(crate) fn take_ref_span() -> Option<Span> {
    REF_SPAN.with(|span| span.borrow_mut().take())
}

impl de::Error for Diagnostic {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Diagnostic::new(message.to_string())
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
        Diagnostic::new(format!("`{field}` is missing")).hint(format!("add `{field} = …`"))
    }
}

impl<'de> Deserializer<'de> for &'de Value {
    type Error = Diagnostic;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Diagnostic> {
        let result = match &self.kind {
            ValueKind::String(text) => visitor.visit_borrowed_str(text),
            ValueKind::Integer(number) => visitor.visit_i64(*number),
            ValueKind::Float(number) => visitor.visit_f64(*number),
            ValueKind::Bool(truth) => visitor.visit_bool(*truth),
            ValueKind::Array(items) => visitor.visit_seq(Items(items.iter())),
            ValueKind::Table(table) => visitor.visit_map(Entries { rest: table.entries.iter(), value: None }),
        };
        result.map_err(|error| error.at(self.span.clone()))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Diagnostic> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Diagnostic> {
        if name == REF_TOKEN {
            REF_SPAN.with(|span| (*span.borrow_mut()).clone_from(&self.span));
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Diagnostic> {
        let result = match &self.kind {
            ValueKind::String(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            ValueKind::Table(table) if table.entries.len() == 1 => visitor
                .visit_enum(de::value::MapAccessDeserializer::new(Entries { rest: table.entries.iter(), value: None })),
            _ => Err(Diagnostic::new(format!("expected a string, found {}", self.type_name()))),
        };
        result.map_err(|error| error.at(self.span.clone()))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'a>(std::slice::Iter<'a, Value>);

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = Diagnostic;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Diagnostic> {
        self.0.next().map(|item| seed.deserialize(item)).transpose()
    }
    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Entries<'a> {
    rest: std::slice::Iter<'a, (String, Option<Span>, Value)>,
    value: Option<&'a Value>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Diagnostic;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Diagnostic> {
        let Some((key, span, value)) = self.rest.next() else { return Ok(None) };
        self.value = Some(value);
        let key: de::value::StrDeserializer<'_, Diagnostic> = key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.at(span.clone()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Diagnostic> {
        let value = self.value.take().ok_or_else(|| Diagnostic::new("a value was read before its key"))?;
        seed.deserialize(value).map_err(|error| error.at(value.span.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ref, Refs, Source};
    use serde::Deserialize;
    use std::sync::Arc;

    #[derive(Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Params {
        input: Ref,
        steps: u32,
        lr: f64,
        #[serde(default)]
        list: Vec<Ref>,
        #[serde(default)]
        many: Option<Refs>,
    }

    fn value(source: &Arc<Source>, at: usize, kind: ValueKind) -> Value {
        Value { kind, span: Some(Span::new(source, at..at + 1)) }
    }

    fn table(entries: Vec<(&str, ValueKind)>) -> (Arc<Source>, Value) {
        let source = Arc::new(Source { path: "p".into(), text: " ".repeat(100) });
        let entries = entries
            .into_iter()
            .enumerate()
            .map(|(i, (key, kind))| {
                (key.to_owned(), Some(Span::new(&source, 10 * i..10 * i + 1)), value(&source, 10 * i + 5, kind))
            })
            .collect();
        let value = value(&source, 99, ValueKind::Table(Table { entries }));
        (source, value)
    }

    #[test]
    fn errors_point_at_the_smallest_wrong_thing() {
        let text = |t: &str| ValueKind::String(t.into());
        let good = vec![("input", text("raw")), ("steps", ValueKind::Integer(3)), ("lr", ValueKind::Integer(1))];
        let (source, v) = table(good.clone());
        let params: Params = from_value(&v).unwrap();
        assert_eq!((params.input.text(), params.input.span().unwrap().start, params.lr), ("raw", 5, 1.0));

        let mut several = good.clone();
        several.push(("many", text("a")));
        let many = from_value::<Params>(&table(several.clone()).1).unwrap().many.unwrap();
        assert_eq!((many[0].text(), many[0].span().unwrap().start), ("a", 35));
        several[3].1 = ValueKind::Array(vec![value(&source, 42, text("a")), value(&source, 44, text("b"))]);
        let many = from_value::<Params>(&table(several).1).unwrap().many.unwrap();
        assert_eq!(many.iter().map(|r| r.span().unwrap().start).collect::<Vec<_>>(), [42, 44]);

        let mut unknown = good.clone();
        unknown.push(("stpes", ValueKind::Integer(1)));
        let error = from_value::<Params>(&table(unknown).1).unwrap_err();
        assert_eq!((error.message.as_str(), error.span.unwrap().start), ("unknown key `stpes`", 30));
        assert_eq!(error.hints, ["did you mean `steps`?"]);

        let mut wrong = good.clone();
        wrong[1].1 = text("many");
        let error = from_value::<Params>(&table(wrong).1).unwrap_err();
        assert_eq!(error.span.unwrap().start, 15);

        let error = from_value::<Params>(&table(good[..2].to_vec()).1).unwrap_err();
        assert_eq!((error.message.as_str(), error.span.unwrap().start), ("`lr` is missing", 99));
    }

    #[test]
    fn a_path_leads_to_the_nearest_value() {
        let (source, mut v) = table(vec![("input", ValueKind::Integer(1))]);
        let inner = Table { entries: vec![("lr".into(), None, value(&source, 77, ValueKind::Float(0.1)))] };
        let ValueKind::Table(t) = &mut v.kind else { unreachable!() };
        t.insert("optim", None, value(&source, 70, ValueKind::Table(inner)));
        assert_eq!(v.nearest("optim.lr").span.as_ref().unwrap().start, 77);
        assert_eq!(v.nearest("optim.eps").span.as_ref().unwrap().start, 70);
        assert_eq!(v.nearest("nothing").span.as_ref().unwrap().start, 99);
    }
}
