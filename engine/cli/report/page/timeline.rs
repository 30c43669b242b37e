//! When each stage worked and waited. A table, whose bars are stretched to its width: it stays readable on a phone.

use maud::{Markup, html};

use super::{
    super::data::{Report, Run, Stage},
    heading, stages,
};
use crate::ui::format::duration;

/// The bars are drawn on so many units.
const WIDE: f64 = 1000.0;
/// Nodes that work at the same time stand above each other, in so many lanes at most.
const LANES: usize = 10;
/// So many times are written above the bars.
const TICKS: usize = 4;

/// The timeline of each run.
pub fn timelines(report: &Report) -> Markup {
    html! {
        @for (nth, run) in report.runs.iter().enumerate() {
            @if run.stages.iter().any(|stage| stage.nodes.iter().any(|node| !node.told.spans.is_empty())) {
                (heading(report, nth, "Timeline"))
                (timeline(nth, run))
            }
        }
    }
}

fn timeline(nth: usize, run: &Run) -> Markup {
    let long = (run.end() - run.started).max(1e-3);
    html! {
        table.timeline {
            thead {
                tr {
                    th scope="col" { "Stage" }
                    th.axis scope="col" {
                        span.vh { "When, from the start of the run" }
                        span.ticks aria-hidden="true" {
                            @for tick in 0..=TICKS { span { (duration(long * tick as f64 / TICKS as f64)) } }
                        }
                    }
                    th.n scope="col" { "Worked" }
                }
            }
            tbody {
                @for stage in run.stages.iter().filter(|stage| stage.nodes.iter().any(|node| !node.told.spans.is_empty())) {
                    tr {
                        th scope="row" { a href={ "#" (stages::anchor(nth, &stage.name)) } { (stage.name) } }
                        td.bars { (bars(run, stage, long)) }
                        td.n { @if let Some(worked) = worked(run, stage) { (duration(worked)) } @else { span.none { "cached" } } }
                    }
                }
            }
        }
    }
}

/// For how long its nodes worked, added up; nothing if none had to.
fn worked(run: &Run, stage: &Stage) -> Option<f64> {
    let spans = stage.nodes.iter().flat_map(|node| &node.told.spans);
    let spans = spans.filter(|span| !["st-wait", "st-hit"].contains(&span.what.class()));
    spans.map(|span| span.to.unwrap_or_else(|| run.end()) - span.from).reduce(|a, b| a + b)
}

fn bars(run: &Run, stage: &Stage, long: f64) -> Markup {
    let mut free: Vec<f64> = Vec::new();
    let mut drawn = Vec::new();
    let mut nodes: Vec<_> = stage.nodes.iter().filter(|node| !node.told.spans.is_empty()).collect();
    nodes.sort_by(|a, b| a.told.spans[0].from.total_cmp(&b.told.spans[0].from));
    for node in nodes {
        let begin = node.told.spans[0].from;
        let end = node.told.spans.last().map_or(begin, |last| last.to.unwrap_or_else(|| run.end()));
        let lane = match free.iter().position(|until| *until <= begin) {
            Some(lane) => lane,
            None if free.len() < LANES => {
                free.push(0.0);
                free.len() - 1
            }
            None => free.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(lane, _)| lane),
        };
        free[lane] = free[lane].max(end);
        drawn.extend(node.told.spans.iter().map(|span| (lane, &node.name, span)));
    }
    let lanes = free.len().max(1);
    let each = if lanes == 1 { 12.0 } else { (24.0 / lanes as f64).max(4.0) };
    let high = each * lanes as f64 + 4.0;
    let place = |time: f64| ((time - run.started) / long * WIDE).clamp(0.0, WIDE);
    let number = |number: f64| format!("{number:.2}");
    html! {
        svg viewBox={ "0 0 " (WIDE) " " (high) } height=(high) preserveAspectRatio="none" role="img"
            aria-label={ (stage.name) ": " (stages::tally(stage)) } {
            @for (lane, name, span) in drawn {
                @let end = span.to.unwrap_or_else(|| run.end());
                // What took no time is seen nevertheless.
                @let width = (place(end) - place(span.from)).max(2.5);
                rect class=(span.what.class())
                    x=(number(place(span.from).min(WIDE - width))) y=(number(2.0 + lane as f64 * each))
                    width=(number(width)) height=(number((each - 1.0).max(2.0))) {
                    title { (name) ": " (span.what.word()) ", " (duration(end - span.from)) ", after " (duration(span.from - run.started)) }
                }
            }
        }
    }
}
