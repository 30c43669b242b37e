//! [`StandIn`]: something of the type that is asked for, in the place of a value that does not fit.

use serde::{
    Deserializer,
    de::{self, DeserializeSeed, IntoDeserializer, Visitor},
};

use super::{REF_SPAN, Recovery, Spot};
use crate::Diagnostic;

/// How many things a stand-in can be where the type is not said.
pub const CHOICES: usize = 6;

/// A value that is made up. What is wrong with it is no error of the user's.
#[derive(Clone)]
pub struct StandIn<'r> {
    pub spot: Spot,
    pub tries: usize,
    pub recovery: &'r Recovery,
}

impl StandIn<'_> {
    fn tried<T>(&self, result: Result<T, Diagnostic>) -> Result<T, Diagnostic> {
        if result.is_err() {
            self.recovery.fail(|| self.spot.clone(), true);
        }
        result
    }
}

macro_rules! made_up {
    ($($method:ident $visit:ident($value:expr))*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Diagnostic> {
            self.tried(visitor.$visit($value))
        }
    )*};
}

impl<'de> Deserializer<'de> for StandIn<'_> {
    type Error = Diagnostic;

    made_up! {
        deserialize_bool visit_bool(false)
        deserialize_i8 visit_i64(1) deserialize_i16 visit_i64(1) deserialize_i32 visit_i64(1) deserialize_i64 visit_i64(1)
        deserialize_u8 visit_i64(1) deserialize_u16 visit_i64(1) deserialize_u32 visit_i64(1) deserialize_u64 visit_i64(1)
        deserialize_f32 visit_f64(1.0) deserialize_f64 visit_f64(1.0)
        deserialize_str visit_str("") deserialize_string visit_str("")
        deserialize_seq visit_seq(Nothing) deserialize_map visit_map(Nothing)
    }

    /// The type is not said: one thing after the other.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Diagnostic> {
        let result = match self.tries {
            0 => visitor.visit_str(""),
            1 => visitor.visit_i64(1),
            2 => visitor.visit_seq(Nothing),
            3 => visitor.visit_map(Nothing),
            4 => visitor.visit_bool(false),
            _ => visitor.visit_f64(1.0),
        };
        self.tried(result)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Diagnostic> {
        self.tried(visitor.visit_none())
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Diagnostic> {
        REF_SPAN.set(None);
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Diagnostic> {
        self.tried(visitor.visit_seq(Several { of: self.clone(), left: len }))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Diagnostic> {
        self.tried(visitor.visit_map(All { of: self.clone(), fields }))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Diagnostic> {
        let first = variants.first().copied().unwrap_or_default();
        self.tried(visitor.visit_enum(first.into_deserializer()))
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple_struct identifier ignored_any
    }
}

struct Nothing;

impl<'de> de::SeqAccess<'de> for Nothing {
    type Error = Diagnostic;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, _seed: T) -> Result<Option<T::Value>, Diagnostic> {
        Ok(None)
    }
}

impl<'de> de::MapAccess<'de> for Nothing {
    type Error = Diagnostic;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, _seed: K) -> Result<Option<K::Value>, Diagnostic> {
        Ok(None)
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, _seed: V) -> Result<V::Value, Diagnostic> {
        Err(Diagnostic::new("there is nothing"))
    }
}

struct Several<'r> {
    of: StandIn<'r>,
    left: usize,
}

impl<'de> de::SeqAccess<'de> for Several<'_> {
    type Error = Diagnostic;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Diagnostic> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(self.of.clone()).map(Some)
    }
}

/// Every field of a struct, made up.
struct All<'r> {
    of: StandIn<'r>,
    fields: &'static [&'static str],
}

impl<'de> de::MapAccess<'de> for All<'_> {
    type Error = Diagnostic;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Diagnostic> {
        let Some((first, rest)) = self.fields.split_first() else { return Ok(None) };
        self.fields = rest;
        let key: de::value::StrDeserializer<'_, Diagnostic> = (*first).into_deserializer();
        seed.deserialize(key).map(Some)
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Diagnostic> {
        seed.deserialize(self.of.clone())
    }
}
