//! [`Item`]: what the runner hands over.

use super::shape::Shape;
use crate::exec::Job;

/// A node that is to be made elsewhere.
pub(crate) struct Item {
    /// The node, as the runner would run it. What it takes its job finds out by itself.
    pub job: Job,
    /// Its name.
    pub node: String,
    /// What its job wants of the cluster.
    pub shape: Shape,
    /// Its kind goes on from what an interrupted run left.
    pub resumable: bool,
}

impl Item {
    /// A result that is there already does not count.
    pub fn is_forced(&self) -> bool {
        self.job.work.reason.ignores_hits()
    }
}
