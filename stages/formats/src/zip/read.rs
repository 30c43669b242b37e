//! [`Archive`]: the table of contents of an archive that lies somewhere in a file.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt};

use anyhow::{Context, Result, bail, ensure};

use super::{CENTRAL, END, END_64, LOCAL, LOCATOR_64, SEE_64};

/// Bytes that can be read at any place.
pub trait ReadAt {
    /// Fills `out` from `at` on.
    ///
    /// # Errors
    /// There are not so many bytes, or they cannot be read.
    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, at)
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..)?.get(..out.len()));
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Where a member's data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its first byte, from the start of the file that the archive lies in.
    pub data: u64,
    /// Its length.
    pub len: u64,
    /// The CRC-32 that the archive gives for it.
    pub crc: u32,
}

impl Member {
    /// Whether the archive gives one: torch writes 0 when it is told to leave checksums out (`set_crc32_options(False)`).
    #[must_use]
    pub fn has_checksum(&self) -> bool {
        self.crc != 0
    }
}

/// The members of an archive, without the root directory that all their names begin with.
#[derive(Debug)]
pub struct Archive {
    members: BTreeMap<String, Member>,
}

/// The table of contents of an archive with a million members; more is no checkpoint.
const LONGEST_TABLE: u64 = 128 << 20;

impl Archive {
    /// Reads the table of contents of the archive that has the bytes `start..start + len` of a file.
    ///
    /// # Errors
    /// There is no archive, it is damaged, or it has what torch never writes.
    pub fn open<R: ReadAt + ?Sized>(file: &R, start: u64, len: u64) -> Result<Self> {
        ensure!(start.checked_add(len).is_some(), "an archive beyond the end of any file");
        // torch writes no comment, so the end record is the last 22 bytes, and the 64-bit records stand before it.
        ensure!(len >= 22, "too short for a zip archive");
        let tail_len = len.min(22 + 20);
        let mut tail = vec![0; tail_len as usize];
        file.read_at(start + len - tail_len, &mut tail).context("cannot read the end of the archive")?;
        let end = Fields(&tail[tail.len() - 22..]);
        ensure!(end.u32(0) == END, "no zip archive: there is no end record where one should be");
        ensure!(end.u16(4) == 0 && end.u16(6) == 0, "an archive in several volumes");
        let (mut count, mut table_len, mut table) =
            (u64::from(end.u16(10)), u64::from(end.u32(12)), u64::from(end.u32(16)));
        if tail.len() == 42 && Fields(&tail).u32(0) == LOCATOR_64 {
            let at = Fields(&tail).u64(8);
            ensure!(at.checked_add(56).is_some_and(|end| end <= len), "the 64-bit end record lies outside");
            let mut record = [0; 56];
            file.read_at(start + at, &mut record)?;
            let record = Fields(&record);
            ensure!(record.u32(0) == END_64, "the 64-bit end record is not where it should be");
            (count, table_len, table) = (record.u64(32), record.u64(40), record.u64(48));
        }
        ensure!(table.checked_add(table_len).is_some_and(|end| end <= len), "the table of contents lies outside");
        ensure!(table_len <= LONGEST_TABLE, "a table of contents of {table_len} bytes");
        let mut bytes = vec![0; table_len as usize];
        file.read_at(start + table, &mut bytes)?;

        let mut members = BTreeMap::new();
        let mut rest = &bytes[..];
        let mut root: Option<String> = None;
        for i in 0..count {
            let (entry, after) = Entry::parse(rest).with_context(|| format!("member {i} of the table of contents"))?;
            rest = after;
            let data = entry.locate(file, start, table).with_context(|| format!("member `{}`", entry.name))?;
            let (top, name) = entry.name.split_once('/').unwrap_or(("", &entry.name));
            let root = root.get_or_insert_with(|| top.to_owned());
            ensure!(root == top, "members under both `{root}` and `{top}`");
            let member = Member { data, len: entry.len, crc: entry.crc };
            ensure!(members.insert(name.to_owned(), member).is_none(), "`{name}` is there twice");
        }
        Ok(Self { members })
    }

    /// The members, by name.
    pub fn members(&self) -> impl Iterator<Item = (&str, &Member)> {
        self.members.iter().map(|(name, member)| (name.as_str(), member))
    }

    /// Where this member lies.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.get(name)
    }

    /// The bytes of a small member, checked against its CRC.
    ///
    /// # Errors
    /// It is not there, longer than `most`, or damaged.
    pub fn read<R: ReadAt + ?Sized>(&self, file: &R, name: &str, most: u64) -> Result<Vec<u8>> {
        let member = self.member(name).with_context(|| format!("the archive has no `{name}`"))?;
        ensure!(member.len <= most, "`{name}` has {} bytes, and {most} at most are expected", member.len);
        let mut bytes = vec![0; member.len as usize];
        file.read_at(member.data, &mut bytes)?;
        ensure!(
            !member.has_checksum() || crc32fast::hash(&bytes) == member.crc,
            "`{name}` does not have the checksum that the archive gives"
        );
        Ok(bytes)
    }
}

/// Little-endian fields at fixed places.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().expect("a slice of N bytes")
    }
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

struct Entry {
    name: String,
    crc: u32,
    len: u64,
    header: u64,
}

impl Entry {
    fn parse(bytes: &[u8]) -> Result<(Self, &[u8])> {
        ensure!(bytes.len() >= 46, "it ends in the middle");
        let fields = Fields(bytes);
        ensure!(fields.u32(0) == CENTRAL, "it has no signature");
        ensure!(fields.u16(8) & 1 == 0, "it is encrypted");
        ensure!(fields.u16(10) == 0, "it is compressed (method {}), which torch never does", fields.u16(10));
        let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(fields.u16(at)));
        ensure!(bytes.len() >= 46 + name + extra + comment, "it ends in the middle");
        let (body, rest) = bytes[46..].split_at(name + extra + comment);
        let mut entry = Self {
            name: std::str::from_utf8(&body[..name]).context("a name that is not UTF-8")?.to_owned(),
            crc: fields.u32(16),
            len: fields.u32(24).into(),
            header: fields.u32(42).into(),
        };
        let mut stored = u64::from(fields.u32(20));
        let mut extra = &body[name..name + extra];
        while extra.len() >= 4 {
            let (id, len) = (Fields(extra).u16(0), usize::from(Fields(extra).u16(2)));
            ensure!(extra.len() >= 4 + len, "an extra field ends in the middle");
            if id == 1 {
                // Only the fields that did not fit are there, in this order.
                let mut wide = extra[4..4 + len].chunks_exact(8).map(|field| Fields(field).u64(0));
                for field in [&mut entry.len, &mut stored, &mut entry.header] {
                    if *field == u64::from(SEE_64) {
                        *field = wide.next().context("a 64-bit field is missing")?;
                    }
                }
            }
            extra = &extra[4 + len..];
        }
        ensure!(stored == entry.len, "stored data of {stored} bytes for a member of {}", entry.len);
        Ok((entry, rest))
    }

    /// Where the data begins: behind the local header, whose name and extra field have their own lengths.
    fn locate<R: ReadAt + ?Sized>(&self, file: &R, start: u64, table: u64) -> Result<u64> {
        let mut header = [0; 30];
        if self.header.checked_add(30).is_none_or(|end| end > table) {
            bail!("its header lies outside");
        }
        file.read_at(start + self.header, &mut header)?;
        let fields = Fields(&header);
        ensure!(fields.u32(0) == LOCAL, "its header has no signature");
        let data = self.header + 30 + u64::from(fields.u16(26)) + u64::from(fields.u16(28));
        ensure!(data.checked_add(self.len).is_some_and(|end| end <= table), "its data lies outside");
        Ok(start + data)
    }
}
