//! Tests of reading, with and without errors.

use super::*;
use crate::{Ref, Refs, Source, Table};
use serde::Deserialize;
use std::sync::Arc;

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Params {
    input: Ref,
    steps: u32,
    lr: f64,
    #[serde(default)]
    list: Vec<Ref>,
    #[serde(default)]
    many: Option<Refs>,
}

fn value(source: &Arc<Source>, at: usize, kind: ValueKind) -> Value {
    Value { kind, span: Some(Span::new(source, at..at + 1)) }
}

fn table(entries: Vec<(&str, ValueKind)>) -> (Arc<Source>, Value) {
    let source = Arc::new(Source { path: "p".into(), text: " ".repeat(100) });
    let entries = entries
        .into_iter()
        .enumerate()
        .map(|(i, (key, kind))| {
            (key.to_owned(), Some(Span::new(&source, 10 * i..10 * i + 1)), value(&source, 10 * i + 5, kind))
        })
        .collect();
    let value = value(&source, 99, ValueKind::Table(Table { entries }));
    (source, value)
}

#[test]
fn errors_point_at_the_smallest_wrong_thing() {
    let text = |t: &str| ValueKind::String(t.into());
    let good = vec![("input", text("raw")), ("steps", ValueKind::Integer(3)), ("lr", ValueKind::Integer(1))];
    let (source, v) = table(good.clone());
    let params: Params = from_value(&v).unwrap();
    assert_eq!((params.input.text(), params.input.span().unwrap().start, params.lr), ("raw", 5, 1.0));

    let mut several = good.clone();
    several.push(("many", text("a")));
    let many = from_value::<Params>(&table(several.clone()).1).unwrap().many.unwrap();
    assert_eq!((many[0].text(), many[0].span().unwrap().start), ("a", 35));
    several[3].1 = ValueKind::Array(vec![value(&source, 42, text("a")), value(&source, 44, text("b"))]);
    let many = from_value::<Params>(&table(several).1).unwrap().many.unwrap();
    assert_eq!(many.iter().map(|r| r.span().unwrap().start).collect::<Vec<_>>(), [42, 44]);

    let mut unknown = good.clone();
    unknown.push(("stpes", ValueKind::Integer(1)));
    let error = from_value::<Params>(&table(unknown).1).unwrap_err();
    assert_eq!((error.message.as_str(), error.span.unwrap().start), ("unknown key `stpes`", 30));
    assert_eq!(error.hints, ["did you mean `steps`?"]);

    let mut wrong = good.clone();
    wrong[1].1 = text("many");
    let error = from_value::<Params>(&table(wrong).1).unwrap_err();
    assert_eq!(error.span.unwrap().start, 15);

    let error = from_value::<Params>(&table(good[..2].to_vec()).1).unwrap_err();
    assert_eq!((error.message.as_str(), error.span.unwrap().start), ("`lr` is missing", 99));
}

#[test]
fn a_path_leads_to_the_nearest_value() {
    let (source, mut v) = table(vec![("input", ValueKind::Integer(1))]);
    let inner = Table { entries: vec![("lr".into(), None, value(&source, 77, ValueKind::Float(0.1)))] };
    let ValueKind::Table(t) = &mut v.kind else { unreachable!() };
    t.insert("optim", None, value(&source, 70, ValueKind::Table(inner)));
    assert_eq!(v.nearest("optim.lr").span.as_ref().unwrap().start, 77);
    assert_eq!(v.nearest("optim.eps").span.as_ref().unwrap().start, 70);
    assert_eq!(v.nearest("nothing").span.as_ref().unwrap().start, 99);
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
enum Shape {
    Round,
    Square,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Inner {
    lr: f64,
    betas: [f64; 2],
    shape: Shape,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Outer {
    input: Refs,
    small: u8,
    names: Vec<String>,
    inner: Inner,
    other: Inner,
    #[serde(default)]
    on: bool,
}

/// A value from JSON, its place the order in which it was met.
fn from_json(json: &serde_json::Value, source: &Arc<Source>, next: &mut usize) -> Value {
    use serde_json::Value as Json;
    *next += 1;
    let at = *next;
    let kind = match json {
        Json::String(text) if text == "WRONG" => ValueKind::Wrong,
        Json::String(text) => ValueKind::String(text.clone()),
        Json::Number(number) => {
            number.as_i64().map_or_else(|| ValueKind::Float(number.as_f64().unwrap()), ValueKind::Integer)
        }
        Json::Bool(truth) => ValueKind::Bool(*truth),
        Json::Array(items) => ValueKind::Array(items.iter().map(|item| from_json(item, source, next)).collect()),
        Json::Object(map) => {
            let entries = map.iter().map(|(key, value)| (key.clone(), None, from_json(value, source, next)));
            ValueKind::Table(Table { entries: entries.collect() })
        }
        Json::Null => unreachable!(),
    };
    Value { kind, span: Some(Span::new(source, at..at + 1)) }
}

fn read_json<T: serde::de::DeserializeOwned>(json: &serde_json::Value) -> super::Read<T> {
    let source = Arc::new(Source { path: "p".into(), text: " ".repeat(1000) });
    super::read(&from_json(json, &source, &mut 0))
}

#[test]
fn every_error_of_a_table_is_found_and_none_follows_from_another() {
    let read = read_json::<Outer>(&serde_json::json!({
        "inpt": "raw", "small": 300, "names": ["a", 1, true], "on": "yes", "hm": 1,
        "inner": { "lr": "fast", "betas": [0.9], "shape": "rond", "x": 1 },
    }));
    let mut said: Vec<_> = read.errors.iter().map(|error| error.message.as_str()).collect();
    said.sort_unstable();
    assert_eq!(
        said,
        [
            "`betas`: expected a list of 2, found 1",
            "`input` is missing",
            "`lr`: expected a number, found the text \"fast\"",
            "`names`: expected a text, found 1",
            "`names`: expected a text, found `true`",
            "`on`: expected true or false, found the text \"yes\"",
            "`other` is missing",
            "`rond` is not a choice here",
            "`small`: expected an integer from 0 to 255, found 300",
            "unknown key `hm`",
            "unknown key `inpt`",
            "unknown key `x`",
        ]
    );
    assert!(read.errors.iter().all(|error| error.span.is_some() || error.message.starts_with("unknown key")));
    assert!(read.value.is_some());
    let mut made_up = read.made_up.clone();
    made_up.sort_unstable();
    assert_eq!(made_up, ["inner", "input", "names", "on", "other", "small"]);
    let mut made_up = read.made_up_at.clone();
    made_up.sort_unstable();
    assert_eq!(made_up, ["inner.betas", "inner.lr", "inner.shape", "input", "names", "on", "other", "small"]);
}

#[test]
fn what_was_said_to_be_wrong_is_not_said_again() {
    let inner = serde_json::json!({ "lr": "WRONG", "betas": [0.9, "WRONG"], "shape": "WRONG" });
    let read = read_json::<Outer>(&serde_json::json!({
        "input": ["WRONG"], "small": "WRONG", "names": "WRONG", "inner": inner, "other": "WRONG",
    }));
    assert!(read.errors.is_empty() && read.value.is_some() && !read.sound(), "{read:?}");
    assert_eq!(read.made_up.len(), 5, "{read:?}");
    assert!(read.value.unwrap().input[0].span().is_none());
}
