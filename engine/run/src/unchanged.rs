//! A run in which nothing changed, told without loading the pipeline.
//!
//! What a run decides follows from the pipeline's files, what was said on the command line and in the environment,
//! and what lies on the disk. A run that ended well goes over all of it once more ([`attest`]) while the cache notes
//! each path that is looked at (a *witness*, see `flow_cache`). As long as every one of them is as it was, the next run
//! would look at the same and decide the same: [`unchanged`] tells its events from the notes.
//!
//! It answers only what is the case every day: a whole run, everything there and in its place. All else is loaded and
//! decided in `decide`, which is also where what is attested comes from: there is no second opinion here.

use std::{path::Path, time::Instant};

use flow_cache::{Cache, Outcome};
use flow_core::{Digest, Event, How, Key, Kind, Network, Sink};
use rayon::prelude::*;

use crate::{
    decide::{Decider, Decision},
    graph::{Graph, NodeId},
    load::LoadOptions,
    looks,
    need::is_wanted,
    place::Placer,
    project::{Project, absolute_file, memo_name, project_dir},
    record::{Ended, Head, Recorder},
    runner::Fingerprint,
    select::{RunOptions, Selection},
    settings::Settings,
    summary::Summary,
    why::NO_DIGEST,
};

/// What a run is asked for, before anything is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The pipeline file, as it was named.
    pub file: &'a Path,
    /// The kinds of stages that there are.
    pub kinds: &'static [Kind],
    /// Profile, `--set` and environment.
    pub load: &'a LoadOptions,
    /// What is to be run.
    pub run: &'a RunOptions,
    /// The settings that hold.
    pub settings: &'a Settings,
}

/// Runs a pipeline in which nothing changed since the last run that was whole: tells `sink` what a run would tell, and
/// records it. `None`: something may have changed, or more is asked for than everything; load it and [`crate::run`] it.
#[must_use]
pub fn unchanged(asked: &Asked<'_>, cache: &Cache, sink: &dyn Sink) -> Option<Summary> {
    // What an earlier run could not push is pushed by a run.
    let pushes = || cache.remote().is_some_and(|remote| remote.writes() && remote.has_notes());
    if !asked.run.is_plain() || pushes() {
        return None;
    }
    let began = Instant::now();
    let dir = project_dir(asked.file);
    let file = absolute_file(&dir, asked.file);
    let guard = guard(asked.file, &dir, asked.kinds, asked.load, asked.settings);
    let bytes = cache.ask_witness(&memo_name(&file, asked.load.profile.as_deref()), &guard)?;
    let conclusion = Conclusion::load(&bytes)?;
    let profile = asked.load.profile.as_deref();
    let settings = asked.settings;
    let head = Head {
        pipeline: conclusion.name,
        file,
        profile,
        set: asked.load.said(),
        nodes: conclusion.nodes.len(),
        stages: Vec::new(),
        machine: (settings.cpus, settings.gpus, settings.memory),
    };
    let recorder = Recorder::new(head, cache, sink);
    let same = recorder.last(&conclusion.fingerprint)?;
    let mut summary = Summary { ok: true, run: recorder.id(), ..Summary::default() };
    sink.emit(Event::RunStarted {
        run: recorder.id(),
        pipeline: asked.file.display().to_string(),
        profile: asked.load.profile.clone(),
        nodes: conclusion.nodes.len(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    });
    for node in &conclusion.nodes {
        if node.how == How::Cached {
            summary.skipped += 1;
            summary.saved += node.cost;
        }
        sink.emit(Event::Finished {
            node: node.name.to_owned(),
            how: node.how,
            key: node.key,
            digest: node.digest,
            seconds: 0.0,
            bytes: node.bytes,
            cost: node.cost,
        });
    }
    summary.seconds = began.elapsed().as_secs_f64();
    recorder.end(&summary, Ended::Same(same));
    Some(summary)
}

/// Goes over all that a run of the whole pipeline would decide; if nothing is to be done, that is kept for
/// [`unchanged`]. A failure to do so only makes the next run slower.
pub(crate) fn attest(project: &Project, cache: &Cache, settings: &Settings) {
    cache.take_witness();
    let (conclusion, looks) = looks::collect(|| conclude(project, cache));
    if let Some(conclusion) = conclusion {
        project.looks().par_iter().chain(&looks).with_min_len(256).for_each(|look| look.attest(cache));
        let name = memo_name(&project.absolute_file(), project.profile());
        let guard = guard(project.file(), project.dir(), project.kinds(), project.options(), settings);
        cache.keep_witness(&name, &guard, &conclusion).ok();
    }
    cache.drop_witness();
}

/// The conclusion that nothing is to be done, if that is so.
fn conclude(project: &Project, cache: &Cache) -> Option<Vec<u8>> {
    let graph = project.graph();
    let selection = Selection::new(graph, &RunOptions::default()).ok()?;
    let mut decider = Decider::new(project, cache, &selection).ok()?;
    let placer = Placer::new(project, cache, &|_| ());
    let mut noted: Vec<Noted<'_>> = graph.nodes.iter().map(|node| Noted::off(&node.name)).collect();
    for group in graph.groups(&mut (0..graph.nodes.len()).collect::<Vec<_>>()) {
        let settled = |&id: &NodeId| looks::collect(|| settled(graph, &decider, &selection, &placer, id));
        let settled: Vec<_> = group.par_iter().with_min_len(64).map(settled).collect();
        for (&id, (settled, looks)) in group.iter().zip(settled) {
            looks::add(looks);
            let Some(outcome) = settled? else { continue };
            let (key, bytes, cost) = (outcome.key, outcome.tree.size(), outcome.cost);
            decider.set(id, key, outcome.tree);
            let digest = *decider.result(id)?.2;
            noted[id] = Noted { name: noted[id].name, how: How::Cached, key, digest, bytes, cost };
        }
    }
    placer.look_for_more();
    let (mut fingerprint, mut nodes) = (Fingerprint::default(), Vec::new());
    for (id, noted) in noted.iter().enumerate() {
        fingerprint.add(noted.name, decider.result(id).map(|(key, ..)| key));
        noted.save(&mut nodes);
    }
    Some(Conclusion::save(project.name(), &fingerprint.finish(), &nodes))
}

/// The result of a node of which nothing is to be done, or that it is off; nothing if there is something to do.
fn settled(
    graph: &Graph,
    decider: &Decider<'_>,
    selection: &Selection,
    placer: &Placer<'_>,
    id: NodeId,
) -> Option<Option<Outcome>> {
    match decider.decide(id).ok()? {
        Decision::Off => Some(None),
        Decision::Hit(outcome, None) => {
            let in_place = !placer.has_places(id) || placer.lacks(id, &outcome.tree).ok()?.is_empty();
            in_place.then_some(Some(outcome))
        }
        // The files of what lies between are missed by nobody.
        Decision::Absent(outcome, work) if !work.is_unpinned() => {
            let is_wanted = is_wanted(graph, selection, placer, id, &outcome.tree).ok()?;
            (!is_wanted).then_some(Some(outcome))
        }
        Decision::Hit(_, Some(_)) | Decision::Absent(..) | Decision::Run(_) => None,
    }
}

/// What a decision follows from that does not lie on the disk, or not where a witness looks.
fn guard(file: &Path, dir: &Path, kinds: &[Kind], load: &LoadOptions, settings: &Settings) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &[u8]| {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text);
    };
    add(b"flow unchanged 1");
    // Another build may read the same file in another way.
    add(env!("CARGO_PKG_VERSION").as_bytes());
    add(format!(
        "{:?}",
        std::env::current_exe().and_then(std::fs::metadata).map(|exe| (exe.len(), exe.modified().ok()))
    )
    .as_bytes());
    kinds.iter().for_each(|kind| add(format!("{kind:?}").as_bytes()));
    add(file.as_os_str().as_encoded_bytes());
    add(dir.as_os_str().as_encoded_bytes());
    add(load.profile.as_deref().unwrap_or_default().as_bytes());
    load.set.iter().for_each(|set| add(set.as_bytes()));
    // A remote's secrets decide nothing, and what is hashed in a shared cache could be guessed.
    let said = |name: &str| name.starts_with("FLOW_") && !flow_core::SECRETS.contains(&name);
    let mut env: Vec<_> = load.env.iter().filter(|(name, _)| said(name)).collect();
    env.sort_unstable();
    env.iter().for_each(|(name, value)| add(format!("{name}={value}").as_bytes()));
    // How much may run at a time is nothing to a run in which nothing runs, nor where files would come from.
    let network = Network::default();
    let settings = Settings {
        jobs: 0,
        cpus: 0,
        gpus: 0,
        memory: 0,
        nodes: 0,
        network,
        container_engine: None,
        ..settings.clone()
    };
    add(format!("{settings:?}").as_bytes());
    Digest(*hasher.finalize().as_bytes())
}

/// A node of which nothing is to be done.
#[derive(Debug, PartialEq)]
struct Noted<'a> {
    name: &'a str,
    how: How,
    key: Key,
    digest: Digest,
    bytes: u64,
    cost: f64,
}

/// That nothing is to be done, as a witness keeps it: the pipeline's name, the fingerprint, and the nodes.
#[derive(Debug, PartialEq)]
struct Conclusion<'a> {
    name: &'a str,
    fingerprint: Digest,
    nodes: Vec<Noted<'a>>,
}

impl<'a> Conclusion<'a> {
    fn save(name: &str, fingerprint: &Digest, nodes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + nodes.len());
        put_text(&mut out, name);
        out.extend_from_slice(&fingerprint.0);
        out.extend_from_slice(nodes);
        out
    }

    fn load(bytes: &'a [u8]) -> Option<Self> {
        let rest = &mut { bytes };
        let (name, fingerprint) = (take_text(rest)?, Digest(take(rest)?));
        let mut nodes = Vec::new();
        while !rest.is_empty() {
            nodes.push(Noted::load(rest)?);
        }
        Some(Self { name, fingerprint, nodes })
    }
}

impl<'a> Noted<'a> {
    fn off(name: &'a str) -> Self {
        Self { name, how: How::Off, key: Key(NO_DIGEST.0), digest: NO_DIGEST, bytes: 0, cost: 0.0 }
    }

    fn save(&self, out: &mut Vec<u8>) {
        put_text(out, self.name);
        out.push(u8::from(self.how == How::Off));
        out.extend_from_slice(&self.key.0);
        out.extend_from_slice(&self.digest.0);
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.cost.to_le_bytes());
    }

    fn load(rest: &mut &'a [u8]) -> Option<Self> {
        let name = take_text(rest)?;
        let how = if take::<1>(rest)? == [0] { How::Cached } else { How::Off };
        let (key, digest) = (Key(take(rest)?), Digest(take(rest)?));
        let (bytes, cost) = (u64::from_le_bytes(take(rest)?), f64::from_le_bytes(take(rest)?));
        Some(Self { name, how, key, digest, bytes, cost })
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk::<N>()?;
    *rest = left;
    Some(*taken)
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let len = u32::from_le_bytes(take(rest)?) as usize;
    let (text, left) = rest.split_at_checked(len)?;
    *rest = left;
    std::str::from_utf8(text).ok()
}
