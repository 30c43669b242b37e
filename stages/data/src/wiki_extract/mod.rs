//! `wiki-extract`: the articles of a Wikipedia as text.
//!
//! One thread decompresses and takes the dump apart, several make text of pages, and the caller's writes it in the order
//! of the dump. What travels between them is bounded, and so is memory.

mod dump;
mod elements;
mod entities;
mod lines;
mod markup;
mod pairs;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, BufWriter, Write},
    ops::AddAssign,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use flow_core::{Check, Ctx, Level, Port, Refs, Stage, Unit};
use flow_formats::compressed::{Decoder, strip_ending};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::documents::{stats_name, write_stats};
use dump::{Dump, Page, Site};
use markup::Removed;

/// `kind = "wiki-extract"`: one node a dump (`…-pages-articles.xml.bz2`, also the multistream one, or with another
/// compression); its articles as JSONL with `id`, `revid`, `url`, `title` and `text`, as `wikiextractor --json` gives them.
/// Redirects and empty pages are left out, and of the text its templates, tables, notes, pictures and categories.
/// `NAME.stats.json` counts what was.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WikiExtract {
    /// Dumps: one node each.
    #[serde(skip_serializing)]
    input: Refs,
    /// The namespaces whose pages are taken; 0 is that of the articles.
    #[serde(default = "articles", skip_serializing_if = "is_articles")]
    namespaces: Vec<i64>,
}

fn articles() -> Vec<i64> {
    vec![0]
}

fn is_articles(namespaces: &[i64]) -> bool {
    namespaces == [0]
}

/// Bytes of wikitext that travel together.
const BATCH: usize = 1 << 20;

/// What a dump held.
#[derive(Debug, Default, Serialize)]
struct Stats {
    pages: u64,
    articles: u64,
    /// Of the articles' text, in UTF-8.
    text_bytes: u64,
    /// Pages that are no articles, by why.
    dropped: BTreeMap<&'static str, u64>,
    /// What was taken out of the articles.
    removed: Removed,
}

impl AddAssign for Stats {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.articles += other.articles;
        self.text_bytes += other.text_bytes;
        for (why, pages) in other.dropped {
            *self.dropped.entry(why).or_default() += pages;
        }
        self.removed += other.removed;
    }
}

/// A line of the output; the order is that of wikiextractor.
#[derive(Serialize)]
struct Article<'a> {
    id: &'a str,
    revid: &'a str,
    url: &'a str,
    title: &'a str,
    text: &'a str,
}

impl Stage for WikiExtract {
    const KIND: &'static str = "wiki-extract";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "Takes the text of the articles out of a Wikipedia dump";

    fn ports(&self) -> Vec<Port> {
        vec![Port::each("input", &self.input)]
    }

    fn check(&self, check: &mut Check<'_>) {
        let names = check.input("input").iter().flat_map(|known| &known.files).map(|name| stem(name));
        check.files = names.flat_map(|stem| [format!("{stem}.jsonl"), stats_name(stem)]).collect();
        let paths: Vec<_> = check.input("input").iter().filter_map(|known| known.path.clone()).collect();
        for path in paths.iter().filter(|path| path.is_file()) {
            if let Err(error) = Decoder::open(path) {
                check.error("input", crate::diagnostic(&error));
            }
        }
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let input = ctx.one("input")?;
        let total = input.tree.size();
        let mut before = 0;
        for (name, path) in &input.files() {
            let stem = stem(name);
            let target = ctx.out.join(format!("{stem}.jsonl"));
            ensure!(!target.exists(), "two files of {} would both become {}", input.name, target.display());
            let progress = |done| ctx.progress(before + done, Some(total), Unit::Bytes);
            let stats = self.extract(ctx, path, &target, &progress)?;
            before += path.metadata()?.len();
            let Stats { articles, pages, text_bytes, .. } = stats;
            ctx.log(Level::Info, format!("{stem}: {articles} articles of {pages} pages, {text_bytes} bytes"));
            write_stats(ctx, &stats_name(stem), &stats)?;
        }
        Ok(())
    }
}

/// `jawiki-pages-articles.xml.bz2` → `jawiki-pages-articles`
fn stem(name: &str) -> &str {
    let name = strip_ending(name);
    name.strip_suffix(".xml").unwrap_or(name)
}

/// Pages, and where what becomes of them goes.
type Job = (Arc<Site>, Vec<Page>, SyncSender<Done>);

/// Lines of output, and what the pages held.
type Done = (Vec<u8>, Stats);

impl WikiExtract {
    fn extract(&self, ctx: &Ctx<'_>, path: &Path, target: &Path, progress: &dyn Fn(u64)) -> Result<Stats> {
        let cannot = || format!("cannot write {}", target.display());
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).with_context(cannot)?;
        }
        let mut out = BufWriter::with_capacity(1 << 20, File::create_new(target).with_context(cannot)?);
        let decoder = Decoder::open(path)?;
        let position = decoder.position();
        let threads = ctx.threads.max(1);
        let (jobs, to_do) = sync_channel::<Job>(threads);
        let (order, results) = sync_channel::<Receiver<Done>>(2 * threads);
        let to_do = Arc::new(Mutex::new(to_do));
        thread::scope(|scope| {
            let reader = scope.spawn(move || read(path, decoder, &jobs, &order));
            for _ in 0..threads {
                let to_do = Arc::clone(&to_do);
                scope.spawn(move || {
                    loop {
                        let job = to_do.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok((site, pages, result)) = job else { return };
                        // Who waits for it may have been interrupted.
                        let _ = result.send(self.articles(&site, &pages));
                    }
                });
            }
            drop(to_do);
            let mut stats = Stats::default();
            let written = (|| {
                for result in results {
                    ctx.go_on()?;
                    let (lines, counts) = result.recv().map_err(|_| anyhow!("a page could not be read"))?;
                    out.write_all(&lines).with_context(cannot)?;
                    stats += counts;
                    progress(position.get());
                }
                out.flush().with_context(cannot)
            })();
            // What it could not read comes before what could not be written of it.
            reader.join().map_err(|_| anyhow!("a dump could not be read"))??;
            written.map(|()| stats)
        })
    }

    /// The lines that pages become.
    fn articles(&self, site: &Site, pages: &[Page]) -> Done {
        let (mut lines, mut stats) = (Vec::new(), Stats::default());
        for page in pages {
            stats.pages += 1;
            let wanted = page.namespace.parse().is_ok_and(|namespace| self.namespaces.contains(&namespace));
            let is_text = page.model.is_empty() || page.model == "wikitext";
            let why = match (wanted, page.redirect, is_text) {
                (false, ..) => Some("other_namespaces"),
                (_, true, _) => Some("redirects"),
                (.., false) => Some("other_models"),
                _ => None,
            };
            let (text, removed) = if why.is_none() { markup::text(site, &page.text) } else { Default::default() };
            if let Some(why) = why.or(text.is_empty().then_some("empty")) {
                *stats.dropped.entry(why).or_default() += 1;
                continue;
            }
            let url = format!("{}?curid={}", site.url, page.id);
            let article = Article { id: &page.id, revid: &page.revision, url: &url, title: &page.title, text: &text };
            serde_json::to_writer(&mut lines, &article).expect("strings become JSON");
            lines.push(b'\n');
            stats.articles += 1;
            stats.text_bytes += text.len() as u64;
            stats.removed += removed;
        }
        (lines, stats)
    }
}

/// Hands the pages of a dump out, until it ends or nobody takes them any more.
fn read(path: &Path, decoder: Decoder, jobs: &SyncSender<Job>, order: &SyncSender<Receiver<Done>>) -> Result<()> {
    let mut dump = Dump::new(path.to_owned(), BufReader::with_capacity(256 << 10, decoder));
    let mut site = None;
    loop {
        let (mut pages, mut bytes, mut ended) = (Vec::new(), 0, false);
        while bytes < BATCH && !ended {
            match dump.next()? {
                Some(page) => {
                    // What is known of the site stands before its first page.
                    site.get_or_insert_with(|| Arc::new(dump.site.clone()));
                    bytes += page.text.len() + 256;
                    pages.push(page);
                }
                None => ended = true,
            }
        }
        if let Some(site) = site.as_ref().filter(|_| !pages.is_empty()) {
            let (result, done) = sync_channel(1);
            if order.send(done).is_err() || jobs.send((Arc::clone(site), pages, result)).is_err() {
                return Ok(());
            }
        }
        if ended {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
