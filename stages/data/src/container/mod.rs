//! `container`: an image in which the program of a stage runs.
//!
//! What a stage names is an [image](image): a file, or a reference to a registry, for which a stage of kind
//! [`image`](stage) stands that nobody has to write: it knows the digest that the name has, pinned in `flow.lock` like a
//! URL. What runs it is an [engine](engine), chosen on the machine on which it runs. What is inside is the same with all of
//! them: the image, the stage's inputs (read-only), its result and scratch directories and the project's folder at the paths that they
//! have outside, a home of its own, and of the environment what is declared.

mod argv;
mod engine;
mod image;
mod inside;
mod machines;
mod registry;
mod stage;
mod store;

use flow_core::{Diagnostic, Implied, Machine, Port, Ref};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, Visitor},
};

pub use engine::{Engine, found};
pub use inside::Inside;
pub use stage::Image;

use image::{Form, Reference, SCHEME};

/// The port at which an image enters.
pub const PORT: &str = "container";

/// An image in which the program of a stage runs: its name, or a table.
#[derive(Clone, Debug, Serialize)]
pub struct Container {
    /// A reference `docker://…`, a path, or a stage that makes an image file.
    #[serde(skip)]
    image: Ref,
    /// What runs it, if the pipeline says so.
    #[serde(skip)]
    engine: Option<Engine>,
    /// What else is seen inside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    binds: Vec<String>,
    /// Arguments for the engine.
    #[serde(skip)]
    args: Vec<String>,
    /// Variables of flow's own environment that are handed in.
    #[serde(skip)]
    env: Vec<String>,
    /// Where the program begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    workdir: Option<String>,
}

/// A [`Container`] with all that may be said of it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct Table {
    /// `docker://[REGISTRY/]NAME[:TAG][@sha256:DIGEST]`; an image file (`.sif`, `.simg`, `.sqsh`); or a stage whose result is one. The
    /// key sees the image's digest: a tag's is pinned in `flow.lock`.
    #[serde(deserialize_with = "image_name")]
    #[schemars(with = "String")]
    image: Ref,
    /// What runs it; unset: what is there, in an order that suits the image. `container_engine` in the settings wins. No part of the
    /// key.
    #[serde(default)]
    engine: Option<Engine>,
    /// What else is seen inside: `PLACE`, `PLACE:PLACE_INSIDE` or `PLACE:PLACE_INSIDE:ro`.
    #[serde(default)]
    binds: Vec<String>,
    /// Further arguments for the engine, before the image. No part of the key.
    #[serde(default)]
    args: Vec<String>,
    /// Names of variables of flow's own environment that are handed in, as `HF_TOKEN` or `SLURM_*`. Without, only proxies are. No part
    /// of the key.
    #[serde(default)]
    env: Vec<String>,
    /// The directory inside in which the program begins. Unset: where it would begin without a container.
    #[serde(default)]
    workdir: Option<String>,
}

impl<'de> Deserialize<'de> for Container {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Container;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an image, or `{ image = \"…\", binds = [\"…\"] }`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Container, E> {
                let (engine, workdir, list) = (None, None, Vec::new());
                let image = checked(Ref::new(text))?;
                Ok(Container { image, engine, binds: list.clone(), args: list.clone(), env: list, workdir })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Container, A::Error> {
                let table = Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let Table { image, engine, binds, args, env, workdir } = table;
                Ok(Container { image, engine, binds, args, env, workdir })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for Container {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Container".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let table = Table::json_schema(generator);
        json_schema!({ "anyOf": [{ "type": "string" }, table] })
    }
}

fn image_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ref, D::Error> {
    checked(Ref::deserialize(deserializer)?)
}

/// A name that is one, as far as that can be said without looking.
fn checked<E: de::Error>(image: Ref) -> Result<Ref, E> {
    match image.text().split_once("://") {
        Some(_) if image.text().starts_with(SCHEME) => {
            Reference::parse(image.text()).map_err(E::custom)?;
        }
        Some((scheme, _)) => {
            return Err(E::custom(format!(
                "`{scheme}://` is no place of images that flow knows: write {SCHEME}NAME:TAG, or a path"
            )));
        }
        None => {}
    }
    Ok(image)
}

impl Container {
    /// Nothing of it is in the parameters of a key: the image enters by its port.
    pub fn is_keyless(this: &Option<Self>) -> bool {
        this.as_ref().is_none_or(|this| this.binds.is_empty() && this.workdir.is_none())
    }

    /// The port at which its image enters.
    pub fn port(&self) -> Port {
        Port::one(PORT, &self.image)
    }

    /// The stage that knows its image's digest, if it has a name in a registry.
    pub fn implied(&self) -> Option<Implied> {
        Image::implied(&self.image)
    }

    /// What the machine lacks to run it.
    pub fn lacks(&self, machine: &Machine<'_>) -> Option<Diagnostic> {
        let form = Form::of(self.image.text());
        engine::choose(form, self.engine, machine.container_engine).err().map(|error| error.field(PORT))
    }

    /// What is wrong with what it says.
    pub fn check(&self, errors: &mut Vec<Diagnostic>) {
        for (at, bind) in self.binds.iter().enumerate() {
            if let Err(message) = inside::Bind::parse(bind) {
                errors.push(Diagnostic::new(message).field(format!("{PORT}.binds.{at}")));
            }
        }
        if let Some(workdir) = self.workdir.as_ref().filter(|workdir| !workdir.starts_with('/')) {
            let error = Diagnostic::new(format!("`{workdir}` is not absolute")).field(format!("{PORT}.workdir"));
            errors.push(error.hint("it is a directory inside of the container: \"/workspace\""));
        }
    }
}
