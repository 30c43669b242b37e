//! [`Board`]: what is going on, gathered from events. The screen and the plain view draw it; it draws nothing.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use flow_core::{Event, How, Unit};

use super::format;

/// A node that runs, or waits for something outside.
#[derive(Debug)]
pub struct Running {
    /// Its name.
    pub node: String,
    /// Since when.
    pub since: Instant,
    /// For what it waits.
    pub waiting: Option<String>,
    /// How far it is.
    pub meter: Meter,
    /// The last word about its progress.
    pub note: Option<String>,
    /// The newest metrics, with their step.
    pub metrics: Option<(u64, BTreeMap<String, f64>)>,
    order: u64,
}

/// What is going on.
#[derive(Debug, Default)]
pub struct Board {
    /// How many nodes there are.
    pub total: usize,
    /// Nodes that are done, by how.
    pub done: HashMap<How, usize>,
    /// Nodes that failed for good.
    pub failed: Vec<String>,
    /// Nodes that cannot run.
    pub blocked: usize,
    /// Seconds that hits saved.
    pub saved: f64,
    /// How each came, the last time: what is decided again comes again.
    came: HashMap<String, (How, f64)>,
    running: HashMap<String, Running>,
    started: u64,
}

impl Board {
    /// Takes an event that happened at `now`.
    pub fn apply(&mut self, event: &Event, now: Instant) {
        match event {
            Event::RunStarted { nodes, .. } => self.total = *nodes,
            Event::Waiting { node, reason } => self.enter(node, now).waiting = Some(reason.clone()),
            Event::Started { node, .. } => {
                let running = self.enter(node, now);
                (running.waiting, running.since, running.meter) = (None, now, Meter::default());
            }
            Event::Progress { node, done, total, unit, note } => {
                if let Some(running) = self.running.get_mut(node) {
                    running.meter.update(*done, *total, *unit, now);
                    running.note.clone_from(note);
                }
            }
            Event::Metrics { node, step, values } => {
                if let Some(running) = self.running.get_mut(node) {
                    // Validation comes less often than the loss: keep what the newest line does not have.
                    let (at, all) = running.metrics.get_or_insert_with(Default::default);
                    *at = *step;
                    all.extend(values.iter().map(|(name, value)| (name.clone(), *value)));
                }
            }
            Event::Finished { node, how, cost, .. } => {
                self.running.remove(node);
                self.forget(node);
                self.came.insert(node.clone(), (*how, *cost));
                *self.done.entry(*how).or_default() += 1;
                self.saved += saved(*how, *cost);
            }
            Event::Failed { node, retry_after, .. } => match retry_after {
                None => {
                    self.running.remove(node);
                    self.forget(node);
                    self.failed.push(node.clone());
                }
                Some(seconds) => {
                    let running = self.enter(node, now);
                    running.waiting = Some(format!("failed, again in {}", format::duration(*seconds)));
                }
            },
            Event::Blocked { node, .. } => {
                self.forget(node);
                self.blocked += 1;
            }
            Event::RunFinished { .. } => self.running.clear(),
            Event::Log { .. } => {}
        }
    }

    /// What was said to be done before, and is decided again.
    fn forget(&mut self, node: &str) {
        if let Some((how, cost)) = self.came.remove(node) {
            *self.done.entry(how).or_default() -= 1;
            self.saved -= saved(how, cost);
        }
    }

    fn enter(&mut self, node: &str, now: Instant) -> &mut Running {
        self.started += 1;
        let order = self.started;
        self.running.entry(node.to_owned()).or_insert_with(|| Running {
            node: node.to_owned(),
            since: now,
            waiting: None,
            meter: Meter::default(),
            note: None,
            metrics: None,
            order,
        })
    }

    /// The node, if it runs or waits.
    pub fn running(&self, node: &str) -> Option<&Running> {
        self.running.get(node)
    }

    /// What runs, in the order of starting.
    pub fn all_running(&self) -> Vec<&Running> {
        let mut all: Vec<_> = self.running.values().collect();
        all.sort_unstable_by_key(|running| running.order);
        all
    }

    /// Nodes that need nothing more, failed ones too.
    pub fn settled(&self) -> usize {
        self.done.values().sum::<usize>() + self.failed.len() + self.blocked
    }

    /// Nodes that ran or went on.
    pub fn ran(&self) -> usize {
        self.of(&[How::Ran, How::Resumed])
    }

    /// Nodes whose result was there.
    pub fn skipped(&self) -> usize {
        self.of(&[How::Cached, How::Shared, How::Remote])
    }

    /// Nodes done in one of these ways.
    pub fn of(&self, hows: &[How]) -> usize {
        hows.iter().filter_map(|how| self.done.get(how)).sum()
    }
}

impl Running {
    /// The newest metrics for people: the loss first, then what else a trainer watches, then the rest.
    pub fn metrics_text(&self) -> Option<String> {
        const FIRST: [&str; 5] = ["loss", "val_loss", "lr", "grad_norm", "tokens_per_second"];
        const ALREADY_SHOWN: [&str; 2] = ["consumed_samples", "consumed_tokens"];
        let (_, values) = self.metrics.as_ref()?;
        let first = FIRST.iter().filter_map(|name| values.get_key_value(*name));
        let rest = values
            .iter()
            .filter(|(name, _)| !FIRST.contains(&name.as_str()) && !ALREADY_SHOWN.contains(&name.as_str()));
        // A metric's name ends in its unit, if it has one.
        let text = |(name, value): (&String, &f64)| match name.rsplit_once('_') {
            Some((what, "bytes")) => format!("{what} {}", format::bytes(*value as u64)),
            Some((what, "seconds")) => format!("{what} {}", format::duration(*value)),
            _ => match name.strip_suffix("_per_second") {
                Some(what) => format!("{} {what}/s", format::value(*value)),
                None => format!("{name} {}", format::value(*value)),
            },
        };
        Some(first.chain(rest).map(text).collect::<Vec<_>>().join(" · "))
    }
}

/// How far something is, how fast it goes, when it will be there.
#[derive(Debug, Default)]
pub struct Meter {
    now: Option<(u64, Option<u64>, Unit)>,
    // The last stretch of the way; the rate is over it, so that what an earlier run did counts for nothing.
    samples: VecDeque<(Instant, u64)>,
}

impl Meter {
    const STRETCH: Duration = Duration::from_secs(20);
    const STEP: Duration = Duration::from_millis(500);

    fn update(&mut self, done: u64, total: Option<u64>, unit: Unit, now: Instant) {
        let back = self.now.is_some_and(|(before, _, of)| done < before || of != unit);
        if back {
            self.samples.clear();
        }
        self.now = Some((done, total, unit));
        // The newest sample moves until it is a step away from the one before it: few samples, none lost.
        let len = self.samples.len();
        if len >= 2 && now.duration_since(self.samples[len - 2].0) < Self::STEP {
            self.samples.pop_back();
        }
        self.samples.push_back((now, done));
        while self.samples.len() > 2 && now.duration_since(self.samples[1].0) > Self::STRETCH {
            self.samples.pop_front();
        }
    }

    /// Done, of how much, of what.
    pub fn amount(&self) -> Option<(u64, Option<u64>, Unit)> {
        self.now
    }

    /// 0 to 1.
    pub fn fraction(&self) -> Option<f64> {
        let (done, total, _) = self.now?;
        total.filter(|total| *total > 0).map(|total| (done as f64 / total as f64).min(1.0))
    }

    /// Units a second.
    pub fn rate(&self) -> Option<f64> {
        let ((first, from), (last, to)) = (self.samples.front()?, self.samples.back()?);
        let seconds = last.duration_since(*first).as_secs_f64();
        (seconds > 0.05 && to > from).then(|| (to - from) as f64 / seconds)
    }

    /// Seconds until it is there, at `now`.
    pub fn eta(&self, now: Instant) -> Option<f64> {
        let (done, total, _) = self.now?;
        let left = total?.saturating_sub(done) as f64 / self.rate()?;
        let since = now.duration_since(self.samples.back()?.0).as_secs_f64();
        Some((left - since).max(0.0))
    }
}

/// What it would have cost.
fn saved(how: How, cost: f64) -> f64 {
    if matches!(how, How::Cached | How::Shared | How::Remote) { cost } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use flow_core::{Digest, Key};

    use super::*;

    #[test]
    fn the_rate_is_of_the_last_stretch_and_a_resumed_start_counts_for_nothing() {
        let start = Instant::now();
        let mut meter = Meter::default();
        for second in 0..60u64 {
            let speed = if second < 30 { 1 } else { 100 };
            let done = 1_000_000 + if second < 30 { second } else { 30 + (second - 30) * speed };
            meter.update(done, Some(2_000_000), Unit::Items, start + Duration::from_secs(second));
        }
        assert!((meter.rate().unwrap() - 100.0).abs() < 1.0, "{:?}", meter.rate());
        let eta = meter.eta(start + Duration::from_secs(59)).unwrap();
        assert!((eta - 9970.0).abs() < 20.0, "{eta}");
        meter.update(5, Some(10), Unit::Items, start + Duration::from_secs(61));
        assert_eq!((meter.rate(), meter.fraction()), (None, Some(0.5)));
    }

    #[test]
    fn many_updates_keep_few_samples() {
        let start = Instant::now();
        let mut meter = Meter::default();
        for millis in 0..100_000u64 {
            meter.update(millis, None, Unit::Bytes, start + Duration::from_millis(millis));
        }
        assert!(meter.samples.len() < 60, "{}", meter.samples.len());
        assert!((meter.rate().unwrap() - 1000.0).abs() < 1.0);
    }

    #[test]
    fn a_node_goes_from_waiting_to_running_to_done() {
        let (mut board, now) = (Board::default(), Instant::now());
        let (node, key) = ("a".to_owned(), Key([0; 32]));
        board.apply(&Event::Waiting { node: node.clone(), reason: "another flow does it".into() }, now);
        assert!(board.running("a").unwrap().waiting.is_some());
        board.apply(&Event::Started { node: node.clone(), key, why: String::new() }, now);
        assert!(board.running("a").unwrap().waiting.is_none());
        let values = |pairs: &[(&str, f64)]| pairs.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        board.apply(&Event::Metrics { node: node.clone(), step: 1, values: values(&[("val_loss", 3.5)]) }, now);
        let newest = values(&[("loss", 3.25), ("tokens_per_second", 12_345.0), ("memory_bytes", 2.5e9)]);
        board.apply(&Event::Metrics { node: node.clone(), step: 2, values: newest }, now);
        let text = board.running("a").unwrap().metrics_text().unwrap();
        assert_eq!(text, "loss 3.25 · val_loss 3.5 · 12,345 tokens/s · memory 2.5 GB");
        let (digest, seconds, bytes, cost) = (Digest([0; 32]), 0.0, 0, 7.0);
        board.apply(&Event::Finished { node, how: How::Shared, key, digest, seconds, bytes, cost }, now);
        assert!(board.running("a").is_none());
        assert_eq!((board.settled(), board.skipped(), board.ran(), board.saved), (1, 1, 0, 7.0));
    }
}
