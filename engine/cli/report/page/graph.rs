//! The graph of a run: a box a stage, with what became of its nodes.

use maud::{Markup, html};

use super::{
    super::data::{Report, Run, Stage},
    heading, stages,
};
use crate::commands::svg::{self, HEIGHT};

/// The graph of each run.
pub fn graphs(report: &Report) -> Markup {
    html! {
        @for (nth, run) in report.runs.iter().enumerate() {
            @if !run.stages.is_empty() {
                (heading(report, nth, "Graph"))
                (graph(nth, run))
            }
        }
    }
}

fn graph(nth: usize, run: &Run) -> Markup {
    let takes: Vec<Vec<usize>> = run
        .stages
        .iter()
        .enumerate()
        .map(|(at, stage)| (0..at).filter(|from| stage.takes.contains(&run.stages[*from].name)).collect())
        .collect();
    let label = |stage: &Stage| match stage.asked {
        1 => stage.kind.clone(),
        nodes => format!("{} ×{nodes}", stage.kind),
    };
    let drawn: Vec<svg::Stage<'_>> = run
        .stages
        .iter()
        .zip(&takes)
        .map(|(stage, takes)| svg::Stage { name: &stage.name, label: label(stage), on: true, takes })
        .collect();
    let layout = svg::lay_out(&drawn);
    let (wide, high) = (layout.width.ceil(), layout.height.ceil());
    html! {
        div.scroll.graph tabindex="0" role="region" aria-label="The graph of the stages" {
            svg.dag width=(wide) height=(high) viewBox={ "0 0 " (wide) " " (high) } role="group" aria-label="Stages" {
                defs {
                    marker id={ "tip" (nth) } viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto" {
                        path.tip d="M0 0L8 4L0 8z" {}
                    }
                }
                @for edge in &layout.edges { path.edge d=(edge) marker-end={ "url(#tip" (nth) ")" } {} }
                @for ((stage, place), head) in run.stages.iter().zip(&layout.stages).zip(&drawn) {
                    (node(nth, stage, *place, &head.label))
                }
            }
        }
        (stages::legend())
    }
}

fn node(run: usize, stage: &Stage, (x, y, width): (f64, f64, f64), label: &str) -> Markup {
    let number = |number: f64| format!("{number:.1}");
    let middle = number(x + width / 2.0);
    // Of a family what became of its nodes, as parts of a line along the bottom.
    let total: usize = stage.states.values().sum();
    let mut from = x + 6.0;
    let parts: Vec<(f64, f64, &str)> = stage
        .states
        .iter()
        .map(|(state, count)| {
            let part = (width - 12.0) * *count as f64 / total.max(1) as f64;
            from += part;
            (from - part, part, state.class())
        })
        .collect();
    html! {
        a href={ "#" (stages::anchor(run, &stage.name)) } class={ "node " (stage.state().class()) } {
            title { (stage.name) ": " (stages::tally(stage)) }
            rect.box x=(number(x)) y=(number(y)) width=(number(width)) height=(HEIGHT) rx="7" {}
            text.name x=(middle) y=(number(y + 16.5)) text-anchor="middle" { (stage.name) }
            text.kind x=(middle) y=(number(y + 30.5)) text-anchor="middle" { (label) }
            @for (x, width, class) in parts {
                rect class={ "part " (class) } x=(number(x)) y=(number(y + HEIGHT - 4.0)) width=(number(width)) height="3" {}
            }
        }
    }
}
