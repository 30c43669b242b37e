//! What is taken of which source.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::*;
use crate::testing::{Stand, expand, stage};

fn stand() -> Stand {
    let mut stand = Stand::new();
    for (i, (name, count)) in [("wiki", 1000usize), ("code", 200)].into_iter().enumerate() {
        let document = |n| json!({ "text": format!("{name} {n} {}", "x".repeat(n % 50)) }).to_string() + "\n";
        let path = stand.write(&format!("{name}.jsonl"), (0..count).map(document).collect::<String>());
        stand.input(&port_name(i), &path);
    }
    stand
}

/// How often each document comes, by its source; and the stats.
fn mixed(stand: &Stand, mut params: Json, sources: [Json; 2]) -> Result<([BTreeMap<String, usize>; 2], Json)> {
    let [wiki, code] = sources;
    params["sources"] = json!([wiki, code]);
    params["sources"][0]["input"] = "wiki".into();
    params["sources"][1]["input"] = "code".into();
    params["output"] = "plain".into();
    stand.again();
    stand.run(&stage::<Mix>(params))?;
    let mut found = [BTreeMap::new(), BTreeMap::new()];
    for name in stand.outs().iter().filter(|name| name.ends_with(".jsonl")) {
        for line in String::from_utf8(stand.out(name)).unwrap().lines() {
            *found[usize::from(line.contains("code"))].entry(line.to_owned()).or_default() += 1;
        }
    }
    Ok((found, serde_json::from_slice(&stand.out("mixed.stats.json")).unwrap()))
}

#[test]
fn weights_share_a_budget_out_to_the_document() {
    let stand = stand();
    let weights = || [json!({ "weight": 3 }), json!({ "weight": 1 })];
    let sum = |found: &BTreeMap<String, usize>| found.values().sum::<usize>();
    let ([wiki, code], stats) = mixed(&stand, json!({ "documents": 400, "shards": 3 }), weights()).unwrap();
    assert_eq!((sum(&wiki), sum(&code), &stats["documents"]), (300, 100, &json!(400)));
    assert!(wiki.values().chain(code.values()).all(|times| *times == 1));
    assert_eq!(stand.outs().len(), 4);
    // A larger budget has what a smaller one had.
    let ([more, _], _) = mixed(&stand, json!({ "documents": 500 }), weights()).unwrap();
    assert!(wiki.keys().all(|line| more.contains_key(line)));
    let ([other, _], _) = mixed(&stand, json!({ "documents": 400, "seed": 1 }), weights()).unwrap();
    assert!(other != wiki);
    // More than a source has: it comes again, some of it more often.
    let ([wiki, code], _) = mixed(&stand, json!({ "documents": 1200 }), weights()).unwrap();
    assert_eq!((sum(&wiki), sum(&code), code.len()), (900, 300, 200));
    assert_eq!(code.values().filter(|times| **times == 2).count(), 100);
    let error = mixed(&stand, json!({ "documents": 4000 }), weights()).unwrap_err().to_string();
    assert!(error.contains("`code` would have to come 5.00 times"), "{error}");

    let (_, stats) = mixed(&stand, json!({ "bytes": "10kB" }), weights()).unwrap();
    let taken = |i: usize| stats["sources"][i]["taken_bytes"].as_u64().unwrap();
    assert!((7_400..=7_500).contains(&taken(0)) && (2_400..=2_500).contains(&taken(1)), "{stats}");
    // Without a budget as much as there is, nothing twice.
    let ([wiki, code], _) = mixed(&stand, json!({}), weights()).unwrap();
    assert!(code.len() == 200 && wiki.values().all(|times| *times == 1) && wiki.len() < 1000);
}

#[test]
fn epochs_say_how_often_a_source_comes() {
    let stand = stand();
    let ([wiki, code], _) = mixed(&stand, json!({}), [json!({ "epochs": 0.25 }), json!({ "epochs": 2 })]).unwrap();
    assert!(wiki.len().abs_diff(250) < 20 && code.len() == 200 && code.values().all(|times| *times == 2));
}

#[test]
fn what_cannot_be_is_said_before_anything_runs() {
    let error = |params: Json| expand::<Mix>(params).unwrap_err();
    for (params, field, words) in [
        (json!({ "sources": [] }), "sources", "nothing to mix"),
        (json!({ "sources": [{ "input": "a", "weight": 0 }] }), "sources.0.weight", "nothing would come"),
        (json!({ "sources": [{ "input": "a", "epochs": 1 }, { "input": "b" }] }), "sources.1", "have epochs"),
        (json!({ "sources": [{ "input": "a", "epochs": 1 }], "bytes": 5 }), "bytes", "epochs say how much"),
        (json!({ "sources": [{ "input": "a" }], "bytes": 5, "documents": 1 }), "bytes", "both there"),
        (json!({ "sources": [{ "input": "a" }], "name": "a/b" }), "name", "not a file name"),
        (json!({ "sources": [{ "input": "a" }], "shards": 0 }), "shards", "0 files"),
    ] {
        let error = error(params);
        assert!(error.field.as_deref() == Some(field) && error.message.contains(words), "{error:?}");
    }
}

#[test]
fn a_corpus_of_nothing_and_a_weight_of_nothing_are_errors() {
    let mut stand = stand();
    let nothing = stand.write("nothing.jsonl", "");
    stand.inputs.get_mut(&port_name(1)).unwrap().clear();
    stand.input(&port_name(1), &nothing);
    let error = mixed(&stand, json!({}), [json!({ "weight": 1 }), json!({ "weight": 1 })]).unwrap_err().to_string();
    assert!(error.contains("`code` holds no document"), "{error}");
    let ([wiki, code], _) = mixed(&stand, json!({}), [json!({ "epochs": 1 }), json!({ "epochs": 1 })]).unwrap();
    assert_eq!((wiki.len(), code.len()), (1000, 0));

    let stand = self::stand();
    let error = mixed(&stand, json!({ "bytes": 10 }), [json!({}), json!({})]).unwrap_err().to_string();
    assert!(error.contains("no document fits into the budget"), "{error}");
}
