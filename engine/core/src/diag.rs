//! [`Diagnostic`]: what is wrong, where, why, and what to do.

use std::{fmt, ops::Range, path::PathBuf, sync::Arc};

/// A text that spans point into.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// Where the text is from, as the user named it.
    pub path: PathBuf,
    /// The whole text.
    pub text: String,
}

/// A place in a [`Source`]: byte offsets.
#[derive(Clone, PartialEq, Eq)]
pub struct Span {
    /// The text.
    pub source: Arc<Source>,
    /// First byte.
    pub start: usize,
    /// One after the last byte.
    pub end: usize,
}

impl Span {
    /// The bytes `range` of `source`.
    #[must_use]
    pub fn new(source: &Arc<Source>, range: Range<usize>) -> Self {
        Self { source: Arc::clone(source), start: range.start, end: range.end }
    }

    /// Line and column (in characters), both from 1.
    #[must_use]
    pub fn line_column(&self) -> (usize, usize) {
        let text = &self.source.text;
        let mut at = self.start.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        let before = &text[..at];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = self.line_column();
        write!(f, "{}:{line}:{column}", self.source.path.display())
    }
}

/// An error or warning for a person: message, place, causes, hints as data. Drawn once, by the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong: one line, no capital, no full stop.
    pub message: String,
    /// Where.
    pub span: Option<Span>,
    /// Which field of the stage, as `optim.lr`, when the one who complains knows the name but not the place.
    pub field: Option<String>,
    /// Why: the chain of causes, outermost first.
    pub causes: Vec<String>,
    /// What to do.
    pub hints: Vec<String>,
    /// It is about a name that stands nowhere: what could not be read may hold it.
    pub absent: bool,
    /// Its line holds a secret, and is not shown.
    pub secret: bool,
}

impl Diagnostic {
    /// An error with a message alone.
    pub fn new(message: impl Into<String>) -> Self {
        let (causes, hints) = (Vec::new(), Vec::new());
        Self { message: message.into(), span: None, field: None, causes, hints, absent: false, secret: false }
    }

    /// With a place, if there is none yet.
    #[must_use]
    pub fn at(mut self, span: Option<Span>) -> Self {
        self.span = self.span.or(span);
        self
    }

    /// About this field of the stage (`optim.lr`); the engine finds its place in the file.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// About a name that stands nowhere.
    #[must_use]
    pub fn absent(mut self) -> Self {
        self.absent = true;
        self
    }

    /// About a line that holds a secret.
    #[must_use]
    pub fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// With a cause.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// With a hint: what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(span) = &self.span {
            write!(f, "{span:?}: ")?;
        }
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        for hint in &self.hints {
            write!(f, " (hint: {hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// The candidate that a person most likely meant by `word`, if one is near enough.
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1.max(candidate.chars().count().min(word.chars().count()) / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters_and_survive_odd_offsets() {
        let source = Arc::new(Source { path: "p.toml".into(), text: "名 = 1\nあいう".into() });
        assert_eq!(Span::new(&source, 4..5).line_column(), (1, 3));
        assert_eq!(Span::new(&source, 12..13).line_column(), (2, 2));
        assert_eq!(Span::new(&source, 11..13).line_column(), (2, 2));
        assert_eq!(Span::new(&source, 999..1000).line_column(), (2, 4));
    }

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let names = ["global_batch_size", "micro_batch_size", "seed", "raw"];
        assert_eq!(did_you_mean("globl_batch_size", names), Some("global_batch_size"));
        assert_eq!(did_you_mean("sede", names), Some("seed"));
        assert_eq!(did_you_mean("rwa", names), Some("raw"));
        assert_eq!(did_you_mean("learning_rate", names), None);
    }
}
