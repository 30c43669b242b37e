//! `flow cancel`: ends jobs in a cluster, from any machine that can speak to it.

use flow_core::Diagnostic;
use flow_engine::{ClusterJob, cancel_jobs, jobs, project_dir};

use super::{Done, open, open_here};
use crate::{args, failure::Failure, ui::format::plural};

/// Ends jobs.
pub fn cancel(args: &args::Cancel) -> Done {
    let (settings, cache) = match &args.file {
        Some(file) => open(&project_dir(file))?,
        None => open_here()?,
    };
    let file = args.file.as_ref().map(|file| {
        let dir = project_dir(file);
        file.file_name().map_or_else(|| dir.clone(), |name| dir.join(name))
    });
    let is_of = |job: &ClusterJob, stage: &String| {
        job.nodes
            .iter()
            .any(|node| node == stage || node.strip_prefix(stage.as_str()).is_some_and(|it| it.starts_with('[')))
    };
    let wanted = |job: &ClusterJob| {
        file.as_ref().is_none_or(|file| job.pipeline == *file)
            && (args.stages.is_empty() || args.stages.iter().any(|stage| is_of(job, stage)))
    };
    let found: Vec<ClusterJob> = jobs(&cache, &settings.executors, true).into_iter().filter(wanted).collect();
    if found.is_empty() {
        let error = Diagnostic::new("there are no such jobs");
        return Err(Failure::absent(error.hint("`flow status` shows the jobs of a run")));
    }
    cancel_jobs(&cache, &settings.executors, &found).map_err(Failure::Cache)?;
    let names: Vec<&str> = found.iter().map(|job| job.id.as_str()).take(10).collect();
    let more = if found.len() > names.len() { ", …" } else { "" };
    eprintln!("cancelled {}: {}{more}", plural(found.len(), "job"), names.join(", "));
    Ok(())
}
