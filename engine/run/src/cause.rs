//! Where a change comes from: through the results of other nodes, down to a parameter, a version or a file.

use std::collections::HashSet;

use anyhow::Result;
use flow_cache::Cache;
use flow_core::KeyParts;

use crate::{
    decide::{Decider, Decision},
    graph::{Graph, NodeId, Source},
    kept::{Past, changed_files},
    verdict::{Plan, Verdict},
    why::{Change, Previous, changes},
};

/// Why something that enters a node is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The node that made it, or the path.
    pub of: String,
    /// It is a file or directory and no node's result.
    pub is_path: bool,
    /// What changed for that node, with the causes of that.
    pub changes: Vec<Change>,
    /// What there is to say where that is not known, or is not all.
    pub note: Option<String>,
}

/// Follows changes to where they come from. Each node is told once.
pub(crate) struct Tracer<'a> {
    pub graph: &'a Graph,
    pub cache: &'a Cache,
    pub decider: &'a Decider<'a>,
    /// The key that a node had, and in which run.
    pub before: &'a dyn Fn(&str) -> Option<Previous>,
    past: &'a Past,
    seen: HashSet<NodeId>,
}

impl<'a> Tracer<'a> {
    pub fn new(
        graph: &'a Graph,
        cache: &'a Cache,
        decider: &'a Decider<'a>,
        before: &'a dyn Fn(&str) -> Option<Previous>,
        past: &'a Past,
    ) -> Self {
        Self { graph, cache, decider, before, past, seen: HashSet::new() }
    }

    /// Adds the causes of a node's changes to them.
    pub fn trace(&mut self, id: NodeId, changes: &mut [Change]) -> Result<()> {
        for change in changes {
            let Some((port, index)) = &change.input else { continue };
            let ports = self.graph.nodes[id].inputs.iter().filter(|inputs| inputs.name == *port);
            let source = ports.flat_map(|inputs| &inputs.sources).nth(*index);
            let place = (port.as_str(), *index);
            change.cause = match source {
                Some(Source::Node(from) | Source::Part { node: from, .. } | Source::Out { node: from, .. }) => {
                    Some(self.node(*from)?)
                }
                Some(source) => {
                    let note = self.files(id, source, place)?;
                    Some(Cause { of: source.to_string(), is_path: true, changes: Vec::new(), note })
                }
                None => None,
            };
        }
        Ok(())
    }

    /// Which files of a directory that enters a node are others than they were.
    fn files(&self, id: NodeId, source: &Source, (port, index): (&str, usize)) -> Result<Option<String>> {
        let node = &self.graph.nodes[id].name;
        let Some(Previous { run, key }) = (self.before)(node) else { return Ok(None) };
        let parts = self.past.parts(self.cache, &run, node, &key)?;
        let digest = parts.as_ref().and_then(|parts| parts.inputs.get(port)?.get(index));
        let before = digest.and_then(|digest| self.past.files(&run, node, &key, digest));
        Ok(before.zip(self.decider.content(source)).and_then(|(before, now)| changed_files(&before, now)))
    }

    /// Why the result of a node is not what it was.
    fn node(&mut self, id: NodeId) -> Result<Cause> {
        let of = self.graph.nodes[id].name.clone();
        let cause = |changes, note: Option<&str>| Cause {
            of: of.clone(),
            is_path: false,
            changes,
            note: note.map(str::to_owned),
        };
        if !self.seen.insert(id) {
            return Ok(cause(Vec::new(), Some("as above")));
        }
        let Some(before) = (self.before)(&of) else { return Ok(cause(Vec::new(), Some("it is new"))) };
        let Some(now) = known_parts(self.decider, self.cache, id)? else { return Ok(cause(Vec::new(), None)) };
        if before.key == now.key() {
            return Ok(cause(Vec::new(), Some("it ran again, and gave other bytes under the same key")));
        }
        let Some(parts) = self.past.parts(self.cache, &before.run, &of, &before.key)? else {
            return Ok(cause(Vec::new(), Some("what it was made from before is not in the cache any more")));
        };
        let mut changes = changes(&parts, &now);
        self.trace(id, &mut changes)?;
        Ok(cause(changes, None))
    }

    /// What must run before the key of a node is known: the first of each chain, and why they run.
    pub fn waits_for(&mut self, id: NodeId, plan: &Plan) -> Result<Vec<Cause>> {
        let (mut roots, mut stack, mut met) = (Vec::new(), vec![id], HashSet::from([id]));
        while let Some(id) = stack.pop() {
            match &plan.nodes[id].verdict {
                Verdict::After { upstream, .. } => stack.extend(upstream.iter().copied().filter(|up| met.insert(*up))),
                Verdict::Run { .. } => roots.push(id),
                _ => {}
            }
        }
        roots.sort_unstable();
        let mut causes = Vec::new();
        for id in roots {
            let mut cause = self.node(id)?;
            if let (true, Verdict::Run { why, .. }) = (cause.changes.is_empty(), &plan.nodes[id].verdict) {
                cause.note = Some(why.clone());
            }
            causes.push(cause);
        }
        Ok(causes)
    }
}

/// What the key of a node is made of, if it has one.
pub(crate) fn known_parts(decider: &Decider<'_>, cache: &Cache, id: NodeId) -> Result<Option<KeyParts>> {
    Ok(match decider.decide(id)? {
        Decision::Off => None,
        Decision::Run(work) | Decision::Absent(_, work) | Decision::Hit(_, Some(work)) => Some(work.parts),
        Decision::Hit(outcome, None) => cache.record(&outcome.key)?.map(|record| record.parts),
    })
}
