//! What a reader sees first: which run this is, how it ended, what it cost and what it came to; and of several runs in what
//! they differ.

use maud::{Markup, html};

use super::super::{
    charts::letter,
    data::{Difference, Report, Run},
    evaluation::Row,
    tale::State,
};
use crate::ui::format::{bytes, clock, count, duration, plural, value};

/// The head of the page.
pub fn head(report: &Report) -> Markup {
    match &report.runs[..] {
        [run] => one(run),
        runs => several(runs),
    }
}

/// A run's state in its colour.
pub fn state(run: &Run) -> Markup {
    let class = match run.state {
        "done" => "st-ran",
        "running" => "st-run",
        _ => "st-bad",
    };
    html! { span.st.(class) { (run.state) } }
}

fn one(run: &Run) -> Markup {
    html! {
        p.kicker { "Run " code { (run.id) } }
        h1 { (run.pipeline) @if let Some(profile) = &run.profile { " " span.profile { (profile) } } " " (state(run)) }
        dl.facts {
            div { dt { "Started" } dd { (clock(run.started)) } }
            @if let Some(finished) = run.finished { div { dt { "Ended" } dd { (clock(finished)) } } }
            div { dt { "Machine" } dd { (machine(run)) } }
            div { dt { "flow" } dd { (run.version) ", process " (run.pid) } }
            div.wide { dt { "Pipeline" } dd { code { (run.file) } } }
            @if !run.set.is_empty() { div.wide { dt { "Set" } dd { @for set in &run.set { code { (set) } " " } } } }
        }
        (tiles(run))
    }
}

fn machine(run: &Run) -> String {
    match run.cpus {
        0 => run.host.clone(),
        cpus => format!(
            "{}: {}, {}, {}",
            run.host,
            plural(cpus as usize, "core"),
            plural(run.gpus as usize, "GPU"),
            bytes(run.memory)
        ),
    }
}

fn tile(name: &str, number: &str, more: &str) -> Markup {
    html! { div.tile { dt { (name) } dd { strong { (number) } @if !more.is_empty() { span { (more) } } } } }
}

fn tiles(run: &Run) -> Markup {
    let states = run.states();
    let of = |wanted: &dyn Fn(State) -> bool| -> usize {
        states.iter().filter(|(state, _)| wanted(**state)).map(|(_, count)| count).sum()
    };
    let ran = of(&|state| matches!(state, State::Ran | State::Resumed));
    let hits = of(&State::is_hit);
    let parts = [
        (ran, "ran"),
        (hits, "from the cache"),
        (of(&State::goes_on), "going on"),
        (of(&|state| matches!(state, State::Failed | State::Interrupted | State::Killed)), "failed"),
        (of(&|state| matches!(state, State::NotRun)), "not run"),
        (of(&|state| state == State::Ahead), "to go"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts.map(|(number, what)| format!("{} {what}", count(*number as u64))).collect();
    let took = run.seconds.unwrap_or_else(|| run.end() - run.started);
    html! {
        dl.tiles {
            (tile(if run.alive { "Running for" } else { "Took" }, &duration(took), ""))
            @if hits == 0 { (tile("Saved by the cache", "nothing", "all of it was new")) }
            @else { (tile("Saved by the cache", &duration(run.saved), &format!("{} not run again", plural(hits, "node")))) }
            (tile("Nodes", &count(run.nodes as u64), &parts.join(" · ")))
            (results(run))
        }
    }
}

/// What training and evaluation came to.
fn results(run: &Run) -> Markup {
    let nodes = || run.stages.iter().flat_map(|stage| &stage.nodes);
    let loss = nodes().find_map(|node| {
        let curve = node.curves.get("loss")?;
        let validation = node.curves.get("val_loss").and_then(super::super::curve::Curve::last);
        Some((node, curve.points().next()?.value, curve.last()?, validation))
    });
    let rows = || nodes().filter_map(|node| node.evaluation.as_ref()).flat_map(|evaluation| &evaluation.rows);
    let compared: Vec<Option<bool>> = rows().filter(|row| row.difference.is_some()).map(Row::better).collect();
    let are = |better: bool| compared.iter().filter(|one| **one == Some(better)).count();
    html! {
        @if let Some((node, first, (step, last), validation)) = loss {
            (tile("Loss", &format!("{} → {}", value(first), value(last)), &match validation {
                Some((_, validation)) => format!("{} at step {}, validation {}", node.name, count(step), value(validation)),
                None => format!("{} at step {}", node.name, count(step)),
            }))
        }
        @if !compared.is_empty() {
            (tile(
                "Evaluation",
                &format!("{} better, {} worse", are(true), are(false)),
                &format!("of {}, beside the other model", plural(compared.len(), "number")),
            ))
        }
    }
}

fn several(runs: &[Run]) -> Markup {
    let names: Vec<&str> = runs.iter().map(|run| run.pipeline.as_str()).collect();
    let same = names.windows(2).all(|pair| pair[0] == pair[1]);
    html! {
        p.kicker { "Runs side by side" }
        h1 { (plural(runs.len(), "run")) @if same { " of " (names.first().copied().unwrap_or_default()) } }
        div.scroll tabindex="0" role="region" aria-label="The runs" {
            table {
                thead { tr { th { "" } th { "Run" } th { "State" } th { "Started" } th.n { "Took" } th.n { "Saved" } th { "Machine" } th { "flow" } } }
                tbody {
                    @for (nth, run) in runs.iter().enumerate() {
                        tr {
                            th scope="row" { span.letter { (letter(nth)) } }
                            td { code.id { (run.id) } @if !same { " " (run.pipeline) } @if let Some(profile) = &run.profile { " (" (profile) ")" } }
                            td { (state(run)) }
                            td { (clock(run.started)) }
                            td.n { (run.seconds.map(duration).unwrap_or_default()) }
                            td.n { (duration(run.saved)) }
                            td { (run.host) }
                            td { (run.version) }
                        }
                    }
                }
            }
        }
    }
}

/// In what the runs differ.
pub fn differences(report: &Report) -> Markup {
    if report.runs.len() < 2 {
        return html! {};
    }
    let side = |side: &Option<String>| match side {
        Some(text) => html! { td { code { (text) } } },
        None => html! { td.none { "–" } },
    };
    let row = |row: &Difference| {
        html! {
            tr {
                th scope="row" { @if row.stage.is_empty() { span.none { "the run" } } @else { (row.stage) } }
                td { (row.what) }
                @for of in &row.sides { (side(of)) }
            }
        }
    };
    html! {
        h2 { "What differs" }
        @if report.differences.is_empty() { p { "Nothing: the same parameters, on the same machine." } }
        @else {
            div.scroll tabindex="0" role="region" aria-label="What differs" {
                table {
                    thead {
                        tr {
                            th { "Stage" } th { "" }
                            @for nth in 0..report.runs.len() { th { span.letter { (letter(nth)) } } }
                        }
                    }
                    tbody { @for difference in &report.differences { (row(difference)) } }
                }
            }
        }
    }
}
