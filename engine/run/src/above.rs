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
        let is_link = || place.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
        match (self.directory(place), place.file_name()) {
            (Some(directory), Some(name)) if !is_link() => directory.join(name),
            _ => place.canonicalize().unwrap_or_else(|_| place.to_owned()),
        }
    }
}
