//! [`Network`]: how stages take files from the network, as the settings of a machine say. Nothing of it enters a key.

use std::collections::BTreeMap;

/// How files are taken from the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// What URLs begin with → what stands there instead; asked in this order, before the URL itself.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// How many transfers from one host go on at a time, at most.
    pub connections: usize,
}

impl Default for Network {
    fn default() -> Self {
        Self { mirrors: BTreeMap::new(), connections: 8 }
    }
}

impl Network {
    /// Where else a URL's content is: for the longest beginning that has mirrors.
    #[must_use]
    pub fn mirrors_of(&self, url: &str) -> Vec<String> {
        let rest = |start: &str| {
            let rest = url.strip_prefix(start)?;
            // `https://h.example` is no beginning of `https://h.example.org/`.
            let whole = start.ends_with('/') || rest.is_empty() || rest.starts_with(['/', '?']);
            whole.then_some(rest)
        };
        let known = self.mirrors.iter().filter_map(|(start, mirrors)| Some((start.len(), rest(start)?, mirrors)));
        let Some((_, rest, mirrors)) = known.max_by_key(|(length, ..)| *length) else { return Vec::new() };
        mirrors.iter().map(|mirror| format!("{mirror}{rest}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_beginning_is_replaced_and_no_half_of_a_name() {
        let mirrors = [
            ("https://h.example", vec!["http://a", "http://b/h"]),
            ("https://h.example/data/", vec!["http://c/"]),
            ("https://h.example/off", vec![]),
        ];
        let owned = |(start, to): (&str, Vec<&str>)| (start.to_owned(), to.into_iter().map(str::to_owned).collect());
        let network = Network { mirrors: mirrors.into_iter().map(owned).collect(), ..Network::default() };
        assert_eq!(network.mirrors_of("https://h.example/x?y"), ["http://a/x?y", "http://b/h/x?y"]);
        assert_eq!(network.mirrors_of("https://h.example"), ["http://a", "http://b/h"]);
        assert_eq!(network.mirrors_of("https://h.example/data/x"), ["http://c/x"]);
        for none in ["https://h.example.org/x", "http://h.example/x", "https://h.example/off/x"] {
            assert_eq!(network.mirrors_of(none), [""; 0], "{none}");
        }
    }
}
