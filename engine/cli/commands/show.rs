//! `flow show`

use flow_engine::{History, RunInfo};

use super::{Done, open_here, runs, status};
use crate::{
    args,
    failure::{Failure, unknown},
    out,
    ui::format::{clock, duration},
};

/// Shows a run.
pub fn show(args: &args::Show) -> Done {
    let (_, cache) = open_here()?;
    let run = find(&History::open(&cache), &args.run)?;
    if args.json {
        return Ok(out::write(&status::json(&run)?)?);
    }
    out::write(&head(&run))?;
    out::line("")?;
    Ok(out::write(&status::table(&run)?)?)
}

/// The run that `id` names.
pub fn find(history: &History, id: &str) -> Result<RunInfo, Failure> {
    history.find(id).map_err(unknown)
}

fn head(run: &RunInfo) -> String {
    let head = &run.head;
    let mut rows = vec![
        ["run", &run.id].map(str::to_owned),
        ["state", runs::state(run)].map(str::to_owned),
        ["pipeline".into(), format!("{} ({})", head.pipeline, head.file.display())],
        ["started".into(), format!("{} on {}, process {}", clock(head.started), head.host, head.pid)],
        ["flow".into(), head.version.clone()],
        ["records".into(), run.dir.display().to_string()],
    ];
    rows.extend(head.profile.iter().map(|profile| ["profile".into(), profile.clone()]));
    rows.extend(head.set.iter().map(|set| ["set".into(), set.clone()]));
    if let Some(finished) = head.finished {
        let saved =
            if head.saved >= 1.0 { format!("; the cache saved {}", duration(head.saved)) } else { String::new() };
        rows.push(["took".into(), format!("{}{saved}", duration(finished - head.started))]);
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    out::table(&rows, &[])
}
