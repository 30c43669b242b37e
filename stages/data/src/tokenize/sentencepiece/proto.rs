//! What of a SentencePiece `.model` ids follow from: `sentencepiece_model.proto`, a protocol buffer.

/// The model.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Model {
    /// Their places are their ids.
    #[prost(message, repeated, tag = "1")]
    pub pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    pub trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    pub normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Piece {
    #[prost(string, tag = "1")]
    pub text: String,
    #[prost(float, tag = "2")]
    pub score: f32,
    #[prost(enumeration = "Kind", optional, tag = "3")]
    pub kind: Option<i32>,
}

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl Piece {
    /// None if it is one that is not known here.
    pub fn known_kind(&self) -> Option<Kind> {
        self.kind.map_or(Some(Kind::Normal), |kind| Kind::try_from(kind).ok())
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Trainer {
    /// 1 is Unigram, 2 is BPE.
    #[prost(int32, optional, tag = "3")]
    pub model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    pub treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    pub byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "41")]
    pub bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    pub eos_id: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Normalizer {
    #[prost(bytes = "vec", tag = "2")]
    pub charsmap: Vec<u8>,
    #[prost(bool, optional, tag = "3")]
    pub add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub escape_whitespaces: Option<bool>,
}
