//! `flow.lock`: what each URL gave when it was first seen, so that everyone gets the same.
//!
//! TOML, one table a URL, sorted, so that two people's additions merge as text:
//!
//! ```toml
//! ["https://example.org/a.gz"]
//! digest = "…64 hexadecimal digits: the digest of the tree that the fetch produced…"
//! size = 123
//! etag = "…if the server gave one…"
//! revision = "…the commit, if it is a repository…"
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{ErrorKind, Write},
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result};
use flow_core::{Diagnostic, Pinned, ValueKind};

use crate::{looks, syntax};

/// The lock file's name in the project's folder.
pub const LOCK_FILE: &str = "flow.lock";

const HEADER: &str = "# Written by flow: what each URL gave when it was first fetched. Commit it; `flow lock --update PIPELINE` looks again.\n";

/// The pins of a project, by URL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockFile {
    /// URL → what it gave.
    pub pins: BTreeMap<String, Pinned>,
}

/// Nobody writes the file by hand: what a person may have meant is no help.
fn spoiled(mut error: Diagnostic) -> Diagnostic {
    error.hints = vec![format!("restore {LOCK_FILE} from version control, or remove it to fetch everything anew")];
    error
}

impl LockFile {
    /// Reads the project's lock file; one that is not there is empty.
    ///
    /// # Errors
    /// It cannot be read, or is not one: with the places.
    pub fn read(project: &Path) -> Result<Self, Vec<Diagnostic>> {
        let path = project.join(LOCK_FILE);
        if let Err(error) = fs::metadata(&path)
            && error.kind() == ErrorKind::NotFound
        {
            looks::found(&path, None);
            return Ok(Self::default());
        }
        let root = syntax::read(&path).map_err(|errors| errors.into_iter().map(spoiled).collect::<Vec<_>>())?;
        let ValueKind::Table(table) = root.kind else { unreachable!("a TOML document is a table") };
        let mut lock = Self::default();
        let mut errors = Vec::new();
        for (url, span, value) in table.entries {
            let read = flow_core::read(&value);
            let hint = "remove the entry to fetch it anew, or repair the merge";
            errors.extend(read.errors.into_iter().map(|error| error.at(span.clone()).hint(hint)));
            lock.pins.extend(read.value.map(|pinned| (url, pinned)));
        }
        if errors.is_empty() { Ok(lock) } else { Err(errors) }
    }

    /// Lays pins over those in the project's lock file, which another flow may have changed meanwhile, and returns all.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn add(project: &Path, pins: &BTreeMap<String, Pinned>) -> Result<Self> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // Against other processes the folder itself is what is locked: no further file is left behind. Where the file system has no locks the
        // rename still keeps the file whole.
        let folder = File::open(project).with_context(|| format!("cannot open {}", project.display()))?;
        let locked = folder.lock().is_ok();
        let mut lock = Self::read(project).map_err(|errors| {
            let first = errors.into_iter().next();
            first.map_or_else(|| anyhow::anyhow!("{LOCK_FILE} cannot be read"), anyhow::Error::new)
        })?;
        lock.pins.extend(pins.iter().map(|(url, pinned)| (url.clone(), pinned.clone())));
        let path = project.join(LOCK_FILE);
        let temporary = project.join(format!(".{LOCK_FILE}.{}", std::process::id()));
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(lock.text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().with_context(|| {
            drop(fs::remove_file(&temporary));
            format!("cannot write {}", path.display())
        })?;
        if locked {
            folder.unlock().ok();
        }
        Ok(lock)
    }

    fn text(&self) -> String {
        // A JSON string is a TOML basic string, but for DEL, which JSON leaves bare and TOML does not take.
        let quote = |text: &str| serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f");
        let mut text = HEADER.to_owned();
        for (url, pinned) in &self.pins {
            text.push_str(&format!("\n[{}]\ndigest = \"{}\"\nsize = {}\n", quote(url), pinned.digest, pinned.size));
            if let Some(etag) = &pinned.etag {
                text.push_str(&format!("etag = {}\n", quote(etag)));
            }
            if let Some(revision) = &pinned.revision {
                text.push_str(&format!("revision = {}\n", quote(revision)));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use flow_core::Digest;

    use super::*;

    fn pin(content: &str) -> Pinned {
        Pinned { digest: Digest::of(content.as_bytes()), size: content.len() as u64, etag: None, revision: None }
    }

    #[test]
    fn pins_come_back_are_sorted_and_are_laid_over_others() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(LockFile::read(dir.path()).unwrap(), LockFile::default());
        let odd = "https://x/\u{7f}\"\\日本?a=b#c".to_owned();
        let first = BTreeMap::from([(odd.clone(), pin("1")), ("https://b".to_owned(), pin("2"))]);
        LockFile::add(dir.path(), &first).unwrap();
        let tagged = Pinned { etag: Some("W/\"x\"".into()), revision: Some("c0ffee".into()), ..pin("3") };
        let second = BTreeMap::from([("https://b".to_owned(), tagged.clone()), ("https://a".to_owned(), pin("4"))]);
        LockFile::add(dir.path(), &second).unwrap();
        let lock = LockFile::read(dir.path()).unwrap();
        assert_eq!(lock.pins.len(), 3);
        assert_eq!((&lock.pins[&odd], &lock.pins["https://b"]), (&pin("1"), &tagged));
        let text = fs::read_to_string(dir.path().join(LOCK_FILE)).unwrap();
        assert!(text.find("https://a") < text.find("https://b") && text.starts_with("# Written by flow"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn many_flows_lose_no_pin() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for i in 0..8 {
                let dir = dir.path();
                scope.spawn(move || {
                    // Threads of one process share its id, and so would share a temporary name but for the lock.
                    LockFile::add(dir, &BTreeMap::from([(format!("https://{i}"), pin("x"))])).unwrap();
                });
            }
        });
        assert_eq!(LockFile::read(dir.path()).unwrap().pins.len(), 8);
    }

    #[test]
    fn a_bad_entry_is_said_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join(LOCK_FILE),
            "[\"https://a\"]\ndigest = \"xyz\"\nsize = 1\n[b]\nsize = -1\ndigest = 1\n",
        )
        .unwrap();
        let errors = LockFile::read(dir.path()).unwrap_err();
        let lines: Vec<_> = errors.iter().map(|error| error.span.as_ref().unwrap().line_column().0).collect();
        assert!([2, 5, 6].iter().all(|line| lines.contains(line)), "{errors:?}");
    }
}
