//! The whole log of a node, a page at a time.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use anyhow::{Context as _, Result};
use flow_core::masked;
use flow_engine::History;
use form_urlencoded::parse;
use maud::{Markup, html};

use crate::{
    report::page::{self, Section},
    ui::format::{bytes, count},
};

/// So many bytes of a log are a page, up to the end of a line.
const PAGE: u64 = 256 << 10;

/// The page that is asked for: the last one if none is named. Nothing if there is no such log.
///
/// # Errors
/// It cannot be read.
pub fn show(history: &History, run: &str, query: &str) -> Result<Option<String>> {
    let of = |name: &str| parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    let Some(node) = of("node") else { return Ok(None) };
    // What it names is a node of the run, and never a path.
    let Ok(info) = history.find(run) else { return Ok(None) };
    let path = info.log_path(&node);
    if info.id != run || node.contains(['/', '\0']) || !path.is_file() {
        return Ok(None);
    }
    let (pages, asked) = (path.metadata()?.len().div_ceil(PAGE).max(1), of("page").and_then(|page| page.parse().ok()));
    let nth = asked.unwrap_or(pages).clamp(1, pages);
    let text = stretch(&path, nth - 1).with_context(|| format!("cannot read {}", path.display()))?;
    let html = html! {
        p.kicker { a href={ "/run/" (run) } { (info.head.pipeline) " " (run) } }
        h1 { (node) }
        (ways(run, &node, nth, pages))
        pre.whole tabindex="0" aria-label={ "Log of " (node) } { (masked(&text)) }
        (ways(run, &node, nth, pages))
    };
    let sections = [Section { id: "log", title: "", html }];
    let foot = html! { code { (path.display()) } ", " (bytes(path.metadata()?.len())) };
    Ok(Some(page::page(&format!("{node} · {run}"), &sections, &page::chart_data(&[], true), None, &foot)))
}

/// Links to the other pages.
fn ways(run: &str, node: &str, nth: u64, pages: u64) -> Markup {
    let to = |nth: u64| format!("{}&page={nth}", page::log_address(run, node));
    let ways = [
        ("First", 1, nth > 1),
        ("Earlier", nth - 1, nth > 1),
        ("Later", nth + 1, nth < pages),
        ("Last", pages, nth < pages),
    ];
    html! {
        @if pages > 1 {
            p.ways {
                @for (name, page, is_there) in ways { @if is_there { a href=(to(page)) { (name) } " " } }
                span.none { "page " (count(nth)) " of " (count(pages)) }
            }
        }
    }
}

/// The lines that begin in a page.
fn stretch(path: &Path, nth: u64) -> std::io::Result<String> {
    let mut file = BufReader::new(File::open(path)?);
    let from = first_line(&mut file, nth * PAGE)?;
    let to = first_line(&mut file, (nth + 1) * PAGE)?;
    file.seek(SeekFrom::Start(from))?;
    let mut text = Vec::new();
    file.take(to.saturating_sub(from)).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Where the first line at or after a place begins. One that is longer than a page is cut.
fn first_line(file: &mut BufReader<File>, at: u64) -> std::io::Result<u64> {
    let Some(before) = at.checked_sub(1) else { return Ok(0) };
    file.seek(SeekFrom::Start(before))?;
    Ok(before + file.by_ref().take(PAGE).read_until(b'\n', &mut Vec::new())? as u64)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn pages_are_whole_lines_and_together_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let lines: String = (0..60_000).map(|n| format!("line {n} of it\n")).collect();
        fs::write(&path, &lines).unwrap();
        let pages = (lines.len() as u64).div_ceil(PAGE);
        let all: Vec<String> = (0..pages).map(|nth| stretch(&path, nth).unwrap()).collect();
        assert!(pages > 3 && all.iter().all(|page| page.starts_with("line ") && page.ends_with("it\n")));
        assert_eq!(all.concat(), lines);
        // A line without an end is no endless page.
        fs::write(&path, "x".repeat(3 * PAGE as usize)).unwrap();
        assert_eq!((0..3).map(|nth| stretch(&path, nth).unwrap().len() as u64).sum::<u64>(), 3 * PAGE);
    }
}
