//! [`TeamResult`]: a result that the team has, and what is believed of the word of others.

use std::collections::HashSet;

use anyhow::Result;
use bytes::Bytes;
use flow_core::{Entry, Key};
use serde_json::Value as Json;

use super::sign::{self, TrustedKey};
use crate::{
    cache::Cache,
    record::{Origin, ResultRecord},
};

/// A result that the team has.
#[derive(Debug)]
pub struct TeamResult {
    /// What it is.
    pub record: ResultRecord,
    /// Who signed it, if that was checked; else who says that it is his.
    pub by: String,
    /// When, in seconds since 1970, by his clock.
    pub time: f64,
    /// As it lies there: what is signed is this.
    pub(super) bytes: Bytes,
}

impl TeamResult {
    /// Whether the team has its objects too, and not only the word of what they are.
    #[must_use]
    pub fn has_objects(&self) -> bool {
        !self.record.freed
    }

    /// The entries whose objects are not in a cache, each object once.
    pub(super) fn missing<'a>(&'a self, cache: &Cache) -> Vec<&'a Entry> {
        let mut seen = HashSet::new();
        let entries = self.record.tree.entries().iter();
        entries
            .filter(|entry| seen.insert((entry.digest, entry.executable)) && !cache.entry_path(entry).exists())
            .collect()
    }

    /// How many bytes a pull into a cache would fetch.
    #[must_use]
    pub fn to_fetch(&self, cache: &Cache) -> u64 {
        self.to_fetch_beyond(cache, &mut HashSet::new())
    }

    /// As [`TeamResult::to_fetch`], without the objects that come anyway; its own are among these from then on.
    pub fn to_fetch_beyond(&self, cache: &Cache, coming: &mut HashSet<flow_core::Digest>) -> u64 {
        let missing = self.missing(cache).into_iter().filter(|entry| coming.insert(entry.digest));
        let size = |entry: &Entry| self.record.shared.as_ref().map_or(entry.size, |origin| origin.wire_size(entry));
        missing.map(size).sum()
    }
}

/// Believes a record of others, or says why not.
pub(crate) fn accept(key: &Key, bytes: Bytes, trusted: &[TrustedKey]) -> Result<TeamResult> {
    let record = ResultRecord::parse(&bytes, key).map_err(|bad| anyhow::anyhow!("{bad}"))?;
    let sizes = record.tree.entries().iter().try_fold(0u64, |sum, entry| sum.checked_add(entry.size));
    anyhow::ensure!(sizes.is_some(), "its sizes are impossible");
    anyhow::ensure!(record.cost.is_finite() && record.cost >= 0.0, "its cost is impossible");
    let (mut by, time) = match &record.shared {
        Some(Origin { by, time, .. }) => (by.clone(), *time),
        None => (record.host.clone(), record.created),
    };
    if !trusted.is_empty() {
        let json: Json = serde_json::from_slice(&bytes)?;
        let signer = sign::check(&json, trusted)?;
        if let Some(name) = &signer.name {
            by.clone_from(name);
        }
    }
    // It is shown on terminals.
    let by = by.chars().filter(|c| !c.is_control() && !turns(*c)).take(80).collect();
    Ok(TeamResult { record, by, time, bytes })
}

/// Whether a character changes in which direction text is read: with it a name passes for another.
fn turns(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
