//! `flow cache pin` and `unpin`

use std::path::Path;

use flow_core::Diagnostic;
use flow_engine::{Project, RunOptions, Verdict, project_dir};

use super::{Done, load_and_open, open, open_here};
use crate::{args::Pipeline, failure::Failure, out, ui::format::plural};

/// What a pin's note says, a line each: the pipeline file, the node.
fn note(project: &Project, node: &str) -> String {
    format!("{}\n{node}\n", project.absolute_file().display())
}

/// Lists the pins.
pub fn list() -> Done {
    let (_, cache) = open_here()?;
    let rows: Vec<Vec<String>> = cache
        .pins()?
        .into_iter()
        .map(|(key, note)| {
            let mut lines = note.lines().map(str::to_owned);
            let (file, node) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
            vec![key.short(), node, file]
        })
        .collect();
    Ok(out::write(&out::table(&rows, &[]))?)
}

/// Pins the results that a pipeline has now.
pub fn pin(file: &Path, stage: Option<&str>, profile: Option<&str>) -> Done {
    let pipeline = Pipeline { file: file.to_owned(), profile: profile.map(str::to_owned), set: Vec::new() };
    let (project, _, cache) = load_and_open(&pipeline)?;
    let wanted = match stage {
        Some(stage) => project.graph().select(stage)?,
        None => (0..project.graph().nodes.len()).collect(),
    };
    let plan = flow_engine::plan(&project, &cache, &RunOptions::default())?;
    let (mut pinned, mut without) = (0, Vec::new());
    for planned in plan.nodes.iter().filter(|planned| wanted.contains(&planned.node)) {
        let node = project.graph().nodes[planned.node].name.as_str();
        match &planned.verdict {
            Verdict::Cached { key, .. } | Verdict::Team { key, .. } => {
                cache.pin(key, &note(&project, node))?;
                pinned += 1;
            }
            Verdict::Off => {}
            _ => without.push(node),
        }
    }
    eprintln!("pinned {}", plural(pinned, "result"));
    if without.is_empty() {
        return Ok(());
    }
    let error = Diagnostic::new(format!("{} without a result: {}", plural(without.len(), "node"), without.join(", ")));
    Err(Failure::absent(error.hint(format!("run it first: flow run {}", file.display()))))
}

/// Lets go of what was pinned for a pipeline or one of its stages, whatever the file says by now.
pub fn unpin(file: &Path, stage: Option<&str>) -> Done {
    let dir = project_dir(file);
    let (_, cache) = open(&dir)?;
    let file = file.file_name().map_or_else(|| dir.clone(), |name| dir.join(name)).display().to_string();
    let mut unpinned = 0;
    for (key, note) in cache.pins()? {
        let mut lines = note.lines();
        let (of, node) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let of_stage = |stage: &str| node == stage || node.split('[').next() == Some(stage);
        if of == file && stage.is_none_or(of_stage) && cache.unpin(&key)? {
            unpinned += 1;
        }
    }
    eprintln!("unpinned {}", plural(unpinned, "result"));
    Ok(())
}
