//! Archives: results in one file, for machines that share no network. A tar of the same names as in a remote, objects
//! before the records that name them, inside of zstd.
//!
//! It is read as what a stranger sent: no name of it is ever used as a path. A name must be that of an object or of a
//! record, an object must have its digest, a record is believed as one from a remote is. Results become visible one
//! by one, each whole; what comes before the place where an archive is cut off, stays.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use flow_core::{Digest, Key};

use super::{LONGEST_RECORD, Trust, accept, object_names, record_name, send, sign::Signer};
use crate::{
    cache::Cache,
    files::{create_new, fresh, remove_all},
    record::{Origin, ResultRecord, marked},
};

const LEVEL: i32 = 3;
/// An archive has no more bytes behind its last entry: tar's end, in whole blocks.
const END: u64 = 64 << 10;
/// What an archive begins with: the magic number of zstd.
pub const ARCHIVE: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What an archive held, or holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Archived {
    /// Results.
    pub results: usize,
    /// How many of them by their records alone.
    pub bare: usize,
    /// Objects.
    pub objects: usize,
    /// Bytes of these.
    pub bytes: u64,
    /// Results that were not believed; why is a warning of the cache.
    pub refused: usize,
}

/// What a name in an archive stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Object(Digest),
    Record(Key),
}

impl Name {
    /// `None` for every name that we would not have written.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?;
        let last = name.rsplit('/').next()?;
        let (parsed, written) = match last.strip_suffix(".json") {
            Some(hex) => {
                let key: Key = hex.parse().ok()?;
                (Self::Record(key), record_name(&key))
            }
            None => {
                let digest: Digest = last.parse().ok()?;
                let [plain, _] = object_names(&digest);
                (Self::Object(digest), plain)
            }
        };
        (written == name).then_some(parsed)
    }
}

impl Cache {
    /// Writes results with their objects to a file, which is replaced when all is written. Records of one's own are
    /// signed, if there is a key for that.
    ///
    /// # Errors
    /// A result or one of its objects is not there or damaged; the file cannot be written.
    pub fn export(&self, keys: &[Key], to: &Path, trust: &Trust) -> Result<Archived> {
        let failed = || format!("cannot write {}", to.display());
        let signer = trust.sign_key.as_deref().map(Signer::read).transpose()?;
        let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (temp, file) = fresh(dir, |temp| create_new(temp, 0o644)).with_context(failed)?;
        let written = self.write_archive(keys, &file, signer.as_ref()).and_then(|archived| {
            file.sync_all().and_then(|()| fs::rename(&temp, to)).with_context(failed)?;
            Ok(archived)
        });
        if written.is_err() {
            let _ = fs::remove_file(&temp);
        }
        written
    }

    fn write_archive(&self, keys: &[Key], file: &File, signer: Option<&Signer>) -> Result<Archived> {
        let failed = "cannot write the archive";
        let mut encoder = zstd::stream::write::Encoder::new(BufWriter::new(file), LEVEL).context(failed)?;
        encoder.include_checksum(true).context(failed)?;
        let mut tar = tar::Builder::new(encoder);
        let mut archived = Archived::default();
        let mut seen = HashSet::new();
        for key in keys {
            // Looks at every object, and puts aside what is damaged. Of what is only known the record goes alone: keys
            // are made of it.
            let whole = self.lookup(key)?.is_some();
            ensure!(whole || self.absent(key)?.is_some(), "the result {} is not in the cache", key.short());
            let path = self.record_path(key);
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let record = ResultRecord::parse(&bytes, key).map_err(|bad| anyhow!("{}: {bad}", path.display()))?;
            let record = ResultRecord { freed: !whole, ..record };
            let entries = record.tree.entries().iter().filter(|_| whole);
            for entry in entries.filter(|entry| seen.insert(entry.digest)) {
                let object = self.entry_path(entry);
                let source = File::open(&object).with_context(|| format!("cannot read {}", object.display()))?;
                append(&mut tar, &object_names(&entry.digest)[0], entry.size, source).context(failed)?;
                archived.objects += 1;
                archived.bytes += entry.size;
            }
            let bytes = match &record.shared {
                Some(_) => marked(&bytes, record.freed)?,
                None => {
                    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                    let key = signer.map(Signer::public);
                    let (by, time) = (send::who(), time.as_secs_f64());
                    let origin =
                        Origin { by, time, compressed: std::collections::BTreeMap::new(), key, signature: None };
                    send::signed(record, origin, signer)?
                }
            };
            append(&mut tar, &record_name(key), bytes.len() as u64, bytes.as_slice()).context(failed)?;
            archived.results += 1;
            archived.bare += usize::from(!whole);
        }
        tar.into_inner().and_then(zstd::Encoder::finish).and_then(|mut out| out.flush()).context(failed)?;
        Ok(archived)
    }

    /// Takes the results of an archive.
    ///
    /// # Errors
    /// It is cut off, damaged or no archive, or the cache cannot be written. What came before stays.
    pub fn import(&self, from: impl Read, trust: &Trust) -> Result<Archived> {
        let failed = || "cannot make a directory in the cache".to_owned();
        let (dir, ()) = fresh(&self.tmp(), |dir| fs::create_dir(dir)).with_context(failed)?;
        let mut archived = Archived::default();
        let taken = self.take_archive(from, trust, &dir, &mut archived);
        let _ = remove_all(&dir);
        let n = archived.results;
        taken.map(|()| archived).with_context(|| match n {
            0 => "the archive cannot be used".to_owned(),
            _ => format!("the archive cannot be used to its end; the {n} results before are there now"),
        })
    }

    fn take_archive(&self, from: impl Read, trust: &Trust, dir: &Path, archived: &mut Archived) -> Result<()> {
        let damaged = "it is cut off or damaged, or no archive of flow";
        let mut decoder = zstd::stream::read::Decoder::with_buffer(BufReader::new(from)).context(damaged)?;
        let mut tar = tar::Archive::new(&mut decoder);
        let mut objects: HashMap<Digest, PathBuf> = HashMap::new();
        // Raw: an entry that is a name for the next one has any length, and would be read into memory.
        for entry in tar.entries().context(damaged)?.raw(true) {
            let mut entry = entry.context(damaged)?;
            let name = entry.path_bytes().into_owned();
            let shown =
                || String::from_utf8_lossy(&name).chars().filter(|c| !c.is_control()).take(120).collect::<String>();
            let parsed = Name::parse(&name).filter(|_| entry.header().entry_type() == tar::EntryType::Regular);
            match parsed {
                None => bail!("`{}` is nothing that flow puts into an archive", shown()),
                Some(Name::Object(digest)) => {
                    let path = dir.join(digest.to_string());
                    // What it has is written without knowing yet what for: a few bytes may stand for any number of them.
                    let (size, room) = (entry.size(), room(dir)?);
                    ensure!(
                        size <= room,
                        "`{}` has {size} bytes, and {} room for {room}",
                        shown(),
                        self.root().display()
                    );
                    let size = copy_object(&mut entry, &path, digest).map_err(|error| match error.kind() {
                        // Who reads a cut-off archive is told so; all else is this machine's.
                        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::Other => {
                            anyhow::Error::new(error).context(damaged)
                        }
                        _ => anyhow::Error::new(error).context(format!("cannot write {}", path.display())),
                    })?;
                    ensure!(size.is_some(), "`{}` is not what its name says", shown());
                    archived.objects += 1;
                    archived.bytes += size.unwrap_or(0);
                    objects.insert(digest, path);
                }
                Some(Name::Record(key)) => {
                    let mut bytes = Vec::new();
                    (&mut entry).take(LONGEST_RECORD as u64 + 1).read_to_end(&mut bytes).context(damaged)?;
                    ensure!(bytes.len() <= LONGEST_RECORD, "a record is longer than any can be");
                    match accept(&key, bytes.into(), &trust.trusted_keys) {
                        Ok(result) => {
                            if result.has_objects() {
                                let files: Vec<_> =
                                    objects.iter().map(|(digest, path)| (*digest, path.clone())).collect();
                                self.adopt(&result, &files)?;
                            } else {
                                self.keep_absent(&result)?;
                                archived.bare += 1;
                            }
                            archived.results += 1;
                        }
                        Err(error) => {
                            self.warn(format!("the record {} is not taken: {error:#}", key.short()));
                            archived.refused += 1;
                        }
                    }
                }
            }
        }
        // The checksum comes last.
        let rest = io::copy(&mut (&mut decoder).take(END + 1), &mut io::sink()).context(damaged)?;
        ensure!(rest <= END, "it goes on behind its end");
        ensure!(archived.results + archived.refused > 0, "it holds no result: {damaged}");
        Ok(())
    }
}

fn append(tar: &mut tar::Builder<impl Write>, name: &str, size: u64, content: impl Read) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    tar.append_data(&mut header, name, content)
}

/// The bytes that may still be written to a directory.
fn room(dir: &Path) -> Result<u64> {
    let found = rustix::fs::statvfs(dir).with_context(|| format!("cannot ask for the room in {}", dir.display()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// The length of the object; `None` when it is another.
fn copy_object(from: &mut impl Read, to: &Path, digest: Digest) -> io::Result<Option<u64>> {
    let mut file = File::create(to)?;
    let mut hasher = blake3::Hasher::new();
    let (mut buffer, mut size) = (vec![0; 1 << 20], 0);
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            n => {
                hasher.update(&buffer[..n]);
                file.write_all(&buffer[..n])?;
                size += n as u64;
            }
        }
    }
    Ok((hasher.finalize().as_bytes() == &digest.0).then_some(size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_our_own_names_are_names() {
        let digest = Digest::of(b"x");
        let hex = digest.to_string();
        let name = |name: String| Name::parse(name.as_bytes());
        assert_eq!(name(format!("objects/{}/{hex}", &hex[..2])), Some(Name::Object(digest)));
        assert_eq!(name(format!("results/{}/{hex}.json", &hex[..2])), Some(Name::Record(Key(digest.0))));
        for bad in [
            format!("/objects/{}/{hex}", &hex[..2]),
            format!("objects/../objects/{}/{hex}", &hex[..2]),
            format!("objects/zz/{hex}"),
            format!("results/{}/{hex}", &hex[..2]),
            format!("objects/{}/{hex}/", &hex[..2]),
            hex,
            "../../etc/passwd".into(),
            String::new(),
        ] {
            assert_eq!(name(bad.clone()), None, "{bad}");
        }
    }

    /// The type, name, claimed size and content of an entry: files, links, directories, names of next entries.
    fn hostile() -> impl Strategy<Value = (u8, String, u64, Vec<u8>)> {
        let content = prop::collection::vec(any::<u8>(), 0..2000);
        (prop::sample::select(b"00001256LKxgS".to_vec()), 0..10, any::<bool>(), content).prop_map(
            |(kind, name, honest, content)| {
                let [own, other] = [Digest::of(&content), Digest::of(b"other")];
                let name = match name {
                    0 => "../../x".into(),
                    1 => "/tmp/flow-was-here".into(),
                    2 => "objects/../../../x".into(),
                    3 => format!("objects/aa/../{own}"),
                    4 => record_name(&Key(other.0)),
                    5 => object_names(&other)[0].clone(),
                    6 => object_names(&own)[1].clone(),
                    7 => "././@LongLink".into(),
                    _ => object_names(&own)[0].clone(),
                };
                let size = if honest { content.len() as u64 } else { u64::MAX / 4 };
                (kind, name, size, content)
            },
        )
    }

    proptest! {
        #[test]
        fn whatever_is_sent_nothing_panics_and_nothing_leaves_the_cache(bytes: Vec<u8>, names: Vec<String>, packed: bool) {
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::open(&dir.path().join("a/cache")).unwrap();
            let mut sent = bytes.clone();
            if packed {
                let mut tar = tar::Builder::new(Vec::new());
                for name in &names {
                    let mut header = tar::Header::new_old();
                    let raw = format!("../{name}");
                    let n = raw.len().min(100);
                    header.as_old_mut().name[..n].copy_from_slice(&raw.as_bytes()[..n]);
                    header.set_size(bytes.len() as u64);
                    header.set_cksum();
                    tar.append(&header, bytes.as_slice()).unwrap();
                }
                sent = zstd::encode_all(tar.into_inner().unwrap().as_slice(), 1).unwrap();
            }
            let taken = cache.import(sent.as_slice(), &Trust::default());
            prop_assert!(taken.is_err() || names.is_empty());
            prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
            prop_assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
            prop_assert_eq!(cache.results().count(), 0);
        }

        #[test]
        fn an_archive_of_hostile_entries_is_an_error(entries in prop::collection::vec(hostile(), 1..6)) {
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::open(&dir.path().join("a/cache")).unwrap();
            let mut tar = tar::Builder::new(Vec::new());
            for (kind, name, size, content) in &entries {
                let mut header = tar::Header::new_gnu();
                let n = name.len().min(100);
                header.as_old_mut().name[..n].copy_from_slice(&name.as_bytes()[..n]);
                header.as_old_mut().linkname[..3].copy_from_slice(b"../");
                header.set_entry_type(tar::EntryType::new(*kind));
                header.set_size(*size);
                header.set_cksum();
                tar.append(&header, content.as_slice()).unwrap();
            }
            let sent = zstd::encode_all(tar.into_inner().unwrap().as_slice(), 1).unwrap();
            // There is no good record, so that even good objects are no archive.
            let taken = cache.import(sent.as_slice(), &Trust::default());
            prop_assert!(taken.is_err() || taken.is_ok_and(|taken| taken.results == 0 && taken.refused > 0));
            prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
            prop_assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
            for place in ["objects", "results", "tmp"] {
                prop_assert_eq!(fs::read_dir(cache.root().join(place)).unwrap().count(), 0, "{}", place);
            }
        }

        #[test]
        fn whatever_a_record_says_it_is_read_without_a_panic(bytes: Vec<u8>, name: String, size: u64, cost: f64) {
            let key = Key([1; 32]);
            prop_assert!(accept(&key, bytes.into(), &[]).is_err());
            let parts = flow_core::KeyParts {
                format: flow_core::KEY_FORMAT, kind: "k".into(), version: 1, params: name.clone().into(),
                inputs: std::collections::BTreeMap::new(),
            };
            let key = parts.key();
            let digest = Digest::of(b"");
            let entries = [("a", size), ("b", u64::MAX), (name.as_str(), 0)].map(|(name, size)| {
                serde_json::json!({"name": name, "digest": digest, "size": size})
            });
            let record = serde_json::json!({"format": 1, "key": key, "parts": parts, "tree": {"entries": entries},
                "cost": cost, "created": 0.0, "host": "h", "version": "0"});
            if let Ok(result) = accept(&key, record.to_string().into(), &[]) {
                prop_assert!(result.record.tree.entries().iter().all(|entry| !entry.name.contains("..") || !entry.name.split('/').any(|part| part == "..")));
                prop_assert_eq!(size, 0);
            }
        }
    }
}
