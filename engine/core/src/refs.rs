//! [`Ref`] and [`Refs`]: parameters that name what a stage takes.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    Span,
    read::{REF_TOKEN, take_ref_span},
};

/// A name in a parameter that means a stage, or a path to a file or directory. Never serialized into a key by itself:
/// the key sees the content.
#[derive(Clone, PartialEq, Eq)]
pub struct Ref {
    text: String,
    span: Option<Span>,
}

impl Ref {
    /// A reference with no place.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), span: None }
    }

    /// A reference that stands somewhere: in a file that a stage reads.
    pub fn at(text: impl Into<String>, span: Option<Span>) -> Self {
        Self { text: text.into(), span }
    }

    /// Another reference that stands in the same place: one of those that braces stand for.
    #[must_use]
    pub fn with_text(&self, text: impl Into<String>) -> Self {
        Self { text: text.into(), span: self.span.clone() }
    }

    /// What the user wrote.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where the user wrote it.
    #[must_use]
    pub fn span(&self) -> Option<&Span> {
        self.span.as_ref()
    }
}

impl fmt::Debug for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ref({})", self.text)
    }
}

impl Serialize for Ref {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Ref {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Ref;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a stage, or a path")
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Ref, D::Error> {
                let span = take_ref_span();
                let mut reference: Ref = deserializer.deserialize_str(self)?;
                reference.span = span;
                Ok(reference)
            }
            fn visit_str<E>(self, text: &str) -> Result<Ref, E> {
                Ok(Ref::new(text))
            }
        }
        deserializer.deserialize_newtype_struct(REF_TOKEN, Visitor)
    }
}

/// One [`Ref`] or a list of them, at least one: `input = "raw"`, `input = ["a", "b"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refs(Vec<Ref>);

impl FromIterator<Ref> for Refs {
    fn from_iter<I: IntoIterator<Item = Ref>>(refs: I) -> Self {
        Self(refs.into_iter().collect())
    }
}

impl std::ops::Deref for Refs {
    type Target = [Ref];
    fn deref(&self) -> &[Ref] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Refs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor(Option<Span>);
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Refs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a stage or a path, or a list of them")
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Refs, D::Error> {
                deserializer.deserialize_any(Self(take_ref_span()))
            }
            fn visit_str<E>(self, text: &str) -> Result<Refs, E> {
                Ok(Refs(vec![Ref { text: text.to_owned(), span: self.0 }]))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Refs, A::Error> {
                let mut refs = Vec::new();
                while let Some(item) = items.next_element()? {
                    refs.push(item);
                }
                if refs.is_empty() {
                    return Err(serde::de::Error::custom("an empty list: name at least one stage or path"));
                }
                Ok(Refs(refs))
            }
        }
        deserializer.deserialize_newtype_struct(REF_TOKEN, Visitor(None))
    }
}
