//! A few of many documents, for a person to look at: those with the smallest digests, so that they are the same however the
//! work was shared out, and as good as drawn by lot.

use serde::Serialize;

/// Characters of a document that are shown.
const SHOWN: usize = 200;

/// A document that is shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Shown {
    #[serde(skip)]
    digest: [u8; 16],
    /// The file, without endings.
    pub file: String,
    /// The line, from 1; within a block of lines, from 0.
    pub line: u64,
    /// What was found.
    pub why: String,
    /// How the text begins.
    pub text: String,
}

/// Those with the smallest digests.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<Shown>);

impl Sample {
    /// Takes a line if it is one of the `most` with the smallest digests; what is said of it is why it is here, and its text.
    pub fn take(&mut self, most: usize, line: u64, bytes: &[u8], say: impl FnOnce() -> (String, String)) {
        let mut digest = [0; 16];
        blake3::Hasher::new().update(bytes).finalize_xof().fill(&mut digest);
        if most == 0 || self.0.len() == most && self.0.last().is_some_and(|last| last.digest < digest) {
            return;
        }
        let (why, text) = say();
        let text = match text.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        };
        self.add(most, Shown { digest, file: String::new(), line, why, text });
    }

    fn add(&mut self, most: usize, shown: Shown) {
        let at = self.0.partition_point(|other| *other < shown);
        self.0.insert(at, shown);
        self.0.truncate(most);
    }

    /// Takes another's, whose lines begin behind `lines` of the file.
    pub fn merge(&mut self, most: usize, other: Self, file: &str, lines: u64) {
        for shown in other.0 {
            self.add(most, Shown { file: file.to_owned(), line: lines + shown.line + 1, ..shown });
        }
    }
}

impl Serialize for Sample {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}
