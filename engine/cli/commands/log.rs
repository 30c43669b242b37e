//! `flow log`

use std::{
    collections::BTreeSet,
    fs::File,
    io::{ErrorKind, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result};
use flow_core::{Diagnostic, Event, How, Record, did_you_mean};
use flow_engine::{ClusterJob, History, RunInfo, Told, jobs};

use super::{Done, open_here, show::find, status::natural};
use crate::{args, failure::Failure, out, ui::format::fit};

/// Runs in which a stage without a log is looked for.
const LOOK_BACK: usize = 20;

/// Prints the log of a stage.
pub fn log(args: &args::Log) -> Done {
    let (settings, cache) = open_here()?;
    let history = History::open(&cache);
    let runs: Box<dyn Iterator<Item = RunInfo>> = match &args.run {
        Some(id) => Box::new(std::iter::once(find(&history, id)?)),
        None => Box::new(history.busy()?),
    };
    let wanted = Wanted { stage: &args.stage, rank: args.rank };
    let with_log = |run: &RunInfo| !wanted.logs(run).is_empty();
    if !args.follow {
        let (mut runs, mut without) = (runs, Vec::new());
        let newest = runs.find(|run| {
            let found = with_log(run);
            if !found && without.len() < LOOK_BACK {
                without.push(run.clone());
            }
            found
        });
        return match newest {
            Some(run) => Ok(print(&wanted.logs(&run))?),
            None => without_log(&without, wanted),
        };
    }
    // One that goes on and is not done with it: that runs it, or else will. Or the newest run in which it ran.
    let runs: Vec<RunInfo> = runs.collect();
    let goes_on = |run: &&RunInfo| run.alive && !is_over(run, &args.stage).unwrap_or(true);
    let living: Vec<&RunInfo> = runs.iter().filter(goes_on).collect();
    let chosen = living.iter().find(|run| with_log(run)).or_else(|| living.iter().find(|run| run.has(&args.stage)));
    if chosen.is_none()
        && let Some(job) = jobs(&cache, &settings.executors, true).into_iter().find(|job| makes(job, &args.stage))
    {
        return Ok(follow_job(&job, wanted, &|| {
            jobs(&cache, &settings.executors, true).iter().any(|other| other.id == job.id && makes(other, &args.stage))
        })?);
    }
    match chosen.copied().or_else(|| runs.iter().find(|run| with_log(run))) {
        Some(run) => Ok(follow(&history, &run.id, wanted)?),
        None => without_log(&runs, wanted),
    }
}

/// Whose log is asked for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    /// A stage or a node.
    stage: &'a str,
    /// One of its ranks alone.
    rank: Option<usize>,
}

/// Says why there is no log of a stage.
fn without_log(runs: &[RunInfo], Wanted { stage, rank }: Wanted<'_>) -> Done {
    if let Some(rank) = rank
        && runs.iter().take(LOOK_BACK).any(|run| !Wanted { stage, rank: None }.logs(run).is_empty())
    {
        let wrong = Diagnostic::new(format!("`{stage}` has no log of a rank {rank}"));
        return Err(wrong
            .hint("where there is one rank, or the rank wrote nothing, `flow log` without `--rank` has all")
            .into());
    }
    let ran = |how: Option<How>| matches!(how, None | Some(How::Ran | How::Resumed));
    let mut known = BTreeSet::new();
    let mut was_there = false;
    for run in runs.iter().take(LOOK_BACK) {
        let is_it = run.chooser(stage);
        let nodes = run.nodes().unwrap_or_default();
        was_there |= nodes.keys().any(|node| is_it(node));
        if nodes.iter().any(|(node, record)| is_it(node) && ran(record.how)) {
            eprintln!("`{stage}` wrote nothing to its log in run {}", run.id);
            return Ok(());
        }
        known.extend(nodes.into_keys());
    }
    let wrong = Diagnostic::new(format!("no run has a log of `{stage}`"));
    if was_there {
        return Err(Failure::absent(wrong.hint("it was cached, and what does not run has no log")));
    }
    let mut stages: Vec<&str> =
        known.iter().map(|node| node.split_once('[').map_or(&**node, |(stage, _)| stage)).collect();
    stages.dedup();
    Err(match did_you_mean(stage, stages.iter().copied()) {
        Some(near) => wrong.hint(format!("did you mean `{near}`?")),
        None if stages.is_empty() => wrong.hint("nothing ran yet"),
        None => wrong.hint(format!("what ran: {}", fit(&stages.join(", "), 200))),
    }
    .into())
}

impl Wanted<'_> {
    /// The logs of a node, or of every node of a stage: name and file, in order.
    fn logs(self, run: &RunInfo) -> Vec<(String, PathBuf)> {
        let own = match self.rank {
            Some(rank) => run.rank_log_path(self.stage, rank),
            None => run.log_path(self.stage),
        };
        if own.is_file() {
            return vec![(self.stage.to_owned(), own)];
        }
        // One that was cached has no log.
        let Some(dir) = own.parent() else { return Vec::new() };
        let is_it = run.chooser(self.stage);
        let end = self.rank.map_or_else(|| ".log".to_owned(), |rank| format!(".rank{rank}.log"));
        let nodes = std::fs::read_dir(dir).into_iter().flatten().filter_map(|entry| {
            let file = entry.ok()?.file_name().into_string().ok()?;
            let node = file.strip_suffix(&end).filter(|node| node.ends_with(']') && is_it(node))?;
            Some((node.to_owned(), dir.join(&file)))
        });
        let mut nodes: Vec<_> = nodes.collect();
        nodes.sort_by_cached_key(|(node, _)| natural(node));
        nodes
    }
}

fn print(logs: &[(String, PathBuf)]) -> Result<()> {
    for (name, path) in logs {
        if logs.len() > 1 {
            out::line(format!("==> {name} <=="))?;
        }
        copy(path, 0)?;
    }
    Ok(())
}

/// Whether all nodes of a stage have ended in a run that goes on.
fn is_over(run: &RunInfo, stage: &str) -> Result<bool> {
    let is_it = run.chooser(stage);
    Ok(Ends::new(run, &is_it).count()? >= run.count(stage))
}

/// Prints what comes, until the stage or the run is over.
fn follow(history: &History, run: &str, wanted: Wanted<'_>) -> Result<()> {
    let mut read: Vec<(String, u64)> = Vec::new();
    let mut last = None;
    let info = history.find(run)?;
    let (nodes, is_it) = (info.count(wanted.stage), info.chooser(wanted.stage));
    let mut ends = Ends::new(&info, &is_it);
    loop {
        // Whether it is over must be known before its last lines are read.
        let info = history.find(run)?;
        let over = !info.alive || ends.count()? >= nodes;
        let logs = wanted.logs(&info);
        for (name, path) in &logs {
            let at = read.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
                read.push((name.clone(), 0));
                read.len() - 1
            });
            let length = std::fs::metadata(path).map_or(0, |file| file.len());
            if length > read[at].1 {
                if logs.len() > 1 && last.as_ref() != Some(name) {
                    out::line(format!("==> {name} <=="))?;
                    last = Some(name.clone());
                }
                read[at].1 = copy(path, read[at].1)?;
            }
        }
        if over {
            return Ok(());
        }
        sleep(Duration::from_millis(200));
    }
}

/// Whether a job makes a node, or one of a stage.
fn makes(job: &ClusterJob, stage: &str) -> bool {
    job.nodes.iter().any(|node| is_of(node, stage))
}

fn is_of(node: &str, stage: &str) -> bool {
    node.strip_prefix(stage).is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
}

/// Prints what a job in a cluster says of a stage whose run is gone, until it is done with it.
fn follow_job(job: &ClusterJob, wanted: Wanted<'_>, lives: &dyn Fn() -> bool) -> Result<()> {
    let mut told = Told::of(job);
    loop {
        // Whether it is over must be known before its last lines are read.
        let over = !lives();
        for event in told.read() {
            if let Event::Log { node, text, rank, .. } = event
                && is_of(&node, wanted.stage)
                && (wanted.rank.is_none() || rank == wanted.rank)
            {
                out::line(text)?;
            }
        }
        if over {
            return Ok(());
        }
        // Its scheduler is asked each time.
        sleep(Duration::from_secs(10));
    }
}

/// Which nodes have ended: reads of a run's events only what is new.
struct Ends<'a> {
    is_it: &'a dyn Fn(&str) -> bool,
    events: PathBuf,
    at: u64,
    ended: BTreeSet<String>,
}

impl<'a> Ends<'a> {
    fn new(run: &RunInfo, is_it: &'a dyn Fn(&str) -> bool) -> Self {
        Self { is_it, events: run.events_path(), at: 0, ended: BTreeSet::new() }
    }

    /// How many of the nodes have ended by now.
    fn count(&mut self) -> Result<usize> {
        let context = || format!("cannot read {}", self.events.display());
        let mut new = Vec::new();
        match File::open(&self.events) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error).with_context(context),
            Ok(mut file) => {
                file.seek(SeekFrom::Start(self.at)).with_context(context)?;
                file.read_to_end(&mut new).with_context(context)?;
            }
        }
        let whole = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.at += whole as u64;
        for record in new[..whole].split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()) {
            let Record { event, .. } = record;
            if let Event::Finished { node, .. }
            | Event::Failed { node, retry_after: None, .. }
            | Event::Blocked { node, .. } = event
            {
                self.ended.insert(node);
            }
        }
        Ok(self.ended.iter().filter(|node| (self.is_it)(node)).count())
    }
}

/// Prints a file from `start`; where it ended.
fn copy(path: &Path, start: u64) -> Result<u64> {
    let context = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let mut at = file.seek(SeekFrom::Start(start)).with_context(context)?;
    let mut block = vec![0; 1 << 16];
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(at),
            Ok(read) => {
                out::bytes(&block[..read])?;
                at += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(context),
        }
    }
}
