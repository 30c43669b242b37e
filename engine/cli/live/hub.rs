//! [`Hub`]: one thread that reads runs, and all who look at them. Each of them gets what has changed since it last got
//! something, however slow it is; a run that nobody looks at is not read.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use flow_cache::Cache;
use flow_engine::{History, RunInfo};
use tokio::sync::watch;

use super::list;
use crate::report::{
    Library, charts,
    data::{Report, Run},
    page::{self, Section},
    tale::Tale,
};

/// A run is looked at so often.
const EVERY: Duration = Duration::from_millis(250);
/// And so much longer than it took is waited, where that is more.
const PAUSE: u32 = 8;

/// What is shown of a run, or of the list of them.
#[derive(Debug)]
pub struct Picture {
    pub title: String,
    pub sections: Vec<Seen>,
    pub charts: Seen,
    /// Grows with every change, and with every flow that shows one.
    pub serial: u64,
    /// Why nothing will change any more, if so.
    pub over: Option<&'static str>,
}

/// A part of it, and the serial of its last change.
#[derive(Debug)]
pub struct Seen {
    pub id: &'static str,
    pub title: &'static str,
    pub html: String,
    pub changed: u64,
}

type Shown = watch::Sender<Option<Arc<Picture>>>;

/// What is looked at: the id of a run, or nothing for the list of them.
type What = Option<String>;

/// Who looks at what.
#[derive(Debug, Default)]
pub struct Hub {
    looked_at: Mutex<HashMap<What, Shown>>,
}

/// What is remembered of a run between two looks.
struct Followed {
    tale: Tale,
    due: Instant,
}

impl Hub {
    /// Looks at something from now on: nothing is there at first.
    pub fn look(&self, what: What) -> watch::Receiver<Option<Arc<Picture>>> {
        self.lock().entry(what).or_insert_with(|| watch::Sender::new(None)).subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<What, Shown>> {
        self.looked_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What somebody looks at, as it was shown last.
    fn asked(&self) -> Vec<(What, Option<Arc<Picture>>)> {
        let mut all = self.lock();
        all.retain(|_, shown| shown.receiver_count() > 0);
        all.iter().map(|(what, shown)| (what.clone(), shown.borrow().clone())).collect()
    }

    /// Reads runs for as long as the process lives.
    pub fn work(&self, cache: &Cache) {
        let library = Library::new(cache);
        let mut followed: HashMap<What, Followed> = HashMap::new();
        loop {
            let asked = self.asked();
            followed.retain(|what, _| asked.iter().any(|(known, _)| known == what));
            for (what, before) in asked {
                let now = Instant::now();
                let of = followed.entry(what.clone()).or_insert_with(|| Followed { tale: Tale::default(), due: now });
                if of.due > now || before.as_ref().is_some_and(|before| before.over.is_some()) {
                    continue;
                }
                let picture = match &what {
                    Some(id) => run(&library, id, &mut of.tale, before.as_deref()),
                    None => list::picture(library.history(), before.as_deref()),
                };
                let picture = picture.unwrap_or_else(|error| gone(&error, before.as_deref()));
                of.due = Instant::now() + (now.elapsed() * PAUSE).max(EVERY);
                if before.is_none_or(|before| before.serial != picture.serial || before.over != picture.over)
                    && let Some(shown) = self.lock().get(&what)
                {
                    shown.send_replace(Some(Arc::new(picture)));
                }
            }
            std::thread::sleep(EVERY / 5);
        }
    }
}

/// What there is to see of a run.
fn run(library: &Library<'_>, id: &str, tale: &mut Tale, before: Option<&Picture>) -> Result<Picture> {
    // How it stands is asked first: what it told before it ended is then all read.
    let info: RunInfo = library.history().find(id)?;
    anyhow::ensure!(info.id == id, "there is no run `{id}`");
    library.refresh();
    if info.head.same_nodes_as.is_some() {
        *tale = crate::report::data::tale_of(library.history(), &info)?;
    } else {
        tale.read(&info.events_path())?;
    }
    let newer = newer(library.history(), &info)?;
    let report = Report::from(vec![Run::of(library, &info, tale)?]);
    let drawn = charts::of(&report);
    let mut sections = vec![Section { id: "newer", title: "", html: list::newer(newer.as_ref()) }];
    sections.extend(page::sections(&report, &drawn, true));
    let title = format!("{} · {}", info.head.pipeline, info.id);
    let over = (!info.alive).then_some("ended");
    Ok(Picture::new(title, sections, page::chart_data(&drawn, true), over, before))
}

/// The newest run of the same pipeline, if it is not this one; nothing if many have begun since.
fn newer(history: &History, info: &RunInfo) -> Result<Option<RunInfo>> {
    let file: PathBuf = info.head.file.clone();
    Ok(history.list()?.take(list::RUNS).take_while(|run| run.id > info.id).find(|run| run.head.file == file))
}

/// What there is to see of a run that cannot be read any more, because it was let go of perhaps.
fn gone(error: &anyhow::Error, before: Option<&Picture>) -> Picture {
    let note = Section { id: "newer", title: "", html: list::gone(error) };
    let title = before.map_or_else(|| "no such run".to_owned(), |before| before.title.clone());
    let mut sections = vec![note];
    sections
        .extend(before.iter().flat_map(|before| &before.sections).filter(|seen| seen.id != "newer").map(Seen::section));
    let charts = before.map_or_else(|| page::chart_data(&[], true), |before| before.charts.html.clone());
    Picture::new(title, sections, charts, Some("gone"), before)
}

impl Seen {
    /// As a page takes it.
    pub fn section(&self) -> Section {
        Section { id: self.id, title: self.title, html: maud::PreEscaped(self.html.clone()) }
    }
}

impl Picture {
    /// With the serials that follow from what was to be seen before.
    pub fn new(
        title: String,
        sections: Vec<Section>,
        charts: String,
        over: Option<&'static str>,
        before: Option<&Self>,
    ) -> Self {
        // Greater than all that an earlier flow gave away, so that who comes back to a new one gets all.
        let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let next = before.map_or(first, |before| before.serial + 1);
        let mut serial = before.map_or(first, |before| before.serial);
        let mut seen = |id: &'static str, title: &'static str, html: String| {
            let known = before.into_iter().flat_map(|before| before.sections.iter().chain([&before.charts]));
            let known = known.filter(|known| known.id == id && known.html == html).map(|known| known.changed).next();
            let changed = known.unwrap_or(next);
            serial = serial.max(changed);
            Seen { id, title, html, changed }
        };
        let sections = sections.into_iter().map(|section| seen(section.id, section.title, section.html.0)).collect();
        let charts = seen("charts", "", charts);
        Self { title, sections, charts, serial, over }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(texts: [&str; 2], before: Option<&Picture>) -> Picture {
        let section = |id, text: &str| Section { id, title: "", html: maud::PreEscaped(text.to_owned()) };
        let sections = vec![section("a", texts[0]), section("b", texts[1])];
        Picture::new("t".into(), sections, "[]".into(), None, before)
    }

    #[test]
    fn only_what_changed_has_a_new_serial() {
        let first = picture(["1", "2"], None);
        let same = picture(["1", "2"], Some(&first));
        assert_eq!(same.serial, first.serial);
        let other = picture(["1", "3"], Some(&same));
        assert!(other.serial > first.serial);
        let changed: Vec<bool> = other.sections.iter().map(|seen| seen.changed > first.serial).collect();
        assert_eq!((changed, other.charts.changed), (vec![false, true], first.serial));
    }
}
