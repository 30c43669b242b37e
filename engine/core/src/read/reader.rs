//! The serde deserializer over a [`Value`]: its errors know their place.

use serde::{
    Deserializer,
    de::{self, DeserializeSeed, Error as _, Expected, IntoDeserializer, Unexpected, Visitor},
};

use super::{REF_SPAN, REF_TOKEN, Recovery, Spot, stand_in::StandIn, words};
use crate::{Diagnostic, Span, Table, Value, ValueKind};

/// A value that is being read.
#[derive(Clone, Copy)]
pub struct Reader<'de, 'r> {
    pub value: &'de Value,
    /// The key that it stands under.
    pub key: &'de str,
    /// What was learnt before; nothing on the first attempt.
    pub recovery: Option<&'r Recovery>,
}

impl<'de, 'r> Reader<'de, 'r> {
    /// What is read in the place of the value, if it does not stand for itself.
    fn stand_in(&self) -> Option<StandIn<'r>> {
        let recovery = self.recovery?;
        let spot = Spot::Value(self.value);
        match recovery.replaced(&spot) {
            Some(tries) => Some(StandIn { spot, tries, recovery }),
            None if matches!(self.value.kind, ValueKind::Wrong) => Some(StandIn { spot, tries: 0, recovery }),
            None => None,
        }
    }

    /// Completes an error: its place, the key that it is about, the fix.
    fn placed(&self, mut error: Diagnostic) -> Diagnostic {
        if let Some(recovery) = self.recovery {
            recovery.fail(
                || match &error.field {
                    Some(missing) => Spot::Missing(self.value, missing.clone()),
                    None => Spot::Value(self.value),
                },
                false,
            );
        }
        error.field = None;
        if error.span.is_none() && error.message.starts_with(words::EXPECTED) && !self.key.is_empty() {
            error.hints.extend(words::fix(self.key, self.value, &error.message));
            error.message = format!("`{}`: {}", self.key, error.message);
        }
        error.at(self.value.span.clone())
    }

    /// Reads it; also what a type finds wrong once it has the value gets its place.
    fn seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Diagnostic> {
        seed.deserialize(self).map_err(|error| match self.stand_in() {
            Some(StandIn { spot, recovery, .. }) => {
                recovery.fail(|| spot, true);
                error
            }
            None => self.placed(error),
        })
    }

    fn unexpected(&self) -> Unexpected<'_> {
        match &self.value.kind {
            ValueKind::String(text) => Unexpected::Str(text),
            ValueKind::Integer(number) => Unexpected::Signed(*number),
            ValueKind::Float(number) => Unexpected::Float(*number),
            ValueKind::Bool(truth) => Unexpected::Bool(*truth),
            ValueKind::Array(_) => Unexpected::Seq,
            ValueKind::Table(_) => Unexpected::Map,
            ValueKind::Wrong => Unexpected::Other("what is wrong in itself"),
        }
    }

    fn mismatch(&self, expected: &dyn Expected) -> Diagnostic {
        Diagnostic::invalid_type(self.unexpected(), expected)
    }

    fn items(&self, items: &'de [Value]) -> Items<'de, 'r> {
        Items { rest: items.iter(), key: self.key, recovery: self.recovery }
    }

    fn entries(&self, table: &'de Table) -> Entries<'de, 'r> {
        let missing = self.recovery.map_or_else(Vec::new, |recovery| {
            let replaced = recovery.replaced.borrow();
            let missing =
                replaced.keys().filter(|spot| matches!(spot, Spot::Missing(at, _) if std::ptr::eq(*at, self.value)));
            missing.cloned().collect()
        });
        Entries { rest: table.entries.iter(), value: None, recovery: self.recovery, missing, made_up: None }
    }

    /// An integer between two ends.
    fn integer<V: Visitor<'de>>(self, ends: [i128; 2], visitor: V) -> Result<V::Value, Diagnostic> {
        match self.value.kind {
            ValueKind::Integer(number) if (ends[0]..=ends[1]).contains(&i128::from(number)) => {
                visitor.visit_i64(number)
            }
            _ => {
                let expected = match ends {
                    [low, high] if high < i128::from(i64::MAX) => format!("an integer from {low} to {high}"),
                    [0, _] => format!("an integer from 0 to {}", i64::MAX),
                    _ => "an integer".to_owned(),
                };
                Err(self.mismatch(&expected.as_str()))
            }
        }
    }
}

/// What each method reads: a stand-in if there is one; what goes wrong gets its place.
macro_rules! read {
    ($($method:ident($($arg:ident: $type:ty),*) |$self:ident, $visitor:ident| $body:expr)*) => {$(
        fn $method<V: Visitor<'de>>($self, $($arg: $type,)* $visitor: V) -> Result<V::Value, Diagnostic> {
            match $self.stand_in() {
                Some(stand_in) => stand_in.$method($($arg,)* $visitor),
                None => $body.map_err(|error| $self.placed(error)),
            }
        }
    )*};
}

macro_rules! integers {
    ($($method:ident $type:ident)*) => {
        read! {$($method() |self, visitor| self.integer([$type::MIN as i128, $type::MAX as i128], visitor))*}
    };
}

impl<'de> Deserializer<'de> for Reader<'de, '_> {
    type Error = Diagnostic;

    integers! {
        deserialize_i8 i8 deserialize_i16 i16 deserialize_i32 i32 deserialize_i64 i64
        deserialize_u8 u8 deserialize_u16 u16 deserialize_u32 u32 deserialize_u64 u64
    }

    read! {
        deserialize_any() |self, visitor| match &self.value.kind {
            ValueKind::String(text) => visitor.visit_borrowed_str(text),
            ValueKind::Integer(number) => visitor.visit_i64(*number),
            ValueKind::Float(number) => visitor.visit_f64(*number),
            ValueKind::Bool(truth) => visitor.visit_bool(*truth),
            ValueKind::Array(items) => visitor.visit_seq(self.items(items)),
            ValueKind::Table(table) => visitor.visit_map(self.entries(table)),
            ValueKind::Wrong => Err(self.mismatch(&visitor)),
        }
        deserialize_bool() |self, visitor| match self.value.kind {
            ValueKind::Bool(truth) => visitor.visit_bool(truth),
            _ => Err(self.mismatch(&visitor)),
        }
        deserialize_f64() |self, visitor| match self.value.kind {
            ValueKind::Float(number) => visitor.visit_f64(number),
            ValueKind::Integer(number) => visitor.visit_i64(number),
            _ => Err(self.mismatch(&"a number")),
        }
        deserialize_str() |self, visitor| match &self.value.kind {
            ValueKind::String(text) => visitor.visit_borrowed_str(text),
            _ => Err(self.mismatch(&visitor)),
        }
        deserialize_seq() |self, visitor| match &self.value.kind {
            ValueKind::Array(items) => visitor.visit_seq(self.items(items)),
            _ => Err(self.mismatch(&visitor)),
        }
        deserialize_tuple(len: usize) |self, visitor| match &self.value.kind {
            ValueKind::Array(items) if items.len() == len => visitor.visit_seq(self.items(items)),
            ValueKind::Array(items) => Err(Diagnostic::invalid_length(items.len(), &visitor)),
            _ => Err(self.mismatch(&visitor)),
        }
        deserialize_map() |self, visitor| match &self.value.kind {
            ValueKind::Table(table) => visitor.visit_map(self.entries(table)),
            _ => Err(self.mismatch(&visitor)),
        }
        deserialize_struct(name: &'static str, fields: &'static [&'static str]) |self, visitor| {
            let _ = (name, fields); // The stand-in needs them.
            match &self.value.kind {
                ValueKind::Table(table) => visitor.visit_map(self.entries(table)),
                _ => Err(self.mismatch(&visitor)),
            }
        }
        deserialize_enum(name: &'static str, variants: &'static [&'static str]) |self, visitor| {
            let _ = name;
            match &self.value.kind {
                ValueKind::String(text) => visitor.visit_enum(text.as_str().into_deserializer()),
                ValueKind::Table(table) if table.entries.len() == 1 => {
                    visitor.visit_enum(de::value::MapAccessDeserializer::new(self.entries(table)))
                }
                _ => Err(self.mismatch(&format!("one of {}", variants.join(", ")).as_str())),
            }
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Diagnostic> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Diagnostic> {
        self.deserialize_str(visitor)
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
            // A stand-in stands nowhere.
            REF_SPAN.set(if self.stand_in().is_some() { None } else { self.value.span.clone() });
        }
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple_struct identifier ignored_any
    }
}

struct Items<'de, 'r> {
    rest: std::slice::Iter<'de, Value>,
    key: &'de str,
    recovery: Option<&'r Recovery>,
}

impl<'de> de::SeqAccess<'de> for Items<'de, '_> {
    type Error = Diagnostic;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Diagnostic> {
        let Some(value) = self.rest.next() else { return Ok(None) };
        Reader { value, key: self.key, recovery: self.recovery }.seed(seed).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

struct Entries<'de, 'r> {
    rest: std::slice::Iter<'de, (String, Option<Span>, Value)>,
    value: Option<(&'de str, &'de Value)>,
    recovery: Option<&'r Recovery>,
    /// What is added at the end.
    missing: Vec<Spot>,
    /// The last of those whose key was asked for.
    made_up: Option<Spot>,
}

impl<'de> de::MapAccess<'de> for Entries<'de, '_> {
    type Error = Diagnostic;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Diagnostic> {
        for (key, span, value) in self.rest.by_ref() {
            let spot = || Spot::Key(value);
            if self.recovery.is_some_and(|recovery| recovery.replaced(&spot()).is_some()) {
                continue;
            }
            self.value = Some((key, value));
            let key: de::value::StrDeserializer<'_, Diagnostic> = key.as_str().into_deserializer();
            return seed.deserialize(key).map(Some).map_err(|error| {
                if let Some(recovery) = self.recovery {
                    recovery.fail(spot, false);
                }
                error.at(span.clone())
            });
        }
        let Some(Spot::Missing(table, key)) = self.missing.pop() else { return Ok(None) };
        let deserializer: de::value::StrDeserializer<'_, Diagnostic> = key.as_str().into_deserializer();
        let read = seed.deserialize(deserializer).map(Some);
        self.made_up = Some(Spot::Missing(table, key));
        read
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Diagnostic> {
        if let (Some(spot), Some(recovery)) = (self.made_up.take(), self.recovery) {
            REF_SPAN.set(None);
            let tries = recovery.replaced(&spot).unwrap_or(0);
            let read = seed.deserialize(StandIn { spot: spot.clone(), tries, recovery });
            return read.inspect_err(|_| recovery.fail(|| spot, true));
        }
        let (key, value) = self.value.take().ok_or_else(|| Diagnostic::new("a value was read before its key"))?;
        Reader { value, key, recovery: self.recovery }.seed(seed)
    }
}
