//! `flow cache`

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use anyhow::Result;
use flow_cache::{Cache, GcPolicy, ResultRecord};
use flow_core::Key;
use flow_engine::History;
use serde_json::json;

use super::{Done, open_here, pin, team};
use crate::{
    args,
    failure::Failure,
    out,
    ui::format::{bytes, clock, count, duration, plural},
};

/// Looks after the cache.
pub fn cache(args: &args::Cache) -> Done {
    match args {
        args::Cache::Stats => stats(),
        args::Cache::Ls { json } => ls(*json),
        args::Cache::Gc { max_age, max_size, keep_runs, dry_run } => gc(*max_age, *max_size, *keep_runs, *dry_run),
        args::Cache::Verify => verify(),
        args::Cache::Pin(part) if part.file.is_none() => pin::list(),
        args::Cache::Pin(part) => pin::pin(&part.pipeline(), &part.stages),
        args::Cache::Unpin { file, stages } => pin::unpin(file, stages),
        args::Cache::Push(part) => team::push(part),
        args::Cache::Pull(part) => team::pull(part),
        args::Cache::Export { to, part, force } => team::export(to, part, *force),
        args::Cache::Import { from } => team::import(from),
        args::Cache::Keygen { to } => team::keygen(to.as_deref()),
    }
}

fn stats() -> Done {
    let (_, cache) = open_here()?;
    let stats = cache.stats()?;
    let mut rows = vec![
        vec!["directory".to_owned(), cache.root().display().to_string()],
        vec!["results".to_owned(), count(stats.results as u64)],
        vec!["objects".to_owned(), format!("{}, {}", count(stats.objects as u64), bytes(stats.bytes))],
        vec!["unfinished".to_owned(), format!("{}, {}", count(stats.scratch as u64), bytes(stats.scratch_bytes))],
    ];
    if stats.quarantined > 0 {
        rows.push(vec!["quarantined".to_owned(), count(stats.quarantined as u64)]);
    }
    out::write(&out::table(&rows, &[]))?;
    if stats.kinds.is_empty() {
        return Ok(());
    }
    let mut rows = vec![["kind", "results", "size", "took"].map(str::to_owned).to_vec()];
    rows.extend(
        stats
            .kinds
            .iter()
            .map(|(kind, of)| vec![kind.clone(), count(of.results as u64), bytes(of.bytes), duration(of.cost)]),
    );
    out::line("")?;
    Ok(out::write(&out::table(&rows, &[1, 2, 3]))?)
}

fn ls(as_json: bool) -> Done {
    let (_, cache) = open_here()?;
    let mut results: Vec<ResultRecord> = cache.results().collect();
    results.sort_by(|a, b| b.created.total_cmp(&a.created).then(a.key.cmp(&b.key)));
    let uses = History::open(&cache).uses()?;
    if as_json {
        let line = |result: &ResultRecord| {
            json!({
                "key": result.key, "kind": result.parts.kind, "digest": result.tree.digest(), "bytes": result.tree.size(),
                "files": result.tree.entries().len(), "cost": result.cost, "created": result.created,
                "host": result.host, "version": result.version,
                "pipeline": uses.get(&result.key).map(|of| &of.pipeline),
                "node": uses.get(&result.key).map(|of| &of.node),
                "used": uses.get(&result.key).map(|of| of.when),
            })
        };
        let lines: String = results.iter().map(|result| format!("{}\n", line(result))).collect();
        return Ok(out::write(&lines)?);
    }
    let rows: Vec<Vec<String>> = results
        .iter()
        .map(|result| {
            let of = uses.get(&result.key);
            vec![
                result.key.short(),
                of.map_or_else(|| result.parts.kind.clone(), |of| of.node.clone()),
                of.map(|of| of.pipeline.clone()).unwrap_or_default(),
                clock(result.created),
                of.map_or_else(|| "not by a run that is known".into(), |of| format!("used {}", clock(of.when))),
                duration(result.cost),
                bytes(result.tree.size()),
                files(result),
            ]
        })
        .collect();
    Ok(out::write(&out::table(&rows, &[5, 6]))?)
}

/// What a result holds, in a few names.
fn files(result: &ResultRecord) -> String {
    const SHOWN: usize = 2;
    let entries = result.tree.entries();
    let names: Vec<&str> = entries.iter().take(SHOWN).map(|entry| entry.name.as_str()).collect();
    let more = entries.len().saturating_sub(SHOWN);
    if more > 0 { format!("{} and {more} more", names.join(", ")) } else { names.join(", ") }
}

fn gc(max_age: Option<Duration>, max_size: Option<u64>, keep_runs: Duration, dry_run: bool) -> Done {
    let (_, cache) = open_here()?;
    let history = History::open(&cache);
    let recent = if keep_runs.is_zero() { HashSet::new() } else { history.used_within(keep_runs)? };
    let uses = history.uses()?;
    let report = cache.gc(&GcPolicy { max_age, max_size, dry_run, keep: &|key| recent.contains(key) })?;
    let rows: Vec<Vec<String>> = report
        .items
        .iter()
        .map(|item| {
            let name = item.key.map_or_else(|| item.path.display().to_string(), |key| key.short());
            let of = item.key.and_then(|key| uses.get(&key));
            let of = of.map_or_else(String::new, |of| format!("{} of {}", of.node, of.pipeline));
            vec![item.kind.clone(), name, bytes(item.bytes), of, item.why.clone()]
        })
        .collect();
    out::write(&out::table(&rows, &[2]))?;
    let verb = if dry_run { "would free" } else { "freed" };
    let stay: Vec<String> = [
        (report.in_use, "in use".to_owned()),
        (report.pinned, "pinned".to_owned()),
        (report.wanted, format!("used by the last runs of {}", duration(keep_runs.as_secs_f64()))),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(number, why)| format!("{} {why}", count(number as u64)))
    .collect();
    let stay = if stay.is_empty() { String::new() } else { format!(" ({})", stay.join(", ")) };
    eprintln!("{verb} {}; {}{stay} stay, {}", bytes(report.freed), plural(report.kept, "result"), bytes(report.size));
    let gone: HashSet<Key> = report.items.iter().filter_map(|item| item.key).collect();
    remove_runs(&cache, &history, keep_runs, dry_run, &gone)?;
    if max_size.is_some_and(|max| report.size > max) {
        eprintln!("what stays is more than was asked for: `--keep-runs` and `flow cache unpin` let go of it");
    }
    Ok(())
}

/// Removes the runs that are older and that nothing is left of but what they say.
fn remove_runs(cache: &Cache, history: &History, age: Duration, dry_run: bool, gone: &HashSet<Key>) -> Result<()> {
    let stay: HashSet<Key> = cache.results().map(|result| result.key).filter(|key| !gone.contains(key)).collect();
    let old = history.old(age, &|key| stay.contains(key))?;
    if old.is_empty() {
        return Ok(());
    }
    if !dry_run {
        old.iter().try_for_each(|run| history.remove(run))?;
    }
    let verb = if dry_run { "would remove" } else { "removed" };
    let age = if age.is_zero() {
        String::new()
    } else {
        format!(" that began more than {} ago", duration(age.as_secs_f64()))
    };
    eprintln!(
        "{verb} {}{age}; the last of each pipeline and profile stays, and what made a result that stays",
        plural(old.len(), "run")
    );
    Ok(())
}

fn verify() -> Done {
    let (_, cache) = open_here()?;
    let started = Instant::now();
    let shown = std::sync::Mutex::new(started);
    let screen = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let report = cache.verify(&|done, total| {
        let Ok(mut shown) = shown.try_lock() else { return };
        if screen && shown.elapsed() > Duration::from_millis(200) {
            *shown = Instant::now();
            eprint!("\r\x1b[K{} of {}", bytes(done), bytes(total));
        }
    })?;
    if screen {
        eprint!("\r\x1b[K");
    }
    let damaged = report.damaged.iter().map(|object| ("damaged", &object.path, &object.why, object.results.len()));
    let missing = report.missing.iter().map(|object| ("missing", &object.path, &object.why, object.results.len()));
    let records = report.bad_records.iter().map(|record| ("record", &record.path, &record.why, 1));
    let rows: Vec<Vec<String>> = damaged
        .chain(missing)
        .chain(records)
        .map(|(what, path, why, results)| {
            vec![what.to_owned(), path.display().to_string(), plural(results, "result"), why.clone()]
        })
        .collect();
    out::write(&out::table(&rows, &[]))?;
    eprintln!(
        "read {} in {} and {} in {}",
        bytes(report.bytes),
        plural(report.objects, "object"),
        plural(report.results, "result"),
        duration(started.elapsed().as_secs_f64())
    );
    if report.is_good() {
        if !rows.is_empty() {
            eprintln!("{} damaged, and the team had all of it: it is good again", plural(rows.len(), "thing"));
        }
        return Ok(());
    }
    // Damage is put aside, so the next run makes it again; but whoever asked must not take this for a yes.
    Err(Failure::Cache(anyhow::anyhow!(
        "{} damaged; the next run makes again what it needs",
        plural(rows.len(), "thing")
    )))
}
