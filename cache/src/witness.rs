//! Witnesses: "nothing is to be done" is a conclusion from what lies on the disk, and a witness is the list of all that
//! was looked at to come to it. While every file and directory on the list is as it was, the conclusion holds, and
//! whoever drew it need not draw it again: no pipeline is read, no key is made, each path is asked for its stat.
//!
//! While one is being taken ([`Cache::take_witness`]), every method of [`Cache`] that looks at a file notes what it saw.
//! A stat is believed as everywhere (see `proof`): what was written so recently that its times prove nothing stands
//! on the list with its digest, and is read again.
//!
//! File: `flowseen1\n`, the BLAKE3 of the rest, then guard, boot, the oldest use of a record, the conclusion after its
//! length, and blocks: a directory, the length of what follows, and the sights in it. Little-endian.

use std::{
    fs::{self, File},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Result;
use flow_core::Digest;
use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use crate::{
    cache::Cache,
    files::{Explain as _, write_atomic},
    lookup::USED_WITHIN,
    memo::{Reader, put_len},
    proof::{Meta, Stat, now, settled, this_boot},
    trust::read_file,
};

const MAGIC: &[u8] = b"flowseen1\n";
/// Sights of one directory that are looked at by one thread.
const BLOCK: usize = 256;
/// Symbolic links were followed.
const FOLLOWED: u8 = 1;
/// Nothing was there.
const ABSENT: u8 = 2;
/// Too fresh for its stat to prove anything: a digest stands after the stat.
const FRESH: u8 = 4;

/// What was seen at a path.
#[derive(Clone, Debug, PartialEq)]
struct Sight {
    path: PathBuf,
    /// Where the last part of the path begins.
    name: usize,
    follow: bool,
    /// `None`: nothing was there.
    stat: Option<Stat>,
    /// Of a fresh file.
    digest: Option<Digest>,
}

/// A witness that is being taken.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    sights: Vec<Sight>,
    /// The oldest modification of a record: when it has to be touched again.
    used: Option<i64>,
    /// Something was seen that no stat can stand for.
    spoiled: bool,
}

impl Cache {
    /// From now on, until [`Cache::keep_witness`] or [`Cache::drop_witness`], all that is looked at is noted.
    pub fn take_witness(&self) {
        *self.witness() = Some(Witness::default());
    }

    /// Forgets what was noted: the conclusion was not reached.
    pub fn drop_witness(&self) {
        *self.witness() = None;
    }

    /// Notes a file that was read by somebody else, who found this content. If it has another one by now, the witness
    /// is worth nothing.
    pub fn saw_file(&self, path: &Path, digest: &Digest) {
        let same = self.digest_path(path).is_ok_and(|tree| tree.entries().iter().all(|entry| entry.digest == *digest));
        self.spoil_unless(same);
    }

    /// Notes that somebody else found nothing at a path, or (`Some`) a directory or something that is none.
    pub fn saw(&self, path: &Path, directory: Option<bool>) {
        let meta = Meta::find(path, true).ok();
        let found = meta.map(|meta| meta.map(|meta| meta.kind == FileType::Directory));
        self.spoil_unless(found == Some(directory));
        self.note(path, true, meta.flatten().as_ref(), None);
    }

    /// Keeps the conclusion under `name` (any text that tells it from others) for as long as all that was looked at
    /// since [`Cache::take_witness`] stays as it is. `guard` stands for all that is not on the disk: whoever asks with
    /// another one is not answered.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep_witness(&self, name: &str, guard: &Digest, conclusion: &[u8]) -> Result<()> {
        let Some(witness) = self.witness().take().filter(|witness| !witness.spoiled) else { return Ok(()) };
        let Some(bytes) = witness.save(guard, conclusion) else { return Ok(()) };
        self.write_witness(&self.witness_path(name), &bytes)
    }

    /// The conclusion that was kept under this name and guard, if it still holds.
    #[must_use]
    pub fn ask_witness(&self, name: &str, guard: &Digest) -> Option<Vec<u8>> {
        // What is found good must not vanish before that is said.
        let _inside = self.0.holds.enter().ok()?;
        let path = self.witness_path(name);
        let mut bytes = fs::read(&path).ok()?;
        let (conclusion, grown) = recall(&bytes, guard)?;
        let conclusion = conclusion.to_owned();
        if !grown.is_empty() {
            // What was read again because it was fresh is old enough by now.
            grown.into_iter().for_each(|at| bytes[at] &= !FRESH);
            seal(&mut bytes);
            self.write_witness(&path, &bytes).ok();
        }
        Some(conclusion)
    }

    fn write_witness(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        // Not synced: one that a power loss damaged is ignored.
        write_atomic(&self.tmp(), path, bytes, false, "witness:written")
            .explain(self.root(), || format!("write {}", path.display()))
    }

    fn witness_path(&self, name: &str) -> PathBuf {
        let hash = blake3::hash(name.as_bytes()).to_hex();
        self.root().join("state/memo").join(format!("{}.seen", &hash[..32]))
    }

    /// Notes what is at a path. `fresh`: its digest, if its stat proves nothing yet.
    pub(crate) fn note(&self, path: &Path, follow: bool, meta: Option<&Meta>, fresh: Option<Digest>) {
        let mut witness = self.witness();
        let Some(witness) = witness.as_mut() else { return };
        // A directory's names have no digest.
        let young = |meta: &Meta| meta.kind == FileType::Directory && !settled(&meta.stat, now());
        witness.spoiled |= meta.is_some_and(young);
        let stat = meta.map(|meta| meta.stat);
        witness.see(Sight::new(path, follow, stat, fresh));
    }

    /// Notes a record, which is never written to in place: its stat is good at once. `ages`: its use is to be noted again
    /// some day.
    pub(crate) fn note_record(&self, path: &Path, stat: &Stat, ages: bool) {
        let mut witness = self.witness();
        let Some(witness) = witness.as_mut() else { return };
        if ages {
            witness.used = Some(witness.used.map_or(stat.mtime, |used| used.min(stat.mtime)));
        }
        witness.see(Sight::new(path, false, Some(*stat), None));
    }

    fn spoil_unless(&self, good: bool) {
        if let Some(witness) = self.witness().as_mut() {
            witness.spoiled |= !good;
        }
    }
}

impl Witness {
    fn see(&mut self, sight: Option<Sight>) {
        self.spoiled |= sight.is_none();
        self.sights.extend(sight);
    }

    /// The file's bytes; `None` when one path was seen in two states.
    fn save(mut self, guard: &Digest, conclusion: &[u8]) -> Option<Vec<u8>> {
        self.sights.par_sort_by(|one, next| one.order().cmp(&next.order()));
        self.sights.dedup_by(|next, one| {
            let same = next.order() == one.order() && next.stat == one.stat;
            // Who only asked whether it is there did not read it.
            let agree = next.digest.is_none() || one.digest.is_none() || next.digest == one.digest;
            if same && agree {
                one.digest = one.digest.or(next.digest);
            }
            same && agree
        });
        if self.sights.windows(2).any(|pair| pair[0].order() == pair[1].order()) {
            return None;
        }
        let mut out = Vec::with_capacity(256 + conclusion.len() + 128 * self.sights.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; 32]);
        out.extend_from_slice(&guard.0);
        out.extend_from_slice(&this_boot().to_le_bytes());
        out.extend_from_slice(&self.used.unwrap_or(i64::MAX).to_le_bytes());
        put_len(&mut out, conclusion.len());
        out.extend_from_slice(conclusion);
        for sights in self.sights.chunk_by(|a, b| a.dir() == b.dir()) {
            let dir = sights[0].dir();
            for block in sights.chunks(BLOCK) {
                put_len(&mut out, dir.len());
                out.extend_from_slice(dir);
                let at = out.len();
                put_len(&mut out, 0);
                for sight in block {
                    sight.save(&mut out);
                }
                let len = (out.len() - at - 4) as u32;
                out[at..at + 4].copy_from_slice(&len.to_le_bytes());
            }
        }
        seal(&mut out);
        Some(out)
    }
}

impl Sight {
    /// Of a path that ends in a name; of one that does not (`/`, `..`) no witness can be taken.
    fn new(path: &Path, follow: bool, stat: Option<Stat>, digest: Option<Digest>) -> Option<Self> {
        let name = path.file_name()?.len();
        let plain = path.as_os_str().as_encoded_bytes().ends_with(path.file_name()?.as_encoded_bytes());
        let path = if plain { path.to_owned() } else { path.components().collect() };
        Some(Self { name: path.as_os_str().len() - name, path, follow, stat, digest })
    }

    /// The directory that the path is in, to its last `/`.
    fn dir(&self) -> &[u8] {
        &self.path.as_os_str().as_encoded_bytes()[..self.name]
    }

    /// Sights of one directory stand together, and those of one path follow each other.
    fn order(&self) -> (&[u8], &[u8], bool) {
        let (dir, name) = self.path.as_os_str().as_encoded_bytes().split_at(self.name);
        (dir, name, self.follow)
    }

    fn save(&self, out: &mut Vec<u8>) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let fresh = flag(self.digest.is_some(), FRESH | DIGEST);
        out.push(flag(self.follow, FOLLOWED) | flag(self.stat.is_none(), ABSENT) | fresh);
        let (_, name, _) = self.order();
        put_len(out, name.len());
        out.extend_from_slice(name);
        if let Some(Stat { size, mtime, ctime, ino }) = self.stat {
            [size, mtime as u64, ctime as u64, ino].iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
        }
        if let Some(digest) = &self.digest {
            out.extend_from_slice(&digest.0);
        }
    }
}

/// A digest stands after the stat, whether it is still needed or not.
const DIGEST: u8 = 8;

/// Writes the hash of what follows it.
fn seal(bytes: &mut [u8]) {
    let hash = blake3::hash(&bytes[MAGIC.len() + 32..]);
    bytes[MAGIC.len()..MAGIC.len() + 32].copy_from_slice(hash.as_bytes());
}

/// Looks at all that was seen. The conclusion, and where the flags of files stand that were fresh and are no longer.
fn recall<'a>(bytes: &'a [u8], guard: &Digest) -> Option<(&'a [u8], Vec<usize>)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (hash, rest) = rest.split_at_checked(32)?;
    let mut reader = Reader(rest);
    if reader.array()? != guard.0 || reader.array()? != this_boot().to_le_bytes() {
        return None;
    }
    // Uses are noted once a day, and that is for look-ups to do.
    if now().saturating_sub(reader.word()? as i64) >= USED_WITHIN || blake3::hash(rest).as_bytes() != hash {
        return None;
    }
    let len = reader.len()?;
    let conclusion = reader.take(len)?;
    let mut blocks = Vec::new();
    while !reader.0.is_empty() {
        let len = reader.len()?;
        let dir = reader.take(len)?;
        let len = reader.len()?;
        blocks.push((dir, reader.take(len)?));
    }
    let same = AtomicBool::new(true);
    let look = |&(dir, sights): &(&[u8], &'a [u8])| {
        // One that is not as it was is enough: the others need not be looked at.
        let grown = if same.load(Ordering::Relaxed) { look_at(bytes, dir, sights) } else { None };
        if grown.is_none() {
            same.store(false, Ordering::Relaxed);
        }
        grown
    };
    let grown: Option<Vec<Vec<usize>>> =
        if blocks.len() < 4 { blocks.iter().map(look).collect() } else { blocks.par_iter().map(look).collect() };
    Some((conclusion, grown?.concat()))
}

/// Looks at the sights of a directory. `None` when one is not as it was.
fn look_at(whole: &[u8], dir: &[u8], sights: &[u8]) -> Option<Vec<usize>> {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
    let dir = Path::new(OsStr::from_bytes(dir));
    let open = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let open = open.ok().map(File::from);
    let mut grown = Vec::new();
    let mut reader = Reader(sights);
    while !reader.0.is_empty() {
        let at = reader.0.as_ptr() as usize - whole.as_ptr() as usize;
        let [flags] = reader.array()?;
        let len = reader.len()?;
        let name = OsStr::from_bytes(reader.take(len)?);
        let flag = if flags & FOLLOWED == 0 { AtFlags::SYMLINK_NOFOLLOW } else { AtFlags::empty() };
        // In a directory that is gone, nothing is.
        let found = open.as_ref().map(|open| Meta::at(open.as_fd(), Path::new(name), flag));
        if flags & ABSENT != 0 {
            match found {
                None | Some(Ok(None)) => continue,
                Some(_) => return None,
            }
        }
        let found = found?.ok()??.stat;
        let [size, mtime, ctime, ino] = [reader.word()?, reader.word()?, reader.word()?, reader.word()?];
        if found != (Stat { size, mtime: mtime as i64, ctime: ctime as i64, ino }) {
            return None;
        }
        if flags & DIGEST == 0 {
            continue;
        }
        let digest = Digest(reader.array()?);
        if flags & FRESH != 0 {
            let read = read_file(&dir.join(name), false).ok()?;
            if read.digest != digest {
                return None;
            }
            if read.proof.is_some() && read.stat == found {
                grown.push(at);
            }
        }
    }
    Some(grown)
}
