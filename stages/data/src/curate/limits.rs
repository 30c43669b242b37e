//! Parameters that may be switched off: a threshold that is a number or `false`, a family of rules that is a table, `true`
//! or `false`.

use std::{borrow::Cow, fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

/// A threshold, or none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit(pub Option<f64>);

impl Limit {
    /// Whether a value is above the threshold, if there is one.
    pub fn exceeded_by(self, value: f64) -> bool {
        self.0.is_some_and(|limit| value > limit)
    }

    /// Whether a value is below the threshold, if there is one.
    pub fn missed_by(self, value: f64) -> bool {
        self.0.is_some_and(|limit| value < limit)
    }
}

impl From<f64> for Limit {
    fn from(limit: f64) -> Self {
        Self(Some(limit))
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(limit) => serializer.serialize_f64(limit),
            None => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Limit;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of 0 or more, or false for no limit")
            }
            fn visit_bool<E: Error>(self, on: bool) -> Result<Limit, E> {
                if on { Err(E::invalid_value(serde::de::Unexpected::Bool(on), &self)) } else { Ok(Limit(None)) }
            }
            fn visit_f64<E: Error>(self, limit: f64) -> Result<Limit, E> {
                let sound = limit.is_finite() && limit >= 0.0;
                if sound { Ok(limit.into()) } else { Err(E::invalid_value(serde::de::Unexpected::Float(limit), &self)) }
            }
            fn visit_i64<E: Error>(self, limit: i64) -> Result<Limit, E> {
                self.visit_f64(limit as f64)
            }
            fn visit_u64<E: Error>(self, limit: u64) -> Result<Limit, E> {
                self.visit_f64(limit as f64)
            }
        }
        deserializer.deserialize_any(Number)
    }
}

impl JsonSchema for Limit {
    fn schema_name() -> Cow<'static, str> {
        "Limit".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "number", "minimum": 0 }, { "const": false }] })
    }
}

/// A family of rules: `true` for its defaults, a table that adjusts them, `false` for none.
#[derive(Clone, Debug, PartialEq)]
pub struct Family<T>(pub Option<T>);

impl<T> Default for Family<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Serialize> Serialize for Family<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(rules) => rules.serialize(serializer),
            None => serializer.serialize_bool(false),
        }
    }
}

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Family<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Rules<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for Rules<T> {
            type Value = Family<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, or a table of thresholds")
            }
            fn visit_bool<E>(self, on: bool) -> Result<Family<T>, E> {
                Ok(Family(on.then(T::default)))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Family<T>, A::Error> {
                Ok(Family(Some(T::deserialize(MapAccessDeserializer::new(map))?)))
            }
        }
        deserializer.deserialize_any(Rules(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Family<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Family_{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [generator.subschema_for::<T>(), { "type": "boolean" }] })
    }
}
