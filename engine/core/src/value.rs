//! [`Value`]: a TOML value that knows where it stands. Structs are read from it in [`crate::read`].

use crate::Span;

/// A value with its place.
#[derive(Clone, Debug, Default)]
pub struct Value {
    /// What it is.
    pub kind: ValueKind,
    /// Where it stands.
    pub span: Option<Span>,
}

/// What a [`Value`] is.
#[derive(Clone, Debug, Default)]
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
    /// What is wrong with it was said already: nobody complains of it again.
    #[default]
    Wrong,
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
            ValueKind::String(_) => "a text",
            ValueKind::Integer(_) => "an integer",
            ValueKind::Float(_) => "a number",
            ValueKind::Bool(_) => "true or false",
            ValueKind::Array(_) => "a list",
            ValueKind::Table(_) => "a table",
            ValueKind::Wrong => "nothing",
        }
    }
}

impl Value {
    /// It, and all that is in it, are what the user meant.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        match &self.kind {
            ValueKind::Wrong => false,
            ValueKind::Array(items) => items.iter().all(Self::is_sound),
            ValueKind::Table(table) => table.entries.iter().all(|entry| entry.2.is_sound()),
            _ => true,
        }
    }

    /// Whether `other` is this very value, or stands somewhere in it.
    pub(crate) fn holds(&self, other: *const Self) -> bool {
        std::ptr::eq(self, other)
            || match &self.kind {
                ValueKind::Array(items) => items.iter().any(|item| item.holds(other)),
                ValueKind::Table(table) => table.entries.iter().any(|entry| entry.2.holds(other)),
                _ => false,
            }
    }
}
