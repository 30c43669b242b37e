//! One reference or a list of them: `input = "raw"` and `input = ["a", "b"]`.

use std::fmt;

use flow_core::Ref;
use serde::{Deserialize, Deserializer, de};

/// References, of which there is at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refs(Vec<Ref>);

impl std::ops::Deref for Refs {
    type Target = [Ref];
    fn deref(&self) -> &[Ref] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Refs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Refs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a stage or a path, or a list of them")
            }
            fn visit_str<E>(self, text: &str) -> Result<Refs, E> {
                Ok(Refs(vec![Ref::new(text)]))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Refs, A::Error> {
                let mut refs = Vec::new();
                while let Some(item) = items.next_element()? {
                    refs.push(item);
                }
                if refs.is_empty() {
                    return Err(de::Error::custom("an empty list: name at least one stage or path"));
                }
                Ok(Refs(refs))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
