//! The likeliest way to cut a text into pieces.

use aho_corasick::AhoCorasick;
use anyhow::Result;

use super::proto::{Kind, Piece};

/// How much less likely than any piece an unknown character is.
const UNKNOWN_PENALTY: f32 = 10.0;

/// Pieces and how likely they are, as logarithms.
pub struct Unigram {
    search: AhoCorasick,
    /// By pattern: id and score.
    pieces: Vec<(u32, f32)>,
    unknown: u32,
    unknown_score: f32,
}

/// The likeliest way to a place in the text.
#[derive(Clone, Copy)]
struct Best {
    score: f32,
    /// Where its last piece starts; none if no way is known.
    start: Option<usize>,
    id: u32,
}

impl Unigram {
    /// Of pieces, and the id of what is unknown.
    ///
    /// # Errors
    /// There are too many.
    pub fn new<'p>(pieces: impl Iterator<Item = (&'p Piece, Kind, u32)>, unknown: u32) -> Result<Self> {
        let pieces: Vec<_> = pieces.filter(|(piece, ..)| !piece.text.is_empty()).collect();
        let scores = || pieces.iter().filter(|(_, kind, _)| *kind == Kind::Normal).map(|(piece, ..)| piece.score);
        let least = scores().fold(f32::MAX, f32::min);
        // Where SentencePiece begins to look for the highest.
        let most = scores().fold(f32::MIN_POSITIVE, f32::max);
        let score = |piece: &Piece, kind| match kind {
            Kind::UserDefined => (f64::from(piece.text.len() as f32 * most) - 0.1) as f32,
            _ => piece.score,
        };
        Ok(Self {
            search: AhoCorasick::new(pieces.iter().map(|(piece, ..)| &piece.text))?,
            pieces: pieces.iter().map(|(piece, kind, id)| (*id, score(piece, *kind))).collect(),
            unknown,
            unknown_score: least - UNKNOWN_PENALTY,
        })
    }

    /// Gives the pieces of a normalized text.
    pub fn segment(&self, text: &str, mut take: impl FnMut(&str, u32)) {
        let mut best = vec![Best { score: 0.0, start: None, id: self.unknown }; text.len() + 1];
        // All pieces in the text by their ends, of those with the same the longest first.
        let mut found = self.search.find_overlapping_iter(text).peekable();
        for (start, char) in text.char_indices() {
            let end = start + char.len_utf8();
            let mut is_piece = false;
            while let Some(piece) = found.next_if(|piece| piece.end() <= end) {
                is_piece |= piece.start() == start;
                let (id, score) = self.pieces[piece.pattern().as_usize()];
                let score = score + best[piece.start()].score;
                if best[end].start.is_none() || score > best[end].score {
                    best[end] = Best { score, start: Some(piece.start()), id };
                }
            }
            let score = self.unknown_score + best[start].score;
            if !is_piece && (best[end].start.is_none() || score > best[end].score) {
                best[end] = Best { score, start: Some(start), id: self.unknown };
            }
        }
        let mut cuts = Vec::new();
        let mut end = text.len();
        while let Some(start) = best[end].start {
            cuts.push((start, end, best[end].id));
            end = start;
        }
        cuts.iter().rev().for_each(|(start, end, id)| take(&text[*start..*end], *id));
    }
}
