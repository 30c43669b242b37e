//! By example, and against serde_json.

use super::*;
use proptest::prelude::*;
use serde_json::Value;

fn text(line: &str) -> Result<Text<'_>, BadLine> {
    let mut found = [Text::Missing];
    texts(line.as_bytes(), &["text"], &mut found)?;
    let [found] = found;
    Ok(found)
}

fn one(text: &str) -> Result<Text<'_>, BadLine> {
    Ok(Text::One(text.into()))
}

#[test]
fn the_text_is_found_wherever_it_stands() {
    assert_eq!(text(r#"{"text":"一\n二"}"#), one("一\n二"));
    assert_eq!(text("\t { \"a\" : [1, {\"text\": \"no\"}, []], \"text\" : \"yes\" , \"b\":{} } \r"), one("yes"));
    assert_eq!(text(r#"{"text":"a","text":"b"}"#), one("b"), "the last wins");
    assert_eq!(text(r#"{"te\u0078t":"\ud83d\ude00\u0000\/"}"#), one("😀\0/"));
    assert_eq!(text(r#"{"x":[NaN,-Infinity,Infinity,1e5,-0.5E-3,0],"text":""}"#), one(""));
    assert_eq!(text(r#"{"text":["a","b\t",""]}"#), Ok(Text::Many(vec!["a".into(), "b\t".into(), "".into()])));
    assert_eq!(text(r#"{"text":[ ]}"#), Ok(Text::Many(vec![])));
    assert_eq!(text("{}"), Ok(Text::Missing));
    assert_eq!(text(r#"{"text":"\ud800","text":"whole"}"#), one("whole"));
    assert_eq!(text(r#"{"\ud800":1,"text":"\ud83d\\n"}"#), Ok(Text::Other("holds half of a surrogate pair")));
}

#[test]
fn what_is_no_text_is_named() {
    for (line, what) in [
        (r#"{"text":null}"#, "is null"),
        (r#"{"text":12}"#, "is a number, not text"),
        (r#"{"text":true}"#, "is a boolean, not text"),
        (r#"{"text":{"a":"b"}}"#, "is an object, not text"),
        (r#"{"text":["a",1]}"#, "is a list with something that is not text"),
        (r#"{"text":"\udc00x"}"#, "holds half of a surrogate pair"),
        (r#"{"text":"\ud800\ud800"}"#, "holds half of a surrogate pair"),
    ] {
        assert_eq!(text(line), Ok(Text::Other(what)), "{line}");
    }
}

#[test]
fn bad_lines_say_why_and_where() {
    for (line, why, at) in [
        ("", "a blank line", 0),
        ("  ", "a blank line", 0),
        ("\u{feff}{}", "a byte order mark before the JSON", 0),
        ("[1]", "not a JSON object", 0),
        ("<html>", "not JSON", 0),
        (r#"{"text":"a"} x"#, "something follows the JSON object", 13),
        (r#"{"text":"a"}{"text":"b"}"#, "something follows the JSON object", 12),
        (r#"{"text":"a"#, "the line ends too early", 10),
        (r#"{"text""#, "the line ends too early", 7),
        ("{\"text\":\"a\tb\"}", "a raw control character inside of a string", 10),
        (r#"{"text":"\x"}"#, "an escape that JSON does not have", 9),
        (r#"{"text":"\u12g4"}"#, "`\\u` without four hexadecimal digits", 11),
        (r#"{text:"a"}"#, "a key in double quotes is expected", 1),
        (r#"{"a":1,}"#, "a key in double quotes is expected", 7),
        (r#"{"a":01}"#, "`,` or `}` is expected", 6),
        (r#"{"a":1.}"#, "a number that ends with a point", 6),
        (r#"{"a":[1,]}"#, "a value is expected", 8),
        (r#"{"a":'b'}"#, "a value is expected", 5),
    ] {
        assert_eq!(text(line), Err(BadLine { at, why: why.into() }), "{line}");
    }
    let mut found = [Text::Missing];
    let bad = texts(b"{\"text\":\"a\xff\"}", &["text"], &mut found).unwrap_err();
    assert_eq!((bad.at, &*bad.why), (10, "invalid UTF-8"));
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(2000), "]".repeat(2000));
    assert_eq!(&*text(&deep).unwrap_err().why, "nested too deep");
}

/// Any JSON value, with odd strings.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e300..1e300f64).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-c\"\\\\\n]{0,2}|text", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn agrees_with_serde_json_on_json(value in json(), text_value in any::<String>(), pretty in any::<bool>()) {
        let mut object = serde_json::Map::new();
        object.insert("other".into(), value);
        object.insert("text".into(), Value::from(text_value.clone()));
        let line = if pretty { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) }.unwrap();
        prop_assert_eq!(text(&line), one(&text_value));
    }

    #[test]
    fn agrees_with_serde_json_on_what_is_nearly_json(
        value in json(), cut in any::<prop::sample::Index>(), byte in 0u8..128, replace in any::<bool>(),
    ) {
        let mut line = serde_json::to_vec(&serde_json::json!({ "text": "t", "v": value })).unwrap();
        let at = cut.index(line.len());
        if replace { line[at] = byte } else { line.truncate(at) }
        let mut found = [Text::Missing];
        let ours = texts(&line, &["text"], &mut found);
        match serde_json::from_slice::<Value>(&line) {
            Ok(_) => prop_assert!(ours.is_ok(), "{ours:?}"),
            // Ours takes what Python takes and serde_json does not: halves of pairs, numbers beyond f64.
            Err(error) => prop_assert!(
                ours.is_err() || error.to_string().contains("surrogate") || error.to_string().contains("out of range"),
                "{error}"
            ),
        }
    }

    #[test]
    fn never_panics(line in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = texts(&line, &["text"], &mut [Text::Missing]);
    }
}

#[test]
fn a_text_is_replaced_and_nothing_else() {
    let replace = |line: &str| replace_text(line.as_bytes(), "text", "a \"b\"\n日本");
    assert_eq!(
        replace(r#" {"id": 1.50, "text" : "old \u0041 }", "meta":{"text":[NaN, "x"]} } "#).unwrap(),
        " {\"id\": 1.50, \"text\" : \"a \\\"b\\\"\\n日本\", \"meta\":{\"text\":[NaN, \"x\"]} } "
    );
    assert_eq!(replace(r#"{"text":1,"text":["a"]}"#).unwrap(), "{\"text\":1,\"text\":\"a \\\"b\\\"\\n日本\"}");
    assert_eq!((replace("{}"), replace("[]"), replace(r#"{"text":"#)), (None, None, None));
}

#[test]
fn a_value_is_found_by_its_path() {
    let line = br#"{"meta": {"id": 1.50, "a": {"id": "x\u0041"}}, "id": null, "text": "t"}"#;
    let found = |path: &[&str]| raw_value(line, path);
    assert_eq!((found(&["meta", "id"]), found(&["id"]), found(&["text"])), (Some("1.50"), Some("null"), Some("\"t\"")));
    assert_eq!(found(&["meta", "a", "id"]), Some("\"x\\u0041\""));
    assert_eq!((found(&["meta", "b"]), found(&["text", "id"]), found(&["no"])), (None, None, None));
}
