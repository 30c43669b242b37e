//! [`Fingerprint`]: what a complete run came to, in one digest.

use flow_core::{Digest, Key};

/// What tells whether two complete runs had the same nodes with the same keys.
#[derive(Default)]
pub(crate) struct Fingerprint(blake3::Hasher);

impl Fingerprint {
    /// Adds a node, in order; `None` if its stage is off.
    pub fn add(&mut self, node: &str, key: Option<&Key>) {
        self.0.update(node.as_bytes()).update(&key.map_or([0; 32], |key| key.0));
    }

    /// Of all.
    pub fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}
