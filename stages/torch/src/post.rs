//! [`Post`]: bytes from rank to rank through the store. What has to do with files goes this way: they take as long as they
//! take, and no collective's time runs out meanwhile. A rank that is lost ends who waits for it by its silence.

use std::{sync::Arc, thread, time::Duration};

use anyhow::Result;
use flow_dist::Store;

use crate::ranks::collective_timeout;

/// A rank's way to the others. Nobody's turn is waited for: any thread may use it beside any other.
#[derive(Clone, Debug)]
pub struct Post {
    rank: usize,
    size: usize,
    /// When there is someone else.
    store: Option<Arc<Store>>,
}

impl Post {
    /// That of `rank` of `size`.
    pub fn new(rank: usize, size: usize, store: Option<Arc<Store>>) -> Self {
        Self { rank, size, store }
    }

    /// Whose it is.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Hands `bytes` of every rank to rank 0, in their order; an empty list to the others. `name` is used once.
    pub fn gather(&self, name: &str, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let Some(store) = &self.store else { return Ok(vec![bytes.to_vec()]) };
        store.set(&format!("{name}/{}", self.rank), bytes)?;
        if self.rank != 0 {
            return Ok(Vec::new());
        }
        (0..self.size).map(|rank| patiently(store, &format!("{name}/{rank}"))).collect()
    }

    /// Gives every rank what rank 0 has. `name` is used once.
    pub fn share(&self, name: &str, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let Some(store) = &self.store else { return Ok(bytes) };
        if self.rank == 0 {
            store.set(name, &bytes)?;
            return Ok(bytes);
        }
        patiently(store, name)
    }
}

/// Waits for a value however long it takes, and keeps the store's connection free for others.
fn patiently(store: &Store, key: &str) -> Result<Vec<u8>> {
    let mut pause = Duration::from_millis(1);
    while !store.has(key)? {
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
    store.get(key, collective_timeout())
}
