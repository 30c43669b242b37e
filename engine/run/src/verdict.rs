//! [`Plan`]: what is to be done about each node.

use flow_core::Key;

use crate::graph::NodeId;

/// What a run would do.
#[derive(Debug)]
pub struct Plan {
    /// By node.
    pub nodes: Vec<Planned>,
}

/// What a run would do about a node.
#[derive(Debug)]
pub struct Planned {
    /// The node.
    pub node: NodeId,
    /// What.
    pub verdict: Verdict,
}

/// What is to be done about a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Its stage is off.
    Off,
    /// Nobody asked for it.
    Unselected,
    /// Its result is there, or what it is is known and nobody needs more.
    Cached {
        /// Its key.
        key: Key,
        /// The size of its result.
        bytes: u64,
        /// How long it took when it ran, in seconds.
        cost: f64,
        /// Its files are here.
        here: bool,
    },
    /// The team has its result.
    Team {
        /// Its key.
        key: Key,
        /// The size of its result.
        bytes: u64,
        /// How long it took when it ran, in seconds.
        cost: f64,
        /// Who gave it to the team.
        by: String,
        /// When, in seconds since 1970.
        time: f64,
        /// How many bytes come if it is fetched, beyond what comes for others: of an object, only the first counts it.
        fetch: u64,
        /// Whether it is.
        need: Need,
    },
    /// It must run.
    Run {
        /// Its key.
        key: Key,
        /// Why.
        why: String,
        /// What an interrupted run left, from which it goes on.
        left: Option<Left>,
        /// How long it will take, by those that were.
        expected: Option<Expected>,
        /// What it takes from outside, if it does.
        download: Option<Download>,
    },
    /// Its key depends on what these give, which must run before; or whether its files are needed does.
    After {
        /// The nodes whose results are not known.
        upstream: Vec<NodeId>,
        /// It runs then, whatever they give: it is asked to, or never cached.
        runs: bool,
    },
}

/// Whether the files of a result have to be here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Nobody needs them.
    No,
    /// Somebody does if it must run, which is not known yet.
    Perhaps,
    /// They have to.
    Yes,
}

/// What an interrupted run left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its size.
    pub bytes: u64,
    /// What the stage says of it: `from its checkpoint of step 50`.
    pub note: Option<String>,
}

/// How long a node will take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// The mean.
    pub seconds: f64,
    /// Of so many.
    pub runs: usize,
}

/// What a node takes from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Download {
    /// Its size, if `flow.lock` says it.
    pub bytes: Option<u64>,
}
