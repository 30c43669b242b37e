//! The pipeline file as a JSON Schema, for editors: made of the registry, so that it says of every kind what its struct
//! says.

use flow_core::{Kind, schema_of};
use serde_json::{Map, Value as Json, json};

use crate::Common;

/// A text with a parameter in it may stand where a number, a truth, a list or a table belongs.
const PARAMETER: &str = r"\$\{";

/// The JSON Schema (2020-12) of a pipeline file with stages of these kinds.
#[must_use]
pub fn schema(kinds: &[Kind]) -> Json {
    let common = common();
    let mut defs = Map::new();
    let (mut any, mut parts) = (Vec::new(), Vec::new());
    for kind in kinds {
        let whole = stage(kind, &common);
        let mut part = whole.clone();
        part["properties"].as_object_mut().expect("it was made with some").remove("kind");
        make_part(&mut part);
        any.push(json!({ "$ref": format!("#/$defs/stage.{}", kind.name) }));
        parts.push(json!({ "$ref": format!("#/$defs/part.{}", kind.name) }));
        defs.insert(format!("stage.{}", kind.name), whole);
        defs.insert(format!("part.{}", kind.name), part);
    }
    any.push(json!({ "$ref": "#/$defs/part" }));
    defs.insert("part".into(), json!({ "description": "What is laid over a stage.", "anyOf": parts }));
    defs.insert(
        "stages".into(),
        json!({
            "description": "The stages, by their names.",
            "type": "object",
            "additionalProperties": { "oneOf": any },
        }),
    );
    defs.insert(
        "params".into(),
        json!({
            "description": "What `${name}` stands for in any text. A text that is only `${name}` takes the value's type.",
            "type": "object",
        }),
    );
    defs.insert(
        "pipeline".into(),
        json!({
            "description": "The pipeline itself.",
            "type": "object",
            "properties": { "name": { "description": "Its name; the file's if it is left out.", "type": "string" } },
            "additionalProperties": false,
        }),
    );
    let mut laid_over = json!({
        "pipeline": { "$ref": "#/$defs/pipeline" },
        "params": { "$ref": "#/$defs/params" },
        "stage": { "$ref": "#/$defs/stages" },
    });
    let profile = json!({
        "description": "A profile: what `--profile NAME` lays over the file.",
        "type": "object",
        "properties": laid_over,
        "additionalProperties": false,
    });
    laid_over["profile"] = json!({
        "description": "The profiles, by their names.",
        "type": "object",
        "additionalProperties": profile,
    });
    laid_over["include"] = json!({
        "description": "Files that this one is laid over, relative to it.",
        "type": ["array", "string"],
        "items": { "type": "string" },
    });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A pipeline of flow",
        "type": "object",
        "properties": laid_over,
        "additionalProperties": false,
        // A stage that names no kind is laid over one of an included file.
        "anyOf": [
            { "required": ["include"] },
            { "properties": { "stage": { "additionalProperties": { "required": ["kind"] } } } },
        ],
        "$defs": defs,
    })
}

/// The keys of every stage, but for `kind`.
fn common() -> Map<String, Json> {
    let mut common = properties(schema_of::<Common>());
    let mut matrix = json!({
        "description": "The stage once for each combination: a table of lists, or the list of the combinations.",
        "type": ["object", "array"],
        "items": { "type": "object" },
    });
    each(&mut matrix, &mut loosen);
    common.insert("matrix".into(), matrix);
    common
}

/// A stage of this kind.
fn stage(kind: &Kind, common: &Map<String, Json>) -> Json {
    let own = (kind.schema)();
    let mut required = vec![json!("kind")];
    required.extend(own["required"].as_array().into_iter().flatten().cloned());
    let mut all = properties(own);
    all.extend(common.clone());
    all.insert("kind".into(), json!({ "description": kind.about, "const": kind.name }));
    json!({
        "description": kind.about,
        "type": "object",
        "properties": all,
        "required": required,
        "additionalProperties": false,
    })
}

/// The properties of a table, as TOML and parameters have them.
fn properties(mut table: Json) -> Map<String, Json> {
    let Json::Object(mut properties) = table["properties"].take() else { return Map::new() };
    properties.values_mut().for_each(|property| each(property, &mut loosen));
    properties
}

/// What is laid over a table need not be whole, nor need the tables in it.
fn make_part(schema: &mut Json) {
    let Json::Object(table) = schema else { return };
    table.remove("required");
    table.remove("default");
    if let Some(Json::Object(properties)) = table.get_mut("properties") {
        properties.values_mut().for_each(make_part);
    }
}

/// Visits what is inside of a schema, and then itself.
fn each(schema: &mut Json, visit: &mut dyn FnMut(&mut Map<String, Json>)) {
    let Json::Object(object) = schema else { return };
    for (key, inner) in object.iter_mut() {
        match (key.as_str(), inner) {
            ("properties", Json::Object(properties)) => properties.values_mut().for_each(|inner| each(inner, visit)),
            ("oneOf" | "anyOf", Json::Array(choices)) => choices.iter_mut().for_each(|inner| each(inner, visit)),
            ("items" | "additionalProperties", inner) => each(inner, visit),
            _ => {}
        }
    }
    visit(object);
}

/// TOML has no null, and a parameter may stand for every value.
fn loosen(schema: &mut Map<String, Json>) {
    schema.remove("format"); // `uint64` and the like, which no validator knows
    schema.remove("writeOnly"); // what no key sees is none of an editor's business
    if schema.get("default").is_some_and(says_nothing) {
        schema.remove("default");
    }
    let parameter = || json!({ "type": "string", "pattern": PARAMETER });
    if let Some(mut values) = schema.remove("enum") {
        schema.remove("type");
        values.as_array_mut().into_iter().for_each(|values| values.retain(|value| !value.is_null()));
        schema.insert("oneOf".into(), json!([{ "enum": values }, parameter()]));
        return;
    }
    for choices in ["oneOf", "anyOf"] {
        if let Some(Json::Array(choices)) = schema.get_mut(choices) {
            choices.retain(|choice| choice["type"] != "null");
            if !choices.contains(&parameter()) {
                choices.push(parameter());
            }
        }
    }
    let mut types = match schema.get("type") {
        Some(Json::Array(types)) => types.clone(),
        Some(one) => vec![one.clone()],
        None => return,
    };
    types.retain(|name| name != "null");
    if !types.contains(&json!("string")) && !types.is_empty() {
        types.push(json!("string"));
        schema.insert("pattern".into(), json!(PARAMETER));
    }
    match types.as_slice() {
        [] => {}
        [one] => drop(schema.insert("type".into(), one.clone())),
        _ => drop(schema.insert("type".into(), Json::Array(types))),
    }
}

/// Whether a default is that nothing is there.
fn says_nothing(default: &Json) -> bool {
    match default {
        Json::Null => true,
        Json::Array(items) => items.is_empty(),
        Json::Object(table) => table.is_empty(),
        _ => false,
    }
}
