//! The table of a `train` stage: its inputs, and all of [`Training`] beside them.
//!
//! serde's `flatten` would lose the places of errors and the refusal of unknown keys, so the keys are dealt out by
//! hand: the stage's own here, the others to `Training`.

use std::{borrow::Cow, fmt, sync::OnceLock};

use flow_core::Ref;
use flow_plan::Training;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        self, DeserializeSeed, Error as _, IntoDeserializer as _, MapAccess, SeqAccess, Visitor, value::StrDeserializer,
    },
};
use serde_json::json;

use crate::container::Container;

/// The parameters of a `train` stage.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Train {
    /// The checkpoint to begin from.
    pub(super) model: Ref,
    /// The training data.
    pub(super) train: Mix,
    /// The validation data.
    #[schemars(default)]
    pub(super) validation: Mix,
    /// The image in which the workers run: `"docker://…"`, a file, a stage that makes one; or `{ image = "…", … }`. They are
    /// this machine's own program and libraries, which are seen inside.
    #[schemars(default)]
    pub(super) container: Option<Container>,
    /// The numbers.
    #[schemars(flatten)]
    pub(super) training: Training,
}

/// Sources of tokens: `"tokens"`, `["a", "b"]` or `[{ tokens = "a", weight = 0.7 }, …]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mix(pub(super) Vec<Portion>);

/// One of the sources of a [`Mix`].
#[derive(Clone, Debug, PartialEq)]
pub struct Portion {
    /// A stage, a directory, or the prefix of a `.bin` and an `.idx`.
    pub tokens: Ref,
    /// Its part in the blend, in proportion to the others'.
    pub weight: Option<f64>,
}

impl Mix {
    /// The weights; empty if there are none.
    pub fn weights(&self) -> Vec<f64> {
        self.0.iter().filter_map(|portion| portion.weight).collect()
    }
}

/// What the key sees.
impl Serialize for Train {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut keyed = self.training.keyed();
        for (name, mix) in [("train_weights", &self.train), ("validation_weights", &self.validation)] {
            let weights = mix.weights();
            if !weights.is_empty() {
                keyed.insert(name.to_owned(), json!(weights));
            }
        }
        if !Container::is_keyless(&self.container) {
            keyed.insert("container".to_owned(), json!(self.container));
        }
        keyed.serialize(serializer)
    }
}

/// The keys that are not [`Training`]'s.
const OWN: [&str; 4] = ["model", "train", "validation", "container"];

impl<'de> Deserialize<'de> for Train {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;
        impl<'de> Visitor<'de> for Whole {
            type Value = Train;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the table of a `train` stage")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Train, A::Error> {
                let (mut model, mut train, mut validation, mut container) = (None, None, None, None);
                let (to_train, to_validation) = (&mut train, &mut validation);
                let rest = Rest {
                    map,
                    model: &mut model,
                    train: to_train,
                    validation: to_validation,
                    container: &mut container,
                };
                let training = Training::deserialize(rest)?;
                Ok(Train {
                    model: model.ok_or_else(|| A::Error::missing_field("model"))?,
                    train: train.ok_or_else(|| A::Error::missing_field("train"))?,
                    validation: validation.unwrap_or_default(),
                    container,
                    training,
                })
            }
        }
        deserializer.deserialize_map(Whole)
    }
}

/// A table as `Training` sees it: the stage's own keys are taken out while it is read.
struct Rest<'a, A> {
    map: A,
    model: &'a mut Option<Ref>,
    train: &'a mut Option<Mix>,
    validation: &'a mut Option<Mix>,
    container: &'a mut Option<Container>,
}

impl<'de, A: MapAccess<'de>> Deserializer<'de> for Rest<'_, A> {
    type Error = A::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        static ALL: OnceLock<Vec<&'static str>> = OnceLock::new();
        let all = ALL.get_or_init(|| OWN.iter().chain(fields).copied().collect());
        visitor.visit_map(RestKeys { rest: self, all })
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, A::Error> {
        Err(A::Error::custom("only a struct can stand beside the stage's own keys"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct RestKeys<'a, A> {
    rest: Rest<'a, A>,
    all: &'static [&'static str],
}

/// Reads a key, or refuses it: here, where its place is known.
struct KnownKey(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for KnownKey {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'static str, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KnownKey {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<&'static str, E> {
        self.0.iter().find(|known| **known == key).copied().ok_or_else(|| E::unknown_field(key, self.0))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for RestKeys<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let Rest { map, model, train, validation, container } = &mut self.rest;
        while let Some(key) = map.next_key_seed(KnownKey(self.all))? {
            match key {
                "model" => **model = Some(map.next_value()?),
                "train" => **train = Some(map.next_value()?),
                "validation" => **validation = Some(map.next_value()?),
                "container" => **container = Some(map.next_value()?),
                key => {
                    let key: StrDeserializer<'_, A::Error> = key.into_deserializer();
                    return seed.deserialize(key).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.rest.map.next_value_seed(seed)
    }
}

impl JsonSchema for Mix {
    fn schema_name() -> Cow<'static, str> {
        "Mix".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "array"],
            "items": {
                "type": ["string", "object"],
                "properties": { "tokens": { "type": "string" }, "weight": { "type": "number" } },
                "required": ["tokens", "weight"],
                "additionalProperties": false,
            },
        })
    }
}

impl<'de> Deserialize<'de> for Mix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sources;
        impl<'de> Visitor<'de> for Sources {
            type Value = Mix;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of stages, paths or `{ tokens = …, weight = … }`")
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Mix, D::Error> {
                deserializer.deserialize_any(self)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Mix, E> {
                Ok(Mix(vec![Portion { tokens: placed(text)?, weight: None }]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Mix, A::Error> {
                let mut portions = Vec::new();
                while let Some(portion) = items.next_element()? {
                    portions.push(portion);
                }
                Ok(Mix(portions))
            }
        }
        deserializer.deserialize_newtype_struct(PLACE, Sources)
    }
}

impl<'de> Deserialize<'de> for Portion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Weighted {
            tokens: Ref,
            weight: f64,
        }
        struct Source;
        impl<'de> Visitor<'de> for Source {
            type Value = Portion;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a stage, a path or `{ tokens = …, weight = … }`")
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Portion, D::Error> {
                deserializer.deserialize_any(self)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Portion, E> {
                Ok(Portion { tokens: placed(text)?, weight: None })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Portion, A::Error> {
                let Weighted { tokens, weight } = Weighted::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Portion { tokens, weight: Some(weight) })
            }
        }
        deserializer.deserialize_newtype_struct(PLACE, Source)
    }
}

/// The newtype name by which a [`Ref`] asks for its place; who asks by it may read a `Ref` from the same value.
const PLACE: &str = "$flow::Ref";

/// The reference in `text`, with the place that was asked for last.
fn placed<E: de::Error>(text: &str) -> Result<Ref, E> {
    struct Text<'a, E>(StrDeserializer<'a, E>);
    impl<'de, E: de::Error> Deserializer<'de> for Text<'_, E> {
        type Error = E;
        fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, E> {
            visitor.visit_newtype_struct(self.0)
        }
        fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, E> {
            self.0.deserialize_any(visitor)
        }
        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
            unit unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
        }
    }
    Ref::deserialize(Text(text.into_deserializer()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flow_core::{Diagnostic, Source, Span, Table, Value, ValueKind, from_value};
    use serde_json::Value as Json;

    use super::*;

    /// The JSON as a [`Value`]; every value's place is the text of its own JSON in the whole.
    fn value(source: &Arc<Source>, json: &Json) -> Value {
        let place = |text: &str| source.text.find(text).map(|at| Span::new(source, at..at + text.len()));
        let kind = match json {
            Json::String(text) => ValueKind::String(text.clone()),
            Json::Bool(truth) => ValueKind::Bool(*truth),
            Json::Array(items) => ValueKind::Array(items.iter().map(|item| value(source, item)).collect()),
            Json::Object(map) => ValueKind::Table(Table {
                entries: map.iter().map(|(k, v)| (k.clone(), place(&format!("\"{k}\":")), value(source, v))).collect(),
            }),
            number => number.as_i64().map_or_else(|| ValueKind::Float(number.as_f64().unwrap()), ValueKind::Integer),
        };
        Value { kind, span: place(&json.to_string()) }
    }

    fn parse(json: &Json) -> Result<Train, Diagnostic> {
        let source = Arc::new(Source { path: "p.toml".into(), text: json.to_string() });
        from_value(&value(&source, json))
    }

    fn table() -> Json {
        json!({
            "model": "megatron", "train": ["alpha", {"tokens": "beta", "weight": 0.25}], "validation": "gamma",
            "seq_length": 128, "micro_batch_size": 2, "global_batch_size": 16, "max_steps": 30,
            "optim": {"lr": 0.001}, "checkpoint": {"interval": 5}
        })
    }

    fn at(span: Option<&Span>) -> &str {
        span.map_or("", |span| &span.source.text[span.start..span.end])
    }

    #[test]
    fn inputs_and_numbers_stand_in_one_table_with_their_places() {
        let train = parse(&table()).unwrap();
        assert_eq!(train.training.max_steps, 30);
        assert_eq!(train.training.checkpoint.interval, 5);
        let Mix(portions) = &train.train;
        let refs = [&train.model, &portions[0].tokens, &portions[1].tokens, &train.validation.0[0].tokens];
        assert_eq!(refs.map(Ref::text), ["megatron", "alpha", "beta", "gamma"]);
        assert_eq!(refs.map(|r| at(r.span())), ["\"megatron\"", "\"alpha\"", "\"beta\"", "\"gamma\""]);
        assert_eq!(train.train.weights(), [0.25]);
        // Any other format serves too: the order of keys means nothing.
        let plain: Train = serde_json::from_value(table()).unwrap();
        assert_eq!(plain.train.0[0].tokens.text(), "alpha");
    }

    #[test]
    fn wrong_keys_and_values_are_refused_where_they_stand() {
        let wrong = |change: fn(&mut Json)| {
            let mut json = table();
            change(&mut json);
            parse(&json).unwrap_err()
        };
        let error = wrong(|json| json["modle"] = json!(1));
        assert_eq!((error.message.as_str(), at(error.span.as_ref())), ("unknown key `modle`", "\"modle\":"));
        assert_eq!(error.hints, ["did you mean `model`?"]);
        let error = wrong(|json| json["seq_lenght"] = json!(1));
        assert_eq!(
            (error.hints[0].as_str(), at(error.span.as_ref())),
            ("did you mean `seq_length`?", "\"seq_lenght\":")
        );
        let error = wrong(|json| json["optim"]["lrr"] = json!(1));
        assert_eq!((error.hints[0].as_str(), at(error.span.as_ref())), ("did you mean `lr`?", "\"lrr\":"));
        assert_eq!(at(wrong(|json| json["max_steps"] = json!("soon")).span.as_ref()), "\"soon\"");
        assert_eq!(at(wrong(|json| json["train"][1]["weight"] = json!("much")).span.as_ref()), "\"much\"");
        assert_eq!(at(wrong(|json| json["train"] = json!(77)).span.as_ref()), "77");
        for missing in ["model", "train", "optim", "max_steps"] {
            let mut json = table();
            json.as_object_mut().unwrap().remove(missing);
            let error = parse(&json).unwrap_err();
            assert_eq!(error.message, format!("`{missing}` is missing"));
            assert!(error.span.is_some());
        }
    }

    #[test]
    fn the_key_sees_numbers_and_weights_and_no_names() {
        let params = serde_json::to_value(parse(&table()).unwrap()).unwrap();
        assert_eq!(params["train_weights"], json!([0.25]));
        assert_eq!(params["max_steps"], 30);
        for absent in ["model", "train", "validation", "validation_weights", "checkpoint", "device"] {
            assert!(params.get(absent).is_none(), "{absent}");
        }
    }
}
