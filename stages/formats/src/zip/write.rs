//! [`frame`]: the bytes of an archive around its data.

use super::{ALIGNMENT, CENTRAL, END, END_64, LOCAL, LOCATOR_64, SEE_64};

/// What a member holds.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// The payload, which the caller writes between [`Frame::before`] and [`Frame::after`].
    Elsewhere {
        /// Its length.
        len: u64,
        /// Its CRC-32.
        crc: u32,
    },
}

/// The bytes of an archive without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What comes before the payload; the whole archive if it has none.
    pub before: Vec<u8>,
    /// What comes after it.
    pub after: Vec<u8>,
}

impl Frame {
    /// The length of the archive with a payload of `payload` bytes.
    #[must_use]
    pub fn total(&self, payload: u64) -> u64 {
        self.before.len() as u64 + payload + self.after.len() as u64
    }
}

struct Entry {
    name: String,
    at: u64,
    len: u64,
    crc: u32,
}

/// An archive whose members are called `{root}/{name}`, in this order, and last of all torch's
/// `.data/serialization_id`: 40 digits, from the members' names and content. At most one member is
/// [`Data::Elsewhere`]. The lengths of the frame do not depend on the payload's checksum, so that a payload can be
/// written first and its frame, with the real checksum, after it.
///
/// # Panics
/// Two members are elsewhere, or a name has 64 KiB.
#[must_use]
pub fn frame(root: &str, members: &[(&str, Data<'_>)]) -> Frame {
    let mut archive = Builder { before: Vec::new(), after: Vec::new(), payload: None, entries: Vec::new() };
    let mut id = blake3::Hasher::new();
    for &(name, data) in members {
        let (len, crc) = match data {
            Data::Bytes(bytes) => (bytes.len() as u64, crc32fast::hash(bytes)),
            Data::Elsewhere { len, crc } => (len, crc),
        };
        id.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        id.update(&len.to_le_bytes()).update(&crc.to_le_bytes());
        archive.member(format!("{root}/{name}"), data, len, crc);
    }
    let id = id.finalize();
    let half = |at: usize| u64::from_le_bytes(id.as_bytes()[at..at + 8].try_into().expect("eight bytes"));
    let id = format!("{:020}{:020}", half(0), half(8));
    archive.member(
        format!("{root}/.data/serialization_id"),
        Data::Bytes(id.as_bytes()),
        id.len() as u64,
        crc32fast::hash(id.as_bytes()),
    );
    archive.finish()
}

struct Builder {
    before: Vec<u8>,
    after: Vec<u8>,
    payload: Option<u64>,
    entries: Vec<Entry>,
}

impl Builder {
    fn position(&self) -> u64 {
        self.before.len() as u64 + self.payload.unwrap_or(0) + self.after.len() as u64
    }

    fn out(&mut self) -> &mut Vec<u8> {
        if self.payload.is_some() { &mut self.after } else { &mut self.before }
    }

    fn member(&mut self, name: String, data: Data<'_>, len: u64, crc: u32) {
        let at = self.position();
        let name_len = u16::try_from(name.len()).expect("a member's name is short");
        let mut extra = Vec::new();
        if len >= u64::from(SEE_64) {
            extra.extend([1, 0, 16, 0]);
            extra.extend(len.to_le_bytes());
            extra.extend(len.to_le_bytes());
        }
        // torch's own padding: an extra field "FB" that fills up to the alignment.
        let data_at = at + 30 + u64::from(name_len) + extra.len() as u64 + 4;
        let padding = data_at.next_multiple_of(ALIGNMENT) - data_at;
        extra.extend(b"FB");
        extra.extend((padding as u16).to_le_bytes());
        extra.resize(extra.len() + padding as usize, b'Z');

        let out = self.out();
        let version: u16 = if len >= u64::from(SEE_64) { 45 } else { 20 };
        let short = u32::try_from(len).unwrap_or(SEE_64);
        out.extend(LOCAL.to_le_bytes());
        for field in [version, 1 << 11 /* the name is UTF-8 */, 0 /* stored */, 0, DATE] {
            out.extend(field.to_le_bytes());
        }
        for field in [crc, short, short] {
            out.extend(field.to_le_bytes());
        }
        out.extend(name_len.to_le_bytes());
        out.extend((extra.len() as u16).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(extra);
        match data {
            Data::Bytes(bytes) => out.extend(bytes),
            Data::Elsewhere { len, .. } => {
                assert!(self.payload.is_none(), "an archive has one payload");
                self.payload = Some(len);
            }
        }
        self.entries.push(Entry { name, at, len, crc });
    }

    fn finish(mut self) -> Frame {
        let start = self.position();
        let entries = std::mem::take(&mut self.entries);
        let count = entries.len() as u64;
        for entry in entries {
            let mut extra = Vec::new();
            let big_len = entry.len >= u64::from(SEE_64);
            if big_len {
                extra.extend(entry.len.to_le_bytes());
                extra.extend(entry.len.to_le_bytes());
            }
            if entry.at >= u64::from(SEE_64) {
                extra.extend(entry.at.to_le_bytes());
            }
            if !extra.is_empty() {
                let len = extra.len() as u8;
                extra.splice(0..0, [1, 0, len, 0]);
            }
            let version: u16 = if extra.is_empty() { 20 } else { 45 };
            let len = if big_len { SEE_64 } else { entry.len as u32 };
            let out = self.out();
            out.extend(CENTRAL.to_le_bytes());
            for field in [version, version, 1 << 11, 0, 0, DATE] {
                out.extend(field.to_le_bytes());
            }
            for field in [entry.crc, len, len] {
                out.extend(field.to_le_bytes());
            }
            // name, extra field, comment; volume and attributes.
            for field in [entry.name.len() as u16, extra.len() as u16, 0, 0, 0] {
                out.extend(field.to_le_bytes());
            }
            out.extend(0u32.to_le_bytes());
            out.extend(u32::try_from(entry.at).unwrap_or(SEE_64).to_le_bytes());
            out.extend(entry.name.as_bytes());
            out.extend(extra);
        }
        let end = self.position();
        let out = self.out();
        // The 64-bit end record is always there, as in torch's archives: one shape for every size.
        out.extend(END_64.to_le_bytes());
        out.extend(44u64.to_le_bytes());
        out.extend([45, 0, 45, 0]);
        out.extend([0; 8]);
        for field in [count, count, end - start, start] {
            out.extend(field.to_le_bytes());
        }
        out.extend(LOCATOR_64.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(end.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend(END.to_le_bytes());
        out.extend([0; 4]);
        for _ in 0..2 {
            out.extend(u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
        }
        for field in [end - start, start] {
            out.extend(u32::try_from(field).unwrap_or(SEE_64).to_le_bytes());
        }
        out.extend([0; 2]);
        Frame { before: self.before, after: self.after }
    }
}

/// 1980-01-01, the first day there is.
const DATE: u16 = 0x21;
