//! What a run can know before it begins: what the stages say, what the machine lacks, what is in the way.

use flow_core::Diagnostic;

use super::{Runner, Todo};
use crate::{
    graph::NodeId,
    obstacles::{InTheWay, lacking},
    sched::State,
    summary::RunError,
};

impl Runner<'_> {
    /// Asks the stages that still have work what cannot work, once, before the first of them runs.
    pub(super) fn check(&mut self) -> Result<(), RunError> {
        self.checked = true;
        let placed =
            |id: &NodeId| matches!(self.works.get(id), Some(planned) if matches!(planned.task, Todo::Place(_)));
        let open = |id: NodeId| self.selection.may_run[id] && self.sched.state(id) != State::Done && !placed(&id);
        let runs = |id: NodeId| open(id) && !self.team.fetches(id);
        let (mut warnings, mut errors) = match self.env.project.check_only(&runs, Some(self.cancel)) {
            Ok(checked) => (checked.warnings, Vec::new()),
            Err(errors) => (Vec::new(), errors),
        };
        let nodes = || (0..self.env.project.graph().nodes.len()).filter(|&id| open(id));
        errors.extend(lacking(self.env.project.graph(), self.settings, nodes().filter(|&id| runs(id))));
        errors.extend(std::mem::take(&mut self.refused));
        // Who may run puts its own where it belongs, or was refused.
        for id in nodes().filter(|id| self.works.contains_key(id)) {
            for taken in self.decider.taken(id).map_err(RunError::Cache)? {
                if !self.selection.may_run[taken.from] {
                    errors.extend(self.env.placer.refuses_taken(&taken, id).map_err(RunError::Cache)?);
                }
            }
        }
        let in_the_way = InTheWay::of(self.env.placer, self.selection, nodes(), true)?;
        errors.extend(in_the_way.errors);
        warnings.extend(in_the_way.warnings);
        errors.dedup();
        if !errors.is_empty() {
            return Err(RunError::Pipeline(errors));
        }
        // From here on the run takes place, and has a record.
        self.recorder.begin();
        warnings.iter().for_each(|warning| self.warn(warning.to_string()));
        Ok(())
    }

    /// What a node takes that this machine has not.
    pub(super) fn lacking(&self, id: NodeId) -> Vec<Diagnostic> {
        lacking(self.env.project.graph(), self.settings, std::iter::once(id))
    }
}
