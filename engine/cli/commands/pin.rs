//! `flow cache pin` and `unpin`

use std::path::Path;

use flow_cache::Pin;
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
        .filter(|pin| pin.whole)
        .map(|Pin { key, note, .. }| {
            let mut lines = note.lines().map(str::to_owned);
            let (file, node) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
            vec![key.short(), node, file]
        })
        .collect();
    Ok(out::write(&out::table(&rows, &[]))?)
}

/// Pins the results that a pipeline has now.
pub fn pin(pipeline: &Pipeline, stages: &[String]) -> Done {
    let (project, _, cache) = load_and_open(pipeline)?;
    let mut wanted = Vec::new();
    for stage in stages {
        wanted.extend(project.graph().select(stage)?);
    }
    if stages.is_empty() {
        wanted.extend(0..project.graph().nodes.len());
    }
    let plan = flow_engine::plan(&project, &cache, &RunOptions::default())?;
    let graph = project.graph();
    let key = |id: usize| match &plan.nodes[id].verdict {
        Verdict::Cached { key, .. } | Verdict::Team { key, .. } => Some(*key),
        _ => None,
    };
    // The records of what a key is made of are kept with it: without them nobody would find it again.
    let kept = graph.closure(wanted.iter().copied(), true);
    let (mut pinned, mut without) = (0, Vec::new());
    for id in (0..graph.nodes.len()).filter(|&id| kept[id]) {
        let (node, whole) = (graph.nodes[id].name.as_str(), wanted.contains(&id));
        match key(id) {
            Some(key_of) => {
                let note = if whole { note(&project, node) } else { String::new() };
                let needs = graph.nodes[id].dependencies.iter().filter_map(|&from| key(from)).collect();
                cache.pin(&Pin { key: key_of, note, whole, needs })?;
                pinned += usize::from(whole);
            }
            None if whole && !matches!(plan.nodes[id].verdict, Verdict::Off) => without.push(node),
            None => {}
        }
    }
    eprintln!("pinned {}", plural(pinned, "result"));
    if without.is_empty() {
        return Ok(());
    }
    let error = Diagnostic::new(format!("{} without a result: {}", plural(without.len(), "node"), without.join(", ")));
    Err(Failure::absent(error.hint(format!("run it first: flow run {}", pipeline.words()))))
}

/// Lets go of what was pinned for a pipeline or one of its stages, whatever the file says by now.
pub fn unpin(path: &Path, stages: &[String]) -> Done {
    let dir = project_dir(path);
    let (_, cache) = open(&dir)?;
    let file = path.file_name().map_or_else(|| dir.clone(), |name| dir.join(name)).display().to_string();
    let mut unpinned = 0;
    for Pin { key, note, .. } in cache.pins()?.into_iter().filter(|pin| pin.whole) {
        let mut lines = note.lines();
        let (of, node) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let of_stage = |stage: &String| node == stage || node.split('[').next() == Some(stage);
        if of == file && (stages.is_empty() || stages.iter().any(of_stage)) && cache.unpin(&key)? {
            unpinned += 1;
        }
    }
    // What was pinned for a file is let go of when that is gone, too.
    if unpinned == 0 && !path.exists() {
        let error = Diagnostic::new(format!("there is no file `{}`, and nothing is pinned for it", path.display()));
        return Err(error.hint("`flow cache pin` lists what is pinned").into());
    }
    eprintln!("unpinned {}", plural(unpinned, "result"));
    Ok(())
}
