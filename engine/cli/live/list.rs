//! The list of runs, and what a page says that belongs to none of them.

use anyhow::Result;
use flow_engine::{History, RunInfo};
use maud::{Markup, html};

use super::hub::Picture;
use crate::{
    commands::runs,
    report::page::{self, Section},
    ui::format::{clock, count, duration},
};

/// So many runs are listed: as many as are read from their files, without an index that others need.
pub const RUNS: usize = 60;

/// The list.
pub fn picture(history: &History, before: Option<&Picture>) -> Result<Picture> {
    let runs: Vec<RunInfo> = history.list()?.take(RUNS).collect();
    let html = html! {
        p.kicker { "flow" }
        h1 { "Runs" }
        @if runs.is_empty() { p { "Nothing ran yet." } }
        @else {
            div.scroll tabindex="0" role="region" aria-label="The runs, the newest first" {
                table {
                    thead {
                        tr {
                            th scope="col" { "Run" } th scope="col" { "Pipeline" } th scope="col" { "State" } th scope="col" { "Started" }
                            th.n scope="col" { "Took" } th.n scope="col" { "Ran" } th.n scope="col" { "Cached" } th.n scope="col" { "Failed" }
                        }
                    }
                    tbody { @for run in &runs { (row(run)) } }
                }
            }
        }
    };
    let section = Section { id: "overview", title: "", html };
    Ok(Picture::new("Runs".into(), vec![section], page::chart_data(&[], true), None, before))
}

fn row(run: &RunInfo) -> Markup {
    let head = &run.head;
    let class = match runs::state(run) {
        "done" => "st-ran",
        "running" => "st-run",
        _ => "st-bad",
    };
    html! {
        tr {
            th scope="row" { a href={ "/run/" (run.id) } { code.id { (run.id) } } }
            td { (head.pipeline) @if let Some(profile) = &head.profile { span.none { " " (profile) } } }
            td { span.st.(class) { (runs::state(run)) } }
            td { (clock(head.started)) }
            td.n { (head.finished.map(|finished| duration(finished - head.started)).unwrap_or_default()) }
            @if head.finished.is_some() {
                td.n { (count(head.ran as u64)) } td.n { (count(head.skipped as u64)) } td.n { (count(head.failed as u64)) }
            } @else { td {} td {} td {} }
        }
    }
}

/// That there is a newer run.
pub fn newer(run: Option<&RunInfo>) -> Markup {
    html! {
        @if let Some(run) = run {
            p.warning { "There is a newer run of this pipeline: " a href={ "/run/" (run.id) } { code { (run.id) } } }
        }
    }
}

/// That a run cannot be read any more.
pub fn gone(error: &anyhow::Error) -> Markup {
    html! { p.warning { "This run is not there any more: " (error.to_string()) } }
}
