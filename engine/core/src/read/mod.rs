//! Reads structs from [`Value`]s, with every error at once.
//!
//! serde stops at the first error. So what is wrong is read again with a stand-in for the value that does not fit, the
//! key that is not known left away, the missing one added: until it can be read, or nothing more can be learnt.
//! What is right is read once, and pays nothing for this.

mod reader;
mod stand_in;
#[cfg(test)]
mod tests;
mod words;

use std::{cell::RefCell, collections::HashMap};

use serde::de::DeserializeOwned;

use crate::{Diagnostic, Span, Value, ValueKind};
use reader::Reader;

/// What could be read of a value.
#[derive(Debug)]
pub struct Read<T> {
    /// It; if not [`Read::sound`], some of it is made up and only serves to find more errors.
    pub value: Option<T>,
    /// All that does not fit.
    pub errors: Vec<Diagnostic>,
    /// The keys of the outermost table whose values are made up.
    pub made_up: Vec<String>,
    /// The same, as deep as it is known: `sched.name`.
    pub made_up_at: Vec<String>,
}

impl<T> Read<T> {
    /// Whether it is what the user wrote.
    #[must_use]
    pub fn sound(&self) -> bool {
        self.errors.is_empty() && self.made_up.is_empty() && self.value.is_some()
    }
}

/// Reads a `T` from a value.
///
/// # Errors
/// The first that does not fit, with the place of the smallest value (or key) that is wrong.
pub fn from_value<T: DeserializeOwned>(value: &Value) -> Result<T, Diagnostic> {
    T::deserialize(Reader { value, key: "", recovery: None })
}

/// Reads a `T` from a value, or finds all that does not fit.
pub fn read<T: DeserializeOwned>(root: &Value) -> Read<T> {
    if let Ok(value) = from_value(root) {
        return Read { value: Some(value), errors: Vec::new(), made_up: Vec::new(), made_up_at: Vec::new() };
    }
    let recovery = Recovery::default();
    let mut errors = Vec::new();
    let value = loop {
        match T::deserialize(Reader { value: root, key: "", recovery: Some(&recovery) }) {
            Ok(value) => break Some(value),
            Err(error) => {
                if !recovery.goes_on(error, root, &mut errors) {
                    break None;
                }
            }
        }
    };
    let made_up = recovery.made_up(root);
    let mut made_up_at = Vec::new();
    recovery.made_up_at(root, "", &mut made_up_at);
    Read { value, errors, made_up, made_up_at }
}

/// What does not stand for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Spot {
    /// A value, by its address, that does not fit: something else is read in its place.
    Value(*const Value),
    /// The key of this value is not known: it is passed over.
    Key(*const Value),
    /// A key that this table lacks: it is made up.
    Missing(*const Value, String),
}

/// What was learnt from the attempts so far.
#[derive(Default)]
struct Recovery {
    /// How many stand-ins did not fit.
    replaced: RefCell<HashMap<Spot, usize>>,
    /// Where the attempt that goes on now failed, and whether in a stand-in: the innermost place says it first.
    failed: RefCell<Option<(Spot, bool)>>,
}

impl Recovery {
    /// How many stand-ins for the spot were tried; nothing if it stands for itself.
    fn replaced(&self, spot: &Spot) -> Option<usize> {
        let replaced = self.replaced.borrow();
        if replaced.is_empty() { None } else { replaced.get(spot).copied() }
    }

    /// Keeps where an attempt failed, if nobody further inside has.
    fn fail(&self, spot: impl FnOnce() -> Spot, in_stand_in: bool) {
        self.failed.borrow_mut().get_or_insert_with(|| (spot(), in_stand_in));
    }

    /// Learns from a failed attempt; whether another may get further.
    fn goes_on(&self, error: Diagnostic, root: &Value, errors: &mut Vec<Diagnostic>) -> bool {
        let failed = self.failed.take();
        let Some((spot, in_stand_in)) = failed else {
            errors.push(error);
            return false;
        };
        let mut replaced = self.replaced.borrow_mut();
        if in_stand_in {
            let tries = replaced.entry(spot).or_insert(0);
            *tries += 1;
            return *tries < stand_in::CHOICES;
        }
        errors.push(error);
        let useless = matches!(spot, Spot::Value(at) if std::ptr::eq(at, root));
        replaced.insert(spot, 0).is_none() && !useless
    }

    /// The keys of the outermost table with something made up under them.
    fn made_up(&self, root: &Value) -> Vec<String> {
        let replaced = self.replaced.borrow();
        let ValueKind::Table(table) = &root.kind else { return Vec::new() };
        let in_it = |value: &Value| {
            let touched = |spot: &Spot| match spot {
                Spot::Value(at) | Spot::Missing(at, _) => value.holds(*at),
                Spot::Key(_) => false,
            };
            !value.is_sound() || replaced.keys().any(touched)
        };
        let mut keys: Vec<String> =
            table.entries.iter().filter(|entry| in_it(&entry.2)).map(|entry| entry.0.clone()).collect();
        keys.extend(replaced.keys().filter_map(|spot| match spot {
            Spot::Missing(at, key) if std::ptr::eq(*at, root) => Some(key.clone()),
            _ => None,
        }));
        keys
    }

    /// The paths of what is made up, each as long as tables lead there.
    fn made_up_at(&self, value: &Value, path: &str, found: &mut Vec<String>) {
        let replaced = self.replaced.borrow();
        let ValueKind::Table(table) = &value.kind else {
            let in_it = |spot: &Spot| matches!(spot, Spot::Value(at) | Spot::Missing(at, _) if value.holds(*at));
            found.extend((!value.is_sound() || replaced.keys().any(in_it)).then(|| path.to_owned()));
            return;
        };
        if replaced.contains_key(&Spot::Value(value)) {
            return found.push(path.to_owned());
        }
        let under = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        table.entries.iter().for_each(|(key, _, value)| self.made_up_at(value, &under(key), found));
        found.extend(replaced.keys().filter_map(|spot| match spot {
            Spot::Missing(at, key) if std::ptr::eq(*at, value) => Some(under(key)),
            _ => None,
        }));
    }
}

thread_local! {
    /// The place of the value that a [`crate::Ref`] is being read from: serde's data model has no room for it.
    static REF_SPAN: RefCell<Option<Span>> = const { RefCell::new(None) };
}

/// The newtype name by which [`crate::Ref`] asks the deserializer for its place.
pub(crate) const REF_TOKEN: &str = "$flow::Ref";

pub(crate) fn take_ref_span() -> Option<Span> {
    REF_SPAN.take()
}
