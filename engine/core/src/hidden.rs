//! [`Event::hidden`]: what programs print, without the secrets that they were given.

use std::sync::OnceLock;

use crate::{Event, SECRETS, is_secret_name};

/// A shorter value is a word that stands in many places.
const SHORTEST: usize = 8;

/// The values of the variables of this process that are secrets by their names.
fn values() -> &'static [String] {
    static VALUES: OnceLock<Vec<String>> = OnceLock::new();
    VALUES.get_or_init(|| {
        let is_one = |name: &str| SECRETS.contains(&name) || is_secret_name(name);
        let texts =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        // Lines are printed one by one.
        let lines = |(_, value): (String, String)| value.lines().map(str::to_owned).collect::<Vec<_>>();
        let lines = texts.filter(|(name, _)| is_one(name)).flat_map(lines);
        let mut values: Vec<String> = lines.filter(|line| line.trim().len() >= SHORTEST).collect();
        // One may hold another.
        values.sort_unstable_by_key(|value| std::cmp::Reverse(value.len()));
        values
    })
}

/// A text without the values of secret variables.
#[must_use]
pub fn hidden(mut text: String) -> String {
    hide(&mut text, values());
    text
}

fn hide(text: &mut String, values: &[String]) {
    for value in values {
        if text.contains(value.as_str()) {
            *text = text.replace(value.as_str(), "***");
        }
    }
}

impl Event {
    /// Without the values of secret variables: for screens, logs and records, which others read.
    #[must_use]
    pub fn hidden(mut self) -> Self {
        self.hide(values());
        self
    }

    fn hide(&mut self, values: &[String]) {
        match self {
            Self::Log { text, .. } => hide(text, values),
            Self::Failed { causes, log, .. } => causes.iter_mut().chain(log).for_each(|text| hide(text, values)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn a_value_that_is_printed_is_not_seen() {
        let values = ["a-long-secret-and-more".to_owned(), "a-long-secret".to_owned()];
        let mut log = Event::log("s", Level::Output, "got a-long-secret, a-long-secret-and-more");
        log.hide(&values);
        assert_eq!(log, Event::log("s", Level::Output, "got ***, ***"));
        let (causes, lines) = (vec!["it said a-long-secret".into()], vec!["a-long-secret".into()]);
        let mut failed = Event::Failed { node: "s".into(), causes, seconds: 1.0, log: lines, retry_after: None };
        failed.hide(&values);
        assert!(!format!("{failed:?}").contains("long"), "{failed:?}");
    }
}
