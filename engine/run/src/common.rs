//! The keys that every stage has, whatever its kind.

use std::time::Duration;

use flow_core::{Diagnostic, Kind, Ref, Span, Table, Value, ValueKind, did_you_mean, read};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};

use crate::when;

/// The keys that belong to the engine and not to the stage's kind.
pub const COMMON_KEYS: [&str; 10] =
    ["kind", "resources", "retries", "timeout", "cache", "needs", "when", "export", "temp", "executor"];

/// What every stage may say besides its kind's own parameters. None of it enters a key.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Common {
    /// What it takes of the machine while it runs.
    #[serde(default)]
    pub resources: Resources,
    /// How often a failed node is tried again.
    #[serde(default)]
    pub retries: u32,
    /// A node that runs longer is stopped and has failed.
    #[serde(default, deserialize_with = "duration")]
    #[schemars(schema_with = "amount")]
    pub timeout: Option<Duration>,
    /// `false`: it runs in every run.
    #[serde(default = "yes")]
    pub cache: bool,
    /// Stages that must be done before, without taking anything from them.
    #[serde(default)]
    pub needs: Vec<Ref>,
    /// `false`, or a text that does not hold (`"${steps} > 0"`): the stage is not part of this run, nor is any that has a
    /// port at which only such stages enter.
    #[serde(default = "yes", deserialize_with = "truth")]
    #[schemars(schema_with = "truth_or_text")]
    pub when: bool,
    /// Where the result is also put, as plain files of the user's: a directory, relative to the project's folder; or that,
    /// and how files get there.
    #[serde(default)]
    pub export: Option<Export>,
    /// The result is an intermediate: its files go as soon as all that takes them in a run is done.
    #[serde(default)]
    pub temp: bool,
    /// Where it runs: `local`, `slurm`, or an executor that the settings describe. Unset: where the settings say
    /// (`executor`); what takes from the network runs here then.
    #[serde(default)]
    pub executor: Option<String>,
}

impl Common {
    /// The directory of its export.
    pub fn export_to(&self) -> Option<&String> {
        self.export.as_ref().map(|export| &export.to)
    }
}

impl Default for Common {
    fn default() -> Self {
        Self {
            resources: Resources::default(),
            retries: 0,
            timeout: None,
            cache: true,
            needs: Vec::new(),
            when: true,
            export: None,
            temp: false,
            executor: None,
        }
    }
}

/// A place of the user's for a result: a directory, or `{ to = …, link = … }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The directory, relative to the project's folder.
    pub to: String,
    /// How files get there.
    pub link: Link,
}

/// How files of a result get to a place of the user's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// Files that may be written to; they share their blocks with the cache's where the file system can (reflink).
    #[default]
    Copy,
    /// The cache's own files under second names, read-only; copies where that is another file system.
    Hardlink,
}

impl<'de> Deserialize<'de> for Export {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Place;
        impl<'de> Visitor<'de> for Place {
            type Value = Export;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a directory, or `{ to = \"…\", link = \"hardlink\" }`")
            }
            fn visit_str<E: de::Error>(self, to: &str) -> Result<Export, E> {
                Ok(Export { to: to.to_owned(), link: Link::default() })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Export, A::Error> {
                let Linked { to, link } = Linked::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Export { to, link })
            }
        }
        deserializer.deserialize_any(Place)
    }
}

impl JsonSchema for Export {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Export".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "object"],
            "properties": {
                "to": { "description": "The directory, relative to the project's folder.", "type": "string" },
                "link": {
                    "description": "`copy`: files that may be written to; they share their blocks with the cache's where the file system can (reflink). `hardlink`: the cache's own files under second names, read-only; copies where that is another file system.",
                    "enum": ["copy", "hardlink"],
                },
            },
            "required": ["to"],
            "additionalProperties": false,
        })
    }
}

/// An [`Export`] that says how files get there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Linked {
    to: String,
    #[serde(default)]
    link: Link,
}

/// What a node takes of the machine while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Cores, of each machine. Unset: counts as one, and the node may use those that are idle. 0: it waits for no core.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// GPUs, of each machine.
    #[serde(default)]
    pub gpus: u32,
    /// Bytes of memory, of each machine.
    #[serde(default, deserialize_with = "bytes")]
    #[schemars(schema_with = "amount")]
    pub memory: u64,
    /// Machines, for a kind that can use several: those that a scheduler gave, or `hosts`.
    #[serde(default, deserialize_with = "one_or_more")]
    #[schemars(range(min = 1))]
    pub nodes: Option<u32>,
    /// The time limit of its job, where it runs as one. What is stopped by it goes on in another job, if its kind can.
    #[serde(default, deserialize_with = "duration")]
    #[schemars(schema_with = "amount")]
    pub time: Option<Duration>,
    /// Machines by the names under which `ssh` knows them, the first one's processes meet the others'. All see the cache and
    /// `flow-torch` under the same paths. What is taken of them is not counted, but one stage at a time has a machine.
    #[serde(default)]
    pub hosts: Vec<String>,
}

impl Resources {
    /// How many machines it takes.
    #[must_use]
    pub fn machines(&self) -> usize {
        if self.hosts.is_empty() { self.nodes.unwrap_or(1) as usize } else { self.hosts.len() }
    }
}

/// A stage's table, taken apart.
#[derive(Debug)]
pub struct Parts {
    /// The kind's name and its place.
    pub kind: Option<(String, Option<Span>)>,
    /// The keys that every stage has.
    pub common: Common,
    /// As they stand in the file.
    pub said: Value,
    /// The rest: the kind's own parameters, with the place of the whole stage.
    pub own: Value,
}

/// Takes a stage's table apart; nothing if it is no table. What is wrong goes to `errors`: that it names no kind, or one
/// of the common keys has a value that does not fit.
pub fn split(name: &str, stage: Value, errors: &mut Vec<Diagnostic>) -> Option<Parts> {
    let span = stage.span;
    let mut table = match stage.kind {
        ValueKind::Table(table) => table,
        ValueKind::Wrong => return None,
        _ => {
            let error = Diagnostic::new(format!("stage `{name}` is not a table")).at(span);
            errors.push(error.hint(format!("a stage is a table: [stage.{name}]")));
            return None;
        }
    };
    let kind = match table.remove("kind") {
        Some(Value { kind: ValueKind::String(kind), span }) => Some((kind, span)),
        Some(Value { kind: ValueKind::Wrong, .. }) => None,
        Some(other) => {
            errors.push(
                Diagnostic::new(format!("`kind` is the name of a stage kind, not {}", other.type_name()))
                    .at(other.span),
            );
            None
        }
        None => {
            let error = Diagnostic::new(without_kind(name)).at(span.clone()).absent();
            errors.push(error.hint("add `kind = \"…\"`; a profile may only change stages that the file has"));
            None
        }
    };
    // Mostly there are none, and of many stages nothing may be left over.
    let common = table.entries.extract_if(.., |entry| COMMON_KEYS.contains(&entry.0.as_str())).collect();
    let common = Table { entries: common };
    let is_plain = common.entries.is_empty();
    let said = Value { kind: ValueKind::Table(common), span: span.clone() };
    let common = if is_plain {
        Common::default()
    } else {
        let mut read = read::<Common>(&said);
        read.errors.iter_mut().for_each(name_reflink);
        errors.extend(read.errors);
        let mut common = read.value.unwrap_or_default();
        // What is made up is not the user's place, nor their executor.
        let is_made_up = |name: &str| read.made_up.iter().any(|key| key == name);
        common.export = common.export.filter(|_| !is_made_up("export"));
        common.executor = common.executor.filter(|_| !is_made_up("executor"));
        common
    };
    Some(Parts { kind, common, said, own: Value { kind: ValueKind::Table(table), span } })
}

/// `reflink` is no choice of its own.
fn name_reflink(error: &mut Diagnostic) {
    if error.message == "`reflink` is not a choice here" {
        error.hints.insert(0, "link = \"copy\" is a reflink where the file system can make one".into());
    }
}

fn without_kind(name: &str) -> String {
    format!("stage `{name}` has no `kind`")
}

/// Of a stage that has no kind: a profile may have meant one of those that have.
pub fn name_near_stage(errors: &mut [Diagnostic], name: &str, known: &[String]) {
    for error in errors.iter_mut().filter(|error| error.message == without_kind(name)) {
        let near = did_you_mean(name, known.iter().map(String::as_str));
        error.hints.splice(0..0, near.map(|near| format!("did you mean the stage `{near}`?")));
    }
}

/// Of a key that a kind does not know: what was meant may be one of those that every stage has.
pub fn name_all_keys(errors: &mut [Diagnostic], own: &Value, kind: &Kind) {
    let keys = || own.as_table().into_iter().flat_map(|table| &table.entries);
    for error in errors {
        let is_of = |(key, span, _): &&(String, Option<Span>, Value)| {
            *span == error.span && error.message == format!("unknown key `{key}`")
        };
        let Some((key, ..)) = keys().find(is_of) else { continue };
        let schema = (kind.schema)();
        let own: Vec<&str> =
            schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        let every = || COMMON_KEYS.into_iter().chain(["matrix"]);
        error.hints = vec![match did_you_mean(key, own.iter().copied().chain(every())) {
            Some(near) => format!("did you mean `{near}`?"),
            None => {
                format!("known keys: {}; of every stage: {}", own.join(", "), every().collect::<Vec<_>>().join(", "))
            }
        }];
    }
}

fn yes() -> bool {
    true
}

fn amount(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["integer", "string"], "minimum": 0 })
}

fn truth_or_text(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["boolean", "string"] })
}

/// A number of units, or a text with a unit.
struct Quantity {
    expecting: &'static str,
    parse: fn(&str) -> Option<u64>,
}

impl Visitor<'_> for Quantity {
    type Value = u64;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.expecting)
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<u64, E> {
        u64::try_from(number).map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        (self.parse)(text.trim()).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

/// `<number><unit>`, the number possibly with a fraction.
fn with_unit(text: &str, units: &[(&str, f64)]) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let number: f64 = text[..split].parse().ok()?;
    let unit = text[split..].trim();
    let factor = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1;
    let amount = (number * factor).round();
    (amount < u64::MAX as f64).then_some(amount as u64)
}

/// A length of time such as `500ms`, `1.5s`, `5m`, `1h30m`, `1d`, in milliseconds.
pub(crate) fn millis_of(text: &str) -> Option<u64> {
    const S: f64 = 1e3;
    let units = [("ms", 1.0), ("s", S), ("m", 60.0 * S), ("min", 60.0 * S), ("h", 3600.0 * S), ("d", 86_400.0 * S)];
    let (mut sum, mut rest) = (0_u64, text);
    loop {
        let unit = rest.find(|c: char| c.is_ascii_alphabetic())?;
        let end = rest[unit..].find(|c: char| !c.is_ascii_alphabetic()).map_or(rest.len(), |length| unit + length);
        sum = sum.checked_add(with_unit(rest[..end].trim(), &units)?)?;
        rest = &rest[end..];
        if rest.is_empty() {
            return Some(sum);
        }
    }
}

/// A length of time, as a text or a number of seconds.
struct Time {
    /// None is one, too.
    zero: bool,
}

impl Visitor<'_> for Time {
    type Value = Duration;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let above = if self.zero { "" } else { " above 0" };
        write!(f, "a number of seconds{above}, or a text such as \"90s\", \"30m\", \"1h30m\", \"1d\"")
    }
    fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Duration, E> {
        let time = u64::try_from(seconds).ok().map(Duration::from_secs).filter(|time| self.takes(time));
        time.ok_or_else(|| E::invalid_value(de::Unexpected::Signed(seconds), &self))
    }
    fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Duration, E> {
        let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| self.takes(time));
        time.ok_or_else(|| E::invalid_value(de::Unexpected::Float(seconds), &self))
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        let time = millis_of(text.trim()).map(Duration::from_millis).filter(|time| self.takes(time));
        time.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl Time {
    fn takes(&self, time: &Duration) -> bool {
        self.zero || !time.is_zero()
    }
}

/// A size such as `16GiB`, `500 MB`, in bytes.
pub fn bytes_of(text: &str) -> Option<u64> {
    const K: f64 = 1024.0;
    let binary = [("B", 1.0), ("KiB", K), ("MiB", K * K), ("GiB", K * K * K), ("TiB", K * K * K * K)];
    let decimal = [("KB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)];
    text.parse().ok().or_else(|| with_unit(text, &binary)).or_else(|| with_unit(text, &decimal))
}

pub(crate) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    deserializer.deserialize_any(Time { zero: false }).map(Some)
}

/// As [`duration`]; 0 is one.
pub(crate) fn duration_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    deserializer.deserialize_any(Time { zero: true }).map(Some)
}

pub(crate) fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let expecting = "a number of bytes, or a text such as \"16GiB\", \"500MB\"";
    deserializer.deserialize_any(Quantity { expecting, parse: bytes_of })
}

fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    struct Count;
    impl Visitor<'_> for Count {
        type Value = u32;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a number, at least 1")
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<u32, E> {
            let count = u32::try_from(number).ok().filter(|count| *count > 0);
            count.ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
        }
    }
    deserializer.deserialize_any(Count).map(Some)
}

/// `true`, `false`, or a text that [`when::holds`] or not.
fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    struct Truth;
    impl Visitor<'_> for Truth {
        type Value = bool;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("true or false, or a comparison such as \"${n} > 0\"")
        }
        fn visit_bool<E>(self, truth: bool) -> Result<bool, E> {
            Ok(truth)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<bool, E> {
            when::holds(text).map_err(E::custom)
        }
    }
    deserializer.deserialize_any(Truth)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn parts(text: &str) -> Result<Parts, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let root = crate::syntax::parse(Path::new("p.toml"), text.into(), &mut errors).unwrap();
        let parts = split("s", root, &mut errors);
        if errors.is_empty() { Ok(parts.unwrap()) } else { Err(errors) }
    }

    #[test]
    fn common_keys_are_taken_out_and_read() {
        let parts = parts(
            "kind = 'k'\nx = 1\nretries = 2\ntimeout = '1.5h'\ncache = false\nneeds = ['a']\nwhen = 'false'\n\
             resources = { cpus = 4, gpus = 1, memory = '1.5GiB' }\nexport = 'out'\ny = 2",
        )
        .unwrap();
        assert_eq!(parts.kind.unwrap().0, "k");
        let common = parts.common;
        assert_eq!((common.retries, common.timeout), (2, Some(Duration::from_secs(5400))));
        assert!(!common.cache && !common.when);
        assert_eq!(common.resources, Resources { cpus: Some(4), gpus: 1, memory: 3 << 29, ..Resources::default() });
        let machines = |text: &str| super::tests::parts(text).unwrap().common.resources.machines();
        assert_eq!(machines("kind = 'k'\nresources = { cpus = 1 }"), 1);
        assert_eq!(machines("kind = 'k'\nresources = { nodes = 3 }"), 3);
        assert_eq!(machines("kind = 'k'\nresources = { hosts = ['a', 'b'] }"), 2);
        assert_eq!(common.needs[0].span().unwrap().line_column(), (6, 10));
        for (text, millis) in [("'0.1s'", 100), ("1.9", 1900), ("3", 3000), ("'250ms'", 250), ("'1.5 min'", 90_000)] {
            let common = super::tests::parts(&format!("kind = 'k'\ntimeout = {text}")).unwrap().common;
            assert_eq!(common.timeout, Some(Duration::from_millis(millis)), "{text}");
        }
        let own: Vec<_> = parts.own.as_table().unwrap().entries.iter().map(|entry| entry.0.clone()).collect();
        assert_eq!(own, ["x", "y"]);
        let link = |text: &str| super::tests::parts(&format!("kind = 'k'\nexport = {text}")).unwrap().common.export;
        assert_eq!(link("'a'"), Some(Export { to: "a".into(), link: Link::Copy }));
        assert_eq!(link("{ to = 'a' }"), link("'a'"));
        assert_eq!(link("{ to = 'a', link = 'hardlink' }").unwrap().link, Link::Hardlink);
    }

    #[test]
    fn what_does_not_fit_is_said_at_its_place() {
        let place = |text: &str| {
            let errors = parts(text).unwrap_err();
            (errors[0].message.clone(), errors[0].span.as_ref().unwrap().line_column())
        };
        for never in ["'soon'", "'0s'", "0", "-1", "-0.5", "'0.0001s'", "inf"] {
            assert_eq!(place(&format!("kind = 'k'\ntimeout = {never}")).1, (2, 11), "{never}");
        }
        assert_eq!(place("kind = 'k'\nresources = { gpu = 1 }"), ("unknown key `gpu`".into(), (2, 15)));
        assert_eq!(place("kind = 'k'\nretries = -1").1, (2, 11));
        assert_eq!(place("kind = 'k'\nresources = { nodes = 0 }").1, (2, 23));
        assert_eq!(place("kind = 'k'\nexport = { to = 'a', link = 'soft' }").1, (2, 29));
        assert_eq!(place("kind = 'k'\nexport = { into = 'a' }").0, "unknown key `into`");
        let hints = |text: &str| parts(text).unwrap_err().remove(0).hints;
        assert_eq!(hints("kind = 'k'\ntimeout = 0"), [""; 0], "\"0\" is refused as well");
        assert_eq!(hints("kind = 'k'\nexecutor = 1"), ["in quotes: executor = \"1\""]);
        assert!(hints("kind = 'k'\nexport = { to = 'a', link = 'reflink' }")[0].contains("\"copy\" is a reflink"));
        assert_eq!(place("kind = 1").1, (1, 8));
        assert!(place("x = 1").0.contains("no `kind`"));
        assert_eq!(parts("retries = 'x'").unwrap_err().len(), 2);
    }
}
