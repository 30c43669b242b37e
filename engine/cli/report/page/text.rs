//! Text that went in and numbers and text that came out: corpora, evaluations, samples.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::{
    super::{
        charts::letter,
        corpus::Corpus,
        data::{Node, Report, Stage},
        evaluation::{Evaluation, Row, Value},
        samples::Sample,
    },
    heading,
};
use crate::ui::format::{bytes, count, plural, value};

/// Corpora of each run.
pub fn corpora(report: &Report) -> Markup {
    html! {
        @for (nth, run) in report.runs.iter().enumerate() {
            @let stages: Vec<(&Stage, &Corpus)> =
                run.stages.iter().filter_map(|stage| Some((stage, stage.corpus.as_ref()?))).collect();
            @if !stages.is_empty() {
                (heading(report, nth, "Corpus"))
                (table(&stages))
                div.cards {
                    @for (stage, corpus) in &stages { (details(stage, corpus)) }
                }
            }
        }
    }
}

fn table(stages: &[(&Stage, &Corpus)]) -> Markup {
    let number = |number: Option<u64>| number.map(count).unwrap_or_default();
    html! {
        div.scroll tabindex="0" role="region" aria-label="Documents, tokens and bytes at each stage" {
            table {
                thead {
                    tr {
                        th scope="col" { "Stage" } th scope="col" { "Kind" } th.n scope="col" { "Documents" } th.n scope="col" { "Kept" }
                        th.n scope="col" { "Tokens" } th.n scope="col" { "Text" } th.n scope="col" { "Tokens a document" }
                    }
                }
                tbody {
                    @for (stage, corpus) in stages {
                        tr {
                            th scope="row" { (stage.name) }
                            td { (stage.kind) }
                            td.n { (number(corpus.documents)) }
                            td.n { (number(corpus.kept)) }
                            td.n { (number(corpus.tokens)) }
                            td.n { (corpus.bytes.map(bytes).unwrap_or_default()) }
                            td.n {
                                @if let (Some(tokens), Some(documents @ 1..)) = (corpus.tokens, corpus.documents) {
                                    (value((tokens as f64 / documents as f64).round()))
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn details(stage: &Stage, corpus: &Corpus) -> Markup {
    let parts: Vec<(String, u64)> =
        corpus.parts.iter().map(|(name, documents, _)| (name.clone(), *documents)).collect();
    html! {
        @if !corpus.dropped.is_empty() {
            div.card {
                h3 { (stage.name) " dropped" }
                (bars(&corpus.dropped, corpus.documents, "Why"))
                @if !corpus.examples.is_empty() {
                    details {
                        summary { "Some of them" }
                        @for example in &corpus.examples {
                            p.small { strong { (example.reason) } " · " (example.place) " · " (example.why) }
                            blockquote { (example.text) }
                        }
                    }
                }
            }
        }
        @if !parts.is_empty() {
            div.card { h3 { (stage.name) " by part" } (bars(&parts, None, "Part")) }
        }
        @if !corpus.lengths.is_empty() {
            div.card {
                h3 { (stage.name) ": length of documents" }
                (bars(&lengths(&corpus.lengths), None, "Tokens"))
            }
        }
    }
}

/// `257 to 512` → documents, without holes.
fn lengths(lengths: &BTreeMap<u64, u64>) -> Vec<(String, u64)> {
    let (Some((first, _)), Some((last, _))) = (lengths.first_key_value(), lengths.last_key_value()) else {
        return Vec::new();
    };
    let mut most = (*first).max(1);
    let mut rows = Vec::new();
    while most <= *last {
        let name = if most <= 2 { count(most) } else { format!("{} to {}", count(most / 2 + 1), count(most)) };
        rows.push((name, lengths.get(&most).copied().unwrap_or(0)));
        let Some(next) = most.checked_mul(2) else { break };
        most = next;
    }
    rows
}

/// Numbers of documents as bars, of which the longest is the whole width; shares of `of`, or of their sum.
fn bars(rows: &[(String, u64)], of: Option<u64>, name: &str) -> Markup {
    let most = rows.iter().map(|(_, number)| *number).max().unwrap_or(0).max(1) as f64;
    let of = of.unwrap_or_else(|| rows.iter().map(|(_, number)| number).sum()).max(1) as f64;
    html! {
        table.amounts {
            thead { tr { th scope="col" { (name) } th scope="col" { span.vh { "As a bar" } } th.n scope="col" { "Documents" } th.n scope="col" { "Share" } } }
            tbody {
                @for (name, number) in rows {
                    tr {
                        th scope="row" { (name) }
                        td {
                            svg viewBox="0 0 100 10" height="10" preserveAspectRatio="none" aria-hidden="true" {
                                rect.amount width=(format!("{:.2}", *number as f64 / most * 100.0)) height="10" {}
                            }
                        }
                        td.n { (count(*number)) }
                        td.n { (format!("{:.1} %", *number as f64 / of * 100.0)) }
                    }
                }
            }
        }
    }
}

/// Evaluations: of one run beside the model before training, of several beside each other.
pub fn evaluations(report: &Report) -> Markup {
    // In the order of the first that has it: node, task and metric; a side a run.
    let mut names: Vec<(&str, &str, &str)> = Vec::new();
    let mut found: Vec<Vec<(&str, &Evaluation)>> = Vec::new();
    for run in &report.runs {
        let nodes = run.stages.iter().flat_map(|stage| &stage.nodes);
        let of: Vec<_> = nodes.filter_map(|node| Some((node.name.as_str(), node.evaluation.as_ref()?))).collect();
        for (node, row) in of.iter().flat_map(|(node, evaluation)| evaluation.rows.iter().map(move |row| (*node, row)))
        {
            if !names.contains(&(node, row.task.as_str(), row.metric.as_str())) {
                names.push((node, &row.task, &row.metric));
            }
        }
        found.push(of);
    }
    let row = |run: usize, (node, task, metric): (&str, &str, &str)| {
        let (_, evaluation) = found[run].iter().find(|(name, _)| *name == node)?;
        evaluation.rows.iter().find(|row| row.task == task && row.metric == metric)
    };
    let first = found.iter().flatten().next();
    let Some((_, first)) = first else { return html! {} };
    let compared = found.iter().flatten().any(|(_, evaluation)| evaluation.compare.is_some());
    let several = report.runs.len() > 1;
    let nodes = names.windows(2).any(|pair| pair[0].0 != pair[1].0);
    html! {
        h2 { "Evaluation" }
        div.scroll tabindex="0" role="region" aria-label="The evaluation" {
            table.evaluation {
                thead {
                    tr {
                        th scope="col" { "Metric" }
                        @if compared { th.n scope="col" { (first.compare.as_deref().unwrap_or("before training")) } }
                        @for nth in 0..report.runs.len() {
                            th.n scope="col" { @if several { span.letter { (letter(nth)) } } @else { (first.model) } }
                            @if compared { th.n scope="col" { "Difference" } }
                        }
                    }
                }
                @for of_task in names.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
                    tbody {
                        @let (node, task, _) = of_task[0];
                        @let about = of_task.iter().find_map(|name| (0..report.runs.len()).find_map(|run| row(run, *name)));
                        tr.task {
                            th scope="rowgroup" colspan=(1 + report.runs.len() * if compared { 2 } else { 1 } + usize::from(compared)) {
                                (task) " " span.none { @if nodes { "in " (node) ", " } @if let Some(row) = about { (row.about) } }
                            }
                        }
                        @for name in of_task { (metric(&(0..report.runs.len()).map(|run| row(run, *name)).collect::<Vec<_>>(), name.2, compared)) }
                    }
                }
            }
        }
        p.note { "± is the standard error. ↑ more is better, ↓ less. A difference is called better or worse beyond two standard errors; where its error is not known, it is called neither." }
        @if !first.versions.is_empty() {
            p.note { "Measured with " @for (name, version) in &first.versions { (name) " " (version) " " } }
        }
    }
}

/// A number of a task: of the model before, of each run, and what is between.
fn metric(rows: &[Option<&Row>], name: &str, compared: bool) -> Markup {
    html! {
        tr {
            th scope="row" { (name) " " @if let Some(row) = rows.iter().flatten().next() { span.none title="better" { (if row.higher_is_better { "↑" } else { "↓" }) } } }
            @if compared { td.n { (number(rows.iter().flatten().find_map(|row| row.compare))) } }
            @for row in rows {
                td.n { (number(row.and_then(|row| row.model))) }
                @if compared { td.n { @if let Some(row) = row { (difference(row)) } } }
            }
        }
    }
}

fn number(of: Option<Value>) -> Markup {
    html! {
        @if let Some(of) = of { (value(of.value)) @if let Some(error) = of.stderr { span.none { " ± " (value(error)) } } }
        @else { span.none { "–" } }
    }
}

fn difference(row: &Row) -> Markup {
    let Some(of) = row.difference else { return html! { span.none { "–" } } };
    let (class, word) = match row.better() {
        Some(true) => ("better", " better"),
        Some(false) => ("worse", " worse"),
        None => ("", ""),
    };
    html! {
        span.(class) { @if of.value > 0.0 { "+" } (value(of.value)) }
        @if let Some(error) = of.stderr { span.none { " ± " (value(error)) } }
        @if !word.is_empty() { span.verdict.(class) { (word) } }
    }
}

/// What models answered, task by task.
pub fn samples(report: &Report) -> Markup {
    let all: Vec<_> = report
        .runs
        .iter()
        .enumerate()
        .flat_map(|(nth, run)| run.stages.iter().flat_map(|stage| &stage.nodes).map(move |node| (nth, node)))
        .flat_map(|(nth, node)| node.samples.chunk_by(|a, b| a.task == b.task).map(move |of| (nth, node, of)))
        .collect();
    html! {
        @if !all.is_empty() {
            h2 { "Samples" }
            @for (at, (nth, node, of)) in all.iter().enumerate() {
                details.stage.answers id={ "r" (nth) "-samples-" (node.name) "-" (of[0].task) } open[at == 0] {
                    summary {
                        h3 { @if report.runs.len() > 1 { span.letter { (letter(*nth)) } " " } (of[0].task) }
                        span.cost { (plural(of.len(), "document")) }
                    }
                    div.inside { @for sample in *of { (answer(node, sample)) } }
                }
            }
        }
    }
}

/// A question, and what was answered by whom.
fn answer(node: &Node, sample: &Sample) -> Markup {
    let names = node.evaluation.as_ref();
    let before = names.and_then(|names| names.compare.as_deref()).unwrap_or("Before training");
    let after = names.map_or("After", |names| names.model.as_str());
    html! {
        article.sample {
            p.kicker { "Document " (sample.document) }
            @if !sample.prompt.is_empty() { blockquote.prompt { (sample.prompt) } }
            div.sides {
                @if let Some(said) = &sample.before { div { h4 { (before) } blockquote { (said) } } }
                div { h4 { (after) } blockquote { (sample.after) } }
                @if !sample.target.is_empty() { div { h4 { "Expected" } blockquote { (sample.target) } } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_has_no_holes() {
        let rows = lengths(&[(1, 2), (8, 5)].into());
        let expected = [("1", 2), ("2", 0), ("3 to 4", 0), ("5 to 8", 5)];
        assert_eq!(rows, expected.map(|(name, number)| (name.to_owned(), number)));
    }
}
