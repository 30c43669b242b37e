//! What language a text is in, by its scripts and, where several languages share one, by trigrams and alphabets
//! (`whatlang`); and what part of its letters is of which scripts.

use flow_core::{Diagnostic, did_you_mean};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unicode_script::Script;
use whatlang::Lang;

use super::Drop;
use crate::curate::text::{script_share, words};

/// Characters at the beginning of a text that are looked at: more say nothing new of its language.
const LOOKED_AT: usize = 4096;

/// Languages by ISO 639-1, and what they are called in 639-3, which is what is known of them here.
const CODES: [(&str, &str); 70] = [
    ("af", "afr"),
    ("ak", "aka"),
    ("am", "amh"),
    ("ar", "ara"),
    ("az", "aze"),
    ("be", "bel"),
    ("bg", "bul"),
    ("bn", "ben"),
    ("ca", "cat"),
    ("cs", "ces"),
    ("cy", "cym"),
    ("da", "dan"),
    ("de", "deu"),
    ("el", "ell"),
    ("en", "eng"),
    ("eo", "epo"),
    ("es", "spa"),
    ("et", "est"),
    ("fa", "pes"),
    ("fi", "fin"),
    ("fr", "fra"),
    ("gu", "guj"),
    ("he", "heb"),
    ("hi", "hin"),
    ("hr", "hrv"),
    ("hu", "hun"),
    ("hy", "hye"),
    ("id", "ind"),
    ("it", "ita"),
    ("ja", "jpn"),
    ("jv", "jav"),
    ("ka", "kat"),
    ("km", "khm"),
    ("kn", "kan"),
    ("ko", "kor"),
    ("la", "lat"),
    ("lt", "lit"),
    ("lv", "lav"),
    ("mk", "mkd"),
    ("ml", "mal"),
    ("mr", "mar"),
    ("my", "mya"),
    ("nb", "nob"),
    ("ne", "nep"),
    ("nl", "nld"),
    ("or", "ori"),
    ("pa", "pan"),
    ("pl", "pol"),
    ("pt", "por"),
    ("ro", "ron"),
    ("ru", "rus"),
    ("si", "sin"),
    ("sk", "slk"),
    ("sl", "slv"),
    ("sn", "sna"),
    ("sr", "srp"),
    ("sv", "swe"),
    ("ta", "tam"),
    ("te", "tel"),
    ("th", "tha"),
    ("tk", "tuk"),
    ("tl", "tgl"),
    ("tr", "tur"),
    ("uk", "ukr"),
    ("ur", "urd"),
    ("uz", "uzb"),
    ("vi", "vie"),
    ("yi", "yid"),
    ("zh", "cmn"),
    ("zu", "zul"),
];

/// The languages that are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Language {
    /// Their codes, of two letters or three: `["ja", "en"]`.
    keep: Vec<String>,
    /// How sure it must be, from 0 to 1.
    #[serde(default)]
    min_confidence: f64,
}

/// The scripts that a text must have, or must not have, much of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Scripts, by their names in Unicode: `["Han", "Hiragana", "Katakana"]`.
    of: Vec<String>,
    /// The least part of the letters that is of one of them, from 0 to 1.
    #[serde(default)]
    min: Option<f64>,
    /// The greatest.
    #[serde(default)]
    max: Option<f64>,
}

/// Below so many letters trigrams say little.
const FEW_LETTERS: usize = 24;

/// Whether a text is in a language: by its words' scripts where these tell it, else by trigrams.
///
/// Japanese: half of its words or more are of Han, hiragana or katakana, and some are of kana unless it is short (Chinese has
/// none). English: fewer than that, most letters are Latin, and what is long enough to tell reads as English.
pub fn is_in(text: &str, code: &str) -> bool {
    const KANA: [Script; 2] = [Script::Hiragana, Script::Katakana];
    const JAPANESE: [Script; 3] = [Script::Han, Script::Hiragana, Script::Katakana];
    let all = words(text);
    let with_letters = all.iter().map(|word| word.text).filter(|word| word.chars().any(char::is_alphabetic));
    let (japanese, others): (Vec<&str>, Vec<&str>) = with_letters.partition(|word| script_share(word, &JAPANESE) > 0.5);
    if japanese.is_empty() && others.is_empty() {
        return false;
    }
    let is_japanese_script = japanese.len() >= others.len();
    let is_short = |text: &str| text.chars().filter(|c| c.is_alphabetic()).count() < FEW_LETTERS;
    let reads_as = |text: &str, wanted: &str| {
        let end = text.char_indices().nth(LOOKED_AT).map_or(text.len(), |(end, _)| end);
        language(wanted).is_some() && whatlang::detect_lang(&text[..end]) == language(wanted)
    };
    match code {
        "ja" | "jpn" => is_japanese_script && (is_short(text) || script_share(text, &KANA) > 0.0),
        "en" | "eng" => {
            // What is quoted in another script does not count.
            let others = others.join(" ");
            let is_latin = !is_japanese_script && script_share(&others, &[Script::Latin]) > 0.5;
            is_latin && (is_short(&others) || reads_as(&others, "en"))
        }
        _ => reads_as(text, code),
    }
}

/// Whether there is a language of this code.
pub fn is_known(code: &str) -> bool {
    language(code).is_some()
}

fn language(code: &str) -> Option<Lang> {
    let long = CODES.iter().find(|known| known.0 == code).map_or(code, |known| known.1);
    Lang::from_code(long)
}

/// Its code of two letters, if it has one.
fn code(language: Lang) -> &'static str {
    CODES.iter().find(|known| known.1 == language.code()).map_or(language.code(), |known| known.0)
}

fn script(name: &str) -> Option<Script> {
    Script::from_full_name(name).or_else(|| Script::from_short_name(name))
}

fn is_part(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

impl Language {
    /// What is wrong with it.
    pub fn check(&self, errors: &mut Vec<Diagnostic>) {
        if self.keep.is_empty() {
            let error = Diagnostic::new("no language would be kept").field("language.keep");
            errors.push(error.hint("name some: keep = [\"ja\", \"en\"]"));
        }
        for (i, name) in self.keep.iter().enumerate().filter(|(_, name)| language(name).is_none()) {
            let error = Diagnostic::new(format!("`{name}` is no language that can be told"))
                .field(format!("language.keep.{i}"));
            let codes: Vec<&str> = CODES.iter().map(|code| code.0).collect();
            errors.push(error.hint(format!("codes of ISO 639: {}", codes.join(", "))));
        }
        if !is_part(self.min_confidence) {
            let error = Diagnostic::new(format!("{} is not from 0 to 1", self.min_confidence));
            errors.push(error.field("language.min_confidence"));
        }
    }

    /// Why a text goes, if it does.
    pub fn judge(&self, text: &str) -> Result<(), Drop> {
        let end = text.char_indices().nth(LOOKED_AT).map_or(text.len(), |(end, _)| end);
        let Some(info) = whatlang::detect(&text[..end]) else {
            return Err(Drop { rule: "language", why: "no language: there are no letters".to_owned() });
        };
        let kept = self.keep.iter().any(|name| language(name) == Some(info.lang()));
        let unsure = info.confidence() < self.min_confidence;
        let said = || format!("{} with confidence {:.2}", code(info.lang()), info.confidence());
        Drop::when(!kept || unsure, "language", said)
    }
}

impl Share {
    /// What is wrong with it, the `i`th.
    pub fn check(&self, i: usize, errors: &mut Vec<Diagnostic>) {
        for (j, name) in self.of.iter().enumerate().filter(|(_, name)| script(name).is_none()) {
            let error =
                Diagnostic::new(format!("`{name}` is no script of Unicode")).field(format!("scripts.{i}.of.{j}"));
            let usual =
                ["Han", "Hiragana", "Katakana", "Hangul", "Latin", "Cyrillic", "Arabic", "Greek", "Thai", "Devanagari"];
            errors.push(match did_you_mean(name, usual) {
                Some(near) => error.hint(format!("did you mean `{near}`?")),
                None => error.hint(format!("such as {}", usual.join(", "))),
            });
        }
        let (min, max) = (self.min.unwrap_or(0.0), self.max.unwrap_or(1.0));
        let field = if self.min.is_some() { format!("scripts.{i}.min") } else { format!("scripts.{i}.max") };
        if self.of.is_empty() || self.min.is_none() && self.max.is_none() {
            let error = Diagnostic::new("it says nothing").field(format!("scripts.{i}"));
            errors.push(error.hint("scripts = [{ of = [\"Han\", \"Hiragana\", \"Katakana\"], min = 0.5 }]"));
        } else if !is_part(min) || !is_part(max) || min > max {
            errors.push(
                Diagnostic::new(format!("no text has between {min} and {max} of its letters in them")).field(field),
            );
        }
    }

    /// Why a text goes, if it does.
    pub fn judge(&self, text: &str) -> Result<(), Drop> {
        let scripts: Vec<Script> = self.of.iter().filter_map(|name| script(name)).collect();
        let share = script_share(text, &scripts);
        let outside = self.min.is_some_and(|min| share < min) || self.max.is_some_and(|max| share > max);
        Drop::when(outside, "scripts", || format!("{share:.3} of the letters are {}", self.of.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_a_language_that_can_be_told() {
        for (short, long) in CODES {
            assert_eq!(language(short).map(code), Some(short), "{long}");
        }
        assert!(CODES.is_sorted());
    }
}
