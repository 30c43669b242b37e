//! The directories above places, looked at once for all places in them.

use std::path::{Path, PathBuf};

/// The directory above the place that was looked at last: mostly the places of one directory follow each other. Good for
/// one look at all places, before anything is written.
#[derive(Debug, Default)]
pub struct Above {
    /// As it is named.
    named: PathBuf,
    /// Where it is, with links followed; nothing if there is no directory.
    real: Option<PathBuf>,
    /// Where it will be if it is not there.
    will: PathBuf,
    /// The nearest thing above it or in its place that is there and no directory.
    blocked: Option<PathBuf>,
    /// The last place in it at which nothing was found.
    absent: Option<PathBuf>,
}

impl Above {
    /// The directory that a place is in, with links followed, if it is there.
    pub fn directory(&mut self, place: &Path) -> Option<&Path> {
        self.look(place.parent()?);
        self.real.as_deref()
    }

    /// What keeps the directory that a place is in from being there or being made.
    pub fn blocking(&mut self, place: &Path) -> Option<&Path> {
        self.look(place.parent()?);
        self.blocked.as_deref()
    }

    fn look(&mut self, above: &Path) {
        if self.named.as_os_str() == above.as_os_str() {
            return;
        }
        self.named = above.to_owned();
        self.real = above.canonicalize().ok().filter(|real| real.is_dir());
        let is_there = self.real.is_some();
        self.will = if is_there { PathBuf::new() } else { below_what_is_there(above) };
        self.blocked = if is_there { None } else { blocking(above) };
    }

    /// Where a place is, with links followed as far as it is there.
    pub fn real(&mut self, place: &Path) -> PathBuf {
        let Some(name) = place.file_name() else { return below_what_is_there(place) };
        let Some(own) = self.directory(place).map(|directory| directory.join(name)) else {
            return self.will.join(name);
        };
        match own.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() => return below_what_is_there(place),
            Ok(_) => {}
            Err(_) => self.absent = Some(place.to_owned()),
        }
        own
    }

    /// Whether it was just seen that nothing is at a place.
    pub fn is_absent(&self, place: &Path) -> bool {
        self.absent.as_ref().is_some_and(|absent| absent.as_os_str() == place.as_os_str())
    }
}

/// Where a place is or will be: links are followed up to the last thing that is there.
fn below_what_is_there(place: &Path) -> PathBuf {
    let there = |above: &Path| {
        let below = place.strip_prefix(above).ok()?;
        let found = above.canonicalize().ok()?;
        Some(if below.as_os_str().is_empty() { found } else { found.join(below) })
    };
    place.ancestors().find_map(there).unwrap_or_else(|| place.to_owned())
}

/// The nearest thing at a path or above it that is there, if it is no directory.
pub fn blocking(path: &Path) -> Option<PathBuf> {
    let there = path.ancestors().find(|above| above.symlink_metadata().is_ok())?;
    (!there.is_dir()).then(|| there.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn links_are_followed_wherever_they_stand() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("cache/in")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink("cache", root.join("link")).unwrap();
        let mut above = Above::default();
        for (place, real) in [
            ("link", "cache"),
            ("link/", "cache"),
            ("link/in", "cache/in"),
            ("link/new", "cache/new"),
            ("file", "file"),
            ("new", "new"),
            ("link/new/deep", "cache/new/deep"),
            ("cache/../link", "cache"),
        ] {
            assert_eq!(above.real(&root.join(place)), root.join(real), "{place}");
        }
        assert_eq!(above.directory(&root.join("file/below")), None);
        assert_eq!(above.blocking(&root.join("file/below")), Some(&*root.join("file")));
        assert_eq!(above.blocking(&root.join("file/deep/below")), Some(&*root.join("file")));
        assert_eq!(above.real(&root.join("file/below")), root.join("file/below"));
        assert_eq!(above.blocking(&root.join("new/deep")), None);
        assert_eq!(above.directory(&root.join("nowhere/below")), None);
    }
}
