//! [`Stream`]: tokens as text while they come, without half characters, up to a text that ends it.

use anyhow::Result;

use crate::tokenize::Tokenizer;

/// So many tokens of the prompt stand before what is made: a decoder may drop a space at the beginning of a text.
const BEFORE: usize = 6;

/// A character has four bytes at most, and a token one at least: what is no character after more tokens becomes none.
const LONGEST: usize = 6;

/// What stands for bytes that are no character.
const REPLACEMENT: char = '\u{FFFD}';

/// The text of a completion on its way.
#[derive(Debug)]
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// What the next tokens are decoded with, and from where on their text is new.
    from: usize,
    new: usize,
    until: &'a [String],
    /// All of it, and how much of that was told.
    text: String,
    told: usize,
}

impl<'a> Stream<'a> {
    /// After this prompt, up to one of these texts.
    pub fn after(prompt: &[u32], tokenizer: &'a Tokenizer, until: &'a [String]) -> Self {
        let ids = prompt[prompt.len().saturating_sub(BEFORE)..].to_vec();
        let new = ids.len();
        Self { tokenizer, ids, from: 0, new, until, text: String::new(), told: 0 }
    }

    /// One more token: whether that ended it. What can be told is in [`Stream::take`].
    pub fn push(&mut self, id: u32) -> Result<bool> {
        self.ids.push(id);
        self.decode(false)
    }

    /// There are no more tokens.
    pub fn end(&mut self) -> Result<()> {
        self.decode(true)?;
        self.until = &[];
        Ok(())
    }

    /// What is new and certain.
    pub fn take(&mut self) -> String {
        let certain = self.certain();
        let new = self.text[self.told..certain].to_owned();
        self.told = certain;
        new
    }

    /// All of it.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Takes the text of the tokens that are whole characters, or of all; whether one of the texts that end it is there.
    fn decode(&mut self, all: bool) -> Result<bool> {
        let before = self.tokenizer.decode_plain(&self.ids[self.from..self.new])?;
        let now = self.tokenizer.decode_plain(&self.ids[self.from..])?;
        let is_half = now.ends_with(REPLACEMENT) && self.ids.len() - self.new < LONGEST;
        if is_half && !all {
            return Ok(false);
        }
        let searched = self.text.len();
        self.text += now.get(before.len()..).unwrap_or_default();
        (self.from, self.new) = (self.new, self.ids.len());
        let found = self.until.iter().filter_map(|until| {
            let mut from = (searched + 1).saturating_sub(until.len());
            while !self.text.is_char_boundary(from) {
                from -= 1;
            }
            Some(from + self.text[from..].find(until.as_str())?)
        });
        let Some(at) = found.min() else { return Ok(false) };
        self.text.truncate(at);
        self.until = &[];
        Ok(true)
    }

    /// Up to where no text that ends it may have begun.
    fn certain(&self) -> usize {
        let begins = |at: &usize| self.until.iter().any(|until| until.starts_with(&self.text[*at..]));
        let longest = self.until.iter().map(String::len).max().unwrap_or(0);
        let from = self.text.len().saturating_sub(longest).max(self.told);
        (from..self.text.len()).filter(|at| self.text.is_char_boundary(*at)).find(begins).unwrap_or(self.text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{testing::repository, tokenize::Files};

    fn tokenizer() -> Tokenizer {
        Tokenizer::load(&Files::find(&repository().join("examples/ja_wiki_mini/tokenizer")).unwrap()).unwrap()
    }

    /// Token by token: what was told after each, and whether it ended.
    fn told(tokenizer: &Tokenizer, text: &str, until: &[String]) -> (Vec<String>, bool) {
        let prompt = tokenizer.encode_reference("これ", true).unwrap();
        let mut stream = Stream::after(&prompt, tokenizer, until);
        let mut parts = Vec::new();
        for id in tokenizer.encode_reference(text, false).unwrap() {
            let ended = stream.push(id).unwrap();
            parts.push(stream.take());
            if ended {
                assert_eq!(parts.concat(), stream.into_text());
                return (parts, true);
            }
        }
        stream.end().unwrap();
        parts.push(stream.take());
        assert_eq!(parts.concat(), stream.into_text());
        (parts, false)
    }

    /// Rare characters are several tokens each, and are told when they are whole.
    #[test]
    fn characters_are_told_whole() {
        let tokenizer = tokenizer();
        let text = " 鑿𠮷🧑‍🚀は x";
        let (parts, _) = told(&tokenizer, text, &[]);
        assert!(parts.len() > text.chars().count(), "{parts:?}");
        assert_eq!(parts.concat(), text);
        assert!(parts.iter().all(|part| !part.contains(REPLACEMENT)));
        // Bytes that never become a character do not hold back what comes after them.
        let half = tokenizer.encode_reference("𠮷", false).unwrap()[0];
        let mut stream = Stream::after(&[], &tokenizer, &[]);
        assert!((0..20).all(|_| !stream.push(half).unwrap()));
        assert!(stream.take().contains(REPLACEMENT));
    }

    #[test]
    fn a_text_that_may_end_it_is_held_back_and_cut() {
        let tokenizer = tokenizer();
        let until = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        for end in ["\n\n", "\n\nb", "a\n\n"] {
            let (parts, ended) = told(&tokenizer, "12\n34a\n\nb56", &until(&["never", end]));
            let expected = "12\n34a\n\nb56".split(end).next().unwrap();
            assert!(ended && parts.concat() == expected, "{end:?}: {parts:?}");
        }
        let (parts, ended) = told(&tokenizer, "12\n", &until(&["\n\n"]));
        assert!(!ended && parts.concat() == "12\n", "what did not end it is told in the end: {parts:?}");
    }

    #[test]
    fn special_tokens_are_no_text() {
        let tokenizer = tokenizer();
        let bos = tokenizer.encode_reference("", true).unwrap()[0];
        let mut stream = Stream::after(&[bos], &tokenizer, &[]);
        assert!(!stream.push(bos).unwrap());
        stream.end().unwrap();
        assert_eq!(stream.into_text(), "");
    }
}
