//! Everything about each stage: how it stands and why it ran, what went in and what came out; and what is going on now.

use std::{collections::BTreeMap, path::Path};

use maud::{Markup, html};

use super::{
    super::{
        data::{NODES, Node, Report, Run, Stage, flatten},
        tale::{Progress, State},
    },
    heading, log_address,
};
use crate::ui::format::{amount, bytes, clock, count, duration, fit, value};

/// A parameter is shown up to so many characters.
const VALUE: usize = 400;
/// So many digests of what entered at a port are shown.
const DIGESTS: usize = 8;
/// Of a log that is being written so many bytes of its end are shown.
const TAIL: u64 = 8 << 10;

/// By what a stage is known in the page. A name of a stage is fit for it.
pub fn anchor(run: usize, stage: &str) -> String {
    format!("r{run}-stage-{stage}")
}

/// `12 cached, 2 ran`.
pub fn tally(stage: &Stage) -> String {
    match stage.states.iter().next() {
        Some((state, _)) if stage.asked == 1 => state.word().to_owned(),
        _ => {
            let parts =
                stage.states.iter().map(|(state, number)| format!("{} {}", count(*number as u64), state.word()));
            parts.collect::<Vec<_>>().join(", ")
        }
    }
}

/// What the colours mean.
pub fn legend() -> Markup {
    let kinds = [
        (State::Ran, "ran"),
        (State::Cached, "from the cache"),
        (State::Running, "running"),
        (State::Waiting, "waiting"),
        (State::Failed, "failed or ended"),
        (State::Ahead, "not run"),
    ];
    html! { p.legend { @for (state, word) in kinds { span.st.(state.class()) { (word) } " " } } }
}

/// The stages of each run.
pub fn stages(report: &Report, live: bool) -> Markup {
    html! {
        @for (nth, run) in report.runs.iter().enumerate() {
            @if !run.stages.is_empty() { (heading(report, nth, "Stages")) }
            @for stage in &run.stages { (part(nth, stage, live.then_some(run.id.as_str()))) }
        }
    }
}

/// A stage. `live`: the run, where its logs can be asked for.
fn part(run: usize, stage: &Stage, live: Option<&str>) -> Markup {
    let (seconds, size) = stage.sums();
    let cost = [(seconds > 0.0).then(|| duration(seconds)), (size > 0).then(|| bytes(size))];
    let cost: Vec<String> = cost.into_iter().flatten().collect();
    let failed = stage.nodes.iter().any(|node| !node.told.causes.is_empty());
    html! {
        details.stage id=(anchor(run, &stage.name)) open[failed] {
            summary {
                span.st.(stage.state().class()) { (tally(stage)) }
                h3 { (stage.name) }
                span.kind { (stage.kind) @if stage.asked > 1 { " ×" (stage.asked) } }
                span.cost { (cost.join(" · ")) }
            }
            div.inside {
                @for node in stage.nodes.iter().filter(|node| !node.told.causes.is_empty()) { (failure(node, live)) }
                @if let [node] = &stage.nodes[..] { (single(node, live)) } @else { (family(stage, live)) }
                (inputs(stage))
                (params(stage))
            }
        }
    }
}

fn failure(node: &Node, live: Option<&str>) -> Markup {
    html! {
        div.failure {
            h4 { (node.name) " " (node.told.state.word()) }
            @for cause in &node.told.causes { p.cause { (cause) } }
            @if !node.told.log.is_empty() { pre tabindex="0" { @for line in &node.told.log { (line) "\n" } } }
            @if node.log_path.is_some() { p.note { "The whole log: " (log(node, live)) } }
        }
    }
}

fn single(node: &Node, live: Option<&str>) -> Markup {
    html! {
        dl.facts {
            @if !node.told.why.is_empty() { div.wide { dt { "Why" } dd { (node.told.why) } } }
            @if let Some(seconds) = node.told.seconds { div { dt { "Took" } dd { (duration(seconds)) } } }
            @if node.told.state.is_hit() && node.told.cost > 0.0 { div { dt { "Saved" } dd { (duration(node.told.cost)) } } }
            @if let Some(made) = &node.made {
                div { dt { "Made" } dd { (clock(made.created)) " on " (made.host) " by flow " (made.version) } }
            }
            @if let Some(key) = &node.told.key { div.wide { dt { "Key" } dd { code { (key) } } } }
            @if let Some(digest) = &node.told.digest { div.wide { dt { "Result" } dd { code { (digest) } } } }
            @if node.log_path.is_some() && node.told.causes.is_empty() { div.wide { dt { "Log" } dd { (log(node, live)) } } }
        }
        @for warning in &node.told.warnings { p.warning { (warning) } }
        (files(node))
    }
}

/// Where its log is; a page of it where there is one.
fn log(node: &Node, live: Option<&str>) -> Markup {
    let path = html! { @if let Some(path) = &node.log_path { code { (path) } } };
    match live {
        Some(run) => html! { a href=(log_address(run, &node.name)) { (path) } },
        None => path,
    }
}

/// The files of a result.
fn files(node: &Node) -> Markup {
    let Some(made) = node.made.as_ref().filter(|made| made.count > 0) else { return html! {} };
    html! {
        h4 { "Output" @if made.freed { span.none { ", freed: its files are not here" } } }
        div.scroll tabindex="0" role="region" aria-label={ "Files of " (node.name) } {
            table.small {
                thead { tr { th scope="col" { "File" } th.n scope="col" { "Size" } th scope="col" { "Digest" } } }
                tbody {
                    @for file in &made.files { tr { th scope="row" { (file.name) } td.n { (bytes(file.size)) } td { code { (file.digest) } } } }
                }
            }
        }
        @if made.count > made.files.len() { p.note { "and " (count((made.count - made.files.len()) as u64)) " more" } }
    }
}

fn family(stage: &Stage, live: Option<&str>) -> Markup {
    if stage.nodes.is_empty() {
        return html! { p.note { "The run did not come to it." } };
    }
    html! {
        div.scroll.tall tabindex="0" role="region" aria-label={ "Nodes of " (stage.name) } {
            table.small {
                thead {
                    tr {
                        th scope="col" { "Node" } th scope="col" { "State" } th scope="col" { "Why" } th.n scope="col" { "Took" }
                        th.n scope="col" { "Size" } th.n scope="col" { "Files" } th scope="col" { "Result" }
                    }
                }
                tbody {
                    @for node in &stage.nodes {
                        tr {
                            th scope="row" {
                                @match live.filter(|_| node.log_path.is_some()) {
                                    Some(run) => a href=(log_address(run, &node.name)) title="Its log" { (node.name) },
                                    None => (node.name),
                                }
                            }
                            td { span.st.(node.told.state.class()) { (node.told.state.word()) } }
                            td { (fit(&node.told.why, VALUE)) }
                            td.n { (node.told.seconds.map(duration).unwrap_or_default()) }
                            td.n { (node.told.bytes.map(bytes).unwrap_or_default()) }
                            td.n { @if let Some(made) = &node.made { (count(made.count as u64)) } }
                            td { @if let Some(digest) = &node.told.digest { code { (digest.short()) } } }
                        }
                    }
                }
            }
        }
        @if stage.asked > stage.nodes.len() && stage.nodes.len() == NODES {
            p.note { "and " (count((stage.asked - NODES) as u64)) " more" }
        }
        @for node in &stage.nodes { @for warning in &node.told.warnings { p.warning { (node.name) ": " (warning) } } }
        @if let Some(node) = stage.nodes.iter().find(|node| node.made.is_some()) {
            p.note { "Of " (node.name) ":" }
            (files(node))
        }
    }
}

/// What entered, of the first node.
fn inputs(stage: &Stage) -> Markup {
    let Some(node) = stage.nodes.first().filter(|node| !node.inputs.is_empty()) else { return html! {} };
    html! {
        h4 { "Input" @if stage.nodes.len() > 1 { span.none { " of " (node.name) } } }
        table.small {
            thead { tr { th scope="col" { "Port" } th scope="col" { "Digest" } } }
            tbody {
                @for (port, digests) in &node.inputs {
                    tr {
                        th scope="row" { (port) }
                        td {
                            @for digest in digests.iter().take(DIGESTS) { code { (digest) } " " }
                            @if digests.len() > DIGESTS { "and " (count((digests.len() - DIGESTS) as u64)) " more" }
                        }
                    }
                }
            }
        }
    }
}

fn params(stage: &Stage) -> Markup {
    let mut flat = BTreeMap::new();
    flatten("", &stage.params, &mut flat);
    html! {
        h4 { "Parameters" span.none { " of " (stage.kind) " version " (stage.version) } }
        @if flat.is_empty() { p.note { "None that count." } }
        @else {
            table.small {
                thead.vh { tr { th scope="col" { "Parameter" } th scope="col" { "Value" } } }
                tbody { @for (name, value) in &flat { tr { th scope="row" { (name) } td { code { (fit(value, VALUE)) } } } } }
            }
        }
    }
}

/// What goes on: how far, and the end of the log.
pub fn now(report: &Report) -> Markup {
    let running: Vec<(&Run, &Node)> = report
        .runs
        .iter()
        .flat_map(|run| run.stages.iter().flat_map(|stage| &stage.nodes).map(move |node| (run, node)))
        .filter(|(_, node)| node.told.state.goes_on())
        .collect();
    html! {
        @if !running.is_empty() { h2 { "Now" } }
        @for (run, node) in running {
            div.going data-node=(node.name) {
                h3 { span.st.(node.told.state.class()) { (node.told.state.word()) } " " (node.name) }
                @match &node.told.progress {
                    Some(progress) => (meter(run, node, progress)),
                    None => p.none { (node.told.why) },
                }
                @if let Some(log) = node.log_path.as_deref().map(|path| end_of(Path::new(path))).filter(|log| !log.is_empty()) {
                    pre.log tabindex="0" id={ "log-" (node.name) } aria-label={ "Log of " (node.name) } { (log) }
                    p.note { a href=(log_address(&run.id, &node.name)) { "The whole log" } }
                }
            }
        }
    }
}

fn meter(run: &Run, node: &Node, progress: &Progress) -> Markup {
    let Progress { done, total, unit, note } = progress;
    let since = node.told.spans.last().map_or(0.0, |span| run.end() - span.from);
    let newest = |name: &str| node.curves.get(name).and_then(super::super::curve::Curve::last);
    html! {
        @if let Some(total) = total.filter(|total| *total > 0) {
            progress max=(total) value=(done) aria-label={ "Progress of " (node.name) } {}
        }
        p.none {
            (amount(*done, *total, *unit)) " · " (duration(since.floor()))
            @if let Some((step, loss)) = newest("loss") { " · loss " (value(loss)) " at step " (count(step)) }
            @if let Some((_, left)) = newest("eta_seconds") { " · " (duration(left)) " left" }
            @if let Some(note) = note { " · " (note) }
        }
    }
}

/// The last lines of a file. What cannot be read says nothing.
fn end_of(path: &Path) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let from = file.metadata()?.len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        // Where it begins within a line, that line is left out.
        let text = if from > 0 { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
        Ok(flow_core::masked(text))
    };
    read().unwrap_or_default()
}
