//! [`Devices`]: what of a machine only one stage may use at a time, among all flows on this cache.

use std::sync::Arc;

use anyhow::Result;

use crate::{
    cache::Cache,
    files::Explain as _,
    lock::{KeyLock, host},
};

/// GPUs of this machine, held while it lives.
#[derive(Debug, Default)]
pub struct Devices {
    names: Vec<String>,
    _locks: Vec<KeyLock>,
}

impl Devices {
    /// What somebody else gives out, a cluster's scheduler: nobody is asked here.
    #[must_use]
    pub fn allocated(names: Vec<String>) -> Self {
        Self { names, _locks: Vec::new() }
    }

    /// What programs call them.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

impl Cache {
    /// Takes so many of the GPUs of this machine with these names, the first that nobody has; nothing if there are too few.
    /// Locks are the kernel's: they end with their holder.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn take_gpus(&self, names: &[String], wanted: usize) -> Result<Option<Devices>> {
        let mut taken = Devices::default();
        for name in names {
            if taken.names.len() == wanted {
                break;
            }
            let word = |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_");
            let path = self.root().join("locks").join(format!("gpu.{}.{}", word(host()), word(name)));
            let lock = KeyLock::try_take_with(&Arc::clone(&self.0.spares), &path);
            if let Some(lock) = lock.explain(self.root(), || format!("lock {}", path.display()))? {
                lock.sign();
                taken.names.push(name.clone());
                taken._locks.push(lock);
            }
        }
        Ok((taken.names.len() == wanted).then_some(taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_what_another_has() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = [(); 2].map(|()| Cache::open(dir.path()).unwrap());
        let names = ["0", "1", "GPU-a/b"].map(str::to_owned);
        let first = one.take_gpus(&names, 1).unwrap().unwrap();
        assert_eq!(first.names(), ["0"]);
        assert!(other.take_gpus(&names, 3).unwrap().is_none(), "and what it took for that is free again");
        let rest = other.take_gpus(&names, 2).unwrap().unwrap();
        assert_eq!(rest.names(), &names[1..]);
        assert!(one.take_gpus(&names, 1).unwrap().is_none());
        drop(first);
        assert_eq!(one.take_gpus(&names, 1).unwrap().unwrap().names(), ["0"]);
    }
}
