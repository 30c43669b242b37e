//! SentencePiece models, BPE and Unigram, to the letter of its own library: what `transformers` and the `tokenizers` crate make
//! of them differs in how text is normalized (they take the shortest of several rules, and SentencePiece the longest) and in
//! what stands in a text like a control token, which here is text as any other.

mod bpe;
mod normalize;
mod proto;
mod unigram;

use std::path::Path;

use ahash::AHashMap;
use anyhow::{Context, Result, bail, ensure};
use prost::Message;

use normalize::{Normalizer, SPACE};
use proto::Kind;

/// A model.
pub struct SentencePiece {
    normalizer: Normalizer,
    segmenter: Segmenter,
    /// By id.
    pieces: Vec<(String, Kind)>,
    ids: AHashMap<String, u32>,
    /// What stands for a character without a piece.
    unknown: u32,
    /// By byte, where unknown characters become bytes.
    bytes: Option<Box<[u32; 256]>>,
}

enum Segmenter {
    Bpe(bpe::Bpe),
    Unigram(unigram::Unigram),
}

fn read(path: &Path) -> Result<proto::Model> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let model = proto::Model::decode(&bytes[..]).ok().filter(|model| !model.pieces.is_empty());
    model.with_context(|| format!("{} is no model of SentencePiece", path.display()))
}

/// What the model in a file has for the beginning and the end of a text.
///
/// # Errors
/// It is damaged.
pub fn bos_and_eos(path: &Path) -> Result<[Option<String>; 2]> {
    let model = read(path)?;
    let trainer = model.trainer.unwrap_or_default();
    Ok([(trainer.bos_id, 1), (trainer.eos_id, 2)].map(|(id, default)| {
        let piece = model.pieces.get(usize::try_from(id.unwrap_or(default)).ok()?)?;
        (piece.known_kind() == Some(Kind::Control)).then(|| piece.text.clone())
    }))
}

impl SentencePiece {
    /// The model in a file.
    ///
    /// # Errors
    /// It is damaged, or of a kind whose ids would not be exact.
    pub fn load(path: &Path) -> Result<Self> {
        Self::new(&read(path)?).with_context(|| format!("{} cannot be used", path.display()))
    }

    fn new(model: &proto::Model) -> Result<Self> {
        let trainer = model.trainer.clone().unwrap_or_default();
        let normalizer = model.normalizer.clone().unwrap_or_default();
        ensure!(
            !trainer.treat_whitespace_as_suffix.unwrap_or(false) && normalizer.escape_whitespaces.unwrap_or(true),
            "it writes spaces in another way than `▁` before words, which is not served"
        );
        let kind = |(id, piece): (usize, &proto::Piece)| {
            let kind = piece.known_kind().with_context(|| format!("piece {id} is of an unknown kind"))?;
            ensure!(kind != Kind::Unused, "its piece {id} is marked as unused, which is not served");
            Ok((piece.text.clone(), kind))
        };
        let pieces = model.pieces.iter().enumerate().map(kind).collect::<Result<Vec<_>>>()?;
        let of_kind = |wanted: Kind| pieces.iter().zip(0u32..).filter(move |(piece, _)| piece.1 == wanted);
        let mut unknown = of_kind(Kind::Unknown);
        let (Some((_, unknown)), None) = (unknown.next(), unknown.next()) else {
            bail!("it has no piece, or several, for what is unknown")
        };
        let bytes = if trainer.byte_fallback.unwrap_or(false) {
            let mut bytes = Box::new([unknown; 256]);
            let mut found = 0;
            for ((text, _), id) in of_kind(Kind::Byte) {
                let digits = text.strip_prefix("<0x").and_then(|text| text.strip_suffix('>'));
                let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                bytes[usize::from(byte.with_context(|| format!("`{text}` is no byte"))?)] = id;
                found += 1;
            }
            ensure!(found == 256, "it has pieces for {found} of 256 bytes");
            Some(bytes)
        } else {
            None
        };
        let found = |wanted: [Kind; 2]| {
            let of = model.pieces.iter().zip(&pieces).zip(0u32..);
            of.filter(move |((_, (_, kind)), _)| wanted.contains(kind))
                .map(|((piece, (_, kind)), id)| (piece, *kind, id))
        };
        let symbols: Vec<&str> = of_kind(Kind::UserDefined).map(|((text, _), _)| text.as_str()).collect();
        let normalizer = Normalizer::new(&normalizer, &symbols)?;
        let all = found([Kind::Normal, Kind::UserDefined]);
        let segmenter = match trainer.model_type.unwrap_or(1) {
            1 => Segmenter::Unigram(unigram::Unigram::new(all, unknown)?),
            2 => Segmenter::Bpe(bpe::Bpe::new(all, &symbols, unknown)?),
            _ => bail!("it is a model of words or characters; those of BPE and Unigram are served"),
        };
        let ids = pieces.iter().zip(0..).map(|((text, _), id)| (text.clone(), id)).collect();
        Ok(Self { normalizer, segmenter, ids, unknown, bytes, pieces })
    }

    /// The ids of a text.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let text = self.normalizer.normalize(text);
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        let mut unknown_before = false;
        let take = |piece: &str, id: u32| {
            let is_unknown = id == self.unknown;
            match &self.bytes {
                Some(bytes) if is_unknown => ids.extend(piece.bytes().map(|byte| bytes[usize::from(byte)])),
                // What is unknown in a row is one.
                _ if is_unknown && unknown_before => {}
                _ => ids.push(id),
            }
            unknown_before = is_unknown;
        };
        match &self.segmenter {
            Segmenter::Bpe(bpe) => bpe.segment(&text, take),
            Segmenter::Unigram(unigram) => unigram.segment(&text, take),
        }
        ids
    }

    /// The text of ids.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for (text, kind) in ids.iter().filter_map(|id| self.pieces.get(*id as usize)) {
            match kind {
                Kind::Byte => bytes.extend(text.get(3..5).and_then(|digits| u8::from_str_radix(digits, 16).ok())),
                Kind::Unknown => bytes.extend(" \u{2047} ".bytes()),
                _ => bytes.extend(text.replace(SPACE, " ").bytes()),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        text.strip_prefix(' ').filter(|_| self.normalizer.adds_prefix()).unwrap_or(&text).to_owned()
    }

    /// The id of a piece.
    pub fn id(&self, piece: &str) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    /// How many pieces there are.
    pub fn vocabulary(&self) -> usize {
        self.pieces.len()
    }
}

#[cfg(test)]
mod tests;
