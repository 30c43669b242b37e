//! What a run can know before it begins: what the stages say, what the machine lacks, what is in the way.

use flow_core::Diagnostic;

use super::{Runner, Todo};
use crate::{graph::NodeId, sched::State, summary::RunError};

impl Runner<'_> {
    /// Asks the stages that still have work what cannot work, once, before the first of them runs.
    pub(super) fn check(&mut self) -> Result<(), RunError> {
        self.checked = true;
        let placed =
            |id: &NodeId| matches!(self.works.get(id), Some(planned) if matches!(planned.task, Todo::Place(_)));
        let open = |id: NodeId| self.selection.may_run[id] && self.sched.state(id) != State::Done && !placed(&id);
        let runs = |id: NodeId| open(id) && !self.team.fetches(id);
        let (warnings, mut errors) = match self.env.project.check_only(&runs, Some(self.cancel)) {
            Ok(checked) => (checked.warnings, Vec::new()),
            Err(errors) => (Vec::new(), errors),
        };
        let graph = self.env.project.graph();
        let mut asked = None;
        for id in (0..graph.nodes.len()).filter(|&id| runs(id)) {
            let (node, stage) = (&graph.nodes[id], graph.stage_of(id));
            // Shards take the same.
            if stage.off.is_some() || asked.replace((node.stage, node.variant)) == Some((node.stage, node.variant)) {
                continue;
            }
            for error in self.lacking(id) {
                if !errors.contains(&error) {
                    errors.push(error);
                }
            }
        }
        errors.extend(std::mem::take(&mut self.refused));
        for id in (0..graph.nodes.len()).filter(|&id| open(id)) {
            if let Some(place) = self.env.placer.touches_cache(id) {
                let error = Diagnostic::new(format!("{} would cover the cache", place.display()));
                errors.push(error.at(graph.stage_of(id).span.clone()));
                continue;
            }
            if self.selection.may_overwrite[id] {
                continue;
            }
            let refused = self.env.placer.would_refuse(id).map_err(RunError::Cache)?;
            errors.extend(self.env.placer.refusals(id, refused));
        }
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
        let graph = self.env.project.graph();
        let (stage, wants) = (graph.stage_of(id), graph.common(id).resources);
        let lacks = |what: &str, wanted: u64, there_is: u64, variables: &str| {
            let message = format!("stage `{}` takes {wanted} {what}, and there are {there_is}", stage.name);
            let error = Diagnostic::new(message).at(stage.span.clone());
            let hint = format!("change its `resources`, or set {variables} if there are more");
            (wanted > there_is).then(|| error.hint(hint))
        };
        let cpus = wants.cpus.unwrap_or(1);
        let gpus = "FLOW_GPUS (and CUDA_VISIBLE_DEVICES, if it is set)";
        [
            lacks("cores", u64::from(cpus), u64::from(self.settings.cpus), "FLOW_CPUS"),
            lacks("GPUs", u64::from(wants.gpus), u64::from(self.settings.gpus), gpus),
            lacks("bytes of memory", wants.memory, self.settings.memory, "FLOW_MEMORY"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
