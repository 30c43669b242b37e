//! The page: one HTML file that needs nothing else, in sections that `flow ui` sends again when they change.
//!
//! Every text goes through `maud`, which escapes it. The policy in its head lets nothing run or be loaded but the script
//! and the styles that are part of the page, known by their digests.

mod charts;
mod graph;
mod overview;
mod stages;
mod text;
mod timeline;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use form_urlencoded::byte_serialize;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    charts::{Chart, letter},
    data::Report,
};
use crate::ui::format::clock;

const STYLE: &str = concat!(include_str!("../assets/page.css"), include_str!("../assets/parts.css"));
const SCRIPT: &str =
    concat!(include_str!("../assets/chart.js"), include_str!("../assets/page.js"), include_str!("../assets/live.js"));
/// By this a file is known for a page that flow wrote.
pub const GENERATOR: &str = "<meta name=\"generator\" content=\"flow ";

/// A part of the page.
#[derive(Debug)]
pub struct Section {
    pub id: &'static str,
    /// Its name among the links at the top; empty for what needs none.
    pub title: &'static str,
    /// Empty for what there is nothing to say of.
    pub html: Markup,
}

/// The sections of a page. One that is `live` has no drawings of curves: it makes them itself, again and again.
pub fn sections(report: &Report, charts: &[Chart<'_>], live: bool) -> Vec<Section> {
    let section = |id, title, html| Section { id, title, html };
    vec![
        section("overview", "Overview", overview::head(report)),
        section(
            "now",
            "",
            if live {
                stages::now(report)
            } else {
                html! {}
            },
        ),
        section("differences", "Differences", overview::differences(report)),
        section("graph", "Graph", graph::graphs(report)),
        section("timeline", "Timeline", timeline::timelines(report)),
        section("training", "Training", charts::training(charts, live)),
        section("corpus", "Corpus", text::corpora(report)),
        section("evaluation", "Evaluation", text::evaluations(report)),
        section("samples", "Samples", text::samples(report)),
        section("stages", "Stages", stages::stages(report, live)),
    ]
}

/// The title of a part of which there is one a run.
fn heading(report: &Report, nth: usize, title: &str) -> Markup {
    html! {
        @if report.runs.len() == 1 { h2 { (title) } }
        @else { h2 { (title) " " span.letter { (letter(nth)) } } }
    }
}

/// Where `flow ui` shows the whole log of a node.
pub fn log_address(run: &str, node: &str) -> String {
    format!("/run/{run}/log?node={}", byte_serialize(node.as_bytes()).collect::<String>())
}

/// What the script draws, as JSON. What is not sent again and again has the values that are seen from near, too.
pub fn chart_data(charts: &[Chart<'_>], live: bool) -> String {
    let mut data = json!({ "charts": charts });
    if !live {
        for (nth, chart) in charts.iter().enumerate() {
            for (at, series) in chart.series.iter().enumerate() {
                data["charts"][nth]["series"][at]["curve"] = series.curve.near();
            }
        }
    }
    // In a page no `<` may stand in it: it could end the element that it is in.
    data.to_string().replace('<', "\\u003c")
}

/// The page that `flow report` writes.
pub fn written(report: &Report) -> String {
    let charts = super::charts::of(report);
    let about = match &report.runs[..] {
        [run] => format!("{} · {}", run.pipeline, run.id),
        runs => format!("{} runs of {}", runs.len(), runs.first().map_or("", |run| &run.pipeline)),
    };
    let foot = html! { "Written by flow " (report.flow) " on " (clock(report.made)) "." };
    page(&about, &sections(report, &charts, false), &chart_data(&charts, false), None, &foot)
}

/// The rule for what a page may do; one that is live asks its server for what is new.
pub fn policy(live: bool) -> String {
    let digest = |text: &str| STANDARD.encode(Sha256::digest(text));
    let connect = if live { "; connect-src 'self'" } else { "" };
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'{connect}",
        digest(STYLE),
        digest(SCRIPT)
    )
}

/// A page of these sections. What is live is told by `events`, an address.
pub fn page(title: &str, sections: &[Section], data: &str, events: Option<&str>, foot: &Markup) -> String {
    let links = sections.iter().filter(|section| !section.title.is_empty());
    html! {
        (DOCTYPE)
        html lang="en" data-events=[events] {
            head {
                meta charset="utf-8";
                (PreEscaped(format!("{GENERATOR}{}\">", env!("CARGO_PKG_VERSION"))))
                meta http-equiv="Content-Security-Policy" content=(policy(events.is_some()));
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                title { (title) " · flow" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#main" { "Skip to the report" }
                header.bar {
                    @if events.is_some() { a.brand href="/" { "flow" } } @else { span.brand { "flow" } }
                    nav aria-label="Sections" {
                        @for section in links {
                            a href={ "#" (section.id) } hidden[section.html.0.is_empty()] { (section.title) }
                        }
                    }
                    @if events.is_some() { span #link.link role="status" { "connecting" } }
                    button #theme.theme type="button" hidden { "Theme" }
                }
                main #main {
                    @for section in sections {
                        section id=(section.id) aria-label=(section.id) hidden[section.html.0.is_empty()] {
                            (section.html)
                        }
                    }
                }
                footer { (foot) }
                script #data type="application/json" { (PreEscaped(data)) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
    .into_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_the_page_can_end_the_element_that_it_is_in() {
        assert!(!STYLE.contains("</"), "the styles would end");
        assert!(!SCRIPT.contains("</script") && !SCRIPT.contains("<!--"), "the script would end");
        let policy = policy(false);
        assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("connect"), "{policy}");
    }
}
