//! The rules of Raffel et al. 2020, "Exploring the Limits of Transfer Learning …", by which C4 was made: lines that are no
//! sentences go, and pages that are none.

use anyhow::{Context, Result};
use flow_core::Ref;
use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Drop;
use crate::curate::{limits::Limit, text};

const POLICY: [&str; 6] =
    ["terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies"];

/// The rules of C4, with its thresholds. They take lines out of a text; the text that is left is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct C4 {
    /// Lines that end otherwise, or with three points, go.
    pub filter_no_terminal_punct: bool,
    /// With what a line may end: `.`, `?`, `!`, closing quotes, and the same of Chinese and Japanese.
    pub terminal_punctuation: String,
    /// Lines of fewer words go.
    pub min_words_per_line: Limit,
    /// Lines with a longer word, in characters, go.
    pub max_word_length: Limit,
    /// `[1]`, `[edit]` and `[citation needed]` go.
    pub remove_citations: bool,
    /// Lines that say "javascript" go.
    pub filter_javascript: bool,
    /// Lines that say "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies" or "use cookies" go.
    pub filter_policy: bool,
    /// Texts that say "lorem ipsum" go.
    pub filter_lorem_ipsum: bool,
    /// Texts with `{` go.
    pub filter_curly_bracket: bool,
    /// Texts that have fewer sentences when the lines are gone go, too.
    pub min_num_sentences: Limit,
    /// A file of words, one a line: texts with one of them go. Words of scripts without spaces are found inside of others.
    #[serde(skip_serializing)]
    pub bad_words: Option<Ref>,
}

impl Default for C4 {
    fn default() -> Self {
        Self {
            filter_no_terminal_punct: true,
            terminal_punctuation: ".?!\"'”’。？！．｡」』".to_owned(),
            min_words_per_line: 5.0.into(),
            max_word_length: 1000.0.into(),
            remove_citations: true,
            filter_javascript: true,
            filter_policy: true,
            filter_lorem_ipsum: true,
            filter_curly_bracket: true,
            min_num_sentences: 3.0.into(),
            bad_words: None,
        }
    }
}

/// [`C4`], ready.
pub struct Rules {
    of: C4,
    ends: Vec<char>,
    citation: Regex,
    bad_words: Option<Regex>,
}

impl C4 {
    /// The rules that are on and drop texts, in the order in which they are asked.
    pub fn rules(&self) -> Vec<&'static str> {
        let rules = [
            (self.bad_words.is_some(), "c4.bad_words"),
            (self.filter_lorem_ipsum, "c4.filter_lorem_ipsum"),
            (self.filter_curly_bracket, "c4.filter_curly_bracket"),
            (self.min_num_sentences.0.is_some(), "c4.min_num_sentences"),
        ];
        rules.into_iter().filter(|rule| rule.0).map(|rule| rule.1).collect()
    }

    /// Ready for use, with the words of the file of bad ones.
    ///
    /// # Errors
    /// There are too many of them.
    pub fn ready(&self, bad_words: Option<&str>) -> Result<Rules> {
        Ok(Rules {
            of: self.clone(),
            ends: self.terminal_punctuation.chars().collect(),
            citation: Regex::new(r"\[\d*]|\[edit]|\[citation needed]").context("a regular expression of ours")?,
            bad_words: bad_words.map(alternatives).transpose()?.flatten(),
        })
    }
}

/// One of these words, by itself, or, of a script without spaces, wherever it is.
fn alternatives(words: &str) -> Result<Option<Regex>> {
    let words = words.lines().map(str::trim).filter(|word| !word.is_empty());
    let (unspaced, spaced): (Vec<&str>, Vec<&str>) = words.partition(|word| text::is_unspaced(&text::words(word)));
    let escaped = |words: &[&str]| words.iter().map(|word| regex::escape(word)).collect::<Vec<_>>().join("|");
    let mut all = Vec::new();
    if !spaced.is_empty() {
        all.push(format!(r"(?:\W|^)(?:{})(?:\W|$)", escaped(&spaced)));
    }
    if !unspaced.is_empty() {
        all.push(escaped(&unspaced));
    }
    if all.is_empty() {
        return Ok(None);
    }
    let regex = RegexBuilder::new(&all.join("|")).case_insensitive(true).size_limit(256 << 20).build();
    Ok(Some(regex.context("cannot look for so many words")?))
}

impl Rules {
    /// What is left of a text, or why it goes.
    pub fn judge(&self, whole: &str) -> Result<String, Drop> {
        let rules = &self.of;
        if let Some(found) = self.bad_words.as_ref().and_then(|words| words.find(whole)) {
            return Err(Drop { rule: "c4.bad_words", why: found.as_str().trim().to_owned() });
        }
        let mut kept: Vec<std::borrow::Cow<'_, str>> = Vec::new();
        let mut sentences = 0;
        for line in text::lines(whole) {
            let line = text::strip(line);
            let words = text::words(line);
            if words.iter().any(|word| rules.max_word_length.exceeded_by(word.chars.into())) {
                continue;
            }
            let line = if rules.remove_citations { self.citation.replace_all(line, "") } else { line.into() };
            if rules.filter_no_terminal_punct && (!line.ends_with(&self.ends[..]) || line.ends_with("...")) {
                continue;
            }
            if rules.min_words_per_line.missed_by(words.len() as f64) {
                continue;
            }
            let low = line.to_lowercase();
            Drop::when(rules.filter_lorem_ipsum && low.contains("lorem ipsum"), "c4.filter_lorem_ipsum", || {
                low.clone()
            })?;
            if rules.filter_javascript && low.contains("javascript") {
                continue;
            }
            let bracket = rules.filter_curly_bracket && line.contains('{');
            Drop::when(bracket, "c4.filter_curly_bracket", || line.chars().take(100).collect())?;
            if rules.filter_policy && POLICY.iter().any(|words| low.contains(words)) {
                continue;
            }
            sentences += text::sentences(&line);
            kept.push(line);
        }
        let said = || format!("{sentences} sentences");
        Drop::when(rules.min_num_sentences.missed_by(sentences as f64), "c4.min_num_sentences", said)?;
        Ok(text::strip(&kept.join("\n")).to_owned())
    }
}
