//! The zip archives that torch writes: members stored as they are, their data aligned.
//!
//! [`frame`] lays out an archive around a payload that is written elsewhere and may have any length; [`Archive`]
//! reads one that lies anywhere in a file. Compression, encryption and several volumes do not occur and are refused.

mod read;
mod write;

pub use read::{Archive, Member, ReadAt};
pub use write::{Data, Frame, frame};

/// Data begins at multiples of this, from the start of the archive: torch maps it and wants it aligned.
pub const ALIGNMENT: u64 = 64;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
/// A 32-bit field with this value says: look into the 64-bit one.
const SEE_64: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn small(members: &[(&str, &[u8])]) -> Vec<u8> {
        let members: Vec<_> = members.iter().map(|&(name, bytes)| (name, Data::Bytes(bytes))).collect();
        let frame = frame("archive", &members);
        assert!(frame.after.is_empty());
        frame.before
    }

    #[test]
    fn members_come_back_aligned_and_with_their_checksums() {
        let bytes = small(&[("data.pkl", b"\x80\x02N."), ("data/0", &[7; 1000]), ("version", b"3\n")]);
        let archive = Archive::open(&bytes[..], 0, bytes.len() as u64).unwrap();
        let names: Vec<_> = archive.members().map(|(name, _)| name).collect();
        assert_eq!(names, [".data/serialization_id", "data.pkl", "data/0", "version"]);
        for (name, member) in archive.members() {
            assert_eq!(member.data % ALIGNMENT, 0, "{name}");
            let data = archive.read(&bytes[..], name, 1 << 20).unwrap();
            assert_eq!(member.crc, crc32fast::hash(&data));
        }
        assert_eq!(archive.read(&bytes[..], "data/0", 1 << 20).unwrap(), [7; 1000]);
        assert!(archive.read(&bytes[..], "data/0", 999).is_err());
        assert!(archive.read(&bytes[..], "data/1", 999).is_err());
    }

    #[test]
    fn the_same_content_gives_the_same_bytes_and_other_content_another_id() {
        assert_eq!(small(&[("a", b"1")]), small(&[("a", b"1")]));
        let id = |bytes: &[u8]| {
            Archive::open(bytes, 0, bytes.len() as u64).unwrap().read(bytes, ".data/serialization_id", 99).unwrap()
        };
        let (one, two) = (small(&[("a", b"1")]), small(&[("a", b"2")]));
        assert_ne!(id(&one), id(&two));
        assert_eq!(id(&one).len(), 40);
        assert!(id(&one).iter().all(u8::is_ascii_digit));
    }

    /// A payload of 6 GiB and one of 3 GiB behind it, as holes in a file.
    #[test]
    fn payloads_and_offsets_beyond_32_bits() {
        let mut file = tempfile::tempfile().unwrap();
        let len = 6u64 << 30;
        let frame = |len, crc| {
            frame(
                "archive",
                &[
                    ("data.pkl", Data::Bytes(b"N.")),
                    ("data/0", Data::Elsewhere { len, crc }),
                    ("version", Data::Bytes(b"3\n")),
                ],
            )
        };
        let big = frame(len, 0x1234_5678);
        assert_eq!(frame(len, 0).total(len), big.total(len), "the checksum does not change the layout");
        let start = 4096u64;
        use std::io::{Seek, SeekFrom};
        file.seek(SeekFrom::Start(start)).unwrap();
        file.write_all(&big.before).unwrap();
        file.seek(SeekFrom::Current(len as i64)).unwrap();
        file.write_all(&big.after).unwrap();
        let archive = Archive::open(&file, start, big.total(len)).unwrap();
        let member = archive.member("data/0").unwrap();
        assert_eq!((member.len, member.crc), (len, 0x1234_5678));
        assert_eq!(member.data, start + big.before.len() as u64);
        assert_eq!(archive.read(&file, "version", 9).unwrap(), b"3\n");
        assert!(archive.member("version").unwrap().data > start + len);
    }

    proptest! {
        #[test]
        fn a_damaged_archive_is_members_inside_of_it_or_an_error(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = small(&[("data.pkl", b"\x80\x02N."), ("data/0", &[7; 300]), ("version", b"3\n")]);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            for bytes in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
                let Ok(archive) = Archive::open(bytes, 0, bytes.len() as u64) else { continue };
                for (_, member) in archive.members() {
                    prop_assert!(member.data + member.len <= bytes.len() as u64);
                }
            }
        }
    }
}
