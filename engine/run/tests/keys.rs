//! Keys are made of what a pipeline means: however it is written, the same meaning has the same key, and another has
//! another. Pipelines are made up, written down in two ways, and read by the loader.

mod kinds;

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use flow_cache::Cache;
use flow_core::{Ctx, Key, Kind, Stage};
use flow_engine::{LoadOptions, Project, RunOptions, Verdict, plan};
use proptest::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Has a parameter of every type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Any {
    whole: i64,
    real: f64,
    on: bool,
    text: String,
    list: Vec<String>,
    table: BTreeMap<String, i64>,
}

impl Stage for Any {
    const KIND: &'static str = "any";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "anything";
    fn run(&self, _: &Ctx<'_>) -> anyhow::Result<()> {
        Ok(())
    }
}

const KINDS: &[Kind] = &[Kind::of::<Any>(), Kind::of::<kinds::Get>()];

/// What a pipeline means: some stages, and how many URLs another takes.
#[derive(Clone, Debug)]
struct Meaning {
    stages: Vec<Any>,
    urls: usize,
}

fn stage() -> impl Strategy<Value = Any> {
    let whole = prop_oneof![Just(0), Just(1), Just(-1), Just(31), 1000..1_000_000i64, Just(i64::MAX)];
    let real = prop::sample::select(vec![0.0, 1.0, 0.001, 2.5e-5, 1e10, -3.5, 0.1]);
    let text = || prop_oneof![Just(String::new()), "[ab,#=\\[\\]'\"\\\\ éあ\n]{1,6}"];
    let list = prop::collection::vec(text(), 0..3);
    let table = prop::collection::btree_map("[a-c]", 0..3i64, 0..3);
    (whole, real, any::<bool>(), text(), list, table).prop_map(|(whole, real, on, text, list, table)| Any {
        whole,
        real,
        on,
        text,
        list,
        table,
    })
}

/// How it is written: what is chosen where there is a choice, over and over again.
struct Style<'a> {
    choices: &'a [u8],
    at: usize,
    /// Parameters that are referred to.
    params: String,
}

impl Style<'_> {
    fn choose(&mut self, of: usize) -> usize {
        self.at += 1;
        self.choices[self.at % self.choices.len()] as usize % of
    }

    /// The value itself, or a parameter that holds it.
    fn or_param(&mut self, value: String) -> String {
        if self.choose(4) > 0 {
            return value;
        }
        let name = format!("p{}", self.at);
        let _ = writeln!(self.params, "{name} = {value}");
        format!("\"${{{name}}}\"")
    }

    fn whole(&mut self, number: i64) -> String {
        let written = match self.choose(5) {
            0 if number >= 0 => format!("0x{number:X}"),
            1 if number >= 0 => format!("0o{number:o}"),
            2 if number >= 0 => format!("+{number}"),
            3 if (1000..1_000_000).contains(&number) => format!("{}_{:03}", number / 1000, number % 1000),
            _ => number.to_string(),
        };
        self.or_param(written)
    }

    fn real(&mut self, number: f64) -> String {
        let written = match self.choose(3) {
            0 => format!("{number:e}"),
            1 if number.fract() == 0.0 => format!("{number:.0}"),
            _ => format!("{number:?}"),
        };
        self.or_param(written)
    }

    fn text(&mut self, text: &str) -> String {
        let written = match self.choose(4) {
            0 if !text.contains(['\'', '\n']) => format!("'{text}'"),
            1 if !text.contains("'''") && !text.ends_with('\'') => format!("'''\n{text}'''"),
            2 => format!("\"{}\"", text.chars().map(|c| format!("\\U{:08X}", c as u32)).collect::<String>()),
            _ => serde_json::to_string(text).unwrap(),
        };
        self.or_param(written)
    }

    fn list(&mut self, items: &[String]) -> String {
        let items: Vec<String> = items.iter().map(|item| self.text(item)).collect();
        match self.choose(3) {
            0 if !items.is_empty() => format!("[ # one a line\n  {},\n]", items.join(",\n  ")),
            1 => format!("[  {}  ]", items.join(" , ")),
            _ => format!("[{}]", items.join(",")),
        }
    }

    fn shuffled<T>(&mut self, mut items: Vec<T>) -> Vec<T> {
        for last in (1..items.len()).rev() {
            let other = self.choose(last + 1);
            items.swap(last, other);
        }
        items
    }

    fn stage(&mut self, name: &str, stage: &Any) -> String {
        let mut lines = vec![
            "kind = \"any\"".to_owned(),
            format!("whole = {}", self.whole(stage.whole)),
            format!("real={}", self.real(stage.real)),
            format!("\"on\" = {}", stage.on),
            format!("text = {}", self.text(&stage.text)),
            format!("list = {}", self.list(&stage.list)),
        ];
        let table: Vec<_> = stage.table.iter().map(|(key, value)| (key.clone(), self.whole(*value))).collect();
        let table = self.shuffled(table);
        let entries = |before: &str| table.iter().map(|(key, value)| format!("{before}{key} = {value}")).collect();
        let mut below = String::new();
        match self.choose(3) {
            0 => {
                let entries: Vec<String> = entries("");
                below = format!("[stage.{name}.table] # a table of its own\n{}\n", entries.join("\n"));
            }
            1 if !table.is_empty() => lines.extend::<Vec<String>>(entries("table.")),
            _ => lines.push(format!("table = {{ {} }}", entries("").join(", "))),
        }
        let mut text = format!("\n# {name}\n[stage.{name}]\n");
        for line in self.shuffled(lines) {
            let after = ["", "  # said", "\n", "\t"][self.choose(4)];
            let _ = writeln!(text, "{line}{after}");
        }
        text + &below
    }

    fn urls(&mut self, urls: usize) -> String {
        let list: Vec<String> = (0..urls).map(|n| format!("\"u{n}.gz\"")).collect();
        let written = match self.choose(3) {
            0 => format!("[\"u{{0..{}}}.gz\"]", urls - 1),
            1 => format!(
                "[{}\"u{{{1}..{1}}}.gz\"]",
                list[..urls - 1].iter().map(|url| format!("{url}, ")).collect::<String>(),
                urls - 1
            ),
            _ => format!("[{}]", list.join(", ")),
        };
        format!("[stage.urls]\nkind = \"get\"\nurls = {written}\n")
    }

    /// The files: the pipeline, and one that it includes.
    fn files(mut self, meaning: &Meaning) -> [String; 2] {
        let stages = meaning.stages.iter().enumerate();
        let mut tables: Vec<String> = stages.map(|(n, stage)| self.stage(&format!("s{n}"), stage)).collect();
        tables.push(self.urls(meaning.urls));
        let (mut main, mut base) = (String::new(), String::new());
        for table in self.shuffled(tables) {
            *[&mut main, &mut base][self.choose(2)] += &table;
        }
        let params = format!("[params]\n{}", self.params);
        if self.choose(2) == 0 {
            main += &params;
        } else {
            base += &params;
        };
        ["include = \"base.toml\"\n".to_owned() + &main, base]
    }
}

/// Node → key.
fn keys(dir: &Path, meaning: &Meaning, choices: &[u8]) -> BTreeMap<String, Key> {
    let [main, base] = Style { choices, at: 0, params: String::new() }.files(meaning);
    fs::write(dir.join("pipe.toml"), &main).unwrap();
    fs::write(dir.join("base.toml"), &base).unwrap();
    let project = Project::load(&dir.join("pipe.toml"), KINDS, &LoadOptions::default())
        .unwrap_or_else(|errors| panic!("{errors:?}\n{main}\n--- base.toml\n{base}"));
    let cache = Cache::open(&dir.join("cache")).unwrap();
    let planned = plan(&project, &cache, &RunOptions::default()).unwrap().nodes;
    let key = |verdict: &Verdict| match verdict {
        Verdict::Run { key, .. } => *key,
        other => panic!("{other:?}"),
    };
    planned.iter().map(|one| (project.graph().nodes[one.node].name.clone(), key(&one.verdict))).collect()
}

/// Another meaning of one stage.
fn change(stage: &mut Any, what: usize) {
    match what {
        0 => stage.whole = stage.whole.wrapping_add(1),
        1 => stage.real += 1.5,
        2 => stage.on = !stage.on,
        3 => stage.text.push('x'),
        4 => stage.list.push(String::new()),
        5 => drop(stage.table.insert("z".to_owned(), 0)),
        6 => stage.list = vec![stage.list.join(","), "x".to_owned(), stage.text.clone()],
        _ => std::mem::swap(&mut stage.text, stage.list.get_mut(0).unwrap_or(&mut String::new())),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_meaning_has_the_same_key_and_another_has_another(
        stages in prop::collection::vec(stage(), 1..5),
        urls in 1..4usize,
        styles in prop::collection::vec(prop::collection::vec(any::<u8>(), 7..60), 2),
        what in 0..8usize,
        which in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let meaning = Meaning { stages, urls };
        let written = keys(dir.path(), &meaning, &styles[0]);
        prop_assert_eq!(&written, &keys(dir.path(), &meaning, &styles[1]));
        prop_assert_eq!(written.len(), meaning.stages.len() + urls);
        // Within a pipeline: two nodes have one key if and only if they mean the same.
        for (a, one) in meaning.stages.iter().enumerate() {
            for (b, other) in meaning.stages.iter().enumerate() {
                prop_assert_eq!(one == other, written[&format!("s{a}")] == written[&format!("s{b}")], "s{} s{}", a, b);
            }
        }
        // A change is one of its stage alone.
        let which = which.index(meaning.stages.len());
        let mut changed = meaning.clone();
        change(&mut changed.stages[which], what);
        let rewritten = keys(dir.path(), &changed, &styles[1]);
        for (node, key) in &written {
            let same = *node != format!("s{which}") || changed.stages[which] == meaning.stages[which];
            prop_assert_eq!(rewritten[node] == *key, same, "{}", node);
        }
    }
}
