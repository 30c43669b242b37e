//! What a model answered before training and after it: `samples/TASK.model.jsonl` and `samples/TASK.compare.jsonl` of an
//! evaluation, side by side.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader},
};

use flow_core::Tree;
use serde::Serialize;
use serde_json::Value as Json;

/// So many answers of a task are shown: texts that were written, and choices.
const WRITTEN: usize = 6;
const CHOSEN: usize = 2;
/// Of so many documents they are chosen.
const LOOKED_AT: usize = 500;
/// A text is shown up to so many characters.
const LONGEST: usize = 1500;

/// A question and what was answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    pub task: String,
    pub document: u64,
    pub prompt: String,
    pub target: String,
    /// By the model before training, if one was compared with.
    pub before: Option<String>,
    pub after: String,
}

/// The samples of a result: tasks first where something was written, and of each those that are not answered as before.
pub fn read(tree: &Tree, open: &dyn Fn(&str) -> Option<BufReader<File>>) -> Vec<Sample> {
    let tasks = tree
        .entries()
        .iter()
        .filter_map(|entry| entry.name.strip_prefix("samples/").and_then(|name| name.strip_suffix(".model.jsonl")));
    let (mut written, mut chosen) = (Vec::new(), Vec::new());
    for task in tasks {
        let lines = |side: &str| open(&format!("samples/{task}.{side}.jsonl")).map(documents).unwrap_or_default();
        let before: HashMap<u64, Json> = lines("compare").into_iter().collect();
        let after = lines("model");
        let is_text = after.iter().any(|(_, of)| of["prediction"].is_string());
        let mut samples: Vec<Sample> = after
            .into_iter()
            .map(|(document, of)| Sample {
                task: task.to_owned(),
                document,
                prompt: text(&of, "prompt"),
                target: text(&of, "target"),
                before: before.get(&document).map(|before| text(before, "prediction")),
                after: text(&of, "prediction"),
            })
            .filter(|sample| !sample.prompt.is_empty() || !sample.after.is_empty())
            .collect();
        samples.sort_by_key(|sample| (sample.before.as_ref() == Some(&sample.after), sample.document));
        samples.truncate(if is_text { WRITTEN } else { CHOSEN });
        if is_text { &mut written } else { &mut chosen }.extend(samples);
    }
    written.extend(chosen);
    written
}

fn documents(file: BufReader<File>) -> Vec<(u64, Json)> {
    let lines = file.split(b'\n').map_while(Result::ok).take(LOOKED_AT);
    let lines = lines.filter_map(|line| serde_json::from_slice::<Json>(&line).ok());
    lines.filter_map(|line| Some((line.get("document")?.as_u64()?, line))).collect()
}

/// A text as it is, a choice in its words, anything else as JSON; the end of what is long, for that is where a question is
/// asked.
fn text(of: &Json, name: &str) -> String {
    let choice = || of.get("choices")?.get(usize::try_from(of[name].as_u64()?).ok()?)?.as_str();
    let text = match of.get(name) {
        None | Some(Json::Null) => return String::new(),
        Some(Json::String(text)) => text.clone(),
        // Whether the target is what the model would write.
        Some(Json::Bool(truth)) => {
            if *truth { "this is the likeliest" } else { "something else is likelier" }.to_owned()
        }
        Some(Json::Number(_)) if choice().is_some() => choice().unwrap_or_default().to_owned(),
        Some(other) => other.to_string(),
    };
    let length = text.chars().count();
    if length <= LONGEST { text } else { "…".chars().chain(text.chars().skip(length - LONGEST)).collect() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use flow_core::{Digest, Entry};

    use super::*;

    #[test]
    fn answers_stand_side_by_side_those_that_differ_first() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("samples")).unwrap();
        let line = |document: u64, said: &str| {
            format!(r#"{{"document":{document},"prompt":"q","target":["a","b"],"prediction":{said}}}"#) + "\n"
        };
        fs::write(dir.path().join("samples/squad.model.jsonl"), line(0, "\"x\"") + "no JSON\n" + &line(1, "2"))
            .unwrap();
        fs::write(dir.path().join("samples/squad.compare.jsonl"), line(0, "\"x\"") + &line(1, "\"y\"")).unwrap();
        let entry = |name: &str| Entry { name: name.into(), digest: Digest([0; 32]), size: 1, executable: false };
        let tree = Tree::new(vec![entry("samples/squad.model.jsonl"), entry("samples/squad.compare.jsonl")]).unwrap();
        let got = read(&tree, &|name| File::open(dir.path().join(name)).ok().map(BufReader::new));
        let sides: Vec<_> = got.iter().map(|s| (s.document, s.before.as_deref(), s.after.as_str())).collect();
        assert_eq!(sides, [(1, Some("y"), "2"), (0, Some("x"), "x")]);
        assert_eq!((got[0].task.as_str(), got[0].target.as_str()), ("squad", r#"["a","b"]"#));
        let of = serde_json::json!({ "choices": ["no", "yes"], "target": 1, "prediction": 7 });
        assert_eq!((text(&of, "target"), text(&of, "prediction")), ("yes".into(), "7".into()));
    }
}
