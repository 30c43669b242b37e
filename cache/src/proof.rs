//! [`Proof`]: why a file need not be read again, and when that may be believed.

use std::{
    path::Path,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use flow_core::{Digest, Entry};
use rustix::{
    fs::{AtFlags, CWD, FileType, statat},
    io::Errno,
};

/// What changes when a file's content changes. Times in ns since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub size: u64,
    pub mtime: i64,
    pub ctime: i64,
    pub ino: u64,
}

impl Stat {
    /// When the content last changed, at most. A modification time in the future was set by hand (an archive), and
    /// setting it left its mark in the other.
    fn changed(&self, now: i64) -> i64 {
        if self.mtime > now { self.ctime } else { self.mtime.max(self.ctime) }
    }
}

/// A [`Stat`] and what else one system call says of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    pub stat: Stat,
    pub kind: FileType,
    pub mode: u32,
    pub links: u64,
    pub dev: u64,
}

impl Meta {
    /// Of what is at `path`; a symbolic link is followed if `follow`.
    pub fn of(path: &Path, follow: bool) -> std::io::Result<Self> {
        let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        Ok(Self::from_raw(&statat(CWD, path, flags)?))
    }

    /// As [`Meta::of`]; `None` when nothing is there.
    pub fn find(path: &Path, follow: bool) -> std::io::Result<Option<Self>> {
        match Self::of(path, follow) {
            Ok(meta) => Ok(Some(meta)),
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::NOTDIR)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// As [`Meta::find`], of a name in an open directory.
    pub fn at(dir: std::os::fd::BorrowedFd<'_>, name: &Path, flags: AtFlags) -> std::io::Result<Option<Self>> {
        match statat(dir, name, flags) {
            Ok(raw) => Ok(Some(Self::from_raw(&raw))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Of an open file.
    pub fn of_file(file: &std::fs::File) -> std::io::Result<Self> {
        Ok(Self::from_raw(&rustix::fs::fstat(file)?))
    }

    // The field types differ between architectures.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
    fn from_raw(raw: &rustix::fs::Stat) -> Self {
        let ns = |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            stat: Stat {
                size: raw.st_size as u64,
                mtime: ns(raw.st_mtime as i64, raw.st_mtime_nsec as i64),
                ctime: ns(raw.st_ctime as i64, raw.st_ctime_nsec as i64),
                ino: raw.st_ino as u64,
            },
            kind: FileType::from_raw_mode(raw.st_mode),
            mode: raw.st_mode as u32 & 0o7777,
            links: u64::from(raw.st_nlink),
            dev: raw.st_dev as u64,
        }
    }

    pub fn is_file(&self) -> bool {
        self.kind == FileType::RegularFile
    }

    pub fn executable(&self) -> bool {
        self.mode & 0o111 != 0
    }
}

/// The name of a file in memos: 128 bits of a hash, short and without the path's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id(pub [u8; 16]);

impl Id {
    /// Of a file at an absolute path.
    pub fn path(path: &Path) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"flow path\n").update(path.as_os_str().as_encoded_bytes());
        Self(first_half(hasher.finalize().as_bytes()))
    }

    /// Of an object of this cache; the two variants (plain and executable) are two files.
    pub fn object(entry: &Entry) -> Self {
        let mut id = first_half(&entry.digest.0);
        id[15] ^= u8::from(entry.executable);
        Self(id)
    }
}

fn first_half(bytes: &[u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&bytes[..16]);
    half
}

/// "While a file has this stat, it has this digest."
///
/// Two things could make that a lie, and both are looked at:
///
/// * *Racy timestamps.* Two writes within one tick of the file system's clock leave the same stat. So, as git does,
///   a stat is believed only if it was older than [`RACY`] when reading began. Until then the file is hashed again,
///   which is cheap, as only small files may be that fresh: for big ones on a file system with fine timestamps the
///   reader waits [`TICK`] first, and the stat is good at once.
/// * *Power loss.* The stat may have reached the disk and the data not. So unless flow itself synced the file, or it
///   lay unchanged for [`WRITTEN_BACK`], the proof counts only until the machine boots anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proof {
    pub stat: Stat,
    pub digest: Digest,
    /// The boot that it is bound to; 0 when to none.
    pub boot: u32,
}

/// Coarse file systems count in 2 s.
const RACY: i64 = 2_000_000_000;
/// Longer than a tick of the kernel's clock (10 ms at most), which stamps files on fine file systems.
const TICK: i64 = 20_000_000;
/// From here on it is better to wait a tick than to hash twice.
const BIG: u64 = 8 << 20;
/// Far longer than the kernel keeps dirty pages (30 s).
const WRITTEN_BACK: i64 = 600_000_000_000;

impl Proof {
    /// For a file whose content was read beginning at `began` (ns since 1970), and whose stat was the same before and
    /// after. `None` when it is too fresh to be believed.
    pub fn new(stat: Stat, digest: Digest, began: i64, synced: bool) -> Option<Self> {
        let old = began.saturating_sub(stat.changed(began)) > WRITTEN_BACK;
        let boot = if synced || old { 0 } else { this_boot() };
        settled(&stat, began).then_some(Self { stat, digest, boot })
    }

    /// Whether it speaks for a file with this stat, now.
    pub fn holds(&self, stat: &Stat) -> bool {
        self.stat == *stat && (self.boot == 0 || self.boot == this_boot())
    }
}

/// Whether a stat that was the same before and after something was read, beginning at `began`, proves what was read.
pub(crate) fn settled(stat: &Stat, began: i64) -> bool {
    let age = began.saturating_sub(stat.changed(began));
    age > RACY || (waits(stat) && age >= TICK)
}

/// Waits until a big fresh file's stat can be believed. Returns the time when reading may begin.
pub(crate) fn wait_a_tick(stat: &Stat) -> i64 {
    let began = now();
    let left = stat.changed(began) + TICK - began;
    if waits(stat) && (1..=TICK).contains(&left) {
        std::thread::sleep(Duration::from_nanos(left as u64));
    }
    now()
}

/// Big, and with times finer than a second.
fn waits(stat: &Stat) -> bool {
    stat.size >= BIG && stat.ctime % 1_000_000_000 != 0
}

/// ns since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as i64)
}

pub(crate) fn this_boot() -> u32 {
    static BOOT: OnceLock<u32> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let id = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let hash = blake3::hash(&id);
        u32::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1], hash.as_bytes()[2], hash.as_bytes()[3]]).max(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(size: u64, changed: i64) -> Stat {
        Stat { size, mtime: changed, ctime: changed, ino: 1 }
    }

    #[test]
    fn fresh_stats_are_not_believed() {
        let (digest, at) = (Digest::of(b""), 1_700_000_000_123_456_789);
        assert_eq!(Proof::new(stat(1, at), digest, at + RACY, true), None);
        assert!(Proof::new(stat(1, at), digest, at + RACY + 1, true).is_some());
        assert_eq!(Proof::new(stat(1, at), digest, at - 1, true), None, "a clock that is behind");
        assert_eq!(Proof::new(stat(BIG, at), digest, at + TICK - 1, true), None);
        assert!(Proof::new(stat(BIG, at), digest, at + TICK, true).is_some());
        let coarse = at / 1_000_000_000 * 1_000_000_000;
        assert_eq!(Proof::new(stat(BIG, coarse), digest, coarse + TICK, true), None);
        let restored = Stat { mtime: 5, ..stat(1, at) };
        assert_eq!(Proof::new(restored, digest, at + 1, true), None, "utimes does not make a file old");
        let future = Stat { mtime: i64::MAX, ..stat(1, at) };
        assert!(Proof::new(future, digest, at + RACY + 1, true).is_some(), "nor young for ever");
    }

    #[test]
    fn what_was_not_synced_counts_until_the_next_boot() {
        let (digest, at) = (Digest::of(b""), 1_700_000_000_123_456_789);
        let proof = Proof::new(stat(1, at), digest, at + 2 * RACY, false).unwrap();
        assert!(proof.holds(&stat(1, at)));
        assert!(!Proof { boot: proof.boot ^ 1 | 2, ..proof }.holds(&stat(1, at)));
        assert_eq!(Proof::new(stat(1, at), digest, at + 2 * RACY, true).unwrap().boot, 0);
        assert_eq!(Proof::new(stat(1, at), digest, at + WRITTEN_BACK + 1, false).unwrap().boot, 0);
        for other in
            [stat(2, at), stat(1, at + 1), Stat { ino: 2, ..stat(1, at) }, Stat { ctime: at + 1, ..stat(1, at) }]
        {
            assert!(!proof.holds(&other));
        }
    }

    #[test]
    fn the_two_variants_of_an_object_are_two_files() {
        let plain = Entry { name: "a".into(), digest: Digest::of(b"x"), size: 1, executable: false };
        let executable = Entry { executable: true, name: "b".into(), ..plain.clone() };
        assert_ne!(Id::object(&plain), Id::object(&executable));
        assert_eq!(Id::object(&plain), Id::object(&Entry { name: "c".into(), ..plain }));
        assert_ne!(Id::path(Path::new("/a")), Id::path(Path::new("/b")));
    }
}
