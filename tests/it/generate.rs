//! `flow generate` with the real worker: needs `flow-torch`, as `main_job` does.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value as Json, json};

use crate::{
    support::{Output, Sandbox, until},
    terminal::Terminal,
};

/// A project with `model`: tiny, random, with the tokenizer of the examples.
fn with_model() -> Option<Sandbox> {
    if std::env::var_os("FLOW_TORCH").is_none() {
        eprintln!("left out: FLOW_TORCH names no trainer (`cargo xtask test` builds it)");
        return None;
    }
    let sandbox = Sandbox::new();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ja_wiki_mini");
    sandbox.pipeline(&format!(
        "[stage.model]\nkind = \"init-model\"\nconfig = \"{}\"\ntokenizer = \"{}\"\nseed = 3\nexport = \"model\"\n",
        example.join("config.json").display(),
        example.join("tokenizer").display()
    ));
    sandbox.ok(&["run", "p.toml"]);
    Some(sandbox)
}

fn json_lines(text: &str) -> Vec<Json> {
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[test]
fn prompts_are_gone_on_with() {
    let Some(sandbox) = with_model() else { return };
    let plain = ["generate", "model", "日本の首都は", "--max-new-tokens", "12"];
    let text = sandbox.ok(&plain);
    assert!(text.ends_with('\n') && text.trim().chars().count() > 1, "{text:?}");
    assert_eq!(sandbox.ok(&plain), text, "the same again");
    let with = |more: &[&str]| sandbox.ok(&[&plain, more].concat());
    assert_eq!(with(&["--top-k", "1"]), text, "the likeliest of one");
    let draw = |seed: &str, more: &[&str]| with(&[&["--temperature", "1.5", "--seed", seed], more].concat());
    let drawn = draw("5", &[]);
    assert_ne!(drawn, text);
    // Two ranks round otherwise, and draw the same of all tokens.
    assert_eq!(draw("5", &["--tensor", "2", "--batch-size", "3"]), drawn);
    assert_eq!(sandbox.ok(&[&["generate", "p.toml", "model"], &plain[2..]].concat()), text, "the result of a stage");
    let several = draw("4", &["-n", "3", "--json"]);
    let several = json_lines(&several);
    assert_eq!(several.iter().map(|one| one["sample"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(several[1]["prediction"], drawn.trim_end_matches('\n'));
    let one = &json_lines(&with(&["--json"]))[0];
    let expected =
        json!({ "prompt": "日本の首都は", "prediction": text.trim_end_matches('\n'), "tokens": 12, "ended": "length" });
    assert_eq!(*one, expected);
    // Cut before a text that stands in it.
    let end: String = text.chars().skip(3).take(2).collect();
    let cut = &json_lines(&with(&["--json", "--until", "nowhere", "--until", &end]))[0];
    assert_eq!((&cut["ended"], cut["prediction"].as_str()), (&json!("until"), text.split(&end).next()));

    many_prompts(&sandbox);
    what_cannot_be_asked(&sandbox);
    interrupted(&sandbox);
}

fn many_prompts(sandbox: &Sandbox) {
    let prompts = ["東京", "a much longer prompt than the others are", "昭和の"];
    let lines = prompts.iter().enumerate().map(|(id, prompt)| format!("{}\n", json!({ "id": id, "prompt": prompt })));
    sandbox.write("questions.jsonl", &lines.collect::<String>());
    let file = ["generate", "model", "--prompts", "questions.jsonl", "-o", "answers.jsonl", "--max-new-tokens", "9"];
    assert_eq!(sandbox.ok(&file), "");
    let answers = json_lines(&sandbox.read("answers.jsonl"));
    let mut flow = sandbox.flow(&["generate", "model", "--max-new-tokens", "9"]);
    let mut piped = flow.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all((prompts.join("\n\n") + "\n").as_bytes()).unwrap();
    let piped = Output::of(piped.wait_with_output().unwrap());
    assert_eq!(piped.code, Some(0), "{piped}");
    let predictions = answers.iter().map(|answer| format!("{}\n", answer["prediction"].as_str().unwrap()));
    assert_eq!(piped.stdout, predictions.collect::<String>(), "in their order, as text");
    for (id, (answer, prompt)) in answers.iter().zip(prompts).enumerate() {
        assert_eq!((&answer["id"], &answer["prompt"]), (&json!(id), &json!(prompt)), "what came in is there");
    }
}

fn what_cannot_be_asked(sandbox: &Sandbox) {
    let refused = |args: &[&str], code: i32, words: &str| {
        let output = sandbox.run(&[&["generate"], args].concat());
        assert_eq!((output.code, output.stdout.as_str()), (Some(code), ""), "{output}");
        assert!(output.stderr.contains(words), "{words}: {output}");
    };
    fs::create_dir(sandbox.path("bare")).unwrap();
    fs::copy(sandbox.path("model/config.json"), sandbox.path("bare/config.json")).unwrap();
    refused(&["bare", "x"], 2, "holds no tokenizer.json");
    refused(&["nowhere", "x"], 2, "nowhere is not a directory");
    let config = sandbox.read("model/config.json").replace("\"llama\"", "\"mamba\"");
    sandbox.write("bare/config.json", &config);
    refused(&["bare", "x"], 2, "`mamba`");
    refused(&["model", &"長い".repeat(20_000)], 2, "positions must hold it");
    refused(&["model", "x", "--top-p", "0"], 2, "--top-p 0 makes no sense");
    refused(&["model", "x", "--chat"], 2, "has no chat template");
    refused(&["model", "x", "--tensor", "5"], 2, "tensor = 5 does not divide");
    refused(&["model", "one", "two"], 2, "`two` is one word too many");
    refused(&["model", "x", "--prompts", "bad.jsonl"], 2, "only one of them");
    refused(&["model", "x", "--set", "a=1"], 2, "for a pipeline");
    refused(&["p.toml"], 2, "which of its stages makes the model?");
    refused(&["p.toml", "modle", "x"], 2, "did you mean `model`?");
    refused(
        &["p.toml", "model", "x", "--set", "stage.model.seed=4"],
        1,
        "flow run p.toml --set stage.model.seed=4 model",
    );
    sandbox.write("bad.jsonl", "{\"prompt\":\"a\"}\n{\"promt\":\"b\"}\n");
    refused(&["model", "--prompts", "bad.jsonl"], 2, "bad.jsonl: line 2: `prompt` is missing");
}

/// What a person types at a terminal and sees there.
#[test]
fn a_conversation_is_held_in_a_terminal() {
    let Some(sandbox) = with_model() else { return };
    let start = |args: &[&str]| Terminal::start(sandbox.flow(&[&["generate"], args].concat()), (70, 24));
    let shows =
        |terminal: &Terminal, what: &str| terminal.until(what, |lines| lines.iter().any(|line| line.contains(what)));
    // Bytes that are no text are drawn by no terminal.
    let drawn = |text: &str| text.trim().replace('\u{fffd}', "");
    let all = |terminal: &Terminal| terminal.lines().concat().replace('\u{fffd}', "");
    let prompts = |lines: &[String]| lines.iter().filter(|line| line.starts_with('>')).count();

    let mut plain = start(&["p.toml", "model", "--max-new-tokens", "8"]);
    shows(&plain, "each line is a prompt; Ctrl-D ends");
    plain.type_("日本の\n");
    plain.until("it waits for the next", |lines| prompts(lines) == 2);
    let first = sandbox.ok(&["generate", "model", "日本の", "--max-new-tokens", "8"]);
    assert!(all(&plain).contains(&drawn(&first)), "{first:?} {:#?}", plain.lines());
    plain.type_("日本の\n");
    plain.until("and again", |lines| prompts(lines) == 3);
    assert_eq!(all(&plain).matches(&drawn(&first)).count(), 2, "nothing of before is remembered");
    plain.type_("\x04");
    assert_eq!(plain.end().code(), Some(0));

    // A chat says what was said before, too: the model is shown it all.
    fs::create_dir(sandbox.path("chat")).unwrap();
    for file in fs::read_dir(sandbox.path("model")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), sandbox.path("chat").join(file.file_name())).unwrap();
    }
    let template = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}assistant:";
    sandbox.write("chat/chat_template.jinja", template);
    let mut chat = start(&["chat", "--chat", "--max-new-tokens", "4"]);
    shows(&chat, "a chat; Ctrl-D ends");
    chat.type_("一\n");
    chat.until("it has answered", |lines| prompts(lines) == 2);
    let said = |prompt: &str| {
        sandbox.ok(&["generate", "model", prompt, "--max-new-tokens", "4"]).trim_end_matches('\n').to_owned()
    };
    let one = said("user:一\nassistant:");
    chat.type_("二\n");
    chat.until("and again", |lines| prompts(lines) == 3);
    let two = said(&format!("user:一\nassistant:{one}\nuser:二\nassistant:"));
    let seen = all(&chat);
    assert!(seen.contains(&drawn(&one)) && seen.contains(&drawn(&two)), "{one:?} {two:?} {:#?}", chat.lines());
    // Waiting for a line is interrupted as well.
    chat.type_("\x03");
    assert_eq!(chat.end().code(), Some(130));

    let lines: String = (0..12).map(|n| format!("{{\"prompt\": \"{n}\"}}\n")).collect();
    sandbox.write("many.jsonl", &lines);
    let mut many =
        start(&["model", "--prompts", "many.jsonl", "-o", "many.out", "--max-new-tokens", "6", "--batch-size", "2"]);
    assert_eq!(many.end().code(), Some(0));
    assert!(
        many.written().contains("\r1 of 12") && many.lines().iter().any(|line| line == "12 of 12"),
        "{:?}",
        many.written()
    );
    assert_eq!(json_lines(&sandbox.read("many.out")).len(), 12);

    // Ctrl-C while text comes: it ends, the terminal is as it was, and of a file there is nothing.
    let mut long = start(&["model", "一", "--max-new-tokens", "100000", "--temperature", "2"]);
    long.until("text comes", |lines| lines.len() > 2);
    let before = long.is_plain();
    long.type_("\x03");
    assert_eq!(long.end().code(), Some(130));
    assert!(before && !long.cursor_is_hidden(), "{:?}", long.written());
    let mut cut =
        start(&["model", "--prompts", "many.jsonl", "-o", "cut.out", "--max-new-tokens", "500", "--batch-size", "1"]);
    shows(&cut, "loaded in");
    cut.type_("\x03");
    assert_eq!(cut.end().code(), Some(130));
    assert!(!sandbox.path("cut.out").exists());
}

/// Ctrl-C while text comes: 130, and no process is left.
fn interrupted(sandbox: &Sandbox) {
    let mut flow = sandbox.flow(&["generate", "model", "一", "--max-new-tokens", "100000", "--temperature", "2"]);
    let mut flow = flow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = flow.stdout.take().unwrap();
    let mut first = [0; 3];
    stdout.read_exact(&mut first).unwrap();
    let worker = children(flow.id());
    assert_eq!(worker.len(), 1);
    // SAFETY: a plain system call on a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(flow.id().cast_signed(), libc::SIGINT) }, 0);
    assert_eq!(flow.wait().unwrap().code(), Some(130));
    until("the worker is gone", || worker.iter().all(|id| !Path::new("/proc").join(id).exists()));
}

fn children(parent: u32) -> Vec<String> {
    let output = Command::new("ps").args(["-o", "pid=", "--ppid", &parent.to_string()]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
}
