//! Ed25519 signatures of result records: who vouches for "this key gives these bytes".
//!
//! What is signed is the canonical JSON of the whole record without the signature itself, and without the mark that its
//! objects are elsewhere, as it was read: a field that this flow does not know is signed all the same.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    str::FromStr,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use flow_core::canonical_json;
use serde_json::Value as Json;

const PUBLIC: &str = "ed25519:";
const SECRET: &str = "ed25519-secret:";

/// A key that records are checked with: `ed25519:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// A [`PublicKey`] that is trusted, and whose it is: `ed25519:… alice`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey {
    /// The key.
    pub key: PublicKey,
    /// Whose.
    pub name: Option<String>,
}

/// A key that records are signed with.
pub(crate) struct Signer(SigningKey);

impl Signer {
    /// Reads the file that [`generate_key`] wrote.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = || format!("cannot read the signing key {}", path.display());
        let mut file = fs::File::open(path).with_context(failed)?;
        let mode = file.metadata().with_context(failed)?.mode();
        ensure!(mode & 0o077 == 0, "the signing key {0} can be read by others: chmod 600 {0}", path.display());
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(failed)?;
        let secret = text.trim().strip_prefix(SECRET).and_then(unhex::<32>);
        // Nothing of the content is said: it may be somebody's other secret.
        let secret = secret.ok_or_else(|| anyhow!("{} is no signing key of flow", path.display()))?;
        Ok(Self(SigningKey::from_bytes(&secret)))
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// The signature of a record whose `shared` has the public key, and no signature yet.
    pub fn sign(&self, record: &Json) -> String {
        hex(&self.0.sign(&signed_bytes(record)).to_bytes())
    }
}

/// Makes a signing key, in a file that only its owner can read and that must not exist yet.
///
/// # Errors
/// The file is there already, or cannot be written.
pub fn generate_key(path: &Path) -> Result<PublicKey> {
    let failed = || format!("cannot write the signing key {}", path.display());
    let mut secret = [0; 32];
    fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut secret)).with_context(failed)?;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(failed)?;
    }
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    if made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
        bail!("{} is there already, and a key is never overwritten: name another file", path.display());
    }
    let mut file = made.with_context(failed)?;
    let signer = Signer(SigningKey::from_bytes(&secret));
    file.write_all(format!("{SECRET}{}\n", hex(&secret)).as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(failed)?;
    Ok(signer.public())
}

/// Whose signature a record carries.
///
/// # Errors
/// It carries none, or not one of a key that is trusted, or it is not of this record.
pub(crate) fn check<'a>(record: &Json, trusted: &'a [TrustedKey]) -> Result<&'a TrustedKey> {
    let shared = record.get("shared").ok_or_else(|| anyhow!("it is not signed"))?;
    let text = |field: &str| shared.get(field).and_then(Json::as_str);
    let (Some(key), Some(signature)) = (text("key"), text("signature")) else { bail!("it is not signed") };
    let key: PublicKey = key.parse().map_err(|error: String| anyhow!(error))?;
    let trusted = trusted.iter().find(|trusted| trusted.key == key);
    let trusted = trusted.ok_or_else(|| anyhow!("it is signed with {key}, which is not among `trusted_keys`"))?;
    let signature = unhex::<64>(signature).ok_or_else(|| anyhow!("its signature is none"))?;
    let verified = VerifyingKey::from_bytes(&key.0)
        .and_then(|key| key.verify_strict(&signed_bytes(record), &Signature::from_bytes(&signature)));
    verified.map_err(|_| anyhow!("its signature is wrong: somebody changed it"))?;
    Ok(trusted)
}

fn signed_bytes(record: &Json) -> Vec<u8> {
    let mut record = record.clone();
    // Where its objects are is nobody's word, and changes.
    record.as_object_mut().map(|record| record.remove("freed"));
    if let Some(shared) = record.get_mut("shared").and_then(Json::as_object_mut) {
        shared.remove("signature");
    }
    format!("flow result\n{}", canonical_json(&record)).into_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).filter(|_| !c.is_ascii_uppercase());
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(bytes)
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC}{}", hex(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_prefix(PUBLIC)
            .and_then(unhex)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no public key: `{PUBLIC}` and 64 lower-case hexadecimal digits"))
    }
}

impl FromStr for TrustedKey {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (key, name) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
        let name = Some(name.trim().to_owned()).filter(|name| !name.is_empty());
        Ok(Self { key: key.parse()?, name })
    }
}

flow_core::serde_as_text!(PublicKey);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_signature_is_of_all_that_a_record_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/key");
        let public = generate_key(&path).unwrap();
        assert!(generate_key(&path).is_err(), "a key is never overwritten");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let signer = Signer::read(&path).unwrap();
        assert_eq!(signer.public(), public);
        let trusted: TrustedKey = format!("{public}  alice").parse().unwrap();
        assert_eq!(trusted.name.as_deref(), Some("alice"));

        let mut record =
            json!({"key": "k", "cost": 1.0, "new": {"b": 1, "a": 2}, "shared": {"by": "a@b", "key": public}});
        assert!(check(&record, &[]).unwrap_err().to_string().contains("not signed"));
        record["shared"]["signature"] = signer.sign(&record).into();
        let trusted = [trusted];
        assert_eq!(check(&record, &trusted).unwrap(), &trusted[0]);
        assert!(check(&record, &[]).unwrap_err().to_string().contains("not among"));
        for (path, value) in [("/cost", json!(2.0)), ("/new/a", json!(3)), ("/shared/by", json!("x"))] {
            let mut forged = record.clone();
            *forged.pointer_mut(path).unwrap() = value;
            assert!(check(&forged, &trusted).unwrap_err().to_string().contains("wrong"), "{path}");
        }
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        assert!(Signer::read(&path).err().unwrap().to_string().contains("chmod 600"));
    }
}
