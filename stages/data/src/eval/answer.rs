//! What a written answer is worth: equality, SQuAD's measures, its language.

use std::collections::HashMap;
use std::hash::Hash;

use regex::Regex;

use super::{
    metric::Metric,
    task::{ExactMatch, Filter, Task},
};
use crate::curate::{
    filter::language,
    text::{is_space, strip},
};

/// What is left of a generated text for the metrics.
pub fn filtered(text: &str, filters: &[Filter]) -> String {
    filters.iter().fold(text.to_owned(), |text, filter| match filter {
        Filter::RemoveWhitespace => strip(&text).to_owned(),
        Filter::Lowercase => text.to_lowercase(),
        Filter::FirstLine => text.lines().find(|line| !strip(line).is_empty()).unwrap_or_default().to_owned(),
        Filter::Regex(pattern) => {
            let found = Regex::new(pattern).ok().and_then(|regex| {
                let found = regex.captures(&text)?;
                Some(found.get(1).or(found.get(0))?.as_str().to_owned())
            });
            found.unwrap_or_default()
        }
    })
}

/// What an answer has of a metric; of several targets the one counts that it is nearest to.
pub fn score(metric: Metric, answer: &str, targets: &[String], task: &Task) -> f64 {
    let truth = |truth: bool| f64::from(u8::from(truth));
    let best = |of: &dyn Fn(&str) -> f64| targets.iter().map(|target| of(target)).fold(0.0, f64::max);
    match metric {
        Metric::ExactMatch => {
            let answer = comparable(answer, &task.exact_match);
            best(&|target| truth(comparable(target, &task.exact_match) == answer))
        }
        Metric::Em => best(&|target| truth(normal(target) == normal(answer))),
        Metric::F1 => {
            let words = |text: &str| normal(text).split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect();
            best(&|target| f1(words(answer), words(target)))
        }
        Metric::F1Char => {
            let chars = |text: &str| normal(text).chars().filter(|c| !is_space(*c)).collect();
            best(&|target| f1(chars(answer), chars(target)))
        }
        Metric::LanguageConsistency => truth(language::is_in(answer, &task.language)),
        Metric::EnglishAnswers => truth(language::is_in(answer, "en")),
        _ => f64::NAN,
    }
}

/// Without what does not count for `exact_match`.
fn comparable(text: &str, ignored: &ExactMatch) -> String {
    let text = if ignored.ignore_case { text.to_lowercase() } else { text.to_owned() };
    let goes = |c: char| {
        ignored.ignore_punctuation && c.is_ascii_punctuation() || ignored.ignore_numbers && c.is_ascii_digit()
    };
    text.chars().filter(|c| !goes(*c)).collect()
}

/// As SQuAD's script compares: small letters, no punctuation of ASCII, no English articles, single spaces.
fn normal(text: &str) -> String {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    // `\b(a|an|the)\b`, which is a word of its own also where a script without spaces would not have one.
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::with_capacity(plain.len());
    let mut word = String::new();
    for c in plain.chars().chain([' ']) {
        if is_word(c) {
            word.push(c);
            continue;
        }
        out.push_str(if ["a", "an", "the"].contains(&word.as_str()) { " " } else { &word });
        word.clear();
        out.push(c);
    }
    out.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The harmonic mean of what part of the answer is right, and what part of the target is there.
fn f1<T: Eq + Hash>(answer: Vec<T>, target: Vec<T>) -> f64 {
    if answer.is_empty() || target.is_empty() {
        return f64::from(u8::from(answer.is_empty() && target.is_empty()));
    }
    let (said, wanted) = (answer.len() as f64, target.len() as f64);
    let mut left: HashMap<T, usize> = HashMap::new();
    for item in target {
        *left.entry(item).or_default() += 1;
    }
    let mut same = 0.0;
    for item in answer {
        if let Some(count) = left.get_mut(&item).filter(|count| **count > 0) {
            *count -= 1;
            same += 1.0;
        }
    }
    if same == 0.0 { 0.0 } else { 2.0 * same / (said + wanted) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(more: &str) -> Task {
        toml::from_str(&format!("task = \"t\"\nkind = \"generate\"\n{more}")).unwrap()
    }

    #[test]
    fn squads_measures_are_those_of_its_script() {
        let task = task("");
        // By evaluate-v2.0.py.
        for (answer, target, em, f1) in [
            ("The Eiffel Tower!", "eiffel tower", 1.0, 1.0),
            ("in the Eiffel Tower", "the tower of Eiffel", 0.0, 2.0 / 3.0),
            ("Paris", "London", 0.0, 0.0),
            ("a", "the", 1.0, 1.0),
            ("", "London", 0.0, 0.0),
            ("x x y", "x y y", 0.0, 2.0 / 3.0),
            ("theatre another", "theatre", 0.0, 2.0 / 3.0),
        ] {
            let targets = [target.to_owned()];
            assert_eq!(score(Metric::Em, answer, &targets, &task), em, "{answer}");
            assert!((score(Metric::F1, answer, &targets, &task) - f1).abs() < 1e-12, "{answer}");
        }
        let targets = ["大阪".to_owned(), "東京都".to_owned()];
        assert_eq!(score(Metric::F1Char, "東京", &targets, &task), 0.8);
        assert_eq!(score(Metric::F1, "東京", &targets, &task), 0.0);
        assert_eq!(score(Metric::Em, "東京", &[], &task), 0.0);
    }

    #[test]
    fn what_does_not_count_is_left_out_and_filters_come_first() {
        let targets = ["Yes, 42".to_owned()];
        let score = |more: &str, text: &str| {
            let task = task(more);
            super::score(Metric::ExactMatch, &filtered(text, &task.filters), &targets, &task)
        };
        assert_eq!(score("", " Yes, 42"), 0.0);
        assert_eq!(score("filters = [\"remove_whitespace\"]", "\u{3000}Yes, 42\n"), 1.0);
        assert_eq!(score("exact_match = { ignore_case = true, ignore_punctuation = true }", "yes 42"), 1.0);
        assert_eq!(score("exact_match = { ignore_numbers = true }", "Yes, 7"), 1.0);
        assert_eq!(score("filters = [\"first_line\", { regex = \"answer: (.*)\" }]", "\nanswer: Yes, 42\nmore"), 1.0);
    }

    #[test]
    fn the_language_of_an_answer_is_told() {
        let task = task("");
        for (answer, ja, en) in [
            ("日本で一番高い山は富士山です。", 1.0, 0.0),
            ("富士山", 1.0, 0.0),
            ("The highest mountain in Japan is Mount Fuji.", 0.0, 1.0),
            ("日本最高的山是富士山，海拔三千七百七十六米，位于静冈县和山梨县之间。", 0.0, 0.0),
            ("Der höchste Berg in Japan ist der Fuji, und er liegt nicht weit von Tokio.", 0.0, 0.0),
            ("GPUはNVIDIAのH100です", 1.0, 0.0),
            ("「ありがとう」 means thank you in Japanese.", 0.0, 1.0),
            ("", 0.0, 0.0),
            ("42", 0.0, 0.0),
        ] {
            let is = |metric| score(metric, answer, &[], &task);
            let found = (is(Metric::LanguageConsistency), is(Metric::EnglishAnswers));
            assert_eq!(found, (ja, en), "{answer}");
        }
    }
}
