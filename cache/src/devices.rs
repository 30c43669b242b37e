//! [`Devices`]: what of a machine only one stage may use at a time, among all flows on this cache.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::Result;

use crate::{
    cache::Cache,
    files::Explain as _,
    lock::{KeyLock, host},
};

/// GPUs of this machine, or whole machines, held while it lives.
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

    /// What programs call the GPUs.
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
            if let Some(lock) = self.take_device(&format!("gpu.{}.{}", word(host()), word(name)))? {
                taken.names.push(name.clone());
                taken._locks.push(lock);
            }
        }
        Ok((taken.names.len() == wanted).then_some(taken))
    }

    /// Takes the machines of these names, all of them or nothing.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn take_hosts(&self, names: &[String]) -> Result<Option<Devices>> {
        let mut taken = Devices::default();
        for name in BTreeSet::from_iter(names) {
            let Some(lock) = self.take_device(&format!("host.{}", word(name)))? else { return Ok(None) };
            taken._locks.push(lock);
        }
        Ok(Some(taken))
    }

    fn take_device(&self, name: &str) -> Result<Option<KeyLock>> {
        let path = self.root().join("locks").join(name);
        let lock = KeyLock::try_take_with(&Arc::clone(&self.0.spares), &path);
        let lock = lock.explain(self.root(), || format!("lock {}", path.display()))?;
        lock.iter().for_each(KeyLock::sign);
        Ok(lock)
    }
}

fn word(text: &str) -> String {
    text.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_")
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
        let hosts = ["a", "b", "a"].map(str::to_owned);
        let both = one.take_hosts(&hosts).unwrap().unwrap();
        assert!(other.take_hosts(&hosts[1..2]).unwrap().is_none());
        drop(both);
        assert!(other.take_hosts(&hosts[..1]).unwrap().is_some());
    }
}
