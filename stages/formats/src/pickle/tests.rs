//! What is written is read back; what the real programs wrote is read; what is hostile is an error and costs nothing.

use proptest::prelude::*;

use super::*;

fn same(value: &Value, view: View<'_>) -> bool {
    match value {
        Value::None => view.is_none(),
        Value::Bool(truth) => view.as_bool() == Some(*truth),
        Value::Int(number) => view.as_int() == Some(*number),
        Value::Float(number) => view.as_float().is_some_and(|read| read.to_bits() == number.to_bits()),
        Value::Str(text) => view.as_str() == Some(text),
        Value::List(items) | Value::Tuple(items) => view.items().is_some_and(|read| {
            read.len() == items.len() && items.iter().zip(read).all(|(item, view)| same(item, view))
        }),
        Value::Dict(entries) => view.entries().is_some_and(|read| {
            read.len() == entries.len() && entries.iter().zip(read).all(|((k, v), (kv, vv))| same(k, kv) && same(v, vv))
        }),
        Value::Global(module, name) => view.global() == Some((module, name)),
        Value::Call(function, args) => {
            let Value::Global(module, name) = &**function else { return false };
            view.class() == Some((module, name))
                && view.args().is_some_and(|read| {
                    read.len() == args.len() && args.iter().zip(read).all(|(arg, view)| same(arg, view))
                })
        }
        Value::Persistent(id) => view.persistent().is_some_and(|read| same(id, read)),
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::None),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        (-300i64..70_000).prop_map(Value::Int),
        any::<f64>().prop_map(Value::Float),
        ".{0,12}".prop_map(Value::Str),
        "[a-c]".prop_map(Value::Str),
        "[a-z]{1,5}".prop_map(|name| Value::Global("torch", name)),
    ];
    leaf.prop_recursive(4, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::List),
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Tuple),
            prop::collection::vec((inner.clone(), inner.clone()), 0..4).prop_map(Value::Dict),
            prop::collection::vec(inner.clone(), 0..5)
                .prop_map(|args| Value::Call(Box::new(Value::Global("some.module", "Class".into())), args)),
            inner.prop_map(|id| Value::Persistent(Box::new(id))),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(value in any_value()) {
        let bytes = value.pickle();
        let pickle = Pickle::parse(&bytes).unwrap();
        prop_assert!(same(&value, pickle.root()), "{value:?}");
        prop_assert_eq!(value.pickle(), bytes);
    }

    #[test]
    fn any_bytes_are_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Pickle::parse(&bytes);
    }

    #[test]
    fn a_damaged_pickle_is_a_value_or_an_error(value in any_value(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = value.pickle();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(pickle) = Pickle::parse(&bytes) {
            let _ = (pickle.root().items(), pickle.root().entries(), pickle.root().describe());
        }
        prop_assert!(Pickle::parse(&value.pickle()[..at.min(value.pickle().len() - 1)]).is_err());
    }
}

#[test]
fn more_than_256_names_go_through_the_long_memo() {
    let names: Vec<_> = (0..600).map(|i| Value::str(format!("layer {i}"))).collect();
    let value = Value::List([names.clone(), names].concat());
    let bytes = value.pickle();
    assert!(same(&value, Pickle::parse(&bytes).unwrap().root()));
    assert!(bytes.len() < 600 * (9 + 5 + 5) + 600 * 5 + 20, "the second mention is a reference");
}

/// `os.system("…")`: read as a note that there was a call, and nothing happens.
#[test]
fn a_call_is_never_made() {
    let canary = std::env::temp_dir().join(format!("flow-pickle-canary-{}", std::process::id()));
    let shell = format!("touch {}", canary.display());
    let mut evil = b"\x80\x02cposix\nsystem\nX".to_vec();
    evil.extend((shell.len() as u32).to_le_bytes());
    evil.extend(shell.as_bytes());
    evil.extend(b"\x85R.");
    let pickle = Pickle::parse(&evil).unwrap();
    assert_eq!(pickle.root().class(), Some(("posix", "system")));
    assert_eq!(pickle.root().args().unwrap()[0].as_str(), Some(shell.as_str()));
    assert!(!canary.exists());
}

/// Ten lists of ten of the list before: 10¹⁰ leaves for a reader that copies.
#[test]
fn shared_values_and_cycles_cost_what_they_weigh() {
    let mut bytes = vec![0x80, 4, b']', 0x94];
    for level in 0..200u8 {
        bytes.extend([b']', 0x94, b'(']);
        (0..10).for_each(|_| bytes.extend([b'h', level]));
        bytes.push(b'e');
    }
    bytes.push(b'.');
    assert_eq!(Pickle::parse(&bytes).unwrap().root().items().unwrap().len(), 10);

    let mut deep = vec![0x80, 4];
    deep.extend(std::iter::repeat_n(b'(', 100_000));
    deep.extend(std::iter::repeat_n(b'l', 100_000));
    deep.push(b'.');
    assert_eq!(Pickle::parse(&deep).unwrap().root().items().unwrap().len(), 1);

    let cycle = b"\x80\x04]\x94h\x00a.";
    let pickle = Pickle::parse(cycle).unwrap();
    assert_eq!(pickle.root().items().unwrap()[0].items().unwrap().len(), 1);

    // torch.Size whose argument is itself
    let cycle = b"ctorch\nSize\n)R\x94(h\x00h\x00t.";
    let _ = Pickle::parse(cycle).map(|pickle| pickle.root().items().map(|items| items.len()));
}

#[test]
fn integers_of_any_length() {
    for (bytes, want) in [
        (&b"\x8a\x00."[..], Some(0)),
        (b"\x8a\x05\x00\x00\x00\x80\x00.", Some(1i64 << 31)),
        (b"\x8a\x01\xff.", Some(-1)),
        (b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00.", None),
        (b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\xff.", Some(-1)),
        (b"L-12L\n.", Some(-12)),
        (b"I7\n.", Some(7)),
    ] {
        assert_eq!(Pickle::parse(bytes).unwrap().root().as_int(), want, "{bytes:?}");
    }
}

#[test]
fn errors_say_where() {
    let error = format!("{:#}", Pickle::parse(b"\x80\x02K\x01\x82\x01.").unwrap_err());
    assert!(error.contains("at byte 4") && error.contains("outside of the file"), "{error}");
    for bad in [
        &b""[..],
        b"\x80\x02",
        b"\x80\x09.",
        b".",
        b"a.",
        b"(K\x01b.",
        b"h\x05.",
        b"K\x01K\x02a.",
        b"(K\x01d.",
        b"(.",
        b"e.",
    ] {
        assert!(Pickle::parse(bad).is_err(), "{bad:?}");
    }
}
