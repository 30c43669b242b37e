//! What a file must be, and whether it is.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// What a file must be, as far as it is known: hexadecimal digits.
#[derive(Clone, Debug, Default)]
pub struct Checksums {
    /// SHA-256.
    pub sha256: Option<String>,
    /// BLAKE3.
    pub blake3: Option<String>,
}

/// Sees the bytes as they come, and only does what the [`Checksums`] ask for.
#[derive(Debug)]
pub struct Hashers {
    sha256: Option<Sha256>,
    blake3: Option<blake3::Hasher>,
}

impl Checksums {
    /// Hashers that have seen nothing yet.
    #[must_use]
    pub fn hashers(&self) -> Hashers {
        Hashers {
            sha256: self.sha256.is_some().then(Sha256::new),
            blake3: self.blake3.is_some().then(blake3::Hasher::new),
        }
    }

    /// Whether what the hashers saw is what it must be; `name` is for the error.
    ///
    /// # Errors
    /// It is not.
    pub fn verify(&self, hashers: Hashers, name: &str) -> Result<()> {
        let sha256 = hashers.sha256.map(|hasher| hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        let blake3 = hashers.blake3.map(|hasher| hasher.finalize().to_string());
        let found: [(&str, &Option<String>, Option<String>); 2] =
            [("sha256", &self.sha256, sha256), ("blake3", &self.blake3, blake3)];
        for (kind, wanted, found) in found {
            if let (Some(wanted), Some(found)) = (wanted, found)
                && !wanted.eq_ignore_ascii_case(&found)
            {
                bail!(
                    "the {kind} of {name} is {found}, and must be {wanted}: the file changed, or somebody changed it"
                );
            }
        }
        Ok(())
    }
}

impl Hashers {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        if let Some(hasher) = &mut self.sha256 {
            hasher.update(bytes);
        }
        if let Some(hasher) = &mut self.blake3 {
            hasher.update(bytes);
        }
    }

    /// The first bytes of a file; nothing is read if nothing is asked for.
    ///
    /// # Errors
    /// Reading failed.
    pub fn update_from(&mut self, path: &Path, bytes: u64) -> Result<()> {
        if self.sha256.is_none() && self.blake3.is_none() {
            return Ok(());
        }
        let read = File::open(path).and_then(|file| {
            let (mut file, mut buffer) = (file.take(bytes), vec![0; 1 << 20]);
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok::<_, io::Error>(()),
                    n => self.update(&buffer[..n]),
                }
            }
        });
        read.with_context(|| format!("cannot read {}", path.display()))
    }
}
