//! Curves as they are without a script, and on paper: a picture and a table of some values each. Where the script runs it
//! draws them anew, for the width that there is.

use maud::{Markup, html};

use super::super::{
    charts::{Chart, Series},
    curve::Point,
};
use crate::ui::format::{bytes, count, value};

const WIDE: f64 = 720.0;
const HIGH: f64 = 240.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 28.0;
/// So many values of a curve stand in its table.
const ROWS: usize = 12;
/// So many colours are told apart.
const COLORS: usize = 6;

/// The charts; without pictures where the script draws them anyway.
pub fn training(charts: &[Chart<'_>], live: bool) -> Markup {
    if charts.is_empty() {
        return html! {};
    }
    html! {
        h2 { "Training" }
        div.tools #tools hidden {
            label { input #log type="checkbox"; " Logarithmic" }
            label { "Smoothing " input #smooth type="range" min="0" max="0.99" step="0.01" value="0"; output #smoothed for="smooth" { "0" } }
            button #reset type="button" disabled { "Whole range" }
            span.hint { "Drag over a chart to look closer; with the keyboard: arrows, + and −, 0. With Ctrl the wheel does it, too." }
        }
        div.charts {
            @for (nth, chart) in charts.iter().enumerate() {
                figure.chart.first[nth == 0] data-chart=(chart.id) {
                    figcaption { (chart.title) }
                    div.plot { @if !live { (picture(chart)) } }
                    ul.keys {
                        @for series in &chart.series {
                            li.dashed[series.dashed] { span class={ "key " (color(series)) } {} (series.name) }
                        }
                    }
                    @if !live { details.values { summary { "Values" } (table(chart)) } }
                }
            }
        }
    }
}

fn color(series: &Series<'_>) -> String {
    format!("s{}", series.color % COLORS)
}

/// A number as the chart writes it.
fn number(chart: &Chart<'_>, of: f64) -> String {
    match chart.unit {
        "bytes" => bytes(of.max(0.0) as u64),
        _ => value(of),
    }
}

/// Round numbers from `low` to `high`, about `about` of them.
fn ticks(low: f64, high: f64, about: f64) -> Vec<f64> {
    if high <= low {
        return vec![low];
    }
    let rough = (high - low) / about;
    let unit = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].iter().map(|times| times * unit).find(|step| *step >= rough).unwrap_or(unit);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    // By a whole number each, so that no error adds up.
    (first..=last).take(20).map(|nth| nth as f64 * step).collect()
}

fn picture(chart: &Chart<'_>) -> Markup {
    let points: Vec<Vec<Point>> = chart.series.iter().map(|series| series.curve.thinned().points().collect()).collect();
    let all = || points.iter().flatten();
    let (first, last) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), p| (a.min(p.step), b.max(p.step)));
    let (mut low, mut high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), p| (a.min(p.low), b.max(p.high)));
    let room = if high > low { 0.05 * (high - low) } else { low.abs().max(1.0) * 0.1 };
    (low, high) = (if low >= 0.0 { (low - room).max(0.0) } else { low - room }, high + room);
    let x = |step: f64| LEFT + (step - first) / (last - first).max(1.0) * (WIDE - LEFT - RIGHT);
    let y = |value: f64| HIGH - BOTTOM - (value - low) / (high - low) * (HIGH - TOP - BOTTOM);
    let line = |points: &[Point], side: fn(&Point) -> f64| {
        points.iter().map(|p| format!("{:.1} {:.1}", x(p.step), y(side(p)))).collect::<Vec<_>>()
    };
    let text = |number: f64| format!("{number:.1}");
    html! {
        svg viewBox={ "0 0 " (WIDE) " " (HIGH) } role="img" aria-label=(summary(chart)) {
            @for tick in ticks(low, high, 4.0) {
                line.grid x1=(LEFT) x2=(WIDE - RIGHT) y1=(text(y(tick))) y2=(text(y(tick))) {}
                text.tick x=(LEFT - 8.0) y=(text(y(tick) + 3.5)) text-anchor="end" { (number(chart, tick)) }
            }
            @for tick in ticks(first, last, 6.0) {
                text.tick x=(text(x(tick))) y=(HIGH - 8.0) text-anchor="middle" { (count(tick.max(0.0) as u64)) }
            }
            @for (series, points) in chart.series.iter().zip(&points) {
                @if points.iter().any(|p| p.high > p.low) {
                    @let back: Vec<Point> = points.iter().rev().copied().collect();
                    path class={ "band " (color(series)) }
                        d={ "M" ([line(points, |p| p.high), line(&back, |p| p.low)].concat().join("L")) "Z" } {}
                }
                path class={ "line " (color(series)) @if series.dashed { " dashed" } }
                    d={ "M" (line(points, |p| p.value).join("L")) } {}
            }
        }
    }
}

/// What a chart shows, in a sentence a curve.
fn summary(chart: &Chart<'_>) -> String {
    let of = |series: &Series<'_>| {
        let (first, last) = (series.curve.points().next()?, series.curve.last()?);
        let (from, to) = (number(chart, first.value), number(chart, last.1));
        Some(format!("{}: {from} at step {:.0}, {to} at step {}", series.name, first.step, last.0))
    };
    let curves: Vec<String> = chart.series.iter().filter_map(of).collect();
    format!("{}. {}", chart.title, curves.join("; "))
}

/// Some values of each curve, the first and the last among them.
fn table(chart: &Chart<'_>) -> Markup {
    let of = |series: &Series<'_>| {
        let points: Vec<Point> = series.curve.points().collect();
        let rows = ROWS.min(points.len());
        (0..rows).map(|row| points[row * (points.len() - 1) / (rows - 1).max(1)]).collect::<Vec<_>>()
    };
    html! {
        @for series in &chart.series {
            table.small {
                caption { (series.name) ", " (count(series.curve.taken())) " values" }
                thead { tr { th.n scope="col" { "Step" } th.n scope="col" { (chart.title) } } }
                tbody { @for point in of(series) { tr { td.n { (count(point.step as u64)) } td.n { (number(chart, point.value)) } } } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks(0.0, 10.0, 5.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(0.31, 0.74, 4.0), [0.4, 0.6000000000000001]);
        assert_eq!(ticks(5.0, 5.0, 4.0), [5.0]);
        assert_eq!(ticks(1.0, 1e6, 6.0), [200_000.0, 400_000.0, 600_000.0, 800_000.0, 1_000_000.0]);
    }
}
