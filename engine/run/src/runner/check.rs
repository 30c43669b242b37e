//! What a run can know before it begins: what the stages say, what the machine lacks, what is in the way.

use anyhow::{Result, anyhow};
use flow_core::{Event, Sink as _};

use super::{Runner, Todo};
use crate::{
    graph::NodeId,
    lacks::lacking_programs,
    obstacles::{InTheWay, lacking},
    project::Asking,
    sched::State,
    summary::RunError,
};

impl Runner<'_> {
    /// Asks the stages that still have work what cannot work, once, before the first of them runs.
    pub(super) fn check(&mut self) -> Result<(), RunError> {
        self.checked = true;
        let placed = |id: &NodeId| matches!(self.works.get(id), Some(Todo::Place(..)));
        let open = |id: NodeId| self.selection.may_run[id] && self.sched.state(id) != State::Done && !placed(&id);
        let runs = |id: NodeId| open(id) && !self.team.fetches(id);
        let asking = Asking { settings: Some(self.settings), about_to_run: Some(self.cancel) };
        let (mut checked, mut errors) = self.env.project.look_only(&runs, &asking);
        let mut warnings = std::mem::take(&mut checked.warnings);
        let nodes = || (0..self.env.project.graph().nodes.len()).filter(|&id| open(id));
        errors.extend(lacking(self.env.project.graph(), self.settings, nodes().filter(|&id| runs(id))));
        errors.extend(lacking_programs(self.env.project.graph(), self.settings, nodes().filter(|&id| runs(id))).errors);
        errors.extend(std::mem::take(&mut self.refused));
        // Who may run puts its own where it belongs, or was refused.
        for id in nodes().filter(|id| self.works.contains_key(id)) {
            for taken in self.decider.taken(id).map_err(RunError::Cache)? {
                if !self.selection.may_run[taken.from] {
                    errors.extend(self.env.placer.refuses_taken(&taken, id).map_err(RunError::Cache)?);
                }
            }
        }
        let in_the_way = InTheWay::of(self.env.placer, self.selection, nodes(), &checked, true)?;
        errors.extend(in_the_way.errors);
        warnings.extend(in_the_way.warnings);
        errors.dedup();
        if !errors.is_empty() {
            return Err(RunError::Pipeline(errors));
        }
        if let Some(remote) = self.settings.remote.as_ref().filter(|_| nodes().any(runs)) {
            remote.can_sign().map_err(|error| RunError::Cache(error.into()))?;
        }
        self.asked.extend(nodes());
        self.known = checked;
        // From here on the run takes place, and has a record.
        self.recorder.begin();
        warnings.iter().for_each(|warning| self.warn(warning.to_string()));
        self.sched.following().into_iter().for_each(|(id, maker)| self.tell_waits(id, maker));
        Ok(())
    }

    /// Tells that a node waits for another to make its result; and not if it waits for what it takes, as always.
    pub(super) fn tell_waits(&self, id: NodeId, maker: NodeId) {
        if self.env.project.graph().nodes[id].dependencies.contains(&maker) {
            return;
        }
        let reason = format!("`{}` is making the same result", self.node(maker));
        self.recorder.emit(Event::Waiting { node: self.node(id).to_owned(), reason });
    }

    /// Asks a node that must run after all: when all were asked its result was here or to be had, or its inputs were others.
    ///
    /// # Errors
    /// What keeps it from running.
    pub(super) fn ask_again(&mut self, id: NodeId) -> Result<()> {
        let mut errors = lacking(self.env.project.graph(), self.settings, std::iter::once(id));
        errors.extend(lacking_programs(self.env.project.graph(), self.settings, std::iter::once(id)).errors);
        if self.asked.insert(id) {
            let asking = Asking { settings: Some(self.settings), about_to_run: Some(self.cancel) };
            errors.extend(self.env.project.ask_one(id, &mut self.known, true, &asking));
            let warnings = std::mem::take(&mut self.known.warnings);
            warnings.iter().for_each(|warning| self.warn(warning.to_string()));
        }
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0).into()),
            _ => Err(anyhow!(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))),
        }
    }
}
