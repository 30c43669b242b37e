//! What is generated is what transformers generates, whatever else is in the batch and however many ranks share the layers.

use std::{
    fs,
    io::{BufRead, BufReader, Lines, Write},
    process::{Child, ChildStdout},
};

use crate::{
    common::{finish, golden},
    eval::{answers, ask, start, try_ask},
};
use serde_json::{Value, json};

/// What transformers made of prompts: request, and tokens.
fn greedy(model: &str) -> Vec<(Value, Value)> {
    let all = answers()[model]["generations"].as_array().unwrap().clone();
    let request = |one: Value| {
        let mut request = json!({ "tokens": one["prompt"], "max_new_tokens": one["made"].as_array().unwrap().len() });
        if one["penalty"] != 1.0 {
            request["sampling"] = json!({ "temperature": 0, "repetition_penalty": one["penalty"] });
        }
        (json!({ "generate": request }), one["made"].clone())
    };
    all.into_iter().map(request).collect()
}

fn is_greedy(model: &str, tensor: usize, batch_size: usize) {
    let (requests, expected): (Vec<Value>, Vec<Value>) = greedy(model).into_iter().unzip();
    let answers = ask(&golden().join(model), &requests, tensor, &json!({ "batch_size": batch_size }));
    assert_eq!(answers.len(), expected.len());
    for (ours, theirs) in answers.iter().zip(expected) {
        assert_eq!(ours["generate"], json!({ "tokens": theirs, "ended": "length" }));
    }
}

/// Rows of different lengths begin and end at different times; one of them goes to the last position.
#[test]
fn greedy_tokens_are_those_of_transformers() {
    for model in ["untied", "tied"] {
        for batch_size in [1, 3, 16] {
            is_greedy(model, 1, batch_size);
        }
        is_greedy(model, 2, 3);
    }
}

#[test]
fn a_drawn_row_is_the_same_alone_in_a_batch_and_over_ranks() {
    let model = golden().join("untied");
    let request = |n: usize| {
        let tokens: Vec<usize> = (0..=n * 7).map(|i| 3 + (i * i + n) % 250).collect();
        let sampling = json!({ "temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1, "seed": n });
        json!({ "generate": { "tokens": tokens, "max_new_tokens": 10 + 5 * n, "sampling": sampling } })
    };
    let requests: Vec<Value> = (0..6).map(request).collect();
    let together = ask(&model, &requests, 1, &json!({ "batch_size": 4 }));
    let alone: Vec<Value> =
        requests.iter().flat_map(|request| ask(&model, std::slice::from_ref(request), 1, &json!({}))).collect();
    assert_eq!(together, alone);
    assert_eq!(together, ask(&model, &requests, 2, &json!({ "batch_size": 3 })));
    let mut other = requests[5].clone();
    other["generate"]["sampling"]["seed"] = json!(99);
    assert_ne!(ask(&model, &[other], 1, &json!({}))[0], together[5]);
}

#[test]
fn it_ends_where_it_is_told_to() {
    let (request, made) = greedy("untied").swap_remove(2);
    let made: Vec<u64> = serde_json::from_value(made).unwrap();
    let ends = |changes: Value| {
        let mut request = request.clone();
        request["generate"].as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        request
    };
    // A directory with a tokenizer beside the model: its tokens are words.
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden().join("untied").join(name), dir.path().join(name)).unwrap();
    }
    let vocabulary: serde_json::Map<String, Value> = (0..256).map(|id| (format!("w{id}."), json!(id))).collect();
    let tokenizer = json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0." } });
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();

    let first = |wanted: &[u64]| made.windows(wanted.len()).position(|some| some == wanted).unwrap();
    let (end, pair) = (made[11], [made[20], made[21]]);
    let text = format!("w{}. w{}.", pair[0], pair[1]);
    let score = json!({ "score": { "tokens": [5, 6], "scored": 1 } });
    let requests = [
        ends(json!({ "end": [255, end] })),
        score.clone(),
        ends(json!({ "until": ["nowhere", text] })),
        ends(json!({ "max_new_tokens": 0 })),
        ends(json!({ "max_new_tokens": 4, "end": [], "until": [] })),
        score,
    ];
    let answers = ask(dir.path(), &requests, 1, &json!({}));
    let generated = |tokens: &[u64], ended: &str| json!({ "generate": { "tokens": tokens, "ended": ended } });
    assert_eq!(answers[0], generated(&made[..first(&[end])], "end"));
    assert_eq!(answers[2], generated(&made[..first(&pair) + 2], "until"));
    assert_eq!(answers[3], generated(&[], "length"));
    assert_eq!(answers[4], generated(&made[..4], "length"));
    assert!(answers[1]["score"]["logprob"].is_f64() && answers[1] == answers[5]);

    for (bad, words) in [
        (ends(json!({ "tokens": [] })), "a prompt has no tokens"),
        (ends(json!({ "tokens": [256] })), "token 256"),
        (ends(json!({ "max_new_tokens": 500 })), "line 1: 517 tokens go in and are made, and max_length is 512"),
        (ends(json!({ "until": ["x"] })), "`until` needs"),
    ] {
        let (ended, answers) = try_ask(&golden().join("untied"), &[bad], 1, &json!({}));
        assert_eq!((ended[0].status.code(), answers), (Some(1), None));
        assert!(ended[0].stderr.contains(words), "{}", ended[0].stderr);
    }
}

/// In bf16 other tokens may be made, but nearly as likely ones.
#[test]
fn bf16_makes_likely_tokens() {
    let model = golden().join("untied");
    let (mut request, made) = greedy("untied").swap_remove(2);
    request["generate"]["max_new_tokens"] = json!(40);
    let answer = ask(&model, std::slice::from_ref(&request), 1, &json!({ "precision": "bf16" })).swap_remove(0);
    let prompt = request["generate"]["tokens"].as_array().unwrap().as_slice();
    let score = |made: &[Value]| json!({ "score": { "tokens": ([prompt, made].concat()), "scored": 40 } });
    let [theirs, ours] = [&made, &answer["generate"]["tokens"]].map(|made| score(&made.as_array().unwrap()[..40]));
    let scored = ask(&model, &[theirs, ours], 1, &json!({}));
    let [theirs, ours] = [0, 1].map(|at| scored[at]["score"]["logprob"].as_f64().unwrap());
    assert!((ours - theirs).abs() < 0.2 * theirs.abs(), "{ours} and {theirs}");
}

/// Starts a conversation of so many ranks.
fn talk(tensor: usize) -> (tempfile::TempDir, Vec<Child>) {
    let dir = tempfile::tempdir().unwrap();
    let job = json!({
        "job": "generate", "model": golden().join("untied"), "max_length": 512, "batch_size": 2, "device": "cpu",
        "precision": "fp32", "threads": 1, "tensor": tensor,
    });
    fs::write(dir.path().join("job.json"), job.to_string()).unwrap();
    let ranks = start(&dir.path().join("job.json"), tensor);
    (dir, ranks)
}

/// The lines of rank 0 until `last` is true of one.
fn hear(lines: &mut Lines<BufReader<ChildStdout>>, last: impl Fn(&Value) -> bool) -> Vec<Value> {
    let mut heard = Vec::new();
    while !heard.last().is_some_and(&last) {
        heard.push(serde_json::from_str(&lines.next().expect("it goes on").unwrap()).unwrap());
    }
    heard
}

#[test]
fn a_conversation_goes_on_while_prompts_come_and_go() {
    for tensor in [1, 2] {
        let (_dir, mut ranks) = talk(tensor);
        let mut stdin = ranks[0].stdin.take().unwrap();
        let mut lines = BufReader::new(ranks[0].stdout.take().unwrap()).lines();
        let ready = hear(&mut lines, |_| true);
        assert_eq!(ready[0]["ready"]["place"], if tensor == 1 { "CPU" } else { "CPU, 2 ranks" });
        let mut ask = |id: usize, request: &Value| {
            writeln!(stdin, "{}", json!({ "ask": { "id": id, "generate": request["generate"] } })).unwrap();
        };
        let requests = greedy("untied");
        // One that is left before its end, and two others after it in a batch of two.
        ask(9, &requests[2].0);
        hear(&mut lines, |line| line["token"]["id"] == 9);
        ask(0, &requests[0].0);
        ask(1, &requests[1].0);
        writeln!(stdin, "{{\"forget\":9}}").unwrap();
        drop(stdin);
        let heard: Vec<Value> = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        for (id, (_, made)) in requests[..2].iter().enumerate() {
            let tokens: Vec<&Value> =
                heard.iter().filter(|line| line["token"]["id"] == id).map(|line| &line["token"]["token"]).collect();
            assert_eq!(json!(tokens), *made);
            assert!(heard.contains(&json!({ "ended": { "id": id, "ended": "length" } })));
        }
        assert!(heard.iter().all(|line| line["ended"]["id"] != 9), "nothing more is wanted of it");
        finish(ranks).iter().for_each(|rank| assert!(rank.status.success(), "{}", rank.stderr));
    }
}

/// What cannot be done is said before the weights are read, with what could be.
#[test]
fn what_does_not_fit_is_refused() {
    let (request, _) = greedy("untied").swap_remove(0);
    for (tensor, changes, words) in
        [(3, json!({}), "what does: 1, 2"), (1, json!({ "batch_size": 1_000_000_000_usize }), "would do")]
    {
        let (ended, answers) = try_ask(&golden().join("untied"), std::slice::from_ref(&request), tensor, &changes);
        assert!(answers.is_none() && ended[0].stderr.contains(words), "{}", ended[0].stderr);
    }
}
