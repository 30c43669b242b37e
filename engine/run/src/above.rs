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
}

impl Above {
    /// The directory that a place is in, with links followed, if it is there.
    pub fn directory(&mut self, place: &Path) -> Option<&Path> {
        let above = place.parent()?;
        if self.named.as_os_str() != above.as_os_str() {
            self.real = above.canonicalize().ok().filter(|real| real.is_dir());
            self.named = above.to_owned();
        }
        self.real.as_deref()
    }

    /// Where a place is, with links followed as far as it is there.
    pub fn real(&mut self, place: &Path) -> PathBuf {
        let own = self.directory(place).zip(place.file_name()).map(|(directory, name)| directory.join(name));
        let is_link = |own: &PathBuf| own.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
        let own = own.filter(|own| !is_link(own));
        own.unwrap_or_else(|| place.canonicalize().unwrap_or_else(|_| below_what_is_there(place)))
    }
}

/// Where a place will be: links are followed up to the last directory that is there.
fn below_what_is_there(place: &Path) -> PathBuf {
    let there = |above: &Path| Some(above.canonicalize().ok()?.join(place.strip_prefix(above).ok()?));
    place.ancestors().skip(1).find_map(there).unwrap_or_else(|| place.to_owned())
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
        assert_eq!(above.directory(&root.join("nowhere/below")), None);
    }
}
