//! Reading a file that may be gzip, zstd, bzip2 or xz, as a stream, with errors that say which file and where.
//!
//! What a file is, its first bytes say; a file that is *named* `.gz`, `.zst`, … and is not one (a page of HTML saved by
//! mistake) is refused. Several members (frames, streams) may stand behind each other, and zeros behind those of gzip and
//! xz, as their own programs allow; what else stands there is refused with its place.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use flate2::bufread::GzDecoder;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// It is not.
    None,
    /// gzip, bgzf.
    Gzip,
    /// Zstandard.
    Zstd,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
}

impl Compression {
    const GZIP: &'static [u8] = &[0x1f, 0x8b];
    const ZSTD: &'static [u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    const XZ: &'static [u8] = b"\xfd7zXZ\0";

    /// What the first bytes of a file say.
    fn of_magic(magic: &[u8]) -> Self {
        if magic.starts_with(Self::GZIP) {
            Self::Gzip
        } else if magic.starts_with(Self::ZSTD) || is_skippable_frame(magic) {
            Self::Zstd
        } else if magic.starts_with(Self::XZ) {
            Self::Xz
        } else if is_bzip2(magic) {
            Self::Bzip2
        } else {
            Self::None
        }
    }

    /// What a file's name says.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        match split_name(name).1 {
            "gz" | "gzip" | "bgz" => Self::Gzip,
            "zst" | "zstd" => Self::Zstd,
            "bz2" | "bzip2" => Self::Bzip2,
            "xz" => Self::Xz,
            _ => Self::None,
        }
    }

    /// Whether another member begins with these bytes, of which there may be few.
    fn begins(self, bytes: &[u8]) -> bool {
        let starts = |magic: &[u8]| bytes.iter().zip(magic).all(|(byte, magic)| byte == magic);
        match self {
            Self::None => false,
            Self::Gzip => starts(Self::GZIP),
            Self::Zstd => starts(Self::ZSTD) || bytes[0] & 0xf0 == 0x50 && starts(&[bytes[0], 0x2a, 0x4d, 0x18]),
            Self::Bzip2 => starts(b"BZh"),
            Self::Xz => starts(Self::XZ),
        }
    }

    /// Whether zeros may stand behind the last member.
    fn is_padded(self) -> bool {
        matches!(self, Self::Gzip | Self::Xz)
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        }
    }
}

/// `BZh`, a digit, and π for a block or √π for the end of a stream without one: more than the letters of a text.
fn is_bzip2(magic: &[u8]) -> bool {
    magic.starts_with(b"BZh")
        && magic.get(3).is_some_and(|level| (b'1'..=b'9').contains(level))
        && [b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90"].iter().any(|mark| magic[4..].starts_with(*mark))
}

/// A zstd stream may begin with a frame that carries no data (pzstd, seekable archives).
fn is_skippable_frame(magic: &[u8]) -> bool {
    magic.len() >= 4 && magic[0] & 0xf0 == 0x50 && magic[1..4] == [0x2a, 0x4d, 0x18]
}

/// The name without the ending that says how it is compressed.
#[must_use]
pub fn strip_ending(name: &str) -> &str {
    if Compression::of_name(name) == Compression::None { name } else { split_name(name).0 }
}

fn split_name(name: &str) -> (&str, &str) {
    name.rsplit_once('.').filter(|(stem, _)| !stem.is_empty()).unwrap_or((name, ""))
}

/// How many bytes of the file were taken, for progress: may be asked from another thread.
#[derive(Clone, Debug, Default)]
pub struct Position(Arc<AtomicU64>);

impl Position {
    /// Bytes so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The uncompressed content of a file. Its errors name the file and the place.
pub struct Decoder {
    path: PathBuf,
    size: u64,
    position: Position,
    kind: Compression,
    state: State,
}

type Source = Counting<BufReader<File>>;

enum State {
    Plain(Source),
    /// Inside of the member that began at this byte.
    Member(u64, Member),
    /// Behind a member.
    Between(Source),
    End,
}

/// One member of gzip or bgzf, frame of zstd, stream of bzip2 or xz: takes not a byte more than it is long.
enum Member {
    Gzip(Box<GzDecoder<Source>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Source>>),
    Bzip2(Box<bzip2::bufread::BzDecoder<Source>>),
    Xz(Box<liblzma::bufread::XzDecoder<Source>>),
}

impl State {
    fn begin(kind: Compression, source: Source) -> io::Result<Self> {
        let began = source.position.get();
        let member = match kind {
            Compression::None => return Ok(Self::Plain(source)),
            Compression::Gzip => Member::Gzip(Box::new(GzDecoder::new(source))),
            Compression::Zstd => {
                Member::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(source)?.single_frame()))
            }
            Compression::Bzip2 => Member::Bzip2(Box::new(bzip2::bufread::BzDecoder::new(source))),
            Compression::Xz => Member::Xz(Box::new(liblzma::bufread::XzDecoder::new(source))),
        };
        Ok(Self::Member(began, member))
    }
}

impl Member {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(member) => member.read(buffer),
            Self::Zstd(member) => member.read(buffer),
            Self::Bzip2(member) => member.read(buffer),
            Self::Xz(member) => member.read(buffer),
        }
    }

    fn into_inner(self) -> Source {
        match self {
            Self::Gzip(member) => member.into_inner(),
            Self::Zstd(member) => member.finish(),
            Self::Bzip2(member) => member.into_inner(),
            Self::Xz(member) => member.into_inner(),
        }
    }
}

impl Decoder {
    /// Opens a file and looks at its first bytes.
    ///
    /// # Errors
    /// It cannot be opened, or is not what its name says.
    pub fn open(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot read {}", path.display());
        let file = File::open(path).with_context(cannot)?;
        let size = file.metadata().with_context(cannot)?.len();
        let position = Position::default();
        let mut source = Counting { inner: BufReader::with_capacity(256 << 10, file), position: position.clone() };
        let kind = Compression::of_magic(source.fill_buf().with_context(cannot)?);
        let named = Compression::of_name(&path.file_name().unwrap_or_default().to_string_lossy());
        ensure!(
            named == Compression::None || named == kind,
            "{}: the name says {}, but the content ({size} bytes) does not begin as such; \
             look into the file: a failed download is often a page of HTML",
            path.display(),
            named.name()
        );
        let state = State::begin(kind, source).with_context(cannot)?;
        Ok(Self { path: path.to_owned(), size, position, kind, state })
    }

    /// How the file is compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.kind
    }

    /// The file's length, compressed as it is.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// A handle that tells how much of the file was taken.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position.clone()
    }

    fn error(&self, error: &io::Error, began: Option<u64>) -> io::Error {
        let (path, at) = (self.path.display(), self.position.get());
        if self.kind == Compression::None {
            return io::Error::new(error.kind(), format!("{path}: at byte {at}: {error}"));
        }
        let what = self.kind.name();
        let began = began.map_or(String::new(), |began| format!(", in the member that begins at byte {began}"));
        let text = if error.kind() == io::ErrorKind::UnexpectedEof || at >= self.size && is_incomplete(error) {
            format!(
                "{path}: truncated {what}: the file ends at byte {}{began}, before its data does; it was copied or \
                 downloaded in part: get it again (a fetched one with `flow run … --force STAGE`)",
                self.size
            )
        } else {
            format!(
                "{path}: corrupt {what} at or before byte {at} of {}{began}: {error}; get it again, and compare its \
                 checksum with the publisher's",
                self.size
            )
        };
        io::Error::new(error.kind(), text)
    }

    /// Behind a member: on to the next one, or the end of the file.
    fn between(&mut self, mut source: Source) -> io::Result<State> {
        let mut padding = 0;
        loop {
            let at = self.position.get();
            let buffer = source.fill_buf().map_err(|error| self.error(&error, None))?;
            if buffer.is_empty() {
                return Ok(State::End);
            }
            let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
            // xz may have more streams behind its padding, gzip may not.
            let begins = self.kind.begins(buffer) && (padding == 0 || self.kind == Compression::Xz && padding % 4 == 0);
            if zeros > 0 && self.kind.is_padded() {
                padding += zeros;
                source.consume(zeros);
            } else if begins {
                return State::begin(self.kind, source);
            } else {
                let text = format!(
                    "{}: {} bytes of something else behind the {} data, from byte {at}",
                    self.path.display(),
                    self.size.saturating_sub(at),
                    self.kind.name()
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
    }
}

/// zstd says the end of the file in the middle of a frame in its own words.
fn is_incomplete(error: &io::Error) -> bool {
    error.to_string().contains("incomplete frame")
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let (result, began) = match &mut self.state {
                State::Plain(source) => (source.read(buffer), None),
                State::End => return Ok(0),
                State::Member(began, member) => (member.read(buffer), Some(*began)),
                State::Between(_) => (Ok(0), None),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.error(&error, began)),
                Ok(0) => match std::mem::replace(&mut self.state, State::End) {
                    State::Member(_, member) => self.state = State::Between(member.into_inner()),
                    State::Between(source) => self.state = self.between(source)?,
                    _ => return Ok(0),
                },
                Ok(n) => return Ok(n),
            }
        }
    }
}

/// Counts what is consumed, not what is buffered: at an error the count is where it stands.
struct Counting<R> {
    inner: R,
    position: Position,
}

impl<R: BufRead> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.position.0.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Counting<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }
    fn consume(&mut self, n: usize) {
        self.inner.consume(n);
        self.position.0.fetch_add(n as u64, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("path", &self.path).field("position", &self.position.get()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn read(name: &str, content: &[u8]) -> Result<Vec<u8>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        let mut out = Vec::new();
        Decoder::open(&path)?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn error(name: &str, content: &[u8]) -> String {
        format!("{:#}", read(name, content).unwrap_err())
    }

    /// Does not compress to nothing.
    fn noise(n: usize) -> Vec<u8> {
        let mut state = 1u64;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect()
    }

    #[test]
    fn members_frames_and_padding_are_one_stream() {
        let big = noise(700_000);
        let two = [gzip(b"one\n"), gzip(&big), vec![0; 300_000]].concat();
        assert_eq!(read("a.gz", &two).unwrap(), [b"one\n", big.as_slice()].concat());
        let frames = [zstd::encode_all(&b"one\n"[..], 1).unwrap(), zstd::encode_all(&big[..], 1).unwrap()].concat();
        assert_eq!(read("a.jsonl.zst", &frames).unwrap(), [b"one\n", big.as_slice()].concat());
        assert_eq!(read("no-ending", &two).unwrap().len(), big.len() + 4);
        assert_eq!(read("plain", b"text").unwrap(), b"text");
        assert_eq!(read("plain", b"").unwrap(), b"");
        assert_eq!(read("a.gz", &gzip(b"")).unwrap(), b"");
    }

    #[test]
    fn damage_is_told_with_its_place() {
        let good = gzip(&noise(100_000));
        for cut in [3, 10, 18, 5_000, good.len() - 8, good.len() - 1] {
            let error = error("a.gz", &good[..cut]);
            assert!(error.contains("truncated gzip") && error.contains(&format!("byte {cut}")), "{cut}: {error}");
        }
        let second = [good.clone(), good[..200].to_vec()].concat();
        assert!(error("a.gz", &second).contains(&format!("member that begins at byte {}", good.len())));
        let garbage = [good.as_slice(), b"garbage"].concat();
        let text = error("a.gz", &garbage);
        assert!(
            text.contains(&format!("7 bytes of something else behind the gzip data, from byte {}", good.len())),
            "{text}"
        );
        let mut flipped = good.clone();
        let middle = flipped.len() - 6;
        flipped[middle] ^= 1;
        assert!(error("a.gz", &flipped).contains("corrupt gzip"), "checksum");

        let good = zstd::encode_all(&noise(400_000)[..], 1).unwrap();
        for cut in [5, 100, good.len() - 1] {
            assert!(error("a.zst", &good[..cut]).contains("truncated zstd"), "{cut}: {}", error("a.zst", &good[..cut]));
        }
        let text = error("a.zst", &[good.as_slice(), b"garbage!"].concat());
        assert!(
            text.contains(&format!("8 bytes of something else behind the zstd data, from byte {}", good.len())),
            "{text}"
        );
    }

    #[test]
    fn bzip2_and_xz_are_streams_behind_each_other() {
        fn packed(name: &str, text: &[u8]) -> Vec<u8> {
            if name == "xz" {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            } else {
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
        }
        let big = noise(1_200_000);
        for (ending, name) in [("bz2", "bzip2"), ("xz", "xz")] {
            let file = format!("a.jsonl.{ending}");
            let (one, two) = (packed(name, b"one\n"), packed(name, &big));
            let both = [one.as_slice(), &two].concat();
            assert!(read(&file, &both).unwrap() == [b"one\n", big.as_slice()].concat());
            assert!(read("no-ending", &both).unwrap().len() == big.len() + 4);
            assert_eq!(read(&file, &packed(name, b"")).unwrap(), b"");
            assert_eq!(strip_ending(&file), "a.jsonl");
            for cut in [one.len() + 20, both.len() / 2, both.len() - 3] {
                let text = error(&file, &both[..cut]);
                assert!(text.contains(&format!("truncated {name}: the file ends at byte {cut}")), "{text}");
            }
            let text = error(&file, &[both.as_slice(), b"garbage behind it"].concat());
            let words = format!("17 bytes of something else behind the {name} data, from byte {}", both.len());
            assert!(text.contains(&words), "{text}");
            if name == "xz" {
                let padded = [one.as_slice(), &[0; 8], &two, &[0; 4]].concat();
                assert!(read(&file, &padded).unwrap().len() == big.len() + 4);
                assert!(error(&file, &[one.as_slice(), &[0; 3], &two].concat()).contains("something else behind"));
            } else {
                assert!(error(&file, &[one.as_slice(), &[0; 4]].concat()).contains("4 bytes of something else behind"));
            }
            let mut flipped = both.clone();
            flipped[both.len() / 2] ^= 0x10;
            assert!(error(&file, &flipped).contains(&format!("corrupt {name}")), "checksum");
            assert!(error(&file, b"<html>").contains(&format!("the name says {name}")));
        }
        assert_eq!(read("plain", b"BZh9 is no archive").unwrap(), b"BZh9 is no archive");
    }

    #[test]
    fn a_name_that_lies_is_refused() {
        assert!(error("a.gz", b"<html>").contains("the name says gzip"));
        assert!(error("a.jsonl.zst", b"").contains("the name says zstd"));
        assert_eq!(strip_ending("a.jsonl.gz"), "a.jsonl");
        assert_eq!(strip_ending("a.jsonl"), "a.jsonl");
        assert_eq!(strip_ending(".gz"), ".gz");
    }
}
