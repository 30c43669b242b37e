//! [`Paint`]: colour where a person looks, none elsewhere.

use std::io::{IsTerminal, stderr};

/// Colours text, or leaves it alone.
#[derive(Clone, Copy, Debug)]
pub struct Paint(bool);

impl Paint {
    /// Colour when stderr is a terminal and `NO_COLOR` is not set.
    pub fn for_stderr() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self(stderr().is_terminal() && !refused && !dumb)
    }

    /// Never colour.
    #[cfg(test)]
    pub fn none() -> Self {
        Self(false)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// For names.
    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// For what matters less.
    pub fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    /// For what went wrong.
    pub fn red(self, text: &str) -> String {
        self.with("1;31", text)
    }

    /// For what went well.
    pub fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    /// For what may surprise.
    pub fn yellow(self, text: &str) -> String {
        self.with("33", text)
    }

    /// For what is going on, and for places.
    pub fn cyan(self, text: &str) -> String {
        self.with("36", text)
    }
}
